"""Nobody's unread answers grow without bound: guests that ask and never read, or are told too much.

How far Debian's C 4.17 serves a guest that does not read is compared, answer by answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from differential.daemons import RingLine, c_peer
from differential.ours import CoreRing, OurPeer, PageLink
from xenstore.scene import OK, Scene
from xenstore.talk import encode

from xenlive.abi import xs_ring
from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_INTRODUCE,
    XS_READ,
    XS_RESET_WATCHES,
    XS_RM,
    XS_SET_FEATURE,
    XS_SET_PERMS,
    XS_SET_QUOTA,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.xenstore.quota import OUTSTANDING
from xenlive.xenstore.ringpage import RingPage
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import encode_state, load_state

SIZE = xs_ring.XENSTORE_RING_SIZE
# Pairs of a read whose answer is long and a write that tells how far the server came.
PAIRS = 60
REQUESTS = b"".join(
    encode(XS_READ, b"big\0", 0, 1000 + n) + encode(XS_WRITE, b"n\0%d" % n, 0, 2000 + n)
    for n in range(PAIRS)
)


def put(line: RingLine | CoreRing, data: bytes, look: Callable[[], object]) -> bytes:
    """Puts requests in as long as there is room, takes nothing out; what is left of `data`."""
    words, page = line.guest.words, line.guest.page
    for _ in range(40):
        prod, cons = words[xs_ring.REQ_PROD], words[xs_ring.REQ_CONS]
        piece = data[: SIZE - (prod - cons & 0xFFFFFFFF)]
        for index, byte in enumerate(piece):
            page[(prod + index) % SIZE] = byte
        words[xs_ring.REQ_PROD] = prod + len(piece) & 0xFFFFFFFF
        data = data[len(piece) :]
        look()
    return data


def play(scene: Scene, line: RingLine | CoreRing, look: Callable[[], object]) -> tuple[object, int]:
    """How far it came before anybody read, and how many were outstanding; then all is read."""
    assert scene.ask(line, XS_WRITE, b"big\0" + bytes(1400)) == OK
    left = put(line, REQUESTS, look)
    came_to = scene.ask(scene.dom0, XS_READ, b"/local/domain/1/n\0")
    outstanding = scene.used(1, "outstanding")
    line.guest.unsent = left
    answers = [message.req_id for message in line.until(2000 + PAIRS - 1)]
    assert answers == [1000 * half + n for n in range(PAIRS) for half in (1, 2)]
    assert scene.used(1, "outstanding") == 0
    return came_to, outstanding


def look_at(peer: OurPeer, domid: int) -> None:
    link = peer.server.rings[domid].link
    assert link is not None
    link.pump()
    peer.settle()


def ours(domid: int = 1) -> tuple[OurPeer, Scene, CoreRing]:
    peer = OurPeer()
    scene = Scene(peer)
    line = scene.guest(domid)
    assert isinstance(line, CoreRing)
    return peer, scene, line


def test_a_guest_that_does_not_read_is_not_served() -> None:
    peer, scene, line = ours()
    assert play(scene, line, lambda: look_at(peer, 1)) == (b"9", 20)
    scene.close()


@pytest.mark.peer
def test_the_c_daemon_stops_at_the_same_request(tmp_path: Path, peer_build_folder: Path) -> None:
    peer = c_peer(tmp_path / "c", peer_build_folder)
    scene = Scene(peer)
    line = scene.guest(1)
    assert isinstance(line, RingLine)

    def look() -> None:
        peer.ring(1001)
        time.sleep(0.005)

    assert play(scene, line, look) == (b"9", 20)
    scene.close()


def test_what_waits_goes_on_after_an_update() -> None:
    """Requests that had left the ring when the update came are neither lost nor done twice."""
    peer, scene, line = ours()
    assert scene.ask(line, XS_WRITE, b"big\0" + bytes(1400)) == OK
    left = put(line, REQUESTS, lambda: look_at(peer, 1))
    before = peer.server.rings[1]
    assert before.stalled
    assert before.unparsed
    stream = b"".join(encode_state(peer.server, listen_fd=-1, evtchn_fd=-1, fd_of=lambda _: 9))
    server = XenstoreServer()
    (conn,) = load_state(server, stream).rings
    assert conn.account is not None
    assert conn.account.used[OUTSTANDING] == 20
    conn.link = PageLink.__new__(PageLink)
    conn.link.page = RingPage(server, conn, line.guest.page)
    peer.server = server
    line.guest.unsent = left
    answers = [message.req_id for message in line.until(2000 + PAIRS - 1)]
    assert answers == [1000 * half + n for n in range(PAIRS) for half in (1, 2)]
    assert conn.account.used[OUTSTANDING] == 0


def test_events_beyond_the_memory_quota_are_dropped_and_the_guest_goes_on() -> None:
    peer, scene, _ = ours()
    scene.control("quota", "set", "memory", "20000")
    other = scene.guest(2)
    assert isinstance(other, CoreRing)
    assert scene.ask(other, XS_WATCH, b"/a\0" + b"t" * 100 + b"\0") == OK
    for number in range(2000):
        assert scene.ask(scene.dom0, XS_WRITE, b"/a/%d\0" % number) == OK
    conn = peer.server.rings[2]
    assert conn.unsent_bytes() == 0  # it may not read what domain 0 keeps to itself
    assert scene.ask(scene.dom0, XS_SET_PERMS, b"/a\0r0\0") == OK
    for number in range(2000):
        assert scene.ask(scene.dom0, XS_WRITE, b"/a/%d\0" % number) == OK
    assert 15_000 < conn.unsent_bytes() < 20_000
    assert scene.ask(other, XS_READ, b"/a\0") == b""
    assert conn.unsent_bytes() == 0
    scene.close()


def test_a_domain_over_its_memory_is_served_again_when_domain_0_makes_room() -> None:
    _, scene, line = ours()
    assert scene.ask(line, XS_WRITE, b"a\0" + bytes(1000)) == OK
    assert scene.ask(line, XS_WRITE, b"b\0" + bytes(1000)) == OK
    assert scene.ask(scene.dom0, XS_SET_QUOTA, b"1\0memory\x001500\0") == OK
    line.send(encode(XS_DIRECTORY, b"b\0", 0, 5000))
    with pytest.raises(AssertionError, match="no answer by ring"):
        line.until(5000)
    assert scene.ask(scene.dom0, XS_RM, b"/local/domain/1/a\0") == OK
    (answer,) = line.until(5000)
    assert answer.payload == b""
    scene.close()


def test_warnings_are_the_c_daemons_and_come_at_most_each_ten_seconds() -> None:
    now = [1000.0]
    said: list[bytes] = []
    peer, scene, line = ours()
    accounts = peer.server.store.accounts
    accounts.now = lambda: now[0]
    peer.server.on_print = said.append
    for name, value in ((b"soft-memory", b"1000"), (b"memory", b"3000")):
        assert scene.ask(scene.dom0, XS_SET_QUOTA, b"1\0" + name + b"\0" + value + b"\0") == OK
    steps: list[tuple[int, int, list[bytes]]] = [
        (0, 1100, [b"Domain 1 exceeds soft memory quota"]),
        (1, 100, []),
        (11, 101, [b"Domain 1 below soft memory quota again"]),
        (1, 1200, []),
        (11, 1300, [b"Domain 1 exceeds soft memory quota"]),
    ]
    for seconds, size, expected in steps:
        now[0] += seconds
        assert scene.ask(line, XS_WRITE, b"a\0" + bytes(size)) == OK
        assert scene.ask(line, XS_DIRECTORY, b"a\0") == b""
        assert said == expected
        said.clear()
    assert scene.ask(line, XS_WRITE, b"b\0" + bytes(1800)) == "EIO"
    assert said == [b"Domain 1 exceeds hard memory quota, Xenstore interface to domain stalled"]
    now[0] += 11
    assert scene.ask(line, XS_DIRECTORY, b"a\0") == b""
    assert said[1:] == [b"Domain 1 below hard memory quota again"]
    scene.close()


def test_a_guest_without_the_error_field_is_ignored_all_the_same() -> None:
    peer = OurPeer()
    scene = Scene(peer)
    page = peer.create(1).guest.words
    assert scene.ask(scene.dom0, XS_SET_FEATURE, b"1\x004\0") == OK
    page[xs_ring.ERROR] = 99  # not a field that it knows of
    assert scene.ask(scene.dom0, XS_INTRODUCE, b"1\x001\x001\0") == OK
    assert page[xs_ring.SERVER_FEATURES] == 4
    page[xs_ring.REQ_PROD] = 5000
    look_at(peer, 1)
    page[xs_ring.REQ_PROD] = 16
    look_at(peer, 1)
    assert page[xs_ring.ERROR] == 99
    assert page[xs_ring.REQ_CONS] == 0
    scene.close()


def test_a_page_says_all_features_of_this_server() -> None:
    _, scene, line = ours()
    assert line.guest.words[xs_ring.SERVER_FEATURES] == 2 | 4 | 8
    scene.close()


def test_transactions_of_a_guest_cost_it_memory_until_they_end() -> None:
    _, scene, line = ours()
    before = scene.used(1, "memory")
    assert scene.ask(line, XS_TRANSACTION_START, b"\0") == b"1\0"
    assert scene.ask(line, XS_WRITE, b"a\0" + bytes(1000), 1) == OK
    assert scene.used(1, "memory") > before + 1000
    assert scene.ask(line, XS_RM, b"a\0", 1) == OK
    assert scene.ask(line, XS_RESET_WATCHES, b"\0") == OK
    assert scene.used(1, "memory") == before
    scene.close()
