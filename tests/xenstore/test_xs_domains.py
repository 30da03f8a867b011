"""INTRODUCE, RELEASE, RESUME, SET_TARGET and the ends of domains, on the core alone.

What the C daemon does is read in Xen 4.17's `tools/xenstore/xenstored_domain.c`.
"""

from __future__ import annotations

import pytest
from xenstore.talk import Client

from xenlive.abi.xs_wire import (
    XS_GET_PERMS,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_READ,
    XS_RELEASE,
    XS_RESUME,
    XS_SET_PERMS,
    XS_SET_TARGET,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlive.errors import XenstoreError
from xenlive.xenstore import domains
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.domains import DomainState, Link, Links
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import encode_state, load_state

OK = b"OK\0"


class FakeLink(Link):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pump(self) -> None:
        self.told.append("pump")

    def rebind(self, port: int) -> None:
        self.told.append(f"rebind {port}")

    def reset(self) -> None:
        self.told.append("reset")

    def close(self) -> None:
        self.told.append("close")


class FakeLinks(Links):
    """A machine where domains come and go by a word; each has port 1."""

    def __init__(self, server: XenstoreServer) -> None:
        self.server = server
        self.there: dict[int, DomainState] = {}
        self.made: dict[int, FakeLink] = {}
        server.links = self

    def state(self, domid: int) -> DomainState | None:
        return self.there.get(domid)

    def connect(self, domid: int, port: int) -> Connection:
        if domid not in self.there or port != 1:
            raise XenstoreError("EINVAL")
        connection = self.server.connect(domid)
        self.server.set_ring(connection, 100 + domid, self.there[domid].unique_id)
        connection.link = self.made[domid] = FakeLink()
        return connection


class World:
    """A server with a machine around it, and domain 0."""

    def __init__(self) -> None:
        self.server = XenstoreServer()
        self.links = FakeLinks(self.server)
        self.dom0 = Client(self.server)

    def guest(self, domid: int, unique_id: int = 0) -> Client:
        """A domain that has been introduced, with a home of its own."""
        self.links.there[domid] = DomainState(unique_id or domid, False)
        home = b"/local/domain/%d\0" % domid
        assert self.dom0.ask(XS_WRITE, home) == OK
        assert self.dom0.ask(XS_SET_PERMS, home + b"n%d\0" % domid) == OK
        assert self.dom0.ask(XS_INTRODUCE, b"%d\x000\x001\0" % domid) == OK
        client = Client.__new__(Client)
        client.server, client.conn = self.server, self.server.rings[domid]
        return client

    def introduced(self, domid: int) -> bool:
        return self.dom0.ask(XS_IS_DOMAIN_INTRODUCED, b"%d\0" % domid) == b"T\0"

    def events(self) -> list[bytes]:
        """Paths of the events that domain 0 has got since the last time."""
        return [
            message.payload.split(b"\0")[0]
            for message in self.dom0.heard()
            if message.kind == XS_WATCH_EVENT
        ]


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"5\0", b"5\x001\0", b"5\x001\x001", b"5\x000\x000\0", b"5\x000\0-1\0"),
        *(b"5\x000\0x\0", b"x\x000\x001\0", b"65536\x000\x001\0", b"6\x000\x001\0"),
        b"5\x000\x002\0",
    ],
)
def test_an_introduction_that_is_refused_changes_nothing(world: World, payload: bytes) -> None:
    world.links.there[5] = DomainState(1, False)
    assert world.dom0.ask(XS_INTRODUCE, payload) == "EINVAL"
    assert not world.server.rings
    assert world.server.introduced == {0}


def test_introduced_once_more_it_begins_anew_without_an_event(world: World) -> None:
    world.dom0.ask(XS_WATCH, b"@introduceDomain\0t\0")
    guest = world.guest(5)
    assert world.events() == []  # it came before the reply, which `ask` has taken
    guest.ask(XS_WATCH, b"x\0t\0")
    guest.ask(XS_TRANSACTION_START, b"\0")
    guest.server.receive(guest.conn, b"half")
    heard = world.dom0.send(XS_INTRODUCE, b"5\x000\x001\0")
    assert [message.kind for message in heard] == [XS_INTRODUCE]
    conn = guest.conn
    assert (conn.watches, conn.transactions, conn.unparsed, conn.out) == ({}, {}, b"", [])
    assert world.links.made[5].told == ["reset", "rebind 1", "reset"]


