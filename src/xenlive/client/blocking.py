"""A blocking Xenstore client, over a Unix socket or any other `Transport`.

    with Xenstore.connect() as store:
        store.write("/a", "1")
        for attempt in store.transactions():
            with attempt as tx:
                tx.write("/a", str(int(tx.read("/a")) + 1))
        with store.watching("/a") as events:
            for event in events:
                print(event.path)

The caller's thread does all the work: watch events that arrive while it waits for an answer are
kept in queues (`events.py`), and nothing is read while nobody asks. The codec, the meaning of
answers and what takes several requests are in `codec.py`, `requests.py` and `plans.py`, without
I/O.

**Invariants.** After a timeout or `PeerError` the connection is closed: an answer that comes late
can't be taken for another's. Any error is of the `XenliveError` tree; an interrupted `with`
leaves no transaction open and no watch set. No more requests are under way at a time than a server
answers without its answers being read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from xenlive.client import plans, requests
from xenlive.client.codec import ClientCodec, WatchEvent
from xenlive.client.domains import DomainOperations
from xenlive.client.events import EventQueue, EventRouter
from xenlive.client.operations import StoreOperations
from xenlive.client.plans import ATTEMPTS
from xenlive.client.requests import Request
from xenlive.client.transport import SocketTransport, Transport, connect_socket
from xenlive.errors import PeerError, XenstoreError
from xenlive.rundir import default_socket

T = TypeVar("T")
CONNECT_TIMEOUT_S = 10.0
#: Less than the 20 that a server lets a domain have outstanding.
UNDER_WAY_MAX = 16


class Xenstore(DomainOperations):
    """One connection to a Xenstore server. `timeout_s` is how long an answer may take."""

    def __init__(
        self, connected: socket.socket | Transport, *, timeout_s: float | None = None
    ) -> None:
        self.timeout_s = timeout_s
        self._transport = (
            connected if isinstance(connected, Transport) else SocketTransport(connected)
        )
        self._codec = ClientCodec()
        self._router = EventRouter()

    @classmethod
    def connect(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> Xenstore:
        """Connects to the server on `path`, or where the environment says it is.

        A full queue of waiting connections (EAGAIN) is tried again until `connect_timeout_s` is
        over. ConfigError, naming the path, if no server can be reached there.
        """
        target = Path(path) if path is not None else default_socket()
        return cls(connect_socket(target, connect_timeout_s), timeout_s=timeout_s)

    def close(self) -> None:
        """Ends the connection; its watches and transactions end with it."""
        self._transport.close()

    def fileno(self) -> int:
        """What to wait for with `select` until watch events come; -1 once closed."""
        return self._transport.fileno()

    def __enter__(self) -> Xenstore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run_all(self, batch: Sequence[Request[Any]]) -> list[Any]:
        """Sends requests without waiting for each answer; gives what came of each, in order."""
        return self.run_all_in(0, batch)

    def run_all_in(self, transaction: int, batch: Sequence[Request[Any]]) -> list[Any]:
        """The same with the id of a transaction."""
        outcomes: list[Any] = [None] * len(batch)
        under_way: dict[int, int] = {}  # request id: its place in `batch`
        label = batch[0].label if batch else ""
        try:
            for place, request in enumerate(batch):
                label = request.label
                try:
                    request_id, message = self._codec.encode(
                        request.type, request.payload, transaction
                    )
                except XenstoreError as error:
                    outcomes[place] = error
                    continue
                while len(under_way) >= UNDER_WAY_MAX:
                    self._take_answers(batch, under_way, outcomes)
                self._transport.send(message, self._deadline_s())
                under_way[request_id] = place
            while under_way:
                self._take_answers(batch, under_way, outcomes)
        except TimeoutError:
            self.close()
            raise XenstoreError("ETIMEDOUT", label) from None
        except OSError as error:
            self.close()
            raise PeerError(f"{label}: the connection broke: {_name(error)}") from None
        except BaseException:
            # Whatever it was: answers that were not taken would be there for the next request.
            self.close()
            raise
        return outcomes

    def _take_answers(
        self, batch: Sequence[Request[Any]], under_way: dict[int, int], outcomes: list[Any]
    ) -> None:
        """Waits until something has come, and puts the answers into their places."""
        for message in self._codec.receive(self._transport.receive(self._deadline_s())):
            if isinstance(message, WatchEvent):
                self._router.route(message)
                continue
            # The codec knows it to be outstanding; a request that was given up closed all.
            place = under_way.pop(message.request_id)
            try:
                outcomes[place] = batch[place].decode(message)
            except XenstoreError as error:
                outcomes[place] = error

    def watch(self, path: str, token: str, depth: int | None = None) -> None:
        """Asks for an event on each change of `path` or below it; the first one comes at once.

        `depth` is how many levels below it count, all if None; EINVAL from an older server. Events
        come out of `next_event`; `watching` is often what is wanted.
        """
        self.run(requests.watch(path, token, depth))

    def unwatch(self, path: str, token: str) -> None:
        """Ends a watch. XenstoreError ENOENT if there is none with this path and token."""
        self.run(requests.unwatch(path, token))

    def reset_watches(self) -> None:
        """Ends all watches and transactions of this connection."""
        self.run(requests.reset_watches())

    def next_event(self, timeout_s: float | None = None) -> WatchEvent | None:
        """The next event of those asked for with `watch`; None when none came in `timeout_s`.

        XenstoreError EOVERFLOW, once, if so many were waiting that they were given up.
        """
        return self._next_of(self._router.others, timeout_s)

    def watching(self, path: str, depth: int | None = None) -> Watching:
        """A watch for a `with`: an iterator over its own events, ended with it."""
        return Watching(self, path, depth, self._router, self._next_of)

    def wait_for(
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
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self.watching(path) as events:
            while True:
                value = self.get(path)
                if wanted(value):
                    return value
                left_s = None if deadline_s is None else deadline_s - time.monotonic()
                if (left_s is not None and left_s <= 0) or events.next(left_s) is None:
                    raise XenstoreError("ETIMEDOUT", f"wait for {path}")

    def transaction(self) -> Transaction:
        """One transaction for a `with`: committed at its end. XenstoreError EAGAIN on conflict."""
        return Transaction(self, may_repeat=False)

    def transactions(self, attempts: int = ATTEMPTS) -> Iterator[Transaction]:
        """Transactions for a loop around a `with`, until one is committed.

        The last of `attempts` raises XenstoreError EAGAIN if it conflicts too.
        """
        for conflicts in range(attempts):
            if (pause_s := plans.pause_s(conflicts, random.random())) > 0:
                time.sleep(pause_s)
            attempt = Transaction(self, may_repeat=conflicts + 1 < attempts)
            yield attempt
            if not attempt.conflicted:
                return

    def transact(self, change: Callable[[Transaction], T], attempts: int = ATTEMPTS) -> T:
        """Calls `change` in a transaction, again after each conflict, and gives its result."""
        for attempt in self.transactions(attempts):
            with attempt as tx:
                result = change(tx)
        return result

    def _next_of(self, queue: EventQueue, timeout_s: float | None) -> WatchEvent | None:
        """The next event of a queue; None when none came in time."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while not queue:
                for message in self._codec.receive(self._transport.receive(deadline_s)):
                    if not isinstance(message, WatchEvent):
                        raise PeerError("an answer to no request", message.offset)
                    self._router.route(message)
        except TimeoutError:
            return None
        except OSError as error:
            self.close()
            raise PeerError(f"the connection broke: {_name(error)}") from None
        except PeerError:
            self.close()
            raise
        return queue.pop()

    def _deadline_s(self) -> float | None:
        return None if self.timeout_s is None else time.monotonic() + self.timeout_s


