"""What an earlier kernel can leave wrong of its 9pfs device: each refused by its own code."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from domain.ninepworld import MODULE_ADDRESS, World

from xenlive.abi import xen9pfs as abi
from xenlive.domain.grants import GrantTable
from xenlive.errors import BootError
from xenlive.memory.address import PAGE_SIZE, Frame

WRAP = 2**32


class Left:
    """What a kernel handed over, to be broken in one place."""

    def __init__(self) -> None:
        self.world = World(n_module_pages=19)
        front = self.world.first_kernel()
        front.write_file("/state", [b"x" * 5000])
        front.save()
        self.refs = front.device.refs
        self.interface = memoryview(self.world.ram)[:PAGE_SIZE].cast("I")

    def record(self, place: int, value: int) -> None:
        self.world.module().update_record(0, struct.pack("<I", value % WRAP), place * 4)

    def recorded(self, place: int) -> int:
        value: int = struct.unpack_from("<I", self.world.module().read_record(0), place * 4)[0]
        return value

    def grant(self, ref: int, flags: int, domid: int, frame: int) -> None:
        struct.pack_into("<HHI", self.world.grant_frames, ref * 8, flags, domid, frame)

    def granted(self, ref: int) -> tuple[int, int, Frame]:
        return GrantTable(memoryview(self.world.grant_frames)).entry(ref)

    def word(self, word: int, value: int) -> None:
        self.interface[word] = value % WRAP


FREE_PAGE = (MODULE_ADDRESS >> 12) + 17
ADMIN_PAGE = (MODULE_ADDRESS >> 12) + 18

BROKEN: list[tuple[str, str, Callable[[Left], None]]] = [
    ("9pfs-dead-grant", "no reference", lambda left: left.record(0, 0)),
    ("9pfs-dead-grant", "a reserved one", lambda left: left.record(0, 1)),
    ("9pfs-dead-grant", "beyond the table", lambda left: left.record(0, 2048)),
    ("9pfs-dead-grant", "far beyond", lambda left: left.record(0, -1)),
    ("9pfs-dead-grant", "never granted", lambda left: left.record(0, 100)),
    ("9pfs-dead-grant", "taken back", lambda left: left.grant(left.refs[0], 0, 0, 0)),
    (
        "9pfs-dead-grant",
        "to somebody else",
        lambda left: left.grant(left.refs[0], 1, 3, left.granted(left.refs[0])[2]),
    ),
    (
        "9pfs-dead-grant",
        "for reading only",
        lambda left: left.grant(left.refs[0], 5, 0, left.granted(left.refs[0])[2]),
    ),
    ("9pfs-dead-grant", "a transfer", lambda left: left.grant(left.refs[3], 2, 0, 0)),
    ("9pfs-dead-grant", "wild ref[]", lambda left: left.word(abi.REF0 + 15, -1)),
    ("9pfs-dead-grant", "ref[] of zero", lambda left: left.word(abi.REF0, 0)),
    ("9pfs-foreign-page", "kernel memory", lambda left: left.grant(left.refs[0], 1, 0, 1)),
    ("9pfs-foreign-page", "a free page", lambda left: left.grant(left.refs[5], 1, 0, FREE_PAGE)),
    (
        "9pfs-foreign-page",
        "the administration page",
        lambda left: left.grant(left.refs[5], 1, 0, ADMIN_PAGE),
    ),
    (
        "9pfs-foreign-page",
        "beyond all memory",
        lambda left: left.grant(left.refs[16], 1, 0, WRAP - 1),
    ),
    (
        "9pfs-foreign-page",
        "the interface page as a ring page",
        lambda left: left.word(abi.REF0 + 2, left.refs[0]),
    ),
    (
        "9pfs-foreign-page",
        "one ring page twice",
        lambda left: left.word(abi.REF0 + 2, left.refs[1]),
    ),
    ("9pfs-foreign-page", "pages not the record's", lambda left: disown(left)),
    ("9pfs-bad-ring-order", "order 0", lambda left: left.word(abi.RING_ORDER, 0)),
    ("9pfs-bad-ring-order", "order 10", lambda left: left.word(abi.RING_ORDER, 10)),
    ("9pfs-bad-ring-order", "order -1", lambda left: left.word(abi.RING_ORDER, -1)),
    ("9pfs-dead-grant", "order 5", lambda left: left.word(abi.RING_ORDER, 5)),
    ("9pfs-bad-index", "prod saved wrong", lambda left: left.record(2, left.recorded(2) + 1)),
    ("9pfs-bad-index", "cons saved wrong", lambda left: left.record(3, left.recorded(3) - 1)),
    (
        "9pfs-bad-index",
        "out_cons ahead",
        lambda left: left.word(abi.OUT_CONS, left.recorded(2) + 1),
    ),
    (
        "9pfs-bad-index",
        "out_cons too far behind",
        lambda left: left.word(abi.OUT_CONS, left.recorded(2) - 32769),
    ),
    ("9pfs-bad-index", "in_prod behind", lambda left: left.word(abi.IN_PROD, left.recorded(3) - 1)),
    (
        "9pfs-bad-index",
        "in_prod too far ahead",
        lambda left: left.word(abi.IN_PROD, left.recorded(3) + 32769),
    ),
    ("9pfs-wild-port", "a port nobody has", lambda left: left.record(1, 77)),
    ("9pfs-wild-port", "port -1", lambda left: left.record(1, -1)),
]


def disown(left: Left) -> None:
    module = left.world.module()
    module.free_pages(4, 1)
    other = module.add_record(2, b"")
    module.alloc_pages(other, 1)


@pytest.mark.parametrize(("code", "why", "spoil"), BROKEN, ids=[why for _, why, _ in BROKEN])
def test_what_is_not_taken_over(code: str, why: str, spoil: Callable[[Left], None]) -> None:
    left = Left()
    spoil(left)
    before = bytes(left.world.ram), bytes(left.world.grant_frames), left.world.events.ports()
    with pytest.raises(BootError) as caught:
        left.world.next_kernel()
    assert caught.value.code == code
    after = bytes(left.world.ram), bytes(left.world.grant_frames), left.world.events.ports()
    assert after == before


def test_what_left_makes_is_taken_over_when_nothing_is_spoilt() -> None:
    assert Left().world.next_kernel().read_file("/state") == b"x" * 5000


def test_a_record_that_is_no_9pfs_record() -> None:
    left = Left()
    record = left.world.module().add_record(1, bytes(12))
    with pytest.raises(BootError, match="9pfs-bad-record"):
        left.world.next_kernel(record)


def test_a_silent_backend_is_no_device() -> None:
    left = Left()
    left.world.events.listen(left.recorded(1), None)
    with pytest.raises(BootError, match="9pfs-no-answer"):
        left.world.next_kernel()


def test_answers_owed_to_the_kernel_before_are_dropped() -> None:
    """Only a kernel that did not wait for them leaves some; until Rversion they mean nothing."""
    left = Left()
    reply = struct.pack("<IBH", 7, 121, 5)
    in_prod = left.interface[abi.IN_PROD]
    ring = memoryview(left.world.ram)[PAGE_SIZE : 9 * PAGE_SIZE]
    for place, byte in enumerate(reply * 4):
        ring[(in_prod + place) % len(ring)] = byte
    left.word(abi.IN_PROD, in_prod + 28)
    assert left.world.back is not None
    left.world.back._replies.prod = in_prod + 28
    assert left.world.next_kernel().read_file("/state") == b"x" * 5000
