"""Three attacking clients on real sockets, and one that they must not disturb, before a real loop.

The loop is the product's own (`stubdom/serve.py`), on epoll, with smaller limits; what is counted
is how often it polls and is told of something.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from differential.daemons import split
from xenstore.goings_on import Clock
from xenstore.talk import Message

from hostile.target import expect
from hostile.xsneighbour import Neighbour
from hostile.xspromises import FIRST_FD, Journal, expect_saved, expect_sound, save, sockets_of
from xenlive.abi.xs_wire import (
    XENSTORE_PAYLOAD_MAX,
    XS_ERROR,
    XS_WATCH_EVENT,
    XSD_ERRORS,
    XSD_SOCKMSG,
)
from xenlive.stubdom import serve
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import load_state

CLIENTS = 3
#: Polls after which a loop has nothing to do, however much was sent at once.
IDLE_TURNS = 3000
_LIMITS = {"READ_SIZE": 512, "MAX_UNSENT": 16 << 10, "MAX_WAITING": 192 << 10}
# One read of requests may be answered beyond the limit, and one turn of events may come.
_UNREAD_MAX = 512 << 10
_QUEUE_MAX = 1 << 19
_BUFFER = 4608


@contextmanager
def small_limits() -> Iterator[None]:
    """The loop's limits as a short script can reach them."""
    names = vars(serve)
    before = {name: names[name] for name in _LIMITS}
    names.update(_LIMITS)
    try:
        yield
    finally:
        names.update(before)


class CountedPoll:
    """An epoll that counts what it tells."""

    def __init__(self, real: select.epoll) -> None:
        self._real = real
        self.told = 0
        self.register, self.modify, self.unregister = real.register, real.modify, real.unregister
        self.close = real.close

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        found = self._real.poll(timeout, maxevents)
        self.told += len(found)
        return found


class SteppedLoop(serve.ServeLoop):
    """The real loop, a turn at a time and never waiting."""

    __slots__ = ("_counted", "_left", "overfull")

    def __init__(self, server: XenstoreServer) -> None:
        self.overfull: set[int] = set()  # descriptors hung up on, since too much waited for them
        super().__init__(server, clock=lambda: 0.0)
        self.call_at(1.0, lambda: None)  # never due: so the loop asks how long to wait
        self._counted = CountedPoll(self._world)
        self._world = self._counted  # type: ignore[assignment]
        self._left = 0

    def turn(self) -> int:
        """Polls once and serves; returns how much there was to tell."""
        before = self._counted.told
        had_more = len(self._backlog)
        self._left = 1
        self.run()
        return self._counted.told - before + had_more

    def _hang_up(self, conn: Connection) -> None:
        if conn.unsent_bytes() > _LIMITS["MAX_WAITING"]:
            self.overfull.add(conn.fd)
        super()._hang_up(conn)

    def _patience_s(self) -> float:
        self._left -= 1
        if self._left <= 0:
            self._running = False
        return 0.0


class Client:
    """A socket's other end. What was sent is known, so what is answered can be judged."""

    def __init__(self, small: bool = False) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.ours.setblocking(False)
        if small:
            self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self.fd = -1
        self.reads = True
        self.is_open = True
        self.may_be_closed = False  # after what no message may be, or events that it did not read
        self.unsent = self.unparsed = self.received = b""
        self.asked: list[tuple[int, int, int]] = []
        self.answers: set[str] = set()

    def send(self, data: bytes) -> None:
        """Queues bytes, and sends what goes."""
        if self.is_open:
            self.unsent = (self.unsent + data)[:_QUEUE_MAX]
            self.push()

    def push(self) -> bool:
        """Sends what goes of what is queued."""
        done = 0
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            if self.is_open and self.unsent:
                done = self.ours.send(self.unsent[:65536])
        self._note(self.unsent[:done])
        self.unsent = self.unsent[done:]
        return done > 0

    def take(self, most: int = 1 << 20) -> int:
        """Reads; returns how many bytes there were."""
        total = 0
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while self.is_open and total < most:
                data = self.ours.recv(min(65536, most - total))
                if not data:
                    expect(self.may_be_closed, "nobody is hung up on without a reason")
                    self.close()
                self.received += data
                total += len(data)
                if not data:
                    break
        self._judge()
        return total

    def close(self) -> None:
        """Goes away."""
        self.is_open = False
        self.ours.close()

    def _note(self, data: bytes) -> None:
        """Which requests these bytes complete."""
        self.unparsed += data
        while len(self.unparsed) >= XSD_SOCKMSG.size and not self.may_be_closed:
            kind, req_id, tx_id, length = XSD_SOCKMSG.unpack(self.unparsed)
            if length > XENSTORE_PAYLOAD_MAX:
                self.may_be_closed = True
            elif len(self.unparsed) < XSD_SOCKMSG.size + length:
                break
            else:
                self.asked.append((kind, req_id, tx_id))
                self.unparsed = self.unparsed[XSD_SOCKMSG.size + length :]

    def _judge(self) -> None:
        """Each answer is to the oldest question, and one that can be."""
        messages, self.received = split(self.received)
        for each in messages:
            expect(len(each.payload) <= XENSTORE_PAYLOAD_MAX, "no message is too long")
            if each.kind == XS_WATCH_EVENT:
                expect((each.req_id, each.tx_id) == (0, 0), "events are nobody's answer")
                continue
            expect(bool(self.asked), "only what was asked is answered")
            kind, req_id, tx_id = self.asked.pop(0)
            expect((each.req_id, each.tx_id) == (req_id, tx_id), "answers come in order")
            expect(each.kind in (kind, XS_ERROR), f"{each.kind} is an answer to {kind}")
            word = str(kind)
            if each.kind == XS_ERROR:
                word = each.payload[:-1].decode("latin-1")
                expect(word in XSD_ERRORS and each.payload[-1:] == b"\0", f"{word} is an error")
            self.answers.add(word)


