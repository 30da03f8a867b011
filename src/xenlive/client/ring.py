"""A domain's own way to Xenstore: the ring of its shared page, and an event channel.

    client ──▶ req ring ──▶ server        both rings are in one page (`abi/xs_ring.py`)
           ◀── rsp ring ◀──               each end rings the other when it has moved an index

Specification: Xen `docs/misc/xenstore-ring.txt`.

**Invariants.** The server's indices are checked before use; one that can't be is a PeerError. While
there is no room for a request, answers are taken out of their ring, so that two full rings never
wait for each other.
"""

from __future__ import annotations

import os
import select
import time

from xenlive.abi import xs_ring
from xenlive.client.transport import Transport
from xenlive.errors import PeerError
from xenlive.ring.area import RingArea
from xenlive.ring.stream import Consumer, Producer


class RingTransport(Transport):
    """The guest's end of `page`, which is connected (introduced).

    `hears_fd` is the eventfd that the server rings, `rings_fd` the one that rings the server. None
    of the three is this object's own: closing it closes none of them.
    """

    def __init__(self, page: memoryview, hears_fd: int, rings_fd: int) -> None:
        size = xs_ring.XENSTORE_RING_SIZE
        words = page.cast("I")
        self._words = words
        self._hears_fd = hears_fd
        self._rings_fd = rings_fd
        self._is_open = True
        self._taken = b""
        self._requests = Producer(
            RingArea([page[:size]]),
            words,
            xs_ring.REQ_PROD,
            xs_ring.REQ_CONS,
            words[xs_ring.REQ_PROD],
        )
        answers = RingArea([page[xs_ring.RSP_AT : xs_ring.RSP_AT + size]])
        self._answers = Consumer(
            answers, words, xs_ring.RSP_PROD, xs_ring.RSP_CONS, words[xs_ring.RSP_CONS]
        )

    def send(self, data: bytes, deadline_s: float | None) -> None:
        """Puts all of `data` into the ring, as the server makes room."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._when_moved(rest, deadline_s) :]

    def receive(self, deadline_s: float | None) -> bytes:
        """What the server has put into its ring."""
        if not self._taken:
            self._when_moved(None, deadline_s)
        data, self._taken = self._taken, b""
        return data

    def fileno(self) -> int:
        """Readable when the server has rung: there may be something to read."""
        return self._hears_fd if self._is_open else -1

    def close(self) -> None:
        """Nothing more is moved; page and bells stay their owner's."""
        self._is_open = False

    def _when_moved(self, data: memoryview | None, deadline_s: float | None) -> int:
        """Waits until some of `data` was written, and gives how much; or until answers were taken.

        Answers are taken whenever there are some, but are what is waited for only without data.
        """
        while True:
            self._check()
            count = 0 if data is None else self._requests.write(data)
            taken = self._answers.read()
            if count or taken:
                self._taken += taken
                os.eventfd_write(self._rings_fd, 1)
            if count or (data is None and self._taken):
                return count
            if not taken:
                self._wait(deadline_s)

    def _wait(self, deadline_s: float | None) -> None:
        """Waits until the server rings. TimeoutError."""
        left_ms = None
        if deadline_s is not None:
            left_ms = max(0.0, (deadline_s - time.monotonic()) * 1000)
        poll = select.poll()
        poll.register(self._hears_fd, select.POLLIN)
        if not poll.poll(left_ms):
            raise TimeoutError
        os.eventfd_read(self._hears_fd)

    def _check(self) -> None:
        if not self._is_open:
            raise PeerError("the connection was closed")
        error = self._words[xs_ring.ERROR]
        if error != xs_ring.XENSTORE_ERROR_NONE:
            raise PeerError("the server ignores this ring", xs_ring.ERROR * 4, f"error {error}")
