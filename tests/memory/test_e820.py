"""Memory maps: hostile ones are refused, and modules go where Mini-OS puts them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import minios

from xenlive.errors import ImageError, OutOfSpace
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import (
    E820_ACPI,
    E820_RAM,
    E820_RESERVED,
    E820_SOFT_RESERVED,
    PLACEMENT_LIMIT,
    MemoryMap,
    MemoryRange,
)

MIB = 1 << 20
GIB = 1 << 30


def ram_map(*runs: tuple[int, int]) -> MemoryMap:
    """A map of RAM only, from pairs of first address and end."""
    return MemoryMap(MemoryRange(start, end - start, E820_RAM) for start, end in runs)


@pytest.mark.parametrize(
    ("ram", "n_pages", "place"),
    [
        ([(0, 16 * MIB)], 18, 0xFEE000),
        ([(0, 64 * MIB)], 18, 0x3FEE000),
        ([(0, 256 * MIB)], 18, 0xFFEE000),
        ([(0, 64 * MIB)], 4, 0x3FFC000),
        ([(0, 64 * MIB)], 1, 0x3FFF000),
        ([(0, 32 * MIB), (48 * MIB, 64 * MIB)], 18, 0x3FEE000),
        # A top range of 17 pages is passed over for the next lower one.
        ([(0, 32 * MIB), (48 * MIB, 48 * MIB + 17 * PAGE_SIZE)], 18, 0x1FEE000),
        ([(0, 32 * MIB), (48 * MIB, 48 * MIB + 18 * PAGE_SIZE)], 18, 48 * MIB),
        # Ends that are not page aligned lose the page they cut.
        ([(0, 64 * MIB + 123)], 18, 0x3FEE000),
        ([(0, 64 * MIB - 1)], 18, 0x3FED000),
        ([(0, 32 * MIB), (48 * MIB + 1, 48 * MIB + 18 * PAGE_SIZE)], 18, 0x1FEE000),
        # RAM above 4 GiB is not used, nor is the last page below.
        ([(0, 3 * GIB), (4 * GIB, 8 * GIB)], 18, 3 * GIB - 18 * PAGE_SIZE),
        ([(0, 8 * GIB)], 18, 4 * GIB - 19 * PAGE_SIZE),
        ([(0, 4 * GIB)], 1, 4 * GIB - 2 * PAGE_SIZE),
        # Ranges that touch are one run.
        ([(0, 63 * MIB), (63 * MIB, 63 * MIB + 17 * PAGE_SIZE)], 18, 63 * MIB - PAGE_SIZE),
        ([(0, 18 * PAGE_SIZE)], 18, 0),
    ],
)
def test_placement(ram: list[tuple[int, int]], n_pages: int, place: int) -> None:
    assert ram_map(*ram).place_module(n_pages) == place


@pytest.mark.parametrize("entry", minios.entries("module"), ids=lambda entry: entry["file"])
def test_placement_as_the_real_kernel_did(entry: dict[str, object]) -> None:
    if "guest_e820" not in entry:
        first = next(e for e in minios.index() if e["run"] == entry["run"] and "guest_e820" in e)
    else:
        first = entry
    ranges = first["guest_e820"]
    assert isinstance(ranges, list)
    assert isinstance(entry["size"], int)
    memory_map = MemoryMap(MemoryRange(*range_) for range_ in ranges)
    assert memory_map.place_module(entry["size"] // PAGE_SIZE) == entry["address"]


@pytest.mark.parametrize(
    ("ram", "n_pages", "available"),
    [
        ([], 1, 0),
        ([(0, 17 * PAGE_SIZE)], 18, 17),
        ([(0, 5 * PAGE_SIZE), (MIB, MIB + 9 * PAGE_SIZE)], 18, 9),
        ([(4 * GIB, 8 * GIB)], 1, 0),
        ([(0, 64 * MIB)], 0, 0),
        ([(1, 2 * PAGE_SIZE - 1)], 1, 0),
    ],
)
def test_no_place(ram: list[tuple[int, int]], n_pages: int, available: int) -> None:
    with pytest.raises(OutOfSpace) as raised:
        ram_map(*ram).place_module(n_pages)
    assert (raised.value.wanted, raised.value.available) == (n_pages, available)


@pytest.mark.parametrize(
    ("reserved", "place"),
    [
        ([(64 * MIB - 1, 1)], 0x3FED000),
        ([(64 * MIB - 10 * PAGE_SIZE, PAGE_SIZE)], 64 * MIB - 28 * PAGE_SIZE),
        ([(64 * MIB - 19 * PAGE_SIZE, PAGE_SIZE)], 0x3FEE000),
        ([(64 * MIB - 19 * PAGE_SIZE, PAGE_SIZE + 1)], 64 * MIB - 37 * PAGE_SIZE),
        ([(64 * MIB, 5), (0x3FF0000, 0)], 0x3FEE000),
        ([(0x3FF0000, 1 << 70)], 0x3FF0000 - 18 * PAGE_SIZE),
    ],
)
def test_placement_stays_out_of_reserved(reserved: list[tuple[int, int]], place: int) -> None:
    assert ram_map((0, 64 * MIB)).place_module(18, reserved) == place


@pytest.mark.parametrize(
    ("ranges", "code"),
    [
        ([(0, 8192, 1), (4096, 4096, 2)], "memmap-overlap"),
        ([(0, 8192, 1), (8191, 1, 1)], "memmap-overlap"),
        ([(5, 5, 1), (0, 100, 2)], "memmap-overlap"),
        ([((1 << 64) - 4096, 4097, 1)], "memmap-wrap"),
        ([(-1, 10, 1)], "memmap-wrap"),
        ([(0, -1, 1)], "memmap-wrap"),
        ([(0, 4096, 1 << 32)], "memmap-type"),
    ],
)
def test_hostile_maps(ranges: list[tuple[int, int, int]], code: str) -> None:
    with pytest.raises(ImageError) as raised:
        MemoryMap(MemoryRange(*range_) for range_ in ranges)
    assert raised.value.code == code


def test_ranges_come_in_order_and_empty_ones_go() -> None:
    given_map = MemoryMap([MemoryRange(8192, 1, 2), MemoryRange(5, 0, 1), MemoryRange(0, 4096, 1)])
    assert given_map.ranges() == [MemoryRange(0, 4096, 1), MemoryRange(8192, 1, 2)]


def test_the_last_byte_of_64_bits_is_an_address() -> None:
    assert MemoryMap([MemoryRange((1 << 64) - 1, 1, E820_RAM)]).ram_end() == 1 << 64


def test_only_soft_reservations_are_kept_from_the_next_kernel() -> None:
    hard = [MemoryRange(0, 4096, E820_RAM), MemoryRange(8192, 1, E820_ACPI)]
    both = MemoryMap([*hard, MemoryRange(4096, 4096, E820_SOFT_RESERVED)])
    assert both.for_next_kernel().ranges() == hard


def test_is_ram() -> None:
    known = MemoryMap(
        [
            MemoryRange(0, 4096, E820_RAM),
            MemoryRange(4096, 4096, E820_RAM),
            MemoryRange(8192, 4096, E820_RESERVED),
        ]
    )
    assert known.is_ram(PhysAddr(0), 8192)
    assert not known.is_ram(PhysAddr(1), 8192)
    assert not known.is_ram(PhysAddr(8192), 1)
    assert not known.is_ram(PhysAddr(0), -1)


pages = st.integers(min_value=0, max_value=40)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(pages, st.booleans()), max_size=8),
    st.integers(min_value=1, max_value=12),
    st.lists(st.tuples(pages, st.integers(min_value=0, max_value=3)), max_size=4),
)
def test_the_place_is_the_highest_one_that_is_free(
    runs: list[tuple[int, bool]], n_pages: int, taken: list[tuple[int, int]]
) -> None:
    """Against a search that looks at every page."""
    ranges, ram_pages, at = [], set(), 0
    for length, is_ram in runs:
        type_ = E820_RAM if is_ram else E820_RESERVED
        ranges.append(MemoryRange(at * PAGE_SIZE, length * PAGE_SIZE, type_))
        if is_ram:
            ram_pages |= set(range(at, at + length))
        at += length
    for first, length in taken:
        ram_pages -= set(range(first, first + length))
    reserved = [(first * PAGE_SIZE, length * PAGE_SIZE) for first, length in taken]
    fitting = [p for p in range(at) if set(range(p, p + n_pages)) <= ram_pages]
    memory_map = MemoryMap(ranges)
    if fitting:
        assert memory_map.place_module(n_pages, reserved) == fitting[-1] * PAGE_SIZE
    else:
        with pytest.raises(OutOfSpace):
            memory_map.place_module(n_pages, reserved)


range_numbers = st.one_of(st.integers(0, 1 << 20), st.integers(0, (1 << 64) - 1))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(range_numbers, range_numbers, st.integers(0, 9)), max_size=6),
    st.integers(1, 5000),
)
def test_any_map_is_refused_or_gives_a_place_inside_its_ram(
    ranges: list[tuple[int, int, int]], n_pages: int
) -> None:
    try:
        memory_map = MemoryMap(MemoryRange(*range_) for range_ in ranges)
        place = memory_map.place_module(n_pages)
    except (ImageError, OutOfSpace):
        return
    assert place % PAGE_SIZE == 0
    assert place + n_pages * PAGE_SIZE <= PLACEMENT_LIMIT
    assert memory_map.is_ram(place, n_pages * PAGE_SIZE)
