"""The serve loop: sockets on one side, the Xenstore server core on the other, epoll between.

One thread, written by hand: a wake of a connection is one read (of much), one call of the core, one
write of all it has to say. Other event sources (doorbells, the hypercall channel, timers) are
callbacks in the same loop.

           ┌───────────── run ─────────────┐
    epoll ─┼─▶ client: read ▸ receive ▸ write ── short write ▶ wait for EPOLLOUT
           ├─▶ listener: accept             │
           └─▶ watch_fd, call_at: callback ─┘  freeze() ▶ only callbacks until thaw()

**Invariants.** A client's fault closes its own connection and nothing else. What a client that
does not read can cost is bounded, over live updates too: while more than `MAX_UNSENT` bytes wait
for it, its requests are not read; if the events of others make it more than `MAX_WAITING`, it is
closed (a socket client can connect again and look; one that had missed events silently could not
know). Both count all that waits, headers and what an earlier kernel left included. What waits costs
nothing more when more is added. While frozen, no byte of a client is read or written, and nothing
of a client's is lost.

Why not asyncio: it costs 40 ms of import at each live update, and half of the requests a second.
"""

from __future__ import annotations

import os
import select
import time
from _socket import socket

from xenlive.stubdom.clients import ClientLoop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.server import XenstoreServer

READ_SIZE = 8192
MAX_UNSENT = 256 * 1024
MAX_WAITING = 4 * 1024 * 1024  # more than MAX_UNSENT and the replies to all of one read
ACCEPT_RETRY_S = 0.2

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_DEAF = -1  # a connection's mask while epoll does not know it
_MAX_EVENTS = 128


