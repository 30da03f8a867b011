"""Domains as clients of a hosted Xenstore by their rings: what they may, and what stays of them.

One server for most tests: what one domain does must not matter to the next. Updates and deaths have
servers of their own.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.servers import XenliveServer
from machine.fake_guest import (
    OFFSET,
    PATIENCE_S,
    PORT,
    SIZE,
    FakeGuest,
    introduce,
    make_memory,
    wait_until,
)
from machine.hosts import status
from xenstore.talk import HEADER

from xenlive.abi import xs_ring
from xenlive.abi.xs_wire import (
    XS_CONTROL,
    XS_INTRODUCE,
    XS_READ,
    XS_RELEASE,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.client.blocking import Xenstore
from xenlive.client.codec import WatchEvent
from xenlive.client.requests import Permission
from xenlive.errors import ConfigError, XenstoreError
from xenlive.machine.hosted.joining import Membership
from xenlive.machine.hosted.others import OTHERS_MAX


@pytest.fixture
def guest(shared: XenliveServer, dom0: Xenstore) -> Iterator[FakeGuest]:
    made = introduce(dom0, FakeGuest(shared.rundir))
    yield made
    made.close()


# -- a client as any other ---------------------------------------------------------------------


def test_it_is_its_own_domain(guest: FakeGuest, dom0: Xenstore) -> None:
    assert guest.domid >= 2
    assert guest.ask(XS_READ, b"name") == b"guest %d" % guest.domid
    assert guest.ask(XS_WRITE, b"data/x", value=b"1") == b"OK\0"
    home = f"/local/domain/{guest.domid}"
    assert dom0.read(f"{home}/data/x") == b"1"
    assert dom0.get_perms(f"{home}/data/x")[0] == Permission(guest.domid, "n")
    dom0.write("/secret", "x")
    assert guest.ask(XS_READ, b"/secret") == "EACCES"
    assert guest.ask(XS_WRITE, b"name", value=b"other") == "EACCES"
    assert guest.ask(XS_SET_PERMS, b"data", b"n0") == "EPERM"
    for kind, words in (
        (XS_INTRODUCE, (b"9", b"1", b"1")),
        (XS_RELEASE, (b"%d" % guest.domid,)),
        (XS_CONTROL, (b"help",)),
    ):
        assert guest.ask(kind, *words) == "EACCES"


def test_its_watches_fire_for_others_and_theirs_for_it(guest: FakeGuest, dom0: Xenstore) -> None:
    home = f"/local/domain/{guest.domid}"
    assert guest.ask(XS_WATCH, b"data", b"t") == b"OK\0"
    assert guest.event() == (b"data", b"t")
    dom0.write(f"{home}/data/new", "1")
    assert guest.event() == (b"data/new", b"t")
    dom0.watch(f"{home}/data", "mine")
    assert dom0.next_event(10) == WatchEvent(f"{home}/data", "mine")
    assert guest.ask(XS_RM, b"data/new") == b"OK\0"
    assert dom0.next_event(10) == WatchEvent(f"{home}/data/new", "mine")
    assert guest.event() == (b"data/new", b"t")


def test_messages_longer_than_the_ring_go_through_both_ways(guest: FakeGuest) -> None:
    value = bytes(range(256)) * 7
    for _ in range(3):
        assert guest.ask(XS_WRITE, b"data/big", value=value) == b"OK\0"
        assert guest.ask(XS_READ, b"data/big") == value


def test_requests_byte_by_byte(guest: FakeGuest) -> None:
    for byte in HEADER.pack(XS_READ, 7, 0, 5) + b"name\0":
        guest.put(bytes([byte]))
    assert guest.next(event=False).payload == b"guest %d" % guest.domid


def test_what_was_in_the_ring_before_the_introduction_is_not_served(
    shared: XenliveServer, dom0: Xenstore
) -> None:
    made = FakeGuest(shared.rundir)
    made.put(b"nonsense", ring=False)
    made.words[xs_ring.RSP_PROD] = 77
    made.words[xs_ring.CONNECTION] = xs_ring.XENSTORE_RECONNECT
    introduce(dom0, made)
    assert made.words[xs_ring.REQ_PROD] == made.words[xs_ring.RSP_PROD] == 0
    assert made.words[xs_ring.CONNECTION] == xs_ring.XENSTORE_CONNECTED
    assert made.words[xs_ring.SERVER_FEATURES] & xs_ring.XENSTORE_SERVER_FEATURE_ERROR
    assert made.ask(XS_READ, b"name") == b"guest %d" % made.domid
    made.close()


def test_introduced_again_its_ring_and_watches_are_empty(guest: FakeGuest, dom0: Xenstore) -> None:
    guest.ask(XS_WATCH, b"data", b"t")
    guest.event()
    assert guest.ask(XS_TRANSACTION_START, b"") == b"1\0"
    dom0.introduce(guest.domid, 0, PORT)
    assert guest.words[xs_ring.REQ_PROD] == guest.words[xs_ring.RSP_PROD] == 0
    dom0.write(f"/local/domain/{guest.domid}/data/y", "1")
    assert guest.ask(XS_READ, b"data/y") == b"1"
    assert guest.ask(XS_TRANSACTION_END, b"T", tx_id=1) == "ENOENT"
    assert guest.messages == []


# -- INTRODUCE and RELEASE ---------------------------------------------------------------------


def test_who_is_not_there_is_not_introduced(guest: FakeGuest, dom0: Xenstore) -> None:
    for domid, port in ((999, 1), (1, 1), (0, 1), (65535, 1), (guest.domid + 1, PORT)):
        with pytest.raises(XenstoreError, match="EINVAL"):
            dom0.introduce(domid, 1, port)
    for domid in (999, guest.domid + 1):
        assert not dom0.is_domain_introduced(domid)
        with pytest.raises(XenstoreError, match="ENOENT"):
            dom0.release(domid)
    with pytest.raises(XenstoreError, match="EINVAL"):
        dom0.release(0)


@pytest.mark.parametrize("port", [0, -1, 77, 1 << 40])
def test_a_port_that_it_has_not_is_refused_and_leaves_nothing(
    shared: XenliveServer, dom0: Xenstore, port: int
) -> None:
    before = status(shared)["ports"]
    made = FakeGuest(shared.rundir)
    with pytest.raises(XenstoreError, match="EINVAL"):
        dom0.introduce(made.domid, 0, port)
    assert not dom0.is_domain_introduced(made.domid)
    assert status(shared)["ports"].keys() - before.keys() <= {"4"}, "a port is left"
    assert introduce(dom0, made).ask(XS_READ, b"name") == b"guest %d" % made.domid
    made.close()


def test_the_port_that_its_page_names_comes_first(shared: XenliveServer, dom0: Xenstore) -> None:
    """As Xen has it for domains that it starts itself; of a served one it is not asked again."""
    made = FakeGuest(shared.rundir)
    made.words[xs_ring.EVTCHN_PORT] = PORT
    dom0.introduce(made.domid, 0, 77)
    made.words[xs_ring.EVTCHN_PORT] = 77
    dom0.introduce(made.domid, 0, PORT)
    assert made.ask(XS_READ, b"/tool") == "EACCES"
    dom0.release(made.domid)
    with pytest.raises(XenstoreError, match="EINVAL"):
        dom0.introduce(made.domid, 0, PORT)
    made.words[xs_ring.EVTCHN_PORT] = 0
    assert introduce(dom0, made).ask(XS_READ, b"name") == b"guest %d" % made.domid
    made.close()


def test_a_domain_without_a_page_is_refused(shared: XenliveServer, dom0: Xenstore) -> None:
    member = Membership.join(str(shared.rundir))
    with pytest.raises(XenstoreError, match="EINVAL"):
        dom0.introduce(member.domid, 0, 1)
    member.close()


def test_released_it_is_no_more_and_who_watches_is_told(
    shared: XenliveServer, dom0: Xenstore
) -> None:
    for name in ("@introduceDomain", "@releaseDomain"):
        dom0.watch(name, "w")
        assert dom0.next_event(10) == WatchEvent(name, "w")
    made = introduce(dom0, FakeGuest(shared.rundir))
    assert dom0.next_event(10) == WatchEvent("@introduceDomain", "w")
    assert dom0.is_domain_introduced(made.domid)
    home = f"/local/domain/{made.domid}"
    made.ask(XS_WRITE, b"data/own", value=b"1")
    dom0.release(made.domid)
    assert dom0.next_event(10) == WatchEvent("@releaseDomain", "w")
    assert not dom0.is_domain_introduced(made.domid)
    assert not dom0.exists(f"{home}/data"), "its own nodes go with it"
    assert dom0.get_perms(home) == [Permission(0, "n")], "nobody after it may read what it could"
    before = made.words[xs_ring.RSP_PROD]
    made.send(XS_READ, b"name")
    assert dom0.read("/tool") == b"", "the store has looked by now"
    assert made.words[xs_ring.RSP_PROD] == before
    introduce(dom0, made)
    assert made.ask(XS_READ, b"name") == b"guest %d" % made.domid
    made.close()


def test_no_port_is_left_of_a_hundred_introductions(shared: XenliveServer, dom0: Xenstore) -> None:
    made = introduce(dom0, FakeGuest(shared.rundir))
    pid = status(shared)["domain"]["pid"]
    counts = set()
    for _ in range(100):
        dom0.release(made.domid)
        introduce(dom0, made)
        counts.add((len(os.listdir(f"/proc/{pid}/fd")), maps_of(pid)))
    assert len(counts) == 1
    made.close()


def maps_of(pid: int) -> int:
    """How many pages of fake guests a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("fake-guest")


