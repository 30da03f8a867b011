"""Exceptions that the emulator gets wrong, and which a processor would raise instead.

The emulator's MMU looks at no segment limit, so what lies beyond one is met as a page fault, if at
all; it knows no stack fault for an address of 64 bits; and it looks at CR0.TS before CR0.EM. Where
an exception came, the instruction that raised it is looked at here, and the right one told.

Specification: AMD64 Architecture Programmer's Manual, volume 2, sections 8.2.8 (#NM), 8.2.13 (#SS),
8.2.14 (#GP), 4.12 (limits); volume 3, tables of opcodes and ModRM.

**Invariants.** Total: any bytes and any state give a vector and an error code. An exception that is
right is left as it is; one that never came cannot be put right here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xenlive.machine.emulated.processor.faults import (
    GENERAL_PROTECTION,
    INVALID_OPCODE,
    NOT_AVAILABLE,
    PAGE_FAULT,
    STACK_FAULT,
)
from xenlive.machine.emulated.processor.paging import is_canonical

if TYPE_CHECKING:
    from xenlive.machine.emulated.processor.cpustate import CpuState
    from xenlive.machine.emulated.processor.exits import Segment

_SEGMENTS = {0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}
_OPERAND_SIZE, _ADDRESS_SIZE, _LOCK, _REPNE, _REP = 0x66, 0x67, 0xF0, 0xF2, 0xF3
_NAMES = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
_RSP, _RBP = 4, 5
_CR0_EM = 1 << 2
_CR4_OSFXSR = 1 << 9
_FETCH = 1 << 4

# Opcodes of one byte with a ModRM byte, beside the arithmetic ones below 0x40; and the others of
# two bytes, without one.
_WITH_MODRM = frozenset(
    (0x63, 0x69, 0x6B, *range(0x80, 0x90), 0xC0, 0xC1, 0xC6, 0xC7, *range(0xD0, 0xD4))
) | frozenset((*range(0xD8, 0xE0), 0xF6, 0xF7, 0xFE, 0xFF))
_WITHOUT_MODRM = frozenset(
    (5, 6, 8, 9, 0xB, *range(0x30, 0x38), 0x77, *range(0x80, 0x90), 0xA0, 0xA1, 0xA2)
) | frozenset((0xA8, 0xA9, 0xAA, *range(0xC8, 0xD0)))
_WITH_ADDRESS = frozenset(range(0xA0, 0xA4))  # mov between rax and an address in the instruction
_SAVE_STATE = 0xAE  # fxsave and its group: of them, only these two are like SSE's
_LDMXCSR, _STMXCSR = 2, 3
# MMX without a prefix: what is left of these two bytes' rows is SSE's.
_MMX = frozenset((*range(0x60, 0x80), *range(0xD1, 0xF0), *range(0xF1, 0xFF)))
_MMX_BUT = frozenset((0x70, 0xD6, 0xD7, 0xDA, 0xDE, 0xE0, 0xE3, 0xE4, 0xE7, 0xEA, 0xEE, 0xF6, 0xF7))
# Rows of SSE's instructions; between them are conditional moves, bit tests and the like.
_SSE = frozenset((*range(0x10, 0x18), *range(0x28, 0x30), *range(0x50, 0x80), 0xC2, 0xC4, 0xC5))
_VECTOR = _SSE | frozenset((0xC6, *range(0xD0, 0xFF)))

_PRESENT, _NO_SYSTEM, _CODE, _EXPAND_DOWN = 1 << 15, 1 << 12, 1 << 11, 1 << 10


class _Operand(NamedTuple):
    """Where an instruction's operand in memory is: in which segment, and at which offset of it."""

    segment: str
    offset: int
    by_stack: bool


def corrected(cpu: CpuState, code: bytes, vector: int, error: int, address: int) -> tuple[int, int]:
    """Vector and error code that a processor would raise for the instruction `code` begins with.

    `vector`, `error` and `address`, which a page fault is at, are what the emulator said.
    """
    if vector == NOT_AVAILABLE:
        return _corrected_not_available(cpu, code), 0
    if vector == GENERAL_PROTECTION and not error and cpu.code_bits == 64:
        operand = _operand(cpu, code)
        if operand is not None and operand.by_stack and not is_canonical(operand.offset):
            return STACK_FAULT, 0
    elif vector == PAGE_FAULT and cpu.code_bits == 32 and not error & _FETCH:
        operand = _operand(cpu, code)
        if operand is not None and not _is_within(cpu.segment(operand.segment), address):
            return (STACK_FAULT if operand.segment == "ss" else GENERAL_PROTECTION), 0
    return vector, error


