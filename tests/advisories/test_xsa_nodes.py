"""Advisories on making and removing nodes: XSA-115, 272, 323, 414, 415, 418, 421, 481."""

from __future__ import annotations

import pytest
from advisories.stage import Stage, attacked, until_refused
from xenstore.picture import idle
from xenstore.scene import OK

from xenlive.abi.xs_wire import (
    XENSTORE_REL_PATH_MAX,
    XS_CONTROL,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_GET_PERMS,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import encode_state, load_state

NODES = 1000
TOO_LARGE = bytes(2048)


def paths(stage: Stage) -> list[bytes]:
    """All that there is."""
    return list(stage.server.store.nodes)


def test_xsa_115_a_child_goes_though_its_parent_is_too_large_for_its_owner() -> None:
    """Domain 0 made the parent larger than guests may: a guest still removes its own node in it."""
    with attacked() as stage:
        guest = stage.guest(1)
        assert stage.ask(stage.dom0, XS_WRITE, b"/pool\0") == OK
        assert stage.ask(stage.dom0, XS_SET_PERMS, b"/pool\0b0\0") == OK
        assert stage.ask(guest, XS_WRITE, b"/pool/mine\0") == OK
        assert stage.ask(guest, XS_WRITE, b"/pool/too\0") == OK
        for number in range(300):
            assert stage.ask(stage.dom0, XS_WRITE, b"/pool/%010d\0" % number) == OK
        assert stage.ask(guest, XS_WRITE, b"/pool/more\0") == "ENOSPC"
        assert stage.ask(guest, XS_RM, b"/pool/mine\0") == OK
        tx_id = stage.start(guest)
        assert stage.ask(guest, XS_RM, b"/pool/too\0", tx_id) == OK
        assert stage.end(guest, tx_id) == OK
        assert stage.nodes_of(1) == 1  # its home


def test_xsa_115_removal_of_a_tree_is_whole_and_told_once() -> None:
    """A node that a failed removal left behind could be read, and was listed nowhere."""
    with attacked() as stage:
        guest = stage.guest(1)
        before = (paths(stage), stage.nodes_of(1), stage.memory_of(1))
        for path in (b"a/b/c", b"a/b/d", b"a/e"):
            assert stage.ask(guest, XS_WRITE, path + b"\0x") == OK
        for path in (b"a", b"a/b", b"a/b/d"):
            assert stage.ask(stage.dom0, XS_WATCH, b"/local/domain/1/" + path + b"\0t\0") == OK
        stage.heard(stage.dom0)
        assert stage.ask(guest, XS_RM, b"a\0") == OK
        home = b"/local/domain/1/"
        told = stage.heard(stage.dom0)
        assert told == [home + b"a/b/d", home + b"a/b", home + b"a"]
        for path in (b"a/b/c", b"a/b", b"a"):
            assert stage.ask(guest, XS_READ, path + b"\0") == "ENOENT"
        assert (paths(stage), stage.nodes_of(1), stage.memory_of(1)) == before


@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        (b"a/b/c/d", TOO_LARGE, "ENOSPC"),
        (b"a/b/" + b"n" * 2040 + b"/d", b"", "ENOSPC"),  # its parent is too large by its name
        (b"a/b/c/d/e/f/g/h", b"", "ENOSPC"),  # more nodes than are left
        (b"a/b//d", b"", "EINVAL"),
    ],
)
def test_xsa_414_a_creation_that_fails_leaves_nothing(
    path: bytes, value: bytes, error: str, in_transaction: bool
) -> None:
    """CVE-2022-42309: undoing what a refused WRITE had made of `a`, `a/b` … used a wrong pointer.

    Nothing is made before all is allowed, and it may be refused any number of times (XSA-115:
    nodes that were not made were paid for).
    """
    with attacked() as stage:
        guest = stage.guest(1)
        for number in range(NODES - 4):
            assert stage.ask(stage.dom0, XS_WRITE, b"/d%d\0" % number) == OK
            assert stage.ask(stage.dom0, XS_SET_PERMS, b"/d%d\0n1\0" % number) == OK
        before = (paths(stage), stage.nodes_of(1), stage.memory_of(1))
        assert before[1] == NODES - 3
        for _ in range(5):
            tx_id = stage.start(guest) if in_transaction else 0
            assert stage.ask(guest, XS_WRITE, path + b"\0" + value, tx_id) == error
            if in_transaction:
                stage.end(guest, tx_id)
            assert (paths(stage), stage.nodes_of(1), stage.memory_of(1)) == before
        assert stage.ask(guest, XS_WRITE, b"a/b/c\0") == OK


