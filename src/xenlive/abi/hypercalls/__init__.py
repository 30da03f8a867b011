"""What Xen's hypercalls are called with, one file a header: numbers and structures, both widths.

A structure with a pointer, a frame number or a native word in it has a second form for 32 bit
guests, named `…_32`. Xen's own headers are the C of this; it is not in the header that this
program writes.
"""
