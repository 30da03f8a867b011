"""Pieces of machine code that mean harm, for code of 16, 32 and 64 bits; mostly ring 0's.

Each piece is bytes alone: no assembler is needed. In code of 16 bits a prefix makes operands 32
bits wide where that matters.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from hostile.bytewise import EDGES_32, EDGES_64

_ADDRESSES = (
    *(0, 0x1000, 0x2000, 0x2FFC, 0x3000, 0x10000, 0x3FFFFC, 0x3FFFFF, 0x400000),
    *(0xFC000000, 0xFEE00000, 0xFEE000F0, 0xFEE00300, 0xFEE00320, 0xFEE00380, 0xFEFFF000),
    *(0x7FFFFFFE, 0xFFFFFFF8, 0xFFFFFFFF),
)
_MSRS = (
    *(0x10, 0x1B, 0x174, 0x175, 0x176, 0x277, 0x40000000, 0x6E0, 0x1A0, 0x140, 0x1D9),
    *range(0xC0000080, 0xC0000085),
    *range(0xC0000100, 0xC0000104),
    *(0x802, 0x808, 0x80B, 0x80D, 0x80F, 0x828, 0x830, 0x832, 0x835, 0x838, 0x83E, 0x83F),
)
_HYPERCALLS = (0, 12, 15, 17, 20, 23, 24, 29, 32, 34, 55)
_FLAGS = (1 << 8, 1 << 9, 3 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 0x3F7FD7)
_SELECTORS = (0, 3, 8, 0x10, 0x18, 0x20, 0x2B, 0x33, 0x38, 0x40, 0x50, 0x60, 0x68, 4, 0xFFF8)


def _set(register: int, value: int, bits: int) -> bytes:
    """`mov $value, register`; the full 64 bits if it takes them."""
    if bits == 64 and value >> 32:
        return bytes([0x48, 0xB8 + register]) + (value % (1 << 64)).to_bytes(8, "little")
    prefix = b"\x66" if bits == 16 else b""
    return prefix + bytes([0xB8 + register]) + (value & 0xFFFFFFFF).to_bytes(4, "little")


def _value(rng: Random) -> int:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(_ADDRESSES)
    if kind == 1:
        return 1 << rng.randrange(64)
    return rng.choice(EDGES_64) if kind == 2 else rng.getrandbits(64)


def _noise(rng: Random, bits: int) -> bytes:
    return rng.randbytes(rng.choice((2, 8, 24)))


def _two_bytes(rng: Random, bits: int) -> bytes:
    return b"\x0f" + rng.randbytes(rng.choice((2, 6)))


def _registers(rng: Random, bits: int) -> bytes:
    return b"".join(_set(n, _value(rng), bits) for n in range(8) if n != 4 or rng.random() < 0.2)


def _write_cr(rng: Random, bits: int) -> bytes:
    number = rng.choice((0, 0, 2, 3, 3, 4, 4, 8, rng.randrange(8)))
    good = {
        0: (0x11, 0x80000011, 0x80010033, 0x10),
        3: (0x10000, 0x3FF000, 0x10008),
        4: (0x20, 0x30),
    }
    value = rng.choice(good.get(number, (0,))) ^ (1 << rng.randrange(32)) * (rng.random() < 0.5)
    code = b"\x44\x0f\x22\xc0" if number == 8 else bytes([0x0F, 0x22, 0xC0 + 8 * number])
    return _set(0, value if rng.random() < 0.8 else _value(rng), bits) + code


def _write_dr(rng: Random, bits: int) -> bytes:
    return _set(0, _value(rng), bits) + bytes([0x0F, 0x23, 0xC0 + 8 * rng.randrange(8)])


def _msr(rng: Random, bits: int) -> bytes:
    number = rng.choice(_MSRS) if rng.random() < 0.9 else rng.choice(EDGES_32)
    low, high = (_value(rng) & 0xFFFFFFFF for _ in range(2))
    if rng.random() < 0.6:
        high = 0
    if number == 0x1B and rng.random() < 0.7:
        low = 0xFEE00000 | rng.choice((0x900, 0xD00, 0x100, 0))
    code = bytes([0x0F, rng.choice((0x30, 0x30, 0x32))])
    return _set(1, number, bits) + _set(0, low, bits) + _set(2, high, bits) + code


def _apic(rng: Random, bits: int) -> bytes:
    """Stores to the local APIC's page: enabled, a timer that ticks at once, IPIs to itself."""
    offset = rng.choice(
        (0xB0, 0x80, 0xD0, 0xF0, 0x300, 0x310, 0x320, 0x380, 0x3E0, rng.randrange(4096))
    )
    value = rng.choice((0, 1, 11, 0x1FF, 0x20030, 0x40030, 0x44430, 0x40500, _value(rng)))
    store = b"\x67\x66\x89\x03" if bits == 16 else b"\x89\x03"
    on = _set(3, 0xFEE000F0, bits) + _set(0, 0x1FF, bits) + store
    return on + _set(3, 0xFEE00000 + offset, bits) + _set(0, value, bits) + store


