"""A guest's end of the rings in one shared page, whoever maps the other.

Specification: Xen `docs/misc/xenstore-ring.txt`.

**Invariants.** Only this end's indices are written. What does not fit waits in `unsent`, so the
caller never blocks here.
"""

from __future__ import annotations

from xenlive.abi import xs_ring

SIZE = xs_ring.XENSTORE_RING_SIZE


class RingGuest:
    """The rings in `page`, 4096 writable bytes."""

    def __init__(self, page: memoryview) -> None:
        self.page = page
        self.words = page.cast("I")
        self.unsent = b""
        self.received = b""

    @property
    def error(self) -> int:
        """The page's `error` field."""
        word: int = self.words[xs_ring.ERROR]
        return word

    def move(self) -> bool:
        """Puts in what there is room for, takes out what there is; whether anything moved."""
        words = self.words
        prod, cons = words[xs_ring.REQ_PROD], words[xs_ring.REQ_CONS]
        piece = self.unsent[: max(SIZE - (prod - cons & 0xFFFFFFFF), 0)]
        for index, byte in enumerate(piece):
            self.page[(prod + index) % SIZE] = byte
        if piece:
            self.unsent = self.unsent[len(piece) :]
            words[xs_ring.REQ_PROD] = prod + len(piece) & 0xFFFFFFFF
        cons, prod = words[xs_ring.RSP_CONS], words[xs_ring.RSP_PROD]
        count = prod - cons & 0xFFFFFFFF
        if count:
            at = cons % SIZE
            area = bytes(self.page[xs_ring.RSP_AT : xs_ring.RSP_AT + SIZE])
            self.received += (area[at:] + area[:at])[:count]
            words[xs_ring.RSP_CONS] = prod
        return bool(piece) or bool(count)

    def forget(self) -> None:
        """Drops what is on its way, as a connection that begins anew."""
        self.unsent = self.received = b""
