"""A 9pfs device served to a C kernel: handshake, files, rings, what lies and how far they get.

Sources of what is right: Xen `public/io/9pfs.h` and `docs/misc/9pfs.pandoc`, Plan 9 manual section
5; for what is odd, `tools/9pfsd/xen-9pfsd.c` (`frontend_changed`, `connect_device`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from kernels.devices.rig import Rigs, rigs

from xenlive.abi.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitWait,
)
from xenlive.errors import XenstoreError
from xenlive.machine.emulated.world import WORLD_IDLE

__all__ = ["rigs"]  # the fixture
pytestmark = pytest.mark.peer

MOUNT = "rings 1 4; connect; version; attach 0"
OREAD, OWRITE, ORDWR, OTRUNC = 0, 1, 2, 16
FILE = 0o644


@pytest.mark.parametrize("bits", [64, 32])
def test_a_kernel_mounts_a_directory_and_works_in_it(rigs: Rigs, bits: int) -> None:
    rig = rigs()
    there = Path(rig.device.share.directory)
    (there / "hello").write_text("from outside")
    (there / "sub").mkdir()
    (told,) = rig.run(
        f"{MOUNT}; walk 0 1 hello; open 1 {OREAD}; get 1 0 100; clunk 1;"
        f"walk 0 2; create 2 {ORDWR} {FILE} new; put 2 0 some-text; pour 2 9 3000; get 2 5 4;"
        "clunk 2; walk 0 3; open 3 0; list 3; clunk 3; walk 0 4 hello; remove 4; walk 0 5 hello;"
        "walk 0 6 sub; walk 6 7; create 7 1 420 inner; put 7 0 x",
        bits=(bits,),
    )
    assert told.lines == [
        "msize 8192, 9P2000.u",
        "from outside",
        "text",
        "hello: file 2, mode 1a4, c bytes, time 1700000000",
        "new: file 3, mode 1a4, bc1 bytes, time 1700000000",
        "sub: file 4, mode 800001ed, 0 bytes, time 1700000000",
    ]
    mounted, rest = told.results[:4], told.results[4:]
    assert mounted == [0, 0, 0, 0]
    assert rest[:4] == [0, 0, len("from outside"), 0]
    assert rest[4:10] == [0, 0, 0, 0, 4, 0]
    assert rest[10:] == [0, 0, 3, 0, 0, 0, -2, 0, 0, 0, 0]
    letters = bytes(97 + (9 + n) % 26 for n in range(3000))
    assert (there / "new").read_bytes() == b"some-text" + letters
    assert not (there / "hello").exists()
    assert (there / "sub" / "inner").read_text() == "x"
    assert rig.device.state == XenbusStateConnected


def test_the_nodes_are_those_of_the_toolstack_and_the_back_end(rigs: Rigs) -> None:
    """`libxl__device_generic_add`, `libxl__set_xenstore_p9`; `new_device` of Xen's daemon."""
    rig = rigs(2)
    back = "/local/domain/0/backend/9pfs/1/1"
    (told,) = rig.run(
        f"nodes device/9pfs; nodes device/9pfs/1; node device/9pfs/1/backend; nodes {back};"
        f"node {back}/state; node {back}/versions; node {back}/max-rings;"
        f"node {back}/max-ring-page-order; node {back}/security_model; write {back}/state 4;"
        "nodes /libxl/1/device"
    )
    front = ["backend", "backend-id", "state", "tag"]
    nodes = "frontend frontend-id online state path security_model max-space max-files"
    nodes += " max-open-files versions max-rings max-ring-page-order"
    values = ("state = 2", "versions = 1", "max-rings = 4", "max-ring-page-order = 9")
    assert told.lines == [
        *("0", "1", *front, f"device/9pfs/1/backend = {back}", *nodes.split()),
        *(f"{back}/{value}" for value in (*values, "security_model = none")),
    ]
    assert told.results[-2:] == [-22, -2]
    assert rig.device.state == XenbusStateInitWait
    rig.world.remove_guest(rig.guest)
    with pytest.raises(XenstoreError, match="ENOENT"):
        rig.world.toolstack.read(back)


