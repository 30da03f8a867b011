"""`docs/differences.md`, row by row: what we answer, and what Debian's C daemon 4.17 does."""

from __future__ import annotations

from pathlib import Path

import pytest
from peer.c_daemon import CDaemon
from xenstore.talk import Client, encode
from xenstore.test_xs_differential import SocketClient

from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_GET_DOMAIN_PATH,
    XS_GET_FEATURE,
    XS_GET_PERMS,
    XS_GET_QUOTA,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_READ,
    XS_RELEASE,
    XS_RESUME,
    XS_RM,
    XS_SET_FEATURE,
    XS_SET_PERMS,
    XS_SET_QUOTA,
    XS_SET_TARGET,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
)
from xenlive.xenstore.server import XenstoreServer

PAGE = Path(__file__).parents[2] / "docs" / "differences.md"
OK = b"OK\0"

Reply = bytes | str
# What a row of the page says, request, our reply, that of C 4.17; None where it is not to be asked:
# what it answers depends on what it did before, or on guests that are not there.
ROWS: list[tuple[str, int, bytes, Reply, Reply | None]] = [
    ("GET_DOMAIN_PATH", XS_GET_DOMAIN_PATH, b"abc\0", "EINVAL", b"/local/domain/0\0"),
    ("GET_DOMAIN_PATH", XS_GET_DOMAIN_PATH, b"1 \0", "EINVAL", b"/local/domain/1\0"),
    ("GET_DOMAIN_PATH", XS_GET_DOMAIN_PATH, b"0x1\0", "EINVAL", b"/local/domain/0\0"),
    ("GET_DOMAIN_PATH", XS_GET_DOMAIN_PATH, b"-1\0", "EINVAL", b"/local/domain/4294967295\0"),
    ("GET_DOMAIN_PATH", XS_GET_DOMAIN_PATH, b"65536\0", "EINVAL", b"/local/domain/65536\0"),
    ("GET_DOMAIN_PATH", XS_GET_DOMAIN_PATH, b"7\0", b"/local/domain/7\0", b"/local/domain/7\0"),
    ("IS_DOMAIN_INTRODUCED", XS_IS_DOMAIN_INTRODUCED, b"abc\0", "EINVAL", b"T\0"),
    ("IS_DOMAIN_INTRODUCED", XS_IS_DOMAIN_INTRODUCED, b"65536\0", "EINVAL", b"F\0"),
    ("IS_DOMAIN_INTRODUCED", XS_IS_DOMAIN_INTRODUCED, b"65535\0", b"F\0", b"F\0"),
    ("GET_PERMS of `@rel", XS_GET_PERMS, b"@releaseDomain\0", b"n0\0r32757\0", "EINVAL"),
    ("`@introduceDomain`", XS_GET_PERMS, b"@introduceDomain\0", b"n0\0", "EINVAL"),
    ("(`@foo`)", XS_GET_PERMS, b"@foo\0", "ENOENT", "EINVAL"),
    ("(`@foo`)", XS_SET_PERMS, b"@foo\0n0\0", "ENOENT", "EINVAL"),
    ("SET_PERMS of a bad path", XS_SET_PERMS, b"//\0n0\0", "EINVAL", "EINVAL"),
    ("SET_PERMS of a bad path", XS_SET_PERMS, b"//\0n55\0x\0", "EINVAL", "EINVAL"),
    ("SET_PERMS of a bad path", XS_SET_PERMS, b"//\0n55\0", "ENOENT", "ENOENT"),
    ("an entry after the first", XS_SET_PERMS, b"/tool\0n0\0r65536\0", "EINVAL", OK),
    ("an entry after the first", XS_SET_PERMS, b"/tool\0n0\0r-1\0", "EINVAL", OK),
    ("DOMID_ANY as the owner", XS_SET_PERMS, b"/tool\0n32757\0", "ENOENT", "ENOENT"),
    ("UNWATCH", XS_UNWATCH, b"/a//b\0t\0", "EINVAL", "ENOENT"),
    ("UNWATCH", XS_UNWATCH, b"/a\0t\0", "ENOENT", "ENOENT"),
    ("WATCH with a depth", XS_WATCH, b"/a\0t\x001\0", OK, "EINVAL"),
    ("not one string", XS_READ, b"", "EINVAL", None),
    ("not one string", XS_READ, b"\0\0", "EINVAL", None),
    ("not one string", XS_DIRECTORY, b"", "EINVAL", None),
    ("not one string", XS_RM, b"\0\0", "EINVAL", None),
    ("not one string", XS_GET_PERMS, b"/tool", "EINVAL", None),
    ("INTRODUCE,", XS_INTRODUCE, b"x\x001\x001\0", "EINVAL", None),
    ("RELEASE,", XS_RELEASE, b"1 \0", "EINVAL", None),
    ("RESUME,", XS_RESUME, b"-1\0", "EINVAL", None),
    ("SET_TARGET", XS_SET_TARGET, b"1\x0065536\0", "EINVAL", None),
    ("GET_FEATURE", XS_GET_FEATURE, b"\0", b"14\0", "ENOSYS"),
    ("SET_FEATURE", XS_SET_FEATURE, b"1\x001\0", "ENOENT", "ENOSYS"),
    ("GET_QUOTA", XS_GET_QUOTA, b"nodes\0", b"1000\0", "ENOSYS"),
    ("SET_QUOTA", XS_SET_QUOTA, b"nodes\x001\0", OK, "ENOSYS"),
]


def test_every_row_is_on_the_page() -> None:
    cases = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    for text, *_ in ROWS:
        assert any(text in case for case in cases), text


@pytest.mark.parametrize(("kind", "payload", "ours"), [row[1:4] for row in ROWS])
def test_what_we_answer(kind: int, payload: bytes, ours: Reply) -> None:
    assert Client(XenstoreServer()).ask(kind, payload) == ours


@pytest.mark.peer
def test_what_the_c_daemon_answers(c_daemon: CDaemon) -> None:
    client = SocketClient(c_daemon)
    try:
        for _, kind, payload, _, theirs in ROWS:
            if theirs is not None:
                client.send(encode(kind, payload))
                (reply,) = client.heard()
                assert (reply.error or reply.payload) == theirs, (kind, payload)
    finally:
        client.close()


def test_special_permissions_wait_for_the_commit() -> None:
    client = Client(XenstoreServer())
    assert client.ask(XS_TRANSACTION_START, b"\0") == b"1\0"
    assert client.ask(XS_SET_PERMS, b"@releaseDomain\0b0\0", 1) == OK
    assert client.ask(XS_GET_PERMS, b"@releaseDomain\0") == b"n0\0r32757\0"
    assert client.ask(XS_TRANSACTION_END, b"T\0", 1) == OK
    assert client.ask(XS_GET_PERMS, b"@releaseDomain\0") == b"b0\0"
