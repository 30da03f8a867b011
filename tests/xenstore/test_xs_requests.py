"""Every request and every error, as tables; expected values were seen of the C daemon 4.17.7.

Where that version and the newest differ, and the specification sides with the newest, the newest
is expected; those rows say so.
"""

from __future__ import annotations

import pytest
from xenstore.talk import Client, Message

from xenlive.abi.xs_wire import (
    TYPE_NAMES,
    XS_CONTROL,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_ERROR,
    XS_GET_DOMAIN_PATH,
    XS_GET_PERMS,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_RESET_WATCHES,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
    XSD_ERRORS,
)
from xenlive.errors import XenstoreError
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.requests import Request
from xenlive.xenstore.server import XenstoreServer

OK = b"OK\0"
TOO_LONG = b"/" + b"a" * 2048 + b"\0"

# One row: request, payload, what comes back. The rows of a table run on one server, in order.
PATH_ERRORS: list[tuple[bytes, str]] = [
    (b"", "EINVAL"),
    (b"/a", "EINVAL"),
    (b"/a\0x\0", "EINVAL"),
    (b"//a\0", "EINVAL"),
    (b"/a/\0", "EINVAL"),
    (b"/a b\0", "EINVAL"),
    (b"/a.b\0", "EINVAL"),
    (b"\0", "EINVAL"),
    (b"/\xff\0", "EINVAL"),
    (TOO_LONG, "EINVAL"),
    (b"/local/domain/1/" + b"a" * 2049 + b"\0", "EINVAL"),
    (b"/local/domain/123456/" + b"a" * 2040 + b"\0", "EINVAL"),
    (b"@releaseDomain\0", "EINVAL"),
]


@pytest.mark.parametrize(("payload", "error"), PATH_ERRORS)
@pytest.mark.parametrize("kind", [XS_READ, XS_DIRECTORY, XS_MKDIR, XS_RM])
def test_bad_paths(kind: int, payload: bytes, error: str) -> None:
    assert Client(XenstoreServer()).ask(kind, payload) == error


LONG_PATHS: list[bytes] = [
    b"/" + b"a" * 2047,
    b"/local/domain/1/" + b"a" * 2048,
    b"/local/domain/12345/" + b"a" * 2048,
    b"/local/domain/-1234/" + b"a" * 2048,
    b"a" * 2048,
]


@pytest.mark.parametrize("path", LONG_PATHS)
def test_the_longest_paths(path: bytes) -> None:
    client = Client(XenstoreServer())
    assert client.ask(XS_READ, path + b"\0") == "ENOENT"
    assert client.ask(XS_READ, path + b"a\0") == "EINVAL"
    assert client.ask(XS_WRITE, path + b"\0value") == OK
    assert client.ask(XS_READ, path + b"\0") == b"value"


