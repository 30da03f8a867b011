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
from collections.abc import Iterator

from xenlive.abi.kexec_module import EYE_CATCHER
from xenlive.dump.space import Space
from xenlive.memory.address import PAGE_SIZE, round_down, round_up

# Each is read and checked, which takes up to half a millisecond. Real memory has one or two; a
# hostile one may have a million.
MAX_CANDIDATES = 1 << 14

_4_GIB = 1 << 32
_CHUNK_BYTES = 1 << 20
_WORD_BYTES = 8
_EYE_CATCHER_WORD = int.from_bytes(EYE_CATCHER, "little")


def eye_catchers(space: Space) -> Iterator[int]:
    """Addresses of pages that start with the eye catcher, in the order of the search."""
    found = 0
    for low, high in ((0, _4_GIB), (_4_GIB, 1 << 64)):
        for address in _search(space, low, high):
            yield address
            found += 1
            if found == MAX_CANDIDATES:
                return


def _search(space: Space, low: int, high: int) -> Iterator[int]:
    """Pages with the eye catcher in [low, high), the highest first."""
    # A bytearray's bytes begin 16 bytes into a page: some processors copy to there at a fifth of
    # the speed. A mapping begins with a page.
    buffer = memoryview(mmap.mmap(-1, _CHUNK_BYTES))
    page_starts = buffer.cast("Q")[:: PAGE_SIZE // _WORD_BYTES]
    for extent in reversed(space.extents):
        shift = extent.address - extent.offset
        start, end = max(extent.address, low), min(extent.end, high)
        for run_start, run_end in space.source.data_runs_from_end(start - shift, end - shift):
            first = round_up(start, PAGE_SIZE)
            first = max(first, round_down(run_start + shift, PAGE_SIZE))
            for chunk in _chunks_from_end(first, run_end + shift):
                there = buffer[: min(_CHUNK_BYTES, run_end + shift - chunk)]
                count = space.source.read_into(chunk - shift, there)
                words = page_starts[: (count + PAGE_SIZE - _WORD_BYTES) // PAGE_SIZE].tolist()
                if _EYE_CATCHER_WORD in words:
                    for index in reversed(range(len(words))):
                        if words[index] == _EYE_CATCHER_WORD:
                            yield chunk + index * PAGE_SIZE


def _chunks_from_end(start: int, end: int) -> range:
    """Where chunks of [start, end) start, the last first; the first one is whole."""
    count = max(0, -(-(end - start) // _CHUNK_BYTES))
    return range(start + (count - 1) * _CHUNK_BYTES, start - 1, -_CHUNK_BYTES)
