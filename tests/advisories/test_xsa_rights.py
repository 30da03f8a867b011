"""Advisories on who may see and change what: XSA-115, 322, 352, 353, 417, played by guests."""

from __future__ import annotations

import pytest
from advisories.stage import attacked
from xenstore.scene import OK

from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_GET_PERMS,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_RELEASE,
    XS_RM,
    XS_SET_PERMS,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
)


def test_xsa_115_a_watch_shows_nothing_that_could_not_be_read() -> None:
    """CVE-2020-29480: a guest that watches `/` heard of every change of the host.

    Events go only to who may read the node or its parent.
    """
    with attacked() as stage:
        spy, victim = stage.guest(1), stage.guest(2)
        for path in (b"/", b"/vm", b"/local/domain/2", b"/local/domain/2/key"):
            assert stage.ask(spy, XS_WATCH, path + b"\0t\0") == OK
        stage.heard(spy)
        assert stage.ask(victim, XS_WRITE, b"key\0secret") == OK
        assert stage.ask(stage.dom0, XS_WRITE, b"/vm/uuid\0secret") == OK
        tx_id = stage.start(victim)
        assert stage.ask(victim, XS_WRITE, b"in/transaction\0secret", tx_id) == OK
        assert stage.end(victim, tx_id) == OK
        assert stage.ask(victim, XS_RM, b"key\0") == OK
        assert stage.heard(spy) == []
        assert stage.ask(spy, XS_WRITE, b"own\0") == OK
        assert stage.heard(spy) == []  # its event came before the answer to the write
        assert stage.ask(stage.dom0, XS_WRITE, b"/local/domain/1/own\0") == OK
        assert stage.heard(spy) == [b"/local/domain/1/own"]


def test_xsa_115_who_loses_the_right_to_read_hears_that_and_no_more() -> None:
    """The fix of CVE-2020-29480 also tells of the change that takes the right away."""
    with attacked() as stage:
        spy = stage.guest(1)
        assert stage.ask(stage.dom0, XS_WRITE, b"/shared\0") == OK
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"/shared\0n0\0r1\0") == OK
        assert stage.ask(spy, XS_WATCH, b"/shared\0t\0") == OK
        stage.heard(spy)
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"/shared\0n0\0") == OK
        assert stage.heard(spy) == [b"/shared"]
        assert stage.ask(stage.dom0, XS_WRITE, b"/shared\0secret") == OK
        assert stage.ask(stage.dom0, XS_RM, b"/shared\0") == OK
        assert stage.heard(spy) == []


def test_xsa_115_guests_do_not_hear_of_domains_that_come() -> None:
    """CVE-2020-29480: `@introduceDomain` told any guest of others; now it needs a right to it."""
    with attacked() as stage:
        spy = stage.guest(1)
        for name in (b"@introduceDomain", b"@introduceDomain/5"):
            assert stage.ask(spy, XS_WATCH, name + b"\0t\0") == OK
        stage.heard(spy)
        stage.guest(5)
        assert stage.heard(spy) == []
        assert stage.ask(spy, XS_SET_PERMS, b"@introduceDomain\0n0\0r1\0") == "EACCES"
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"@introduceDomain\0n0\0r1\0") == OK
        stage.heard(spy)
        stage.guest(6)
        assert stage.heard(spy) == [b"@introduceDomain"]


def test_xsa_115_is_domain_introduced_is_for_domain_0() -> None:
    """CVE-2020-29480: a guest could ask which domains there are; it is refused for every domid."""
    with attacked() as stage:
        spy = stage.guest(1)
        for domid in (b"0", b"1", b"9", b"4711", b"32752"):
            assert stage.ask(spy, XS_IS_DOMAIN_INTRODUCED, domid + b"\0") == "EACCES"


def test_xsa_115_watches_look_at_no_transaction_id() -> None:
    """WATCH and UNWATCH name a transaction that is none: the id is ignored, the reply has it."""
    with attacked() as stage:
        guest = stage.guest(1)
        assert stage.ask(guest, XS_WATCH, b"x\0t\0", 0xFFFFFFFF) == OK
        assert stage.ask(guest, XS_UNWATCH, b"x\0t\0", 4711) == OK
        assert not stage.conn(1).watches