def test_the_rings_of_a_device_share_one_session(rigs: Rigs) -> None:
    rig = rigs()
    (told,) = rig.run(
        f"rings 3 1; connect; version; attach 0; walk 0 1; create 1 {ORDWR} {FILE} f;"
        "ring 1; put 1 0 by-ring-1; ring 2; get 1 3 4; clunk 1; ring 0; get 1 0 9"
    )
    assert told.lines == ["msize 4096, 9P2000.u", "ring"]
    assert told.results[-2:] == [0, -9]
    assert told.results[:6] == [0] * 6
    assert (Path(rig.device.share.directory) / "f").read_text() == "by-ring-1"


def test_messages_that_are_longer_than_the_ring_has_room(rigs: Rigs) -> None:
    """Requests of more than half a ring come in parts, and so do replies."""
    rig = rigs()
    writes = "; ".join(f"pour 1 {n * 1990} 1990" for n in range(9))
    (told,) = rig.run(
        f"rings 1 1; connect; version; attach 0; walk 0 1; create 1 {ORDWR} {FILE} f;{writes};"
        "get 1 17900 10; get 1 0 1990; get 1 15000 2000"
    )
    data = (Path(rig.device.share.directory) / "f").read_bytes()
    assert data == bytes(97 + n % 26 for n in range(9 * 1990))
    assert told.lines[1:] == [data[17900:].decode()]
    assert told.results[-2:] == [1990, 2000]


def test_a_directory_to_read_only(rigs: Rigs) -> None:
    rig = rigs(is_read_only=True)
    there = Path(rig.device.share.directory)
    (there / "f").write_text("left alone")
    before = os.stat(there / "f").st_mtime_ns
    (told,) = rig.run(
        f"{MOUNT}; walk 0 1 f; open 1 {ORDWR}; open 1 {OREAD + OTRUNC}; open 1 64; open 1 {OREAD};"
        f"get 1 0 99; put 1 0 x; walk 0 2; create 2 {OWRITE} {FILE} new; walk 0 3 f; remove 3;"
        "walk 0 4 nothing"
    )
    erofs, ebadf, enoent = -30, -9, -2
    assert told.results[4:] == [
        *(0, erofs, erofs, erofs, 0),
        *(10, ebadf, 0, erofs, 0, erofs),
        enoent,
    ]
    assert (os.listdir(there), (there / "f").read_text()) == (["f"], "left alone")
    assert os.stat(there / "f").st_mtime_ns == before


def test_a_guest_stays_in_its_directory(rigs: Rigs) -> None:
    rig = rigs()
    there = Path(rig.device.share.directory)
    (there.parent / "secret").write_text("secret")
    (there / "out").symlink_to("../secret")
    (there / "up").symlink_to("..")
    os.mkfifo(there / "pipe")
    (told,) = rig.run(
        f"{MOUNT}; walk 0 1 ..; walk 0 1 out; walk 0 1 up; walk 0 1 ../secret; walk 0 1 pipe;"
        f"open 1 0; walk 0 2; create 2 {OWRITE} {FILE} ..; create 2 {OWRITE} {FILE} out;"
        f"create 2 {OWRITE} {FILE} a/b; walk 0 3; open 3 0; list 3"
    )
    enoent, emlink, eexist, eperm = -2, -31, -17, -1
    assert told.results[4:14] == [
        *(enoent, emlink, emlink, enoent, 0, eperm),
        *(0, enoent, eexist, enoent),
    ]
    assert [line.partition(":")[0] for line in told.lines[1:]] == ["pipe"]


def test_a_guest_can_fill_no_disk(rigs: Rigs) -> None:
    rig = rigs(max_bytes=5000, max_files=2)
    (told,) = rig.run(
        f"{MOUNT}; walk 0 1; create 1 {OWRITE} {FILE} a; pour 1 0 4000; pour 1 4000 4000;"
        f"pour 1 8000 1; walk 0 2; create 2 {OWRITE} {FILE} b; walk 0 3;"
        f"create 3 {OWRITE} {FILE} c"
    )
    assert told.results[4:] == [0, 0, 0, 0, -28, 0, 0, 0, -28]
    assert (Path(rig.device.share.directory) / "a").stat().st_size == 5000


def test_what_a_guest_sees_is_the_same_in_each_copy_of_a_directory(rigs: Rigs) -> None:
    script = (
        f"{MOUNT}; walk 0 1; open 1 0; list 1; walk 0 2 a; stat 2; open 2 1; put 2 0 longer;"
        "stat 2; walk 0 3; stat 3"
    )
    seen = []
    for names in ("abc", "cba"):
        rig = rigs()
        for name in names:
            there = Path(rig.device.share.directory) / name
            there.write_text(name)
            os.utime(there, (ord(names[0]), 99))
        rig.run(script)
        seen.append(bytes(rig.said))
    assert seen[0] == seen[1]


