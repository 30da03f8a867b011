"""Xenstore on a guest's ring: requests, events, hostile front ends, the toolstack's nodes."""

from __future__ import annotations

import pytest
from machine.emulated import guests

from xenlive.abi import xs_ring
from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_ERROR,
    XS_READ,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
    XSD_SOCKMSG,
)
from xenlive.errors import XenstoreError
from xenlive.machine.emulated.backends.toolstack import add_guest, remove_guest, start_store
from xenlive.machine.emulated.backends.xenstore import StoreService
from xenlive.machine.emulated.build import STORE_GFN
from xenlive.machine.emulated.hypervisor.domain import Domain

PORT = 1
SIZE = xs_ring.XENSTORE_RING_SIZE
Message = tuple[int, bytes]


class Front:
    """A guest's end of its Xenstore ring."""

    def __init__(self, service: StoreService, domain: Domain) -> None:
        self.domain = domain
        self.ring = service.introduce(domain)
        mapping = domain.space.lookup(STORE_GFN)
        assert mapping is not None
        self.page = mapping.frame.view
        self.words = self.page.cast("I")
        self._unread = b""

    def put(self, data: bytes) -> None:
        """Sends bytes, in as many pieces as the ring needs; the answers are read meanwhile."""
        while data:
            prod, cons = self.words[xs_ring.REQ_PROD], self.words[xs_ring.REQ_CONS]
            room = SIZE - (prod - cons & 0xFFFFFFFF)
            piece, data = data[:room], data[room:]
            for byte in piece:
                self.page[prod % SIZE] = byte
                prod = prod + 1 & 0xFFFFFFFF
            self.words[xs_ring.REQ_PROD] = prod
            self.domain.events.send(PORT)

    def send(self, kind: int, *words: bytes, value: bytes | None = None) -> None:
        """Sends one request."""
        payload = b"".join(word + b"\0" for word in words) + (value or b"")
        self.put(XSD_SOCKMSG.pack(kind, 7, 0, len(payload)) + payload)

    def take(self, limit: int = SIZE) -> int:
        """Takes bytes from the ring; how many there were."""
        cons, prod = self.words[xs_ring.RSP_CONS], self.words[xs_ring.RSP_PROD]
        count = min(prod - cons & 0xFFFFFFFF, limit)
        for _ in range(count):
            self._unread += bytes(self.page[xs_ring.RSP_AT + cons % SIZE :][:1])
            cons = cons + 1 & 0xFFFFFFFF
        self.words[xs_ring.RSP_CONS] = cons
        self.domain.events.send(PORT)
        return count

    def receive(self) -> list[Message]:
        """All messages there are."""
        while self.take():
            pass
        messages = []
        while len(self._unread) >= XSD_SOCKMSG.size:
            kind, _, _, length = XSD_SOCKMSG.unpack(self._unread)
            end = XSD_SOCKMSG.size + length
            if len(self._unread) < end:
                break
            messages.append((kind, self._unread[XSD_SOCKMSG.size : end]))
            self._unread = self._unread[end:]
        return messages

    def ask(self, kind: int, *words: bytes, value: bytes | None = None) -> Message:
        """The answer to one request."""
        self.send(kind, *words, value=value)
        messages = self.receive()
        assert len(messages) == 1, messages
        return messages[0]

    @property
    def error(self) -> int:
        """The field that says what was wrong."""
        word: int = self.words[xs_ring.ERROR]
        return word


class Store:
    """A store with its toolstack, and domains that are connected to it."""

    def __init__(self, n_guests: int = 1) -> None:
        world = guests.World(n_guests)
        self.service = StoreService(world.host, world.clock)
        self.toolstack = self.service.client()
        start_store(self.toolstack)
        self.fronts = []
        for guest in world.guests:
            self.service.know(guest.domain.domid)
            add_guest(self.toolstack, guest.domain, "tester", 4096)
            self.fronts.append(Front(self.service, guest.domain))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def front(store: Store) -> Front:
    return store.fronts[0]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (b"domid", b"1"),
        (b"name", b"tester"),
        (b"/local/domain/1/memory/target", b"4096"),
        (b"store/port", b"1"),
        (b"store/ring-ref", b"%d" % STORE_GFN),
        (b"console/port", b"2"),
        (b"console/type", b"xenconsoled"),
        (b"cpu/0/availability", b"online"),
    ],
)
def test_a_guest_finds_what_the_toolstack_wrote(front: Front, path: bytes, value: bytes) -> None:
    assert front.ask(XS_READ, path) == (XS_READ, value)


