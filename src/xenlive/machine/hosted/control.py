"""The host process's own door: a Unix socket, one JSON object a line each way.

    {"verb": "status"}        ->  {"ok": true, ...}
    anything else             ->  {"ok": false, "error": "..."}

    client   readable ─▶ take bytes ─▶ one whole line ─▶ answer it ─▶ send what goes
                 ▲                          ▲                              │
                 └── all sent, no line ─────┴── all sent, another line ◀───┴─▶ writable: send on

**Invariants.** Nobody who knocks is waited for: all sockets are non-blocking, and a turn answers
one line of each client at most. Of a client no more is kept than `LINE_MAX` bytes and one answer;
it is not read from before that answer is sent. A client that sends too long a line or goes away
is closed; when all places are taken, the one that was quiet for longest makes room.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
from collections.abc import Callable
from typing import Any

from xenlive.machine.hosted.places import identity, remove_own

LINE_MAX = 65536
CLIENTS_MAX = 64

Verb = Callable[[dict[str, Any]], dict[str, Any]]


class _Client:
    __slots__ = ("received", "socket", "unsent", "waits_for")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.received = bytearray()
        self.unsent = bytearray()
        self.waits_for = select.EPOLLIN

    def take_line(self) -> bytes | None:
        end = self.received.find(b"\n")
        if end < 0:
            return None
        line = bytes(self.received[:end])
        del self.received[: end + 1]
        return line


class ControlDoor:
    """Serves `verbs` on a listening socket at `path`; the owner's loop calls `serve`."""

    def __init__(self, path: str, verbs: dict[str, Verb]) -> None:
        self.path = path
        self._verbs = verbs
        self._clients: dict[int, _Client] = {}
        with contextlib.ExitStack() as undo:
            self._listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            self._listener.bind(path)
            self._made = identity(path)
            undo.callback(remove_own, path, self._made)
            os.chmod(path, 0o600)
            self._listener.listen(16)
            self._listener.setblocking(False)
            self._epoll = undo.enter_context(select.epoll())
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
            undo.pop_all()

    def fileno(self) -> int:
        """The descriptor that is readable whenever `serve` has something to do."""
        return self._epoll.fileno()

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def serve(self) -> None:
        """Lets clients in, and does one step for each that waits for one. Never blocks."""
        for fd, _ in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._accept()
            elif fd in self._clients:
                self._step(fd)

    def close(self) -> None:
        """Closes everything and removes the socket file."""
        for fd in list(self._clients):
            self._drop(fd)
        self._epoll.close()
        self._listener.close()
        remove_own(self.path, self._made)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # Too many descriptors, most likely: somebody has to make room, or this comes again.
            self._drop_quietest()
            return
        if len(self._clients) >= CLIENTS_MAX:
            self._drop_quietest()
        connection.setblocking(False)
        fd = connection.fileno()
        self._clients[fd] = _Client(connection)
        self._epoll.register(fd, select.EPOLLIN)

    def _step(self, fd: int) -> None:
        # Those that were heard of last stand last.
        client = self._clients[fd] = self._clients.pop(fd)
        try:
            if not client.unsent and b"\n" not in client.received:
                data = client.socket.recv(LINE_MAX)
                if not data or len(client.received) + len(data) > LINE_MAX:
                    raise ConnectionError
                client.received += data
            if not client.unsent:
                line = client.take_line()
                if line is not None:
                    client.unsent += json.dumps(self._answer(line)).encode() + b"\n"
            if client.unsent:
                del client.unsent[: client.socket.send(client.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(fd)
            return
        # A line that is there already is answered in a turn of its own: a socket that nothing
        # waits in is writable at once.
        more = client.unsent or b"\n" in client.received
        waits_for = select.EPOLLOUT if more else select.EPOLLIN
        if waits_for != client.waits_for:
            client.waits_for = waits_for
            self._epoll.modify(fd, waits_for)

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            verb = self._verbs[request["verb"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            known = ", ".join(sorted(self._verbs))
            return {"ok": False, "error": f"no such verb; this host knows: {known}"}
        return {"ok": True, **verb(request)}

    def _drop_quietest(self) -> None:
        for fd in self._clients:
            self._drop(fd)
            return

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._epoll.unregister(fd)
        client.socket.close()


def ask(path: str, request: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
    """Asks the host process behind `path`; OSError when none answers, ValueError for nonsense."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(timeout_s)
        door.connect(path)
        door.sendall(json.dumps(request).encode() + b"\n")
        with door.makefile("rb") as answers:
            line = answers.readline(16 * LINE_MAX)
    try:
        answer = json.loads(line)
    except RecursionError:
        answer = None
    if not isinstance(answer, dict):
        raise ValueError("the host process answered with something that is no object")
    return answer