def test_a_change_by_the_toolstack_is_an_event(rigs: Rigs) -> None:
    rig = rigs()
    script = "write data/x 1; watch data; event; event; node data/x; event; node data/x"
    rig.guest.boot(*kernel_with(script))
    for value in ("two", "three"):
        assert rig.world.run() == WORLD_IDLE
        rig.world.toolstack.write("/local/domain/1/data/x", value)
    rig.go_on()
    (told,) = rig.told()
    events = ["event data", "event data/x", "data/x = two", "event data/x", "data/x = three"]
    assert told.lines == events


def kernel_with(script: str) -> tuple[bytes, str]:
    """A kernel and its command line."""
    from kernels.devices.device_kernel import device_kernel

    return device_kernel(64), script


# ---- states ------------------------------------------------------------------------------


def test_a_front_end_closes_and_connects_anew(rigs: Rigs) -> None:
    rig = rigs()
    again = "front state 5; back 5; front state 6; back 6; front state 1; back 2"
    (told,) = rig.run(
        f"{MOUNT}; walk 0 1; create 1 2 420 f; put 1 0 abc; {again}; offer; back 4;"
        "version; attach 0; walk 0 1 f; open 1 0; get 1 0 9; front state 5; back 5"
    )
    assert "abc" in told.lines
    assert told.results[7:13] == [0, 5, 0, 6, 0, 2]
    assert rig.device.connections == 2
    assert rig.device.state == XenbusStateClosing
    assert open_files(rig.device.share.directory) == [rig.device.share.directory]
    assert entries_in_use(rig.guest.domain.grants.header, 8, 8 + 17) == 0


def test_a_kernel_that_comes_new_need_not_close_first(rigs: Rigs) -> None:
    """By state 1, as one that begins, or by 3 with other rings: the old ones are let go of."""
    rig = rigs()
    (told,) = rig.run(
        f"{MOUNT}; front state 1; back 2; rings 1 2; offer; back 4; version; attach 0; walk 0 1 x"
    )
    assert told.results[4:] == [0, 2, 0, 0, 4, 0, 0, -2]
    rig = rigs()
    (told,) = rig.run(f"{MOUNT}; rings 2 1; offer; version; ring 1; attach 0; walk 0 1 x")
    assert told.results[4:] == [0, 0, 0, 1, 0, -2]
    assert rig.device.connections == 2
    assert len(rig.device.rings) == 2


def test_a_domain_that_goes_takes_its_device_along(rigs: Rigs) -> None:
    rig = rigs()
    host = rig.world.host.events
    ports = host.save()[0].keys()
    rig.run(f"{MOUNT}; walk 0 1; create 1 2 420 f")
    assert host.save()[0].keys() > ports
    device, domain = rig.device, rig.guest.domain
    rig.world.remove_guest(rig.guest)
    assert not device.rings
    assert entries_in_use(domain.grants.header, 8, 8 + 17) == 0
    assert open_files(device.share.directory) == []
    assert host.save()[0].keys() == ports


@pytest.mark.parametrize(
    ("states", "ends"),
    [
        ("front state 4", XenbusStateInitWait),
        ("front state 2", XenbusStateInitWait),
        ("front state 7", XenbusStateInitWait),
        ("front state 9", XenbusStateInitWait),
        ("front state 4294967296", XenbusStateInitWait),
        ("front state -3", XenbusStateInitWait),
        ("front state nonsense", XenbusStateInitWait),
        ("front state 5; front state 4", XenbusStateClosing),
        ("front state 6; front state 5; front state 6", XenbusStateClosed),
        ("front state 6; front state 1; front state 1", XenbusStateInitWait),
        ("gone device/9pfs/0/state", XenbusStateClosed),
        ("gone device/9pfs/0", XenbusStateClosed),
    ],
)
def test_states_that_jump(rigs: Rigs, states: str, ends: int) -> None:
    rig = rigs()
    rig.run(states)
    assert rig.device.state == ends
    assert not rig.device.rings


