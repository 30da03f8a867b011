"""The one door to guest memory: nothing gets past the ends of a region."""

from __future__ import annotations

import pytest

from xenlive.errors import BadAddress
from xenlive.memory.address import Frame, PhysAddr, address_of, frame_of, round_down, round_up
from xenlive.memory.guest import GuestMemory

LOW = 0x1000
HIGH = 0x8000


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory([(HIGH, bytearray(b"h" * 4096)), (LOW, bytearray(b"l" * 8192))])


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (LOW - 1, 1),
        (LOW, 8193),
        (LOW + 8191, 2),
        (LOW + 8192, 1),
        (HIGH - 1, 2),
        (HIGH + 4096, 1),
        (LOW, 0x10000),
        (LOW, -1),
        (-1, 1),
        ((1 << 64) - 1, 2),
    ],
)
def test_accesses_outside_change_nothing(memory: GuestMemory, address: int, size: int) -> None:
    place = PhysAddr(address)
    assert not memory.contains(place, size)
    with pytest.raises(BadAddress):
        memory.read(place, size)
    with pytest.raises(BadAddress):
        memory.view(place, size)
    with pytest.raises(BadAddress):
        memory.fill(place, size)
    if size > 0:
        with pytest.raises(BadAddress):
            memory.write(place, bytes(size))
    assert memory.read(PhysAddr(LOW), 8192) == b"l" * 8192
    assert memory.read(PhysAddr(HIGH), 4096) == b"h" * 4096


def test_reads_and_writes_meet(memory: GuestMemory) -> None:
    memory.write(PhysAddr(LOW + 8190), b"xy")
    memory.fill(PhysAddr(HIGH), 2, 0x7A)
    assert memory.read(PhysAddr(LOW + 8189), 3) == b"lxy"
    assert memory.read(PhysAddr(HIGH), 3) == b"zzh"
    assert memory.contains(PhysAddr(LOW), 8192)


def test_a_view_is_live(memory: GuestMemory) -> None:
    view = memory.view(PhysAddr(LOW), 4)
    memory.write(PhysAddr(LOW), b"abcd")
    assert bytes(view) == b"abcd"
    memory.page(Frame(LOW >> 12))[0:1] = b"Z"
    assert bytes(view) == b"Zbcd"


def test_regions_come_in_order(memory: GuestMemory) -> None:
    assert memory.regions() == [(LOW, 8192), (HIGH, 4096)]


@pytest.mark.parametrize(
    "regions",
    [
        [(0, bytearray(10)), (9, bytearray(1))],
        [(0, bytearray(100)), (5, bytearray(1)), (50, bytearray(1))],
        [(-1, bytearray(1))],
    ],
)
def test_regions_that_can_not_be(regions: list[tuple[int, bytearray]]) -> None:
    with pytest.raises(BadAddress):
        GuestMemory(regions)


def test_release_lets_the_buffer_go() -> None:
    buffer = bytearray(4096)
    memory = GuestMemory([(0, buffer)])
    with pytest.raises(BufferError):
        buffer.append(0)
    memory.release()
    buffer.append(0)
    with pytest.raises(BadAddress):
        memory.read(PhysAddr(0), 1)


def test_addresses_and_frames() -> None:
    assert frame_of(PhysAddr(0x3FEEFFF)) == 0x3FEE
    assert address_of(Frame(0x3FEE)) == 0x3FEE000
    assert (round_up(1, 8), round_up(8, 8), round_down(15, 8)) == (8, 8, 8)
