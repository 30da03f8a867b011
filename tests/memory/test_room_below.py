"""How far a module could grow down, against looking at each page."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_ACPI, E820_RAM, E820_RESERVED, MemoryMap, MemoryRange

PAGES = 24


def pages(first: int, n: int, type_: int = E820_RAM) -> MemoryRange:
    return MemoryRange(first * PAGE_SIZE, n * PAGE_SIZE, type_)


@pytest.mark.parametrize(
    ("ranges", "address", "reserved", "room"),
    [
        ([pages(0, 20)], 10, [], 10),
        ([pages(0, 20)], 20, [], 20),
        ([pages(0, 20)], 21, [], 0),
        ([pages(0, 20)], 0, [], 0),
        ([pages(5, 15)], 10, [], 5),
        ([pages(5, 15)], 5, [], 0),
        ([pages(0, 8), pages(8, 12)], 10, [], 10),
        ([pages(0, 8), pages(8, 1, E820_RESERVED), pages(9, 9)], 12, [], 3),
        ([MemoryRange(100, 20 * PAGE_SIZE, E820_RAM)], 10, [], 9),
        ([MemoryRange(0, 10 * PAGE_SIZE - 1, E820_RAM)], 10, [], 0),
        ([pages(0, 20)], 10, [(7 * PAGE_SIZE, PAGE_SIZE)], 2),
        ([pages(0, 20)], 10, [(7 * PAGE_SIZE + 1, 1)], 2),
        ([pages(0, 20)], 10, [(9 * PAGE_SIZE, 0)], 10),
        ([pages(0, 20)], 10, [(10 * PAGE_SIZE, 5 * PAGE_SIZE)], 10),
        ([pages(0, 20)], 10, [(10 * PAGE_SIZE - 1, 1)], 0),
        ([], 10, [], 0),
    ],
)
def test_room_below(
    ranges: list[MemoryRange], address: int, reserved: list[tuple[int, int]], room: int
) -> None:
    assert MemoryMap(ranges).room_below(PhysAddr(address * PAGE_SIZE), reserved) == room


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.sampled_from([E820_RAM, E820_RAM, E820_RESERVED, E820_ACPI, 0]), max_size=PAGES),
    st.integers(0, PAGES),
    st.lists(
        st.tuples(st.integers(0, PAGES * PAGE_SIZE), st.integers(0, 3 * PAGE_SIZE)), max_size=3
    ),
)
def test_each_page_by_itself(
    types: list[int], address: int, reserved: list[tuple[int, int]]
) -> None:
    memmap = MemoryMap([pages(page, 1, type_) for page, type_ in enumerate(types) if type_])
    expected = 0
    for page in range(address - 1, -1, -1):
        start, end = page * PAGE_SIZE, (page + 1) * PAGE_SIZE
        if types[page : page + 1] != [E820_RAM]:
            break
        if any(size and at < end and at + size > start for at, size in reserved):
            break
        expected += 1
    assert memmap.room_below(PhysAddr(address * PAGE_SIZE), reserved) == expected
