"""Watch events: which, to whom, in which order; seen of the C daemon 4.17.7 except depths."""

from __future__ import annotations

import pytest
from xenstore.talk import Client

from xenlive.abi.xs_wire import (
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlive.xenstore.server import XenstoreServer


def watching(client: Client, *watches: bytes) -> None:
    """Sets watches, each `path NUL token NUL`, and drops their first events."""
    for watch in watches:
        assert client.ask(XS_WATCH, watch) == b"OK\0"
    client.heard()


def test_first_event_follows_the_reply() -> None:
    client = Client(XenstoreServer())
    kinds = [(m.kind, m.payload) for m in client.send(XS_WATCH, b"/a\0t\0")]
    assert kinds == [(XS_WATCH, b"OK\0"), (XS_WATCH_EVENT, b"/a\0t\0")]


def test_other_events_precede_the_reply_of_who_caused_them() -> None:
    client = Client(XenstoreServer())
    watching(client, b"/\0r\0")
    kinds = [(m.kind, m.payload) for m in client.send(XS_WRITE, b"/q\0v")]
    assert kinds == [(XS_WATCH_EVENT, b"/q\0r\0"), (XS_WRITE, b"OK\0")]


# One row: watches set, request, payload, events of an onlooker.
EVENTS: list[tuple[list[bytes], int, bytes, list[bytes]]] = [
    ([b"/\0r\0"], XS_WRITE, b"/a/b/c\0v", [b"/a/b/c\0r\0"]),  # those made on the way don't count
    ([b"/\0r\0"], XS_MKDIR, b"/a/b\0", [b"/a/b\0r\0"]),
    ([b"/\0r\0"], XS_MKDIR, b"/old\0", []),
    ([b"/\0r\0"], XS_SET_PERMS, b"/old\0n0\0", [b"/old\0r\0"]),
    ([b"/\0r\0"], XS_WRITE, b"/old\0same", [b"/old\0r\0"]),
    ([b"/\0r\0"], XS_WRITE, b"/\0v", [b"/\0r\0"]),
    ([b"/old\0r\0"], XS_WRITE, b"/older\0v", []),
    ([b"/old/x\0r\0"], XS_WRITE, b"/old\0v", []),
    ([b"/old\0r\0"], XS_READ, b"/old\0", []),
    ([b"/\0r\0"], XS_RM, b"/nope\0", []),
    ([b"/\0r\0"], XS_RM, b"/old\0", [b"/old\0r\0"]),  # not for each below
    (
        [b"/old\0one\0", b"/old/sub\0two\0", b"/old/sub/leaf\0three\0", b"/old/other\0four\0"],
        XS_RM,
        b"/old\0",
        [b"/old/sub/leaf\0three\0", b"/old/sub\0two\0", b"/old/other\0four\0", b"/old\0one\0"],
    ),
    ([b"/a\0z\0", b"/\0y\0", b"/a\0x\0"], XS_WRITE, b"/a\0", [b"/a\0z\0", b"/a\0y\0", b"/a\0x\0"]),
    ([b"/a\0t\0", b"/\0t\0"], XS_WRITE, b"/a\0", [b"/a\0t\0"]),  # the same event once
    (
        [b"q\0rel\0", b"/\0abs\0"],
        XS_WRITE,
        b"q/w\0",
        [b"q/w\0rel\0", b"/local/domain/0/q/w\0abs\0"],
    ),
    ([b"/\0a\x000\0", b"/\0b\x001\0", b"/\0c\x002\0"], XS_WRITE, b"/x/y\0", [b"/x/y\0c\0"]),
    ([b"/x\0a\x000\0", b"/x\0b\x001\0"], XS_WRITE, b"/x/y\0", [b"/x/y\0b\0"]),
    ([b"/x\0a\x000\0"], XS_WRITE, b"/x\0", [b"/x\0a\0"]),
    ([b"@releaseDomain\0t\0", b"/\0r\0"], XS_SET_PERMS, b"@releaseDomain\0n0\0", []),
]


@pytest.mark.parametrize(("watches", "kind", "payload", "expected"), EVENTS)
def test_events(watches: list[bytes], kind: int, payload: bytes, expected: list[bytes]) -> None:
    server = XenstoreServer()
    writer, onlooker = Client(server), Client(server)
    for path in (b"/old/sub/leaf\0", b"/old/other\0"):
        writer.ask(XS_WRITE, path)
    watching(onlooker, *watches)
    server.drain_touched()
    writer.ask(kind, payload)
    heard = onlooker.events()
    if payload.startswith(b"@"):
        expected = [b"@releaseDomain\0t\0"]
    assert heard == expected
    assert server.drain_touched() == ([onlooker.conn] if expected else [])


def test_an_event_that_waits_is_not_sent_again() -> None:
    server = XenstoreServer()
    writer, sleeper = Client(server), Client(server)
    watching(sleeper, b"/\0r\0")
    for _ in range(1000):
        writer.ask(XS_WRITE, b"/a\0v")
        writer.ask(XS_WRITE, b"/b\0v")
    assert sleeper.conn.unsent_bytes() == 2 * (16 + 5)
    assert sleeper.events() == [b"/a\0r\0", b"/b\0r\0"]
    writer.ask(XS_WRITE, b"/a\0v")
    assert sleeper.events() == [b"/a\0r\0"]


def test_events_too_long_are_left_out() -> None:
    server = XenstoreServer()
    client = Client(server)
    token = b"t" * (4096 - 5)
    assert client.ask(XS_WATCH, b"/w\0" + token + b"\0") == b"OK\0"
    client.heard()
    writer = Client(server)
    writer.ask(XS_WRITE, b"/w\0v")
    writer.ask(XS_WRITE, b"/w/longer\0v")
    assert client.events() == [b"/w\0" + token + b"\0"]


def test_transaction_events_come_on_commit_in_the_order_of_first_access() -> None:
    server = XenstoreServer()
    writer, onlooker = Client(server), Client(server)
    writer.ask(XS_WRITE, b"/q/r\0v")
    watching(onlooker, b"/\0r\0", b"/q/r\0exact\0")
    writer.ask(XS_TRANSACTION_START, b"\0")
    for kind, payload in [
        (XS_WRITE, b"/q/z\0v"),
        (XS_READ, b"/q/y\0"),
        (XS_WRITE, b"/q/x\0v"),
        (XS_WRITE, b"/q/y\0v"),
        (XS_RM, b"/q/r\0"),
        (XS_WRITE, b"/q/tmp\0v"),
        (XS_RM, b"/q/tmp\0"),
    ]:
        writer.ask(kind, payload, 1)
    assert onlooker.events() == []
    assert writer.ask(XS_TRANSACTION_END, b"T\0", 1) == b"OK\0"
    assert onlooker.events() == [
        b"/q/z\0r\0",
        b"/q/y\0r\0",
        b"/q/x\0r\0",
        b"/q/r\0r\0",
        b"/q/r\0exact\0",
    ]


@pytest.mark.parametrize("end", [b"F\0", b"T\0"])
def test_transactions_without_an_effect_have_no_events(end: bytes) -> None:
    server = XenstoreServer()
    writer, onlooker = Client(server), Client(server)
    watching(onlooker, b"/\0r\0")
    writer.ask(XS_TRANSACTION_START, b"\0")
    writer.ask(XS_WRITE, b"/a\0in", 1)
    if end == b"T\0":
        writer.ask(XS_WRITE, b"/a\0out")  # a conflict
        assert onlooker.events() == [b"/a\0r\0"]
    writer.ask(XS_TRANSACTION_END, end, 1)
    assert onlooker.events() == []


def test_who_is_gone_hears_nothing() -> None:
    server = XenstoreServer()
    writer, gone, there = Client(server), Client(server), Client(server)
    watching(gone, b"/\0r\0", b"/a\0s\0")
    watching(there, b"/\0r\0")
    server.disconnect(gone.conn)
    writer.ask(XS_WRITE, b"/a\0v")
    assert gone.heard() == []
    assert there.events() == [b"/a\0r\0"]
    assert server.watch_count == 1


def test_guests_hear_only_of_what_they_may_read() -> None:
    server = XenstoreServer()
    server.store.add_domain(3)
    owner, guest = Client(server), Client(server, domid=3)
    for path, perms in [(b"/shut\0", b"n0\0"), (b"/open\0", b"r0\0"), (b"/mine\0", b"n3\0")]:
        owner.ask(XS_WRITE, path)
        owner.ask(XS_SET_PERMS, path + perms)
    watching(guest, b"/\0r\0")
    owner.ask(XS_WRITE, b"/shut\0v")
    owner.ask(XS_WRITE, b"/shut/x\0v")
    assert guest.events() == []
    owner.ask(XS_WRITE, b"/open\0v")
    owner.ask(XS_WRITE, b"/mine\0v")
    assert guest.events() == [b"/open\0r\0", b"/mine\0r\0"]
    # Below what it may read it hears of what it may not: of its removal, too.
    owner.ask(XS_WRITE, b"/open/x\0v")
    owner.ask(XS_SET_PERMS, b"/open/x\0n0\0")
    assert guest.events() == [b"/open/x\0r\0"]
    owner.ask(XS_RM, b"/open/x\0")
    assert guest.events() == [b"/open/x\0r\0"]
    # Losing the right to read is the last thing it hears.
    owner.ask(XS_SET_PERMS, b"/mine\0n0\0")
    assert guest.events() == [b"/mine\0r\0"]
    owner.ask(XS_WRITE, b"/mine\0v")
    assert guest.events() == []
