"""Xenstore for the domains of a world: our server core behind their rings.

    guest ──req ring──▶ StoreRing ──bytes──▶ XenstoreServer ──▶ StoreRing of whoever watches
          ◀──rsp ring──            ◀──bytes──       ▲
                                                    └── StoreClient: the toolstack, back ends

Specification: `docs/misc/xenstore-ring.txt`, `public/io/xs_wire.h`; what a broken ring gets is what
`tools/xenstore/xenstored_core.c` and `xenstored_domain.c` of Xen 4.17 do (`handle_input`,
`ignore_connection`, `do_introduce`). Which nodes there are is in `toolstack.py`.

**Invariants.** All of the page is the guest's to write, this end's indices too: each is read once
and checked. After a pair that can't be, or a message that is too long, the guest's connection is
ignored and the `error` field says why; no other connection notices. A guest that does not read its
answers is not served until it does, so that it can't fill memory. All is done when the call that
caused it returns: the same run is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi import xs_ring
from xenlive.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from xenlive.abi.hypercalls.hvm import HVM_PARAM_STORE_EVTCHN
from xenlive.abi.xs_wire import (
    XS_ERROR,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_UNWATCH,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
    XSD_SOCKMSG,
)
from xenlive.errors import PeerError, XenstoreError
from xenlive.ring.area import RingArea
from xenlive.ring.stream import Consumer, Producer
from xenlive.xenstore.server import XenstoreServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.interface import Clock
    from xenlive.xenstore.connection import Connection

# A guest with more than this unread is not served, as one with 20 requests outstanding is not.
_UNSENT_MAX = 20 * 4112
# And one whose watch events pile up beyond this is ignored: it will not come back.
_WAITING_MAX = 4 << 20


class StoreService:
    """The store of a world, and all who are connected to it."""

    def __init__(self, host: Domain, clock: Clock) -> None:
        self._host = host
        self.server = XenstoreServer(now=lambda: clock.now_ns / 1e9)
        self._rings: dict[Connection, StoreRing] = {}
        self._clients: dict[Connection, StoreClient] = {}
        self._is_settling = False

    def client(self) -> StoreClient:
        """A privileged connection for a part of this program."""
        client = StoreClient(self)
        self._clients[client.connection] = client
        return client

    def clients(self) -> list[StoreClient]:
        """The privileged connections, in the order in which they were made."""
        return list(self._clients.values())

    def know(self, domid: int) -> None:
        """There is such a domain now: nodes may be given to it, before it is introduced."""
        self.server.store.add_domain(domid)

    def introduce(self, domain: Domain) -> StoreRing:
        """Connects a domain by its ring (INTRODUCE), and tells who watches @introduceDomain."""
        ring = StoreRing(self, self._host, domain)
        self._rings[ring.connection] = ring
        self.server.introduced.add(domain.domid)
        self._fire(b"@introduceDomain")
        return ring

    def release(self, ring: StoreRing) -> None:
        """The domain is gone (RELEASE): its watches too, and @releaseDomain says so."""
        self._rings.pop(ring.connection, None)
        ring.is_ignored = True
        self.server.disconnect(ring.connection)
        self.server.introduced.discard(ring.domid)
        self._fire(b"@releaseDomain")

    def domain_stopped(self) -> None:
        """A domain shut down: who watches @releaseDomain has to look which (`domain_cleanup`)."""
        self._fire(b"@releaseDomain")

    def _fire(self, name: bytes) -> None:
        self.server.watches.fire(self.server.store, name, None, exact=True)
        self.settle()

    def settle(self) -> None:
        """Brings to everybody what came by the requests of others."""
        if self._is_settling:
            return
        self._is_settling = True
        try:
            while touched := self.server.drain_touched():
                for connection in touched:
                    if connection in self._rings:
                        self._rings[connection].pump()
                    elif connection in self._clients:
                        self._clients[connection].dispatch()
        finally:
            self._is_settling = False


class StoreRing:
    """The connection of one guest."""

    def __init__(self, service: StoreService, host: Domain, domain: Domain) -> None:
        self._service = service
        self._host = host
        self.domid = domain.domid
        self.connection = service.server.connect(domain.domid)
        self.is_ignored = False
        page = domain.grants_for(host.domid).map(GNTTAB_RESERVED_XENSTORE)
        size = xs_ring.XENSTORE_RING_SIZE
        self._words = page.cast("I")
        self._requests = RingArea([page[:size]])
        self._answers = RingArea([page[xs_ring.RSP_AT : xs_ring.RSP_AT + size]])
        for word in (xs_ring.REQ_CONS, xs_ring.REQ_PROD, xs_ring.RSP_CONS, xs_ring.RSP_PROD):
            self._words[word] = 0
        remote = domain.params.peek(HVM_PARAM_STORE_EVTCHN)
        self._port = host.events.bind_interdomain(domain.events, remote)
        host.host_events.handle(self._port, self._on_event)

    def _on_event(self) -> None:
        self.pump()
        self._service.settle()

    def save(self) -> tuple[bool, int]:
        """Whether the guest is ignored, and this end's port; the rest is the server's."""
        return self.is_ignored, self._port

    def restore(self, state: tuple[bool, int]) -> None:
        """Goes back to what `save` gave; ring and channel are the domains' to put back."""
        self.is_ignored, self._port = state
        self._host.host_events.put_back(self._port, self._on_event)

    def pump(self) -> None:
        """Serves what is in the request ring, and fills the other; tells the guest if anything."""
        if self.is_ignored:
            return
        moved = False
        try:
            while True:
                wrote = self._write_answers()
                read = self._read_requests()
                moved = moved or wrote or read
                if not wrote and not read:
                    break
        except PeerError:
            self._ignore(xs_ring.XENSTORE_ERROR_RINGIDX)
        if self.connection.closing and not self.is_ignored:
            self._ignore(xs_ring.XENSTORE_ERROR_PROTO)
        elif self.connection.unsent_bytes() > _WAITING_MAX:
            self._ignore(xs_ring.XENSTORE_ERROR_COMM)
        if moved:
            self._host.events.send(self._port)

    def _read_requests(self) -> bool:
        if self.connection.unsent_bytes() > _UNSENT_MAX or self.connection.closing:
            return False
        words = self._words
        start: int = words[xs_ring.REQ_CONS]
        ring = Consumer(self._requests, words, xs_ring.REQ_PROD, xs_ring.REQ_CONS, start)
        data = ring.read()
        if data:
            self._service.server.receive(self.connection, data)
        return bool(data)

    def _write_answers(self) -> bool:
        connection = self.connection
        data = connection.head or connection.take()
        if not data:
            return False
        words = self._words
        start: int = words[xs_ring.RSP_PROD]
        ring = Producer(self._answers, words, xs_ring.RSP_PROD, xs_ring.RSP_CONS, start)
        count = ring.write(memoryview(data)[connection.head_sent :])
        connection.sent(data, connection.head_sent + count)
        return bool(count)

    def _ignore(self, error: int) -> None:
        """As the C daemon's `ignore_connection`: its state is dropped, the guest is told why."""
        self._words[xs_ring.ERROR] = error
        self.is_ignored = True
        server, connection = self._service.server, self.connection
        server.watches.remove_all(connection)
        server.end_transactions(connection)
        connection.head = connection.unparsed = b""
        connection.head_sent = 0
        connection.take()


