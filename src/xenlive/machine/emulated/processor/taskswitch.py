"""A task gate in the IDT: the processor puts one task away and takes up another.

AMD64 Architecture Programmer's Manual, volume 2, section 12.2.4 (the 32-bit task state segment,
104 bytes) and 12.3 (switching tasks); protected mode only, as long mode has no task gates.

    TR ──▶ old TSS: EIP, EFLAGS, general and segment registers are stored
    gate ──▶ new TSS: link := old TR, busy; CR3, registers, LDT and segments are loaded, NT and
             CR0.TS set; the error code goes onto the new stack

The way back is the guest's own IRET, which the emulator does.

**Invariants.** All that can fail about the two TSSs themselves is checked before the first change.
What fails later, the new task's own segments, is a fault inside of the new task, as on a processor.
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
    READABLE,
    WRITABLE,
    Descriptors,
)
from xenlive.machine.emulated.processor.exits import Segment
from xenlive.machine.emulated.processor.faults import (
    GENERAL_PROTECTION,
    INVALID_TSS,
    NOT_PRESENT,
    STACK_FAULT,
    Fault,
)
from xenlive.machine.emulated.stop import UNSUPPORTED, GuestStop

if TYPE_CHECKING:
    from xenlive.machine.emulated.processor.cpustate import CpuState
    from xenlive.machine.emulated.processor.paging import Physical

_LIMIT_MIN = 103
_CR3_AT, _STATE_AT, _LDT_AT = 0x1C, 0x20, 0x60
# From EIP on: ten double words, then six selectors, each in a double word of its own.
_STATE = struct.Struct("<10I6I")
_GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
_SELECTORS = ("es", "cs", "ss", "ds", "fs", "gs")

# Of a descriptor's upper word: bits 8 to 12 are the type, a system segment's if bit 12 is clear.
_KIND = 0x1F00
_AVAILABLE_16, _BUSY_16, _AVAILABLE_32, _BUSY_BIT, _LDT = 0x100, 0x300, 0x900, 0x200, 0x200
_FLAG_NT, _FLAG_VM = 1 << 14, 1 << 17
_CR0_TS, _CR0_PG = 1 << 3, 1 << 31
_DR7_LOCAL = 0x155


class Switch(NamedTuple):
    """What leads to another task: the gate's selector, and what the old task is left with.

    `external` is the EXT bit of error codes that come of it; `error` None if there is none.
    """

    selector: int
    rip: int
    eflags: int
    error: int | None
    external: int


def switch_task(
    cpu: CpuState, physical: Physical, switch: Switch, descriptors: Descriptors
) -> None:
    """Enters the task behind a gate. Fault, PageFault or GuestStop if that can't be."""
    paging = cpu.paging()
    old, new = cpu.segment("tr"), _task_of(switch, descriptors)
    if old.limit < _STATE_AT + _STATE.size - 1:
        raise Fault(INVALID_TSS, old.selector & ~3 | switch.external)
    gdt = cpu.segment("gdt")
    busy_at = gdt.base + (switch.selector & ~7) + 5
    before = bytearray(paging.read(physical, old.base + _STATE_AT, _STATE.size))
    incoming = paging.read(physical, new.base, _LIMIT_MIN + 1)
    for address in (old.base + _STATE_AT, old.base + _STATE_AT + _STATE.size - 1, new.base):
        paging.translate(physical, address & 0xFFFFFFFF, write=True)
    paging.translate(physical, busy_at & 0xFFFFFFFF, write=True)

    _put_away(cpu, switch, before)
    paging.write(physical, old.base + _STATE_AT, bytes(before))
    paging.write(physical, new.base, struct.pack("<H", old.selector))
    paging.write(physical, busy_at, bytes([new.flags >> 8 & 0xFF | _BUSY_BIT >> 8]))
    _take_up(cpu, new._replace(flags=new.flags | _BUSY_BIT), incoming)
    # The tables of the new task, as Xen's `hvm_task_switch` reads them: CR3 comes before segments.
    new_tables = Descriptors(cpu, physical, cpu.paging(), switch.external)
    _load_segments(cpu, incoming, switch.external, new_tables)
    if switch.error is not None:
        _push_error(cpu, physical, switch)


