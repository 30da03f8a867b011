"""The local APIC of a PVH guest's one processor, as Xen emulates it.

    stores to 0xfee00000 (xAPIC) ─┐             ┌─ IRR: asked for ──▶ taken by the guest ──▶ ISR
    MSRs 0x800 to 0x83f (x2APIC) ─┼─▶ registers ┤                                            │
    MSRs 0x1b and 0x6e0 ──────────┘             └─ timer ──▶ IRR            EOI ends it ◀────┘

There is no I/O APIC and no 8259 beside it: what comes in are the guest's IPIs to itself, its timer,
and Xen's events where the guest asked for a vector of its own
(`HVMOP_set_evtchn_upcall_vector`).

Specification: Xen 4.17 `xen/arch/x86/hvm/vlapic.c`. What differs from AMD's manual (volume 2,
chapter 16) differs there: the error status is never cleared, the window can't be moved.

**Invariants.** Stores may come in the middle of a run: they change this object alone, and call
`changed` if a run should end because of it. Vectors below 16 never get into the IRR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.machine.emulated.processor.apictimer import DIVIDE_BITS, MODE_BITS, ApicTimer

if TYPE_CHECKING:
    from collections.abc import Callable

APIC_BASE_ADDRESS = 0xFEE00000
MSR_X2APIC_FIRST, MSR_X2APIC_LAST = 0x800, 0x8FF

# Offsets of registers (apicdef.h).
ID, VERSION, TASK_PRIORITY, PROCESSOR_PRIORITY = 0x20, 0x30, 0x80, 0xA0
EOI, LOGICAL_DESTINATION, DESTINATION_FORMAT, SPURIOUS = 0xB0, 0xD0, 0xE0, 0xF0
IN_SERVICE, TRIGGER_MODE, REQUESTED = 0x100, 0x180, 0x200
ERROR_STATUS, LVT_CMCI, ICR, ICR_HIGH = 0x280, 0x2F0, 0x300, 0x310
LVT_TIMER, LVT_THERMAL, LVT_COUNTER = 0x320, 0x330, 0x340
LVT_LINT0, LVT_LINT1, LVT_ERROR = 0x350, 0x360, 0x370
TIMER_START, TIMER_COUNT, TIMER_DIVIDE, SELF_IPI = 0x380, 0x390, 0x3E0, 0x3F0

_VERSION = 0x00050014
_MASKED = 1 << 16
_LVT_BITS = _MASKED | 1 << 12 | 0xFF
_LINT_BITS = _LVT_BITS | 0x700 | 1 << 13 | 1 << 14 | 1 << 15
_LVT_MASKS = {
    LVT_TIMER: _LVT_BITS | MODE_BITS,
    LVT_THERMAL: _LVT_BITS | 0x700,
    LVT_COUNTER: _LVT_BITS | 0x700,
    LVT_LINT0: _LINT_BITS,
    LVT_LINT1: _LINT_BITS,
    LVT_ERROR: _LVT_BITS,
}
_SW_ENABLED = 1 << 8

_MODE, _LOGICAL, _SHORTHAND = 0x700, 1 << 11, 3 << 18
_FIXED, _LOWEST, _SMI, _REMOTE_READ = 0, 0x100, 0x200, 0x300
_NMI, _INIT, _STARTUP = 0x400, 0x500, 0x600
_TO_SELF, _TO_ALL = 1 << 18, 2 << 18
_LEVEL, _ASSERT = 1 << 15, 1 << 14
_SEND_ILLEGAL, _RECEIVE_ILLEGAL = 1 << 5, 1 << 6

_BASE_ENABLED, _BASE_X2APIC, _BASE_BOOT = 1 << 11, 1 << 10, 1 << 8
_BASE_BITS = ((1 << 40) - 0x1000) | _BASE_ENABLED | _BASE_X2APIC | _BASE_BOOT
_MASK32 = (1 << 32) - 1
_VECTORS = (1 << 256) - (1 << 16)

_BLOCKS = {
    first + 0x10 * word: (first, 32 * word)
    for first in (IN_SERVICE, TRIGGER_MODE, REQUESTED)
    for word in range(8)
}
_READABLE = frozenset(
    (
        *(ID, VERSION, TASK_PRIORITY, PROCESSOR_PRIORITY, LOGICAL_DESTINATION, SPURIOUS),
        *(ERROR_STATUS, LVT_CMCI, ICR, *_LVT_MASKS, TIMER_START, TIMER_COUNT, TIMER_DIVIDE),
        *_BLOCKS,
    )
)
#: Bits that x2APIC stores may have; SPURIOUS without the directed EOI, which Xen does not offer.
_X2APIC_WRITABLE = {
    TASK_PRIORITY: 0xFF,
    SPURIOUS: 0x3FF,
    **_LVT_MASKS,
    LVT_CMCI: _LVT_BITS | 0x700,
    TIMER_START: (1 << 64) - 1,
    TIMER_DIVIDE: DIVIDE_BITS,
    ICR: _MASK32 << 32 | 0xFF | _MODE | _LOGICAL | _ASSERT | _LEVEL | _SHORTHAND,
    SELF_IPI: 0xFF,
    EOI: 0,
    ERROR_STATUS: 0,
}

# Registers that are kept as they were written, and how many numbers a saved state has.
_SAVED = (
    *(ID, VERSION, TASK_PRIORITY, LOGICAL_DESTINATION, DESTINATION_FORMAT, SPURIOUS),
    *(ERROR_STATUS, LVT_CMCI, ICR, ICR_HIGH, *_LVT_MASKS),
)
N_NUMBERS = 7 + len(_SAVED) + ApicTimer.N_NUMBERS
#: What `LocalApic.save` gives: numbers that only `restore` reads.
ApicState = tuple[int, ...]


def _highest(vectors: int) -> int:
    """The highest vector of a set of bits; -1 if there is none."""
    return vectors.bit_length() - 1


class LocalApic:
    """One local APIC. `now_ns` gives the time, `changed` hears that a run has to look here."""

    def __init__(self, now_ns: Callable[[], int], changed: Callable[[], None]) -> None:
        self._changed = changed
        self._timer = ApicTimer(now_ns)
        self.reset()

    def reset(self) -> None:
        """As it is when the domain starts (`vlapic_reset`)."""
        self.base = APIC_BASE_ADDRESS | _BASE_ENABLED | _BASE_BOOT
        self._registers = dict.fromkeys((ID, ERROR_STATUS, LVT_CMCI), 0)
        self._initialise()
        #: An NMI was sent, and not taken.
        self.nmi_pending = False
        #: An IPI resets the processor.
        self.init_pending = False
        #: What no domain survives; empty if nothing was done.
        self.crash = ""
        #: It was switched on by its guest since somebody looked.
        self.was_enabled = False

    def _initialise(self) -> None:
        logical = self._registers.get(LOGICAL_DESTINATION, 0) if self.is_x2apic else 0
        self._requested = self._in_service = self._trigger = 0
        self._registers.update(
            {VERSION: _VERSION, ICR: 0, ICR_HIGH: 0, TASK_PRIORITY: 0, SPURIOUS: 0xFF}
        )
        self._registers[LOGICAL_DESTINATION] = logical
        self._registers[DESTINATION_FORMAT] = _MASK32
        self._registers.update(dict.fromkeys(_LVT_MASKS, _MASKED))
        self._timer.reset()

    # ---- what the processor asks ---------------------------------------------------------

    @property
    def is_present(self) -> bool:
        """Whether it is switched on in MSR_APIC_BASE; CPUID says so too."""
        return bool(self.base & _BASE_ENABLED)

    @property
    def is_x2apic(self) -> bool:
        """Whether its registers are MSRs, and no memory."""
        return bool(self.base & _BASE_X2APIC)

    @property
    def is_enabled(self) -> bool:
        """Whether it takes interrupts."""
        return bool(self.base & _BASE_ENABLED and self._registers[SPURIOUS] & _SW_ENABLED)

    @property
    def task_priority(self) -> int:
        """What CR8 is: the upper half of the task priority."""
        return self._registers[TASK_PRIORITY] >> 4

    @task_priority.setter
    def task_priority(self, value: int) -> None:
        self._registers[TASK_PRIORITY] = value << 4

    def accept(self, vector: int) -> bool:
        """An interrupt arrives (`vlapic_set_irq`); False if that changes nothing."""
        if vector < 16:
            self._error(_RECEIVE_ILLEGAL)
            return False
        bit = 1 << vector
        self._trigger &= ~bit
        if self._requested & bit:
            return False
        self._requested |= bit
        self._changed()
        return True

    def pending(self) -> int:
        """The vector to deliver next (`vlapic_has_pending_irq`); 0 for none."""
        if self._timer.has_tick:
            self._issue_tick()
        if not self._requested or not self.is_enabled:
            return 0
        vector = _highest(self._requested)
        if self._in_service and vector & 0xF0 <= _highest(self._in_service) & 0xF0:
            return 0
        return vector

    def holds_back(self, vector: int) -> bool:
        """Whether the task priority says not now (`hvm_interrupt_blocked`)."""
        return self._registers[TASK_PRIORITY] >> 4 >= vector >> 4

    def acknowledge(self, vector: int) -> None:
        """The processor takes the interrupt (`vlapic_ack_pending_irq`, `pt_intr_post`)."""
        bit = 1 << vector
        self._requested &= ~bit
        self._in_service |= bit
        if self._timer.is_issued and vector == self._registers[LVT_TIMER] & 0xFF:
            self._timer.taken()

    def _error(self, bits: int) -> None:
        status = self._registers[ERROR_STATUS]
        if status & bits == bits:
            return
        entry = self._registers[LVT_ERROR]
        vector = entry & 0xFF
        if not entry & _MASKED and vector < 16:
            bits |= _RECEIVE_ILLEGAL
        self._registers[ERROR_STATUS] = status | bits
        if not entry & _MASKED and vector >= 16:
            self.accept(vector)

    # ---- the window in memory ------------------------------------------------------------

    def covers(self, address: int) -> bool:
        """Whether a physical address is in the window (`vlapic_range`)."""
        return (
            address & ~0xFFF == APIC_BASE_ADDRESS
            and self.base & (_BASE_ENABLED | _BASE_X2APIC) == _BASE_ENABLED
        )

    def load(self, address: int, size: int) -> int:
        """A load from the window; what is not within one register reads 0."""
        offset, within = address & 0xFF0, address & 0xF
        if within + size > 4 or offset > TIMER_DIVIDE:
            return 0
        return self._read(offset) >> 8 * within & (1 << 8 * size) - 1

    def store(self, address: int, size: int, value: int) -> None:
        """A store to the window; what is not within one register does nothing."""
        offset, within = address & 0xFF0, address & 0xF
        if within + size > 4 or offset > TIMER_DIVIDE:
            return
        part = (1 << 8 * size) - 1 << 8 * within
        if part != _MASK32:
            value = self._read(offset) & ~part | value << 8 * within & part
        self._write(offset, value & _MASK32)

    # ---- MSRs ----------------------------------------------------------------------------

    def read_msr(self, number: int) -> int | None:
        """An x2APIC register (`guest_rdmsr_x2apic`); None for a general protection fault."""
        offset = (number - MSR_X2APIC_FIRST) << 4
        if not self.is_x2apic or offset not in _READABLE:
            return None
        high = self._registers[ICR_HIGH] << 32 if offset == ICR else 0
        return high | self._read(offset)

    def write_msr(self, number: int, value: int) -> bool:
        """Sets an x2APIC register (`guest_wrmsr_x2apic`); False for a general protection fault."""
        offset = (number - MSR_X2APIC_FIRST) << 4
        allowed = _X2APIC_WRITABLE.get(offset)
        if not self.is_x2apic or allowed is None or value & ~allowed:
            return False
        if offset == SELF_IPI:
            offset, value = ICR, _TO_SELF | value
        elif offset == ICR:
            self._registers[ICR_HIGH] = value >> 32
        self._write(offset, value & _MASK32)
        return True

    def write_base(self, value: int) -> bool:
        """Sets MSR_APIC_BASE (`guest_wrmsr_apic_base`); False for a general protection fault."""
        mode = value & (_BASE_ENABLED | _BASE_X2APIC)
        moves = value & ((1 << 40) - 0x1000) != APIC_BASE_ADDRESS
        if value & ~_BASE_BITS or (mode == _BASE_ENABLED and moves):
            return False
        if (self.base ^ value) & _BASE_ENABLED:
            if value & _BASE_X2APIC:
                return False
            if value & _BASE_ENABLED:
                self._registers[ID] = 0
                self.base = value  # before: what x2APIC keeps is not kept
                self._initialise()
        elif (self.base ^ value) & _BASE_X2APIC and (self.is_x2apic or not self.is_present):
            return False
        self.base = value
        if mode == _BASE_ENABLED | _BASE_X2APIC:
            self._registers[ID] = 0
            self._registers[LOGICAL_DESTINATION] = 1
        return True

    def read_deadline(self) -> int:
        """MSR_TSC_DEADLINE (`vlapic_tdt_msr_get`)."""
        return self._timer.deadline_tsc

    def write_deadline(self, value: int, tsc: int) -> None:
        """Sets the timer by the counter, which is now at `tsc` (`vlapic_tdt_msr_set`)."""
        if self.is_present:
            self._timer.write_deadline(value, tsc)

    # ---- the timer -----------------------------------------------------------------------

    @property
    def due_ns(self) -> int | None:
        """When the timer's next tick is due; None if it does not run."""
        return self._timer.due_ns

    def fire(self, now_ns: int) -> None:
        """Lets the timer tick, if it is due by `now_ns`."""
        self._timer.fire(now_ns)

    def _issue_tick(self) -> None:
        """A tick becomes an interrupt, if one is wanted (`pt_update_irq`)."""
        entry = self._registers[LVT_TIMER]
        if self.is_enabled and not entry & _MASKED:
            self._timer.is_issued = True
            self.accept(entry & 0xFF)

    # ---- registers -----------------------------------------------------------------------

    def _read(self, offset: int) -> int:
        block = _BLOCKS.get(offset)
        if block is not None:
            first, shift = block
            known = {IN_SERVICE: self._in_service, TRIGGER_MODE: self._trigger}
            return known.get(first, self._requested) >> shift & _MASK32
        if offset == PROCESSOR_PRIORITY:
            return self._processor_priority()
        if offset == TIMER_COUNT:
            return self._timer.count
        if offset == TIMER_START:
            return self._timer.start
        if offset == TIMER_DIVIDE:
            return self._timer.divide
        return self._registers.get(offset, 0)

    def _processor_priority(self) -> int:
        task, serving = self._registers[TASK_PRIORITY], max(_highest(self._in_service), 0)
        return task if task & 0xF0 >= serving & 0xF0 else serving & 0xF0

    def _write(self, offset: int, value: int) -> None:
        """`vlapic_reg_write`; a register that is not here can't be written."""
        registers = self._registers
        if offset == EOI:
            self._in_service &= ~(1 << _highest(self._in_service)) if self._in_service else -1
            self._changed()
        elif offset == ICR:
            value &= ~(1 << 12)
            self._send(value, registers[ICR_HIGH])
            registers[ICR] = value
        elif offset == TASK_PRIORITY:
            registers[TASK_PRIORITY] = value & 0xFF
            self._changed()
        elif offset == SPURIOUS:
            self._write_spurious(value)
        elif offset in _LVT_MASKS:
            self._write_lvt(offset, value)
        elif offset == TIMER_START:
            self._timer.write_start(value)
            self._changed()
        elif offset == TIMER_DIVIDE:
            self._timer.write_divide(value)
            self._changed()
        elif offset == ID:
            registers[ID] = value
        elif offset in (LOGICAL_DESTINATION, ICR_HIGH):
            registers[offset] = value & 0xFF000000
        elif offset == DESTINATION_FORMAT:
            registers[offset] = value | 0x0FFFFFFF

    def _write_spurious(self, value: int) -> None:
        registers = self._registers
        registers[SPURIOUS] = value & 0x3FF
        if value & _SW_ENABLED:
            self.was_enabled = True
        else:
            for offset in _LVT_MASKS:
                registers[offset] |= _MASKED
        self._changed()

    def _write_lvt(self, offset: int, value: int) -> None:
        registers = self._registers
        if offset == LVT_TIMER:
            self._timer.write_mode(value & MODE_BITS)
        if not registers[SPURIOUS] & _SW_ENABLED:
            value |= _MASKED
        registers[offset] = value & _LVT_MASKS[offset]
        self._changed()

    # ---- interrupts between processors, of which there is one ----------------------------

    def _send(self, icr: int, high: int) -> None:
        """`vlapic_ipi`: to itself or to nobody."""
        mode, vector = icr & _MODE, icr & 0xFF
        if mode in (_FIXED, _LOWEST) and vector < 16:
            self._error(_SEND_ILLEGAL)
        elif self._is_for_itself(icr, high):
            self._receive(icr, mode, vector)

    def _is_for_itself(self, icr: int, high: int) -> bool:
        """`vlapic_match_dest`."""
        shorthand = icr & _SHORTHAND
        if shorthand:
            return shorthand in (_TO_SELF, _TO_ALL)
        everybody, shift = (_MASK32, 0) if self.is_x2apic else (0xFF, 24)
        target = high >> shift & everybody
        if icr & _LOGICAL:
            return self._is_logical(target)
        return target in (everybody, self._registers[ID] >> shift & everybody)

    def _is_logical(self, target: int) -> bool:
        logical = self._registers[LOGICAL_DESTINATION]
        if self.is_x2apic:
            return logical >> 16 == target >> 16 and bool(logical & target & 0xFFFF)
        logical >>= 24
        if self._registers[DESTINATION_FORMAT] == _MASK32:
            return bool(logical & target)
        is_cluster = self._registers[DESTINATION_FORMAT] == 0x0FFFFFFF
        return is_cluster and logical >> 4 == target >> 4 and bool(logical & target & 0xF)

    def _receive(self, icr: int, mode: int, vector: int) -> None:
        """`vlapic_accept_irq`, and `vlapic_init_sipi_one` for what resets a processor."""
        if mode in (_FIXED, _LOWEST):
            if self.is_enabled:
                self.accept(vector)
        elif mode == _NMI:
            self.nmi_pending = True
            self._changed()
        elif mode == _INIT:
            if icr & (_LEVEL | _ASSERT) != _LEVEL:
                self.init_pending = True
                self._changed()
        elif mode not in (_SMI, _REMOTE_READ, _STARTUP):
            self.crash = f"an interrupt of a kind that is not there: ICR {icr:#x}"
            self._changed()

    # ---- snapshots -----------------------------------------------------------------------

    def save(self) -> ApicState:
        """All there is, as N_NUMBERS numbers, for `restore`."""
        flags = (self.nmi_pending, self.init_pending, self.was_enabled)
        vectors = (self._requested, self._in_service, self._trigger)
        registers = (self._registers[offset] for offset in _SAVED)
        return (self.base, *map(int, flags), *vectors, *registers, *self._timer.save())

    def restore(self, state: ApicState) -> None:
        """Goes back to what `save` gave. Any N_NUMBERS numbers are a state that can be."""
        self.reset()
        self.base = APIC_BASE_ADDRESS | state[0] & (_BASE_ENABLED | _BASE_X2APIC | _BASE_BOOT)
        self.nmi_pending, self.init_pending, self.was_enabled = map(bool, state[1:4])
        self._requested, self._in_service, self._trigger = (n & _VECTORS for n in state[4:7])
        registers = state[7 : 7 + len(_SAVED)]
        self._registers = {
            offset: value & _MASK32 for offset, value in zip(_SAVED, registers, strict=True)
        }
        self._registers[TASK_PRIORITY] &= 0xFF
        self._timer.restore(state[7 + len(_SAVED) :])
