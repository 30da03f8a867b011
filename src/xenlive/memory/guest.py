"""Guest physical memory behind one bounds-checked door.

A domain's memory is a few regions, each a run of guest physical addresses backed by a buffer (a
mapped memfd, a bytearray in a test, a dump). Everything that reads or writes guest memory by
address comes through `GuestMemory`.

**Invariants.** No access reaches outside of one region: it fails with `BadAddress` and changes
nothing. Negative and overflowing numbers are caught here, whoever they came from. `view` gives
live memory: what another process writes there is seen at once, so read a peer's number once,
check it, and use that copy.
"""

from __future__ import annotations

from xenlive.errors import BadAddress
from xenlive.memory.address import PAGE_SHIFT, PAGE_SIZE, Frame, PhysAddr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer


class GuestMemory:
    """The memory of one domain: `regions` are pairs of first address and backing buffer."""

    __slots__ = ("_regions",)

    def __init__(self, regions: Iterable[tuple[int, Buffer]]) -> None:
        known: list[tuple[int, int, memoryview]] = []
        for base, buffer in regions:
            view = memoryview(buffer).cast("B")
            if base < 0:
                raise BadAddress(base, len(view), "a region can't start below zero")
            known.append((base, base + len(view), view))
        known.sort(key=lambda region: region[0])
        highest_end = 0
        for base, end, _ in known:
            if base < highest_end:
                raise BadAddress(base, end - base, "two regions overlap")
            highest_end = end
        self._regions = known

    def _find(self, address: int, size: int) -> tuple[memoryview, int]:
        if size < 0:
            raise BadAddress(address, size, "negative size")
        for base, end, view in self._regions:
            if base <= address <= end and address + size <= end:
                return view, address - base
        raise BadAddress(address, size)

    def contains(self, address: PhysAddr, size: int) -> bool:
        """Whether `size` bytes at `address` lie inside one region."""
        return size >= 0 and any(
            base <= address and address + size <= end for base, end, _ in self._regions
        )

    def regions(self) -> list[tuple[PhysAddr, int]]:
        """First address and size in bytes of each region, lowest first."""
        return [(PhysAddr(base), end - base) for base, end, _ in self._regions]

    def read(self, address: PhysAddr, size: int) -> bytes:
        """A copy of `size` bytes at `address`. BadAddress if they are not all there."""
        view, offset = self._find(address, size)
        return bytes(view[offset : offset + size])

    def write(self, address: PhysAddr, data: Buffer) -> None:
        """Stores `data` at `address`. BadAddress, and nothing is stored, if it does not fit."""
        source = memoryview(data).cast("B")
        view, offset = self._find(address, len(source))
        view[offset : offset + len(source)] = source

    def fill(self, address: PhysAddr, size: int, byte: int = 0) -> None:
        """Stores `byte` `size` times at `address`. BadAddress if that is not all there."""
        view, offset = self._find(address, size)
        view[offset : offset + size] = bytes([byte]) * size

    def view(self, address: PhysAddr, size: int) -> memoryview:
        """Live memory: `size` bytes at `address`. BadAddress if they are not all there."""
        view, offset = self._find(address, size)
        return view[offset : offset + size]

    def page(self, frame: Frame) -> memoryview:
        """Live memory of one page frame. BadAddress if it is not there."""
        return self.view(PhysAddr(frame << PAGE_SHIFT), PAGE_SIZE)

    def release(self) -> None:
        """Lets go of the backing buffers, so that a mapping can be closed; no access after that."""
        for _, _, view in self._regions:
            view.release()
        self._regions = []
