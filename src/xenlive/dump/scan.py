"""Searching memory for kexec modules: every page boundary is tried for the eye catcher.

Where the module lies is written nowhere, but it lies near the top of memory below 4 GiB. So the
search goes down from there, and then down through what is above 4 GiB:

    0             <- - - - - - - 1 - - - - - - -  4 GiB  <- - - 2 - - -  end
    |_______________________________________[ module ]_|__________________|

What is read is looked at as 64-bit words with a stride of a page, which costs nothing next to the
reading; to search the bytes would cost more than to read them.

**Invariants.** Holes are skipped. Memory full of eye catchers ends the search after
`MAX_CANDIDATES` of them, it does not hold it up.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator

from xenlive.abi.kexec_module import EYE_CATCHER
from xenlive.dump.space import Extent, Space
from xenlive.memory.address import PAGE_SIZE, round_down, round_up

# Each is read and checked, which takes up to half a millisecond. Real memory has one or two; a
# hostile one may have a million.
MAX_CANDIDATES = 1 << 14

_4_GIB = 1 << 32
CHUNK_BYTES = 1 << 20
_WORD_BYTES = 8
#: Told how many bytes of how many a search has passed, holes and all.
Progress = Callable[[int, int], None]

_EYE_CATCHER_WORD = int.from_bytes(EYE_CATCHER, "little")


def eye_catchers(space: Space, progress: Progress | None = None) -> Iterator[int]:
    """Addresses of pages that start with the eye catcher, in the order of the search."""
    found = 0
    for address, buffer, count in chunks(space, progress):
        for page in eye_catchers_in(buffer, count):
            yield address + page
            found += 1
            if found == MAX_CANDIDATES:
                return


def eye_catchers_in(buffer: mmap.mmap, count: int) -> list[int]:
    """Offsets of the pages in the first `count` bytes that start with it, the last first."""
    with memoryview(buffer) as view, view.cast("Q") as words:
        page_starts = words[:: PAGE_SIZE // _WORD_BYTES]
        starts = page_starts[: (count + PAGE_SIZE - _WORD_BYTES) // PAGE_SIZE].tolist()
        page_starts.release()
    if _EYE_CATCHER_WORD not in starts:
        return []
    pages = reversed(range(len(starts)))
    return [page * PAGE_SIZE for page in pages if starts[page] == _EYE_CATCHER_WORD]


def chunks(space: Space, progress: Progress | None = None) -> Iterator[tuple[int, mmap.mmap, int]]:
    """(address, buffer, how many bytes of it) of all memory but its holes, in the search's order.

    The buffer is one and the same each time. Addresses are those of pages.
    """
    # A bytearray's bytes begin 16 bytes into a page: some processors copy to there at a fifth of
    # the speed. A mapping begins with a page.
    buffer = mmap.mmap(-1, CHUNK_BYTES)
    total = sum(extent.size for extent in space.extents)
    passed = 0
    with memoryview(buffer) as view:
        for low, high in ((0, _4_GIB), (_4_GIB, 1 << 64)):
            for extent in reversed(space.extents):
                start, end = max(extent.address, low), min(extent.end, high)
                if start >= end:
                    continue
                for chunk, count in _extent_chunks(space, extent, start, end, view):
                    if progress is not None:
                        progress(passed + end - chunk, total)
                    yield chunk, buffer, count
                passed += end - start


def _extent_chunks(
    space: Space, extent: Extent, start: int, end: int, buffer: memoryview
) -> Iterator[tuple[int, int]]:
    """Reads the part [start, end) of an extent to the buffer, the last chunk first."""
    shift = extent.address - extent.offset
    for run_start, run_end in space.source.data_runs_from_end(start - shift, end - shift):
        first = round_up(start, PAGE_SIZE)
        first = max(first, round_down(run_start + shift, PAGE_SIZE))
        for chunk in _chunks_from_end(first, run_end + shift):
            there = buffer[: min(CHUNK_BYTES, run_end + shift - chunk)]
            yield chunk, space.source.read_into(chunk - shift, there)


def _chunks_from_end(start: int, end: int) -> range:
    """Where chunks of [start, end) start, the last first; the first one is whole."""
    count = max(0, -(-(end - start) // CHUNK_BYTES))
    return range(start + (count - 1) * CHUNK_BYTES, start - 1, -CHUNK_BYTES)
