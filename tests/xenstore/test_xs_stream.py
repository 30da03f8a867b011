"""The state stream: what the C daemon writes, what we write, and what must be refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xenstore.talk import Client, decode, encode
from xenstore.test_xs_differential import random_requests

from xenlive.abi.xs_state import (
    XS_STATE_CONN_RING,
    XS_STATE_CONN_SOCKET,
    XS_STATE_CONNECTION,
    XS_STATE_NODE,
    XS_STATE_TRANSACTION,
    XS_STATE_TYPE_CONN,
    XS_STATE_TYPE_DOMAIN,
    XS_STATE_TYPE_GLB_QUOTA,
    XS_STATE_TYPE_NODE,
    XS_STATE_TYPE_TA,
    XS_STATE_TYPE_WATCH,
    XS_STATE_WATCH,
)
from xenlive.abi.xs_wire import (
    DOMID_INVALID,
    XS_CONTROL,
    XS_GET_PERMS,
    XS_READ,
    XS_SET_PERMS,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.errors import ImageError, OutOfSpace
from xenlive.xenstore.connection import Connection, Ring
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import LoadedState, encode_state, load_state

VECTOR = Path(__file__).parent.parent / "vectors" / "xs_state" / "c_daemon_4_17_7.bin"
HEADER = b"xenstore" + struct.pack(">II", 1, 0)
END = struct.pack("<II", 0, 0)
NOBODY = b"n\0\0\0"


def record(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) & 7)
    return struct.pack("<II", kind, len(body)) + body


def node(path: bytes, value: bytes = b"", perms: bytes = NOBODY, conn: int = 0) -> bytes:
    head = XS_STATE_NODE.pack(conn, 0, len(path) + 1, len(value), 0, len(perms) // 4)
    return record(XS_STATE_TYPE_NODE, head + perms + path + b"\0" + value)


def socket(
    number: int, fd: int, unparsed: bytes = b"", out: bytes = b"", partial: int = 0
) -> bytes:
    spec = XS_STATE_CONN_SOCKET.pack(fd)
    head = XS_STATE_CONNECTION.pack(number, 1, 0, spec, len(unparsed), partial, len(out))
    return record(XS_STATE_TYPE_CONN, head + unparsed + out)


def ring(number: int, domid: int, evtchn: int = 5) -> bytes:
    spec = XS_STATE_CONN_RING.pack(domid, DOMID_INVALID, evtchn)
    return record(XS_STATE_TYPE_CONN, XS_STATE_CONNECTION.pack(number, 0, 0, spec, 0, 0, 0))


def watch(number: int, path: bytes, token: bytes) -> bytes:
    head = XS_STATE_WATCH.pack(number, len(path) + 1, len(token) + 1)
    return record(XS_STATE_TYPE_WATCH, head + path + b"\0" + token + b"\0")


def load(*records: bytes) -> tuple[XenstoreServer, LoadedState]:
    server = XenstoreServer()
    loaded = load_state(server, HEADER + b"".join(records) + END)
    assert server.store.check() == []
    return server, loaded


def save(server: XenstoreServer, fd_of: Callable[[Connection], int] | None = None) -> bytes:
    sockets = [conn for conn in server.connections if conn.ring is None]
    numbers = {conn: fd for fd, conn in enumerate(sockets, 10)}
    find = fd_of or numbers.__getitem__
    return b"".join(encode_state(server, listen_fd=3, evtchn_fd=-1, fd_of=find))


def described(server: XenstoreServer) -> object:
    """All that a stream has to carry."""
    store = server.store
    return (
        [(path, n.value, store.fresh_perms(n), n.list_names()) for path, n in store.nodes.items()],
        {name: store.fresh_perms(n) for name, n in store.special.items()},
        [
            (
                conn.domid,
                conn.target,
                conn.ring and (conn.ring.evtchn, conn.ring.unique_id),
                conn.unparsed,
                conn.unsent(),
                [(w.path, w.token, w.depth, w.prefix) for w in conn.watches.values()],
            )
            for conn in server.connections
        ],
        server.quotas.values,
        sorted(store.domains),
        server.introduced,
    )


def test_what_the_c_daemon_writes() -> None:
    server = XenstoreServer()
    loaded = load_state(server, VECTOR.read_bytes())
    assert (loaded.listen_fd, loaded.evtchn_fd) == (3, 6)
    assert [fd for _, fd in loaded.connections] == [8, 9, 11]
    first, second, third = (conn for conn, _ in loaded.connections)
    assert [m.payload for m in decode(first.unsent()[0])] == [b"OK\0"]
    assert list(first.watches) == [(b"/vm", b"tok en"), (b"/local/domain/0/name", b"rel")]
    assert list(second.watches) == [(b"@introduceDomain", b"x"), (b"/vm/1/name", b"second")]
    assert second.unparsed == encode(XS_READ, b"/vm/1______", 0, 55)[:21]
    assert third.unsent() == (b"", 0)
    (dom0,) = loaded.rings
    assert (dom0.domid, dom0.target, dom0.ring and dom0.ring.evtchn) == (0, -1, 1000)
    client = Client(server)
    assert client.ask(XS_READ, b"/vm/1/name\0") == b"guest"
    assert client.ask(XS_READ, b"/vm/1/bin\0") == b"\0\x01\xff"
    assert client.ask(XS_GET_PERMS, b"/vm/1/name\0") == b"b0\0w1\0r2\0"
    assert client.ask(XS_GET_PERMS, b"@releaseDomain\0") == b"n0\0r1\0"
    assert client.ask(1, b"/\0") == b"tool\0vm\0empty\0local\0"
    # It goes on where it was: the watches fire, the half request gets its other half.
    client.ask(XS_WRITE, b"/vm/1/name\0new")
    client.ask(XS_WRITE, b"name\0new")
    assert [m.payload for m in decode(first.take())] == [b"/vm/1/name\0tok en\0", b"name\0rel\0"]
    second.take()
    server.receive(second, b"/name\0")
    (reply,) = decode(second.take())
    assert (reply.req_id, reply.payload) == (55, b"new")
    assert server.store.check() == []


def test_an_empty_stream() -> None:
    server, loaded = load()
    assert (loaded.listen_fd, loaded.evtchn_fd) == (-1, -1)
    assert list(server.store.nodes) == [b"/"]
    assert server.node_count == 3


@given(st.integers(0, 500), st.integers(0, 30), st.booleans())
@settings(deadline=None, max_examples=40)
def test_round_trip(seed: int, cut: int, deep: bool) -> None:
    server = XenstoreServer()
    guest = Client(server, domid=3)
    clients = [Client(server), Client(server)]
    guest.conn.ring = Ring(9, 1 << 40 if deep else None)
    guest.conn.target = 4
    server.introduced.add(3)
    server.store.add_domain(4)
    server.store.add_domain(5)
    for who, kind, payload, tx_id in random_requests(seed, 80):
        clients[who].send(kind, payload, tx_id)
    clients[0].ask(XS_SET_PERMS, b"/tool\0n0\0r3\0b5\0w9\0")
    if deep:
        guest.ask(XS_WATCH, b"some/where\0token\x002\0")
        server.quotas.values["nodes"] = 77
        server.quotas.values["from-the-future"] = 1
    server.receive(clients[0].conn, encode(XS_READ, b"/tool\0")[:cut] if cut < 22 else b"")
    # Output that got stuck in the middle of a message.
    for _ in range(3):
        server.receive(clients[1].conn, encode(XS_GET_PERMS, b"/tool\0"))
    head = clients[1].conn.take()
    clients[1].conn.sent(head, min(cut, len(head) - 1))
    server.receive(clients[1].conn, encode(XS_CONTROL, b"check\0"))
    data = save(server)
    assert len(data) % 8 == 0
    assert data[11] == (2 if deep else 1)
    again = XenstoreServer()
    loaded = load_state(again, data)
    assert described(again) == described(server)
    assert [fd for _, fd in loaded.connections] == [10, 11]
    assert loaded.rings[0].domid == 3
    assert save(again) == data
    assert again.store.check() == []


def test_transactions_are_left_out() -> None:
    server = XenstoreServer()
    client = Client(server)
    client.ask(XS_TRANSACTION_START, b"\0")
    client.ask(XS_WRITE, b"/pending\0v", 1)
    again = XenstoreServer()
    loaded = load_state(again, save(server))
    assert b"/pending" not in again.store.nodes
    assert not loaded.connections[0][0].transactions
    again.receive(loaded.connections[0][0], encode(XS_READ, b"/\0", 1))
    assert decode(loaded.connections[0][0].take())[0].error == "ENOENT"


def test_chunks_are_large_and_few() -> None:
    server = XenstoreServer()
    client = Client(server)
    for number in range(5000):
        client.ask(XS_WRITE, b"/bench/d%d/n%d\0value" % (number // 100, number))
    chunks = list(encode_state(server, listen_fd=-1, evtchn_fd=-1, fd_of=lambda conn: 5))
    assert len(chunks) < 10
    assert all(len(chunk) < 256 * 1024 for chunk in chunks)
    again = XenstoreServer()
    load_state(again, memoryview(b"".join(chunks)))
    assert described(again) == described(server)


def test_too_much_unparsed_input_is_out_of_space() -> None:
    server = XenstoreServer()
    server.connect().unparsed = bytes(65536)
    with pytest.raises(OutOfSpace):
        save(server)


def test_what_may_be_passed_over() -> None:
    unpadded = struct.pack("<II", 0x1234, 5) + b"12345" + bytes(3)
    transaction = record(XS_STATE_TYPE_TA, XS_STATE_TRANSACTION.pack(1, 7))
    pending = node(b"/x", b"only in there", conn=1)
    deleted = record(XS_STATE_TYPE_NODE, XS_STATE_NODE.pack(1, 7, 3, 0, 0, 0) + b"/y\0")
    server, _ = load(unpadded, socket(1, 5), transaction, pending, deleted, node(b"/z"))
    assert list(server.store.nodes) == [b"/", b"/z"]


def test_nodes_of_records_that_are_not_padded() -> None:
    body = XS_STATE_NODE.pack(0, 0, 3, 2, 0, 1) + NOBODY + b"/a\0vv"
    server, _ = load(struct.pack("<II", 5, len(body)) + body + bytes(-len(body) & 7), node(b"/b"))
    assert server.store.nodes[b"/a"].value == b"vv"
    assert b"/b" in server.store.nodes


def test_domains_without_a_connection() -> None:
    domain = record(XS_STATE_TYPE_DOMAIN, struct.pack("<HHI", 6, 0, 0))
    server, _ = load(domain, node(b"/n", b"v", b"n\0\0\0r\0\x06\0"))
    assert Client(server, domid=6).ask(XS_READ, b"/n\0") == b"v"


# What is wrong, and the code it is refused with. Each is between a good header and an END record.
BAD: list[tuple[str, bytes]] = [
    ("state-short-record", record(1, b"")),
    ("state-short-record", record(XS_STATE_TYPE_CONN, bytes(16))),
    ("state-short-record", record(XS_STATE_TYPE_DOMAIN, b"")),
    ("state-short-record", record(8, bytes(8))),
    ("state-truncated", struct.pack("<II", 1, 0xFFFFFFF0)),
    ("state-bad-connection", socket(0, 5)),
    ("state-bad-connection", socket(1, 5) + socket(1, 6)),
    ("state-bad-connection", socket(1, 5, out=b"abc")),
    ("state-bad-connection", socket(1, 5, out=encode(2, b"abc")[:-1])),
    ("state-bad-connection", socket(1, 5, out=encode(2, bytes(4097)))),
    ("state-bad-connection", socket(1, 5, out=b"ab", partial=3)),
    ("state-bad-connection", ring(1, 3) + ring(2, 3)),
    ("state-bad-connection", record(2, XS_STATE_CONNECTION.pack(1, 2, 0, bytes(8), 0, 0, 0))),
    ("state-bad-connection", record(2, XS_STATE_CONNECTION.pack(1, 1, 0, bytes(8), 1, 0, 0))),
    ("state-bad-connection", record(2, XS_STATE_CONNECTION.pack(1, 1, 0, bytes(8), 0, 0, 1 << 31))),
    ("state-short-record", record(2, XS_STATE_CONNECTION.pack(1, 0, 1, bytes(8), 0, 0, 0))),
    ("state-bad-fd", socket(1, -1)),
    ("state-bad-fd", socket(1, 5) + socket(2, 5)),
    ("state-bad-watch", watch(1, b"/a", b"t")),
    ("state-bad-watch", socket(1, 5) + watch(1, b"/a", b"t") * 2),
    ("state-bad-watch", socket(1, 5) + watch(1, b"/a//b", b"t")),
    ("state-bad-watch", socket(1, 5) + watch(1, b"/a\0b", b"t")),
    ("state-bad-watch", socket(1, 5) + watch(1, b"/a", b"t\0u")),
    ("state-bad-watch", socket(1, 5) + record(3, XS_STATE_WATCH.pack(1, 0, 0))),
    ("state-bad-watch", socket(1, 5) + record(3, XS_STATE_WATCH.pack(1, 3, 900) + b"/a\0t\0")),
    ("state-bad-watch", socket(1, 5) + record(3, XS_STATE_WATCH.pack(1, 3, 2) + b"/aXt\0")),
    ("state-bad-quota", record(XS_STATE_TYPE_GLB_QUOTA, struct.pack("<HHI", 1, 0, 5) + b"n" * 8)),
    ("state-bad-quota", record(XS_STATE_TYPE_GLB_QUOTA, struct.pack("<HHI", 1, 0, 5))),
    ("state-bad-quota", record(XS_STATE_TYPE_GLB_QUOTA, struct.pack("<HHI", 1, 0, 5) + b"\0")),
    ("state-bad-quota", record(XS_STATE_TYPE_GLB_QUOTA, struct.pack("<HH", 0xFFFF, 0xFFFF))),
    ("state-bad-quota", record(XS_STATE_TYPE_GLB_QUOTA, struct.pack("<HHI", 1, 0, 5) + b"\xff\0")),
    ("state-bad-node", node(b"/a/b")),
    ("state-bad-node", node(b"/a") * 2),
    ("state-bad-node", node(b"/a") + node(b"/b") + node(b"/a")),
    ("state-bad-node", node(b"/a/")),
    ("state-bad-node", node(b"//")),
    ("state-bad-node", node(b"/a b")),
    ("state-bad-node", node(b"/a\0b")),
    ("state-bad-node", node(b"a")),
    ("state-bad-node", node(b"")),
    ("state-bad-node", node(b"@")  * 2),
    ("state-bad-node", node(b"@a b")),
    ("state-bad-node", node(b"@a/b")),
    ("state-bad-node", node(b"/" + b"a" * 3072)),
    ("state-bad-node", node(b"/a", bytes(4097))),
    ("state-bad-node", node(b"/a", perms=b"")),
    ("state-bad-node", node(b"/a", perms=b"q\0\0\0")),
    ("state-bad-node", node(b"/") * 2),
    ("state-bad-node", node(b"/a") + node(b"/")),
    ("state-bad-node", record(5, XS_STATE_NODE.pack(0, 0, 9000, 9, 0, 1) + NOBODY)),
    ("state-bad-node", struct.pack("<II", 5, 0xFFFFFFF8) + bytes(16)),
    ("state-bad-node", struct.pack("<II", 5, 0) + bytes(8)),
]  # fmt: skip


@pytest.mark.parametrize(("code", "records"), BAD, ids=range(len(BAD)))
def test_unsound_streams(code: str, records: bytes) -> None:
    server = XenstoreServer()
    before = described(server)
    with pytest.raises(ImageError) as caught:
        load_state(server, HEADER + records + END)
    assert caught.value.code == code
    assert caught.value.offset is not None
    assert described(server) == before


HEADERS: list[tuple[str, bytes]] = [
    ("state-truncated", b""),
    ("state-truncated", b"xenstore\0\0\0"),
    ("state-bad-ident", b"Xenstore" + struct.pack(">II", 1, 0) + END),
    ("state-bad-version", b"xenstore" + struct.pack(">II", 0, 0) + END),
    ("state-bad-version", b"xenstore" + struct.pack(">II", 3, 0) + END),
    ("state-bad-version", b"xenstore" + struct.pack("<II", 1, 0) + END),
    ("state-bad-flags", b"xenstore" + struct.pack(">II", 1, 1) + END),
    ("state-truncated", HEADER),
    ("state-truncated", HEADER + END[:7]),
    ("state-truncated", HEADER + node(b"/a")[:20]),
    ("state-truncated", HEADER + node(b"/a")),
]


@pytest.mark.parametrize(("code", "data"), HEADERS, ids=range(len(HEADERS)))
def test_unsound_headers(code: str, data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        load_state(XenstoreServer(), data)
    assert caught.value.code == code


def test_only_an_empty_server_is_filled() -> None:
    server = XenstoreServer()
    server.connect()
    with pytest.raises(ValueError, match="empty"):
        load_state(server, HEADER + END)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_damage_is_an_image_error_or_nothing(data: st.DataObject) -> None:
    whole = bytearray(VECTOR.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.sampled_from([0, 1, 5, 8, 0x2F, 0x7F, 0x80, 0xFF]))
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    server = XenstoreServer()
    before = described(server)
    try:
        load_state(server, bytes(whole))
    except ImageError:
        assert described(server) == before
    else:
        assert server.store.check() == []
        load_state(XenstoreServer(), save(server))


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=200)
def test_noise_after_a_header(noise: bytes) -> None:
    for data in (noise, HEADER + noise):
        with pytest.raises(ImageError):
            load_state(XenstoreServer(), data + b"\xff" * 7)