@pytest.mark.parametrize("value", [TOO_LARGE, bytes(4000)])
def test_xsa_415_no_orphans_from_a_creation_that_failed_in_a_transaction(value: bytes) -> None:
    """CVE-2022-42310: the commit made nodes below a parent that had not been made.

    Once a request of it was refused for its size, the transaction can only fail.
    """
    with attacked() as stage:
        guest = stage.guest(1)
        before = (paths(stage), stage.nodes_of(1), stage.memory_of(1))
        tx_id = stage.start(guest)
        assert stage.ask(guest, XS_WRITE, b"first\0", tx_id) == OK
        assert stage.ask(guest, XS_WRITE, b"a/b/c/d\0" + value, tx_id) == "ENOSPC"
        for path in (b"a/b/c/d", b"a/b/c", b"a"):
            assert stage.ask(guest, XS_READ, path + b"\0", tx_id) == "ENOENT"
        assert stage.end(guest, tx_id) == "ENOMEM"
        assert (paths(stage), stage.nodes_of(1), stage.memory_of(1)) == before
        assert stage.ask(stage.dom0, XS_CONTROL, b"check\0") == OK


@pytest.mark.parametrize("kind", [XS_WRITE, XS_MKDIR])
@pytest.mark.parametrize("in_transaction", [False, True])
def test_xsa_272_the_quota_of_nodes_holds_however_they_are_made(
    kind: int, in_transaction: bool
) -> None:
    """CVE-2018-15470: the check was skipped. Several levels at once and transactions count too."""
    with attacked() as stage:
        guest = stage.guest(1)

        def make(number: int) -> bytes | str:
            path = b"d%d/%d/x\0" % (number // 90, number)
            if not in_transaction:
                return stage.ask(guest, kind, path)
            tx_id = stage.start(guest)
            reply = stage.ask(guest, kind, path, tx_id)
            end = stage.end(guest, tx_id)
            return reply if isinstance(reply, str) else end

        made, error = until_refused(make)
        assert error == "ENOSPC"
        assert made > 400
        while stage.nodes_of(1) < NODES:
            assert stage.ask(guest, kind, b"last%d\0" % stage.nodes_of(1)) == OK
        assert stage.ask(guest, kind, b"over\0") == "ENOSPC"
        assert sum(path.startswith(b"/local/domain/1") for path in paths(stage)) == NODES


def test_xsa_323_no_guest_makes_a_node_that_nobody_can_name() -> None:
    """CVE-2020-29482: a relative path was measured before the guest's home was put before it.

    Whatever a guest can make, domain 0 can read, list and remove, by its absolute path.
    """
    with attacked() as stage:
        guest = stage.guest(1)
        home = b"/local/domain/1/"
        depth = (XENSTORE_REL_PATH_MAX - 1) // 1000
        longest = b"/".join([b"n" * 999] * depth)
        longest += b"/" + b"n" * (XENSTORE_REL_PATH_MAX - len(longest) - 1)
        assert len(longest) == XENSTORE_REL_PATH_MAX
        for prefix in (b"", home):
            assert stage.ask(guest, XS_WRITE, prefix + longest + b"n\0x") == "EINVAL"
        assert stage.ask(guest, XS_WRITE, longest + b"\0x") == OK
        for party in (guest, stage.dom0):
            assert stage.ask(party, XS_READ, home + longest + b"\0") == b"x"
        parent, _, name = longest.rpartition(b"/")
        assert stage.ask(stage.dom0, XS_DIRECTORY, home + parent + b"\0") == name + b"\0"
        assert stage.ask(stage.dom0, XS_RM, home + longest[:999] + b"\0") == OK
        assert stage.nodes_of(1) == 1
        # In a domain with a longer number, it is as long.
        other = stage.guest(32000)
        assert stage.ask(other, XS_WRITE, longest + b"\0x") == OK
        assert stage.ask(stage.dom0, XS_READ, b"/local/domain/32000/" + longest + b"\0") == b"x"


def deepest(stage: Stage, levels: int) -> bytes:
    """The top of a chain of so many nodes in the home of domain 1, made by the guest."""
    guest = stage.guest(1)
    assert stage.ask(guest, XS_WRITE, b"/".join([b"n"] * levels) + b"\0x") == OK
    return b"/local/domain/1/n"


@pytest.mark.parametrize("way", ["RM", "transaction", "domain 0", "end", "check", "update"])
def test_xsa_418_deep_trees_cost_no_stack(way: str) -> None:
    """CVE-2022-42321: removing a very deep tree recursed until the stack was used up.

    As deep as the quota of nodes lets a guest go, which is deeper than Python would recurse.
    """
    with attacked() as stage:
        top = deepest(stage, NODES - 1)
        line = stage.line(1)
        if way == "RM":
            assert stage.ask(line, XS_RM, b"n\0") == OK
        elif way == "transaction":
            tx_id = stage.start(line)
            assert stage.ask(line, XS_RM, b"n\0", tx_id) == OK
            assert stage.end(line, tx_id) == OK
        elif way == "domain 0":
            assert stage.ask(stage.dom0, XS_RM, top + b"\0") == OK
        elif way == "end":
            stage.peer.destroy(1)
        elif way == "check":
            assert stage.ask(stage.dom0, XS_CONTROL, b"check\0") == OK
        else:
            idle(stage.server)
            fds = {conn: 10 + n for n, conn in enumerate(stage.server.connections)}
            stream = b"".join(
                encode_state(stage.server, listen_fd=-1, evtchn_fd=-1, fd_of=fds.__getitem__)
            )
            after = XenstoreServer()
            load_state(after, stream)
            assert set(after.store.nodes) == set(stage.server.store.nodes)
            return
        gone = way != "check"
        assert (top in stage.server.store.nodes) is not gone
        assert len([path for path in paths(stage) if path.startswith(top)]) == (
            0 if gone else NODES - 1
        )


@pytest.mark.parametrize("depth", [1, 5])
def test_xsa_421_made_and_removed_in_one_transaction(depth: int) -> None:
    """CVE-2022-42325: such a node ended the commit half way, and what was done was not paid for.

    The commit does all of the rest, and each round leaves as many nodes as are paid for.
    """
    with attacked() as stage:
        guest = stage.guest(1)
        for number in range(20):
            tx_id = stage.start(guest)
            path = b"/".join([b"t%d" % number] * depth)
            assert stage.ask(guest, XS_WRITE, b"before%d\0x" % number, tx_id) == OK
            assert stage.ask(guest, XS_WRITE, path + b"\0x", tx_id) == OK
            assert stage.ask(guest, XS_RM, b"t%d\0" % number, tx_id) == OK
            assert stage.ask(guest, XS_WRITE, b"after%d\0x" % number, tx_id) == OK
            assert stage.end(guest, tx_id) == OK
            assert stage.ask(guest, XS_READ, b"t%d\0" % number) == "ENOENT"
            for name in (b"before%d\0", b"after%d\0"):
                assert stage.ask(guest, XS_READ, name % number) == b"x"
            assert stage.nodes_of(1) == 1 + 2 * (number + 1)


def test_xsa_421_a_commit_that_is_refused_does_nothing() -> None:
    """CVE-2022-42326: a commit that met an error was done in part, and without accounting."""
    with attacked() as stage:
        guest = stage.guest(1)
        stage.fill(1)
        assert stage.ask(guest, XS_RM, b"d0\0") == OK
        room = NODES - stage.nodes_of(1)
        assert room == 91
        tx_ids = [stage.start(guest) for _ in range(3)]
        for tx_id in tx_ids:
            for number in range(room):
                path = b"d1/t%d-%d\0" % (tx_id, number)
                assert stage.ask(guest, XS_MKDIR, path, tx_id) == OK
            assert stage.ask(guest, XS_WRITE, b"d2\0%d" % tx_id, tx_id) == OK
        before = set(paths(stage))
        assert stage.end(guest, tx_ids[0]) == OK
        assert stage.nodes_of(1) == NODES
        once = set(paths(stage))
        assert len(once - before) == room
        for tx_id in tx_ids[1:]:
            assert stage.end(guest, tx_id) in ("EAGAIN", "ENOSPC")
        assert set(paths(stage)) == once
        assert stage.ask(guest, XS_READ, b"d2\0") == b"%d" % tx_ids[0]
        assert stage.nodes_of(1) == NODES


BAD_PATHS = (
    *(b"/local/domain/", b"/local/domain//", b"/local//domain", b"/local/domain/1/"),
    *(b"/local/domain/x/", b"/local/domain/-1/", b"/local/domain/99999999999999999999/"),
    *(b"", b"//", b"a/", b"/\xff", b"a b", b"@foo/", b"n" * 2049, b"/" + b"n" * 2048),
)


@pytest.mark.parametrize("path", BAD_PATHS)
def test_xsa_481_a_path_that_can_not_be_is_einval_and_no_more(path: bytes) -> None:
    """CVE-2026-23555: `/local/domain/` left no error number, and an assertion ended the daemon.

    Each request that takes a path refuses it, in a transaction too, and the next one is served.
    """
    with attacked() as stage:
        guest = stage.guest(1)
        assert stage.ask(guest, XS_TRANSACTION_START, b"\0") == b"1\0"
        before = paths(stage)
        for tx_id in (0, 1):
            for kind, rest in (
                *((XS_READ, b""), (XS_WRITE, b"x"), (XS_MKDIR, b""), (XS_RM, b"")),
                *((XS_DIRECTORY, b""), (XS_DIRECTORY_PART, b"0\0"), (XS_GET_PERMS, b"")),
                *((XS_SET_PERMS, b"n1\0"), (XS_WATCH, b"t\0"), (XS_UNWATCH, b"t\0")),
            ):
                assert stage.ask(guest, kind, path + b"\0" + rest, tx_id) == "EINVAL", kind
                assert stage.ask(guest, XS_READ, b"\0", tx_id) == "EINVAL"
                assert stage.ask(guest, XS_READ, b"/local/domain/1\0", tx_id) == b""
        assert paths(stage) == before