class SocketLine:
    """The neighbour's."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.client.ours.sendall(data)

    def take(self) -> list[Message]:
        try:
            data = self.client.ours.recv(1 << 16)
            expect(bool(data), "a neighbour is not hung up on")
        except BlockingIOError:
            data = b""
        found, self._rest = split(self._rest + data)
        return found


class SocketWorld:
    """One server with its clients, to be closed."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.server = XenstoreServer(now=self.clock)
        self.journal = Journal(self.server)
        self.loop = SteppedLoop(self.server)
        self.clients = [Client(small=number == 1) for number in range(CLIENTS)]
        self.gone: list[Client] = []
        self.beside = Client()
        self.words: set[str] = set()
        for client in (self.beside, *self.clients):
            self._serve(client)
        self.neighbour = Neighbour(
            SocketLine(self.beside), b"/beside-0f-all", self.loop.turn, self.journal.changes
        )
        self.neighbour.begin()

    def _serve(self, client: Client) -> None:
        client.fd = client.theirs.detach()
        self.loop.adopt(self.server.connect(), client.fd)

    def close(self) -> None:
        """Gives all descriptors back."""
        for client in (self.beside, *self.clients, *self.gone):
            client.ours.close()
            client.theirs.close()
        for _, fd in self.loop.connections():
            socket.socket(fileno=fd).close()
        self.loop.close()

    def reopen(self, number: int, small: bool) -> None:
        """A client goes, as it is, and another one comes."""
        self.gone.append(self.clients[number])
        self.clients[number].close()
        self.clients[number] = Client(small)
        self._serve(self.clients[number])

    def settle(self) -> None:
        """Turns until the loop is told of nothing any more, and has all that goes."""
        for _ in range(IDLE_TURNS):
            told = self.loop.turn()
            self._note_overfull()
            for client in self.clients:
                told += client.push()
                told += bool(client.reads and client.take())
            self._expect_bounds()
            if not told:
                return
        expect(False, f"a loop has nothing to do after {IDLE_TURNS} turns")

    def turns(self, count: int) -> None:
        """Some turns, while nobody reads or sends more."""
        for _ in range(count):
            self.loop.turn()
            self._note_overfull()
        self._expect_bounds()

    def _note_overfull(self) -> None:
        for client in self.clients:
            client.may_be_closed |= client.fd in self.loop.overfull
        self.loop.overfull.clear()

    def _expect_bounds(self) -> None:
        for conn in self.server.connections:
            waiting = conn.unsent_bytes()
            expect(waiting <= _UNREAD_MAX, f"what waits unread is bounded, not {waiting} bytes")
            expect(len(conn.unparsed) <= 4112 + 512, "so is what waits to be served")

    def hold(self) -> None:
        """An update is waited for: who has no transaction can't open one."""
        self.server.hold_transactions = True

    def release(self) -> None:
        """It is not waited for any more."""
        self.loop.release_held()

    def update(self) -> None:
        """The next kernel takes over, from what this one saves."""
        self.release()
        self.settle()
        self._check()
        self.server.drop_transactions()
        stream, at_s = save(self.server), self.clock()
        fds = [self.loop.fd_of(conn) for conn in sockets_of(self.server)]
        self.loop.close()
        self.server = XenstoreServer(now=lambda: at_s)
        loaded = load_state(self.server, stream)
        self.server._now = self.server.store.accounts.now = self.clock
        self.journal = Journal(self.server, stream, at_s)
        self.loop = SteppedLoop(self.server)
        for conn, fd in loaded.connections:
            self.loop.adopt(conn, fds[fd - FIRST_FD])
        self.neighbour.turn = self.loop.turn
        self.neighbour.update_over(self.journal.changes)

    def round(self) -> None:
        """The neighbour asks for all it has."""
        self.release()
        self.neighbour.round()

    def finish(self) -> str:
        """At the end: all promises, and a word for it."""
        self.release()
        for client in self.clients:
            client.reads = True
        self.settle()
        for client in self.clients:
            if client.is_open and not client.may_be_closed:
                expect(not client.asked, f"all is answered, but not {client.asked[:1]}")
        self.round()
        self.round()
        self._check()
        expect_saved(self.server, self.clock())
        n_open = sum(client.is_open for client in self.clients)
        words = set().union(*[client.answers for client in (*self.clients, *self.gone)])
        return f"{n_open} clients left: {' '.join(sorted(words)[:14])}"

    def _check(self) -> None:
        expect_sound(self.server)
        self.journal.check()
