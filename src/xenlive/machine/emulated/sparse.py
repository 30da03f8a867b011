"""What of a sparse memory is in use, without giving pages to what is not.

**Invariants.** The same bytes give the same pieces, whichever pages were touched. Nothing is
changed, and no page is made: a load from a hole of a shared mapping would.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Memory is saved in pieces of this many bytes, so that what did not change is kept once.
PIECE_SIZE = 16 << 10


def pieces(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    """All of a file of `size` bytes that is not zero: offsets, in order, and PIECE_SIZE bytes each.

    The end may cut the last one short.
    """
    last = -1
    for start, end in used(fd, size):
        for at in range(start - start % PIECE_SIZE, end, PIECE_SIZE):
            if at == last:
                continue
            last = at
            data = os.pread(fd, min(PIECE_SIZE, size - at), at)
            if data.strip(b"\0"):
                yield at, data


def used(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and end of each run of the file that has pages."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return  # nothing but holes from here on
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