TREE: list[tuple[int, bytes, bytes | str]] = [
    (XS_DIRECTORY, b"/\0", b"tool\0"),
    (XS_DIRECTORY, b"/tool\0", b"xenstored\0"),
    (XS_DIRECTORY, b"/tool/xenstored\0", b""),
    (XS_READ, b"/\0", b""),
    (XS_GET_PERMS, b"/\0", b"n0\0"),
    (XS_READ, b"/nope\0", "ENOENT"),
    (XS_DIRECTORY, b"/nope\0", "ENOENT"),
    (XS_GET_PERMS, b"/nope\0", "ENOENT"),
    (XS_WRITE, b"", "EINVAL"),
    (XS_WRITE, b"/a", "EINVAL"),
    (XS_WRITE, b"//a\0", "EINVAL"),
    (XS_WRITE, b"/\0zz", OK),
    (XS_READ, b"/\0", b"zz"),
    (XS_WRITE, b"/a\0x\0y\0", OK),
    (XS_READ, b"/a\0", b"x\0y\0"),
    (XS_WRITE, b"/a\0", OK),
    (XS_READ, b"/a\0", b""),
    (XS_WRITE, b"/d/e/f\0deep", OK),
    (XS_DIRECTORY, b"/d\0", b"e\0"),
    (XS_READ, b"/d\0", b""),
    (XS_WRITE, b"rel/x\0v", OK),
    (XS_READ, b"/local/domain/0/rel/x\0", b"v"),
    (XS_READ, b"rel/x\0", b"v"),
    (XS_MKDIR, b"/a\0", OK),
    (XS_MKDIR, b"/m/n\0", OK),
    (XS_DIRECTORY, b"/\0", b"tool\0a\0d\0local\0m\0"),
    (XS_MKDIR, b"/\0", OK),
    (XS_RM, b"/nope\0", OK),
    (XS_RM, b"/nope/x\0", "ENOENT"),
    (XS_RM, b"/\0", "EINVAL"),
    (XS_RM, b"/d\0", OK),
    (XS_READ, b"/d/e/f\0", "ENOENT"),
    (XS_WRITE, b"/d\0again", OK),
    (XS_DIRECTORY, b"/\0", b"tool\0a\0local\0m\0d\0"),
    (XS_DIRECTORY, b"/d\0", b""),
    (XS_CONTROL, b"check\0", OK),
]

PERMS: list[tuple[int, bytes, bytes | str]] = [
    (XS_WRITE, b"/a\0v", OK),
    (XS_SET_PERMS, b"/a\0n0\0", OK),
    (XS_SET_PERMS, b"/a\0n0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0x0\0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0r\0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0r5x\0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0R0\0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0\0", "EINVAL"),
    (XS_SET_PERMS, b"", "EINVAL"),
    (XS_SET_PERMS, b"/a\0r-1\0", "ENOENT"),
    (XS_SET_PERMS, b"/a\0r99999\0", "ENOENT"),
    (XS_SET_PERMS, b"/a\0r55\0", "ENOENT"),
    (XS_SET_PERMS, b"/a\0r55\0extra", "ENOENT"),
    (XS_GET_PERMS, b"/a\0", b"n0\0"),
    (XS_SET_PERMS, b"/a\0w0\0r55\0b56\0n0x39\0r 0071\0", OK),
    (XS_GET_PERMS, b"/a\0", b"w0\0r55\0b56\0n57\0r57\0"),
    (XS_SET_PERMS, b"/a\0b0\0extra", OK),
    (XS_GET_PERMS, b"/a\0", b"b0\0"),
    (XS_WRITE, b"/a/b\0", OK),
    (XS_GET_PERMS, b"/a/b\0", b"b0\0"),
    # Every entry is parsed before one is looked at, and all of them before the path.
    (XS_SET_PERMS, b"/a\0n55\0N0\0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0n65536\0r\0", "EINVAL"),
    (XS_SET_PERMS, b"//\0n55\0", "ENOENT"),
    (XS_SET_PERMS, b"/a\0n0\0r65536\0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0n0\0r-1\0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0n0x0x0\0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0n0o0\0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0n08\0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0n0x\0", "EINVAL"),
    (XS_SET_PERMS, b"/nope\0n0\0", "ENOENT"),
    (XS_SET_PERMS, b"//\0n0\0", "EINVAL"),
    (XS_SET_PERMS, b"/a\0n32757\0", "ENOENT"),  # DOMID_ANY
    (XS_GET_PERMS, b"@introduceDomain\0", b"n0\0"),  # newest; EINVAL of 4.17
    (XS_GET_PERMS, b"@releaseDomain\0", b"n0\0r32757\0"),  # newest
    (XS_SET_PERMS, b"@releaseDomain\0n0\0r9\0", OK),
    (XS_GET_PERMS, b"@releaseDomain\0", b"n0\0r9\0"),
    (XS_SET_PERMS, b"@other\0n0\0", "ENOENT"),  # newest; EINVAL of 4.17
]