# -- who misbehaves ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (xs_ring.REQ_PROD, SIZE + 1),
        (xs_ring.REQ_PROD, 0xFFFFFFFF),
        (xs_ring.REQ_CONS, 22),
        (xs_ring.RSP_CONS, 1),
        (xs_ring.RSP_PROD, SIZE + 5),
    ],
)
def test_wild_indices_cost_a_domain_its_own_connection(
    shared: XenliveServer, dom0: Xenstore, guest: FakeGuest, word: int, value: int
) -> None:
    other = introduce(dom0, FakeGuest(shared.rundir))
    guest.put(HEADER.pack(XS_READ, 7, 0, 5) + b"name\0", ring=False)
    guest.words[word] = value
    guest.ring()
    assert guest.wait_for_error() == xs_ring.XENSTORE_ERROR_RINGIDX
    assert other.ask(XS_READ, b"name") == b"guest %d" % other.domid
    assert dom0.is_domain_introduced(guest.domid)
    other.close()


def test_a_message_that_is_too_long_is_its_last(guest: FakeGuest, dom0: Xenstore) -> None:
    guest.ask(XS_WATCH, b"data", b"t")
    guest.event()
    guest.put(HEADER.pack(XS_WRITE, 7, 0, 4097))
    assert guest.wait_for_error() == xs_ring.XENSTORE_ERROR_PROTO
    before = guest.words[xs_ring.RSP_PROD]
    guest.ring()
    dom0.write(f"/local/domain/{guest.domid}/data/z", "1")
    assert dom0.read("/tool") == b"", "the store has looked by now"
    assert guest.words[xs_ring.RSP_PROD] == before
    dom0.release(guest.domid)
    introduce(dom0, guest)
    assert guest.ask(XS_READ, b"data") == b""


