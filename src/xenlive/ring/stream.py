"""A byte stream through shared pages: one producer, one consumer, an index each.

Follows the producer's and the consumer's steps of Xen `docs/misc/9pfs.pandoc`, "Ring Usage"; the
Xenstore ring (`docs/misc/xenstore-ring.txt`) works the same way.

    cons                prod
     |---- queued ------|---------- free ----------|        all modulo 2**32; masked: a position

Each end keeps its own index in private and only ever *writes* the shared copy of it. The other
end's index is hostile: it is read once, checked, and that copy is used.

**Invariants.** `0 <= prod - cons <= size` modulo 2**32 holds for every pair of indices that is
acted upon; anything else is a PeerError, and nothing was copied or moved. An own index that is no
longer what this end wrote is a PeerError too. Data is in the ring before the index that announces
it, and out of the ring before the index that gives the room away: x86 keeps stores in order, and
the notification that follows is a system call.

"Would block" is a return value: 0 bytes written, no bytes read. Why not `struct`: `pack_into`
shows a transient zero to the other process; an aligned item of `memoryview.cast("I")` does not.
"""

from __future__ import annotations

from xenlive.errors import PeerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from xenlive.ring.area import RingArea

_U32 = 0xFFFFFFFF


class Producer:
    """The writing end. `indices` is the shared page as `cast("I")`, the words are places in it.

    `prod` is the private index to start from: 0 in fresh pages, else what was handed over.
    """

    __slots__ = ("_area", "_cons_word", "_indices", "_prod_word", "prod", "size")

    def __init__(
        self, area: RingArea, indices: memoryview, prod_word: int, cons_word: int, prod: int = 0
    ) -> None:
        self._area = area
        self._indices = indices
        self._prod_word = prod_word
        self._cons_word = cons_word
        self.prod = prod
        self.size = area.size

    def queued(self) -> int:
        """Bytes that the consumer has not taken yet. PeerError if its index can't be right."""
        shared = self._indices[self._prod_word]
        if shared != self.prod:
            raise PeerError("the producer's index was changed", self._prod_word * 4, shared)
        cons: int = self._indices[self._cons_word]
        queued = (self.prod - cons) & _U32
        if queued > self.size:
            raise PeerError("consumer index out of range", self._cons_word * 4, cons)
        return queued

    def free(self) -> int:
        """Bytes that `write` would take now. PeerError as `queued`."""
        return self.size - self.queued()

    def write(self, data: Buffer) -> int:
        """Writes as much of `data` as fits; returns how many bytes that was, 0 if the ring is full.

        PeerError as `queued`.
        """
        source = memoryview(data).cast("B")
        count = min(self.size - self.queued(), len(source))
        if count == 0:
            return 0
        done = 0
        for span in self._area.spans(self.prod, count):
            end = done + len(span)
            span[:] = source[done:end]
            done = end
        self.prod = (self.prod + count) & _U32
        self._indices[self._prod_word] = self.prod
        return count


class Consumer:
    """The reading end; the arguments are those of `Producer`, `cons` the private index."""

    __slots__ = ("_area", "_cons_word", "_indices", "_prod_word", "cons", "size")

    def __init__(
        self, area: RingArea, indices: memoryview, prod_word: int, cons_word: int, cons: int = 0
    ) -> None:
        self._area = area
        self._indices = indices
        self._prod_word = prod_word
        self._cons_word = cons_word
        self.cons = cons
        self.size = area.size

    def available(self) -> int:
        """Bytes that `read` would give now. PeerError if the producer's index can't be right."""
        shared = self._indices[self._cons_word]
        if shared != self.cons:
            raise PeerError("the consumer's index was changed", self._cons_word * 4, shared)
        prod: int = self._indices[self._prod_word]
        available = (prod - self.cons) & _U32
        if available > self.size:
            raise PeerError("producer index out of range", self._prod_word * 4, prod)
        return available

    def read(self, limit: int | None = None) -> bytes:
        """Takes what is there, at most `limit` bytes; empty if nothing is. PeerError as above."""
        count = self.available()
        if limit is not None and limit < count:
            count = limit
        if count <= 0:
            return b""
        spans = self._area.spans(self.cons, count)
        data = bytes(spans[0]) if len(spans) == 1 else b"".join(spans)
        self.cons = (self.cons + count) & _U32
        self._indices[self._cons_word] = self.cons
        return data