WATCHES: list[tuple[int, bytes, bytes | str]] = [
    (XS_WATCH, b"", "EINVAL"),
    (XS_WATCH, b"/a", "EINVAL"),
    (XS_WATCH, b"/a\0", "EINVAL"),
    (XS_WATCH, b"/a\0t", "EINVAL"),
    (XS_WATCH, b"/a\0t\0", OK),
    (XS_WATCH, b"/a\0t\0", "EEXIST"),
    (XS_WATCH, b"/a\0t\0x\0y\0", "EINVAL"),
    (XS_WATCH, b"/a\0other\x003\0", OK),  # newest: a depth; EINVAL of 4.17
    (XS_WATCH, b"/a\0minus\0-1\0", "EINVAL"),
    (XS_WATCH, b"/a\0\0", OK),
    (XS_WATCH, b"//\0t\0", "EINVAL"),
    (XS_WATCH, b"@any thing\0t\0", "EINVAL"),
    (XS_WATCH, b"@other/3\0t\0", OK),
    (XS_UNWATCH, b"", "EINVAL"),
    (XS_UNWATCH, b"/a\0", "EINVAL"),
    (XS_UNWATCH, b"/a\0t", "EINVAL"),
    (XS_UNWATCH, b"/a\0t\0", OK),
    (XS_UNWATCH, b"/a\0t\0", "ENOENT"),
    (XS_UNWATCH, b"/a\0t\x001\0", "EINVAL"),
    (XS_RESET_WATCHES, b"", OK),
    (XS_UNWATCH, b"/a\0\0", "ENOENT"),
    (XS_RESET_WATCHES, b"x", OK),
]

DOMAINS: list[tuple[int, bytes, bytes | str]] = [
    (XS_GET_DOMAIN_PATH, b"", "EINVAL"),
    (XS_GET_DOMAIN_PATH, b"0", "EINVAL"),
    (XS_GET_DOMAIN_PATH, b"0\0", b"/local/domain/0\0"),
    (XS_GET_DOMAIN_PATH, b" 7\0", b"/local/domain/7\0"),
    (XS_GET_DOMAIN_PATH, b"+007\0", b"/local/domain/7\0"),
    (XS_GET_DOMAIN_PATH, b"\0", b"/local/domain/0\0"),
    (XS_GET_DOMAIN_PATH, b"5\0x", "EINVAL"),
    (XS_GET_DOMAIN_PATH, b"7x\0", "EINVAL"),  # newest; domain 7 of 4.17
    (XS_GET_DOMAIN_PATH, b"-1\0", "EINVAL"),  # newest
    (XS_GET_DOMAIN_PATH, b"65536\0", "EINVAL"),  # newest
    (XS_IS_DOMAIN_INTRODUCED, b"0\0", b"T\0"),
    (XS_IS_DOMAIN_INTRODUCED, b"5\0", b"F\0"),
    (XS_IS_DOMAIN_INTRODUCED, b"32752\0", b"T\0"),
    (XS_IS_DOMAIN_INTRODUCED, b"junk\0", "EINVAL"),
]

CONTROL: list[tuple[int, bytes, bytes | str]] = [
    (XS_CONTROL, b"", "EINVAL"),
    (XS_CONTROL, b"\0", "EINVAL"),
    (XS_CONTROL, b"foo\0", "EINVAL"),
    (XS_CONTROL, b"check", "EINVAL"),
    (XS_CONTROL, b"check\0", OK),
    (XS_CONTROL, b"check\0x\0", "EINVAL"),
    (XS_CONTROL, b"check\0x", OK),
    (XS_CONTROL, b"print\0", "EINVAL"),
    (XS_CONTROL, b"print\0hi\0", OK),
    (XS_CONTROL, b"print\0hi\0there\0", "EINVAL"),
    (XS_CONTROL, b"help\0x\0", "EINVAL"),
]

