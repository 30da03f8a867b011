"""A seeded world for tests: kernels A, B, C without processes, descriptors or time.

The cores are the product's own: boot, server, update session, module, grants, 9pfs both ends, state
stream. What is simulated is the machine under them and the clients above. One number decides all
that happens; `python -m xenlive.sim --seed N` repeats it.
"""