class Timer:
    """One `call_at`; `cancel` makes it do nothing."""

    __slots__ = ("callback", "when_s")

    def __init__(self, when_s: float, callback: Callable[[], None]) -> None:
        self.when_s = when_s
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forgets the callback."""
        self.callback = None


class ServeLoop(ClientLoop):
    """Serves `server` until `stop`. `on_first_reply` is called once, after the first write."""

    __slots__ = (
        "_backlog",
        "_callbacks",
        "_clients",
        "_clock",
        "_deaf_when_frozen",
        "_frozen",
        "_halted",
        "_listeners",
        "_running",
        "_server",
        "_timers",
        "_watched",
        "_world",
        "on_first_reply",
    )

    def __init__(
        self,
        server: XenstoreServer,
        *,
        on_first_reply: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._clock = clock
        self.on_first_reply = on_first_reply
        self._world = select.epoll()  # everything
        self._watched = select.epoll()  # what is heard while frozen
        self._clients: dict[int, Connection] = {}
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._deaf_when_frozen: set[int] = set()
        self._listeners: dict[int, socket] = {}
        self._timers: list[Timer] = []
        self._backlog: list[Connection] = []
        self._frozen = False
        self._halted = False  # the rest of this batch of events is to be left alone
        self._running = False

    def listen(self, sock_fd: int) -> None:
        """Accepts clients from a listening Unix socket. The descriptor stays the caller's."""
        os.set_blocking(sock_fd, False)
        self._listeners[sock_fd] = socket(fileno=sock_fd)
        self._world.register(sock_fd, _IN)

    def adopt(self, conn: Connection, fd: int) -> None:
        """Serves a connection that is there already, with what input and output it brings."""
        os.set_blocking(fd, False)
        conn.fd = fd
        conn.mask = _IN
        self._clients[fd] = conn
        self._world.register(fd, _IN)
        self._backlog.append(conn)

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls `callback` whenever `fd` is readable (or has failed), frozen or not."""
        self._callbacks[fd] = callback
        self._world.register(fd, _IN)
        self._watched.register(fd, _IN)

    def watch_client_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """The same, but not while frozen: for what brings bytes of clients."""
        self._callbacks[fd] = callback
        self._deaf_when_frozen.add(fd)
        self._world.register(fd, _IN)

    def unwatch_fd(self, fd: int) -> None:
        """Ends `watch_fd`; to be called before the descriptor is closed."""
        del self._callbacks[fd]
        self._world.unregister(fd)
        if fd in self._deaf_when_frozen:
            self._deaf_when_frozen.discard(fd)
        else:
            self._watched.unregister(fd)

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Timer:
        """Calls `callback` once when the monotonic clock reaches `when_s`, frozen or not."""
        timer = Timer(when_s, callback)
        self._timers.append(timer)
        return timer

    def connections(self) -> list[tuple[Connection, int]]:
        """All clients and their descriptors."""
        return [(conn, fd) for fd, conn in self._clients.items()]

    def fd_of(self, connection: Connection) -> int:
        """A client's descriptor; KeyError if it is none of ours."""
        if self._clients.get(connection.fd) is not connection:
            raise KeyError(connection)
        return connection.fd

    def flush(self, connection: Connection) -> None:
        """Has the loop write what waits for a client, once the callback at hand is done."""
        self._backlog.append(connection)

    def freeze(self) -> None:
        """Leaves all clients alone from now on; callbacks go on."""
        self._frozen = True
        self._halted = True

    def thaw(self) -> None:
        """Ends `freeze`."""
        self._frozen = False

    def stop(self) -> None:
        """Makes `run` return once the callback or request at hand is done."""
        self._running = False
        self._halted = True

    def close(self) -> None:
        """Lets go of the loop's own descriptors; clients and listeners stay open."""
        for listener in self._listeners.values():
            listener.detach()
        self._listeners.clear()
        self._world.close()
        self._watched.close()

    def run(self) -> None:
        """Serves until `stop`."""
        self._running = True
        while self._running:
            self._halted = False
            if self._timers:
                self._run_timers()
            if self._frozen:
                for fd, _ in self._watched.poll(self._patience_s()):
                    self._call(fd)
                    if self._halted:
                        break
                continue
            if self._backlog:
                self._work_off_backlog()
            if self._server.touched:
                self._flush_touched()
            if not self._halted:
                self._serve_batch()

    def _serve_batch(self) -> None:
        server = self._server
        clients = self._clients
        receive = server.receive
        read = os.read
        write = os.write
        hook = self.on_first_reply
        patience = self._patience_s() if self._timers else -1
        for fd, mask in self._world.poll(patience, _MAX_EVENTS):
            if self._halted:
                break
            conn = clients.get(fd)
            if conn is None:
                self._call(fd)
            elif mask != _IN and not self._is_readable(conn, mask):
                pass
            else:
                try:
                    data = read(fd, READ_SIZE)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                if not data:
                    self._hang_up(conn)
                    continue
                if receive(conn, data):
                    self._attend(conn)
                if conn.out and conn.fd >= 0:
                    if conn.head:
                        self._watch_output(conn)
                        continue
                    out = conn.out
                    data = conn.take() if conn.noted or len(out) != 1 else out.pop()
                    try:
                        sent = write(fd, data)
                    except BlockingIOError:
                        sent = 0
                    except OSError:
                        self._hang_up(conn)
                        continue
                    if sent != len(data):
                        conn.sent(data, sent)
                        self._watch_output(conn)
                    if hook is not None:
                        self._tell_first_reply()
                        hook = None
        if server.touched and not self._frozen:
            self._flush_touched()

    def _call(self, fd: int) -> None:
        callback = self._callbacks.get(fd)
        if callback is not None:
            callback()
        elif fd in self._listeners:
            self._accept(fd)

    def _accept(self, fd: int) -> None:
        listener = self._listeners[fd]
        for _ in range(_MAX_EVENTS):
            try:
                client, _ = listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError:
                # Out of descriptors or memory: the listener stays readable, leave it for a while.
                self._world.modify(fd, 0)
                self.call_at(self._clock() + ACCEPT_RETRY_S, lambda: self._world.modify(fd, _IN))
                return
            self.adopt(self._server.connect(), client)

    def _is_readable(self, conn: Connection, mask: int) -> bool:
        """Deals with what is not input; whether there is input to be read."""
        if mask & _OUT or (conn.head and mask & ~_IN):
            self._flush(conn)
        if conn.held and conn.fd >= 0 and mask & ~(_IN | _OUT):
            # Its client has gone, which epoll would tell again and again. What it had sent still
            # counts, but has to wait.
            self._world.unregister(conn.fd)
            conn.mask = _DEAF
        return conn.fd >= 0 and mask & ~_OUT != 0 and not conn.held and not self._choked(conn)

    def _choked(self, conn: Connection) -> bool:
        return bool(conn.head) and conn.unsent_bytes() > MAX_UNSENT

    def _watch_output(self, conn: Connection) -> None:
        """Asks epoll for what this connection can use: input, room for output, or neither."""
        if conn.fd < 0:
            return
        mask = 0 if conn.held or self._choked(conn) else _IN
        if conn.head:
            mask |= _OUT
        if mask != conn.mask:
            if conn.mask == _DEAF:
                self._world.register(conn.fd, mask)
            else:
                self._world.modify(conn.fd, mask)
            conn.mask = mask

    def _flush(self, conn: Connection) -> None:
        """Writes what waits, as far as it goes, and looks after what is left."""
        data = conn.head or conn.take()
        try:
            done = conn.head_sent + os.write(conn.fd, memoryview(data)[conn.head_sent :])
        except BlockingIOError:
            done = conn.head_sent
        except OSError:
            self._hang_up(conn)
            return
        conn.sent(data, done)
        self._tell_first_reply()
        if conn.out and not conn.head:
            self._flush(conn)
        else:
            self._watch_output(conn)

    def _tell_first_reply(self) -> None:
        hook, self.on_first_reply = self.on_first_reply, None
        if hook is not None:
            hook()

    def _attend(self, conn: Connection) -> None:
        """Sees to a connection that is to be closed, or has to wait."""
        if conn.closing:
            if conn.out:
                self._flush(conn)
            if conn.fd >= 0:
                self._hang_up(conn)
        else:
            self._watch_output(conn)

    def _flush_touched(self) -> None:
        """Writes to those who got something by the requests of others."""
        for conn in self._server.drain_touched():
            if conn.link is not None:
                conn.link.pump()
            if conn.fd < 0 or not conn.out:
                continue
            if not conn.head:
                self._flush(conn)
            elif conn.unsent_bytes() > MAX_WAITING:
                self._hang_up(conn)
            else:
                self._watch_output(conn)

    def _work_off_backlog(self) -> None:
        """Serves what adopted connections brought, and those whose wait is over."""
        backlog = self._backlog
        self._backlog = []
        for conn in backlog:
            if conn.link is not None:
                conn.link.pump()
            if conn.fd < 0:
                continue
            if conn.closing or (conn.unparsed and self._server.receive(conn, b"")):
                self._attend(conn)
            if conn.fd >= 0 and (conn.head or conn.out):
                self._flush(conn)

    def release_held(self) -> None:
        """Ends the server's `hold_transactions`, and reads those connections again."""
        for conn in self._server.release_held():
            self._backlog.append(conn)
            self._watch_output(conn)

    def _hang_up(self, conn: Connection) -> None:
        fd = conn.fd
        conn.fd = -1
        del self._clients[fd]
        if conn.mask != _DEAF:
            self._world.unregister(fd)
        os.close(fd)
        conn.head = b""
        self._server.disconnect(conn)

    def _patience_s(self) -> float:
        """How long to wait for events: until the next timer, -1 for ever."""
        if self._backlog and not self._frozen:
            return 0
        if not self._timers:
            return -1
        return max(0.0, min([timer.when_s for timer in self._timers]) - self._clock())

    def _run_timers(self) -> None:
        now_s = self._clock()
        due = [timer for timer in self._timers if timer.when_s <= now_s]
        if not due:
            return
        self._timers = [timer for timer in self._timers if timer.when_s > now_s]
        due.sort(key=_when)
        for timer in due:
            if timer.callback is not None:
                timer.callback()


def _when(timer: Timer) -> float:
    return timer.when_s
