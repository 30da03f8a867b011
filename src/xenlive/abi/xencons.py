"""The page of a paravirtual console: two rings and their indices.

Specification: Xen `public/io/console.h`.

    0            1024            3072     3076     3080      3084
    ├── in ───────┼── out ────────┼────────┼────────┼─────────┤
    │ to the guest│ from the guest│in_cons │in_prod │out_cons │ out_prod

**Invariants.** Indices run free; only their value modulo the ring's size is a place in it. Each is
an aligned u32: one `memoryview.cast("I")` item, read or written at once.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

XENCONS_INTERFACE = Layout(
    "xencons_interface",
    3088,
    [
        Field("in", 0, "1024s"),
        Field("out", 1024, "2048s"),
        Field("in_cons", 3072, "I"),
        Field("in_prod", 3076, "I"),
        Field("out_cons", 3080, "I"),
        Field("out_prod", 3084, "I"),
    ],
    ctype="struct xencons_interface",
)

IN_SIZE = 1024
OUT_SIZE = 2048
OUT_AT = XENCONS_INTERFACE.offset_of("out")

# The indices as items of the page's `cast("I")`.
IN_CONS = XENCONS_INTERFACE.offset_of("in_cons") // 4
IN_PROD = XENCONS_INTERFACE.offset_of("in_prod") // 4
OUT_CONS = XENCONS_INTERFACE.offset_of("out_cons") // 4
OUT_PROD = XENCONS_INTERFACE.offset_of("out_prod") // 4
