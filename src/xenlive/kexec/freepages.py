"""Free pages while a kexec is prepared: whole pages of RAM above the next kernel, not in use.

    limit                                                4 GiB - 1 page
    |....[used]......[module]....................[used]..|
                                     ◀── taken from the top, the highest run that is long enough

**Invariants.** No page is given out twice, none that overlaps what was said to be taken, none that
is not RAM by the map or not there. The same input gives the same pages. The cost grows with the
number of runs, not with their lengths.
"""

from __future__ import annotations

from xenlive.errors import OutOfSpace
from xenlive.memory.address import (
    PAGE_SHIFT,
    PAGE_SIZE,
    Frame,
    PhysAddr,
    frame_of,
    round_down,
    round_up,
)
from xenlive.memory.e820 import PLACEMENT_LIMIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenlive.memory.e820 import MemoryMap


class FreePages:
    """The free pages from address `lowest` up.

    They lie in RAM of `memmap`, in one of `regions` and outside of `taken`, all of these pairs of
    address and size in bytes. `count` is how many are left.
    """

    __slots__ = ("_runs", "count")

    def __init__(
        self,
        memmap: MemoryMap,
        regions: Iterable[tuple[int, int]],
        lowest: PhysAddr,
        taken: Iterable[tuple[int, int]],
    ) -> None:
        there = [(address, address + size) for address, size in regions]
        # lowest first: what is taken, is taken from the end of the list
        self._runs: list[tuple[int, int]] = []
        blocked = sorted((address, address + size) for address, size in taken if size > 0)
        for ram in memmap.ram():
            for start, end in there:
                low = round_up(max(ram.addr, start, lowest), PAGE_SIZE)
                high = round_down(min(ram.end, end, PLACEMENT_LIMIT), PAGE_SIZE)
                self._runs += _gaps(low, high, blocked)
        self._runs.sort()
        self.count = sum(end - start for start, end in self._runs) >> PAGE_SHIFT

    def take(self, n_pages: int) -> Frame:
        """The first of `n_pages` frames in a row. OutOfSpace if there are no such."""
        size = n_pages * PAGE_SIZE
        for index in range(len(self._runs) - 1, -1, -1):
            start, end = self._runs[index]
            if end - start >= size:
                self._runs[index : index + 1] = [(start, end - size)] if end - start > size else []
                self.count -= n_pages
                return frame_of(PhysAddr(end - size))
        longest = max([(end - start) >> PAGE_SHIFT for start, end in self._runs], default=0)
        raise OutOfSpace("free pages in a row above the next kernel", n_pages, longest)


def _gaps(low: int, high: int, blocked: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of a run outside of all `blocked`, which are in order, in whole pages."""
    gaps = []
    for start, end in blocked:
        if start >= high or low >= high:
            break
        gaps.append((low, min(high, round_down(start, PAGE_SIZE))))
        low = max(low, round_up(end, PAGE_SIZE))
    gaps.append((low, high))
    return [(start, end) for start, end in gaps if start < end]