class Watching:
    """The events of one watch: an iterator, for a `with`.

    The first event comes at once, so that a loop over them looks at the node before it waits.
    """

    def __init__(
        self,
        store: Xenstore,
        path: str,
        depth: int | None,
        router: EventRouter,
        next_of: Callable[[EventQueue, float | None], WatchEvent | None],
    ) -> None:
        self.path = path
        self._store = store
        self._depth = depth
        self._router = router
        self._next_of = next_of
        self._queue: EventQueue | None = None

    def next(self, timeout_s: float | None = None) -> WatchEvent | None:
        """The next event; None when none came in `timeout_s` (None: wait for ever).

        XenstoreError EOVERFLOW, once, if so many were waiting that they were given up.
        """
        if self._queue is None:
            raise RuntimeError("a watch is used inside of its `with`")
        return self._next_of(self._queue, timeout_s)

    def __iter__(self) -> Watching:
        return self

    def __next__(self) -> WatchEvent:
        while True:
            event = self.next()
            if event is not None:
                return event

    def __enter__(self) -> Watching:
        if self._queue is not None:
            raise RuntimeError("this watch is set already")
        queue = self._router.open(f"watch {self.path}")
        try:
            self._store.watch(self.path, queue.token, self._depth)
        except BaseException:
            self._router.close(queue)
            raise
        self._queue = queue
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        queue, self._queue = self._queue, None
        if queue is None:
            return
        self._router.close(queue)
        if self._store.fileno() < 0:
            return
        # A watch that has gone already is fine: with its connection, or by `reset_watches`.
        with contextlib.suppress(XenstoreError, PeerError):
            self._store.unwatch(self.path, queue.token)


class Transaction(StoreOperations):
    """A transaction: a view of the store that nobody else changes, committed as a whole."""

    def __init__(self, store: Xenstore, *, may_repeat: bool) -> None:
        self._store = store
        self._may_repeat = may_repeat
        self._id = 0
        self.conflicted = True  # until it is committed, or has failed otherwise

    def run_all(self, batch: Sequence[Request[Any]]) -> list[Any]:
        """Sends requests inside of the transaction."""
        if self._id == 0:
            raise RuntimeError("a transaction is used inside of its `with`")
        return self._store.run_all_in(self._id, batch)

    def __enter__(self) -> Transaction:
        self._id = self._store.run(requests.transaction_start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        current, self._id = self._id, 0
        self.conflicted = False
        if error is None:
            try:
                self._end(current, commit=True)
            except XenstoreError as refusal:
                if refusal.name != "EAGAIN" or not self._may_repeat:
                    raise
                self.conflicted = True
            return False
        if self._store.fileno() >= 0:
            self._abort(current)
        if isinstance(error, XenstoreError) and error.name == "EAGAIN" and self._may_repeat:
            self.conflicted = True
            return True
        return False

    def _abort(self, current: int) -> None:
        # The error that is under way says more than one of the server, which may be gone.
        with contextlib.suppress(XenstoreError, PeerError):
            self._end(current, commit=False)

    def _end(self, current: int, *, commit: bool) -> None:
        (refusal,) = self._store.run_all_in(current, [requests.transaction_end(commit=commit)])
        if isinstance(refusal, XenstoreError):
            raise refusal


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))