def _load_table(rng: Random, bits: int) -> bytes:
    """LGDT or LIDT of what is pushed: a table in a hole, one that wraps, one without a limit."""
    base, limit = _value(rng), rng.choice((0, 7, 0x67, 0xFFF, 0xFFFF))
    kind = rng.choice((0x14, 0x1C))
    address = _set(3, 0x8000, bits)
    store = b"\x67\x66\x89\x03" if bits == 16 else b"\x48\x89\x03" if bits == 64 else b"\x89\x03"
    low = _set(0, (limit | base << 16) & (1 << 64) - 1, bits) + store
    high = _set(3, 0x8004, bits) + _set(0, base >> 16 & 0xFFFFFFFF, bits) + store
    load = bytes([0x0F, 0x01, kind, 0x25, 0, 0x80, 0, 0])
    if bits != 64:
        load = (b"\x67\x66" if bits == 16 else b"") + bytes([0x0F, 0x01, kind + 1, 0, 0x80, 0, 0])
    return address + low + (high if bits != 64 else b"") + load


def _load_segment(rng: Random, bits: int) -> bytes:
    selector = rng.choice(_SELECTORS)
    code = rng.choice((b"\x8e\xd8", b"\x8e\xd0", b"\x8e\xc0", b"\x8e\xe0", b"\x8e\xe8"))
    if rng.random() < 0.4:
        code = rng.choice((b"\x0f\x00\xd8", b"\x0f\x00\xd0"))  # ltr, lldt
    return _set(0, selector, bits) + code


def _far(rng: Random, bits: int) -> bytes:
    """A far return, a far jump, IRET: to any selector with any flags."""
    selector = rng.choice(_SELECTORS)
    where = rng.choice((0xF0000, 0x4010, _value(rng)))
    if bits == 32 and rng.random() < 0.4:
        opcode = rng.choice((b"\xea", b"\x9a"))
        return opcode + (where & 0xFFFFFFFF).to_bytes(4, "little") + selector.to_bytes(2, "little")
    push = b"\x66\x50" if bits == 16 else b"\x50"
    values = [rng.choice(_FLAGS) | 2, selector, where]
    if rng.random() < 0.5:
        values = [rng.choice(_SELECTORS), 0x8800, *values]
    last = rng.choice((b"\xcf", b"\xcf", b"\xcb"))
    if last == b"\xcf" and bits != 32:
        last = b"\x48\xcf" if bits == 64 else b"\x66\xcf"
    return b"".join(_set(0, value, bits) + push for value in values) + last


def _flags(rng: Random, bits: int) -> bytes:
    """POPF: single steps, nested tasks, virtual 8086."""
    push, pop = (b"\x66\x50", b"\x66\x9d") if bits == 16 else (b"\x50", b"\x9d")
    return _set(0, rng.choice(_FLAGS), bits) + push + pop


def _interrupt(rng: Random, bits: int) -> bytes:
    return rng.choice((b"\xcc", b"\xce", b"\xf1", bytes([0xCD, rng.randrange(256)]), b"\x0f\x0b"))


def _hypercall(rng: Random, bits: int) -> bytes:
    names = (3, 1, 2, 6, 7) if bits != 64 else (7, 6, 2)
    args = b"".join(_set(n, rng.choice((rng.randrange(16), _value(rng))), bits) for n in names)
    return args + _set(0, rng.choice(_HYPERCALLS), bits) + b"\x0f\x01\xd9"