@pytest.mark.parametrize("path", [b"data", b"data/new", b"control/shutdown", b"error"])
def test_what_is_its_own_it_may_write(front: Front, path: bytes) -> None:
    assert front.ask(XS_WRITE, path, value=b"x") == (XS_WRITE, b"OK\0")
    assert front.ask(XS_READ, path) == (XS_READ, b"x")


@pytest.mark.parametrize(
    "path", [b"domid", b"memory/target", b"console/tty", b"new", b"/libxl/1/x", b"/vm/x"]
)
def test_the_rest_it_may_not_write(front: Front, path: bytes) -> None:
    assert front.ask(XS_WRITE, path, value=b"x") == (XS_ERROR, b"EACCES\0")


def test_long_messages_go_through_short_rings(front: Front) -> None:
    value = bytes(index % 250 for index in range(2000))
    assert front.ask(XS_WRITE, b"data", value=value) == (XS_WRITE, b"OK\0")
    assert front.ask(XS_READ, b"data") == (XS_READ, value)


def test_the_guest_is_told_of_each_answer(front: Front) -> None:
    front.receive()
    front.domain.shared.clear_pending(PORT)
    front.send(XS_READ, b"domid")
    assert front.domain.shared.is_pending(PORT)


def test_changes_by_others_come_as_events(store: Store, front: Front) -> None:
    front.send(XS_WATCH, b"control/shutdown", b"token")
    first = (XS_WATCH_EVENT, b"control/shutdown\0token\0")
    assert sorted(front.receive()) == sorted([(XS_WATCH, b"OK\0"), first])
    store.toolstack.write("/local/domain/1/control/shutdown", "poweroff")
    assert front.receive() == [first]


def test_guests_hear_of_each_other() -> None:
    store = Store(2)
    one, two = store.fronts
    store.toolstack.set_perms("/local/domain/1/data", "n1", "r2")
    two.send(XS_WATCH, b"/local/domain/1/data", b"t")
    two.receive()
    two.domain.shared.clear_pending(PORT)
    assert one.ask(XS_WRITE, b"data", value=b"here") == (XS_WRITE, b"OK\0")
    assert two.domain.shared.is_pending(PORT)
    assert two.receive() == [(XS_WATCH_EVENT, b"/local/domain/1/data\0t\0")]
    assert two.ask(XS_READ, b"/local/domain/1/data") == (XS_READ, b"here")
    assert two.ask(XS_READ, b"/local/domain/1/attr") == (XS_ERROR, b"EACCES\0")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (xs_ring.REQ_PROD, SIZE + 1),
        (xs_ring.REQ_PROD, 0xFFFFFFFF),
        (xs_ring.REQ_CONS, 7),
        (xs_ring.RSP_CONS, 5),
        (xs_ring.RSP_PROD, SIZE + 1),
    ],
)
def test_indices_that_cannot_be_end_the_connection(word: int, value: int) -> None:
    store = Store(2)
    front, other = store.fronts
    front.send(XS_WATCH, b"data", b"t")
    front.receive()
    front.words[xs_ring.REQ_CONS] = front.words[xs_ring.REQ_PROD] = 0
    front.words[xs_ring.RSP_CONS] = front.words[xs_ring.RSP_PROD] = 0
    front.words[word] = value
    front.domain.events.send(PORT)
    store.toolstack.write("/local/domain/1/data", "changed")
    assert front.error == xs_ring.XENSTORE_ERROR_RINGIDX
    assert not front.ring.connection.watches
    front.words[xs_ring.REQ_CONS] = front.words[xs_ring.REQ_PROD] = 0
    front.send(XS_READ, b"domid")
    assert front.words[xs_ring.REQ_CONS] == 0  # nobody listens
    assert other.ask(XS_READ, b"domid") == (XS_READ, b"2")


