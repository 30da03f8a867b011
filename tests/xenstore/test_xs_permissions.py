"""What a domain without privilege may do; Xen `docs/misc/xenstore.txt` and the C daemon's rules."""

from __future__ import annotations

import pytest
from xenstore.talk import Client

from xenlive.abi.xs_wire import (
    DOMID_ANY,
    XS_DIRECTORY,
    XS_GET_PERMS,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WRITE,
)
from xenlive.xenstore import perms
from xenlive.xenstore.server import XenstoreServer

OK = b"OK\0"


def world() -> tuple[XenstoreServer, Client, Client]:
    """A server that knows domains 0, 3 and 4; clients of domain 0 and 3."""
    server = XenstoreServer()
    server.store.add_domain(4)
    return server, Client(server), Client(server, domid=3)


# Permissions of /n; what domain 3 gets for READ, WRITE, and for reading /n/missing.
ACCESS: list[tuple[bytes, bytes | str, bytes | str, str]] = [
    (b"n0\0", "EACCES", "EACCES", "EACCES"),
    (b"r0\0", b"v", "EACCES", "ENOENT"),
    (b"w0\0", "EACCES", OK, "EACCES"),
    (b"b0\0", b"v", OK, "ENOENT"),
    (b"n3\0", b"v", OK, "ENOENT"),
    (b"n0\0r3\0", b"v", "EACCES", "ENOENT"),
    (b"n0\0w3\0", "EACCES", OK, "EACCES"),
    (b"n0\0b3\0", b"v", OK, "ENOENT"),
    (b"b0\0n3\0", "EACCES", "EACCES", "EACCES"),
    (b"n0\0r4\0", "EACCES", "EACCES", "EACCES"),
    (b"n0\0r3\0b3\0", b"v", "EACCES", "ENOENT"),  # the first entry counts
    (b"n0\0b%d\0" % DOMID_ANY, b"v", OK, "ENOENT"),
]


@pytest.mark.parametrize(("text", "read", "write", "missing"), ACCESS)
def test_access(text: bytes, read: bytes | str, write: bytes | str, missing: str) -> None:
    _, owner, guest = world()
    owner.ask(XS_WRITE, b"/n\0v")
    assert owner.ask(XS_SET_PERMS, b"/n\0" + text) == OK
    assert guest.ask(XS_READ, b"/n\0") == read
    assert guest.ask(XS_GET_PERMS, b"/n\0") == (text if read == b"v" else "EACCES")
    assert guest.ask(XS_DIRECTORY, b"/n\0") == (b"" if read == b"v" else "EACCES")
    assert guest.ask(XS_READ, b"/n/missing\0") == missing
    assert guest.ask(XS_WRITE, b"/n\0w") == write
    assert guest.ask(XS_MKDIR, b"/n/sub/below\0") == write
    assert guest.ask(XS_RM, b"/n\0") == write


def test_what_a_guest_makes_is_its_own() -> None:
    _, owner, guest = world()
    owner.ask(XS_MKDIR, b"/local/domain/3\0")
    owner.ask(XS_SET_PERMS, b"/local/domain/3\0n3\0r4\0")
    assert guest.ask(XS_WRITE, b"data/x\0v") == OK
    assert guest.ask(XS_GET_PERMS, b"/local/domain/3/data\0") == b"n3\0r4\0"
    owner.ask(XS_WRITE, b"/local/domain/3/given\0v")
    assert owner.ask(XS_GET_PERMS, b"/local/domain/3/given\0") == b"n3\0r4\0"
    owner.ask(XS_SET_PERMS, b"/local/domain/3/given\0b0\0")
    assert guest.ask(XS_WRITE, b"given/sub\0v") == OK
    assert guest.ask(XS_GET_PERMS, b"given/sub\0") == b"b3\0"


def test_only_the_owner_sets_permissions_and_none_gives_away() -> None:
    _, owner, guest = world()
    owner.ask(XS_WRITE, b"/mine\0v")
    owner.ask(XS_SET_PERMS, b"/mine\0n3\0")
    owner.ask(XS_WRITE, b"/shared\0v")
    owner.ask(XS_SET_PERMS, b"/shared\0b0\0")
    assert guest.ask(XS_SET_PERMS, b"/mine\0n3\0r0\0") == OK
    assert guest.ask(XS_SET_PERMS, b"/mine\0n0\0") == "EPERM"
    assert guest.ask(XS_SET_PERMS, b"/mine\0n4\0") == "EPERM"
    assert guest.ask(XS_SET_PERMS, b"/shared\0b3\0") == "EACCES"
    assert guest.ask(XS_SET_PERMS, b"@releaseDomain\0n3\0") == "EACCES"
    assert owner.ask(XS_GET_PERMS, b"/mine\0") == b"n3\0r0\0"


