"""A Xenstore client for asyncio: many requests under way on one connection.

    async with await AsyncXenstore.connect() as store:
        await asyncio.gather(*(store.write(f"/a/{n}", "1") for n in range(100)))
        for attempt in store.transactions():
            async with attempt as tx:
                await tx.write("/a", str(int(await tx.read("/a")) + 1))
        async with store.watching("/a") as events:
            async for event in events:
                print(event.path)

The wire, requests, plans and event queues are those of the blocking client.

**Invariants.** Any task may be cancelled at any time, and no other notices: the answer that nobody
waits for is dropped, a transaction or watch that came of it is ended. A cancelled commit may have
happened. A lost connection raises `PeerError` in all who wait, watches included, and in every later
call. A time-out (`XenstoreError` ETIMEDOUT) leaves the connection as it is, as answers are told
apart by their number.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from xenlive.client import plans, requests
from xenlive.client.aio_operations import AsyncDomainOperations, AsyncStoreOperations
from xenlive.client.aio_wire import Wire
from xenlive.client.codec import Answer, WatchEvent
from xenlive.client.events import EventQueue, EventRouter
from xenlive.client.plans import ATTEMPTS
from xenlive.client.requests import Request
from xenlive.client.transport import RETRY_S, new_socket, unreachable
from xenlive.errors import PeerError, XenstoreError
from xenlive.rundir import default_socket

T = TypeVar("T")
Undo = Callable[[T], tuple[Request[Any], int]]
CONNECT_TIMEOUT_S = 10.0


class AsyncXenstore(AsyncDomainOperations):
    """One connection to a Xenstore server. `timeout_s` is how long an answer may take."""

    def __init__(self, wire: Wire, router: EventRouter, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._wire = wire
        self._router = router

    @classmethod
    async def connect(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> AsyncXenstore:
        """Connects to the server on `path`, or where the environment says it is.

        A full queue of waiting connections (EAGAIN) is tried again until `connect_timeout_s` is
        over. ConfigError, naming the path, if no server can be reached there.
        """
        target = Path(path) if path is not None else default_socket()
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + connect_timeout_s
        router = EventRouter()
        connecting = new_socket()
        try:
            # Not the loop's own `sock_connect`: it takes a full queue for a connection.
            while True:
                try:
                    connecting.connect(str(target))
                    break
                except BlockingIOError:
                    if loop.time() >= deadline_s:
                        raise
                    await asyncio.sleep(RETRY_S)
            _, wire = await loop.create_unix_connection(lambda: Wire(router), sock=connecting)
        except (OSError, ValueError) as error:
            connecting.close()
            raise unreachable(target, error) from None
        except BaseException:
            connecting.close()
            raise
        return cls(wire, router, timeout_s)

    async def close(self) -> None:
        """Ends the connection; its watches and transactions end with it."""
        self._wire.fail(PeerError("the connection was closed"))
        await self._wire.wait_closed()

    @property
    def is_connected(self) -> bool:
        """Whether the connection is there, as far as is known."""
        return self._wire.lost is None

    async def __aenter__(self) -> AsyncXenstore:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def run(self, request: Request[T]) -> T:
        """Sends a request and gives its answer's meaning."""
        return await self.run_in(0, request)

    async def run_in(self, transaction: int, request: Request[T], undo: Undo[T] | None = None) -> T:
        """The same with the id of a transaction.

        `undo` says what takes back what came of it, should the caller be gone by then.
        """
        await self._wire.writable()
        return await self._answer(request, self._wire.send(request, transaction), undo)

    async def run_all(self, batch: Sequence[Request[Any]]) -> list[Any]:
        """Sends requests; gives what came of each, a refusal as a XenstoreError, not raised."""
        return await self.run_all_in(0, batch)

    async def run_all_in(self, transaction: int, batch: Sequence[Request[Any]]) -> list[Any]:
        """The same with the id of a transaction."""
        futures: list[asyncio.Future[Answer] | XenstoreError] = []
        for request in batch:
            await self._wire.writable()
            try:
                futures.append(self._wire.send(request, transaction))
            except XenstoreError as error:
                futures.append(error)
        outcomes: list[Any] = []
        for request, future in zip(batch, futures, strict=True):
            if isinstance(future, XenstoreError):
                outcomes.append(future)
                continue
            try:
                outcomes.append(await self._answer(request, future, None))
            except XenstoreError as error:
                if error.name == "ETIMEDOUT":
                    raise
                outcomes.append(error)
        return outcomes

    async def watch(self, path: str, token: str, depth: int | None = None) -> None:
        """Asks for an event on each change of `path` or below it; the first one comes at once.

        Events come out of `next_event`; `watching` is often what is wanted.
        """
        await self._set_watch(path, token, depth)

    async def unwatch(self, path: str, token: str) -> None:
        """Ends a watch. XenstoreError ENOENT if there is none with this path and token."""
        await self.run(requests.unwatch(path, token))

    async def reset_watches(self) -> None:
        """Ends all watches and transactions of this connection."""
        await self.run(requests.reset_watches())

    async def next_event(self, timeout_s: float | None = None) -> WatchEvent | None:
        """The next event of those asked for with `watch`; None when none came in `timeout_s`.

        For one task at a time. XenstoreError EOVERFLOW, once, if so many were waiting that they
        were given up.
        """
        return await self._next_of(self._router.others, timeout_s)

    def watching(self, path: str, depth: int | None = None) -> AsyncWatching:
        """A watch for an `async with`: an iterator over its own events, ended with it."""
        return AsyncWatching(self, path, depth)

    async def wait_for(
        self,
        path: str,
        is_wanted: bytes | str | Callable[[bytes | None], object],
        timeout_s: float | None = None,
    ) -> bytes | None:
        """Waits until a node's value is the one that is wanted, and gives it.

        `is_wanted` is the value, or says of one whether it is (None: there is no such node).
        XenstoreError ETIMEDOUT if that takes longer than `timeout_s`.
        """
        wanted = plans.wanted_value(is_wanted)
        try:
            async with asyncio.timeout(timeout_s), self.watching(path) as events:
                async for _ in events:
                    value = await self.get(path)
                    if wanted(value):
                        return value
        except TimeoutError:
            raise XenstoreError("ETIMEDOUT", f"wait for {path}") from None
        raise AssertionError("events of a watch have no end")

    def transaction(self) -> AsyncTransaction:
        """One transaction for an `async with`. XenstoreError EAGAIN on conflict."""
        return AsyncTransaction(self, may_repeat=False)

    def transactions(self, attempts: int = ATTEMPTS) -> Iterator[AsyncTransaction]:
        """Transactions for a loop around an `async with`, until one is committed.

        The last of `attempts` raises XenstoreError EAGAIN if it conflicts too.
        """
        for conflicts in range(attempts):
            pause_s = plans.pause_s(conflicts, random.random())
            attempt = AsyncTransaction(self, may_repeat=conflicts + 1 < attempts, pause_s=pause_s)
            yield attempt
            if not attempt.conflicted:
                return

    async def transact(
        self, change: Callable[[AsyncTransaction], Awaitable[T]], attempts: int = ATTEMPTS
    ) -> T:
        """Calls `change` in a transaction, again after each conflict, and gives its result."""
        for attempt in self.transactions(attempts):
            async with attempt as tx:
                result = await change(tx)
        return result

    # -- for the classes of this file --------------------------------------------------------------

    async def open_watch(self, path: str, depth: int | None) -> EventQueue:
        """Sets a watch with a queue of its own."""
        queue = self._router.open(f"watch {path}")
        try:
            await self._set_watch(path, queue.token, depth)
        except BaseException:
            self._router.close(queue)
            raise
        return queue

    def close_watch(self, path: str, queue: EventQueue) -> None:
        """Ends it, without waiting for the answer."""
        self._router.close(queue)
        self._wire.send_and_forget(requests.unwatch(path, queue.token))

    def abort(self, transaction: int) -> None:
        """Ends a transaction without an effect, and without waiting for the answer."""
        self._wire.send_and_forget(requests.transaction_end(commit=False), transaction)

    async def next_in(self, queue: EventQueue, timeout_s: float | None) -> WatchEvent | None:
        """The next event of a watch's queue; None when none came in time."""
        return await self._next_of(queue, timeout_s)

    async def _set_watch(self, path: str, token: str, depth: int | None) -> None:
        def undo(_: None) -> tuple[Request[Any], int]:
            return requests.unwatch(path, token), 0

        await self.run_in(0, requests.watch(path, token, depth), undo)

    async def _answer(
        self, request: Request[T], future: asyncio.Future[Answer], undo: Undo[T] | None
    ) -> T:
        # An answer that has to be undone if nobody waits must not be cancelled with us.
        awaited = future if undo is None else asyncio.shield(future)
        try:
            if self.timeout_s is None:
                answer = await awaited
            else:
                async with asyncio.timeout(self.timeout_s):
                    answer = await awaited
        except (TimeoutError, asyncio.CancelledError) as error:
            if undo is not None:
                self._wire.undo_when_done(request, future, undo)
            if isinstance(error, TimeoutError):
                raise XenstoreError("ETIMEDOUT", request.label) from None
            raise
        return self._wire.decode(request, answer)

    async def _next_of(self, queue: EventQueue, timeout_s: float | None) -> WatchEvent | None:
        if not queue:
            some = asyncio.Event()
            queue.on_event = some.set
            try:
                async with asyncio.timeout(timeout_s):
                    while not queue:
                        self._wire.check()
                        some.clear()
                        await some.wait()
            except TimeoutError:
                return None
            finally:
                queue.on_event = None
        return queue.pop()