def _task_of(switch: Switch, descriptors: Descriptors) -> Segment:
    """The TSS that the gate names, checked."""
    error = switch.selector & ~3 | switch.external
    if switch.selector & 4:
        raise Fault(GENERAL_PROTECTION, error)
    task = descriptors.read(switch.selector, GENERAL_PROTECTION)
    kind = task.flags & _KIND
    if kind == _AVAILABLE_16:
        raise GuestStop(UNSUPPORTED, f"a task gate to a 16-bit TSS, {switch.selector:#x}")
    if kind != _AVAILABLE_32:
        raise Fault(GENERAL_PROTECTION, error)
    if not task.flags & PRESENT:
        raise Fault(NOT_PRESENT, error)
    if task.limit < _LIMIT_MIN:
        raise Fault(INVALID_TSS, error)
    return task


def _put_away(cpu: CpuState, switch: Switch, state: bytearray) -> None:
    """The old task's registers; the upper halves of selectors stay as they are."""
    values = [switch.rip, switch.eflags, *(cpu.reg(name) for name in _GENERAL)]
    state[:40] = struct.pack("<10I", *(value & 0xFFFFFFFF for value in values))
    for number, name in enumerate(_SELECTORS):
        at = 40 + 4 * number
        state[at : at + 2] = struct.pack("<H", cpu.segment(name).selector)


def _take_up(cpu: CpuState, task: Segment, incoming: bytes) -> None:
    """The new task's registers, without its segments."""
    rip, eflags, *general = struct.unpack_from("<10I", incoming, _STATE_AT)
    if eflags & _FLAG_VM:
        raise GuestStop(UNSUPPORTED, "a task gate to a task in virtual 8086 mode")
    cpu.set_segment("tr", task)
    if cpu.reg("cr0") & _CR0_PG:
        cpu.set_reg("cr3", *struct.unpack_from("<I", incoming, _CR3_AT))
    cpu.set_reg("rip", rip)
    cpu.set_reg("eflags", eflags | _FLAG_NT)
    for name, value in zip(_GENERAL, general, strict=True):
        cpu.set_reg(name, value)
    cpu.set_reg("cr0", cpu.reg("cr0") | _CR0_TS)
    cpu.set_reg("dr7", cpu.reg("dr7") & ~_DR7_LOCAL)
    cpu.end_shadow()


def _load_segments(cpu: CpuState, incoming: bytes, external: int, descriptors: Descriptors) -> None:
    selectors = dict(zip(_SELECTORS, _STATE.unpack_from(incoming, _STATE_AT)[10:], strict=True))
    selectors = {name: value & 0xFFFF for name, value in selectors.items()}
    cpl = selectors["cs"] & 3
    # Whatever fails from here on fails in the new task; what it has not got yet is the old one's.
    for name, selector in selectors.items():
        cpu.set_segment(name, cpu.segment(name)._replace(selector=selector))
    ldt = struct.unpack_from("<H", incoming, _LDT_AT)[0]
    cpu.set_segment("ldt", Segment(ldt, 0, 0, 0))
    cpu.set_privilege(cpl)
    if ldt & ~3:
        found = None if ldt & 4 else descriptors.read(ldt, INVALID_TSS)
        if found is None or found.flags & _KIND != _LDT or not found.flags & PRESENT:
            raise Fault(INVALID_TSS, ldt & ~3 | external)
        cpu.set_segment("ldt", found)
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        selector = selectors[name]
        if name in ("cs", "ss") or selector & ~3:
            segment = descriptors.read(selector, INVALID_TSS)
            _check(name, segment, cpl, external)
            cpu.set_segment(name, segment)
    cpu.set_privilege(cpl)


def _check(name: str, segment: Segment, cpl: int, external: int) -> None:
    """Whether a task may have this segment: type, privilege, presence."""
    flags, rpl, error = segment.flags, segment.selector & 3, segment.selector & ~3 | external
    is_code = bool(flags & CODE)
    if name == "cs":
        fits = segment.dpl <= rpl if flags & CONFORMING else segment.dpl == rpl
        fits = is_code and fits
    elif name == "ss":
        fits = not is_code and bool(flags & WRITABLE) and rpl == segment.dpl == cpl
    else:
        fits = not is_code or bool(flags & READABLE)
        fits = fits and (bool(is_code and flags & CONFORMING) or segment.dpl >= max(cpl, rpl))
    if not flags & NO_SYSTEM or not fits:
        raise Fault(INVALID_TSS, error)
    if not flags & PRESENT:
        raise Fault(STACK_FAULT if name == "ss" else NOT_PRESENT, error)


def _push_error(cpu: CpuState, physical: Physical, switch: Switch) -> None:
    stack = cpu.segment("ss")
    top = cpu.reg("rsp") - 4 & (0xFFFFFFFF if stack.flags & BIG else 0xFFFF)
    data = struct.pack("<I", switch.error or 0)
    cpu.paging().write(physical, stack.base + top & 0xFFFFFFFF, data)
    cpu.set_reg("rsp", top)