def may_be_wrong(cpu: CpuState, vector: int) -> bool:
    """Whether `corrected` might say something else: for most exceptions it can't."""
    if vector == PAGE_FAULT:
        return cpu.code_bits == 32
    return vector in (NOT_AVAILABLE, GENERAL_PROTECTION)


def _corrected_not_available(cpu: CpuState, code: bytes) -> int:
    """#UD comes before #NM for MMX and SSE if they are switched off (volume 1, section 4.11)."""
    prefixes, _, at = _prefixes(code, cpu.code_bits)
    if code[at : at + 1] != b"\x0f" or at + 2 >= len(code):
        return NOT_AVAILABLE
    opcode, kind = code[at + 1], code[at + 2] >> 3 & 7
    if opcode == _SAVE_STATE:
        is_mmx, is_vector = False, kind in (_LDMXCSR, _STMXCSR)
    else:
        plain = not prefixes & {_OPERAND_SIZE, _REPNE, _REP}
        is_mmx = plain and opcode in _MMX and opcode not in _MMX_BUT
        is_vector = opcode in _VECTOR
    if not is_vector:
        return NOT_AVAILABLE
    is_off = cpu.reg("cr0") & _CR0_EM or not (is_mmx or cpu.reg("cr4") & _CR4_OSFXSR)
    return INVALID_OPCODE if is_off else NOT_AVAILABLE


def _is_within(segment: Segment, linear: int) -> bool:
    """Whether a segment reaches a linear address at all."""
    if not segment.flags & _PRESENT:
        return False
    offset = linear - segment.base & 0xFFFFFFFF
    if segment.flags & _NO_SYSTEM and segment.flags & (_CODE | _EXPAND_DOWN) == _EXPAND_DOWN:
        return offset > segment.limit
    return offset <= segment.limit


# ---- operands ------------------------------------------------------------------------------------


def _prefixes(code: bytes, bits: int) -> tuple[set[int], int, int]:
    """All legacy prefixes, the REX byte or 0, and where the opcode is."""
    found: set[int] = set()
    at = rex = 0
    while at < len(code):
        byte = code[at]
        if bits == 64 and byte & 0xF0 == 0x40:
            rex = byte
        elif byte in _SEGMENTS or byte in (_OPERAND_SIZE, _ADDRESS_SIZE, _LOCK, _REPNE, _REP):
            if byte in _SEGMENTS:
                found -= set(_SEGMENTS)  # the last one counts
            found.add(byte)
            rex = 0
        else:
            break
        at += 1
    return found, rex, at


def _operand(cpu: CpuState, code: bytes) -> _Operand | None:
    """The operand in memory; None without one, or with one that is not looked at.

    Those are what string and stack instructions imply, and addresses of 16 bits.
    """
    bits = cpu.code_bits
    prefixes, rex, at = _prefixes(code, bits)
    if _ADDRESS_SIZE in prefixes or at >= len(code):
        return None
    named = next((_SEGMENTS[byte] for byte in prefixes if byte in _SEGMENTS), "")
    if bits == 64 and named not in ("fs", "gs"):
        named = ""
    opcode = code[at]
    at += 1
    if opcode in _WITH_ADDRESS:
        offset = int.from_bytes(code[at : at + bits // 8], "little")
        return _Operand(named or "ds", offset, by_stack=False)
    if opcode == 0x0F:
        if at >= len(code) or code[at] in _WITHOUT_MODRM:
            return None
        at += 1
    elif opcode not in _WITH_MODRM and not (opcode < 0x40 and opcode & 7 < 4):
        return None
    return _modrm_operand(cpu, code[at : at + 6].ljust(6, b"\0"), rex, named)


def _modrm_operand(cpu: CpuState, code: bytes, rex: int, named: str) -> _Operand | None:
    mode, base = code[0] >> 6, code[0] & 7
    if mode == 3:
        return None
    at, offset = 1, 0
    if base == _RSP:  # a SIB byte
        scale, index, base = code[1] >> 6, code[1] >> 3 & 7 | (rex & 2) << 2, code[1] & 7
        at = 2
        if index != _RSP:
            offset = cpu.reg(_NAMES[index]) << scale
    has_base = mode != 0 or base != _RBP
    size = 4 if mode == 2 or not has_base else mode
    offset += int.from_bytes(code[at : at + size], "little", signed=True)
    if has_base:
        offset += cpu.reg(_NAMES[base | (rex & 1) << 3])
    by_stack = has_base and base in (_RSP, _RBP) and not rex & 1
    mask = (1 << 64) - 1 if cpu.code_bits == 64 else 0xFFFFFFFF
    default = "ss" if by_stack else "ds"
    return _Operand(named or default, offset & mask, by_stack and named not in ("fs", "gs"))
