"""Kernel images of a chain: ELF files of a few pages, 32 or 64 bits, with bss and entry note.

    ELF header │ PT_LOAD code │ PT_LOAD data + bss │ PT_NOTE "Xen" 18: entry │ code │ data │ note

Nothing in them runs; what counts is where their bytes have to lie after a kexec. Made with `struct`
alone, so that the ELF analysis of `kexec/` reads what it did not write.

**Invariants.** `placed` holds the very bytes that memory must have at each address, bss included.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from random import Random

from xenlive.sim.posted import PAGE

NOTE_ENTRY = 18


@dataclass
class ChainImage:
    """A kernel: its ELF file, and (address, bytes) of all that it occupies."""

    elf: bytes
    placed: list[tuple[int, bytes]]

    @property
    def end(self) -> int:
        """The first address after it."""
        return max(address + len(data) for address, data in self.placed)

    @property
    def block_address(self) -> int:
        """Where its start info goes: at the 8-aligned end."""
        return -(-self.end // 8) * 8

    def touched(self) -> list[tuple[int, int]]:
        """Address and size of its parts."""
        return [(address, len(data)) for address, data in self.placed]


def chain_image(random: Random, address: int, end: int = 0) -> ChainImage:
    """A kernel from `address` on, of a size that the seed chooses; with a last part up to `end`."""
    code = random.randbytes(random.choice((64, 0x800, PAGE, 0x1333)))
    data_at = address + -(-len(code) // 16) * 16 + random.choice((0, 0x20, PAGE))
    data = random.randbytes(random.choice((0, 16, 0x400)))
    bss = random.choice((0, 8, 0x123, 2 * PAGE))
    if end:
        data, bss = data[:16], 8
        data_at = end - len(data) - bss
    elif not data and not bss:
        bss = 24
    placed = [(address, code), (data_at, data + bytes(bss))]
    bits = random.choice((32, 64))
    return ChainImage(_elf(bits, placed, [len(code), len(data)], address + 16), placed)


def _elf(bits: int, placed: list[tuple[int, bytes]], in_file: list[int], entry: int) -> bytes:
    note = struct.pack("<3I4sI", 4, 4, NOTE_ENTRY, b"Xen\0", entry)
    head_size, program_size = (52, 32) if bits == 32 else (64, 56)
    offset = head_size + 3 * program_size
    headers = []
    body = b""
    for (address, data), size in zip(placed, in_file, strict=True):
        headers.append(_program(bits, 1, offset + len(body), address, size, len(data)))
        body += data[:size]
    headers.append(_program(bits, 4, offset + len(body), 0, len(note), len(note)))
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    machine = 3 if bits == 32 else 62
    head = struct.pack(
        "<16sHHI3IIHHHHHH" if bits == 32 else "<16sHHI3QIHHHHHH",
        *(ident, 2, machine, 1, entry, head_size, 0, 0, head_size, program_size, 3, 0, 0, 0),
    )
    return b"".join([head, *headers, body, note])


def _program(
    bits: int, type_: int, offset: int, address: int, in_file: int, in_memory: int
) -> bytes:
    if bits == 32:
        fields = (type_, offset, address, address, in_file, in_memory, 7, 16)
        return struct.pack("<8I", *fields)
    return struct.pack("<2I6Q", type_, 7, offset, address, address, in_file, in_memory, 16)
