"""A virtual processor: the emulator's runs put together to a guest that goes on.

    run for a budget of blocks ──▶ exit: exception   ──▶ through the guest's IDT (delivery.py)
         ▲                              hypercall     ──▶ the hypervisor
         │                              CPUID, MSR .. ──▶ intercepts.py
         │                              halt          ──▶ RUN_HALTED, until an upcall is pending
         └── upcall pending, IF set ◀── timer due? ◀── time passes with blocks and with RDTSC

Time is virtual and made of what the guest does: a block of code takes 10 ns, RDTSC and a hypercall
somewhat more, and a world that has nothing to run lets time jump to the next timer. So a guest that
waits for a timer in a loop gets there, and each run of it is the same.

Upcalls are level-triggered, as Xen's are (`hvm_vcpu_has_pending_irq`): whenever vcpu_info says
that one is pending and interrupts are on, the callback vector is delivered. The emulator can't say
when a guest turns interrupts on, so while one is held back the guest is looked at after a few
blocks; their number varies, so that no loop stays out of step with it.

**Invariants.** `run` raises nothing that a guest could cause: its end is kept in `ended`, with the
state it had. Hypercalls, mappings and memory change only between two runs of the engine.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from xenlive.machine.emulated.interface import Processor
from xenlive.machine.emulated.processor import exits, intercepts
from xenlive.machine.emulated.processor.cpuid import MSR_HYPERCALL_PAGE
from xenlive.machine.emulated.processor.decode import (
    ICEBP,
    INT,
    INT3,
    INTO,
    MAX_LENGTH,
    Instruction,
    decode,
)
from xenlive.machine.emulated.processor.delivery import (
    BREAKPOINT,
    DEBUG,
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    OVERFLOW,
    PAGE_FAULT,
    WITH_ERROR_CODE,
    Event,
    Fault,
    inject,
)
from xenlive.machine.emulated.processor.engine import Engine
from xenlive.machine.emulated.processor.exits import EngineHooks, Exit
from xenlive.machine.emulated.processor.msr import MSR_TSC, Msrs
from xenlive.machine.emulated.processor.paging import PAGE_SIZE, NonCanonical, PageFault
from xenlive.machine.emulated.stop import SPIN, UNSUPPORTED, GuestStop

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.interface import Clock, Hypervisor
    from xenlive.machine.emulated.space import Space

# What `run` came to.
RUN_ON = "on"  # the budget is used up, the guest would go on
RUN_HALTED = "halted"  # it waits for an upcall, or to be woken
RUN_ENDED = "ended"  # `ended` says why

BLOCK_NS = 10
RDTSC_NS = 100
HYPERCALL_NS = 500
#: A guest that makes no hypercall and never halts for this many blocks does nothing but spin.
SPIN_LIMIT = 300_000_000
_EXCEPTION_BLOCKS = 200  # what an exception counts for there: one costs about as much time
_RUN_MAX = 2_000_000  # so that Ctrl-C is heard

_HYPERCALL_IRET = 23
_EPERM = 1
_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1
_ARGS_64 = ("rdi", "rsi", "rdx", "r10", "r8")
_ARGS_32 = ("rbx", "rcx", "rdx", "rsi", "rdi")


class HypercallRecord(NamedTuple):
    """A hypercall that was made; `result` is None if it left rax alone."""

    when_ns: int
    rip: int
    number: int
    args: tuple[int, ...]
    result: int | None


class VcpuState(NamedTuple):
    """A saved processor: what `Vcpu.save` gives."""

    engine: bytes
    msrs: dict[int, int]
    recent: tuple[HypercallRecord, ...]
    waiting: tuple[bool, bool]
    counters: tuple[int, int, int, int]


class _Devices(EngineHooks):
    """The hooks of the engine: time is the vcpu's, everything else is asked of `behind`."""

    def __init__(self, behind: EngineHooks) -> None:
        self.read_port = behind.read_port  # type: ignore[method-assign]
        self.write_port = behind.write_port  # type: ignore[method-assign]
        self.read_hole = behind.read_hole  # type: ignore[method-assign]
        self.write_hole = behind.write_hole  # type: ignore[method-assign]


