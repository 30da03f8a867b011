"""The 9pfs device: its interface page, and its record in the kexec module.

Specification: Xen `docs/misc/9pfs.pandoc` and `public/io/9pfs.h`, whose structure
`DEFINE_XEN_FLEX_RING_AND_INTF` of `public/io/ring.h` makes. The record is Mini-OS'
`include/kexec.h` (posted July 2025), record type 1.

    interface page        0 in_cons    4 in_prod                64 out_cons   68 out_prod
                        128 ring_order                         132 ref[1 << ring_order]
    data                `PAGE_SIZE << ring_order` bytes: first half in (backend to front end),
                        second half out

**Invariants.** Each index is an aligned u32: one `memoryview.cast("I")` item, read or written at
once. Indices run free; only their value modulo the half's size is a place in the ring.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

INTERFACE = Layout(
    "xen_9pfs_data_intf",
    132,
    [
        Field("in_cons", 0, "I"),
        Field("in_prod", 4, "I"),
        Field("_pad1", 8, "56s"),
        Field("out_cons", 64, "I"),
        Field("out_prod", 68, "I"),
        Field("_pad2", 72, "56s"),
        Field("ring_order", 128, "I"),
    ],
    ctype="struct xen_9pfs_data_intf",
)

# The same fields as word indices of the page's `cast("I")`.
IN_CONS = 0
IN_PROD = 1
OUT_CONS = 16
OUT_PROD = 17
RING_ORDER = 32
REF0 = 33

MIN_RING_ORDER = 1
MAX_RING_ORDER = 9

RECORD_9PFS = Layout(
    "kexec record 9PFS",
    16,
    [
        Field("ring_ref", 0, "I"),
        Field("evtchn", 4, "I"),
        Field("prod_pvt_out", 8, "I"),
        Field("cons_pvt_in", 12, "I"),
    ],
    ctype="struct kexec_9pfs",
)
