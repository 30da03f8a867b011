"""Ring indices and byte streams over shared pages.

`area.py` lays a ring's bytes over pages that need not be neighbours, `stream.py` moves bytes
through them with a producer's and a consumer's index.
"""