def test_who_never_reads_is_not_served_and_keeps_nobody_waiting(
    guest: FakeGuest, dom0: Xenstore
) -> None:
    value = b"v" * 2000
    assert guest.ask(XS_WRITE, b"data/big", value=value) == b"OK\0"
    request = HEADER.pack(XS_READ, 7, 0, 9) + b"data/big\0"
    sent = 0
    while SIZE - (guest.words[xs_ring.REQ_PROD] - guest.words[xs_ring.REQ_CONS]) >= len(request):
        guest.put(request)
        sent += 1
        assert dom0.read("/tool") == b"", "the store has looked by now"
        assert sent < 1000, "it is served without end"
    assert not guest.words[xs_ring.ERROR]
    assert [guest.next(event=False).payload for _ in range(sent)] == [value] * sent
    assert guest.ask(XS_READ, b"name") == b"guest %d" % guest.domid


def test_a_bell_that_is_full_or_set_to_wait_blocks_nobody(guest: FakeGuest, dom0: Xenstore) -> None:
    for bell in (guest.hears, guest.rings):
        os.set_blocking(bell, True)
    os.eventfd_write(guest.hears, (1 << 64) - 2)
    guest.send(XS_READ, b"name")
    wait_until(lambda: guest.words[xs_ring.RSP_PROD] > 0, "no answer")
    guest.take()
    assert dom0.read("/tool") == b""
    os.eventfd_write(guest.rings, 5)
    assert guest.ask(XS_READ, b"name")


# -- the door ----------------------------------------------------------------------------------


def test_memory_that_could_become_shorter_is_refused(shared: XenliveServer) -> None:
    member = Membership.join(str(shared.rundir))
    with open("/dev/null", "rb") as null, open(__file__, "rb") as file:
        unsealed = make_memory(seals=0)
        for fd in (null.fileno(), file.fileno(), unsealed):
            with pytest.raises(ConfigError, match="memfd"):
                member.share(fd, 1, 0, 1)
        os.close(unsealed)
    member.close()


@pytest.mark.parametrize(
    ("ref", "offset", "port"), [(-1, 0, 1), (1, 1, 1), (1, -4096, 1), (1, 16384, 1), (1, 0, 0)]
)
def test_a_share_that_makes_no_sense_is_refused(
    shared: XenliveServer, ref: int, offset: int, port: int
) -> None:
    member = Membership.join(str(shared.rundir))
    memory = make_memory()
    with pytest.raises(ConfigError, match="can be entered"):
        member.share(memory, ref, offset, port)
    os.close(memory)
    member.close()


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        b"[]",
        b"{}",
        b'{"verb": 1}',
        b'{"verb": "share"}',
        b'{"verb": "shutdown"}',
        b"[" * 4000,
    ],
)
def test_nonsense_at_the_door_is_answered(shared: XenliveServer, packet: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.settimeout(PATIENCE_S)
        door.connect(str(shared.rundir / "domains"))
        door.send(packet)
        assert json.loads(door.recv(4096))["ok"] is False


def test_too_many_domains_are_refused_and_room_comes_back(shared: XenliveServer) -> None:
    members = [Membership.join(str(shared.rundir)) for _ in range(OTHERS_MAX)]
    assert len({member.domid for member in members}) == len(members)
    with pytest.raises(ConfigError):
        Membership.join(str(shared.rundir))
    for member in members:
        member.close()
    wait_until(lambda: not status(shared)["others"], "domains are left")
    Membership.join(str(shared.rundir)).close()


def test_without_a_host_it_is_said_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="xenlive up"):
        Membership.join(str(tmp_path))


def test_the_place_of_the_ring_is_not_at_the_start_of_the_memory() -> None:
    """Else an offset that is not heeded would not be noticed here."""
    assert OFFSET > 0