class AsyncTransaction(AsyncStoreOperations):
    """A transaction: a view of the store that nobody else changes, committed as a whole."""

    def __init__(self, store: AsyncXenstore, *, may_repeat: bool, pause_s: float = 0.0) -> None:
        self._store = store
        self._may_repeat = may_repeat
        self._pause_s = pause_s
        self._id = 0
        self.conflicted = True  # until it is committed, or has failed otherwise

    async def run(self, request: Request[T]) -> T:
        """Sends a request inside of the transaction."""
        return await self._store.run_in(self._checked_id(), request)

    async def run_all(self, batch: Sequence[Request[Any]]) -> list[Any]:
        """Sends requests inside of the transaction."""
        return await self._store.run_all_in(self._checked_id(), batch)

    def _checked_id(self) -> int:
        if self._id == 0:
            raise RuntimeError("a transaction is used inside of its `async with`")
        return self._id

    async def __aenter__(self) -> AsyncTransaction:
        if self._pause_s > 0:
            await asyncio.sleep(self._pause_s)

        def undo(started: int) -> tuple[Request[Any], int]:
            return requests.transaction_end(commit=False), started

        self._id = await self._store.run_in(0, requests.transaction_start(), undo)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        current, self._id = self._id, 0
        self.conflicted = False
        if error is None:
            try:
                await self._store.run_in(current, requests.transaction_end(commit=True))
            except XenstoreError as refusal:
                if refusal.name != "EAGAIN" or not self._may_repeat:
                    raise
                self.conflicted = True
            return False
        self._store.abort(current)
        if isinstance(error, XenstoreError) and error.name == "EAGAIN" and self._may_repeat:
            self.conflicted = True
            return True
        return False


class AsyncWatching:
    """The events of one watch: an iterator, for an `async with`, for one task at a time.

    The first event comes at once, so that a loop over them looks at the node before it waits.
    """

    def __init__(self, store: AsyncXenstore, path: str, depth: int | None) -> None:
        self.path = path
        self._store = store
        self._depth = depth
        self._queue: EventQueue | None = None

    async def next(self, timeout_s: float | None = None) -> WatchEvent | None:
        """The next event; None when none came in `timeout_s` (None: wait for ever).

        XenstoreError EOVERFLOW, once, if so many were waiting that they were given up.
        """
        if self._queue is None:
            raise RuntimeError("a watch is used inside of its `async with`")
        return await self._store.next_in(self._queue, timeout_s)

    def __aiter__(self) -> AsyncWatching:
        return self

    async def __anext__(self) -> WatchEvent:
        while True:
            event = await self.next()
            if event is not None:
                return event

    async def __aenter__(self) -> AsyncWatching:
        if self._queue is not None:
            raise RuntimeError("this watch is set already")
        self._queue = await self._store.open_watch(self.path, self._depth)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            self._store.close_watch(self.path, queue)
