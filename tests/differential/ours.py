"""Our server as a peer of a comparison: the core, with ring pages and a machine of bytearrays."""

from __future__ import annotations

from differential.daemons import PAGE_SIZE, split
from differential.ringguest import RingGuest
from xenstore.talk import Message

from xenlive.errors import XenstoreError
from xenlive.xenstore import domains
from xenlive.xenstore.connection import Connection, Ring
from xenlive.xenstore.domains import DomainState, Link, Links
from xenlive.xenstore.ringpage import RingPage
from xenlive.xenstore.server import XenstoreServer


class PageLink(Link):
    """The server's end of one page."""

    def __init__(self, server: XenstoreServer, connection: Connection, page: memoryview) -> None:
        self.page = RingPage(server, connection, page)
        self.page.start()

    def pump(self) -> None:
        self.page.pump()
        while self.page.has_work() and self.page.pump():
            pass

    def rebind(self, port: int) -> None:
        """Any port will do."""

    def reset(self) -> None:
        self.page.reset()
        self.page.end_reconnect()

    def close(self) -> None:
        """Nobody maps anything."""


class PageLinks(Links):
    """Domains that exist while they are in `states`."""

    def __init__(self, server: XenstoreServer) -> None:
        self.server = server
        self.states: dict[int, DomainState] = {}
        self.pages: dict[int, memoryview] = {}
        server.links = self

    def state(self, domid: int) -> DomainState | None:
        return self.states.get(domid)

    def connect(self, domid: int, port: int) -> Connection:
        if domid not in self.states:
            raise XenstoreError("EINVAL")
        connection = self.server.connect(domid)
        connection.ring = Ring(port, self.states[domid].unique_id)
        connection.link = PageLink(self.server, connection, self.pages[domid])
        return connection


class CoreSocket:
    """A client that the core knows as a socket."""

    def __init__(self, peer: OurPeer) -> None:
        self._peer = peer
        self.conn = peer.server.connect()

    def send(self, data: bytes) -> None:
        self._peer.server.receive(self.conn, data)
        self._peer.settle()

    def until(self, req_id: int) -> list[Message]:
        messages, rest = split(self.conn.take())
        assert not rest
        assert any(message.req_id == req_id for message in messages), "no answer"
        return messages

    def close(self) -> None:
        self._peer.server.disconnect(self.conn)


class CoreRing:
    """A guest on a page."""

    def __init__(self, peer: OurPeer, domid: int, page: memoryview) -> None:
        self._peer = peer
        self._domid = domid
        self.guest = RingGuest(page)

    def send(self, data: bytes) -> None:
        self.guest.unsent += data
        self._move()

    def until(self, req_id: int) -> list[Message]:
        self._move()
        messages, self.guest.received = split(self.guest.received)
        assert any(message.req_id == req_id for message in messages), "no answer by ring"
        return messages

    def forget(self) -> None:
        self.guest.forget()

    def _move(self) -> None:
        server = self._peer.server
        while True:
            moved = self.guest.move()
            connection = server.rings.get(self._domid)
            if connection is not None and connection.link is not None:
                connection.link.pump()
                self._peer.settle()
            if not moved and not self.guest.move():
                return


class OurPeer:
    """The server core of xenlive."""

    def __init__(self) -> None:
        self.server = XenstoreServer()
        self._links = PageLinks(self.server)
        self._next_unique_id = 1

    def close(self) -> None:
        """Looks whether all is well at the end."""
        assert self.server.store.check() == []

    def open_socket(self) -> CoreSocket:
        return CoreSocket(self)

    def create(self, domid: int) -> CoreRing:
        page = self._links.pages[domid] = memoryview(bytearray(PAGE_SIZE))
        self._links.states[domid] = DomainState(self._next_unique_id, False)
        self._next_unique_id += 1
        return CoreRing(self, domid, page)

    def destroy(self, domid: int) -> None:
        del self._links.states[domid]
        self._check()

    def shut_down(self, domid: int) -> None:
        self._links.states[domid].is_shut_down = True
        self._check()

    def settle(self) -> None:
        """Moves what there is for others into their rings."""
        while touched := self.server.drain_touched():
            for connection in touched:
                if connection.link is not None:
                    connection.link.pump()

    def _check(self) -> None:
        domains.check(self.server)
        self.settle()
