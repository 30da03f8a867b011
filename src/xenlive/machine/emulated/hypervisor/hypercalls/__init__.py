"""Hypercalls, one file a number: decode the guest's arguments, check, act, encode.

`table.py` knows which number is whose. A handler gets a `Caller` and up to five arguments, and
gives what the guest finds in its result register; a refusal is a `HypercallError` with Xen's errno.
"""
