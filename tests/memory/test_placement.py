"""Where a module goes, against a search that tries each page and looks at each byte's type."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.errors import OutOfSpace
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import (
    E820_ACPI,
    E820_RAM,
    E820_RESERVED,
    E820_SOFT_RESERVED,
    E820_UNUSABLE,
    MemoryMap,
    MemoryRange,
)

GIB4 = 4 << 30
MIB = 1 << 20


def brute_force(
    ranges: list[tuple[int, int, int]], reserved: list[tuple[int, int]], n_pages: int, window: int
) -> int | None:
    """The highest place for `n_pages`, by looking at each page of the 64 from `window` on.

    A page is good if all its bytes are RAM, none is reserved, and it ends at 4 GiB - 1 page or
    below.
    """

    def is_good(page: int) -> bool:
        at = window + page * PAGE_SIZE
        if at + PAGE_SIZE > GIB4 - PAGE_SIZE:
            return False
        ram = sum(
            max(0, min(end, at + PAGE_SIZE) - max(start, at))
            for start, end, type_ in ranges
            if type_ == E820_RAM
        )
        touched = any(a < at + PAGE_SIZE and at < a + size for a, size in reserved if size > 0)
        return ram == PAGE_SIZE and not touched

    good = [is_good(page) for page in range(80)]
    for page in range(79 - n_pages, -1, -1):
        if all(good[page : page + n_pages]):
            return window + page * PAGE_SIZE
    return None


types = st.sampled_from(
    [E820_RAM, E820_RAM, E820_RAM, E820_SOFT_RESERVED, E820_RESERVED, E820_ACPI, E820_UNUSABLE]
)
lengths = st.builds(
    lambda pages, more: max(0, pages * PAGE_SIZE + more),
    st.integers(0, 24),
    st.sampled_from([0, 0, 1, -1, 123, 4095]),
)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([0, 64 * MIB, GIB4 - 70 * PAGE_SIZE, GIB4 - 40 * PAGE_SIZE, GIB4 - PAGE_SIZE]),
    st.lists(st.tuples(lengths, lengths, types), max_size=5),
    st.lists(st.tuples(lengths, lengths), max_size=3),
    st.integers(1, 20),
)
def test_the_highest_good_run(
    window: int,
    parts: list[tuple[int, int, int]],
    reserved: list[tuple[int, int]],
    n_pages: int,
) -> None:
    ranges, at = [], window
    for gap, length, type_ in parts:
        start, end = at + gap, at + gap + length
        if end > window + 79 * PAGE_SIZE:
            break
        ranges.append((start, end, type_))
        at = end
    taken = [(window + offset, size) for offset, size in reserved]
    memmap = MemoryMap(MemoryRange(start, end - start, type_) for start, end, type_ in ranges)
    expected = brute_force(ranges, taken, n_pages, window)
    if expected is None:
        with pytest.raises(OutOfSpace):
            memmap.place_module(n_pages, taken)
    else:
        assert memmap.place_module(n_pages, taken) == expected


def top(*ranges: tuple[int, int, int]) -> MemoryMap:
    return MemoryMap(MemoryRange(start, end - start, type_) for start, end, type_ in ranges)


@pytest.mark.parametrize(
    ("memmap", "place"),
    [
        # pages mapped from elsewhere at the very top, in the middle, and right up to 4 GiB - 1 page
        (
            top((0, 60 * MIB, E820_RAM), (60 * MIB, 64 * MIB, E820_SOFT_RESERVED)),
            60 * MIB - 18 * PAGE_SIZE,
        ),
        (
            top(
                (0, 63 * MIB, E820_RAM),
                (63 * MIB, 63 * MIB + PAGE_SIZE, E820_SOFT_RESERVED),
                (63 * MIB + PAGE_SIZE, 64 * MIB, E820_RAM),
            ),
            64 * MIB - 18 * PAGE_SIZE,
        ),
        (
            top(
                (0, 64 * MIB - 17 * PAGE_SIZE, E820_RAM),
                (64 * MIB - 17 * PAGE_SIZE, 64 * MIB - 17 * PAGE_SIZE + 1, E820_SOFT_RESERVED),
                (64 * MIB - 17 * PAGE_SIZE + 1, 64 * MIB, E820_RAM),
            ),
            64 * MIB - 35 * PAGE_SIZE,
        ),
        (top((0, GIB4 - PAGE_SIZE, E820_RAM)), GIB4 - 19 * PAGE_SIZE),
        (top((0, GIB4 - PAGE_SIZE + 1, E820_RAM)), GIB4 - 19 * PAGE_SIZE),
        (top((0, GIB4 - PAGE_SIZE - 1, E820_RAM)), GIB4 - 20 * PAGE_SIZE),
        (
            top(
                (0, GIB4 - 30 * PAGE_SIZE, E820_RAM),
                (GIB4 - 18 * PAGE_SIZE, GIB4 + MIB, E820_RAM),  # 17 of them count
            ),
            GIB4 - 48 * PAGE_SIZE,
        ),
        (
            top(
                (0, GIB4 - 30 * PAGE_SIZE, E820_RAM),
                (GIB4 - 19 * PAGE_SIZE, GIB4 + MIB, E820_RAM),
            ),
            GIB4 - 19 * PAGE_SIZE,
        ),
    ],
)
def test_at_the_edges(memmap: MemoryMap, place: int) -> None:
    assert memmap.place_module(18) == place
    # The next kernel, which does not see soft reservations, finds its own place by the same rule.
    assert memmap.for_next_kernel().place_module(18) == place


def test_the_largest_module() -> None:
    memmap = top((0, 16 * MIB, E820_RAM))
    assert memmap.place_module(4019) == 16 * MIB - 4019 * PAGE_SIZE
    load = (0x100000, 0x10000)
    with pytest.raises(OutOfSpace) as raised:
        memmap.place_module(4019, [load])
    assert raised.value.available == (16 * MIB - 0x110000) // PAGE_SIZE
    assert top((0, 20 * MIB, E820_RAM)).place_module(4019, [load]) == PhysAddr(
        20 * MIB - 4019 * PAGE_SIZE
    )
