"""The local APIC: what vlapic.c and vpt.c of Xen 4.17 do, register by register."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.machine.emulated.processor import lapic as abi
from xenlive.machine.emulated.processor.lapic import LocalApic

BASE = abi.APIC_BASE_ADDRESS
ENABLED = 0x1FF
MASKED = 1 << 16
PERIODIC, DEADLINE = 1 << 17, 2 << 17
TO_SELF = 1 << 18


class Apic(LocalApic):
    """One with a clock to move, and that counts how often a run would have ended."""

    def __init__(self) -> None:
        self.now = 1000
        self.changes = 0
        super().__init__(lambda: self.now, self._count_change)

    def _count_change(self) -> None:
        self.changes += 1

    def read(self, offset: int) -> int:
        return self.load(BASE + offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.store(BASE + offset, 4, value)

    def pass_time(self, duration_ns: int) -> None:
        self.now += duration_ns
        self.fire(self.now)

    def take(self) -> int:
        """The vector that is delivered now."""
        vector = self.pending()
        if vector:
            self.acknowledge(vector)
        return vector


@pytest.fixture
def apic() -> Apic:
    made = Apic()
    made.write(abi.SPURIOUS, ENABLED)
    return made


# ---- registers ----------------------------------------------------------------------------------


def test_as_a_domain_finds_it() -> None:
    # vlapic_reset, vlapic_do_init
    apic = Apic()
    assert apic.base == 0xFEE00900
    found = {offset: apic.read(offset) for offset in range(0, 0x3F0, 0x10)}
    lvts = dict.fromkeys(range(0x320, 0x380, 0x10), MASKED)
    known = {0x30: 0x50014, 0xE0: 0xFFFFFFFF, 0xF0: 0xFF, **lvts}
    assert {offset: value for offset, value in found.items() if value} == known
    assert not apic.is_enabled
    assert apic.accept(0x30)
    assert apic.pending() == 0


def test_what_can_be_written(apic: Apic) -> None:
    # vlapic_reg_write
    for offset, value in (
        (abi.ID, 0xFFFFFFFF),
        (abi.TASK_PRIORITY, 0xFF),
        (abi.LOGICAL_DESTINATION, 0xFF000000),
        (abi.DESTINATION_FORMAT, 0xFFFFFFFF),
        (abi.SPURIOUS, 0x3FF),
        (abi.ICR_HIGH, 0xFF000000),
        (abi.LVT_TIMER, 0x710FF),
        (abi.LVT_THERMAL, 0x117FF),
        (abi.LVT_LINT0, 0x1F7FF),
        (abi.LVT_ERROR, 0x110FF),
        (abi.TIMER_DIVIDE, 0xB),
        (abi.VERSION, 0x50014),
        (abi.ERROR_STATUS, 0),
        (abi.EOI, 0),
    ):
        apic.write(offset, 0xFFFFFFFF)
        assert apic.read(offset) == value, hex(offset)
    apic.write(abi.DESTINATION_FORMAT, 0)
    assert apic.read(abi.DESTINATION_FORMAT) == 0x0FFFFFFF


def test_switched_off_by_software_all_entries_are_masked(apic: Apic) -> None:
    apic.write(abi.LVT_ERROR, 0x20)
    assert apic.read(abi.LVT_ERROR) == 0x20
    apic.write(abi.SPURIOUS, 0xFF)
    assert apic.read(abi.LVT_ERROR) == 0x20 | MASKED
    apic.write(abi.LVT_ERROR, 0x21)
    assert apic.read(abi.LVT_ERROR) == 0x21 | MASKED


def test_parts_of_a_register(apic: Apic) -> None:
    # vlapic_mmio_read, vlapic_mmio_write: any access that is within the 32 bits
    assert apic.load(BASE + abi.VERSION, 1) == 0x14
    assert apic.load(BASE + abi.VERSION + 2, 2) == 5
    assert apic.load(BASE + abi.VERSION + 4, 4) == 0
    assert apic.load(BASE + abi.VERSION + 2, 4) == 0
    assert apic.load(BASE + abi.VERSION, 8) == 0
    assert apic.load(BASE + 0x3F0, 4) == 0
    apic.store(BASE + abi.ICR_HIGH + 3, 1, 0x12)
    assert apic.read(abi.ICR_HIGH) == 0x12000000
    apic.store(BASE + abi.ICR_HIGH + 8, 4, 0x34000000)
    apic.store(BASE + abi.ICR_HIGH, 8, 0x34000000)
    assert apic.read(abi.ICR_HIGH) == 0x12000000


# ---- interrupts ---------------------------------------------------------------------------------


def test_priorities(apic: Apic) -> None:
    # vlapic_has_pending_irq, vlapic_get_ppr, hvm_interrupt_blocked
    for vector in (0x31, 0x55, 0x51):
        assert apic.accept(vector)
    assert not apic.accept(0x31)
    assert (apic.read(0x210), apic.read(0x220)) == (1 << 0x11, 1 << 0x11 | 1 << 0x15)
    assert apic.take() == 0x55
    assert apic.pending() == 0  # 0x51 is of the same class
    assert apic.read(abi.PROCESSOR_PRIORITY) == 0x50
    apic.write(abi.TASK_PRIORITY, 0x62)
    assert apic.read(abi.PROCESSOR_PRIORITY) == 0x62
    apic.write(abi.EOI, 0)
    assert apic.pending() == 0x51
    assert apic.holds_back(0x51)
    apic.write(abi.TASK_PRIORITY, 0x4F)
    assert not apic.holds_back(apic.pending())
    assert [apic.take(), apic.read(0x120)] == [0x51, 1 << 0x11]
    apic.write(abi.EOI, 0)
    assert apic.take() == 0x31
    apic.write(abi.EOI, 0)
    apic.write(abi.EOI, 0)  # one too many is none
    assert apic.take() == 0


@pytest.mark.parametrize(
    ("icr", "high", "vector"),
    [
        (TO_SELF | 0x40, 0, 0x40),
        (2 << 18 | 0x40, 0, 0x40),  # all, itself too
        (3 << 18 | 0x40, 0, 0),  # all others
        (0x40, 0, 0x40),  # physical, id 0
        (0x40, 1 << 24, 0),
        (0x40, 0xFF << 24, 0x40),
        (0x940, 0x81 << 24, 0x40),  # logical, lowest priority
        (0x840, 0x7E << 24, 0),
        (TO_SELF | 0x240, 0, 0),  # SMI
        (TO_SELF | 0x340, 0, 0),  # remote read
        (TO_SELF | 0x640, 0, 0),  # start-up, for one that runs
    ],
)
def test_interrupts_to_itself(apic: Apic, icr: int, high: int, vector: int) -> None:
    # vlapic_ipi, vlapic_match_dest
    apic.write(abi.LOGICAL_DESTINATION, 1 << 24)
    apic.write(abi.ICR_HIGH, high)
    apic.write(abi.ICR, icr | 1 << 12)
    assert apic.read(abi.ICR) == icr
    assert apic.take() == vector


def test_logical_destinations_of_clusters(apic: Apic) -> None:
    apic.write(abi.DESTINATION_FORMAT, 0)
    apic.write(abi.LOGICAL_DESTINATION, 0x32 << 24)
    for target, hit in ((0x32, True), (0x3F, True), (0x31, False), (0x22, False)):
        apic.write(abi.ICR_HIGH, target << 24)
        apic.write(abi.ICR, 0x841)
        assert bool(apic.take()) is hit
        apic.write(abi.EOI, 0)
    apic.write(abi.DESTINATION_FORMAT, 0x10000000)  # neither flat nor cluster
    apic.write(abi.ICR, 0x841)
    assert not apic.take()


def test_vectors_that_are_the_processors_own(apic: Apic) -> None:
    # vlapic_ipi: SENDILL; vlapic_set_irq: RECVILL; vlapic_error: no cycle
    apic.write(abi.LVT_ERROR, 0xF0)
    apic.write(abi.ICR, TO_SELF | 15)
    assert (apic.read(abi.ERROR_STATUS), apic.take()) == (1 << 5, 0xF0)
    apic.write(abi.EOI, 0)
    assert not apic.accept(3)
    assert (apic.read(abi.ERROR_STATUS), apic.take()) == (0x60, 0xF0)
    apic.write(abi.EOI, 0)
    apic.write(abi.ICR, TO_SELF | 1)  # told before
    assert apic.take() == 0
    other = Apic()
    other.write(abi.SPURIOUS, ENABLED)
    other.write(abi.LVT_ERROR, 2)
    other.write(abi.ICR, TO_SELF | 15)
    assert (other.read(abi.ERROR_STATUS), other.take()) == (0x60, 0)


def test_signals_that_are_no_interrupts(apic: Apic) -> None:
    apic.write(abi.ICR, TO_SELF | 0x400)
    assert apic.nmi_pending
    apic.write(abi.ICR, TO_SELF | 0x8500)  # INIT, de-asserted
    assert not apic.init_pending
    apic.write(abi.ICR, TO_SELF | 0x500)
    assert apic.init_pending
    assert not apic.crash
    apic.write(abi.ICR, TO_SELF | 0x700)
    assert "ICR 0x40700" in apic.crash


# ---- the timer ----------------------------------------------------------------------------------


def test_the_timer_once(apic: Apic) -> None:
    apic.write(abi.LVT_TIMER, 0x40)
    apic.write(abi.TIMER_DIVIDE, 0xB)  # undivided: 10 ns a count
    apic.write(abi.TIMER_START, 1000)
    assert apic.due_ns == 11_000
    apic.pass_time(4_000)
    assert (apic.read(abi.TIMER_COUNT), apic.take()) == (600, 0)
    apic.pass_time(6_000)
    assert (apic.read(abi.TIMER_COUNT), apic.take()) == (0, 0x40)
    assert apic.due_ns is None
    apic.pass_time(100_000)
    assert apic.take() == 0


@pytest.mark.parametrize(
    ("value", "divisor"),
    [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)],
)
def test_divisors(apic: Apic, value: int, divisor: int) -> None:
    # vlapic_set_tdcr
    apic.write(abi.TIMER_DIVIDE, value)
    apic.write(abi.TIMER_START, 100)
    assert apic.due_ns == 1000 + 1000 * divisor


def test_another_divisor_in_the_middle(apic: Apic) -> None:
    # vlapic_update_timer: what is left takes that much longer
    apic.write(abi.TIMER_DIVIDE, 0xB)
    apic.write(abi.TIMER_START, 1000)
    apic.pass_time(5_000)
    apic.write(abi.TIMER_DIVIDE, 1)
    assert apic.due_ns == 6_000 + 20_000
    assert apic.read(abi.TIMER_COUNT) == 500


def test_the_timer_periodically(apic: Apic) -> None:
    # create_periodic_time: the first half a period late; pt_irq_fired: none is lost
    apic.write(abi.TIMER_DIVIDE, 0xB)
    apic.write(abi.LVT_TIMER, 0x40 | PERIODIC)
    apic.write(abi.TIMER_START, 20_000)
    assert apic.due_ns == 1000 + 300_000
    apic.pass_time(300_000)
    assert (apic.take(), apic.due_ns) == (0x40, 1000 + 500_000)
    apic.write(abi.EOI, 0)
    apic.pass_time(650_000)  # three more are due by then
    for _ in range(3):
        assert apic.take() == 0x40
        apic.write(abi.EOI, 0)
    assert (apic.take(), apic.due_ns) == (0, 1000 + 1_100_000)


def test_periods_are_not_too_short(apic: Apic) -> None:
    apic.write(abi.LVT_TIMER, 0x40 | PERIODIC)
    apic.write(abi.TIMER_START, 1)
    apic.pass_time(30)
    assert (apic.take(), apic.due_ns) == (0x40, 1030 + 100_000)


def test_a_masked_tick_comes_when_it_is_unmasked(apic: Apic) -> None:
    # pt_irq_masked, pt_may_unmask_irq
    apic.write(abi.LVT_TIMER, 0x40 | MASKED)
    apic.write(abi.TIMER_START, 10)
    apic.pass_time(1_000)
    assert apic.take() == 0
    apic.write(abi.LVT_TIMER, 0x41)
    assert apic.take() in (0, 0x41)


def test_the_timer_by_the_counter(apic: Apic) -> None:
    # vlapic_tdt_msr_set, vlapic_tdt_msr_get
    apic.write_deadline(5_000, tsc=1_000)
    assert (apic.read_deadline(), apic.due_ns) == (0, None)  # not in that mode
    apic.write(abi.LVT_TIMER, 0x40 | DEADLINE)
    apic.write(abi.TIMER_START, 77)
    assert apic.read(abi.TIMER_START) == 0
    apic.write_deadline(5_000, tsc=1_000)
    assert (apic.read_deadline(), apic.due_ns) == (5_000, 5_000)
    apic.pass_time(4_000)
    assert apic.take() == 0x40
    assert apic.read_deadline() == 0
    apic.write(abi.EOI, 0)
    apic.write_deadline(1, tsc=9_000)  # it is over: at once
    apic.pass_time(0)
    assert apic.take() == 0x40
    apic.write_deadline(10_000, tsc=9_000)
    apic.write_deadline(0, tsc=9_500)
    assert apic.due_ns is None
    apic.write_deadline(10_000, tsc=9_000)
    apic.write(abi.LVT_TIMER, 0x40)
    assert (apic.due_ns, apic.read_deadline()) == (None, 0)


# ---- MSRs ---------------------------------------------------------------------------------------


def test_modes() -> None:
    # guest_wrmsr_apic_base
    apic = Apic()
    xapic, off, both = 0xFEE00900, 0xFEE00100, 0xFEE00D00
    assert apic.covers(BASE)
    assert apic.read_msr(0x802) is None
    assert not apic.write_base(xapic | 1)
    assert not apic.write_base(0xFED00900)
    assert not apic.write_base(1 << 40 | xapic)
    assert not apic.write_base(0xFEE00500)  # x2APIC alone
    assert apic.write_base(both)
    assert not apic.covers(BASE)
    assert (apic.read_msr(0x802), apic.read_msr(0x80D)) == (0, 1)
    assert not apic.write_base(xapic)  # there is no way back but by off
    assert apic.write_base(off)
    assert not apic.is_present
    assert not apic.write_base(both)
    assert apic.write_base(xapic)
    assert (apic.base, apic.read(abi.SPURIOUS)) == (xapic, 0xFF)


def test_registers_as_msrs() -> None:
    # guest_rdmsr_x2apic, guest_wrmsr_x2apic
    apic = Apic()
    assert apic.write_base(0xFEE00D00)
    readable = {number for number in range(0x800, 0x900) if apic.read_msr(number) is not None}
    blocks = {*range(0x810, 0x828)}
    assert readable == {
        *(0x802, 0x803, 0x808, 0x80A, 0x80D, 0x80F, *blocks, 0x828, 0x82F, 0x830),
        *range(0x832, 0x83A),
        0x83E,
    }
    writable = {number for number in range(0x800, 0x900) if apic.write_msr(number, 0)}
    assert writable == {
        *(0x808, 0x80B, 0x80F, 0x828, 0x82F, 0x830, *range(0x832, 0x839), 0x83E, 0x83F)
    }
    assert apic.write_msr(0x80F, ENABLED)
    for number, value in (
        (0x808, 0x100),
        (0x80B, 1),
        (0x828, 1),
        (0x80F, 0x400),
        (0x830, 1 << 12),
        (0x832, 1 << 13),
        (0x83E, 4),
        (0x83F, 0x100),
    ):
        assert not apic.write_msr(number, value), hex(number)


def test_interrupts_by_msr() -> None:
    apic = Apic()
    assert apic.write_base(0xFEE00D00)
    assert apic.write_msr(0x80F, ENABLED)
    assert apic.write_msr(0x83F, 0x44)
    assert (apic.read_msr(0x830), apic.take()) == (TO_SELF | 0x44, 0x44)
    assert apic.write_msr(0x80B, 0)
    for target, hit in ((0, True), (0xFFFFFFFF, True), (0xFF, False)):
        assert apic.write_msr(0x830, target << 32 | 0x45)
        assert bool(apic.take()) is hit
        assert apic.write_msr(0x80B, 0)
    assert apic.read_msr(0x830) == 0xFF << 32 | 0x45
    assert apic.write_msr(0x830, 1 << 32 | 0x846)  # logical: cluster 0, the first
    assert apic.take() == 0x46


# ---- whatever comes -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    stores=st.lists(
        st.tuples(
            st.integers(0, 0xFFF), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 32) - 1)
        ),
        max_size=40,
    ),
    gaps=st.integers(0, 10_000_000),
)
def test_any_stores_leave_a_state_that_is_saved_and_goes_on(
    stores: list[tuple[int, int, int]], gaps: int
) -> None:
    apic, other = Apic(), Apic()
    for offset, size, value in stores:
        apic.store(BASE + offset, size, value)
        apic.pass_time(gaps)
        apic.take()
    other.now = apic.now
    other.restore(apic.save())
    assert other.save() == apic.save()
    for one in (apic, other):
        one.pass_time(gaps)
    assert (apic.take(), apic.due_ns) == (other.take(), other.due_ns)
    words = range(0, 0x400, 0x10)
    assert [apic.read(word) for word in words] == [other.read(word) for word in words]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, (1 << 256) - 1), min_size=abi.N_NUMBERS, max_size=abi.N_NUMBERS))
def test_any_numbers_are_a_state(numbers: list[int]) -> None:
    apic = Apic()
    apic.restore(tuple(numbers))
    for offset in range(0, 0x1000, 0x10):
        assert 0 <= apic.read(offset) < 1 << 32
    apic.pass_time(1)
    assert 16 <= apic.take() < 256 or not apic.take()
    apic.write(abi.TIMER_DIVIDE, 3)
    apic.write(abi.EOI, 0)