OFFER = "rings 1 1; front version 1; front num-rings 1; front ring-ref0 8; front event-channel-0 4"


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ("front version 2", "no version"),
        ("front version 1x", "no version"),
        ("gone device/9pfs/0/version", "no version"),
        ("front num-rings 0", "not so many rings"),
        ("front num-rings 5", "not so many rings"),
        ("front num-rings 2", "ring 1 has no"),
        ("front num-rings many", "not so many rings"),
        ("gone device/9pfs/0/ring-ref0", "ring 0 has no"),
        ("front ring-ref0 0", "ring 0 has no"),
        ("front ring-ref0 7", "GNTTABOP_map_grant_ref"),
        ("front ring-ref0 4294967295", "GNTTABOP_map_grant_ref"),
        ("front ring-ref0 99999999999", "ring 0 has no"),
        ("front ring-ref0 -8", "ring 0 has no"),
        ("revoke 8", "GNTTABOP_map_grant_ref"),
        ("readonly 8", "GNTTABOP_map_grant_ref"),
        ("readonly 10", "GNTTABOP_map_grant_ref"),
        ("revoke 10", "GNTTABOP_map_grant_ref"),
        ("lie 33 4294967295", "GNTTABOP_map_grant_ref"),
        ("lie 32 0", "ring order out of range"),
        ("lie 32 10", "ring order out of range"),
        ("lie 32 4294967295", "ring order out of range"),
        ("front event-channel-0 0", "ring 0 has no"),
        ("front event-channel-0 1", "EVTCHNOP_bind_interdomain"),  # Xenstore's
        ("front event-channel-0 3", "EVTCHNOP_bind_interdomain"),  # the timer's
        ("front event-channel-0 77", "EVTCHNOP_bind_interdomain"),
        ("front event-channel-0 4294967295", "EVTCHNOP_bind_interdomain"),
    ],
)
def test_a_front_end_that_lies_is_refused(rigs: Rigs, lie: str, why: str) -> None:
    rig = rigs()
    ports = rig.world.host.events.save()[0].keys()
    (told,) = rig.run(f"{OFFER}; {lie}; front state 3; back 4; node domid")
    assert told.results[-2:] == [XenbusStateClosed, 1]
    assert why in rig.error()
    assert rig.device.state == XenbusStateClosed
    assert not rig.device.rings
    assert entries_in_use(rig.guest.domain.grants.header, 8, 11) == 0
    assert rig.world.host.events.save()[0].keys() == ports


def test_the_offer_that_the_lies_are_made_from_is_a_good_one(rigs: Rigs) -> None:
    (told,) = rigs().run(f"{OFFER}; front state 3; back 4; version; attach 0")
    assert told.results[-3:] == [XenbusStateConnected, 0, 0]


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ("lie 17 4294967295", "producer index out of range"),  # out_prod
        ("lie 16 1", "the consumer's index was changed"),  # out_cons
        ("quiet; left; version; lie 1 77", "the producer's index was changed"),  # in_prod
        ("quiet; left; version; lie 0 99", "consumer index out of range"),  # in_cons
    ],
)
def test_indices_that_lie_cost_the_device_and_nothing_else(rigs: Rigs, lie: str, why: str) -> None:
    rig = rigs(2)
    (told,) = rig.run(
        f"{MOUNT}; {lie}; kick; left; walk 0 1; kick; node domid;"
        "device 1; rings 1 1; connect; version; attach 0"
    )
    assert why in rig.error()
    assert rig.device.state == XenbusStateClosed
    assert entries_in_use(rig.guest.domain.grants.header, 11, 8 + 17) == 0
    assert told.results[-6:] == [1, 1, 0, 0, 0, 0]
    assert rig.devices[1].state == XenbusStateConnected


@pytest.mark.parametrize("seed", range(6))
def test_nonsense_in_the_ring(rigs: Rigs, seed: int) -> None:
    """Bytes of a message in wrong places: an answer, or the end of the device; never of more."""
    rig = rigs()
    words = [(seed * 7919 + n * 104729) % 4096 for n in range(6)]
    junk = "; ".join(f"there {word % 11}; left; walk {word} {word % 97}" for word in words)
    (told,) = rig.run(f"{MOUNT}; {junk}; left; version; node domid")
    assert told.results[-1] == 1
    assert rig.device.state in (XenbusStateConnected, XenbusStateClosed)


def open_files(directory: str) -> list[str]:
    """What this process has open there."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists them
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in found if path.startswith(directory)]


def entries_in_use(header: object, first: int, end: int) -> int:
    """How many grant entries say that somebody reads or writes their pages."""
    assert callable(header)
    return sum(bool(header(ref)[0] & 0x18) for ref in range(first, end))
