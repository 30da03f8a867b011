"""The machine around an attacked Xenstore server: domains with a page and ports, and bells in turn.

    domain rings ──▶ bells (first come, first served) ──▶ turn: one callback of the server's
    domain hears ◀── notify ◀───────────────────────────────┘

It has no clock: effort is counted in turns. Its pages are written to by the other side at the worst
moments, if that is asked for (`Middle`).
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hostile.target import expect
from xenlive.errors import HypercallError
from xenlive.machine.guest import GuestMachine
from xenlive.memory.address import PAGE_SIZE
from xenlive.ring.stream import Consumer, Producer
from xenlive.stubdom.clients import ClientLoop
from xenlive.xenstore import ringpage
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.server import XenstoreServer

VIRQ_PORT = 2
RING_BYTES = 1024
#: The ports that a domain has for its store, most use the first.
GUEST_PORTS = (1, 2)


class Domain:
    """One that exists: `page` is what it has granted, `bound` ours for its ports."""

    def __init__(self, domid: int, unique_id: int) -> None:
        self.domid = domid
        self.unique_id = unique_id
        self.is_shut_down = False
        self.grants = True
        self.page = memoryview(bytearray(PAGE_SIZE))
        self.bound: dict[int, int] = {}


class Machine(GuestMachine):
    """Domain 0's view of `domains`; `heard` has those that the server has rung since."""

    __slots__ = ("_next_port", "_next_unique_id", "bells", "domains", "heard", "lines", "now")

    def __init__(self, now: Callable[[], float]) -> None:
        self.domid = 0
        self.now = now
        self.domains: dict[int, Domain] = {}
        self.bells: deque[int] = deque()
        self.heard: list[int] = []
        self.lines: dict[int, tuple[Domain, int]] = {}  # our port: whose, and its port
        self._next_port = VIRQ_PORT + 1
        self._next_unique_id = 1

    def create(self, domid: int) -> Domain:
        """A new domain, with a page of zeroes."""
        made = self.domains[domid] = Domain(domid, self._next_unique_id)
        self._next_unique_id += 1
        return made

    def destroy(self, domid: int) -> None:
        """A domain ends; the hypervisor says that one has."""
        del self.domains[domid]
        self.ring(VIRQ_PORT)

    def ring(self, port: int) -> None:
        """Our end of a port rings."""
        if port not in self.bells:
            self.bells.append(port)

    def rung_by(self, domid: int) -> None:
        """A domain rings all ports that it has."""
        domain = self.domains.get(domid)
        for port in list(domain.bound.values()) if domain is not None else ():
            self.ring(port)

    # -- what the server asks ----------------------------------------------------------------------

    def now_s(self) -> float:
        return self.now()

    def console(self, text: str) -> None:
        if not text.isprintable():
            raise ValueError("a line of the console")

    def domain_state(self, domid: int) -> tuple[int, bool] | None:
        domain = self.domains.get(domid)
        return None if domain is None else (domain.unique_id, domain.is_shut_down)

    def map_foreign(self, domid: int, ref: int) -> memoryview:
        domain = self.domains.get(domid)
        if domain is None or not domain.grants:
            raise HypercallError("gnttab_map", errno.EINVAL, f"domain {domid}")
        return domain.page

    def bind_interdomain(self, domid: int, port: int) -> int:
        domain = self.domains.get(domid)
        if domain is None or port not in GUEST_PORTS or port in domain.bound:
            raise HypercallError("evtchn_bind_interdomain", errno.EINVAL, f"port {port}")
        own = self._next_port
        self._next_port += 1
        domain.bound[port] = own
        self.lines[own] = domain, port
        self.ring(own)  # as Xen does
        return own

    def bind_virq(self, virq: int) -> int:
        return VIRQ_PORT

    def bind(self, port: int) -> None:
        if port not in self.lines:
            raise HypercallError("evtchn_bind", errno.EINVAL, f"port {port}")

    def bell(self, port: int) -> int:
        return port

    def take_ring(self, port: int) -> bool:
        return True

    def ring_again(self, port: int) -> None:
        self.ring(port)

    def notify(self, port: int) -> None:
        self.heard.append(self.lines[port][0].domid)

    def close(self, port: int) -> None:
        domain, theirs = self.lines.pop(port)
        del domain.bound[theirs]


class Turns(ClientLoop):
    """The server's loop: one callback at a time."""

    def __init__(self, machine: Machine, server: XenstoreServer) -> None:
        self._machine = machine
        self._server = server
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timers: list[Callable[[], None]] = []
        self._backlog: list[Connection] = []

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        self._callbacks[fd] = callback

    def watch_client_fd(self, fd: int, callback: Callable[[], None]) -> None:
        self._callbacks[fd] = callback

    def unwatch_fd(self, fd: int) -> None:
        del self._callbacks[fd]

    def call_at(self, when_s: float, callback: Callable[[], None]) -> None:
        self._timers.append(callback)

    def flush(self, connection: Connection) -> None:
        self._backlog.append(connection)

    def turn(self) -> bool:
        """One thing, and what it had to say to others; False if there was nothing to do."""
        bells = self._machine.bells
        if self._timers:
            self._timers.pop()()
        elif self._backlog:
            _pump(self._backlog.pop())
        elif bells:
            self._callbacks.get(bells.popleft(), _nothing)()
        elif not self._server.touched:
            return False
        for conn in self._server.drain_touched():
            _pump(conn)
        return True


def _pump(conn: Connection) -> None:
    if conn.link is not None:
        conn.link.pump()


def _nothing() -> None:
    """A bell that nobody listens to."""


class Middle:
    """What strikes in the middle: after so many more looks at an index, or receptions."""

    def __init__(self) -> None:
        self._armed: list[tuple[int, Callable[[], None]]] = []

    def arm(self, looks: int, strike: Callable[[], None]) -> None:
        """Has `strike` called once."""
        self._armed.append((looks, strike))

    def look(self) -> None:
        """Somebody has just looked at an index, or is about to act on what stood there."""
        if not self._armed:
            return
        due = [strike for looks, strike in self._armed if looks <= 0]
        self._armed = [(looks - 1, strike) for looks, strike in self._armed if looks > 0]
        for strike in due:
            strike()

    @contextmanager
    def in_rings(self) -> Iterator[None]:
        """All rings of Xenstore are looked at through this."""
        look = self.look

        class StruckConsumer(Consumer):
            def available(self) -> int:
                count = super().available()
                look()
                return count

        class StruckProducer(Producer):
            def queued(self) -> int:
                count = super().queued()
                look()
                return count

        names = vars(ringpage)
        names["Consumer"], names["Producer"] = StruckConsumer, StruckProducer
        try:
            yield
        finally:
            names["Consumer"], names["Producer"] = Consumer, Producer


class StruckServer(XenstoreServer):
    """A server whose guests strike before and after it is given bytes."""

    __slots__ = ("middle",)

    def __init__(self, middle: Middle, now: Callable[[], float]) -> None:
        self.middle = middle
        super().__init__(now=now)

    def receive(self, conn: Connection, data: bytes) -> bool:
        at_once = len(data) <= RING_BYTES or conn.ring is None
        expect(at_once, "no more is taken out of a ring than fits into it")
        self.middle.look()
        result = super().receive(conn, data)
        self.middle.look()
        return result
