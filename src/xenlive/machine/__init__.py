"""Processor and hypervisor: who runs a domain, and what serves its hypercalls.

One folder a machine. `hosted/` runs a domain as a Python process on a memfd.
"""
