"""A blocking Xenstore client over a Unix socket.

    with Xenstore.connect() as store:
        store.write("/a", "1")
        for attempt in store.transactions():
            with attempt as tx:
                tx.write("/a", str(int(tx.read("/a")) + 1))

One request is under way at a time; watch events that arrive meanwhile wait in a queue for
`next_event`. The codec and the meaning of answers are in `codec.py` and `requests.py`, without
I/O.

**Invariants.** After a timeout or `PeerError` the connection is closed: an answer that comes late
can't be taken for another's. Any error is of the `XenliveError` tree; an interrupted `with`
leaves no transaction open.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from xenlive.client import requests
from xenlive.client.codec import Answer, ClientCodec, WatchEvent
from xenlive.client.requests import Permission, Request
from xenlive.errors import ConfigError, PeerError, XenstoreError
from xenlive.rundir import default_socket

T = TypeVar("T")
RECEIVE_BYTES = 65536
RETRY_S = 0.002
CONNECT_TIMEOUT_S = 10.0
ATTEMPTS = 100


class StoreOperations:
    """What can be asked of the store, in a transaction or without one."""

    def run(self, request: Request[T]) -> T:
        """Sends a request and gives its answer's meaning. XenstoreError, PeerError."""
        raise NotImplementedError

    def read(self, path: str) -> bytes:
        """The value of a node. XenstoreError ENOENT if there is none."""
        return self.run(requests.read(path))

    def write(self, path: str, value: bytes | str) -> None:
        """Stores a node's value, making the node and its parents if they are missing."""
        self.run(requests.write(path, value))

    def mkdir(self, path: str) -> None:
        """Makes a node if it is missing; an existing one keeps its value."""
        self.run(requests.mkdir(path))

    def rm(self, path: str) -> None:
        """Removes a node and all below it. XenstoreError ENOENT if its parent is missing."""
        self.run(requests.rm(path))

    def directory(self, path: str) -> list[str]:
        """The names of a node's children, however many there are."""
        try:
            return self.run(requests.directory(path))
        except XenstoreError as error:
            if error.name != "E2BIG":
                raise
        parts = requests.directory_in_parts(path)
        request = next(parts)
        while True:
            try:
                request = parts.send(self.run(request))
            except StopIteration as end:
                names: list[str] = end.value
                return names

    def exists(self, path: str) -> bool:
        """Whether there is such a node, and we may know of it."""
        try:
            self.run(requests.get_perms(path))
        except XenstoreError as error:
            if error.name in ("ENOENT", "EACCES"):
                return False
            raise
        return True

    def get_perms(self, path: str) -> list[Permission]:
        """A node's permissions, the owner's entry first."""
        return self.run(requests.get_perms(path))

    def set_perms(self, path: str, permissions: Sequence[Permission]) -> None:
        """Replaces a node's permissions; the first entry names its owner."""
        self.run(requests.set_perms(path, permissions))


