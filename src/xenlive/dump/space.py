"""Guest physical memory as a file has it: which addresses are where in the file.

    address   0          640 KiB   1 MiB                      4 GiB
              |== extent ==|         |======= extent =======|   |== extent ==|
                    |                        |                        |
    file      ......|========|...|======================|.......|==========|

Every format comes down to this: a raw image is one extent, an ELF core has one for each program
header, a Xen core one for each run of frames.

**Invariants.** Extents are in order of address and share none. Two that say the same of the same
bytes are one; two that contradict each other are an `ImageError`. Nothing here reads more than it
was asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from xenlive.dump.source import Source

ADDRESS_END = 1 << 64
# Memory of 4 GiB in pieces of one page. More are no dump of a machine, and would fill ours.
MAX_EXTENTS = 1 << 20


class Extent(NamedTuple):
    """`size` bytes of memory at guest physical `address`, which lie at `offset` in the file."""

    address: int
    size: int
    offset: int

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.address + self.size


class Space:
    """The memory that a file holds. `extents` in any order; empty ones are left out."""

    def __init__(self, source: Source, extents: Iterable[Extent]) -> None:
        """ImageError (`memory-wraps`, `memory-overlap`, `memory-pieces`) if they can't be true."""
        self.source = source
        known = list(islice((extent for extent in extents if extent.size), MAX_EXTENTS + 1))
        if len(known) > MAX_EXTENTS:
            raise source.error("memory-pieces", f"has more than {MAX_EXTENTS} pieces of memory")
        known.sort()
        self.extents = _merge(source, known)
        self._starts = [extent.address for extent in self.extents]

    def regions(self) -> list[tuple[int, int]]:
        """(address, size) of the runs of memory that are there, lowest first."""
        runs: list[tuple[int, int]] = []
        for address, size, _ in self.extents:
            if runs and sum(runs[-1]) == address:
                start, before = runs.pop()
                address, size = start, before + size
            runs.append((address, size))
        return runs

    def has(self, address: int, size: int) -> bool:
        """Whether all of `size` bytes at `address` are in the image."""
        end = address + size
        while address < end:
            extent = self._extent_at(address)
            if extent is None:
                return False
            address = extent.end
        return size >= 0

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes at `address`; fewer where the memory or the file ends."""
        parts = []
        while size > 0:
            extent = self._extent_at(address)
            if extent is None:
                break
            inside = address - extent.address
            part = self.source.read(extent.offset + inside, min(size, extent.size - inside))
            if not part:
                break
            parts.append(part)
            address += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _extent_at(self, address: int) -> Extent | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self.extents[index].end:
            return None
        return self.extents[index]


def _merge(source: Source, extents: list[Extent]) -> list[Extent]:
    """Extents that go on in memory and in the file are one."""
    merged: list[Extent] = []
    for extent in extents:
        if extent.address < 0 or extent.end > ADDRESS_END:
            raise source.error("memory-wraps", "has memory past 64 bits", value=extent.address)
        if not merged or merged[-1].end < extent.address:
            merged.append(extent)
            continue
        last = merged[-1]
        same_place = extent.offset - last.offset == extent.address - last.address
        if same_place:
            merged[-1] = last._replace(size=max(last.end, extent.end) - last.address)
        elif last.end > extent.address:
            what = f"has two parts that say different things of {extent.address:#x}"
            raise source.error("memory-overlap", what)
        else:
            merged.append(extent)
    return merged