def test_the_same_inside_a_transaction() -> None:
    _, owner, guest = world()
    owner.ask(XS_WRITE, b"/shut/x\0v")
    owner.ask(XS_WRITE, b"/open\0v")
    owner.ask(XS_SET_PERMS, b"/open\0b0\0")
    guest.ask(XS_TRANSACTION_START, b"\0")
    assert guest.ask(XS_READ, b"/shut/x\0", 1) == "EACCES"
    assert guest.ask(XS_READ, b"/shut/nope\0", 1) == "EACCES"
    assert guest.ask(XS_WRITE, b"/open/x\0v", 1) == OK
    assert guest.ask(XS_GET_PERMS, b"/open/x\0", 1) == b"b3\0"
    assert guest.ask(XS_TRANSACTION_END, b"T\0", 1) == OK
    assert owner.ask(XS_GET_PERMS, b"/open/x\0") == b"b3\0"


def test_a_new_domain_does_not_inherit_from_the_last_with_its_number() -> None:
    server, owner, guest = world()
    for path in (b"/quiet\0", b"/busy\0", b"/dir\0"):
        owner.ask(XS_WRITE, path + b"v")
        owner.ask(XS_SET_PERMS, path + b"n0\0r3\0")
        assert guest.ask(XS_READ, path) == b"v"
    server.disconnect(guest.conn)
    del server.store.domains[3]
    successor = Client(server, domid=3)
    owner.ask(XS_WRITE, b"/busy\0v")  # written after the new domain came, for the old one
    owner.ask(XS_WRITE, b"/dir/child\0v")
    for path in (b"/quiet\0", b"/busy\0", b"/dir\0", b"/dir/child\0"):
        assert successor.ask(XS_READ, path) == "EACCES"
    owner.ask(XS_SET_PERMS, b"/quiet\0n0\0r3\0")
    assert successor.ask(XS_READ, b"/quiet\0") == b"v"


def test_entries_for_domains_that_are_not_there_stay_stale() -> None:
    server, owner, _ = world()
    owner.ask(XS_WRITE, b"/n\0v")
    assert owner.ask(XS_SET_PERMS, b"/n\0n0\0r77\0") == OK
    late = Client(server, domid=77)
    assert late.ask(XS_READ, b"/n\0") == "EACCES"
    assert owner.ask(XS_GET_PERMS, b"/n\0") == b"n0\0r77\0"


def test_acting_for_another_domain() -> None:
    _, owner, guest = world()
    owner.ask(XS_WRITE, b"/n\0v")
    owner.ask(XS_SET_PERMS, b"/n\0n4\0")
    assert guest.ask(XS_READ, b"/n\0") == "EACCES"
    guest.conn.target = 4
    assert guest.ask(XS_READ, b"/n\0") == b"v"


def test_permissions_are_kept_once() -> None:
    assert perms.make(("n", 0), ("r", 5)) is perms.make(("n", 0), ("r", 5))
    assert perms.with_owner(perms.make(("r", 0)), 0x1234) == b"r\0\x34\x12"
    assert perms.owner_of(b"r\0\x34\x12") == 0x1234
    for number in range(10_000):
        perms.intern(number.to_bytes(4, "little"))
    assert len(perms._known) <= 4096


@pytest.mark.parametrize(
    ("raw", "sound"),
    [
        (b"", False),
        (b"n\0\0", False),
        (b"n\0\0\0", True),
        (b"x\0\0\0", False),
        (b"n\0\0\0q\0\0\0", False),
    ],
)
def test_permissions_from_a_stream(raw: bytes, sound: bool) -> None:
    assert perms.valid_stream_entry(raw) is sound


def test_a_transaction_gives_nothing_to_a_domain_that_has_gone() -> None:
    server = XenstoreServer()
    client = Client(server)
    for entries in (b"n5\0", b"n0\0r5\0"):
        server.store.add_domain(5)
        assert client.ask(XS_WRITE, b"/a\0") == OK
        started = client.ask(XS_TRANSACTION_START, b"\0")
        assert isinstance(started, bytes)
        tx_id = int(started[:-1])
        assert client.ask(XS_SET_PERMS, b"/a\0" + entries, tx_id) == OK
        server.forget_domain(5)
        server.store.add_domain(5)  # another, of the same id
        assert client.ask(XS_TRANSACTION_END, b"T\0", tx_id) == "EAGAIN"
        assert client.ask(XS_GET_PERMS, b"/a\0") == b"n0\0"
