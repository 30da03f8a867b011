"""Instructions that the processor leaves to us, done as Xen would for a PVH guest.

CPUID, RDMSR and WRMSR, writes to control and debug registers, SYSCALL and SYSENTER. Each function
takes the processor in the state before the instruction and leaves it after it, or raises `Fault`
for the exception that the guest gets instead.

Specification: AMD64 APM volumes 2 and 3; what Xen allows is `hvm_set_cr0`, `hvm_set_cr4`,
`hvm_set_efer` (`xen/arch/x86/hvm/hvm.c`), `guest_rdmsr`, `guest_wrmsr` (`xen/arch/x86/msr.c`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.machine.emulated.processor import cpuid
from xenlive.machine.emulated.processor.decode import MOV_TO_CR, Instruction
from xenlive.machine.emulated.processor.exits import Segment
from xenlive.machine.emulated.processor.faults import GENERAL_PROTECTION, INVALID_OPCODE, Fault
from xenlive.machine.emulated.processor.paging import (
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    is_canonical,
)

if TYPE_CHECKING:
    from xenlive.machine.emulated.processor.cpustate import CpuState
    from xenlive.machine.emulated.processor.msr import Msrs

#: Registers that the processor itself works with.
PROCESSOR_MSRS = {
    0x174: "sysenter_cs",
    0x175: "sysenter_esp",
    0x176: "sysenter_eip",
    0x277: "pat",
    0xC0000080: "efer",
    0xC0000081: "star",
    0xC0000082: "lstar",
    0xC0000083: "cstar",
    0xC0000084: "fmask",
}
_ADDRESSES = frozenset(("sysenter_esp", "sysenter_eip", "lstar", "cstar"))
_EFER_KNOWN = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE
_MEMORY_TYPES = frozenset((0, 1, 4, 5, 6, 7))

_CR0_NW, _CR0_CD = 1 << 29, 1 << 30
_CR4_DE = 1 << 3
_FLAG_IF, _FLAG_RF, _FLAG_VM = 1 << 9, 1 << 16, 1 << 17
_MASK32 = (1 << 32) - 1

_CODE_64, _CODE_32, _DATA = 0x00A09B00, 0x00C09B00, 0x00C09300


def _refuse() -> Fault:
    return Fault(GENERAL_PROTECTION)


def do_cpuid(cpu: CpuState, msrs: Msrs, domid: int, has_apic: bool) -> None:
    """CPUID, which a guest may have made a fault for its user mode."""
    if msrs.cpuid_faults and cpu.cpl:
        raise _refuse()
    leaf, subleaf = cpu.reg("rax") & _MASK32, cpu.reg("rcx") & _MASK32
    values = cpuid.query(leaf, subleaf, domid, cpu.reg("cr4"), has_apic=has_apic)
    for name, value in zip(("rax", "rbx", "rcx", "rdx"), values, strict=True):
        cpu.set_reg(name, value)


def read_processor_msr(cpu: CpuState, number: int) -> int | None:
    """A register that the processor works with; None if `number` is none of those."""
    name = PROCESSOR_MSRS.get(number)
    return None if name is None else cpu.reg(name)


def write_processor_msr(cpu: CpuState, number: int, value: int) -> bool:
    """Sets such a register; False if `number` is none of those. Fault for a value it can't have."""
    name = PROCESSOR_MSRS.get(number)
    if name is None:
        return False
    if name == "efer":
        value = _valid_efer(cpu, value)
    if name in _ADDRESSES and not is_canonical(value):
        raise _refuse()
    if name == "pat" and not _MEMORY_TYPES.issuperset(value.to_bytes(8, "little")):
        raise _refuse()
    cpu.set_reg(name, value)
    return True


def _valid_efer(cpu: CpuState, value: int) -> int:
    old = cpu.reg("efer")
    if value & ~_EFER_KNOWN:
        raise _refuse()
    if (value ^ old) & EFER_LME and cpu.reg("cr0") & CR0_PG:
        raise _refuse()
    return value & ~EFER_LMA | old & EFER_LMA


