"""A domain's physical space as Xen copies from and to it: where nothing stands, nothing is copied.

A processor that reads a hole gets all ones. A hypercall whose argument lies in one is told -EFAULT:
`__hvm_copy` of `xen/arch/x86/hvm/hvm.c` (Xen 4.17) stops there (`HVMTRANS_bad_gfn_to_mfn`).

**Invariants.** Only memory that is there is read or written; page walks read what the processor's
do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.machine.emulated.processor.paging import PageFault

if TYPE_CHECKING:
    from xenlive.machine.emulated.space import Space


class Backed:
    """The memory of `space` for `Paging.read` and `write`; PageFault where there is none."""

    __slots__ = ("_space",)

    def __init__(self, space: Space) -> None:
        self._space = space

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at a physical address."""
        self._validate(address, size)
        return self._space.read(address, size)

    def read_u64(self, address: int) -> int:
        """An entry of a page table."""
        return self._space.read_u64(address)

    def write(self, address: int, data: bytes) -> None:
        """Stores `data` at a physical address."""
        self._validate(address, len(data))
        self._space.write(address, data)

    def _validate(self, address: int, size: int) -> None:
        if not self._space.is_backed(address, size):
            raise PageFault(address, 0)
