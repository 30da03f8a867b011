"""Page walks against tables built by hand, and against the emulator's own MMU."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlive.machine.emulated.processor.paging import (
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PSE,
    EFER_LMA,
    EFER_NXE,
    FAULT_FETCH,
    FAULT_PRESENT,
    FAULT_RESERVED,
    FAULT_USER,
    FAULT_WRITE,
    NonCanonical,
    PageFault,
    Paging,
    is_canonical,
)

P, W, U, LARGE, NX = 1, 2, 4, 0x80, 1 << 63


class Memory:
    """Sparse physical memory; what was never written is all ones, like a hole."""

    def __init__(self, entries: dict[int, tuple[int, int]] | None = None) -> None:
        self.bytes: dict[int, int] = {}
        for address, (value, size) in (entries or {}).items():
            self.write(address, value.to_bytes(size, "little"))

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.bytes.get(address + i, 0xFF) for i in range(size))

    def read_u64(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def write(self, address: int, data: bytes) -> None:
        self.bytes.update({address + i: byte for i, byte in enumerate(data)})


def long_mode(leaf: int, upper: int = P | W | U, **how: int) -> tuple[Paging, Memory]:
    """Four levels of tables for virtual address 0, with `leaf` as the last entry."""
    entries = {0x1000: 0x2000 | upper, 0x2000: 0x3000 | upper, 0x3000: 0x4000 | upper, 0x4000: leaf}
    memory = Memory({address: (value, 8) for address, value in entries.items()})
    efer = EFER_LMA | how.get("efer", EFER_NXE)
    return Paging(CR0_PG | how.get("cr0", CR0_WP), 0x1000, CR4_PAE, efer), memory


@pytest.mark.parametrize(
    ("leaf", "upper", "access", "error"),
    [
        (0, P | W | U, {}, 0),
        (0, P | W | U, {"write": True, "user": True}, FAULT_WRITE | FAULT_USER),
        (0, P | W | U, {"fetch": True}, FAULT_FETCH),
        (0x5000 | P | U, P | W | U, {"write": True}, FAULT_PRESENT | FAULT_WRITE),
        (0x5000 | P | W, P | W | U, {"user": True}, FAULT_PRESENT | FAULT_USER),
        (0x5000 | P | W | U, P | W, {"user": True}, FAULT_PRESENT | FAULT_USER),
        (0x5000 | P | W | U, P | U, {"write": True}, FAULT_PRESENT | FAULT_WRITE),
        (0x5000 | P | W | U | NX, P | W | U, {"fetch": True}, FAULT_PRESENT | FAULT_FETCH),
        (0x5000 | P | W | U, P | W | U | NX, {"fetch": True}, FAULT_PRESENT | FAULT_FETCH),
        (1 << 45 | P, P | W | U, {}, FAULT_PRESENT | FAULT_RESERVED),
    ],
)
def test_what_is_refused_and_how(
    leaf: int, upper: int, access: dict[str, bool], error: int
) -> None:
    paging, memory = long_mode(leaf, upper)
    with pytest.raises(PageFault) as caught:
        paging.translate(memory, 0x123, **access)
    assert (caught.value.address, caught.value.error) == (0x123, error)


def test_what_is_allowed() -> None:
    paging, memory = long_mode(0x5000 | P | U)
    assert paging.translate(memory, 0x123, user=True, fetch=True) == 0x5123
    relaxed, memory = long_mode(0x5000 | P, cr0=0)
    assert relaxed.translate(memory, 0x123, write=True) == 0x5123  # no CR0.WP


def test_no_execute_without_nxe_is_reserved() -> None:
    paging, memory = long_mode(0x5000 | P | NX, efer=0)
    with pytest.raises(PageFault) as caught:
        paging.translate(memory, 0)
    assert caught.value.error == FAULT_PRESENT | FAULT_RESERVED


@pytest.mark.parametrize(("level", "size"), [(0x3000, 2 << 20), (0x2000, 1 << 30)])
def test_large_pages_in_long_mode(level: int, size: int) -> None:
    paging, memory = long_mode(0)
    memory.write(level, (size * 3 | P | LARGE | 1 << 12).to_bytes(8, "little"))  # with a PAT bit
    assert paging.translate(memory, size - 5) == size * 4 - 5
    memory.write(level, (size * 3 | P | LARGE | 1 << 13).to_bytes(8, "little"))
    with pytest.raises(PageFault) as caught:
        paging.translate(memory, 5)
    assert caught.value.error == FAULT_PRESENT | FAULT_RESERVED


def test_two_levels() -> None:
    entries = {0x1000: 0x2000 | P | W, 0x1004: 0xC00000 | P | LARGE, 0x2004: 0x5000 | P}
    memory = Memory({address: (value, 4) for address, value in entries.items()})
    memory.write(0x2000, bytes(4))
    paging = Paging(CR0_PG | CR0_WP, 0x1000, CR4_PSE, 0)
    assert paging.translate(memory, 0x1FFF) == 0x5FFF
    assert paging.translate(memory, 0x412345) == 0xC12345
    assert paging.translate(memory, 1 << 32 | 0x1FFF) == 0x5FFF
    with pytest.raises(PageFault):
        paging.translate(memory, 0)
    with pytest.raises(PageFault):
        paging.translate(memory, 0x1000, write=True)


def test_three_levels_have_no_rights_at_the_top() -> None:
    entries = {0x1020: 0x2000 | P, 0x2000: 0x3000 | P | W | U, 0x3000: 0x5000 | P | W | U}
    memory = Memory({address: (value, 8) for address, value in entries.items()})
    paging = Paging(CR0_PG | CR0_WP, 0x1020, CR4_PAE, 0)
    assert paging.translate(memory, 7, write=True, user=True) == 0x5007
    memory.write(0x1020, (0x2000 | P | NX).to_bytes(8, "little"))
    with pytest.raises(PageFault) as caught:
        paging.translate(memory, 7)
    assert caught.value.error == FAULT_PRESENT | FAULT_RESERVED


def test_without_paging_an_address_is_itself() -> None:
    assert Paging(0, 0x1000, 0, 0).translate(Memory(), 1 << 32 | 5) == 5


def test_reads_and_writes_cross_pages_and_change_nothing_on_a_fault() -> None:
    paging, memory = long_mode(0x6000 | P | W)
    memory.write(0x4008, (0x8000 | P | W).to_bytes(8, "little"))
    memory.write(0x4010, bytes(8))
    paging.write(memory, 0xFFE, b"abcd")
    assert memory.read(0x6FFE, 2) + memory.read(0x8000, 2) == b"abcd"
    assert paging.read(memory, 0xFFE, 4) == b"abcd"
    before = dict(memory.bytes)
    with pytest.raises(PageFault) as caught:
        paging.write(memory, 0x1FFE, b"wxyz")
    assert caught.value.address == 0x2000
    assert memory.bytes == before


@pytest.mark.parametrize("address", [1 << 47, (1 << 64) - (1 << 47) - 1, 1 << 63])
def test_addresses_that_are_not_canonical(address: int) -> None:
    paging, memory = long_mode(0x5000 | P)
    assert not is_canonical(address)
    with pytest.raises(NonCanonical):
        paging.translate(memory, address)


@given(
    st.binary(min_size=64, max_size=64),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_any_tables_give_an_address_or_a_fault(
    table: bytes, address: int, mode: int, write: bool, user: bool, fetch: bool
) -> None:
    memory = Memory()
    for at in range(0, 0x1000, 64):
        memory.write(0x1000 + at, table)
    for offset in range(0, 64, 8):  # tables that name themselves
        entry = struct.unpack_from("<Q", table, offset)[0] & ~(((1 << 52) - 1) & ~0xFFF) | 0x1000
        for at in range(0, 0x1000, 64):
            memory.write(0x1000 + at + offset, entry.to_bytes(8, "little"))
    cr4 = CR4_PAE if mode >= 2 else CR4_PSE
    paging = Paging(CR0_PG * bool(mode), 0x1000, cr4, (EFER_LMA | EFER_NXE) * (mode == 3))
    try:
        found = paging.translate(memory, address, write=write, user=user, fetch=fetch)
    except (PageFault, NonCanonical):
        return
    assert 0 <= found < 1 << 52
