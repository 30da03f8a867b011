"""Advisories on domains that misbehave, wait, or end: XSA-325, 326, 416, 419, 420."""

from __future__ import annotations

import struct

import pytest
from advisories.stage import Stage, attacked, until_refused
from differential.ours import PageLink
from xenstore.scene import OK, Reply
from xenstore.talk import encode

from xenlive.abi import xs_ring
from xenlive.abi.xs_wire import (
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_RELEASE,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.xenstore.quota import MEMORY, TRANSACTIONS

#: Ways to be a bad client: what is put into the ring, and the indices that are set then.
BAD_HEADERS = {
    "type and length of ones": b"\xff" * 16,
    "too long by one": struct.pack("<IIII", XS_READ, 1, 0, 4097),
}


def misbehave(stage: Stage, domid: int, way: str) -> None:
    """Has a guest break the protocol, and the server look at it."""
    line = stage.line(domid)
    if way == "wild indices":
        line.guest.words[xs_ring.REQ_PROD] = line.guest.words[xs_ring.REQ_CONS] + 5000 & 0xFFFFFFFF
        stage.pump(domid)
    else:
        stage.push(line, domid, BAD_HEADERS[way])


@pytest.mark.parametrize("way", ["wild indices", *BAD_HEADERS])
def test_xsa_325_a_bad_client_is_ignored_and_not_given_up(way: str) -> None:
    """CVE-2020-29483: a guest that broke the protocol was taken for one that had ended.

    Toolstacks were told so, and looked for a dead domain that was alive. It is ignored until it
    really goes; that is told once.
    """
    with attacked() as stage:
        stage.guest(1)
        assert stage.ask(stage.dom0, XS_WATCH, b"@releaseDomain\0t\0") == OK
        stage.heard(stage.dom0)
        misbehave(stage, 1, way)
        stage.unharmed()
        assert stage.heard(stage.dom0) == []
        assert 1 in stage.server.rings
        assert stage.ask(stage.dom0, XS_IS_DOMAIN_INTRODUCED, b"1\0") == b"T\0"
        # Not even being introduced again is told as an end.
        assert stage.ask(stage.dom0, XS_INTRODUCE, b"1\x001\x001\0") == OK
        assert stage.heard(stage.dom0) == []
        stage.peer.destroy(1)
        assert stage.heard(stage.dom0) == [b"@releaseDomain"]
        assert 1 not in stage.server.rings


def test_xsa_326_requests_that_wait_for_their_answers_have_an_end() -> None:
    """CVE-2022-42311: request after request, and no answer is ever taken out of the ring."""
    with attacked() as stage:
        guest = stage.guest(1)
        assert stage.ask(guest, XS_WRITE, b"v\0" + b"x" * 1900) == OK
        before = stage.memory_of(1)
        left = stage.push(guest, 1, encode(XS_READ, b"v\0") * 300)
        assert left, "the server took all of it"
        conn = stage.conn(1)
        link = conn.link
        assert isinstance(link, PageLink)
        assert not link.page.is_ignored, "it only has to wait"
        assert conn.unsent_bytes() <= 20 * 2000
        assert len(conn.unparsed) <= 8192
        assert stage.memory_of(1) <= before + 20 * 2000
        guest.send(left)  # and takes answers from now on
        assert stage.ask(guest, XS_READ, b"v\0") == b"x" * 1900
        assert conn.unsent_bytes() == 0


def test_xsa_326_the_quota_of_transactions_holds() -> None:
    """CVE-2022-42312: what is looked at in open transactions was nobody's."""
    with attacked() as stage:
        guest = stage.guest(1)
        account = stage.server.store.accounts.open(1)
        made, error = until_refused(lambda _: stage.ask(guest, XS_TRANSACTION_START, b"\0"))
        assert (made, error) == (10, "ENOSPC")
        assert account.used[TRANSACTIONS] == 10
        quota = account.quotas["memory"] = account.used[MEMORY] + 20_000
        tx_id = min(stage.conn(1).transactions)
        made, error = until_refused(
            lambda number: stage.ask(guest, XS_WRITE, b"t%d\0" % number + bytes(1500), tx_id)
        )
        assert error == "EIO"  # as the C daemon says it of a write
        assert made <= 20_000 // 1500
        assert account.used[MEMORY] <= quota
        assert stage.nodes_of(1) == 1


def test_xsa_326_a_transaction_over_the_same_nodes_has_an_end() -> None:
    """CVE-2022-42312: few nodes, made and removed again, make ever more for the commit to do."""
    with attacked() as stage:
        guest = stage.guest(1)
        account = stage.server.store.accounts.open(1)
        account.quotas["memory"] = account.used[MEMORY] + 20_000
        tx_id = stage.start(guest)

        def change(_: int) -> Reply:
            reply = stage.ask(guest, XS_MKDIR, b"c\0", tx_id)
            return reply if reply != OK else stage.ask(guest, XS_RM, b"c\0", tx_id)

        made, error = until_refused(change)
        assert (made < 200, error) == (True, "ENOMEM")
        assert len(stage.conn(1).transactions[tx_id].log) <= 200
        assert stage.end(guest, tx_id, b"F\0") == OK


def test_xsa_416_what_a_request_needs_is_given_back_before_its_answer_is_read() -> None:
    """CVE-2022-42319: large requests by a guest that reads no answers leave nothing."""
    with attacked() as stage:
        guest = stage.guest(1)
        assert stage.ask(guest, XS_WRITE, b"v\0") == OK
        before = stage.memory_of(1)
        stage.push(guest, 1, encode(XS_WRITE, b"v\0" + bytes(1000)) * 200)
        conn = stage.conn(1)
        assert conn.unsent_bytes() <= 8192
        assert stage.memory_of(1) <= before + 1000 + 8192
        assert not conn.transactions


@pytest.mark.parametrize("way", ["released", "destroyed", "shut down"])
def test_xsa_419_what_a_dead_domain_leaves_elsewhere_is_nobodys_and_goes(way: str) -> None:
    """CVE-2022-42323: nodes of ended domains fell to domain 0, which has no quota.

    Again and again a domain makes its quota of nodes in another's directory, and ends.
    """
    with attacked() as stage:
        assert stage.ask(stage.dom0, XS_WRITE, b"/shared\0") == OK
        before = len(stage.server.store.nodes)
        for generation in range(3):
            guest = stage.guest(1)
            assert stage.ask(stage.dom0, XS_SET_PERMS, b"/shared\0n0\0b1\0") == OK
            for number in range(20):
                path = b"/shared/%d-%d\0" % (generation, number)
                assert stage.ask(guest, XS_MKDIR, path) == OK
            assert stage.nodes_of(1) == 21
            if way == "released":
                assert stage.ask(stage.dom0, XS_RELEASE, b"1\0") == OK
            elif way == "destroyed":
                stage.peer.destroy(1)
            else:
                stage.peer.shut_down(1)
                stage.peer.destroy(1)
            assert stage.nodes_of(1) == 0
            assert len(stage.server.store.nodes) == before


@pytest.mark.parametrize(
    "length", [4097, 0x3FFFFFFF, 0x40000000, 0x7FFFFFFF, 0x80000000, 2**32 - 1]
)
def test_xsa_420_no_length_in_a_ring_makes_the_server_try_for_ever(length: int) -> None:
    """CVE-2022-42324: a length of one to two GiB was negative to the OCaml daemon of 32 bits.

    Its exception came again at every look, before anybody else was served.
    """
    with attacked() as stage:
        guest = stage.guest(1)
        header = struct.pack("<IIII", XS_WRITE, 1, 0, length)
        stage.push(guest, 1, header + b"x" * 500)
        for _ in range(3):
            stage.pump(1)
            stage.unharmed()
        words = guest.guest.words
        consumed = words[xs_ring.REQ_CONS]
        stage.push(guest, 1, encode(XS_READ, b"/tool\0") * 100)
        assert words[xs_ring.REQ_CONS] == consumed, "nothing of it is looked at any more"
        assert len(stage.conn(1).unparsed) <= 1024
