"""A simulated client that knows the right answer to each of its requests.

Each works below a directory of its own, so what the others do can't change its answers; one request
is under way at a time. Its model is a dict, and the events its own watch is due, in order.
"""

from __future__ import annotations

from random import Random

from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_ERROR,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
    XSD_SOCKMSG,
)
from xenlive.sim.loop import SimSocket

NAMES = ("a", "b", "c", "d")


class Mismatch(AssertionError):
    """A client got what it should not have got, or did not get what was due."""


class SimClient:
    """One client; `act` sends the next request, `listen` checks what arrived."""

    def __init__(self, number: int, socket: SimSocket, random: Random) -> None:
        self.home = f"/c/{number}"
        self.token = f"token-{number}"
        self.socket = socket
        self.requests = 0
        self.events = 0
        self._random = random
        self._request_id = 0
        self._expected: tuple[int, bytes | None] | None = None
        self._due: list[list[str]] = []
        self._transaction = 0
        self._shadow: dict[str, bytes] | None = None
        self._log: list[str] = []
        self._starting = False
        self.nodes: dict[str, bytes] = {self.home: b""}
        self._watching = False
        self._send(XS_MKDIR, f"{self.home}\0".encode(), b"OK\0")

    @property
    def waiting(self) -> bool:
        """Whether an answer or an event is still due."""
        return self._expected is not None or bool(self._due)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open or about to be."""
        return self._shadow is not None or self._starting

    def act(self) -> None:
        """Sends the next request, unless the last one is not answered yet."""
        if self._expected is not None:
            return
        if not self._watching:
            self._watching = True
            self._send(XS_WATCH, f"{self.home}\0{self.token}\0".encode(), b"OK\0")
            self._due.append([self.home])
        elif self._shadow is not None and self._random.random() < 0.4:
            self._commit()
        elif self._shadow is None and self._random.random() < 0.1:
            self._starting = True
            self._send(XS_TRANSACTION_START, b"\0", None)
        else:
            self._ask()

    def finish(self) -> None:
        """Sends what ends an open transaction."""
        if self._expected is None and self._shadow is not None:
            self._commit()

    def _commit(self) -> None:
        assert self._shadow is not None
        # A commit's events come in an order of its own; what came and went in between has none.
        due = [path for path in self._log if path in self.nodes or path in self._shadow]
        if due:
            self._due.append(due)
        self.nodes = self._shadow
        self._shadow = None
        self._send(XS_TRANSACTION_END, b"T\0", b"OK\0")
        self._transaction = 0

    def _ask(self) -> None:
        nodes = self.nodes if self._shadow is None else self._shadow
        path = self.home + "".join(
            "/" + self._random.choice(NAMES) for _ in range(self._random.randint(1, 3))
        )
        raw = path.encode()
        choice = self._random.random()
        if choice < 0.45:
            value = self._random.randbytes(self._random.choice((0, 3, 40, 600)))
            self._make(nodes, path, value)
            self._changed(path)
            self._send(XS_WRITE, raw + b"\0" + value, b"OK\0")
        elif choice < 0.7:
            found = nodes.get(path)
            self._send(XS_READ, raw + b"\0", found, missing=found is None)
        elif choice < 0.85:
            prefix = path + "/"
            names = [p[len(prefix) :] for p in nodes if p.startswith(prefix)]
            children = sorted(n for n in names if "/" not in n)
            answer = "".join(n + "\0" for n in children).encode()
            self._send(XS_DIRECTORY, raw + b"\0", answer, missing=path not in nodes)
        elif choice < 0.93:
            if path not in nodes:
                self._make(nodes, path, b"")
                self._changed(path)
            self._send(XS_MKDIR, raw + b"\0", b"OK\0")
        else:
            self._remove(nodes, path)

    def _remove(self, nodes: dict[str, bytes], path: str) -> None:
        parent = path.rsplit("/", 1)[0]
        raw = path.encode() + b"\0"
        if path not in nodes:
            self._send(XS_RM, raw, b"OK\0", missing=parent not in nodes)
            return
        for gone in [p for p in nodes if p == path or p.startswith(path + "/")]:
            del nodes[gone]
        self._changed(path)
        self._send(XS_RM, raw, b"OK\0")

    def _make(self, nodes: dict[str, bytes], path: str, value: bytes) -> None:
        parts = path.split("/")
        for depth in range(3, len(parts)):
            nodes.setdefault("/".join(parts[:depth]), b"")
        nodes[path] = value

    def _changed(self, path: str) -> None:
        if self._shadow is None:
            self._due.append([path])
        elif path not in self._log:
            self._log.append(path)

    def _send(self, kind: int, payload: bytes, answer: bytes | None, missing: bool = False) -> None:
        self._request_id += 1
        self.requests += 1
        head = XSD_SOCKMSG.pack(kind, self._request_id, self._transaction, len(payload))
        self.socket.to_server += head + payload
        self._expected = (XS_ERROR, b"ENOENT\0") if missing else (kind, answer)

    # -- what arrives ----------------------------------------------------------------------------

    def listen(self) -> None:
        """Checks every whole message that has arrived. Mismatch for a wrong one."""
        if self.socket.server_closed:
            raise Mismatch(f"{self.home}: the server closed the connection")
        data = self.socket.to_client
        while len(data) >= XSD_SOCKMSG.size:
            kind, request_id, _, length = XSD_SOCKMSG.unpack(data)
            if len(data) < XSD_SOCKMSG.size + length:
                return
            payload = bytes(data[XSD_SOCKMSG.size : XSD_SOCKMSG.size + length])
            del data[: XSD_SOCKMSG.size + length]
            if kind == XS_WATCH_EVENT:
                self._event(payload)
            else:
                self._answer(kind, request_id, payload)

    def _event(self, payload: bytes) -> None:
        path, token, _ = payload.decode().split("\0")
        if not self._due or path not in self._due[0] or token != self.token:
            raise Mismatch(f"{self.home}: event {path} {token}, due is {self._due[:3]}")
        self._due[0].remove(path)
        if not self._due[0]:
            del self._due[0]
        self.events += 1

    def _answer(self, kind: int, request_id: int, payload: bytes) -> None:
        expected, self._expected = self._expected, None
        if expected is None or request_id != self._request_id:
            raise Mismatch(f"{self.home}: answer {kind} {payload!r} to no request")
        if kind == XS_DIRECTORY:
            payload = b"".join(name + b"\0" for name in sorted(payload.split(b"\0")[:-1]))
        if kind == XS_TRANSACTION_START and expected[0] == kind:
            self._transaction = int(payload[:-1])
            self._shadow = dict(self.nodes)
            self._log = []
            self._starting = False
        elif (kind, payload) != expected:
            raise Mismatch(f"{self.home}: answer {kind} {payload!r}, expected {expected!r}")