def test_xsa_322_rights_do_not_fall_to_the_next_domain_of_an_id() -> None:
    """CVE-2020-29481: a new domain got what had been granted to the last one with its domid.

    Rights go with the domain: in nodes of domain 0 and of other guests, and in the special nodes.
    """
    with attacked() as stage:
        stage.guest(1)
        other = stage.guest(2)
        for path in (b"/granted", b"/written"):
            assert stage.ask(stage.dom0, XS_WRITE, path + b"\0secret") == OK
            assert stage.ask(stage.dom0, XS_SET_PERMS, path + b"\0n0\0b1\0") == OK
        assert stage.ask(other, XS_WRITE, b"mine\0secret") == OK
        assert stage.ask(other, XS_SET_PERMS, b"mine\0n2\0b1\0") == OK
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"@introduceDomain\0n0\0r1\0") == OK
        stage.peer.destroy(1)
        heir = stage.guest(1)
        # Written again by its owner, a node does not give the right anew.
        assert stage.ask(stage.dom0, XS_WRITE, b"/written\0secret") == OK
        for path in (b"/granted", b"/written", b"/local/domain/2/mine"):
            assert stage.ask(heir, XS_READ, path + b"\0") == "EACCES"
            assert stage.ask(heir, XS_WRITE, path + b"\0") == "EACCES"
        assert stage.ask(heir, XS_WATCH, b"@introduceDomain\0t\0") == OK
        stage.heard(heir)
        stage.guest(3)
        assert stage.heard(heir) == []


def test_xsa_322_an_open_transaction_grants_nothing_to_the_next_domain() -> None:
    """The same through a transaction that began before the domain went and ends after it."""
    with attacked() as stage:
        stage.guest(1)
        other = stage.guest(2)
        assert stage.ask(other, XS_WRITE, b"mine\0secret") == OK
        tx_id = stage.start(other)
        assert stage.ask(other, XS_SET_PERMS, b"mine\0n2\0b1\0", tx_id) == OK
        stage.peer.destroy(1)
        heir = stage.guest(1)
        assert stage.end(other, tx_id) == "EAGAIN"
        assert stage.ask(heir, XS_READ, b"/local/domain/2/mine\0") == "EACCES"


@pytest.mark.parametrize("way", ["inherited", "given, then touched", "seen, then inherited"])
def test_xsa_322_a_right_on_its_way_does_not_fall_to_the_next_domain(way: str) -> None:
    """CVE-2020-29481, within a transaction: a domain ends between its right and the commit."""
    with attacked() as stage:
        guest = stage.guest(5)
        stage.guest(7)
        assert stage.ask(guest, XS_WRITE, b"p\0") == OK
        if way != "given, then touched":
            assert stage.ask(guest, XS_SET_PERMS, b"p\0n5\0r7\0") == OK
        tx_id = stage.start(guest)
        if way == "inherited":
            assert stage.ask(guest, XS_WRITE, b"p/x\0secret", tx_id) == OK
        elif way == "given, then touched":
            assert stage.ask(guest, XS_SET_PERMS, b"p\0n5\0r7\0", tx_id) == OK
        else:
            assert stage.ask(guest, XS_READ, b"p\0", tx_id) == b""
        assert stage.ask(stage.dom0, XS_RELEASE, b"7\0") == OK
        heir = stage.guest(7)
        assert stage.ask(guest, XS_WRITE, b"p\0secret", tx_id) == OK
        if way == "seen, then inherited":
            assert stage.ask(guest, XS_WRITE, b"p/x\0secret", tx_id) == OK
        assert stage.end(guest, tx_id) in (OK, "EAGAIN")
        for path in (b"p", b"p/x"):
            found = stage.ask(heir, XS_READ, b"/local/domain/5/" + path + b"\0")
            assert found in ("EACCES", "ENOENT"), path


def test_xsa_322_a_node_has_few_permissions() -> None:
    """Checking rights costs by their number, so a guest may set five on a node, and not more."""
    with attacked() as stage:
        guest = stage.guest(1)
        assert stage.ask(guest, XS_WRITE, b"x\0") == OK
        assert stage.ask(guest, XS_SET_PERMS, b"x\0n1\0" + b"r2\0" * 4) == OK
        assert stage.ask(guest, XS_SET_PERMS, b"x\0n1\0" + b"r2\0" * 5) == "ENOSPC"
        assert stage.ask(guest, XS_GET_PERMS, b"x\0") == b"n1\0" + b"r2\0" * 4


