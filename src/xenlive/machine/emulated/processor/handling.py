"""What happens when the emulator stops for us: exceptions, hypercalls, intercepted instructions.

    exit: exception   ──▶ through the guest's IDT (delivery.py)
          hypercall   ──▶ the hypervisor           (it comes as an invalid opcode)
          CPUID, MSR, control and debug registers, SYSCALL, SYSENTER ──▶ intercepts.py
          halt        ──▶ waiting

`vcpu.py` runs the emulator and brings its exits here.

**Invariants.** After `_handle` the instruction has happened as a whole, or its exception has been
delivered and nothing else happened. `GuestStop` is all that it raises.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from xenlive.machine.emulated.interface import Processor
from xenlive.machine.emulated.processor import exits, intercepts
from xenlive.machine.emulated.processor.backed import Backed
from xenlive.machine.emulated.processor.corrections import corrected, may_be_wrong
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
from xenlive.machine.emulated.processor.delivery import Event, inject
from xenlive.machine.emulated.processor.faults import (
    BREAKPOINT,
    DEBUG,
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    OVERFLOW,
    PAGE_FAULT,
    WITH_ERROR_CODE,
    Fault,
)
from xenlive.machine.emulated.processor.lapic import (
    MSR_X2APIC_FIRST,
    MSR_X2APIC_LAST,
    LocalApic,
)
from xenlive.machine.emulated.processor.msr import (
    MSR_APIC_BASE,
    MSR_TSC,
    MSR_TSC_DEADLINE,
    Msrs,
)
from xenlive.machine.emulated.processor.paging import PAGE_SIZE, NonCanonical, PageFault
from xenlive.machine.emulated.stop import UNSUPPORTED, GuestStop

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.interface import Clock, Hypervisor
    from xenlive.machine.emulated.processor.engine import Engine
    from xenlive.machine.emulated.processor.exits import EngineHooks, Exit
    from xenlive.machine.emulated.space import Space

HYPERCALL_NS = 500
_EXCEPTION_BLOCKS = 200  # what an exception counts for as spinning: it costs about as much time

_HYPERCALL_IRET = 23
_CR8 = 8
_RET = b"\xc3"
_EPERM = 1
_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1
_ARGS_64 = ("rdi", "rsi", "rdx", "r10", "r8")
_ARGS_32 = ("rbx", "rcx", "rdx", "rsi", "rdi")


class HypercallRecord(NamedTuple):
    """A hypercall that was made; `result` is None if it left rax alone.

    `rip` is where VMCALL or VMMCALL was, `caller` where the call came from: the return address of
    the function that is nothing but this instruction, as those of a hypercall page are.
    """

    when_ns: int
    rip: int
    caller: int
    number: int
    args: tuple[int, ...]
    result: int | None


class ExitHandler(Processor):
    """What the processor of domain `domid` is between two runs of its `engine`."""

    def __init__(
        self,
        domid: int,
        space: Space,
        hypervisor: Hypervisor,
        clock: Clock,
        engine: Engine,
        devices: EngineHooks,
    ) -> None:
        self.domid = domid
        self.clock = clock
        self.hypervisor = hypervisor
        self.engine = engine
        self.msrs = Msrs()
        self.apic = LocalApic(self._now_ns, self._look_again)
        self.physical = space
        self._backed = Backed(space)
        #: The last hypercalls, the newest at the end.
        self.recent: deque[HypercallRecord] = deque(maxlen=32)
        #: Called after each hypercall, and before each exception or interrupt is delivered.
        self.on_hypercall: Callable[[HypercallRecord], None] | None = None
        self.on_event: Callable[[Event], None] | None = None
        #: Called before each exit is handled: nothing has come of that instruction yet.
        self.on_exit: Callable[[Exit], object] | None = None
        #: Called after a control register was written, with its number.
        self.on_write_cr: Callable[[int], object] | None = None
        self.is_blocked = False
        self._devices = devices
        self._was_woken = False
        self._quiet_blocks = 0
        self._tsc_offset = 0
        self._handlers = {
            exits.EXCEPTION: self._on_exception,
            exits.SOFT_INTERRUPT: self._on_soft_interrupt,
            exits.HALT: self._on_halt,
            exits.CPUID: self._on_cpuid,
            exits.READ_MSR: self._on_read_msr,
            exits.WRITE_MSR: self._on_write_msr,
            exits.READ_CR: self._on_read_cr8,
            exits.WRITE_CR: self._on_write_cr,
            exits.WRITE_DR: self._on_write_dr,
            exits.SYSCALL: self._on_syscall,
            exits.SYSENTER: self._on_sysenter,
        }

    def _account(self, is_open: bool = False, is_inside: bool = False) -> None:
        """Adds to time what the engine has run."""
        raise NotImplementedError

    def _now_ns(self) -> int:
        """The time, also in the middle of the engine's run."""
        raise NotImplementedError

    def _look_again(self) -> None:
        """Ends the engine's run soon: an interrupt may be due."""
        raise NotImplementedError

    # ---- what the hypervisor may do ------------------------------------------------------

    @property
    def in_long_mode(self) -> bool:  # type: ignore[override]
        """Whether long mode is active."""
        return self.engine.in_long_mode

    def read_virtual(self, address: int, size: int) -> bytes:
        return self.engine.paging().read(self._backed, address, size)

    def write_virtual(self, address: int, data: bytes) -> None:
        paging = self.engine.paging()
        paging.read(self._backed, address, len(data))  # all of it is there, or nothing is stored
        paging.write(self._backed, address, data)
        self.engine.forget_code(address, len(data))

    def block(self) -> None:
        self.is_blocked = True
        self._was_woken = False

    def wake(self) -> None:
        self._was_woken = True

    # ---- exits ---------------------------------------------------------------------------

    def _handle(self, found: Exit) -> None:
        if self.on_exit is not None:
            self.on_exit(found)
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
        return decode(self._code(), self.engine.code_bits)

    def _code(self) -> bytes:
        """The bytes at RIP: those of an instruction, or as many as can be read."""
        engine = self.engine
        rip = engine.reg("rip") + engine.reg("cs_base")
        paging, size = engine.paging(), MAX_LENGTH
        try:
            return paging.read(self.physical, rip, size)
        except (PageFault, NonCanonical):
            try:
                return paging.read(self.physical, rip, PAGE_SIZE - rip % PAGE_SIZE)[:size]
            except (PageFault, NonCanonical):
                return b""

    def _skip(self, length: int) -> int:
        """Where the next instruction is; RIP goes there."""
        mask = _MASK64 if self.engine.code_bits == 64 else _MASK32
        rip = self.engine.reg("rip") + length & mask
        self.engine.set_reg("rip", rip)
        return rip

    def _on_exception(self, found: Exit) -> None:
        self._quiet_blocks += _EXCEPTION_BLOCKS
        if found.vector == INVALID_OPCODE:
            code = self._code()
            instruction = decode(code, self.engine.code_bits)
            if instruction.is_hypercall:
                self._hypercall(instruction.length, code)
                return
            if instruction.opcode == ICEBP:
                next_rip = self.engine.reg("rip") + instruction.length
                self._inject(Event(DEBUG, next_rip=next_rip))
                return
        vector, error = found.vector, found.error
        if may_be_wrong(self.engine, vector):
            code = self._code()
            vector, error = corrected(self.engine, code, vector, error, found.address)
        if vector == PAGE_FAULT:
            self.engine.set_reg("cr2", found.address)
        self._inject(Event(vector, error if vector in WITH_ERROR_CODE else None))

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
        intercepts.do_cpuid(self.engine, self.msrs, self.domid, self.apic.is_present)
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
        if number == MSR_APIC_BASE:
            return self.apic.base
        if number == MSR_TSC_DEADLINE:
            return self.apic.read_deadline()
        if MSR_X2APIC_FIRST <= number <= MSR_X2APIC_LAST:
            return self.apic.read_msr(number)
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
        if number == MSR_APIC_BASE:
            return self.apic.write_base(value)
        if number == MSR_TSC_DEADLINE:
            self.apic.write_deadline(value, self.clock.now_ns + self._tsc_offset & _MASK64)
            return True
        if MSR_X2APIC_FIRST <= number <= MSR_X2APIC_LAST:
            return self.apic.write_msr(number, value)
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

    def _on_read_cr8(self, _: Exit) -> None:
        instruction = self._instruction()
        self.engine.set_general(instruction.register, self.apic.task_priority)
        self._skip(instruction.length)

    def _on_write_cr8(self) -> None:
        instruction = self._instruction()
        self.apic.task_priority = intercepts.cr8_of(self.engine, instruction)
        self._skip(instruction.length)

    def _on_write_cr(self, cause: Exit) -> None:
        if cause.vector == _CR8:
            self._on_write_cr8()
            return
        intercepts.check_write_cr(self.engine, self._instruction())
        found = self.engine.run_past_write_cr()
        self._account()
        if self.on_write_cr is not None:
            self.on_write_cr(cause.vector)
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

    def _hypercall(self, length: int, code: bytes) -> None:
        """VMCALL or VMMCALL, as `hvm_hypercall` (xen/arch/x86/hvm/hypercall.c).

        `code` begins with the instruction, which is `length` bytes long.
        """
        engine = self.engine
        rip = engine.reg("rip")
        caller = self._caller(rip, code[length : length + 1])
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
            record = HypercallRecord(self.clock.now_ns, rip, caller, number, args, result)
            self.recent.append(record)
            if self.on_hypercall is not None:
                self.on_hypercall(record)

    def _caller(self, rip: int, following: bytes) -> int:
        """Where a hypercall at `rip` comes from, by the byte that follows it and the stack."""
        if following != _RET:
            return rip
        engine = self.engine
        size, mask = (8, _MASK64) if engine.code_bits == 64 else (4, _MASK32)
        try:
            found = self.read_virtual(engine.reg("rsp") & mask, size)
        except (PageFault, NonCanonical):
            return rip
        return int.from_bytes(found, "little")


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