PARTS: list[tuple[int, bytes, bytes | str]] = [
    (XS_MKDIR, b"/p/one\0", OK),
    (XS_MKDIR, b"/p/two\0", OK),
    (XS_DIRECTORY_PART, b"/p", "EINVAL"),
    (XS_DIRECTORY_PART, b"/p\0", "EINVAL"),
    (XS_DIRECTORY_PART, b"/p\x000", "EINVAL"),
    (XS_DIRECTORY_PART, b"/p\x000\0", b"one\0two\0\0"),
    (XS_DIRECTORY_PART, b"/p\x004\0", b"two\0\0"),
    (XS_DIRECTORY_PART, b"/p\x001\0", b"ne\0two\0\0"),
    (XS_DIRECTORY_PART, b"/p\x004\0junk", b"two\0\0"),
    (XS_DIRECTORY_PART, b"/p\0x\0", b"one\0two\0\0"),
    (XS_DIRECTORY_PART, b"/p\0-1\0", b"\0"),
    (XS_DIRECTORY_PART, b"/p\x008\0", b"\0"),
    (XS_DIRECTORY_PART, b"/p/one\x000\0", b"\0"),
    (XS_DIRECTORY_PART, b"/nope\x000\0", "ENOENT"),
]


@pytest.mark.parametrize(
    "rows",
    [TREE, PERMS, WATCHES, DOMAINS, CONTROL, PARTS],
    ids=["tree", "perms", "watches", "domains", "control", "parts"],
)
def test_table(rows: list[tuple[int, bytes, bytes | str]]) -> None:
    client = Client(XenstoreServer())
    for kind, payload, expected in rows:
        answer = client.ask(kind, payload)
        if kind == XS_DIRECTORY_PART and isinstance(answer, bytes):
            answer = answer.partition(b"\0")[2]  # the generation is each server's own
        assert answer == expected, (TYPE_NAMES[kind], payload)
    assert client.server.store.check() == []


TRANSACTIONS: list[tuple[int, int, bytes, bytes | str]] = [
    (XS_TRANSACTION_START, 0, b"", b"1\0"),
    (XS_TRANSACTION_START, 0, b"\0", b"2\0"),
    (XS_TRANSACTION_START, 0, b"x\0", b"3\0"),
    (XS_TRANSACTION_START, 1, b"\0", "EBUSY"),
    (XS_TRANSACTION_START, 99, b"\0", "ENOENT"),
    (XS_TRANSACTION_END, 1, b"", "EINVAL"),
    (XS_TRANSACTION_END, 1, b"X\0", "EINVAL"),
    (XS_TRANSACTION_END, 1, b"T", "EINVAL"),
    (XS_TRANSACTION_END, 1, b"T\0x", "EINVAL"),
    (XS_TRANSACTION_END, 0, b"X\0", "EINVAL"),
    (XS_TRANSACTION_END, 0, b"T\0", "ENOENT"),
    (XS_TRANSACTION_END, 77, b"F\0", "ENOENT"),
    (XS_WRITE, 1, b"/in/one\0v", OK),
    (XS_READ, 0, b"/in/one\0", "ENOENT"),
    (XS_READ, 1, b"/in/one\0", b"v"),
    (XS_DIRECTORY, 1, b"/\0", b"tool\0in\0"),
    (XS_TRANSACTION_END, 1, b"T\0", OK),
    (XS_READ, 1, b"/in/one\0", "ENOENT"),
    (XS_READ, 0, b"/in/one\0", b"v"),
    (XS_WRITE, 2, b"/in/one\0lost", OK),
    (XS_TRANSACTION_END, 2, b"F\0", OK),
    (XS_READ, 0, b"/in/one\0", b"v"),
    (XS_RM, 3, b"/in\0", OK),
    (XS_READ, 3, b"/in/one\0", "ENOENT"),
    (XS_WRITE, 3, b"/in/two\0w", OK),
    (XS_DIRECTORY, 3, b"/in\0", b"two\0"),
    (XS_DIRECTORY, 0, b"/in\0", b"one\0"),
    (XS_GET_PERMS, 3, b"/in/two\0", b"n0\0"),
    (XS_SET_PERMS, 3, b"/in/two\0b0\0", OK),
    (XS_TRANSACTION_END, 3, b"T\0", OK),
    (XS_DIRECTORY, 0, b"/in\0", b"two\0"),
    (XS_GET_PERMS, 0, b"/in/two\0", b"b0\0"),
    (XS_TRANSACTION_START, 0, b"\0", b"4\0"),
    (XS_GET_DOMAIN_PATH, 5, b"5\0", "ENOENT"),
    (XS_WATCH, 5, b"/w\0t\0", OK),  # the transaction id of WATCH is ignored
    (XS_RESET_WATCHES, 5, b"\0", "ENOENT"),
    (XS_RESET_WATCHES, 0, b"\0", OK),
    (XS_READ, 4, b"/\0", "ENOENT"),
    (XS_TRANSACTION_START, 0, b"\0", b"5\0"),
]