def check_write_cr(cpu: CpuState, instruction: Instruction) -> None:
    """Fault if a control register may not have the value that `instruction` moves to it."""
    if instruction.opcode != MOV_TO_CR:
        return  # clts and lmsw can't do anything wrong
    value = cpu.general(instruction.register)
    if cpu.code_bits != 64:
        value &= _MASK32
    if instruction.special_register == 0:
        _check_cr0(cpu, value)
    elif instruction.special_register == 4:
        _check_cr4(cpu, value)


def cr8_of(cpu: CpuState, instruction: Instruction) -> int:
    """The task priority that `instruction` moves to CR8; Fault if it can't be one."""
    value = cpu.general(instruction.register)
    if cpu.code_bits != 64:
        value &= _MASK32
    if value >> 4:
        raise _refuse()
    return value


def _check_cr0(cpu: CpuState, value: int) -> None:
    turns_paging_on = value & CR0_PG and not cpu.reg("cr0") & CR0_PG
    if (
        value >> 32
        or (value & CR0_PG and not value & CR0_PE)
        or (value & _CR0_NW and not value & _CR0_CD)
        or (turns_paging_on and cpu.reg("efer") & EFER_LME and not cpu.reg("cr4") & CR4_PAE)
        or (not value & CR0_PG and cpu.code_bits == 64)
    ):
        raise _refuse()


def _check_cr4(cpu: CpuState, value: int) -> None:
    if value & ~cpuid.CR4_VALID or (cpu.in_long_mode and not value & CR4_PAE):
        raise _refuse()


def write_dr(cpu: CpuState, instruction: Instruction) -> None:
    """Sets a debug register. It keeps its value, but nothing breaks there: a debugger has its own.

    The processor would set breakpoints of its own, which it then can't get out of.
    """
    number = instruction.special_register
    if number in (4, 5):
        if cpu.reg("cr4") & _CR4_DE:
            raise Fault(INVALID_OPCODE)
        number += 2
    value = cpu.general(instruction.register)
    if cpu.code_bits != 64:
        value &= _MASK32
    if number >= 6:
        if value >> 32:
            raise _refuse()
        value = value & 0xE00F | 0xFFFF0FF0 if number == 6 else value & 0xFFFF23FF | 0x400
    cpu.set_reg(f"dr{number}", value)


def do_syscall(cpu: CpuState, next_rip: int) -> None:
    """SYSCALL: to the kernel's entry, without a stack."""
    if not cpu.reg("efer") & EFER_SCE or not cpu.reg("cr0") & CR0_PE:
        raise Fault(INVALID_OPCODE)
    star, flags = cpu.reg("star"), cpu.eflags
    cpu.set_reg("rcx", next_rip)
    if cpu.in_long_mode:
        cpu.set_reg("r11", flags)
        entry = cpu.reg("lstar" if cpu.code_bits == 64 else "cstar")
        flags &= ~(cpu.reg("fmask") | _FLAG_RF)
    else:
        entry = star & _MASK32
        flags &= ~(_FLAG_VM | _FLAG_IF | _FLAG_RF)
    _enter_kernel(cpu, star >> 32 & 0xFFFC, flags, entry)


def do_sysenter(cpu: CpuState) -> None:
    """SYSENTER: to the kernel's entry and stack. AMD's processors have it outside of long mode."""
    if cpu.in_long_mode:
        raise Fault(INVALID_OPCODE)
    selector = cpu.reg("sysenter_cs") & 0xFFFC
    if not selector or not cpu.reg("cr0") & CR0_PE:
        raise _refuse()
    cpu.set_reg("rsp", cpu.reg("sysenter_esp") & _MASK32)
    flags = cpu.eflags & ~(_FLAG_VM | _FLAG_IF | _FLAG_RF)
    _enter_kernel(cpu, selector, flags, cpu.reg("sysenter_eip") & _MASK32)


def _enter_kernel(cpu: CpuState, selector: int, flags: int, entry: int) -> None:
    code = _CODE_64 if cpu.in_long_mode else _CODE_32
    cpu.set_reg("eflags", flags)
    cpu.set_segment("cs", Segment(selector, 0, _MASK32, code))
    cpu.set_segment("ss", Segment(selector + 8, 0, _MASK32, _DATA))
    cpu.set_reg("rip", entry)
    cpu.set_privilege(0)
