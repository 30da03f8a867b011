"""Advisories on watches and their events: XSA-324, 326, 330, 425, 484."""

from __future__ import annotations

import pytest
from advisories.stage import attacked, until_refused
from xenstore.scene import OK

from xenlive.abi.xs_wire import (
    XENSTORE_PAYLOAD_MAX,
    XS_INTRODUCE,
    XS_MKDIR,
    XS_READ,
    XS_RESET_WATCHES,
    XS_RM,
    XS_SET_PERMS,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.xenstore.quota import MEMORY, TRANSACTIONS, WATCHES

WATCHES_MAX = 128


@pytest.mark.parametrize("path", [b"b", b"/local/domain/1/b", b"/"])
def test_xsa_324_an_event_longer_than_a_message_may_be_is_not_sent(path: bytes) -> None:
    """CVE-2020-29484: a watch with the longest token made an event too long to be sent.

    It is dropped; so it is when others make it, while no request of the guest is being served.
    """
    with attacked() as stage:
        guest = stage.guest(1)
        token = b"t" * (XENSTORE_PAYLOAD_MAX - len(path) - 2)
        assert stage.ask(guest, XS_WATCH, path + b"\0" + token + b"\0") == OK
        stage.heard(guest)
        if path != b"/":
            assert stage.ask(stage.dom0, XS_WRITE, b"/local/domain/1/b\0") == OK
            assert stage.heard(guest) == [path]  # right at the limit
        for party, prefix in ((guest, b""), (stage.dom0, b"/local/domain/1/")):
            assert stage.ask(party, XS_WRITE, prefix + b"b/c\0x") == OK
            assert stage.ask(party, XS_RM, prefix + b"b/c\0") == OK
            assert stage.heard(guest) == []
        tx_id = stage.start(guest)
        assert stage.ask(guest, XS_WRITE, b"b/d\0x", tx_id) == OK
        assert stage.end(guest, tx_id) == OK
        assert stage.heard(guest) == []
        assert stage.ask(guest, XS_UNWATCH, path + b"\0" + token + b"\0") == OK


def test_xsa_324_the_same_with_the_domain_that_a_special_event_names() -> None:
    """An event of `@releaseDomain/7` is longer than the path that was watched."""
    with attacked() as stage:
        guest = stage.guest(1)
        name = b"@releaseDomain"
        token = b"t" * (XENSTORE_PAYLOAD_MAX - len(name) - 4)
        assert stage.ask(stage.dom0, XS_SET_PERMS, name + b"\0n0\0r1\0") == OK
        assert stage.ask(guest, XS_WATCH, name + b"\0" + token + b"\x001\0") == OK
        stage.heard(guest)
        stage.guest(70)
        stage.peer.destroy(70)
        assert stage.heard(guest) == []


def test_xsa_326_the_quota_of_watches_holds() -> None:
    """CVE-2022-42315: what watches take is counted: their number, and the bytes of each."""
    with attacked() as stage:
        guest = stage.guest(1)
        token = b"t" * 3000
        before = stage.memory_of(1)
        made, error = until_refused(
            lambda number: stage.ask(guest, XS_WATCH, b"w%d\0" % number + token + b"\0")
        )
        assert (made, error) == (WATCHES_MAX, "ENOSPC")
        assert stage.memory_of(1) > before + made * len(token)
        assert len(stage.conn(1).watches) == made
        for number in range(made):
            assert stage.ask(guest, XS_UNWATCH, b"w%d\0" % number + token + b"\0") == OK
        assert stage.memory_of(1) == before


def test_xsa_326_the_memory_of_watches_has_an_end_too() -> None:
    """CVE-2022-42315: few watches with long tokens, and little memory."""
    with attacked() as stage:
        guest = stage.guest(1)
        account = stage.server.store.accounts.open(1)
        account.quotas["memory"] = 20_000
        made, error = until_refused(
            lambda number: stage.ask(guest, XS_WATCH, b"w%d\0" % number + b"t" * 3000 + b"\0")
        )
        assert (made, error) == (6, "ENOMEM")
        assert account.used[MEMORY] < 20_000


def test_xsa_326_the_same_event_does_not_wait_twice() -> None:
    """One change over and over, while the watching guest reads nothing: one event waits."""
    with attacked() as stage:
        sleeper, other = stage.guest(1), stage.guest(2)
        assert stage.ask(stage.dom0, XS_WRITE, b"/shared\0") == OK
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"/shared\0b2\0r1\0") == OK
        assert stage.ask(sleeper, XS_WATCH, b"/shared\0" + b"t" * 1000 + b"\0") == OK
        stage.heard(sleeper)
        for number in range(300):
            assert stage.ask(other, XS_WRITE, b"/shared\0%d" % number) == OK
        conn = stage.conn(1)
        # What is in the ring has been given; of what waits behind it, there is one at most.
        assert len(conn.out) <= 1
        assert conn.unsent_bytes() < 3000
        assert 1 <= len(stage.heard(sleeper)) <= 6