@pytest.mark.parametrize("kind", [XS_RELEASE, XS_RESUME])
def test_words_of_one_domain(world: World, kind: int) -> None:
    for payload, error in (
        *((b"0\0", "EINVAL"), (b"", "EINVAL"), (b"5", "EINVAL"), (b"5\0x\0", "EINVAL")),
        (b"5\0", "ENOENT"),
    ):
        assert world.dom0.ask(kind, payload) == error
    guest = world.guest(5)
    assert guest.ask(kind, b"5\0") == "EACCES"
    assert world.dom0.ask(kind, b"5\0") == OK


def test_a_domain_acts_for_its_target_until_that_is_gone(world: World) -> None:
    guest = world.guest(5)
    assert world.dom0.ask(XS_SET_TARGET, b"5\x006\0") == "ENOENT"
    world.guest(6)
    assert guest.ask(XS_WRITE, b"/local/domain/6/x\0") == "EACCES"
    assert world.dom0.ask(XS_SET_TARGET, b"5\0") == "EINVAL"
    assert world.dom0.ask(XS_SET_TARGET, b"5\x006\0") == OK
    assert guest.ask(XS_WRITE, b"/local/domain/6/x\x001") == OK
    world.dom0.ask(XS_RELEASE, b"6\0")
    world.guest(6, unique_id=66)
    assert guest.ask(XS_READ, b"/local/domain/6\0") == "EACCES"


def test_its_nodes_and_rights_go_with_it_and_who_watches_hears_it(world: World) -> None:
    world.guest(5)
    world.dom0.ask(XS_WRITE, b"/local/domain/5/x/y\0")
    world.dom0.ask(XS_WRITE, b"/shared\0")
    world.dom0.ask(XS_SET_PERMS, b"/shared\0n0\0r5\0w5\0b7\0")
    world.dom0.ask(XS_SET_PERMS, b"/\0n5\0")
    world.dom0.ask(XS_SET_PERMS, b"@releaseDomain\0n5\0r5\0")
    world.dom0.ask(XS_WATCH, b"/local\0t\0")
    world.dom0.ask(XS_WATCH, b"@releaseDomain\0t\0")
    world.dom0.heard()
    kinds = [m.payload.split(b"\0")[0] for m in world.dom0.send(XS_RELEASE, b"5\0")]
    assert kinds == [b"/local/domain/5", b"@releaseDomain", b"OK"]
    assert world.dom0.ask(XS_READ, b"/local/domain/5\0") == "ENOENT"
    assert world.dom0.ask(XS_GET_PERMS, b"/shared\0") == b"n0\0b7\0"
    assert world.dom0.ask(XS_GET_PERMS, b"/\0") == b"n0\0"
    assert world.dom0.ask(XS_GET_PERMS, b"@releaseDomain\0") == b"n0\0"
    assert world.links.made[5].told[-1] == "close"
    assert 5 not in world.server.store.domains
    assert world.server.store.check() == []


def test_a_shutdown_is_told_once_and_again_after_a_resume(world: World) -> None:
    world.guest(5)
    world.dom0.ask(XS_WATCH, b"@releaseDomain\0t\0")
    world.dom0.heard()
    world.links.there[5].is_shut_down = True
    for told in ([b"@releaseDomain"], []):
        domains.check(world.server)
        assert world.events() == told
    assert world.introduced(5)
    assert world.dom0.ask(XS_RESUME, b"5\0") == OK
    domains.check(world.server)
    assert world.events() == [b"@releaseDomain"]


def test_who_is_gone_or_another_under_its_id_is_forgotten(world: World) -> None:
    world.guest(5)
    world.guest(6)
    world.dom0.ask(XS_WATCH, b"@releaseDomain\0t\0")
    world.dom0.heard()
    del world.links.there[5]
    world.links.there[6] = DomainState(77, False)
    domains.check(world.server)
    assert world.events() == [b"@releaseDomain", b"@releaseDomain"]
    assert not world.introduced(5)
    assert not world.introduced(6)


