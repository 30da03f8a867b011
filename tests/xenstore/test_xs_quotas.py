"""Each quota as a guest meets it on its ring: what we refuse, and what Debian's C 4.17 does.

Where the two numbers of a row differ, `docs/differences.md` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from differential.daemons import c_peer
from differential.ours import OurPeer
from xenstore.scene import OK, Line, Reply, Scene, count_until_error

from xenlive.abi.xs_wire import (
    XS_GET_DOMAIN_PATH,
    XS_MKDIR,
    XS_READ,
    XS_RESET_WATCHES,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.xenstore import usage

Story = Callable[[Scene, Line], object]


def _watches(scene: Scene, guest: Line) -> object:
    return count_until_error(lambda n: scene.ask(guest, XS_WATCH, b"a\0%d\0" % n))


def _watch_twice_before_quota(scene: Scene, guest: Line) -> object:
    count_until_error(lambda n: scene.ask(guest, XS_WATCH, b"a\0%d\0" % n))
    return scene.ask(guest, XS_WATCH, b"a\x001\0")


def _transactions(scene: Scene, guest: Line) -> object:
    return count_until_error(lambda _: scene.ask(guest, XS_TRANSACTION_START, b"\0"))


def _transactions_again(scene: Scene, guest: Line) -> object:
    _transactions(scene, guest)
    scene.ask(guest, XS_RESET_WATCHES, b"\0")
    return _transactions(scene, guest), scene.used(1, "transactions")


def _permissions(scene: Scene, guest: Line) -> object:
    home = b"/local/domain/1\0n1\0"
    return [scene.ask(guest, XS_SET_PERMS, home + b"r0\0" * more) for more in (4, 5)]


def _permissions_before_words(scene: Scene, guest: Line) -> object:
    return scene.ask(guest, XS_SET_PERMS, b"/local/domain/1\0" + b"x\0" * 6)


def _nodes(scene: Scene, guest: Line) -> object:
    found = count_until_error(lambda n: scene.ask(guest, XS_WRITE, b"%d/%d\0" % (n // 50, n)))
    used = scene.used(1, "nodes")
    scene.ask(guest, XS_RM, b"1\0")
    return found, used, scene.used(1, "nodes")


def _nodes_in_transaction(scene: Scene, guest: Line) -> object:
    for number in range(990):
        assert scene.ask(guest, XS_MKDIR, b"%d/%d\0" % (number // 100, number)) == OK
        if scene.used(1, "nodes") >= 995:
            break
    tx_id = _start(scene, guest)
    made = [scene.ask(guest, XS_MKDIR, b"t%d\0" % n, tx_id) for n in range(7)]
    end = scene.ask(guest, XS_TRANSACTION_END, b"T\0", tx_id)
    return made[:4], end, scene.used(1, "nodes")


def _looked_at(scene: Scene, guest: Line) -> object:
    tx_id = _start(scene, guest)
    found = 0
    reply: Reply = "ENOENT"
    while reply == "ENOENT":
        reply = scene.ask(guest, XS_READ, b"%d\0" % found, tx_id)
        found += 1
    # Its own, and the node above, which says what the guest may know.
    again = scene.ask(guest, XS_READ, b"0\0", tx_id)
    return found, reply, again, scene.ask(guest, XS_TRANSACTION_END, b"T\0", tx_id)


def _size_in_transaction(scene: Scene, guest: Line) -> object:
    tx_id = _start(scene, guest)
    large = scene.ask(guest, XS_WRITE, b"v\0" + bytes(2048), tx_id)
    small = scene.ask(guest, XS_WRITE, b"v\0", tx_id)
    return large, small, scene.ask(guest, XS_TRANSACTION_END, b"T\0", tx_id)


def _size(scene: Scene, guest: Line) -> object:
    return count_until_error(lambda n: scene.ask(guest, XS_WRITE, b"v\0" + bytes(2000 + n)))


def _size_by_names(scene: Scene, guest: Line) -> object:
    return count_until_error(lambda n: scene.ask(guest, XS_WRITE, b"dir/%04d\0" % n))


def _path(scene: Scene, guest: Line) -> object:
    scene.control("quota", "set", "node-size", "8192")
    other = scene.guest(2)  # which has the larger one, whoever decides when
    home = b"/local/domain/2/"
    sizes = (2047, 2048, 2049)
    return [scene.ask(other, XS_MKDIR, home + b"x" * size + b"\0") for size in sizes]


def _memory(scene: Scene, guest: Line) -> object:
    scene.control("quota", "set", "memory", "9000")
    other = scene.guest(2)
    made = count_until_error(lambda n: scene.ask(other, XS_WRITE, b"%d\0" % n + bytes(1500)))
    large = scene.ask(other, XS_READ, b"0\0")
    scene.ask(other, XS_RM, b"0\0")
    return made, large, scene.ask(other, XS_WRITE, b"0\0" + bytes(1000))


def _watch_memory(scene: Scene, guest: Line) -> object:
    scene.control("quota", "set", "memory", "3000")
    other = scene.guest(2)

    def watch_and_read_its_first_event(n: int) -> Reply:
        reply = scene.ask(other, XS_WATCH, b"@releaseDomain\0%03d" % n + b"t" * 500 + b"\0")
        if reply == OK:  # what is not read yet is accounted too; a reply comes behind it
            scene.ask(other, XS_GET_DOMAIN_PATH, b"2\0")
        return reply

    return count_until_error(watch_and_read_its_first_event)


def _domain_0(scene: Scene, guest: Line) -> object:
    """Nobody limits domain 0, nor what it gives to a guest."""
    for name in ("nodes", "watches", "transactions", "permissions", "node-size"):
        scene.control("quota", "set", name, "1")
    dom0 = scene.dom0
    replies = [
        *(scene.ask(dom0, XS_WRITE, b"/x/%d\0" % n + bytes(4000)) for n in range(3)),
        *(scene.ask(dom0, XS_WATCH, b"/x\0%d\0" % n) for n in range(3)),
        *(scene.ask(dom0, XS_SET_PERMS, b"/x/%d\0n1\0r1\0r1\0" % n) for n in range(3)),
    ]
    return set(replies), scene.used(1, "nodes")


def _start(scene: Scene, guest: Line) -> int:
    reply = scene.ask(guest, XS_TRANSACTION_START, b"\0")
    assert isinstance(reply, bytes)
    return int(reply[:-1])


# Name, what happens, what ours says, what C 4.17 says if that is something else.
ROWS: list[tuple[str, Story, object, object]] = [
    ("watches", _watches, (128, "ENOSPC"), (129, "E2BIG")),
    ("a watch that is there", _watch_twice_before_quota, "EEXIST", None),
    ("transactions", _transactions, (10, "ENOSPC"), (11, "ENOSPC")),
    (
        "transactions, after a reset",
        _transactions_again,
        ((10, "ENOSPC"), 10),
        ((11, "ENOSPC"), 11),
    ),
    ("permissions", _permissions, [OK, "ENOSPC"], None),
    ("too many words that are none", _permissions_before_words, "ENOSPC", None),
    ("nodes", _nodes, ((979, "ENOSPC"), 1000, 949), None),
    (
        "nodes, at commit",
        _nodes_in_transaction,
        ([OK] * 4, "ENOSPC", 995),
        ([OK] * 4, "ENOSPC", 995),
    ),
    ("nodes of a transaction", _looked_at, (1024, "ENOSPC", "ENOENT", "ENOMEM"), None),
    ("too large in a transaction", _size_in_transaction, ("ENOSPC", OK, "ENOMEM"), None),
    ("size by value", _size, (24, "ENOSPC"), (16, "ENOSPC")),
    ("size by names", _size_by_names, (404, "ENOSPC"), (403, "ENOSPC")),
    ("path", _path, [OK, OK, "EINVAL"], None),
    ("memory", _memory, ((5, "EIO"), "ENOMEM", OK), ((5, "EIO"), "ENOMEM", OK)),
    ("memory of watches", _watch_memory, (5, "ENOMEM"), None),
    ("domain 0", _domain_0, ({OK}, 4), None),
]
NAMES = [row[0] for row in ROWS]


@pytest.fixture
def ours() -> Iterator[Scene]:
    peer = OurPeer()
    scene = Scene(peer)
    yield scene
    store = peer.server.store
    assert store.accounts.wrong_counts(usage.all_nodes(store)) == {}
    scene.close()


@pytest.fixture
def c_417(tmp_path: Path, peer_build_folder: Path) -> Iterator[Scene]:
    scene = Scene(c_peer(tmp_path / "c", peer_build_folder))
    yield scene
    scene.close()


@pytest.mark.parametrize(("story", "expected"), [row[1:3] for row in ROWS], ids=NAMES)
def test_what_ours_refuses(ours: Scene, story: Story, expected: object) -> None:
    assert story(ours, ours.guest(1)) == expected


@pytest.mark.peer
@pytest.mark.parametrize(("story", "expected", "other"), [row[1:] for row in ROWS], ids=NAMES)
def test_what_the_c_daemon_refuses(
    c_417: Scene, story: Story, expected: object, other: object
) -> None:
    assert story(c_417, c_417.guest(1)) == (expected if other is None else other)


def test_what_domain_0_gives_is_not_refused_for_memory(ours: Scene) -> None:
    """C 4.17 ends here: `Assertion conn->in == NULL`."""
    ours.control("quota", "set", "memory", "1")
    ours.peer.create(1)
    assert ours.ask(ours.dom0, XS_WRITE, b"/x\0") == OK
    assert ours.ask(ours.dom0, XS_SET_PERMS, b"/x\0n1\0") == OK
    assert ours.used(1, "nodes") == 1


def test_a_global_quota_is_for_domains_to_come(ours: Scene) -> None:
    """As the newest C daemon, and the specification of SET_QUOTA; 4.17 has no other quotas."""
    before = ours.guest(1)
    ours.control("quota", "set", "nodes", "2")
    after = ours.guest(2)
    for guest, expected in ((before, [OK, OK, OK]), (after, [OK, "ENOSPC", "ENOSPC"])):
        assert [ours.ask(guest, XS_MKDIR, b"%d\0" % n) for n in range(3)] == expected