class Vcpu(Processor):
    """The processor of domain `domid`, with the memory `space`, asking `hypervisor`.

    `devices` stand behind ports, holes in memory and unknown MSRs.
    """

    def __init__(
        self,
        domid: int,
        space: Space,
        hypervisor: Hypervisor,
        clock: Clock,
        devices: EngineHooks | None = None,
        spin_limit: int = SPIN_LIMIT,
    ) -> None:
        self.domid = domid
        self.clock = clock
        self.hypervisor = hypervisor
        self.spin_limit = spin_limit
        self._devices = devices or EngineHooks()
        hooks = _Devices(self._devices)
        hooks.read_tsc = self._read_tsc  # type: ignore[method-assign]
        self.engine = Engine(hooks)
        self.msrs = Msrs()
        self.physical = space
        space.attach(self.engine)
        #: Why the guest ended, once it has.
        self.ended: GuestStop | None = None
        #: The last hypercalls, the newest at the end.
        self.recent: deque[HypercallRecord] = deque(maxlen=32)
        #: Called after each hypercall, and before each exception or interrupt is delivered.
        self.on_hypercall: Callable[[HypercallRecord], None] | None = None
        self.on_event: Callable[[Event], None] | None = None
        #: Blocks executed since the guest was entered.
        self.blocks = 0
        self.is_blocked = False
        self._was_woken = False
        self._quiet_blocks = 0
        self._held_back = 0
        self._tsc_offset = 0
        self._tsc_ns = 0
        self._deadline_ns: int | None = None
        self._handlers = {
            exits.EXCEPTION: self._on_exception,
            exits.SOFT_INTERRUPT: self._on_soft_interrupt,
            exits.HALT: self._on_halt,
            exits.CPUID: self._on_cpuid,
            exits.READ_MSR: self._on_read_msr,
            exits.WRITE_MSR: self._on_write_msr,
            exits.WRITE_CR: self._on_write_cr,
            exits.WRITE_DR: self._on_write_dr,
            exits.SYSCALL: self._on_syscall,
            exits.SYSENTER: self._on_sysenter,
        }

    def enter_pvh(self, entry: int, start_info: int) -> None:
        """Puts the processor where a PVH kernel begins: 32 bit, no paging, start info in ebx."""
        self.engine.reset()
        self.engine.set_reg("rip", entry)
        self.engine.set_reg("rbx", start_info)
        self.msrs.reset()
        self.ended = None
        self.is_blocked = self._was_woken = False
        self._quiet_blocks = self._held_back = 0

    def save(self) -> VcpuState:
        """The processor without its memory, its clock and its hypervisor."""
        return VcpuState(
            self.engine.save(),
            self.msrs.save(),
            tuple(self.recent),
            (self.is_blocked, self._was_woken),
            (self.blocks, self._quiet_blocks, self._held_back, self._tsc_offset),
        )

    def restore(self, state: VcpuState) -> None:
        """Goes back to what `save` gave, of this processor or another; also after its end."""
        self.engine.restore(state.engine)
        self.msrs.restore(state.msrs)
        self.recent.clear()
        self.recent.extend(state.recent)
        self.is_blocked, self._was_woken = state.waiting
        self.blocks, self._quiet_blocks, self._held_back, self._tsc_offset = state.counters
        self.ended = None

    # ---- what the hypervisor may do ------------------------------------------------------

    @property
    def in_long_mode(self) -> bool:  # type: ignore[override]
        """Whether long mode is active."""
        return self.engine.in_long_mode

    def read_virtual(self, address: int, size: int) -> bytes:
        return self.engine.paging().read(self.physical, address, size)

    def write_virtual(self, address: int, data: bytes) -> None:
        self.engine.paging().write(self.physical, address, data)
        self.engine.forget_code(address, len(data))

    def block(self) -> None:
        self.is_blocked = True
        self._was_woken = False

    def wake(self) -> None:
        self._was_woken = True

    # ---- the loop ------------------------------------------------------------------------

    def run(self, max_blocks: int = 1 << 62) -> str:
        """Runs the guest for `max_blocks` blocks at most; one of RUN_ON, RUN_HALTED, RUN_ENDED."""
        if self.ended is not None:
            return RUN_ENDED
        try:
            return self._run(max_blocks)
        except GuestStop as stop:
            self.ended = stop
            return RUN_ENDED

    def _run(self, max_blocks: int) -> str:
        end = self.blocks + max_blocks
        while self.blocks < end:
            self._fire_timers()
            pending = self.hypervisor.pending_upcall()
            if self.is_blocked and not pending and not self._was_woken:
                return RUN_HALTED
            self.is_blocked = self._was_woken = False
            budget = min(end - self.blocks, _RUN_MAX)
            if pending and (vector := self.hypervisor.callback_vector()):
                budget = min(budget, self._deliver_upcall(vector))
            self._handle(self._run_engine(budget))
        return RUN_ON

    def _fire_timers(self) -> None:
        deadline = self.hypervisor.timer_deadline_ns()
        if deadline is not None and deadline <= self.clock.now_ns:
            self.hypervisor.timer_fired(self.clock.now_ns)
            deadline = self.hypervisor.timer_deadline_ns()
        self._deadline_ns = deadline

    def _deliver_upcall(self, vector: int) -> int:
        """Delivers an upcall if the guest takes interrupts; how far it may run now."""
        if self.engine.interrupts_on:
            self._held_back = 0
            self._inject(Event(vector, is_external=True))
            return _RUN_MAX
        self._held_back += 1
        return 1 if self._held_back < 8 else 13 + self._held_back % 50

    def _run_engine(self, budget: int) -> Exit:
        if self._deadline_ns is not None:
            left_ns = max(self._deadline_ns - self.clock.now_ns, 0)
            budget = min(budget, left_ns // BLOCK_NS + 1)
        self._tsc_ns = 0
        found = self.engine.run(budget)
        self._account()
        return found

    def _account(self) -> None:
        executed = max(self.engine.executed, 1)
        self.blocks += executed
        self.clock.advance(executed * BLOCK_NS + self._tsc_ns)
        self._quiet_blocks += executed
        if self._quiet_blocks > self.spin_limit:
            what = f"no hypercall and no halt in {self._quiet_blocks} blocks of code"
            raise GuestStop(SPIN, what)

    def _read_tsc(self) -> int:
        # In the middle of a run: what it has executed so far is not on the clock yet.
        self._tsc_ns += RDTSC_NS
        now = self.clock.now_ns + self.engine.running * BLOCK_NS + self._tsc_ns
        if self._deadline_ns is not None and now >= self._deadline_ns:
            self.engine.limit(0)
        return now + self._tsc_offset & _MASK64

    # ---- exits ---------------------------------------------------------------------------

    def _handle(self, found: Exit) -> None:
        if found.kind in (exits.BUDGET, exits.STOPPED):
            return
        handler = self._handlers.get(found.kind)
        if handler is None:
            raise GuestStop(UNSUPPORTED, f"the emulator stopped: {found.text}")
        try:
            handler(found)
        except Fault as fault:
            error = fault.error if fault.vector in WITH_ERROR_CODE else None
            self._inject(Event(fault.vector, error))

    def _inject(self, event: Event) -> None:
        if self.on_event is not None:
            self.on_event(event)
        inject(self.engine, self.physical, event)

    def _instruction(self) -> Instruction:
        """The instruction at RIP, as far as it can be read."""
        engine = self.engine
        rip = engine.reg("rip") + engine.reg("cs_base")
        paging, size = engine.paging(), MAX_LENGTH
        try:
            code = paging.read(self.physical, rip, size)
        except (PageFault, NonCanonical):
            try:
                code = paging.read(self.physical, rip, PAGE_SIZE - rip % PAGE_SIZE)[:size]
            except (PageFault, NonCanonical):
                code = b""
        return decode(code, engine.code_bits)

    def _skip(self, length: int) -> int:
        """Where the next instruction is; RIP goes there."""
        mask = _MASK64 if self.engine.code_bits == 64 else _MASK32
        rip = self.engine.reg("rip") + length & mask
        self.engine.set_reg("rip", rip)
        return rip

    def _on_exception(self, found: Exit) -> None:
        self._quiet_blocks += _EXCEPTION_BLOCKS
        if found.vector == INVALID_OPCODE:
            instruction = self._instruction()
            if instruction.is_hypercall:
                self._hypercall(instruction.length)
                return
            if instruction.opcode == ICEBP:
                self._skip(instruction.length)
                self._inject(Event(DEBUG))
                return
        if found.vector == PAGE_FAULT:
            self.engine.set_reg("cr2", found.address)
        error = found.error if found.vector in WITH_ERROR_CODE else None
        self._inject(Event(found.vector, error))

    def _on_soft_interrupt(self, _: Exit) -> None:
        instruction = self._instruction()
        fixed = {INT3: BREAKPOINT, INTO: OVERFLOW, INT: instruction.operand}
        vector = fixed.get(instruction.opcode)
        if vector is None:
            raise GuestStop(UNSUPPORTED, "an interrupt instruction that can't be read any more")
        next_rip = self.engine.reg("rip") + instruction.length
        self._inject(Event(vector, is_software=True, next_rip=next_rip))

    def _on_halt(self, _: Exit) -> None:
        self._quiet_blocks = 0
        self._skip(max(self._instruction().length, 1))
        self.engine.end_shadow()
        if not self.engine.eflags & 0x200:
            if not self.hypervisor.pending_upcall():
                self.hypervisor.vcpu_down()
            return
        self.block()

    def _on_cpuid(self, _: Exit) -> None:
        length = self._instruction().length
        intercepts.do_cpuid(self.engine, self.msrs, self.domid)
        self._skip(length or 2)

    def _on_read_msr(self, _: Exit) -> None:
        length = self._instruction().length
        value = self._read_msr(self.engine.reg("rcx") & _MASK32)
        if value is None:
            raise Fault(GENERAL_PROTECTION)
        self.engine.set_reg("rax", value & _MASK32)
        self.engine.set_reg("rdx", value >> 32)
        self._skip(length or 2)

    def _read_msr(self, number: int) -> int | None:
        if number == MSR_TSC:
            return self.clock.now_ns + self._tsc_offset & _MASK64
        if number == MSR_HYPERCALL_PAGE:
            return 0
        for value in (
            intercepts.read_processor_msr(self.engine, number),
            self.msrs.read(number),
        ):
            if value is not None:
                return value
        return self._devices.read_msr(number)

    def _on_write_msr(self, _: Exit) -> None:
        length = self._instruction().length
        number = self.engine.reg("rcx") & _MASK32
        value = self.engine.reg("rax") & _MASK32 | (self.engine.reg("rdx") & _MASK32) << 32
        if not self._write_msr(number, value):
            raise Fault(GENERAL_PROTECTION)
        self._skip(length or 2)

    def _write_msr(self, number: int, value: int) -> bool:
        if number == MSR_TSC:
            self._tsc_offset = value - self.clock.now_ns
            return True
        if number == MSR_HYPERCALL_PAGE:
            return self._write_hypercall_page(value)
        return (
            intercepts.write_processor_msr(self.engine, number, value)
            or self.msrs.write(number, value)
            or self._devices.write_msr(number, value)
        )

    def _write_hypercall_page(self, value: int) -> bool:
        """Fills the page, as `guest_wrmsr_xen` does. The low bits are an index of pages."""
        gfn, index = divmod(value, PAGE_SIZE)
        if index or not self.hypervisor.write_hypercall_page(self, gfn, HYPERCALL_PAGE):
            return False
        self.engine.wrote(gfn * PAGE_SIZE, PAGE_SIZE)
        return True

    def _on_write_cr(self, _: Exit) -> None:
        intercepts.check_write_cr(self.engine, self._instruction())
        found = self.engine.run_past_write_cr()
        self._account()
        self._handle(found)

    def _on_write_dr(self, _: Exit) -> None:
        instruction = self._instruction()
        intercepts.write_dr(self.engine, instruction)
        self._skip(instruction.length)

    def _on_syscall(self, _: Exit) -> None:
        length = self._instruction().length or 2
        intercepts.do_syscall(self.engine, self.engine.reg("rip") + length & _MASK64)

    def _on_sysenter(self, _: Exit) -> None:
        intercepts.do_sysenter(self.engine)

    # ---- hypercalls ----------------------------------------------------------------------

    def _hypercall(self, length: int) -> None:
        """VMCALL or VMMCALL, as `hvm_hypercall` (xen/arch/x86/hvm/hypercall.c)."""
        engine = self.engine
        rip = engine.reg("rip")
        is_64bit = engine.code_bits == 64
        mask = _MASK64 if is_64bit else _MASK32
        number = engine.reg("rax") & mask
        args = tuple(engine.reg(name) & mask for name in (_ARGS_64 if is_64bit else _ARGS_32))
        self._skip(length)
        self._quiet_blocks = 0
        self.clock.advance(HYPERCALL_NS)
        result: int | None = None
        try:
            if engine.cpl:
                result = -_EPERM
            else:
                result = self.hypervisor.hypercall(self, number, args, is_64bit)
            if result is not None:
                engine.set_reg("rax", result & mask)
        finally:
            record = HypercallRecord(self.clock.now_ns, rip, number, args, result)
            self.recent.append(record)
            if self.on_hypercall is not None:
                self.on_hypercall(record)


def _hypercall_page() -> bytes:
    """128 entries of 32 bytes: mov $n, %eax; vmmcall; ret (`svm_init_hypercall_page`)."""
    page = bytearray()
    for number in range(PAGE_SIZE // 32):
        code = b"\xb8" + number.to_bytes(4, "little") + b"\x0f\x01\xd9\xc3"
        if number == _HYPERCALL_IRET:  # a PV guest's alone: ud2
            code = b"\x0f\x0b"
        page += code.ljust(32, b"\xcc")
    return bytes(page)


HYPERCALL_PAGE = _hypercall_page()
