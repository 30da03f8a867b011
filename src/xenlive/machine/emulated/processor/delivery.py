"""Exceptions and interrupts on their way into a guest: through its IDT, onto the right stack.

The emulator stops at each exception and leaves the rest to us. What a processor would do then is
here, from the AMD64 Architecture Programmer's Manual, volume 2, chapter 8: gates and their checks,
the change of stack through the TSS, error codes, and what happens when delivery itself fails.

    vector ──▶ gate in the IDT ──▶ code segment in GDT or LDT ──▶ stack: the same,
                                                                  from the TSS (inner privilege),
                                                                  or IST 1..7 (64 bit)
    fault on the way: #DF if both contribute, then triple fault = the guest's end

**Invariants.** All reads and checks come before the first change: a delivery that fails has changed
nothing (but for what it wrote below the stack pointer), or, of a task gate, has entered the new
task (`taskswitch.py`). Nothing but `GuestStop` leaves `inject`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from xenlive.machine.emulated.processor.descriptors import (
    BIG,
    CODE,
    CONFORMING,
    NO_SYSTEM,
    PRESENT,
    WRITABLE,
    Descriptors,
)
from xenlive.machine.emulated.processor.exits import Segment
from xenlive.machine.emulated.processor.faults import (
    DEBUG,
    DOUBLE_FAULT,
    GENERAL_PROTECTION,
    INVALID_TSS,
    NAMES,
    NOT_PRESENT,
    PAGE_FAULT,
    STACK_FAULT,
    Fault,
)
from xenlive.machine.emulated.processor.paging import (
    PAGE_SIZE,
    NonCanonical,
    PageFault,
    is_canonical,
)
from xenlive.machine.emulated.processor.taskswitch import Switch, switch_task
from xenlive.machine.emulated.stop import TRIPLE_FAULT, GuestStop

if TYPE_CHECKING:
    from xenlive.machine.emulated.processor.cpustate import CpuState
    from xenlive.machine.emulated.processor.paging import Paging, Physical

_CONTRIBUTORY = frozenset((0, 10, 11, 12, 13))

_FLAG_TF, _FLAG_IF, _FLAG_NT, _FLAG_RF, _FLAG_VM = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17
_TASK_GATE = 5
_INTERRUPT_GATES = (6, 14)
_GATES_32 = (5, 6, 7, 14, 15)
_GATES_64 = (14, 15)


class Event(NamedTuple):
    """What is to be delivered. `error` None is one without an error code.

    `next_rip` is where the guest goes on after it, unless that is where it stands.

    `is_external` marks interrupts from outside, `is_software` int n, int3 and into.
    """

    vector: int
    error: int | None = None
    is_software: bool = False
    is_external: bool = False
    next_rip: int = 0


class _Gate(NamedTuple):
    kind: int
    dpl: int
    is_present: bool
    selector: int
    offset: int
    ist: int


class Delivery:
    """One attempt to deliver `event` to the processor `cpu` with its memory as it is now."""

    def __init__(self, cpu: CpuState, physical: Physical, event: Event) -> None:
        self._cpu = cpu
        self._physical = physical
        self._paging: Paging = cpu.paging()
        self._event = event
        self._is_64bit = cpu.in_long_mode
        #: The EXT bit of error codes: set unless the guest's own `int` is being delivered.
        self._external = 0 if event.is_software else 1
        self._descriptors = Descriptors(cpu, physical, self._paging, self._external)

    def deliver(self) -> None:
        """Enters the guest's handler. Fault if that can't be; then nothing has changed."""
        try:
            if not self._cpu.reg("cr0") & 1:
                self._deliver_real_mode()
            else:
                self._deliver_protected()
        except PageFault as fault:
            raise Fault(PAGE_FAULT, fault.error, fault.address) from None
        except NonCanonical:
            raise Fault(GENERAL_PROTECTION, self._external) from None

    # ---- memory --------------------------------------------------------------------------

    def _read(self, address: int, size: int) -> bytes:
        return self._paging.read(self._physical, address, size)

    def _push(self, top: int, values: list[int], size: int, base: int = 0) -> int:
        """Stores words below `top`, the first one highest; the new stack pointer."""
        data = b"".join(value.to_bytes(size, "little") for value in reversed(values))
        mask = (1 << 64) - 1 if self._is_64bit else 0xFFFFFFFF
        bottom = top - len(data)
        if self._is_64bit and not is_canonical(bottom & mask):
            raise Fault(STACK_FAULT, self._external)
        # A processor pushes word for word: the highest that can't be stored is the one that faults.
        for at in range(top - size, bottom - 1, -size):
            if at == top - size or (base + at) // PAGE_SIZE != (base + at + size) // PAGE_SIZE:
                self._paging.translate(self._physical, base + at & mask, write=True)
        self._paging.write(self._physical, base + bottom & mask, data)
        return bottom

    # ---- tables --------------------------------------------------------------------------

    def _gate(self) -> _Gate:
        vector, size = self._event.vector, 16 if self._is_64bit else 8
        idt = self._cpu.segment("idt")
        error = vector * 8 + 2 + self._external
        if vector * size + size - 1 > idt.limit:
            raise Fault(GENERAL_PROTECTION, error)
        raw = self._read(idt.base + vector * size, size)
        low, selector, ist, kind, high = struct.unpack_from("<HHBBH", raw)
        offset = low | high << 16
        if self._is_64bit:
            offset |= int.from_bytes(raw[8:12], "little") << 32
        gate = _Gate(kind & 0x1F, kind >> 5 & 3, bool(kind & 0x80), selector, offset, ist & 7)
        if gate.kind not in (_GATES_64 if self._is_64bit else _GATES_32):
            raise Fault(GENERAL_PROTECTION, error)
        if self._event.is_software and gate.dpl < self._cpu.cpl:
            raise Fault(GENERAL_PROTECTION, error)
        if not gate.is_present:
            raise Fault(NOT_PRESENT, error)
        return gate

    def _code_segment(self, gate: _Gate) -> tuple[Segment, int]:
        """The handler's code segment, and the privilege level it runs with."""
        code = self._descriptors.read(gate.selector)
        error = gate.selector & ~3 | self._external
        if not code.flags & NO_SYSTEM or not code.flags & CODE or code.dpl > self._cpu.cpl:
            raise Fault(GENERAL_PROTECTION, error)
        if not code.flags & PRESENT:
            raise Fault(NOT_PRESENT, error)
        cpl = self._cpu.cpl if code.flags & CONFORMING else code.dpl
        return code._replace(selector=gate.selector & ~3 | cpl), cpl

    # ---- the modes -----------------------------------------------------------------------

    def _deliver_protected(self) -> None:
        gate = self._gate()
        if gate.kind == _TASK_GATE:
            self._enter_task(gate)
            return
        code, cpl = self._code_segment(gate)
        saved = self._cpu.eflags
        if self._sets_resume_flag:
            saved |= _FLAG_RF
        if self._is_64bit:
            self._enter_64(gate, code, cpl, saved)
        else:
            self._enter_32(gate, code, cpl, saved)
        flags = self._cpu.eflags & ~(_FLAG_TF | _FLAG_NT | _FLAG_RF | _FLAG_VM)
        if gate.kind in _INTERRUPT_GATES:
            flags &= ~_FLAG_IF
        self._cpu.set_reg("eflags", flags)
        self._cpu.set_segment("cs", code)
        self._cpu.set_reg("rip", gate.offset)
        self._cpu.set_privilege(cpl)
        self._cpu.end_shadow()

    def _enter_task(self, gate: _Gate) -> None:
        saved = self._cpu.eflags | (_FLAG_RF if self._sets_resume_flag else 0)
        error = self._event.error
        switch = Switch(gate.selector, self._return_rip, saved, error, self._external)
        switch_task(self._cpu, self._physical, switch, self._descriptors)

    @property
    def _sets_resume_flag(self) -> bool:
        """Faults save RF set, so that a breakpoint at the instruction is not hit again."""
        event = self._event
        return not (event.is_software or event.is_external or event.vector in (DEBUG, DOUBLE_FAULT))

    @property
    def _return_rip(self) -> int:
        return self._event.next_rip or self._cpu.reg("rip")

    def _enter_64(self, gate: _Gate, code: Segment, cpl: int, saved: int) -> None:
        cpu = self._cpu
        top, stack = cpu.reg("rsp"), cpu.segment("ss")
        is_inner = cpl < cpu.cpl
        if gate.ist:
            top = self._from_tss(36 + 8 * (gate.ist - 1))
        elif is_inner:
            top = self._from_tss(4 + 8 * cpl)
        frame = [stack.selector, cpu.reg("rsp"), saved, cpu.segment("cs").selector]
        frame.append(self._return_rip)
        if self._event.error is not None:
            frame.append(self._event.error)
        if not is_canonical(gate.offset):
            raise Fault(GENERAL_PROTECTION, self._external)
        top = self._push(top & ~15, frame, 8)
        if is_inner:  # a null selector, whose privilege level is all it has
            cpu.set_segment("ss", Segment(cpl, 0, 0, cpl << 13))
        cpu.set_reg("rsp", top)

    def _from_tss(self, offset: int) -> int:
        task = self._cpu.segment("tr")
        if offset + 7 > task.limit:
            raise Fault(INVALID_TSS, task.selector & ~3 | self._external)
        return int.from_bytes(self._read(task.base + offset, 8), "little")

    def _enter_32(self, gate: _Gate, code: Segment, cpl: int, saved: int) -> None:
        cpu = self._cpu
        size = 2 if gate.kind in (6, 7) else 4
        stack = cpu.segment("ss")
        old_top = cpu.reg("rsp") & 0xFFFFFFFF
        frame: list[int] = []
        new_stack = None
        if cpl < cpu.cpl:
            top, new_stack = self._inner_stack(cpl)
            if saved & _FLAG_VM:
                frame += [cpu.segment(name).selector for name in ("gs", "fs", "ds", "es")]
            frame += [stack.selector, old_top]
        else:
            top = old_top
        if self._cpu.eflags & _FLAG_VM and cpl:
            raise Fault(GENERAL_PROTECTION, gate.selector & ~3 | self._external)
        frame += [saved, cpu.segment("cs").selector, self._return_rip & 0xFFFFFFFF]
        if self._event.error is not None:
            frame.append(self._event.error)
        mask = (1 << 8 * size) - 1
        base = (new_stack or stack).base
        is_16bit = not (new_stack or stack).flags & BIG
        start = top & 0xFFFF if is_16bit else top
        start = self._push(start, [value & mask for value in frame], size, base)
        if new_stack is not None:
            cpu.set_segment("ss", new_stack)
        if saved & _FLAG_VM:
            for name in ("gs", "fs", "ds", "es"):
                cpu.set_segment(name, Segment(0, 0, 0, 0))
        cpu.set_reg("rsp", top & ~0xFFFF | start & 0xFFFF if is_16bit else start)

    def _inner_stack(self, cpl: int) -> tuple[int, Segment]:
        """Stack pointer and segment for privilege level `cpl`, from the TSS."""
        task = self._cpu.segment("tr")
        is_small = not task.flags >> 8 & 8  # a 16-bit TSS
        offset, form = (2 + 4 * cpl, "<HH") if is_small else (4 + 8 * cpl, "<IH")
        if offset + struct.calcsize(form) - 1 > task.limit:
            raise Fault(INVALID_TSS, task.selector & ~3 | self._external)
        top, selector = struct.unpack(form, self._read(task.base + offset, struct.calcsize(form)))
        stack = self._descriptors.read(selector, INVALID_TSS)
        error = selector & ~3 | self._external
        flags = stack.flags
        is_data = flags & NO_SYSTEM and not flags & CODE and flags & WRITABLE
        if selector & 3 != cpl or stack.dpl != cpl or not is_data:
            raise Fault(INVALID_TSS, error)
        if not flags & PRESENT:
            raise Fault(STACK_FAULT, error)
        return top, stack

    def _deliver_real_mode(self) -> None:
        cpu, vector = self._cpu, self._event.vector
        table = cpu.segment("idt")
        if vector * 4 + 3 > table.limit:
            raise Fault(DOUBLE_FAULT if vector != DOUBLE_FAULT else GENERAL_PROTECTION)
        ip, selector = struct.unpack("<HH", self._read(table.base + vector * 4, 4))
        frame = [cpu.eflags & 0xFFFF, cpu.segment("cs").selector, self._return_rip & 0xFFFF]
        top = self._push(cpu.reg("rsp") & 0xFFFF, frame, 2, cpu.reg("ss_base"))
        cpu.set_reg("rsp", cpu.reg("rsp") & ~0xFFFF | top & 0xFFFF)
        cpu.set_reg("eflags", cpu.eflags & ~(_FLAG_TF | _FLAG_IF | _FLAG_RF))
        cpu.set_segment("cs", cpu.segment("cs")._replace(selector=selector, base=selector << 4))
        cpu.set_reg("rip", ip)
        cpu.set_privilege(0)
        cpu.end_shadow()


