"""Sockets and serve loop of the simulated world: bytes move when the seed says so, and how many.

A `SimSocket` is the pair of buffers that a kernel gives a Unix socket; it outlives kernels, as the
descriptor does. `SimLoop` stands where `stubdom/serve.py` stands: it moves bytes between sockets
and server core, in pieces of random size, one step at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from xenlive.stubdom.clients import ClientLoop
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.server import XenstoreServer


class SimSocket:
    """Bytes on their way to the server and to the client."""

    def __init__(self) -> None:
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.server_closed = False


class SimLoop(ClientLoop):
    """The loop of one kernel over sockets that are not its own."""

    def __init__(
        self,
        server: XenstoreServer,
        sockets: dict[int, SimSocket],
        random: Random,
        clock: Callable[[], float],
    ) -> None:
        self._server = server
        self._sockets = sockets
        self._random = random
        self._clock = clock
        self._clients: dict[int, Connection] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self.frozen = False

    # -- what a kernel and its session call ------------------------------------------------------

    def adopt(self, conn: Connection, fd: int) -> None:
        """Serves a connection on a socket that is there, with what input it brings."""
        self._clients[fd] = conn
        if conn.unparsed:
            self._server.receive(conn, b"")

    def connections(self) -> list[tuple[Connection, int]]:
        """Each client's connection and its descriptor."""
        return [(conn, fd) for fd, conn in self._clients.items()]

    def fd_of(self, connection: Connection) -> int:
        """A client's descriptor."""
        for fd, conn in self._clients.items():
            if conn is connection:
                return fd
        raise KeyError(connection)

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """There are no other descriptors here."""
        raise NotImplementedError

    unwatch_fd = NotImplemented

    def call_at(self, when_s: float, callback: Callable[[], None]) -> object:
        """Remembers a callback; `run_timers` calls it."""
        self._timers.append((when_s, callback))
        return None

    def freeze(self) -> None:
        """No byte moves from now on."""
        self.frozen = True

    def thaw(self) -> None:
        """Bytes move again."""
        self.frozen = False

    def release_held(self) -> None:
        """Serves what was held back."""
        for conn in self._server.release_held():
            self.flush(conn)

    def flush(self, connection: Connection) -> None:
        """Nothing is written here and now: the seed decides when."""

    # -- what the world calls --------------------------------------------------------------------

    def run_timers(self) -> None:
        """Calls what is due."""
        now_s = self._clock()
        due = [timer for timer in self._timers if timer[0] <= now_s]
        self._timers = [timer for timer in self._timers if timer[0] > now_s]
        for _, callback in sorted(due, key=lambda timer: timer[0]):
            callback()

    def step(self) -> bool:
        """Moves some bytes of one client, either way; False if there were none to move."""
        if self.frozen:
            return False
        ready = [
            (fd, conn)
            for fd, conn in self._clients.items()
            if (self._sockets[fd].to_server and not conn.held) or conn.head or conn.out
        ]
        if not ready:
            return False
        fd, conn = self._random.choice(ready)
        pending = self._sockets[fd].to_server
        if pending and not conn.held and self._random.random() < 0.6:
            size = self._random.choice((1, 5, 16, 40, 4096))
            data = bytes(pending[:size])
            del pending[:size]
            self._server.receive(conn, data)
            self._server.drain_touched()
        elif conn.head or conn.out:
            self._write(conn, self._sockets[fd])
        if conn.closing:
            self._sockets[fd].server_closed = True
            del self._clients[fd]
            self._server.disconnect(conn)
        return True

    def _write(self, conn: Connection, socket: SimSocket) -> None:
        data = conn.head or conn.take()
        size = self._random.choice((1, 7, 30, 4096))
        end = min(conn.head_sent + size, len(data))
        socket.to_client += data[conn.head_sent : end]
        conn.sent(data, end)