class Xenstore(StoreOperations):
    """One connection to a Xenstore server. `timeout_s` is how long an answer may take."""

    def __init__(self, connected: socket.socket, *, timeout_s: float | None = None) -> None:
        self.timeout_s = timeout_s
        self._socket = connected
        self._codec = ClientCodec()
        self._events: deque[WatchEvent] = deque()
        self._answers: deque[Answer] = deque()

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
        deadline_s = time.monotonic() + connect_timeout_s
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connecting.setblocking(False)  # so that a full queue says EAGAIN and does not wait
        try:
            while True:
                try:
                    connecting.connect(str(target))
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline_s:
                        raise
                    time.sleep(RETRY_S)
        except (OSError, ValueError) as error:
            connecting.close()
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ConfigError(str(target), 0, f"no Xenstore can be reached there: {why}") from None
        return cls(connecting, timeout_s=timeout_s)

    def close(self) -> None:
        """Ends the connection; its watches and transactions end with it."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket, to wait for watch events with `select`; -1 once closed."""
        return self._socket.fileno()

    def __enter__(self) -> Xenstore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, request: Request[T], transaction: int = 0) -> T:
        """Sends a request and gives its answer's meaning.

        XenstoreError for the server's refusal, ETIMEDOUT if no answer came in time; PeerError if
        the server closed the connection or does not speak Xenstore.
        """
        request_id, message = self._codec.encode(request.type, request.payload, transaction)
        deadline_s = None if self.timeout_s is None else time.monotonic() + self.timeout_s
        try:
            self._wait_for(deadline_s)
            self._socket.sendall(message)
            while not self._answers:
                self._receive(deadline_s)
            answer = self._answers.popleft()
            if answer.request_id != request_id:
                raise PeerError("an answer to an earlier request", answer.offset, answer.request_id)
            return request.decode(answer)
        except TimeoutError:
            self.close()
            raise XenstoreError("ETIMEDOUT", request.label) from None
        except OSError as error:
            self.close()
            raise PeerError(f"{request.label}: the connection broke: {_name(error)}") from None
        except (PeerError, KeyboardInterrupt):
            self.close()
            raise

    def watch(self, path: str, token: str) -> None:
        """Asks for an event on each change of `path` or below it; the first one comes at once."""
        self.run(requests.watch(path, token))

    def unwatch(self, path: str, token: str) -> None:
        """Ends a watch. XenstoreError ENOENT if there is none with this path and token."""
        self.run(requests.unwatch(path, token))

    def next_event(self, timeout_s: float | None = None) -> WatchEvent | None:
        """The next watch event; None when none came in `timeout_s` (None: wait forever)."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while not self._events:
                self._receive(deadline_s)
        except TimeoutError:
            return None
        except OSError as error:
            self.close()
            raise PeerError(f"the connection broke: {_name(error)}") from None
        except PeerError:
            self.close()
            raise
        return self._events.popleft()

    def control(self, *arguments: str) -> str:
        """Runs a control command of the server's; gives what it says."""
        return self.run(requests.control(*arguments))

    def get_domain_path(self, domid: int) -> str:
        """The node below which a domain has its own."""
        return self.run(requests.get_domain_path(domid))

    def is_domain_introduced(self, domid: int) -> bool:
        """Whether the server serves this domain."""
        return self.run(requests.is_domain_introduced(domid))

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """Has the server serve a domain by its ring. XenstoreError EINVAL if it can't."""
        self.run(requests.introduce(domid, gfn, port))

    def release(self, domid: int) -> None:
        """Tells the server that a domain is no more. XenstoreError ENOENT if it has none such."""
        self.run(requests.release(domid))

    def transaction(self) -> Transaction:
        """One transaction for a `with`: committed at its end. XenstoreError EAGAIN on conflict."""
        return Transaction(self, may_repeat=False)

    def transactions(self, attempts: int = ATTEMPTS) -> Iterator[Transaction]:
        """Transactions for a loop around a `with`, until one is committed.

        The last of `attempts` raises XenstoreError EAGAIN if it conflicts too.
        """
        for left in range(attempts - 1, -1, -1):
            attempt = Transaction(self, may_repeat=left > 0)
            yield attempt
            if not attempt.conflicted:
                return

    def transact(self, change: Callable[[Transaction], T], attempts: int = ATTEMPTS) -> T:
        """Calls `change` in a transaction, again after each conflict, and gives its result."""
        for attempt in self.transactions(attempts):
            with attempt as tx:
                result = change(tx)
        return result

    def _receive(self, deadline_s: float | None) -> None:
        """Takes in what has arrived, waiting for it. TimeoutError, OSError, PeerError."""
        self._wait_for(deadline_s)
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise PeerError("the server closed the connection")
        for message in self._codec.receive(data):
            if isinstance(message, WatchEvent):
                self._events.append(message)
            else:
                self._answers.append(message)

    def _wait_for(self, deadline_s: float | None) -> None:
        """Sets how long the next call on the socket may take before it raises TimeoutError."""
        if deadline_s is None:
            self._socket.settimeout(None)
            return
        # Never zero, which would mean not to wait at all: what has already arrived is still taken.
        self._socket.settimeout(max(deadline_s - time.monotonic(), 1e-6))


class Transaction(StoreOperations):
    """A transaction: a view of the store that nobody else changes, committed as a whole."""

    def __init__(self, store: Xenstore, *, may_repeat: bool) -> None:
        self._store = store
        self._may_repeat = may_repeat
        self._id = 0
        self.conflicted = True  # until it is committed, or has failed otherwise

    def run(self, request: Request[T]) -> T:
        """Sends a request inside of the transaction."""
        if self._id == 0:
            raise RuntimeError("a transaction is used inside of its `with`")
        return self._store.run(request, self._id)

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
                self._store.run(requests.transaction_end(commit=True), current)
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
            self._store.run(requests.transaction_end(commit=False), current)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))
