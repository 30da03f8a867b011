"""Advisories on using up the server's memory and time: XSA-72, 206, 326."""

from __future__ import annotations

import pytest
from advisories.stage import attacked, until_refused
from xenstore.scene import OK

from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_WRITE,
)
from xenlive.xenstore.quota import MEMORY


def test_xsa_72_a_list_longer_than_a_message_is_an_error() -> None:
    """CVE-2013-4416: the reply to DIRECTORY of a large directory ended the OCaml daemon."""
    with attacked() as stage:
        for number in range(500):
            assert stage.ask(stage.dom0, XS_WRITE, b"/pool/%09d\0" % number) == OK
        assert stage.ask(stage.dom0, XS_DIRECTORY, b"/pool\0") == "E2BIG"
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"/pool\0r0\0") == OK
        guest = stage.guest(1)
        assert stage.ask(guest, XS_DIRECTORY, b"/pool\0") == "E2BIG"


def test_xsa_206_changes_of_a_guest_do_not_fail_what_others_do() -> None:
    """CVE-2017-7995: any change anywhere made the transactions of domain 0 start over, for ever.

    Only who changes what a transaction has looked at fails it.
    """
    with attacked() as stage:
        guest = stage.guest(1)
        tx_id = stage.start(stage.dom0)
        assert stage.ask(stage.dom0, XS_WRITE, b"/local/domain/9/from0\0x", tx_id) == OK
        for number in range(50):
            assert stage.ask(guest, XS_WRITE, b"x\0%d" % number) == OK
            mine = stage.start(guest)
            assert stage.ask(guest, XS_WRITE, b"y%d\0" % number, mine) == OK
            assert stage.end(guest, mine) == OK
        assert stage.end(stage.dom0, tx_id) == OK


@pytest.mark.parametrize("kind", [XS_READ, XS_MKDIR])
def test_xsa_326_a_transaction_looks_at_so_many_nodes(kind: int) -> None:
    """CVE-2022-42314: each node that a transaction looks at is kept; also one that is not there."""
    with attacked() as stage:
        guest = stage.guest(1)
        tx_id = stage.start(guest)
        transaction = stage.conn(1).transactions[tx_id]
        for number in range(1300):
            reply = stage.ask(guest, kind, b"n%d\0" % number, tx_id)
        assert reply == "ENOSPC"
        assert len(transaction.nodes) <= 1024
        assert stage.end(guest, tx_id) == ("ENOMEM")
        assert stage.nodes_of(1) == 1


def test_xsa_326_changes_of_the_same_nodes_do_not_lengthen_a_transaction() -> None:
    """CVE-2022-42317: what a transaction is going to do was written down without an end."""
    with attacked() as stage:
        guest = stage.guest(1)
        for path in (b"a", b"b"):
            assert stage.ask(guest, XS_WRITE, path + b"\0") == OK
        tx_id = stage.start(guest)
        transaction = stage.conn(1).transactions[tx_id]
        for number in range(400):
            path = b"ab"[number % 2 :][:1] + b"\0"
            assert stage.ask(guest, XS_WRITE, path + b"%d" % number, tx_id) == OK
            assert stage.ask(
                guest, XS_SET_PERMS, path + b"n1\0r%d\0" % (9 * (number % 4 > 1)), tx_id
            )
        assert len(transaction.log) == 4
        assert stage.end(guest, tx_id) == OK
        assert stage.ask(guest, XS_READ, b"b\0") == b"399"


def test_xsa_326_nodes_cost_memory_whoever_makes_them_large() -> None:
    """CVE-2022-42315 and 42313: values, names and permissions count for the owner of the node."""
    with attacked() as stage:
        guest = stage.guest(1)
        account = stage.server.store.accounts.open(1)
        account.quotas["memory"] = 30_000
        before = stage.memory_of(1)
        made, error = until_refused(
            lambda number: stage.ask(guest, XS_WRITE, b"n%d\0" % number + bytes(1500))
        )
        assert (10 < made < 20, error) == (True, "EIO")
        assert account.used[MEMORY] < 30_000
        for number in range(made):
            assert stage.ask(stage.dom0, XS_RM, b"/local/domain/1/n%d\0" % number) == OK
        assert stage.memory_of(1) == before


def test_xsa_326_a_removal_that_is_too_much_is_refused_before_it_is_looked_at() -> None:
    """CVE-2022-42314: RM of a large tree in a transaction, again and again, each time for nothing.

    What is asked is how much of the tree was looked at, not how long that took.
    """
    with attacked() as stage:
        guest = stage.guest(1)
        store = stage.server.store
        for number in range(3000):
            assert stage.ask(stage.dom0, XS_MKDIR, b"/pool/%d/x\0" % number) == OK
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"/pool\0b1\0") == OK
        nodes = store.nodes
        assert b"/pool/2999/x" in nodes
        tx_id = stage.start(guest)
        transaction = stage.conn(1).transactions[tx_id]
        assert stage.ask(guest, XS_RM, b"/pool\0", tx_id) == "ENOSPC"
        assert transaction.count_unseen(b"/pool") <= 1025
        assert len(transaction.nodes) < 10
        assert stage.end(guest, tx_id, b"F\0") == OK


def test_xsa_326_a_listing_in_a_transaction_is_the_one_that_the_store_keeps() -> None:
    """CVE-2022-42314: a large directory was put together anew in each transaction."""
    with attacked() as stage:
        guest = stage.guest(1)
        for number in range(300):
            assert stage.ask(stage.dom0, XS_WRITE, b"/pool/%04d\0" % number) == OK
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"/pool\0r0\0") == OK
        listing = stage.ask(stage.dom0, XS_DIRECTORY, b"/pool\0")
        assert isinstance(listing, bytes)
        tx_id = stage.start(guest)
        assert stage.ask(guest, XS_DIRECTORY, b"/pool\0", tx_id) == listing
        seen = stage.conn(1).transactions[tx_id].nodes[b"/pool"]
        assert seen.list_names() is stage.server.store.nodes[b"/pool"].list_names()
        # Not once it is another one.
        assert stage.ask(stage.dom0, XS_WRITE, b"/pool/new\0") == OK
        mine = stage.start(stage.dom0)
        assert stage.ask(stage.dom0, XS_RM, b"/pool/0000\0", mine) == OK
        assert stage.ask(guest, XS_DIRECTORY, b"/pool\0", tx_id) == listing
        left = stage.ask(stage.dom0, XS_DIRECTORY, b"/pool\0", mine)
        assert left == listing[5:] + b"new\0"
        assert stage.end(stage.dom0, mine) == OK
        assert stage.ask(guest, XS_DIRECTORY, b"/pool\0", tx_id) == listing
        assert stage.end(guest, tx_id) == "EAGAIN"
