"""A Xenstore small enough to be right at sight, with faults to order: what the load must notice.

It serves one request at a time from a thread, knows no permissions checks and no quotas. `fault`
names what it does wrong; a server without a fault must pass the demo's checks.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from pathlib import Path

HEADER = struct.Struct("<IIII")
DIRECTORY, READ, GET_PERMS, WATCH = 1, 2, 3, 4
START, END, WRITE, MKDIR, RM, SET_PERMS = 6, 7, 11, 12, 13, 14
EVENT, ERROR, PART = 15, 16, 22
OK = b"OK\0"

FAULTS = (
    "wrong-value",
    "error-answer",
    "other-req-id",
    "lost-node",
    "extra-node",
    "changed-value",
    "changed-perms",
    "changed-elsewhere",
    "lost-event",
    "double-event",
    "wrong-token",
    "event-to-all",
    "close-client",
    "close-watcher",
    "silent",
    "no-newcomers",
    "lost-commit",
    "nonsense",
)

Node = tuple[bytes, bytes]  # value, permissions as they travel


class Missing(Exception):
    """The request fails with this errno's name."""


class FakeServer:
    """Serves `path` until `stop`; `arm()` switches the fault on."""

    def __init__(self, path: Path, fault: str = "") -> None:
        self.path = path
        self.fault = fault
        self.armed = False
        self.nodes: dict[bytes, Node] = {
            b"/": (b"", b"n0\0"),
            b"/tool": (b"here before", b"n0\0"),
        }
        self._watches: list[tuple[socket.socket, bytes, bytes]] = []
        self._transactions: dict[tuple[int, int], tuple[int, dict[bytes, Node]]] = {}
        self._changes = 0
        self._events = 0
        self._pending: dict[socket.socket, bytes] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(256)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join()
        for sock in (*self._pending, self._listener, self._woken):
            sock.close()
        self._selector.close()

    def arm(self) -> None:
        """From now on the fault shows."""
        if self.fault == "changed-elsewhere":
            self.nodes[b"/tool"] = (b"changed", b"n0\0")
        victims = [path for path in self.nodes if b"/guests/" in path]
        value, perms = self.nodes[victims[-1]]
        if self.fault == "lost-node":
            del self.nodes[victims[-1]]
        elif self.fault == "extra-node":
            self.nodes[b"/demo/guests/stranger"] = (b"", b"n0\0")
        elif self.fault == "changed-value":
            self.nodes[victims[-1]] = (value + b"!", perms)
        elif self.fault == "changed-perms":
            self.nodes[victims[-1]] = (value, perms + b"r7\0")
        self.armed = True

    def _has(self, fault: str) -> bool:
        return self.armed and self.fault == fault

    def _once(self, fault: str) -> bool:
        if self._has(fault):
            self.fault = ""
            return True
        return False

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._woken:
                    return
                if sock is self._listener:
                    client, _ = sock.accept()
                    if self._has("no-newcomers"):
                        client.close()
                        continue
                    self._pending[client] = b""
                    self._selector.register(client, selectors.EVENT_READ)
                else:
                    self._read(sock)

    def _read(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._forget(sock)
            return
        data = self._pending[sock] + data
        while len(data) >= HEADER.size:
            kind, req_id, tx_id, size = HEADER.unpack_from(data)
            if len(data) < HEADER.size + size:
                break
            payload = data[HEADER.size : HEADER.size + size]
            data = data[HEADER.size + size :]
            if self._has("silent"):
                continue
            if self._once("close-client"):
                self._forget(sock)
                return
            if self._once("nonsense"):
                sock.sendall(b"\xff" * 64)
                continue
            if self._once("other-req-id"):
                req_id += 1
            self._send(sock, *self._answer(sock, kind, tx_id, payload), req_id, tx_id)
        self._pending[sock] = data

    def _forget(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._pending[sock]
        self._watches = [watch for watch in self._watches if watch[0] is not sock]
        sock.close()

    def _send(self, sock: socket.socket, kind: int, payload: bytes, req_id: int, tx: int) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(HEADER.pack(kind, req_id, tx, len(payload)) + payload)

    def _answer(
        self, sock: socket.socket, kind: int, tx_id: int, payload: bytes
    ) -> tuple[int, bytes]:
        if kind in (READ, WRITE) and self._once("error-answer"):
            return ERROR, b"EIO\0"
        if kind == READ and self._once("wrong-value"):
            return READ, b"something else"
        try:
            return kind, self._do(sock, kind, tx_id, payload)
        except Missing as error:
            return ERROR, str(error).encode() + b"\0"

    def _do(self, sock: socket.socket, kind: int, tx_id: int, payload: bytes) -> bytes:
        path, _, rest = payload.partition(b"\0")
        if kind == START:
            number = 1 + sum(key[0] == id(sock) for key in self._transactions)
            self._transactions[id(sock), number] = self._changes, dict(self.nodes)
            return b"%d\0" % number
        if kind == END:
            return self._end(sock, tx_id, payload)
        nodes = self._transactions[id(sock), tx_id][1] if tx_id else self.nodes
        if kind == WATCH:
            token = rest[:-1]
            self._watches.append((sock, path, token))
            self._event(sock, path, token)
            return OK
        if kind in (WRITE, MKDIR):
            parent = path.rsplit(b"/", 1)[0] or b"/"
            nodes[path] = rest, nodes[path if path in nodes else parent][1]
            return self._changed(path, tx_id)
        if path not in nodes:
            raise Missing("ENOENT")
        value, perms = nodes[path]
        if kind == READ:
            return value
        if kind == GET_PERMS:
            return perms
        if kind == SET_PERMS:
            nodes[path] = value, rest
            return self._changed(path, tx_id)
        if kind == RM:
            del nodes[path]
            return self._changed(path, tx_id)
        return self._list(nodes, kind, path, rest)

    def _list(self, nodes: dict[bytes, Node], kind: int, path: bytes, rest: bytes) -> bytes:
        base = path.rstrip(b"/") + b"/"
        names = [p[len(base) :] for p in nodes if p.startswith(base) and p != b"/"]
        listing = b"".join(name + b"\0" for name in names if b"/" not in name)
        if kind == DIRECTORY:
            # A limit of its own, low enough for the parts to be used in small trees.
            if len(listing) > 420:
                raise Missing("E2BIG")
            return listing
        offset = int(rest[:-1])
        part = listing[offset : offset + 300]
        if offset + 300 >= len(listing):
            return b"1\0" + part + b"\0"
        return b"1\0" + part[: part.rindex(b"\0") + 1]

    def _end(self, sock: socket.socket, tx_id: int, payload: bytes) -> bytes:
        began, nodes = self._transactions.pop((id(sock), tx_id))
        if payload == b"F\0":
            return OK
        if began != self._changes:
            raise Missing("EAGAIN")
        if not self._once("lost-commit"):
            self.nodes = nodes
        self._changes += 1
        return OK

    def _changed(self, path: bytes, tx_id: int) -> bytes:
        if tx_id:
            return OK
        self._changes += 1
        for sock, watched, token in list(self._watches):
            if path == watched or path.startswith(watched + b"/"):
                self._event(sock, path, token)
        return OK

    def _event(self, sock: socket.socket, path: bytes, token: bytes) -> None:
        if self._once("lost-event"):
            return
        if self._once("wrong-token"):
            token += b"x"
        if self._once("close-watcher"):
            self._forget(sock)
            return
        times = 2 if self._once("double-event") else 1
        to = list(self._pending) if self._once("event-to-all") else [sock]
        for receiver in to * times:
            self._send(receiver, EVENT, path + b"\0" + token + b"\0", 0, 0)
