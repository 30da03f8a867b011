"""A 9pfs device goes from one C kernel to the next by kexec, its rings in the module's pages.

Kernel A makes the module, puts the rings into its pages, writes half of a file, leaves a request
without having taken its answer, and enters B. B finds the record, follows its grants to the pages,
and goes on. All memory that was not handed over is poisoned in between; the back end is not told.

The record is Mini-OS' struct kexec_9pfs (`include/kexec.h`, posted July 2025).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kernels.devices.rig import Rig, Rigs, rigs

from xenlive.abi.grant_table import GTF_permit_access, GTF_reading, GTF_writing
from xenlive.abi.xen9pfs import RECORD_9PFS
from xenlive.abi.xenbus import XenbusStateClosed, XenbusStateConnected

__all__ = ["rigs"]  # the fixture
pytestmark = pytest.mark.peer

ORDER = 4
N_PAGES = 1 + (1 << ORDER)
FIRST_REF = 8
MOUNT = f"make {N_PAGES + 1}; rings 1 {ORDER}; connect; version; attach 0"
HALF = 3000
START = f"{MOUNT}; walk 0 1; create 1 2 420 f; pour 1 0 {HALF}"
REST = f"pour 1 {HALF} {HALF}"
LEAVE = "save 0; kexec 0"
TAKE = "make 0; retake 0"
CONTENT = bytes(97 + n % 26 for n in range(2 * HALF))

# How A leaves the request for the second half, and how B comes to its answer.
LEFT = {
    "answered, and the answer not taken": (f"left; {REST}", "reply"),
    "in the ring, and nobody told": (f"quiet; left; {REST}", "kick; reply"),
    "its first half in the ring": (f"first 1500; left; {REST}", f"there 1500; {REST}"),
    "its first bytes in the ring": (f"first 3; quiet; left; {REST}", f"there 3; {REST}"),
    "not even begun": ("ring 0", REST),
}


def watched(rig: Rig) -> list[set[int]]:
    """Notes, at each entry, how the device's grants are, and that they never were dropped."""
    seen: list[set[int]] = []
    device = rig.device
    ring = None

    def look(number: int) -> None:
        nonlocal ring
        header = rig.guest.domain.grants.header
        seen.append({header(ref)[0] for ref in range(FIRST_REF, FIRST_REF + N_PAGES)})
        ref, port, _, _ = RECORD_9PFS.unpack(rig.module().read_record(0))
        (now,) = device.rings
        assert (ref, port) == (FIRST_REF, now.remote_port)
        assert ring in (None, now), "the back end's ring is another"
        ring = now

    rig.at_entry = look
    return seen


@pytest.mark.parametrize("bits", [(64, 64), (64, 32), (32, 64)])
@pytest.mark.parametrize("left", LEFT)
def test_the_next_kernel_finishes_what_the_first_began(
    rigs: Rigs, left: str, bits: tuple[int, int]
) -> None:
    rig = rigs()
    seen = watched(rig)
    leaves, goes_on = LEFT[left]
    first, second = rig.run(
        f"{START}; {leaves}; {LEAVE}",
        f"{TAKE}; {goes_on}; get 1 {2 * HALF - 3} 9; clunk 1; walk 0 2 f; version",
        bits=bits,
    )
    assert set(first.results[2:]) <= {0}
    assert second.results == [0] * len(second.results[:-4]) + [3, 0, 0, 0]
    assert (Path(rig.device.share.directory) / "f").read_bytes() == CONTENT
    assert seen == [{GTF_permit_access | GTF_reading | GTF_writing}]
    assert rig.device.connections == 1
    assert rig.device.state == XenbusStateConnected


def test_a_chain_of_five(rigs: Rigs) -> None:
    rig = rigs()
    seen = watched(rig)
    middle = [f"{TAKE}; reply; left; pour 1 {HALF * n} {HALF}; save 0; kexec 1" for n in (2, 3, 4)]
    told = rig.run(
        f"{START}; left; {REST}; {LEAVE}", *middle, f"{TAKE}; reply; clunk 1", bits=(64, 32)
    )
    assert [kernel.results for kernel in told[1:]] == [
        *[[0] * 6] * 3,
        [0, 0, 0, 0],
    ]
    content = (Path(rig.device.share.directory) / "f").read_bytes()
    assert content == bytes(97 + n % 26 for n in range(5 * HALF))
    assert seen == [{GTF_permit_access | GTF_reading | GTF_writing}] * 4


def test_the_store_goes_on_over_kexec_too(rigs: Rigs) -> None:
    """The ring stays, and with it the first kernel's watches."""
    rig = rigs()
    first, second = rig.run(
        "write data/a 1; watch data/a; event; kexec 0",
        "node data/a; write data/a 2; event; node data/a",
    )
    assert first.lines == ["event data/a"]
    assert second.lines == ["data/a = 1", "event data/a", "data/a = 2"]


@pytest.mark.parametrize(
    ("lie", "what"),
    [
        # What the next kernel must see: the record's and the pages' numbers don't fit.
        ("lie 17 5", -22),
        ("lie 0 5", -22),
        ("lie 32 0", -22),
        ("lie 32 7", -22),
        ("lie 33 77", -22),
        ("revoke 8", -22),
        ("readonly 8", -22),
        ("ref 0 9; save 0", -22),
    ],
)
def test_a_device_that_was_damaged_is_not_taken(rigs: Rigs, lie: str, what: int) -> None:
    rig = rigs()
    saved = "" if lie.startswith("ref") else "save 0; "
    _, second = rig.run(f"{START}; {saved}{lie}; kexec 0", f"{TAKE}; node domid")
    assert second.results == [0, what, 1]
    assert (Path(rig.device.share.directory) / "f").read_bytes() == CONTENT[:HALF]


def test_who_forgets_to_save_its_indices_is_found_out(rigs: Rigs) -> None:
    _, second = rigs().run(f"{START}; kexec 0", f"{TAKE}; node domid")
    assert second.results == [0, -22, 1]


def test_indices_of_long_ago_cost_the_device(rigs: Rigs) -> None:
    """The shared ones put back to what they were, so that the next kernel believes its record."""
    rig = rigs()
    _, second = rig.run(
        f"{MOUNT}; save 0; walk 0 1; lie 17 50; lie 0 50; kexec 0",
        f"{TAKE}; node domid",
    )
    assert second.results[-1] == 1
    rig = rigs()
    _, second = rig.run(
        f"{MOUNT}; walk 0 1; lie 1 0; save 0; kexec 0",  # the back end's own index
        f"{TAKE}; left; walk 0 2; node domid",
    )
    assert second.results[-1] == 1
    assert rig.device.state == XenbusStateClosed
    assert "the producer's index was changed" in rig.error()


def test_a_kernel_that_knows_of_no_record_connects_anew(rigs: Rigs) -> None:
    """It closes what it finds, as kernels do that were rebooted; the pages are its own again."""
    rig = rigs()
    closes = "front state 5; back 5; front state 6; back 6; front state 1; back 2"
    _, second = rig.run(
        f"{START}; left; {REST}; {LEAVE}",
        f"{closes}; rings 1 2; offer; back 4; version; attach 0; walk 0 1 f; open 1 0;"
        f"get 1 {2 * HALF - 2} 9",
    )
    assert second.results[:6] == [0, 5, 0, 6, 0, 2]
    assert second.results[6:] == [0, 0, 4, 0, 0, 0, 0, 2]
    assert rig.device.connections == 2
    assert (Path(rig.device.share.directory) / "f").read_bytes() == CONTENT
