"""The serve loop with real sockets: what clients may do to it, freezing, adopting, timers."""

from __future__ import annotations

import os
import resource
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xenstore.talk import HEADER, Message, decode, encode

from xenlive.abi.xs_wire import (
    XS_CONTROL,
    XS_DIRECTORY,
    XS_MKDIR,
    XS_READ,
    XS_TRANSACTION_END,
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

PATIENCE_S = 20


class World:
    """A serve loop in a thread of its own, and clients in this one."""

    def __init__(self, folder: Path) -> None:
        self.server = XenstoreServer()
        self.loop = ServeLoop(self.server)
        self.path = str(folder / "socket")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self.loop.listen(self.listener.fileno())
        self._wake, self._waker = os.pipe()
        self._jobs: list[Callable[[], None]] = []
        self.loop.watch_fd(self._wake, self._run_jobs)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failure: BaseException | None = None
        self.clients: list[Client] = []

    def start(self) -> None:
        self._thread.start()

    def inside(self, job: Callable[[], None]) -> None:
        """Runs `job` as a callback of the loop, and waits until it is done."""
        done = threading.Event()

        def run() -> None:
            job()
            done.set()

        self._jobs.append(run)
        os.write(self._waker, b"x")
        assert done.wait(PATIENCE_S)

    def client(self) -> Client:
        client = Client(self.path)
        self.clients.append(client)
        return client

    def finish(self) -> None:
        if self._thread.is_alive():
            self.inside(self.loop.stop)
            self._thread.join(PATIENCE_S)
        for client in self.clients:
            client.close()
        for _, fd in self.loop.connections():
            os.close(fd)
        self.loop.close()
        self.listener.close()
        os.close(self._wake)
        os.close(self._waker)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:  # reported by the test, not by the thread
            self.failure = error

    def _run_jobs(self) -> None:
        os.read(self._wake, 1)
        self._jobs.pop(0)()


class Client:
    """A blocking client."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.socket.settimeout(PATIENCE_S)
        self._data = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def message(self) -> Message | None:
        """The next message; None at the end."""
        while len(self._data) < 16 or len(self._data) < 16 + HEADER.unpack_from(self._data)[3]:
            try:
                more = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not more:
                return None
            self._data += more
        size = 16 + HEADER.unpack_from(self._data)[3]
        (message,) = decode(self._data[:size])
        self._data = self._data[size:]
        return message

    def ask(self, kind: int, payload: bytes, tx_id: int = 0) -> bytes | str:
        """The reply's payload or error; events before it are dropped."""
        self.send(encode(kind, payload, tx_id, 1))
        while True:
            message = self.message()
            assert message is not None
            if message.kind != XS_WATCH_EVENT:
                return message.error or message.payload

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.start()
    yield world
    world.finish()


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
