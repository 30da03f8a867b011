"""The host process's own door: a Unix socket, one JSON object a line each way.

    {"verb": "status"}        ->  {"ok": true, ...}
    anything else             ->  {"ok": false, "error": "..."}

**Invariants.** A client that sends no line, too long a line or nonsense hurts only itself: it is
answered or closed, and never waited for.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any

LINE_MAX = 65536
CLIENTS_MAX = 64

Verb = Callable[[dict[str, Any]], dict[str, Any]]


class ControlDoor:
    """Serves `verbs` on a listening socket at `path`; the owner's loop calls `ready(fd)`."""

    def __init__(self, path: str, verbs: dict[str, Verb]) -> None:
        self.path = path
        self._verbs = verbs
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(16)
        self._listener.setblocking(False)

    @property
    def listener_fd(self) -> int:
        """The descriptor that is readable when somebody knocks."""
        return self._listener.fileno()

    def accept(self) -> int | None:
        """Lets a client in: its descriptor, to be watched for `ready`; None if nobody came."""
        try:
            client, _ = self._listener.accept()
        except OSError:
            return None
        if len(self._clients) >= CLIENTS_MAX:
            client.close()
            return None
        client.setblocking(False)
        self._clients[client.fileno()] = (client, bytearray())
        return client.fileno()

    def ready(self, fd: int) -> bool:
        """Reads what a client sent and answers whole lines; False when it is gone and closed."""
        client, pending = self._clients[fd]
        try:
            data = client.recv(LINE_MAX)
            if not data or len(pending) + len(data) > LINE_MAX:
                raise ConnectionError
            pending += data
            while (end := pending.find(b"\n")) >= 0:
                line = bytes(pending[:end])
                del pending[: end + 1]
                answer = json.dumps(self._answer(line)).encode() + b"\n"
                client.setblocking(True)
                client.settimeout(1.0)
                client.sendall(answer)
                client.setblocking(False)
        except BlockingIOError:
            return True
        except OSError:
            del self._clients[fd]
            client.close()
            return False
        return True

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            verb = self._verbs[request["verb"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            known = ", ".join(sorted(self._verbs))
            return {"ok": False, "error": f"no such verb; this host knows: {known}"}
        return {"ok": True, **verb(request)}

    def close(self) -> None:
        """Closes everything and removes the socket file."""
        for client, _ in self._clients.values():
            client.close()
        self._clients.clear()
        self._listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)


def ask(path: str, request: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
    """Asks the host process behind `path`; OSError when none answers, ValueError for nonsense."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(timeout_s)
        door.connect(path)
        door.sendall(json.dumps(request).encode() + b"\n")
        with door.makefile("rb") as answers:
            line = answers.readline(16 * LINE_MAX)
    answer = json.loads(line)
    if not isinstance(answer, dict):
        raise ValueError("the host process answered with something that is no object")
    return answer