def test_transaction_table() -> None:
    client = Client(XenstoreServer())
    for kind, tx_id, payload, expected in TRANSACTIONS:
        assert client.ask(kind, payload, tx_id) == expected, (TYPE_NAMES[kind], tx_id, payload)
        assert client.server.store.check() == []
    assert len(client.server.open_transactions()) == 1
    client.server.disconnect(client.conn)
    assert not client.server.store.pins


@pytest.mark.parametrize("kind", [15, 16, 20, 27, 99, 2**32 - 1])
def test_what_is_not_there_is_enosys(kind: int) -> None:
    client = Client(XenstoreServer())
    for payload in (b"", b"1\0"):
        assert client.send(kind, payload, 55) == [Message(XS_ERROR, 7, 55, b"ENOSYS\0")]


@pytest.mark.parametrize("kind", [0, 8, 9, 17, 18, 19, 24, 26])
def test_guests_may_not(kind: int) -> None:
    assert Client(XenstoreServer(), domid=3).ask(kind, b"check\0") == "EACCES"


def test_directory_of_more_than_a_message() -> None:
    client = Client(XenstoreServer())
    names = [b"name%04d" % number for number in range(1000)]
    for name in names[:455]:
        client.ask(XS_MKDIR, b"/big/" + name + b"\0")
    client.ask(XS_MKDIR, b"/big/x\0")  # 455 * 9 + 2 is 4097
    assert client.ask(XS_DIRECTORY, b"/big\0") == "E2BIG"
    client.ask(XS_RM, b"/big/x\0")
    assert client.ask(XS_DIRECTORY, b"/big\0") == b"".join([n + b"\0" for n in names[:455]])
    for name in names[455:]:
        client.ask(XS_MKDIR, b"/big/" + name + b"\0")
    listed = b""
    while not listed.endswith(b"\0\0"):
        part = client.ask(XS_DIRECTORY_PART, b"/big\0%d\0" % len(listed))
        assert isinstance(part, bytes)
        assert len(part) <= 4096
        assert part.endswith(b"\0")
        listed += part.partition(b"\0")[2]
    assert listed == b"".join([n + b"\0" for n in names]) + b"\0"


def test_the_largest_value() -> None:
    client = Client(XenstoreServer())
    value = b"x" * (4096 - 5)
    assert client.ask(XS_WRITE, b"/big\0" + value) == OK
    assert client.ask(XS_READ, b"/big\0") == value


def test_a_message_too_long_closes_only_its_connection() -> None:
    server = XenstoreServer()
    bad, good = Client(server), Client(server)
    header = (2).to_bytes(4, "little") + bytes(8) + (4097).to_bytes(4, "little")
    assert server.receive(bad.conn, header)
    assert bad.conn.closing
    assert server.receive(bad.conn, header * 3)
    assert bad.heard() == []
    assert not good.conn.closing
    assert good.ask(XS_READ, b"/\0") == b""


