"""Xenstore for the domains of a world: our server core behind their rings.

    guest ──req ring──▶ StoreRing ──bytes──▶ XenstoreServer ──▶ StoreRing of whoever watches
          ◀──rsp ring──            ◀──bytes──       ▲
                                                    └── CoreClient: the toolstack, back ends

Specification: `docs/misc/xenstore-ring.txt`; what is served and what is ignored on a ring is
`xenstore/ringpage.py`'s, which nodes there are is in `toolstack.py`.

**Invariants.** What a guest does to its page hurts no other connection. All is done when the call
that caused it returns: the same run is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from xenlive.abi.hypercalls.hvm import HVM_PARAM_STORE_EVTCHN
from xenlive.abi.xs_wire import XS_ERROR, XS_WATCH_EVENT, XSD_SOCKMSG
from xenlive.errors import XenstoreError
from xenlive.machine.emulated.backends.store import GuestRing, Store, StoreClient
from xenlive.xenstore.ringpage import RingPage
from xenlive.xenstore.server import XenstoreServer

if TYPE_CHECKING:
    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.interface import Clock
    from xenlive.xenstore.connection import Connection


class StoreService(Store):
    """The store of a world, and all who are connected to it."""

    def __init__(self, host: Domain, clock: Clock) -> None:
        self._host = host
        self._server = XenstoreServer(now=lambda: clock.now_ns / 1e9)
        self._rings: dict[Connection, StoreRing] = {}
        self._clients: dict[Connection, CoreClient] = {}
        self._is_settling = False

    @property
    def server(self) -> XenstoreServer:
        """The server's core."""
        return self._server

    def client(self) -> CoreClient:
        """A privileged connection for a part of this program."""
        client = CoreClient(self)
        self._clients[client.connection] = client
        return client

    def clients(self) -> list[CoreClient]:
        """The privileged connections, in the order in which they were made."""
        return list(self._clients.values())

    def know(self, domid: int) -> None:
        """There is such a domain now: nodes may be given to it, before it is introduced."""
        self.server.store.add_domain(domid)

    def introduce(self, domain: Domain) -> StoreRing:
        """Connects a domain by its ring (INTRODUCE), and tells who watches @introduceDomain."""
        ring = StoreRing(self, self._host, domain)
        self._rings[ring.connection] = ring
        self.server.introduce(ring.connection)
        self._fire(b"@introduceDomain", domain.domid)
        return ring

    def release(self, ring: StoreRing) -> None:
        """The domain is gone (RELEASE): its watches too, and @releaseDomain says so."""
        self._rings.pop(ring.connection, None)
        ring.end()
        self.server.disconnect(ring.connection)
        self.server.release(ring.domid)
        self._fire(b"@releaseDomain", ring.domid)

    def domain_stopped(self, ring: StoreRing) -> None:
        """A domain shut down: who watches @releaseDomain has to look which (`domain_cleanup`)."""
        self._fire(b"@releaseDomain", ring.domid)

    def _fire(self, name: bytes, domid: int) -> None:
        self.server.watches.fire_special(self.server.store, name, None)
        self.server.watches.fire_special(self.server.store, name, domid)
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


class StoreRing(GuestRing):
    """The connection of one guest."""

    def __init__(self, service: StoreService, host: Domain, domain: Domain) -> None:
        self._service = service
        self._host = host
        self.domid = domain.domid
        self.connection = service.server.connect(domain.domid)
        self._is_gone = False
        page = domain.grants_for(host.domid).map(GNTTAB_RESERVED_XENSTORE)
        self._page = RingPage(service.server, self.connection, page)
        self._page.start()
        self._page.reset()
        remote = domain.params.peek(HVM_PARAM_STORE_EVTCHN)
        self._port = host.events.bind_interdomain(domain.events, remote)
        host.host_events.handle(self._port, self._on_event)

    def _on_event(self) -> None:
        self.pump()
        self._service.settle()

    @property
    def is_ignored(self) -> bool:
        """Whether nothing is moved any more: the guest broke the rules, or is gone."""
        return self._is_gone or self._page.is_ignored

    def end(self) -> None:
        """The guest is gone."""
        self._is_gone = True

    def save(self) -> tuple[bool, int]:
        """Whether the guest is ignored, and this end's port; the rest is the server's."""
        return self.is_ignored, self._port

    def restore(self, state: tuple[bool, int]) -> None:
        """Goes back to what `save` gave; ring and channel are the domains' to put back."""
        self._is_gone, self._port = state
        self._host.host_events.put_back(self._port, self._on_event)

    def pump(self) -> None:
        """Serves what is in the request ring, and fills the other; tells the guest if anything."""
        if self._is_gone:
            return
        moved = self._page.pump()
        while self._page.has_work():
            moved = self._page.pump() or moved
        if moved:
            self._host.events.send(self._port)


class CoreClient(StoreClient):
    """A client of the core in this process."""

    def __init__(self, service: StoreService) -> None:
        super().__init__()
        self._service = service
        self.connection = service.server.connect()
        self._events: list[tuple[bytes, bytes]] = []

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

    def dispatch(self) -> None:
        """Hands events that came to whoever set their watch."""
        self._take()
        while self._events:
            path, token = self._events.pop(0)
            self._hear(token, path)

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
