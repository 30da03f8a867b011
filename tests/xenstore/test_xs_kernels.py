"""What one kernel's clients see of the next: generations, transaction ids, and everything else."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xenstore.talk import Client, decode, encode
from xenstore.test_xs_differential import random_requests
from xenstore.test_xs_stream import HEADER, described, node, save

from xenlive.abi.xs_wire import (
    DOMID_ANY,
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_REL_PATH_MAX,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_GET_PERMS,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import load_state

OK = b"OK\0"
END = bytes(8)


class Clock:
    """Seconds that only go forward when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Rest(Client):
    """A client of the next kernel, on a connection that came with the state."""

    def __init__(self, server: XenstoreServer, conn: Connection) -> None:
        self.server = server
        self.conn = conn


def updated(server: XenstoreServer, clock: Clock) -> tuple[XenstoreServer, list[Rest]]:
    """The next kernel, a millisecond later, and its socket clients."""
    clock.now_s += 0.001
    again = XenstoreServer(now=clock)
    loaded = load_state(again, save(server))
    return again, [Rest(again, conn) for conn, _ in loaded.connections]


def generation_of(client: Client, path: bytes) -> int:
    reply = client.ask(XS_DIRECTORY_PART, path + b"\0" + b"0\0")
    assert isinstance(reply, bytes)
    return int(reply.partition(b"\0")[0])


@pytest.mark.parametrize("path", [b"/", b"/d", b"/d/leaf"])
def test_generations_are_not_used_again(path: bytes) -> None:
    """Else a listing in parts over two updates hides a change between them."""
    clock = Clock()
    server = XenstoreServer(now=clock)
    client = Client(server)
    client.ask(XS_WRITE, b"/d/leaf\0v")
    seen = {generation_of(client, path)}
    for number in range(1, 5):
        server, (client,) = updated(server, clock)
        before = generation_of(client, path)
        assert before > max(seen)
        assert generation_of(client, path) == before
        client.ask(XS_WRITE, b"/d/leaf/n%d\0v" % number)
        client.ask(XS_WRITE, b"/n%d\0v" % number)
        client.ask(XS_WRITE, b"/d/n%d\0v" % number)
        after = generation_of(client, path)
        assert after > before
        seen |= {before, after}


def test_a_root_without_a_record_has_the_next_generation() -> None:
    clock = Clock()
    seen = set()
    for _ in range(3):
        clock.now_s += 0.001
        server = XenstoreServer(now=clock)
        load_state(server, HEADER + node(b"/a") + END)
        seen.add(generation_of(Client(server), b"/"))
    assert len(seen) == 3


def test_transactions_compare_shared_generations_rightly() -> None:
    """All loaded nodes have one generation: what is removed and made anew has another."""
    clock = Clock()
    first = XenstoreServer(now=clock)
    client = Client(first)
    client.ask(XS_WRITE, b"/d/leaf\0v")
    _, (client,) = updated(first, clock)
    looked = client.ask(XS_TRANSACTION_START, b"\0")
    unmoved = client.ask(XS_TRANSACTION_START, b"\0")
    assert isinstance(looked, bytes)
    assert isinstance(unmoved, bytes)
    assert client.ask(XS_READ, b"/d/leaf\0", int(looked[:-1])) == b"v"
    assert client.ask(XS_READ, b"/tool\0", int(unmoved[:-1])) == b""
    client.ask(XS_RM, b"/d/leaf\0")
    client.ask(XS_WRITE, b"/d/leaf\0v")
    assert client.ask(XS_TRANSACTION_END, b"T\0", int(looked[:-1])) == "EAGAIN"
    assert client.ask(XS_TRANSACTION_END, b"T\0", int(unmoved[:-1])) == OK


def test_a_dropped_transactions_id_is_not_given_to_another() -> None:
    clock = Clock()
    server = XenstoreServer(now=clock)
    client: Client = Client(server)
    seen: set[bytes] = set()
    for _ in range(4):
        for _ in range(3):
            number = client.ask(XS_TRANSACTION_START, b"\0")
            assert isinstance(number, bytes)
            assert number not in seen
            assert 0 < int(number[:-1]) <= 0xFFFFFFFF
            seen.add(number)
        server, (client,) = updated(server, clock)
        client.ask(XS_TRANSACTION_START, b"\0")
        for old in seen:
            assert client.ask(XS_WRITE, b"/a\0stale", int(old[:-1])) == "ENOENT"
    assert Client(server).ask(XS_TRANSACTION_START, b"\0") == b"1\0", "a new connection"


@pytest.mark.parametrize("now_s", [0.0, 1e-9, 0x80000000 / 1e6, 5e9])
def test_any_clock_gives_a_sound_id(now_s: float) -> None:
    server = XenstoreServer()
    Client(server)
    again = XenstoreServer(now=lambda: now_s)
    ((conn, _),) = load_state(again, save(server)).connections
    client = Rest(again, conn)
    number = client.ask(XS_TRANSACTION_START, b"\0")
    assert isinstance(number, bytes)
    assert 0 < int(number[:-1]) <= 0xFFFFFFFF


