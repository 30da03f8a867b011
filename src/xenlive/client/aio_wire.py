"""One connection on an event loop: requests out, answers to whoever waits for them.

    send ──▶ codec ──▶ socket ──▶ server          many requests are under way at a time
    future ◀── by its id ── codec ◀── socket      answers may be waited for in any order

**Invariants.** Each future gets its answer, or `PeerError` once the connection is lost: none waits
for ever. An answer to somebody who no longer waits is dropped, or undone (`undo`): a request can't
be called back, so what it made is taken away again when its answer says that it was made. Requests
go out in the order in which `send` was called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, cast

from xenlive.client.codec import Answer, ClientCodec, WatchEvent
from xenlive.client.events import EventRouter
from xenlive.client.requests import Request
from xenlive.errors import PeerError, XenstoreError

T = TypeVar("T")
_WRITE_AT_ONCE_BYTES = 65536


class Wire(asyncio.Protocol):
    """The protocol of one connection; `lost` says why it is none any more."""

    def __init__(self, router: EventRouter) -> None:
        self.lost: PeerError | None = None
        self._router = router
        self._codec = ClientCodec()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._transport: asyncio.Transport | None = None
        self._may_write = asyncio.Event()
        self._unwritten: list[bytes] = []  # what was sent since the loop last had its turn
        self._unwritten_bytes = 0
        self._closed = asyncio.Event()

    # -- what the event loop calls -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast(asyncio.Transport, transport)
        self._may_write.set()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        why = f"the connection broke: {error}" if error else "the server closed the connection"
        self.fail(PeerError(why))
        self._closed.set()

    def data_received(self, data: bytes) -> None:
        """Hands answers and events to whoever waits for them."""
        try:
            messages = self._codec.receive(data)
        except PeerError as error:
            self.fail(error)
            return
        for message in messages:
            if isinstance(message, WatchEvent):
                self._router.route(message)
                continue
            future = self._waiting.pop(message.request_id)
            if not future.done():
                future.set_result(message)

    def pause_writing(self) -> None:
        """The server does not read as fast as we write."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._may_write.set()

    # -- what the client calls ---------------------------------------------------------------------

    async def writable(self) -> None:
        """Waits while more waits to be written than should. PeerError if that is over for good."""
        if not self._may_write.is_set():
            await self._may_write.wait()
        self.check()

    def check(self) -> None:
        """PeerError if the connection is lost."""
        if self.lost is not None:
            raise PeerError(self.lost.what, self.lost.offset, self.lost.value)

    def send(self, request: Request[Any], transaction: int) -> asyncio.Future[Answer]:
        """Sends a request; its answer comes by the future. XenstoreError E2BIG, PeerError."""
        self.check()
        request_id, message = self._codec.encode(request.type, request.payload, transaction)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        if not self._unwritten:
            future.get_loop().call_soon(self._flush)
        self._unwritten.append(message)
        self._unwritten_bytes += len(message)
        if self._unwritten_bytes > _WRITE_AT_ONCE_BYTES:
            self._flush()
        return future

    def _flush(self) -> None:
        """Writes what was sent: one system call for the requests of many tasks."""
        data = b"".join(self._unwritten)
        self._unwritten.clear()
        self._unwritten_bytes = 0
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def send_and_forget(self, request: Request[Any], transaction: int = 0) -> None:
        """Sends a request whose answer nobody waits for; nothing happens if it can't be sent."""
        if self.lost is None:
            self.send(request, transaction).add_done_callback(_look_away)

    def decode(self, request: Request[T], answer: Answer) -> T:
        """What an answer means; XenstoreError, or PeerError, and then the connection is closed."""
        try:
            return request.decode(answer)
        except PeerError as error:
            self.fail(error)
            raise

    def undo_when_done(
        self,
        request: Request[T],
        future: asyncio.Future[Answer],
        undo: Callable[[T], tuple[Request[Any], int]],
    ) -> None:
        """Once an answer comes that nobody waits for, sends what takes back what it made."""

        def take_back(answered: asyncio.Future[Answer]) -> None:
            if answered.cancelled() or answered.exception() is not None:
                return
            try:
                made = self.decode(request, answered.result())
            except (XenstoreError, PeerError):
                return  # nothing was made
            self.send_and_forget(*undo(made))

        future.add_done_callback(take_back)

    def fail(self, error: PeerError) -> None:
        """Gives the connection up: all who wait are told why."""
        if self.lost is not None:
            return
        self.lost = error
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(PeerError(error.what, error.offset, error.value))
                future.add_done_callback(_look_away)
        self._may_write.set()
        self._router.wake_all()
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Waits until the socket is closed."""
        await self._closed.wait()


def _look_away(future: asyncio.Future[Answer]) -> None:
    """Has the loop not complain of an error that nobody was there to see."""
    if not future.cancelled():
        future.exception()
