"""Free pages while a kexec is prepared, against sets of single pages."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.errors import OutOfSpace
from xenlive.kexec.freepages import FreePages
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, E820_RESERVED, MemoryMap, MemoryRange

places = st.builds(
    lambda page, more: page * PAGE_SIZE + more, st.integers(0, 40), st.sampled_from([0, 1, 4095])
)
runs = st.lists(st.tuples(places, places), max_size=5)


def pages_of(runs: list[tuple[int, int]], whole: bool) -> set[int]:
    """The pages that are all in one of the runs (address, size), or that one of them touches."""
    found = set()
    for page in range(100):
        low, high = page * PAGE_SIZE, (page + 1) * PAGE_SIZE
        for at, size in runs:
            inside = at <= low and high <= at + size
            touched = size > 0 and at < high and low < at + size
            if inside if whole else touched:
                found.add(page)
    return found


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(places, st.booleans()), max_size=6),
    runs,
    runs,
    places,
    st.lists(st.integers(1, 5), max_size=12),
)
def test_each_page_once_and_none_that_is_taken(
    borders: list[tuple[int, bool]],
    regions: list[tuple[int, int]],
    taken: list[tuple[int, int]],
    lowest: int,
    wanted: list[int],
) -> None:
    borders.sort()
    ranges, ram = [], []
    for (start, is_ram), (end, _) in pairwise(borders):
        ranges.append(MemoryRange(start, end - start, E820_RAM if is_ram else E820_RESERVED))
        if is_ram and end > start:
            ram.append((start, end - start))
    merged = [(int(r.addr), r.size) for r in MemoryMap(ranges).ram()]
    there: list[tuple[int, int]] = []
    for at, size in sorted(regions):
        if not there or at >= sum(there[-1]):
            there.append((at, size))
    free = pages_of(merged, whole=True) & pages_of(there, whole=True) - pages_of(taken, whole=False)
    free = {page for page in free if page * PAGE_SIZE >= lowest}
    pages = FreePages(MemoryMap(ranges), there, PhysAddr(lowest), taken)
    assert pages.count == len(free)
    for n_pages in wanted:
        fitting = [p for p in free if set(range(p, p + n_pages)) <= free]
        if not fitting:
            with pytest.raises(OutOfSpace) as raised:
                pages.take(n_pages)
            assert raised.value.wanted == n_pages
            continue
        first = pages.take(n_pages)
        assert first == max(fitting)
        free -= set(range(first, first + n_pages))
        assert pages.count == len(free)


def test_nothing_above_4_gib_and_not_the_page_below() -> None:
    gib = 1 << 30
    memmap = MemoryMap([MemoryRange(0, 8 * gib, E820_RAM)])
    pages = FreePages(memmap, [(0, 8 * gib)], PhysAddr(4 * gib - 5 * PAGE_SIZE), [])
    assert pages.count == 4
    assert pages.take(4) == (4 * gib >> 12) - 5


def test_every_second_page_in_use() -> None:
    n_pages = 20_000
    memmap = MemoryMap([MemoryRange(0, n_pages * PAGE_SIZE, E820_RAM)])
    taken = [(page * PAGE_SIZE, PAGE_SIZE) for page in range(0, n_pages, 2)]
    pages = FreePages(memmap, [(0, n_pages * PAGE_SIZE)], PhysAddr(0), taken)
    assert [pages.take(1) for _ in range(n_pages // 2)] == list(range(n_pages - 1, 0, -2))
    assert pages.count == 0