def test_control_handlers_from_outside() -> None:
    server = XenstoreServer()
    client = Client(server)
    put_off: list[tuple[Connection, Request]] = []

    def later(conn: Connection, request: Request, args: list[bytes]) -> bytes | None:
        put_off.append((conn, request))
        if args == [b"fail"]:
            raise XenstoreError("EPERM")
        return None

    server.control[b"later"] = later
    server.control_help[b"later"] = b"<something>"
    assert client.send(XS_CONTROL, b"later\0a\0") == []
    assert client.ask(XS_READ, b"/\0") == b""
    server.reply(*put_off[0], b"done\0")
    assert client.heard() == [Message(XS_CONTROL, 7, 0, b"done\0")]
    assert client.ask(XS_CONTROL, b"later\0fail\0") == "EPERM"
    listed = client.ask(XS_CONTROL, b"help\0")
    assert isinstance(listed, bytes)
    assert b"later           <something>\n" in listed
    assert listed.startswith(b"check           \n")


def test_print_goes_to_who_wants_it() -> None:
    server = XenstoreServer()
    printed: list[bytes] = []
    server.on_print = printed.append
    assert Client(server).ask(XS_CONTROL, b"print\0hello\0") == OK
    assert printed == [b"control: hello"]


def test_error_names_the_protocol_has_no_word_for() -> None:
    server = XenstoreServer()
    client = Client(server)
    server.refuse(client.conn, Request(bytes(12), XS_READ, 0, b""), "EDOM")
    assert [m.error for m in client.heard()] == ["EINVAL"]
    assert "EDOM" not in XSD_ERRORS


def test_reply_over_the_limit_is_e2big() -> None:
    server = XenstoreServer()
    client = Client(server)
    server.reply(client.conn, Request(bytes(12), XS_READ, 0, b""), bytes(4097))
    assert [m.error for m in client.heard()] == ["E2BIG"]


def test_held_transactions_wait_in_order() -> None:
    server = XenstoreServer()
    running, waiting = Client(server), Client(server)
    assert running.ask(XS_TRANSACTION_START, b"\0") == b"1\0"
    server.hold_transactions = True
    assert running.ask(XS_TRANSACTION_START, b"\0") == b"2\0"  # it has one: goes on
    start = (6).to_bytes(4, "little") + bytes(12)
    read = (2).to_bytes(4, "little") + bytes(8) + (2).to_bytes(4, "little") + b"/\0"
    assert server.receive(waiting.conn, start + read)
    assert waiting.conn.held
    assert waiting.heard() == []
    assert waiting.conn.unparsed == start + read
    assert server.release_held() == [waiting.conn]
    assert [m.payload for m in waiting.heard()] == [b"1\0", b""]
    assert waiting.conn.unparsed == b""


def test_age_of_transactions() -> None:
    clock = [100.0]
    server = XenstoreServer(now=lambda: clock[0])
    client, guest = Client(server), Client(server, domid=5)
    assert server.open_transactions() == []
    client.ask(XS_TRANSACTION_START, b"\0")
    clock[0] = 103.5
    client.ask(XS_TRANSACTION_START, b"\0")
    guest.ask(XS_TRANSACTION_START, b"\0")
    clock[0] = 104.0
    assert server.open_transactions() == [(0, 4.0), (5, 0.5)]
    server.drop_transactions()
    assert server.open_transactions() == []
    assert client.ask(XS_READ, b"/\0", 1) == "ENOENT"


def test_counts() -> None:
    server = XenstoreServer()
    client = Client(server)
    assert server.node_count == 5  # as the C daemon counts them
    client.ask(XS_WRITE, b"/a/b\0")
    client.ask(XS_WATCH, b"/a\0t\0")
    assert (server.node_count, server.watch_count, len(server.connections)) == (7, 1, 1)
    server.disconnect(client.conn)
    assert (server.node_count, server.watch_count, len(server.connections)) == (7, 0, 0)
    assert XS_WATCH_EVENT in TYPE_NAMES