def test_xsa_326_events_that_nobody_reads_have_an_end() -> None:
    """CVE-2022-42318: others make ever new events for a guest that does not read."""
    with attacked() as stage:
        sleeper, other = stage.guest(1), stage.guest(2)
        account = stage.server.store.accounts.open(1)
        account.quotas["memory"] = 30_000
        assert stage.ask(stage.dom0, XS_WRITE, b"/shared\0") == OK
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"/shared\0b2\0r1\0") == OK
        assert stage.ask(sleeper, XS_WATCH, b"/shared\0" + b"t" * 1000 + b"\0") == OK
        stage.heard(sleeper)
        for number in range(200):
            assert stage.ask(other, XS_MKDIR, b"/shared/%d\0" % number) == OK
            assert stage.ask(other, XS_RM, b"/shared/%d\0" % number) == OK
        assert account.used[MEMORY] + stage.conn(1).unsent_bytes() <= 30_000
        assert stage.heard(sleeper)[0].startswith(b"/shared/")  # it reads, and is served again
        assert stage.ask(sleeper, XS_WRITE, b"well\0") == OK
        assert stage.conn(1).unsent_bytes() == 0


def test_xsa_326_a_removal_is_told_once() -> None:
    """Removing a watched node sent two events for one change."""
    with attacked() as stage:
        guest = stage.guest(1)
        assert stage.ask(guest, XS_WRITE, b"a/b\0") == OK
        assert stage.ask(guest, XS_WATCH, b"a/b\0t\0") == OK
        stage.heard(guest)
        assert stage.ask(stage.dom0, XS_RM, b"/local/domain/1/a/b\0") == OK
        assert stage.heard(guest) == [b"a/b"]


@pytest.mark.parametrize("way", ["reset", "introduced anew"])
def test_xsa_330_watches_that_were_reset_are_gone(way: str) -> None:
    """CVE-2020-29485: they stayed in the OCaml daemon's second table, ever more of them."""
    with attacked() as stage:
        guest = stage.guest(1)
        count, by_path = stage.server.watches.count, len(stage.server.watches.by_path)
        memory = stage.memory_of(1)
        for _ in range(5):
            for number in range(WATCHES_MAX):
                assert stage.ask(guest, XS_WATCH, b"w%d\0t\0" % number) == OK
            assert stage.ask(guest, XS_WATCH, b"more\0t\0") == "ENOSPC"
            stage.heard(guest)
            if way == "reset":
                assert stage.ask(guest, XS_RESET_WATCHES, b"\0") == OK
            else:
                assert stage.ask(stage.dom0, XS_INTRODUCE, b"1\x001\x001\0") == OK
                guest.forget()
            assert (stage.server.watches.count, len(stage.server.watches.by_path)) == (
                count,
                by_path,
            )
            account = stage.server.store.accounts.open(1)
            assert (account.used[WATCHES], account.used[MEMORY]) == (0, memory)
            assert stage.ask(guest, XS_WRITE, b"w1\0") == OK
            assert stage.heard(guest) == []
            assert stage.ask(guest, XS_RM, b"w1\0") == OK


def test_xsa_425_a_guest_that_begins_anew_with_much_on_its_way() -> None:
    """CVE-2022-42330: a guest's kexec, with answers and half a request on the way: freed twice."""
    with attacked() as stage:
        guest = stage.guest(1)
        for number in range(5):
            assert stage.ask(guest, XS_WRITE, b"big\0" + bytes(1900)) == OK
            stage.start(guest)
            request = b"\2\0\0\0" + bytes(8) + b"\4\0\0\0big\0"
            stage.push(guest, 1, request * 30 + request[:7])
            assert stage.conn(1).out or stage.conn(1).head
            for _ in range(2):
                assert stage.ask(stage.dom0, XS_INTRODUCE, b"1\x001\x00%d\0" % (number + 2)) == OK
            guest.forget()
            conn = stage.conn(1)
            assert conn.unsent() == (b"", 0)
            assert not conn.unparsed
            assert not conn.transactions
            assert stage.ask(guest, XS_RESET_WATCHES, b"\0") == OK
            assert stage.ask(guest, XS_READ, b"big\0") == bytes(1900)


def test_xsa_484_watches_are_reset_inside_of_a_transaction() -> None:
    """CVE-2026-23557: RESET_WATCHES in a transaction ended it under way: an assertion failed."""
    with attacked() as stage:
        guest = stage.guest(1)
        account = stage.server.store.accounts.open(1)
        memory = account.used[MEMORY]
        for _ in range(3):
            tx_ids = [stage.start(guest) for _ in range(3)]
            for tx_id in tx_ids:
                assert stage.ask(guest, XS_WRITE, b"in\0secret", tx_id) == OK
            assert stage.ask(guest, XS_RESET_WATCHES, b"\0", tx_ids[1]) == OK
            for tx_id in tx_ids:
                assert stage.end(guest, tx_id) == "ENOENT"
            assert (account.used[TRANSACTIONS], account.used[MEMORY]) == (0, memory)
            assert stage.ask(guest, XS_READ, b"in\0") == "ENOENT"


def test_xsa_484_a_connection_is_given_up_inside_of_a_transaction() -> None:
    """CVE-2026-23557, the other way: a message that can't be, in a transaction that is open."""
    with attacked() as stage:
        guest = stage.guest(1)
        account = stage.server.store.accounts.open(1)
        memory = account.used[MEMORY]
        tx_id = stage.start(guest)
        number = tx_id.to_bytes(4, "little")
        first = b"\x0b\0\0\0" + bytes(4) + number + b"\3\0\0\0in\0"
        wild = b"\x0b\0\0\0" + bytes(4) + number + b"\1\x10\0\0"
        assert stage.push(guest, 1, first + wild) == b""
        assert guest.guest.error != 0
        assert (account.used[TRANSACTIONS], account.used[MEMORY]) == (0, memory)
        assert not stage.conn(1).transactions
        assert stage.ask(stage.dom0, XS_INTRODUCE, b"1\x001\x001\0") == OK
