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

import json
import select
import socket
from collections.abc import Callable
from typing import Any

from xenlive.machine.hosted.door import Door

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


class ControlDoor(Door[_Client]):
    """Serves `verbs` on a listening socket at `path`; the owner's loop calls `serve`."""

    def __init__(self, path: str, verbs: dict[str, Verb]) -> None:
        super().__init__(path, socket.SOCK_STREAM, CLIENTS_MAX)
        self._verbs = verbs

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._inside)

    def _make(self, connection: socket.socket) -> _Client:
        return _Client(connection)

    def _step(self, fd: int) -> None:
        # Those that were heard of last stand last.
        client = self._inside[fd] = self._inside.pop(fd)
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

    def _make_room(self) -> bool:
        """The quietest has to go."""
        for fd in self._inside:
            self._drop(fd)
            return True
        return False


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
