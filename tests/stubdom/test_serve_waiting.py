"""Clients that wait or are waited for: who does not read, who is held back, who has gone."""

from __future__ import annotations

import select
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from stubdom.serving import PATIENCE_S, Client, World, served
from xenstore.talk import HEADER, Message, encode

from xenlive.abi.xs_wire import (
    XS_MKDIR,
    XS_READ,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlive.stubdom import serve


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from served(tmp_path)


def test_who_does_not_read_is_not_read_either(world: World) -> None:
    """Requests by one that never reads its answers, until the socket takes no more of them."""
    client, other = world.client(), world.client()
    other.ask(XS_WRITE, b"/big\0" + b"x" * 4000)
    request = encode(XS_READ, b"/big\0") * 40
    client.socket.settimeout(None)
    client.socket.setblocking(False)
    sent = b""
    idle = 0
    while idle < 3:
        try:
            sent += request[: client.socket.send(request)]
            idle = 0
        except BlockingIOError:
            # Full: once the loop has had several turns and still takes nothing, it has stopped.
            for _ in range(5):
                assert other.ask(XS_READ, b"/tool\0") == b""
            idle += 1
    world.inside(lambda: None)
    (stuck,) = (conn for conn, _ in world.loop.connections() if conn.head)
    most = serve.MAX_UNSENT + serve.READ_SIZE // 21 * 4016
    assert serve.MAX_UNSENT < stuck.unsent_bytes() <= most
    # As soon as it reads, all of its requests are answered.
    whole = len(sent) // len(encode(XS_READ, b"/big\0"))
    client.socket.setblocking(True)
    client.socket.settimeout(PATIENCE_S)
    for _ in range(whole):
        message = client.message()
        assert message is not None
        assert len(message.payload) == 4000
    client.send(encode(XS_READ, b"/big\0")[len(sent) % len(encode(XS_READ, b"/big\0")) :])
    assert client.message() is not None


def test_who_never_reads_its_events_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAX_WAITING", 64 * 1024)
    sleeper, writer = world.client(), world.client()
    token = b"t" * 2000
    sleeper.ask(XS_WATCH, b"/\0" + token + b"\0")
    for number in range(3000):
        assert writer.ask(XS_MKDIR, b"/d%d\0" % number) == b"OK\0"
        if len(world.loop.connections()) == 1:
            break
    world.inside(lambda: None)
    assert len(world.loop.connections()) == 1
    assert world.server.watch_count == 0
    heard = 0
    while sleeper.message() is not None:
        heard += 1
    assert 0 < heard < 3000


def test_what_an_earlier_kernel_left_counts_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watcher that had not read before an update has no new allowance after it."""
    monkeypatch.setattr(serve, "MAX_WAITING", 1024 * 1024)
    writer = world.client()
    sleeper = world.client()
    assert sleeper.ask(XS_WATCH, b"/a\0t\0") == b"OK\0"
    left = encode(XS_WATCH_EVENT, b"/a\0" + bytes(4000)) * 300
    assert len(left) > serve.MAX_WAITING

    def put_back() -> None:
        (conn,) = (conn for conn, _ in world.loop.connections() if conn.watches)
        conn.restore_unsent(left, 0)
        world.loop.flush(conn)

    world.inside(put_back)
    world.inside(lambda: None)
    (stuck,) = (conn for conn, _ in world.loop.connections() if conn.watches)
    assert stuck.head == left
    monkeypatch.setattr(serve, "MAX_WAITING", stuck.unsent_bytes())
    assert writer.ask(XS_WRITE, b"/a\0v") == b"OK\0"
    world.inside(lambda: None)
    assert len(world.loop.connections()) == 1


def test_the_same_event_waiting_costs_nothing(world: World) -> None:
    sleeper, writer = world.client(), world.client()
    sleeper.ask(XS_WATCH, b"/\0" + b"t" * 4000 + b"\0")
    for _ in range(600):
        assert writer.ask(XS_WRITE, b"/a\0v") == b"OK\0"
    world.inside(lambda: None)
    asleep = [conn for conn, _ in world.loop.connections() if conn.watches]
    assert len(asleep) == 1
    assert len(asleep[0].events) <= 2
    assert asleep[0].unsent_bytes() < 1024 * 1024  # what the socket did not take, and one of each


def test_held_transactions(world: World) -> None:
    first, second = world.client(), world.client()
    assert first.ask(XS_TRANSACTION_START, b"\0") == b"1\0"

    def hold() -> None:
        world.server.hold_transactions = True

    world.inside(hold)
    second.send(encode(XS_TRANSACTION_START, b"\0", 0, 5) + encode(XS_READ, b"/tool\0", 0, 6))
    while not any(conn.held for conn, _ in world.loop.connections()):
        world.inside(lambda: None)
    second.send(encode(XS_READ, b"/tool\0", 0, 7))
    assert first.ask(XS_TRANSACTION_END, b"T\0", 1) == b"OK\0"
    world.inside(world.loop.release_held)
    assert [getattr(second.message(), "req_id", None) for _ in range(3)] == [5, 6, 7]


def hold(world: World, data: bytes) -> Client:
    """A client whose requests `data`, a TRANSACTION_START first, have to wait."""

    def hold_transactions() -> None:
        world.server.hold_transactions = True

    world.inside(hold_transactions)
    client = world.client()
    client.send(encode(XS_TRANSACTION_START, b"\0", 0, 5) + data)
    while not any(conn.held for conn, _ in world.loop.connections()):
        world.inside(lambda: None)
    return client


def test_a_malformed_message_of_a_held_connection(world: World) -> None:
    client = hold(world, HEADER.pack(XS_READ, 0, 0, 4097))
    world.inside(world.loop.release_held)
    assert client.message() == Message(XS_TRANSACTION_START, 5, 0, b"1\0")
    assert client.message() is None
    world.inside(lambda: None)
    assert world.loop.connections() == []
    assert not world.server.connections


class CountingEpoll:
    """An epoll that counts how often it told of each descriptor."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self.told: Counter[int] = Counter()

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        events = self._epoll.poll(timeout, most)
        self.told.update([fd for fd, _ in events])
        return events

    def __getattr__(self, name: str) -> object:
        return getattr(self._epoll, name)


def test_a_held_client_that_has_gone(world: World) -> None:
    """It is not told of again and again; what it had sent is served once that is allowed."""
    epoll = CountingEpoll(world.loop._world)

    def install() -> None:
        world.loop._world = epoll  # type: ignore[assignment]

    world.inside(install)
    client = hold(world, encode(XS_WRITE, b"/last\0words"))
    (fd,) = (fd for conn, fd in world.loop.connections() if conn.held)
    before = epoll.told[fd]
    client.close()
    for _ in range(30):
        world.inside(lambda: None)
    assert epoll.told[fd] - before <= 1
    assert world.server.connections
    assert b"/last" not in world.server.store.nodes
    world.inside(world.loop.release_held)
    world.inside(lambda: None)
    assert world.server.store.nodes[b"/last"].value == b"words"
    assert world.loop.connections() == []
    assert not world.server.connections


def test_a_held_client_that_has_gone_may_be_hung_up(world: World) -> None:
    """Its descriptor is closed though epoll does not know it any more."""
    hold(world, HEADER.pack(XS_READ, 0, 0, 4097)).close()
    for _ in range(3):
        world.inside(lambda: None)
    world.inside(world.loop.release_held)
    world.inside(lambda: None)
    assert world.loop.connections() == []
    assert world.client().ask(XS_READ, b"/tool\0") == b""