def test_a_domain_that_was_never_introduced_loses_its_rights_too(world: World) -> None:
    assert world.dom0.ask(XS_SET_PERMS, b"/tool\0n5\0") == "ENOENT"
    world.links.there[5] = DomainState(1, False)
    world.dom0.ask(XS_WRITE, b"/a\0")
    assert world.dom0.ask(XS_SET_PERMS, b"/a\0n5\0") == OK
    del world.links.there[5]
    domains.check(world.server)
    assert world.dom0.ask(XS_READ, b"/a\0") == "ENOENT"


def test_the_state_stream_carries_it_with_port_unique_id_and_target(world: World) -> None:
    guest = world.guest(5, unique_id=1 << 40)
    world.guest(6)
    world.dom0.ask(XS_SET_TARGET, b"5\x006\0")
    guest.ask(XS_WATCH, b"x\0t\0")
    guest.server.receive(guest.conn, b"half")
    stream = b"".join(encode_state(world.server, listen_fd=-1, evtchn_fd=-1, fd_of=lambda conn: 9))
    server = XenstoreServer()
    loaded = load_state(server, stream)
    assert sorted(server.rings) == [5, 6]
    assert list(server.rings.values()) == loaded.rings
    conn = server.rings[5]
    assert conn.ring is not None
    assert (conn.ring.evtchn, conn.ring.unique_id, conn.target) == (105, 1 << 40, 6)
    assert (conn.unparsed, list(conn.watches)) == (b"half", [(b"/local/domain/5/x", b"t")])
    assert server.introduced == {0, 5, 6}


def test_a_domain_that_is_known_loses_its_rights_to_nobody(world: World) -> None:
    """Its id may be another's before anybody looks, introduced or not."""
    for is_introduced in (False, True):
        world.links.there[5] = DomainState(1, False)
        world.dom0.ask(XS_WRITE, b"/a\0")
        world.dom0.ask(XS_WRITE, b"/b\0")
        assert world.dom0.ask(XS_SET_PERMS, b"/a\0n5\0") == OK
        assert world.dom0.ask(XS_SET_PERMS, b"/b\0n0\0b5\0") == OK
        world.links.there[5] = DomainState(2, False)
        if is_introduced:
            assert world.dom0.ask(XS_INTRODUCE, b"5\x000\x001\0") == OK
        else:
            domains.check(world.server)
            assert 5 not in world.server.store.domains
        assert world.dom0.ask(XS_READ, b"/a\0") == "ENOENT"
        assert world.dom0.ask(XS_GET_PERMS, b"/b\0") == b"n0\0"
    domains.check(world.server)
    assert world.introduced(5)


def test_rights_do_not_fall_to_another_domain_over_an_update(world: World) -> None:
    """One that was never introduced has no ring to say who it is; its unique id is kept."""
    world.links.there[5] = DomainState(7 << 32 | 1, False)
    world.dom0.ask(XS_WRITE, b"/a\0")
    assert world.dom0.ask(XS_SET_PERMS, b"/a\0n5\0") == OK
    fds = dict.fromkeys(world.server.connections, 10)
    stream = b"".join(encode_state(world.server, listen_fd=-1, evtchn_fd=-1, fd_of=fds.__getitem__))
    for unique_id, is_there in ((7 << 32 | 1, True), (8 << 32 | 1, False), (7 << 32 | 2, False)):
        after = XenstoreServer()
        load_state(after, stream)
        FakeLinks(after).there = {5: DomainState(unique_id, False)}
        domains.check(after)
        assert (b"/a" in after.store.nodes) is is_there
        assert (5 in after.store.domains) is is_there


@pytest.mark.parametrize(("number", "answer"), [(b"-0", OK), (b"+5", OK), (b"-1", "EINVAL")])
def test_domids_are_read_as_strtoul_does(world: World, number: bytes, answer: object) -> None:
    world.guest(5)
    assert world.dom0.ask(XS_SET_TARGET, b"5\0" + number + b"\0") == answer
