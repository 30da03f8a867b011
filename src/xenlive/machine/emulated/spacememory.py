"""A domain's physical space as the one door to guest memory that other rooms know.

Specification: `memory/guest.py`, whose promises these are too.

**Invariants.** An access is to what stands behind guest frames at that moment, and to the domain's
own pages only. A view must lie in a row in the domain's memfd: RAM as it was at boot does.

Why not a region for each run: pages move while others have the door open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.errors import BadAddress
from xenlive.memory.address import PAGE_SHIFT, PAGE_SIZE, Frame, PhysAddr
from xenlive.memory.guest import GuestMemory

if TYPE_CHECKING:
    from xenlive.machine.emulated.space import Space


class SpaceMemory(GuestMemory):
    """Guest memory as it stands behind guest frames at the moment of each access."""

    __slots__ = ("_all", "_space")

    def __init__(self, space: Space, view: memoryview) -> None:
        super().__init__([])
        self._space = space
        self._all = view

    def _find(self, address: int, size: int) -> tuple[memoryview, int]:
        if address < 0 or size < 0:
            raise BadAddress(address, size)
        offset = self._space.contiguous(address, size)
        if offset is None:
            raise BadAddress(address, size)
        return self._all, offset

    def contains(self, address: PhysAddr, size: int) -> bool:
        return address >= 0 and size >= 0 and self._space.contiguous(address, size) is not None

    def regions(self) -> list[tuple[PhysAddr, int]]:
        known: list[tuple[PhysAddr, int]] = []
        for gfn, count, _, _ in sorted(self._space.runs()):
            address, size = PhysAddr(gfn << PAGE_SHIFT), count << PAGE_SHIFT
            if (
                known
                and known[-1][0] + known[-1][1] == address
                and self.contains(PhysAddr(address - 1), 2)
            ):
                known[-1] = (known[-1][0], known[-1][1] + size)
            else:
                known.append((address, size))
        return [(address, size) for address, size in known if self.contains(address, 1)]

    def page(self, frame: Frame) -> memoryview:
        return self.view(PhysAddr(frame << PAGE_SHIFT), PAGE_SIZE)

    def release(self) -> None:
        """Nothing to let go of: the space owns the mapping."""
