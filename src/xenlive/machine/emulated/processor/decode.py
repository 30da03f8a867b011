"""Just enough of x86 to know what an exit's instruction was: its length, opcode and operand.

The processor says that it met a `mov` to a control register, not which register the value is in; or
that there is no such instruction, not that it was VMMCALL. Those few are decoded here from their
bytes: prefixes, an opcode of one or two bytes, and a ModRM byte that names a register.

**Invariants.** Total: any bytes give an `Instruction`; one that was cut off, or is none of these
few, says so with opcode 0.
"""

from __future__ import annotations

from typing import NamedTuple

MAX_LENGTH = 15

# Opcodes; those of two bytes have 0x0f in front.
INT3, INT, INTO, ICEBP, HLT = 0xCC, 0xCD, 0xCE, 0xF1, 0xF4
GROUP_7, SYSCALL, CLTS = 0x0F01, 0x0F05, 0x0F06
MOV_FROM_CR, MOV_TO_CR, MOV_TO_DR = 0x0F20, 0x0F22, 0x0F23
WRMSR, RDMSR, SYSENTER, CPUID = 0x0F30, 0x0F32, 0x0F34, 0x0FA2
# Group 7 with these ModRM bytes.
VMCALL, VMMCALL = 0xC1, 0xD9

_LEGACY_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_ALONE = frozenset((INT3, INTO, ICEBP, HLT, SYSCALL, CLTS, WRMSR, RDMSR, SYSENTER, CPUID))
_WITH_BYTE = frozenset((INT, GROUP_7, MOV_FROM_CR, MOV_TO_CR, MOV_TO_DR))


class Instruction(NamedTuple):
    """`operand` is what follows the opcode: a vector, or a ModRM byte. `rex` is 0 without one."""

    opcode: int
    length: int
    operand: int = 0
    rex: int = 0

    @property
    def register(self) -> int:
        """The general register that a ModRM byte names (its r/m field)."""
        return self.operand & 7 | (self.rex & 1) << 3

    @property
    def special_register(self) -> int:
        """The control or debug register that a ModRM byte names (its reg field)."""
        return self.operand >> 3 & 7 | (self.rex & 4) << 1

    @property
    def is_hypercall(self) -> bool:
        """Whether it is VMCALL or VMMCALL."""
        return self.opcode == GROUP_7 and self.operand in (VMCALL, VMMCALL)


_NONE = Instruction(0, 0)


def decode(code: bytes, bits: int) -> Instruction:
    """The instruction that `code` begins with, in code of 16, 32 or 64 `bits`."""
    at = rex = 0
    while at < len(code) and (
        code[at] in _LEGACY_PREFIXES or (bits == 64 and code[at] & 0xF0 == 0x40)
    ):
        rex = code[at] if code[at] & 0xF0 == 0x40 else 0  # only right before the opcode it counts
        at += 1
    opcode = code[at] if at < len(code) else 0
    at += 1
    if opcode == 0x0F and at < len(code):
        opcode = 0x0F00 | code[at]
        at += 1
    if opcode in _ALONE:
        return Instruction(opcode, at, 0, rex)
    if opcode in _WITH_BYTE and at < len(code):
        return Instruction(opcode, at + 1, code[at], rex)
    return _NONE