def inject(cpu: CpuState, physical: Physical, event: Event) -> None:
    """Delivers `event`, or what becomes of it: a fault on the way, #DF, or the guest's end.

    GuestStop for a triple fault. AMD64 APM volume 2, section 8.2.9 (which faults make a #DF).
    """
    first = event
    while True:
        try:
            Delivery(cpu, physical, event).deliver()
            return
        except Fault as fault:
            if event.vector == DOUBLE_FAULT and not event.is_software:
                what = f"{_named(first)}, then {fault}, then no #DF handler"
                raise GuestStop(TRIPLE_FAULT, what) from None
            if fault.vector == PAGE_FAULT:
                cpu.set_reg("cr2", fault.address)
            event = _next_event(event, fault)


def _next_event(event: Event, fault: Fault) -> Event:
    hardware = not event.is_software and not event.is_external
    contributes = fault.vector in _CONTRIBUTORY
    is_double = hardware and (
        (event.vector in _CONTRIBUTORY and contributes)
        or (event.vector == PAGE_FAULT and (contributes or fault.vector == PAGE_FAULT))
    )
    if is_double or fault.vector == DOUBLE_FAULT:
        return Event(DOUBLE_FAULT, 0)
    return Event(fault.vector, fault.error)


def _named(event: Event) -> str:
    if event.is_software or event.is_external:
        return f"interrupt {event.vector}"
    return NAMES.get(event.vector, f"exception {event.vector}")
