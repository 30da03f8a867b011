"""The server core: conflicts, other ways to cut its input, noise. A model is in `test_xs_model`."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from xenstore.talk import HEADER, Client, decode, encode
from xenstore.test_xs_differential import random_requests

from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_ERROR,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.xenstore.server import XenstoreServer

NAMES = st.sampled_from([b"a", b"b", b"c-1"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: b"/" + b"/".join(names))
STEPS = st.lists(
    st.tuples(
        st.sampled_from([XS_READ, XS_WRITE, XS_MKDIR, XS_RM, XS_DIRECTORY]),
        PATHS,
        st.binary(max_size=8),
        st.sampled_from(["outside", "inside"]),
    ),
    max_size=60,
)


@given(STEPS, st.integers(0, 59))
@settings(deadline=None, max_examples=60)
def test_a_conflict_changes_nothing(steps: list[tuple[int, bytes, bytes, str]], when: int) -> None:
    """One change outside of something the transaction has read, at any moment."""
    client = Client(XenstoreServer())
    client.ask(XS_TRANSACTION_START, b"\0")
    client.ask(XS_READ, b"/meet\0", 1)
    for step, (kind, path, value, _) in enumerate(steps):
        if step == when:
            client.ask(XS_WRITE, b"/meet\0here")
        client.ask(kind, path + b"\0" + (value if kind == XS_WRITE else b""), 1)
    client.ask(XS_WRITE, b"/meet\0here")
    before = {path: node.value for path, node in client.server.store.nodes.items()}
    assert client.ask(XS_TRANSACTION_END, b"T\0", 1) == "EAGAIN"
    assert {path: node.value for path, node in client.server.store.nodes.items()} == before
    assert client.ask(XS_READ, b"/\0", 1) == "ENOENT"
    assert client.server.store.check() == []
    assert not client.server.store.pins


def test_a_directory_changed_outside_stays_the_same_inside() -> None:
    client = Client(XenstoreServer())
    for name in (b"a", b"b", b"c"):
        client.ask(XS_MKDIR, b"/d/" + name + b"\0")
    client.ask(XS_TRANSACTION_START, b"\0")
    client.ask(XS_TRANSACTION_START, b"\0")
    assert client.ask(XS_DIRECTORY, b"/d\0", 1) == b"a\0b\0c\0"
    client.ask(XS_MKDIR, b"/d/late\0", 2)
    client.ask(XS_RM, b"/d/b\0")
    client.ask(XS_MKDIR, b"/d/e\0")
    assert client.ask(XS_DIRECTORY, b"/d\0", 1) == b"a\0b\0c\0"
    assert client.ask(XS_DIRECTORY, b"/d\0", 2) == b"a\0b\0c\0late\0"
    assert client.ask(XS_DIRECTORY, b"/d\0") == b"a\0c\0e\0"
    assert client.ask(XS_TRANSACTION_END, b"T\0", 1) == "EAGAIN"
    assert client.ask(XS_TRANSACTION_END, b"T\0", 2) == "EAGAIN"


def test_large_directories_are_not_copied() -> None:
    """Neither a new child nor a transaction that adds one may cost what the directory is long."""
    client = Client(XenstoreServer())
    for number in range(3000):
        client.ask(XS_MKDIR, b"/big/%d\0" % number)
    big = client.server.store.nodes[b"/big"]
    assert big.directory is not None
    children_before = big.directory.paths
    client.ask(XS_MKDIR, b"/big/one-more\0")
    client.ask(XS_TRANSACTION_START, b"\0")
    client.ask(XS_MKDIR, b"/big/two-more\0", 1)
    assert client.ask(XS_TRANSACTION_END, b"T\0", 1) == b"OK\0"
    assert big.directory.paths is children_before
    assert len(children_before) == 3002


def replies_of(pieces: list[bytes]) -> bytes:
    server = XenstoreServer(now=lambda: 0.0)
    conn = server.connect()
    for piece in pieces:
        server.receive(conn, piece)
    return conn.take()


@given(st.integers(0, 1000), st.lists(st.integers(1, 200), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_any_cut_of_the_input_gives_the_same_output(seed: int, sizes: list[int]) -> None:
    requests = [request for request in random_requests(seed, 60) if request[0] == 0]
    data = b"".join([encode(kind, payload, tx) for _, kind, payload, tx in requests])
    pieces = []
    start = turn = 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[start : start + size])
        start += size
        turn += 1
    assert replies_of(pieces) == replies_of([data])
    assert replies_of([data[at : at + 1] for at in range(len(data))]) == replies_of([data])


@given(st.binary(max_size=400))
@settings(deadline=None, max_examples=200)
def test_noise_does_no_harm(data: bytes) -> None:
    server = XenstoreServer()
    conn, other = server.connect(), Client(server)
    server.receive(conn, data)
    decode(conn.take())
    assert other.ask(XS_READ, b"/tool\0") == b""
    assert server.store.check() == []


def test_noise_in_good_headers_does_no_harm() -> None:
    dice = random.Random(1)
    server = XenstoreServer()
    clients = [Client(server), Client(server, domid=3)]
    for step in range(4000):
        words = [
            dice.choice((b"/", b"/a", b"/a/b", b"@releaseDomain", b"T", b"\xff", b"", b"r3", b"9"))
            for _ in range(dice.randrange(4))
        ]
        payload = b"\0".join(words) + dice.choice((b"", b"\0"))
        kind, tx_id = dice.randrange(28), dice.choice((0, 0, 1, 2, 9))
        heard = dice.choice(clients).send(kind, payload, tx_id)
        for message in heard:
            assert len(message.payload) <= 4096, step
            assert message.kind != XS_ERROR or message.error in {
                "EINVAL", "ENOENT", "EACCES", "EEXIST", "EBUSY", "EAGAIN", "ENOSYS", "EPERM",
            }  # fmt: skip
    assert server.store.check() == []


def test_a_header_alone_is_not_a_request() -> None:
    server = XenstoreServer()
    conn = server.connect()
    message = encode(XS_WATCH, b"/a\0t\0")
    assert not server.receive(conn, message[: HEADER.size])
    assert conn.take() == b""
    assert conn.unparsed == message[: HEADER.size]
    server.receive(conn, message[HEADER.size :])
    assert [m.kind for m in decode(conn.take())] == [XS_WATCH, 15]
    assert conn.unparsed == b""
