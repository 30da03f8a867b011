"""The serve loop with real sockets: what clients may do to it, freezing, adopting, timers."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from stubdom.serving import PATIENCE_S, World, served
from xenstore.talk import HEADER, Message, decode, encode

from xenlive.abi.xs_wire import (
    XS_CONTROL,
    XS_DIRECTORY,
    XS_READ,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlive.stubdom import serve
from xenlive.stubdom.serve import ServeLoop
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.requests import Request
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import encode_state, load_state


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from served(tmp_path)


def test_clients_are_served(world: World) -> None:
    first, second = world.client(), world.client()
    assert first.ask(XS_WRITE, b"/a\0v") == b"OK\0"
    assert second.ask(XS_READ, b"/a\0") == b"v"
    assert second.ask(XS_WATCH, b"/a\0t\0") == b"OK\0"
    first_event = second.message()
    assert first.ask(XS_WRITE, b"/a\0w") == b"OK\0"
    assert second.message() == first_event == Message(XS_WATCH_EVENT, 0, 0, b"/a\0t\0")


def test_a_pipeline_is_answered_in_order(world: World) -> None:
    client = world.client()
    for number in range(50):
        client.ask(XS_WRITE, b"/n%d\0value %d" % (number, number))
    client.send(b"".join([encode(XS_READ, b"/n%d\0" % n, 0, n) for n in range(50)]))
    for number in range(50):
        assert client.message() == Message(XS_READ, number, 0, b"value %d" % number)


def test_a_request_in_single_bytes(world: World) -> None:
    client = world.client()
    for byte in encode(XS_READ, b"/tool\0"):
        client.send(bytes([byte]))
    assert client.message() == Message(XS_READ, 0, 0, b"")


def test_a_malformed_message_closes_only_its_connection(world: World) -> None:
    bad, good = world.client(), world.client()
    bad.send(encode(XS_READ, b"/tool\0", 0, 9) + HEADER.pack(XS_READ, 0, 0, 4097))
    assert bad.message() == Message(XS_READ, 9, 0, b"")
    assert bad.message() is None
    assert good.ask(XS_READ, b"/tool\0") == b""
    world.inside(lambda: None)
    assert len(world.loop.connections()) == len(world.server.connections) == 1


@pytest.mark.parametrize("last", [b"", b"\2", encode(XS_READ, b"/tool\0")[:-1], bytes(16)])
def test_disconnecting_at_any_moment(world: World, last: bytes) -> None:
    stays = world.client()
    for _ in range(5):
        leaves = world.client()
        leaves.ask(XS_WATCH, b"/a\0t\0")
        leaves.ask(XS_TRANSACTION_START, b"\0")
        leaves.send(last)
        leaves.close()
        assert stays.ask(XS_WRITE, b"/a\0v") == b"OK\0"
    while stays.ask(XS_WRITE, b"/a\0v") == b"OK\0" and len(world.loop.connections()) > 1:
        pass
    world.inside(lambda: None)
    assert world.server.watch_count == 0
    assert len(world.server.connections) == 1


def test_frozen_clients_wait_and_lose_nothing(world: World) -> None:
    client, watcher = world.client(), world.client()
    watcher.ask(XS_WATCH, b"/a\0t\0")
    watcher.message()
    client.ask(XS_WRITE, b"/a\0before")
    watcher.message()
    world.inside(world.loop.freeze)
    late = world.client()
    late.send(encode(XS_READ, b"/a\0"))
    client.send(encode(XS_WRITE, b"/a\0while frozen"))
    fired = threading.Event()

    def start_timer() -> None:
        world.loop.call_at(0, fired.set)

    world.inside(start_timer)
    assert fired.wait(PATIENCE_S), "timers go on"
    assert world.server.store.nodes[b"/a"].value == b"before"
    assert len(world.loop.connections()) == 2
    world.inside(world.loop.thaw)
    reply = client.message()
    assert reply is not None
    assert reply.payload == b"OK\0"
    assert watcher.message() == Message(XS_WATCH_EVENT, 0, 0, b"/a\0t\0")
    assert late.message() is not None


def test_what_brings_bytes_of_clients_is_not_heard_while_frozen(world: World) -> None:
    bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    heard: list[int] = []
    world.inside(lambda: world.loop.watch_client_fd(bell, lambda: heard.append(read_bell(bell))))
    world.inside(world.loop.freeze)
    os.eventfd_write(bell, 7)
    for _ in range(3):
        world.inside(lambda: None)
    assert heard == []
    world.inside(world.loop.thaw)
    while not heard:
        world.inside(lambda: None)
    assert heard == [7]
    world.inside(lambda: world.loop.unwatch_fd(bell))
    os.eventfd_write(bell, 1)
    for _ in range(3):
        world.inside(lambda: None)
    assert heard == [7]
    os.close(bell)


def read_bell(bell: int) -> int:
    return os.eventfd_read(bell)


def test_freezing_from_a_request(world: World) -> None:
    """As a live update does: its own request is answered late, by whoever comes after."""
    put_off: list[tuple[Connection, Request]] = []

    def handler(conn: Connection, request: Request, args: list[bytes]) -> bytes | None:
        put_off.append((conn, request))
        world.loop.freeze()
        return None

    world.server.control[b"pause"] = handler
    client, other = world.client(), world.client()
    assert other.ask(XS_READ, b"/tool\0") == b""
    client.send(encode(XS_CONTROL, b"pause\0", 0, 4))
    while not put_off:
        world.inside(lambda: None)
    other.send(encode(XS_WRITE, b"/a\0v"))
    world.inside(lambda: None)
    assert b"/a" not in world.server.store.nodes

    def answer() -> None:
        world.server.reply(*put_off[0], b"OK\0")
        world.loop.thaw()

    world.inside(answer)
    assert client.message() == Message(XS_CONTROL, 4, 0, b"OK\0")
    assert other.message() is not None


def test_a_loop_takes_over_from_another(world: World, tmp_path: Path) -> None:
    """All clients, their watches, half a request, and output that got stuck."""
    client, watcher, slow = world.client(), world.client(), world.client()
    client.ask(XS_WRITE, b"/big\0" + b"x" * 4000)
    watcher.ask(XS_WATCH, b"/a\0t\0")
    watcher.message()
    slow.send(encode(XS_READ, b"/big\0") * 100)  # more than a socket holds
    request = encode(XS_WRITE, b"/a\0whole")
    client.send(request[:20])
    while not any(conn.unparsed for conn, _ in world.loop.connections()):
        world.inside(lambda: None)
    world.inside(world.loop.freeze)
    fds = dict(world.loop.connections())
    state = b"".join(
        encode_state(
            world.server,
            listen_fd=world.listener.fileno(),
            evtchn_fd=-1,
            fd_of=lambda conn: os.dup(fds[conn]),
        )
    )
    world.inside(world.loop.stop)
    for _, fd in world.loop.connections():
        os.close(fd)  # the copies are what lives on
    world.loop.close()

    server = XenstoreServer()
    loaded = load_state(server, state)
    first_reply = threading.Event()
    world.server = server
    world.loop = ServeLoop(server, on_first_reply=first_reply.set)
    world.loop.listen(loaded.listen_fd)
    for conn, fd in loaded.connections:
        world.loop.adopt(conn, fd)
    world.loop.watch_fd(world._wake, world._run_jobs)
    world._thread = threading.Thread(target=world._run, daemon=True)
    world.start()
    client.send(request[20:])
    reply = client.message()
    assert reply is not None
    assert reply.payload == b"OK\0"
    assert watcher.message() == Message(XS_WATCH_EVENT, 0, 0, b"/a\0t\0")
    for _ in range(100):
        message = slow.message()
        assert message is not None
        assert message.payload == b"x" * 4000
    assert world.client().ask(XS_READ, b"/a\0") == b"whole"
    assert first_reply.wait(PATIENCE_S)


def test_first_reply_is_told_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    told: list[int] = []
    world.loop.on_first_reply = lambda: told.append(1)
    world.start()
    client = world.client()
    assert told == []
    for _ in range(3):
        client.ask(XS_READ, b"/tool\0")
    world.finish()
    assert told == [1]


def test_running_out_of_descriptors(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepting stops for a while instead of spinning, and goes on when there is room again."""
    monkeypatch.setattr(serve, "ACCEPT_RETRY_S", 0.01)
    client = world.client()
    assert client.ask(XS_READ, b"/tool\0") == b""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    late = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    spare = os.open("/dev/null", os.O_RDONLY)
    os.close(spare)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        late.connect(world.path)
        for _ in range(100):
            assert client.ask(XS_READ, b"/tool\0") == b""
        assert len(world.loop.connections()) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    late.settimeout(PATIENCE_S)
    late.sendall(encode(XS_DIRECTORY, b"/\0"))
    assert decode(late.recv(4096))[0].payload == b"tool\0"
    late.close()


def test_timers_run_in_order_and_can_be_cancelled() -> None:
    now = [0.0]
    loop = ServeLoop(XenstoreServer(), clock=lambda: now[0])
    ran: list[str] = []
    loop.call_at(-1, lambda: ran.append("second"))
    loop.call_at(-2, lambda: ran.append("first"))
    loop.call_at(-1, lambda: ran.append("never")).cancel()
    loop.call_at(0, loop.stop)
    loop.run()
    assert ran == ["first", "second"]
    loop.close()


def test_watched_descriptors_come_and_go() -> None:
    loop = ServeLoop(XenstoreServer())
    reader, writer = os.pipe()
    calls: list[bytes] = []

    def callback() -> None:
        calls.append(os.read(reader, 10))
        if len(calls) == 2:
            loop.unwatch_fd(reader)
            loop.call_at(0, loop.stop)
        os.write(writer, b"again")

    loop.watch_fd(reader, callback)
    os.write(writer, b"first")
    loop.run()
    assert calls == [b"first", b"again"]
    loop.close()
    os.close(reader)
    os.close(writer)
