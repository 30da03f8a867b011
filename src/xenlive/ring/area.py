"""The bytes of one ring: a power of two of them, over shared pages.

A ring index runs free over 32 bits; masked with the area's size it is a position. A stretch of
bytes from there may run over the end of a page that has no neighbour, and over the end of the area:

    pages      [ chunk 0: frames 7 8 9 ][ chunk 1: frame 3 ]
    position    0 ..................12287 12288 ........16383
    spans(16000, 600)   ->  chunk 1 [3712:4096], chunk 0 [0:216]

**Invariants.** A span never reaches outside of its chunk. No length or index from a peer is used
here without having been masked or checked by `stream.py`.

Why not one mapping for all pages: guest memory may have its ring pages anywhere, and a backend
sees each page by a grant of its own. Pages that are neighbours are one chunk, so that the usual
case copies once.
"""

from __future__ import annotations

from xenlive.memory.address import PAGE_SHIFT, PAGE_SIZE, Frame, address_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from xenlive.memory.guest import GuestMemory


class RingArea:
    """`size` bytes over `chunks`, live views of shared memory in the order of the ring.

    ValueError if the sizes don't add up to a power of two, or several chunks are not whole pages.
    """

    __slots__ = ("_pages", "_whole", "mask", "size")

    def __init__(self, chunks: Sequence[memoryview]) -> None:
        size = sum(len(chunk) for chunk in chunks)
        if size == 0 or size & (size - 1):
            raise ValueError(f"a ring area of {size} bytes is no power of two")
        if len(chunks) > 1 and any(len(chunk) % PAGE_SIZE for chunk in chunks):
            raise ValueError("a chunk of a ring area is not made of whole pages")
        self.size = size
        self.mask = size - 1
        self._whole = chunks[0] if len(chunks) == 1 else None
        self._pages = [
            (chunk, offset) for chunk in chunks for offset in range(0, len(chunk), PAGE_SIZE)
        ]

    def spans(self, index: int, count: int) -> list[memoryview]:
        """Live views of the `count` bytes from `index`, in order; `count` is at most `size`."""
        start = index & self.mask
        if self._whole is None:
            return self._scattered(start, count)
        end = start + count
        if end <= self.size:
            return [self._whole[start:end]]
        return [self._whole[start:], self._whole[: end - self.size]]

    def _scattered(self, start: int, count: int) -> list[memoryview]:
        spans = []
        while count:
            chunk, offset = self._pages[start >> PAGE_SHIFT]
            offset += start & (PAGE_SIZE - 1)
            span = chunk[offset : offset + count]
            spans.append(span)
            count -= len(span)
            start = (start + len(span)) & self.mask
        return spans


def views_of_frames(memory: GuestMemory, frames: Iterable[Frame]) -> list[memoryview]:
    """Live views of page frames, in order; frames that are neighbours come as one view.

    BadAddress if one is not in memory.
    """
    runs: list[tuple[Frame, int]] = []
    for frame in frames:
        if runs:
            first, count = runs[-1]
            larger = (count + 1) * PAGE_SIZE
            if frame == first + count and memory.contains(address_of(first), larger):
                runs[-1] = (first, count + 1)
                continue
        runs.append((frame, 1))
    return [memory.view(address_of(first), count * PAGE_SIZE) for first, count in runs]


def split_views(
    views: Sequence[memoryview], size: int
) -> tuple[list[memoryview], list[memoryview]]:
    """Cuts a sequence of views after `size` bytes in all."""
    head: list[memoryview] = []
    for place, view in enumerate(views):
        if len(view) > size:
            return [*head, view[:size]] if size else head, [view[size:], *views[place + 1 :]]
        head.append(view)
        size -= len(view)
    return head, []