def test_a_message_that_is_too_long_ends_the_connection() -> None:
    store = Store(2)
    front, other = store.fronts
    front.put(XSD_SOCKMSG.pack(XS_READ, 0, 0, 4097))
    assert front.error == xs_ring.XENSTORE_ERROR_PROTO
    front.send(XS_READ, b"domid")
    assert front.receive() == []
    assert other.ask(XS_READ, b"domid") == (XS_READ, b"2")
    assert other.error == xs_ring.XENSTORE_ERROR_NONE


def test_who_does_not_read_is_not_served(store: Store, front: Front) -> None:
    value = b"v" * 2000
    front.ask(XS_WRITE, b"data", value=value)
    request = XSD_SOCKMSG.pack(XS_READ, 0, 0, 5) + b"data\0"
    sent = 0
    while front.words[xs_ring.REQ_PROD] - front.words[xs_ring.REQ_CONS] + len(request) <= SIZE:
        front.put(request)
        sent += 1
        assert sent < 1000, "it is served for ever"
    waiting = front.ring.connection.unsent_bytes()
    assert waiting < 200_000
    assert front.receive() == [(XS_READ, value)] * sent
    assert front.ask(XS_READ, b"domid") == (XS_READ, b"1")


def test_an_unknown_request_is_refused(front: Front) -> None:
    assert front.ask(99, b"x") == (XS_ERROR, b"ENOSYS\0")
    assert front.ask(XS_DIRECTORY, b"device") == (XS_DIRECTORY, b"suspend\0")


# ---- parts of this program ----------------------------------------------------------------------


def test_a_client_gets_what_a_guest_would(store: Store) -> None:
    client = store.service.client()
    client.write("/a/b", b"\0\xff")
    assert client.read("/a/b") == b"\0\xff"
    assert client.exists("/a")
    client.mkdir("/a/c")
    client.remove("/a")
    assert not client.exists("/a/b")
    with pytest.raises(XenstoreError, match="ENOENT"):
        client.read("/a")


def test_a_client_hears_of_changes_in_order(store: Store, front: Front) -> None:
    heard: list[str] = []
    client = store.service.client()
    client.watch("/local/domain/1/data", heard.append)
    client.watch("/other", lambda path: heard.append("other"))
    front.ask(XS_WRITE, b"data/x", value=b"1")
    front.ask(XS_WRITE, b"data", value=b"2")
    assert heard == [
        *("/local/domain/1/data", "other"),
        *("/local/domain/1/data/x", "/local/domain/1/data"),
    ]


def test_a_handler_may_change_what_it_heard_of(store: Store, front: Front) -> None:
    client = store.service.client()

    def answer(_: str) -> None:
        if client.read("/local/domain/1/data") == b"question":
            client.write("/local/domain/1/data", "answer")

    client.watch("/local/domain/1/data", answer)
    front.send(XS_WATCH, b"data", b"t")
    front.receive()
    front.send(XS_WRITE, b"data", value=b"question")
    messages = front.receive()
    assert messages.count((XS_WRITE, b"OK\0")) == 1
    assert (XS_WATCH_EVENT, b"data\0t\0") in messages
    assert front.ask(XS_READ, b"data") == (XS_READ, b"answer")


def test_who_stopped_watching_hears_nothing(store: Store) -> None:
    heard: list[str] = []
    client = store.service.client()
    client.watch("/a", heard.append)
    client.unwatch("/a", heard.append)
    client.write("/a", "x")
    assert heard == ["/a"]
    with pytest.raises(KeyError):
        client.unwatch("/a", print)


def test_domains_come_and_go(store: Store) -> None:
    heard: list[str] = []
    store.toolstack.watch("@introduceDomain", heard.append)
    store.toolstack.watch("@releaseDomain", heard.append)
    heard.clear()
    store.service.domain_stopped(store.fronts[0].ring)
    front = store.fronts[0]
    store.service.release(front.ring)
    remove_guest(store.toolstack, front.domain)
    assert heard == ["@releaseDomain", "@releaseDomain"]
    assert not store.toolstack.exists("/local/domain/1")
    assert 1 not in store.service.server.introduced
    front.send(XS_READ, b"domid")
    assert front.receive() == []
