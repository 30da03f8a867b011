"""Ring areas: which bytes a stretch of a ring is, over pages that are neighbours or not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.errors import BadAddress
from xenlive.memory.address import PAGE_SIZE, Frame
from xenlive.memory.guest import GuestMemory
from xenlive.ring.area import RingArea, split_views, views_of_frames


def view(size: int) -> memoryview:
    return memoryview(bytearray(size))


@pytest.mark.parametrize("sizes", [[], [0], [3], [PAGE_SIZE, PAGE_SIZE, PAGE_SIZE], [1024] * 4])
def test_sizes_that_are_no_ring(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="ring area"):
        RingArea([view(size) for size in sizes])


def test_one_chunk_may_be_smaller_than_a_page() -> None:
    assert RingArea([view(1024)]).size == 1024


@settings(deadline=None, max_examples=100)
@given(
    pages_each=st.sampled_from([[4], [1, 3], [3, 1], [1, 1, 1, 1], [2, 2], [1, 2, 1]]),
    index=st.integers(0, 2**32 - 1),
    count=st.integers(0, 4 * PAGE_SIZE),
)
def test_spans_are_the_bytes_from_the_masked_index(
    pages_each: list[int], index: int, count: int
) -> None:
    content = bytearray(i * 7 % 251 for i in range(4 * PAGE_SIZE))
    chunks = []
    start = 0
    for pages in pages_each:
        chunks.append(memoryview(content[start : start + pages * PAGE_SIZE]))
        start += pages * PAGE_SIZE
    area = RingArea(chunks)
    place = index % len(content)
    assert b"".join(area.spans(index, count)) == (content + content)[place : place + count]


def test_neighbouring_frames_come_as_one_view() -> None:
    memory = GuestMemory([(0, bytearray(8 * PAGE_SIZE)), (8 * PAGE_SIZE, bytearray(PAGE_SIZE))])
    frames = [Frame(number) for number in (2, 3, 4, 6, 5, 7, 8)]
    sizes = [len(found) // PAGE_SIZE for found in views_of_frames(memory, frames)]
    # 7 and 8 are neighbours in address, but not in one region
    assert sizes == [3, 1, 1, 1, 1]


def test_views_of_frames_are_live_and_in_order() -> None:
    ram = bytearray(4 * PAGE_SIZE)
    views = views_of_frames(GuestMemory([(0, ram)]), [Frame(3), Frame(1), Frame(2)])
    views[0][0] = 1
    views[1][PAGE_SIZE] = 2
    assert (ram[3 * PAGE_SIZE], ram[2 * PAGE_SIZE]) == (1, 2)


def test_a_frame_that_is_not_there() -> None:
    with pytest.raises(BadAddress):
        views_of_frames(GuestMemory([(0, bytearray(2 * PAGE_SIZE))]), [Frame(1), Frame(2)])


@pytest.mark.parametrize("cut", range(11))
def test_split_views(cut: int) -> None:
    data = bytes(range(10))
    parts = [memoryview(data)[:3], memoryview(data)[3:4], memoryview(data)[4:]]
    head, tail = split_views(parts, cut)
    assert (b"".join(head), b"".join(tail)) == (data[:cut], data[cut:])