def _string(rng: Random, bits: int) -> bytes:
    """`rep` of gigabytes, over itself, over the tables, to nowhere, backwards."""
    count, source, place = rng.choice((16, 4096, 1 << 20, 1 << 31, _value(rng))), _value(rng), 0
    place = rng.choice((0x1000, 0x3FF000, 0xFEE00000, _value(rng)))
    wide = b"\x67\x66" if bits == 16 else b"\x48" * (bits == 64 and rng.random() < 0.5)
    body = (
        bytes([rng.choice((0xF3, 0xF2))])
        + wide
        + bytes([rng.choice((0xA4, 0xA5, 0xAA, 0xAB, 0xA6, 0xAE, 0x6C, 0x6E))])
    )
    step = rng.choice((b"\xfc", b"\xfc", b"\xfd"))
    return _set(1, count, bits) + _set(6, source, bits) + _set(7, place, bits) + step + body


def _store(rng: Random, bits: int) -> bytes:
    """A store or load of a register, anywhere: at code and tables too."""
    prefix = b"\x67\x66" if bits == 16 else b""
    body = rng.choice(
        (
            b"\x89\x03",
            b"\x8b\x03",
            b"\xff\x03",
            b"\xf0\x0f\xb1\x0b",
            b"\x0f\xae\x03",
            b"\xff\x33",
            b"\xff\x13",
        )
    )
    return _set(3, _value(rng), bits) + _set(0, _value(rng), bits) + prefix + body


def _rewrite(rng: Random, bits: int) -> bytes:
    """Stores over the code that comes next: where it is, a call to the next instruction says."""
    ahead, value = rng.randrange(9, 40), rng.getrandbits(32)
    if bits == 16:
        return bytes([0xE8, 0, 0, 0x5B, 0x2E, 0xC7, 0x47, ahead]) + (value >> 16).to_bytes(2, "big")
    return bytes([0xE8, 0, 0, 0, 0, 0x5B, 0xC7, 0x43, ahead]) + value.to_bytes(4, "little")


def _again(rng: Random, bits: int) -> bytes:
    """Loops: to itself, back a little, by CX, after a halt or a read of the counter."""
    body = rng.choice(
        (b"", b"\xf4", b"\xfb\xf4", b"\x0f\x31", b"\x0f\xa2", b"\x0f\x0b", b"\x90", b"\x0f\x01\xd9")
    )
    if rng.random() < 0.3:
        return body + bytes([0xE2, (256 - len(body) - 2) % 256])
    return body + bytes([0xEB, (256 - len(body) - 2 - rng.choice((0, 0, rng.randrange(20)))) % 256])


def _one(rng: Random, bits: int) -> bytes:
    return rng.choice(
        (
            b"\xf4",
            b"\xfb\xf4",
            b"\xfa",
            b"\xfb",
            b"\x0f\x06",
            b"\x0f\x09",
            b"\x0f\x05",
            b"\x0f\x34",
            b"\x0f\x07",
            b"\x0f\x35",
            b"\x0f\xa2",
            b"\x0f\x01\xf8",
            b"\x0f\x01\xf9",
            b"\x0f\xaa",
            b"\x0f\x01\xd8",
            b"\x0f\x01\xda",
            b"\x0f\x01\xdc",
            b"\x0f\x01\xdd",
            b"\x0f\x01\xc8",
            b"\x0f\x01\x3b",
            b"\x0f\x01\xf0",
            b"\x9b\xdd\x33",
            b"\x0f\x77",
        )
    )


#: All kinds of pieces: each makes one, for code of so many bits.
PIECES: tuple[Callable[[Random, int], bytes], ...] = (
    *(_noise, _two_bytes, _registers, _write_cr, _write_dr, _msr, _apic, _load_table),
    *(_load_segment, _far, _flags, _interrupt, _hypercall, _string, _store, _rewrite, _again, _one),
)


def pieces(rng: Random, bits: int) -> bytes:
    """One piece of any kind."""
    return rng.choice(PIECES)(rng, bits)