class StoreClient:
    """A part of this program as a client: requests are answered at once.

    XenstoreError, with the name that a guest would get, for what is refused.
    """

    def __init__(self, service: StoreService) -> None:
        self._service = service
        self.connection = service.server.connect()
        self._handlers: dict[bytes, Callable[[str], None]] = {}
        self._events: list[tuple[bytes, bytes]] = []

    def read(self, path: str) -> bytes:
        """A node's value."""
        return self._request(XS_READ, path.encode() + b"\0")

    def exists(self, path: str) -> bool:
        """Whether there is such a node."""
        try:
            self.read(path)
        except XenstoreError:
            return False
        return True

    def write(self, path: str, value: str | bytes) -> None:
        """Sets a node's value, and makes it if it is missing."""
        data = value.encode() if isinstance(value, str) else value
        self._request(XS_WRITE, path.encode() + b"\0" + data)

    def mkdir(self, path: str) -> None:
        """Makes a node, if it is missing."""
        self._request(XS_MKDIR, path.encode() + b"\0")

    def remove(self, path: str) -> None:
        """Removes a node and all below it."""
        self._request(XS_RM, path.encode() + b"\0")

    def set_perms(self, path: str, *perms: str) -> None:
        """Sets who may do what: `n0`, `r5`."""
        self._request(XS_SET_PERMS, b"".join(word.encode() + b"\0" for word in (path, *perms)))

    def watch(self, path: str, handler: Callable[[str], None]) -> None:
        """Calls `handler` with the path of each change at or below `path`, and once now."""
        token = b"%d" % len(self._handlers)
        self._handlers[token] = handler
        self._request(XS_WATCH, path.encode() + b"\0" + token + b"\0")

    def unwatch(self, path: str, handler: Callable[[str], None]) -> None:
        """Ends what `watch` began. KeyError if it did not."""
        found = [token for token, known in self._handlers.items() if known == handler]
        if not found:
            raise KeyError(path)
        self._request(XS_UNWATCH, path.encode() + b"\0" + found[0] + b"\0")
        self._handlers[found[0]] = _nobody

    def _request(self, kind: int, payload: bytes) -> bytes:
        self._service.server.receive(
            self.connection, XSD_SOCKMSG.pack(kind, 0, 0, len(payload)) + payload
        )
        answers = self._take()
        self._service.server.watches.touch(self.connection)
        self._service.settle()
        kind, payload = answers[-1]
        if kind == XS_ERROR:
            raise XenstoreError(payload.rstrip(b"\0").decode())
        return payload

    def tokens(self) -> set[bytes]:
        """Of which watches somebody hears."""
        return set(self._handlers)

    def dispatch(self) -> None:
        """Hands events that came to whoever set their watch."""
        self._take()
        while self._events:
            path, token = self._events.pop(0)
            self._handlers[token](path.decode("utf-8", "surrogateescape"))

    def _take(self) -> list[tuple[int, bytes]]:
        """Takes the output: replies are returned, events kept for `dispatch`."""
        data, at = self.connection.take(), 0
        replies = []
        while at < len(data):
            kind, _, _, length = XSD_SOCKMSG.unpack(data, at)
            at += XSD_SOCKMSG.size
            payload = data[at : at + length]
            at += length
            if kind == XS_WATCH_EVENT:
                path, token, _ = payload.split(b"\0")
                self._events.append((path, token))
            else:
                replies.append((kind, payload))
        return replies


def _nobody(_: str) -> None:
    """What hears the last events of a watch that is no more."""