# -- everything a client can have put there ------------------------------------------------------

NAME_CHARS = b"abcXYZ019-_@"
names = st.lists(st.sampled_from(NAME_CHARS), min_size=1, max_size=12).map(bytes)
deep_paths = st.integers(1, XENSTORE_REL_PATH_MAX // 2).map(lambda levels: b"/d" * levels)
domain_paths = st.tuples(st.sampled_from([b"0", b"7", b"65535", b"-1234"]), names).map(
    lambda parts: (b"/local/domain/%s/" % parts[0] + parts[1] * XENSTORE_REL_PATH_MAX)[
        : len(b"/local/domain/%s/" % parts[0]) + XENSTORE_REL_PATH_MAX
    ]
)
paths = st.one_of(
    st.lists(names, min_size=1, max_size=5).map(lambda parts: b"/" + b"/".join(parts)),
    st.lists(names, min_size=1, max_size=3).map(b"/".join).filter(lambda p: p[:1] != b"@"),
    deep_paths,
    domain_paths,
    st.just(b"/"),
)
values = st.one_of(
    st.binary(max_size=40),
    st.just(b""),
    st.integers(0, 255).map(lambda first: bytes((first + i) & 0xFF for i in range(4096))),
)
entries = st.tuples(
    st.sampled_from(b"nrwb"), st.sampled_from([0, 3, 4, 9, 0x7FEF, DOMID_ANY, 0xFFFF])
).map(lambda entry: b"%c%d\0" % entry)
permissions = st.lists(entries, min_size=1, max_size=8).map(lambda tail: b"n0\0" + b"".join(tail))
tokens = st.one_of(
    st.binary(max_size=30), st.just(b"\xff" * 2000), st.just(b"@/ =\n"), st.just(b"")
).map(lambda token: token.replace(b"\0", b"\1"))
watched = st.one_of(paths, st.sampled_from([b"@releaseDomain", b"@introduceDomain", b"@x/y", b"@"]))
requests = st.one_of(
    st.tuples(st.just(XS_WRITE), paths, values).map(
        lambda r: (r[0], (r[1] + b"\0" + r[2])[:XENSTORE_PAYLOAD_MAX])
    ),
    st.tuples(
        st.just(XS_SET_PERMS),
        st.one_of(paths, st.sampled_from([b"@releaseDomain", b"@introduceDomain"])),
        permissions,
    ).map(lambda r: (r[0], r[1] + b"\0" + r[2])),
    st.tuples(st.just(XS_WATCH), watched, tokens).map(
        lambda r: (r[0], (r[1] + b"\0" + r[2])[: XENSTORE_PAYLOAD_MAX - 1] + b"\0")
    ),
    st.tuples(st.just(XS_RM), paths).map(lambda r: (r[0], r[1] + b"\0")),
)


@dataclass
class Pending:
    """What one connection has under way: how much was sent of its last request and taken of `out`.

    `asks` are requests whose answers nobody has taken when the update comes.
    """

    asks: list[tuple[int, bytes]] = field(default_factory=list)
    taken: int = 0
    last: tuple[int, bytes] = (XS_READ, b"/\0")
    sent: int = 0


pending = st.builds(
    Pending,
    asks=st.lists(requests, max_size=6),
    taken=st.integers(0, 5000),
    last=requests,
    sent=st.integers(0, 16 + 4096),
)


@given(
    st.lists(requests, max_size=30),
    st.lists(pending, min_size=2, max_size=2),
    st.booleans(),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=60)
def test_the_next_kernel_can_not_be_told_from_the_last(
    before: list[tuple[int, bytes]], clients: list[Pending], hold: bool, seed: int
) -> None:
    """State, pending input and pending output survive byte for byte, and it goes on the same."""
    server = XenstoreServer()
    for domid in (3, 4):
        server.store.add_domain(domid)
    old = [Client(server), Client(server)]
    for number, (kind, payload) in enumerate(before):
        old[number % 2].send(kind, payload)
    for client, has in zip(old, clients, strict=True):
        for kind, payload in has.asks:
            server.receive(client.conn, encode(kind, payload, 0, 9))
        waiting = client.conn.take()
        client.conn.sent(waiting, min(has.taken, len(waiting)))
    server.hold_transactions = hold
    for client, has in zip(old, clients, strict=True):
        held = encode(XS_TRANSACTION_START, b"\0") + encode(XS_READ, b"/tool\0") if hold else b""
        server.receive(client.conn, held + encode(*has.last)[: has.sent])
    again = XenstoreServer()
    data = save(server)
    loaded = load_state(again, data)
    assert described(again) == described(server)
    assert save(again) == data
    assert again.store.check() == []
    new = [Rest(again, conn) for conn, _ in loaded.connections]
    for one, other in zip(old, new, strict=True):
        assert one.conn.unsent()[0] == other.conn.unsent()[0]
        for client in (one, other):
            client.conn.restore_unsent(b"", 0)
            client.conn.take()
            # Transactions count on from elsewhere there (see above); here they count the same.
            client.conn.next_transaction = 1
    server.release_held()
    for each in (server, again):
        for conn in list(each.connections):
            each.receive(conn, b"")
    for one, other, has in zip(old, new, clients, strict=True):
        rest = encode(*has.last)[has.sent :]
        for client in (one, other):
            client.server.receive(client.conn, rest)
    for who, kind, payload, tx_id in random_requests(seed, 60):
        for client in (old[who], new[who]):
            client.server.receive(client.conn, encode(kind, payload, tx_id))
    for one, other in zip(old, new, strict=True):
        mine = [m for m in decode(one.conn.take()) if m.kind != XS_DIRECTORY_PART]
        theirs = [m for m in decode(other.conn.take()) if m.kind != XS_DIRECTORY_PART]
        assert mine == theirs
    assert described(again) == described(server)


def test_limits_that_fit_exactly() -> None:
    """The largest of everything at once, by its size and not by chance."""
    server = XenstoreServer()
    client = Client(server)
    path = b"/local/domain/65535/" + b"p" * XENSTORE_REL_PATH_MAX
    value = bytes(range(256)) * 16
    value = value[: XENSTORE_PAYLOAD_MAX - len(path) - 1]
    assert client.ask(XS_WRITE, path + b"\0" + value) == OK
    short = bytes(reversed(range(256))) * 16
    assert client.ask(XS_WRITE, b"/v\0" + short[: XENSTORE_PAYLOAD_MAX - 3]) == OK
    many = b"/v\0n0\0" + b"r3\0" * 1363
    assert len(many) <= XENSTORE_PAYLOAD_MAX
    assert client.ask(XS_SET_PERMS, many) == OK
    assert client.ask(XS_SET_PERMS, b"@introduceDomain\0n0\0b3\0w32757\0") == OK
    token = b"\xff" * (XENSTORE_PAYLOAD_MAX - len(path) - 2)
    assert client.ask(XS_WATCH, path + b"\0" + token + b"\0") == OK
    assert client.ask(XS_WRITE, b"/l" * (XENSTORE_REL_PATH_MAX // 2) + b"\0bottom") == OK
    client.heard()
    again, (rest,) = updated(server, Clock())
    assert rest.ask(XS_READ, path + b"\0") == value
    assert rest.ask(XS_READ, b"/v\0") == short[: XENSTORE_PAYLOAD_MAX - 3]
    assert rest.ask(XS_GET_PERMS, b"/v\0") == many[3:]
    assert rest.ask(XS_GET_PERMS, b"@introduceDomain\0") == b"n0\0b3\0w32757\0"
    assert rest.ask(XS_GET_PERMS, b"@releaseDomain\0") == b"n0\0r32757\0"
    assert rest.ask(XS_READ, b"/l" * (XENSTORE_REL_PATH_MAX // 2) + b"\0") == b"bottom"
    assert rest.ask(XS_WRITE, path + b"\0new") == OK
    events = [m.payload for m in rest.send(XS_WRITE, path + b"\0newer")][:1]
    assert events == [path + b"\0" + token + b"\0"]
    assert described(again) != described(server)


def test_a_path_quota_from_elsewhere_makes_no_path_that_can_not_be_loaded() -> None:
    server = XenstoreServer()
    client = Client(server)
    for quota in (0, 4000):
        server.quotas.values["path-max"] = quota
        assert client.ask(XS_WRITE, b"/" + b"a" * 2048 + b"\0") == "EINVAL"
        assert client.ask(XS_WRITE, b"/" + b"a" * 2047 + b"\0") == OK
    server.quotas.values["path-max"] = 5
    assert client.ask(XS_WRITE, b"/12345\0") == "EINVAL"
    load_state(XenstoreServer(), save(server))


class CountedBytes(bytes):
    """Bytes that say how often they were measured."""

    measured = 0

    def __len__(self) -> int:
        CountedBytes.measured += 1
        return super().__len__()


def test_what_waits_is_measured_once() -> None:
    """A watcher that doesn't read must not cost more with each event that waits for it."""
    conn = Connection(0)
    conn.sent(bytes(100), 40)
    CountedBytes.measured = 0
    for number in range(1, 1001):
        conn.out.append(CountedBytes(b"x" * 20))
        assert conn.unsent_bytes() == 60 + 20 * number
    assert CountedBytes.measured <= 2000
    conn.sent(conn.head, 100)
    assert conn.unsent_bytes() == 20 * 1000
    assert conn.take() == b"x" * 20_000
    assert conn.unsent_bytes() == 0
    conn.out.append(b"fresh")
    assert conn.unsent_bytes() == 5


def test_directories_list_the_same() -> None:
    server = XenstoreServer()
    client = Client(server)
    for number in (3, 1, 2):
        client.ask(XS_WRITE, b"/d/n%d\0v" % number)
    client.ask(XS_RM, b"/d/n1\0")
    client.ask(XS_WRITE, b"/d/n1\0v")
    _, (rest,) = updated(server, Clock())
    assert rest.ask(XS_DIRECTORY, b"/d\0") == b"n3\0n2\0n1\0"