@pytest.mark.parametrize("in_transaction", [False, True])
def test_xsa_352_no_guest_gives_a_node_away(in_transaction: bool) -> None:
    """CVE-2020-29486: a guest gave its nodes to others, who then were out of quota.

    Only domain 0 changes an owner; and nobody pays for what another guest made.
    """
    with attacked() as stage:
        guest = stage.guest(1)
        before = (stage.nodes_of(1), stage.nodes_of(9), stage.memory_of(9))
        tx_id = stage.start(guest) if in_transaction else 0
        assert stage.ask(guest, XS_WRITE, b"x\0", tx_id) == OK
        for owner in (b"0", b"9", b"32752", b"32757"):
            reply = stage.ask(guest, XS_SET_PERMS, b"x\0b" + owner + b"\0", tx_id)
            assert reply == ("ENOENT" if owner == b"32752" else "EPERM")
        if in_transaction:
            assert stage.end(guest, tx_id) == OK
        assert stage.ask(guest, XS_GET_PERMS, b"x\0") == b"n1\0"
        assert (stage.nodes_of(1), stage.nodes_of(9), stage.memory_of(9)) == (
            before[0] + 1,
            *before[1:],
        )


@pytest.mark.parametrize("in_transaction", [False, True])
def test_xsa_353_the_root_has_permissions_too(in_transaction: bool) -> None:
    """CVE-2020-29479: any guest could list `/`, change its permissions, remove the whole tree."""
    with attacked() as stage:
        guest = stage.guest(1)
        there = list(stage.server.store.nodes)
        tx_id = stage.start(guest) if in_transaction else 0
        for kind, payload in (
            (XS_SET_PERMS, b"/\0b1\0"),
            (XS_SET_PERMS, b"/\0b0\0"),
            (XS_RM, b"/\0"),
            (XS_WRITE, b"/\0mine"),
            (XS_WRITE, b"/mine\0mine"),
            (XS_MKDIR, b"/mine\0"),
            (XS_RM, b"/local\0"),
            (XS_DIRECTORY, b"/\0"),
            (XS_DIRECTORY_PART, b"/\x000\0"),
            (XS_GET_PERMS, b"/\0"),
            (XS_READ, b"/\0"),
        ):
            assert stage.ask(guest, kind, payload, tx_id) == "EACCES", (kind, payload)
        if in_transaction:
            assert stage.end(guest, tx_id) == OK
        assert list(stage.server.store.nodes) == there
        assert stage.ask(stage.dom0, XS_GET_PERMS, b"/\0") == b"n0\0"
        assert stage.ask(stage.dom0, XS_RM, b"/\0") == "EINVAL"  # nor can domain 0


def test_xsa_417_a_right_of_a_domain_that_is_not_there_is_void_for_ever() -> None:
    """CVE-2022-42320: a new domain could get what was meant for an old one of its domid."""
    with attacked() as stage:
        assert stage.ask(stage.dom0, XS_WRITE, b"/before\0secret") == OK
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"/before\0n0\0b5\0") == OK
        heir = stage.guest(5)
        assert stage.ask(heir, XS_READ, b"/before\0") == "EACCES"
        assert stage.ask(stage.dom0, XS_WRITE, b"/before\0more") == OK
        assert stage.ask(heir, XS_READ, b"/before\0") == "EACCES"


def test_xsa_417_a_domain_that_was_never_introduced_leaves_nothing() -> None:
    """The same for one that was granted something, and went before Xenstore had served it."""
    with attacked() as stage:
        stage.peer.create(5)
        assert stage.ask(stage.dom0, XS_WRITE, b"/early\0secret") == OK
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"/early\0n0\0b5\0") == OK
        stage.peer.destroy(5)
        heir = stage.guest(5)
        assert stage.ask(heir, XS_READ, b"/early\0") == "EACCES"


def test_xsa_417_a_toolstack_prepares_a_domain_before_it_is_introduced() -> None:
    """The fix must keep what is granted to a domain that exists and is not introduced yet."""
    with attacked() as stage:
        guest = stage.peer.create(5)
        assert stage.ask(stage.dom0, XS_WRITE, b"/early\0yes") == OK
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"/early\0n0\0r5\0") == OK
        assert stage.ask(stage.dom0, XS_INTRODUCE, b"5\x001\x001\0") == OK
        assert stage.ask(guest, XS_READ, b"/early\0") == b"yes"
        assert stage.ask(stage.dom0, XS_RELEASE, b"5\0") == OK
