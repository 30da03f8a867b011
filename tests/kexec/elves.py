"""ELF files for tests, written field by field as `elf.h` has them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_NOTE = 1, 4
SHT_NOTE, SHT_STRTAB = 7, 3

PHDR_SIZE = {32: 32, 64: 56}
SHDR_SIZE = {32: 40, 64: 64}
EHDR_SIZE = {32: 52, 64: 64}


@dataclass
class Load:
    """A PT_LOAD: `data` at `paddr`, `memsz` bytes in memory (None: as many as there is data)."""

    paddr: int
    data: bytes
    memsz: int | None = None
    filesz: int | None = None
    offset: int | None = None


@dataclass
class Elf:
    """An ELF file; `build` gives its bytes. Fields that are None are as they should be."""

    loads: Sequence[Load]
    entry: int | None
    bits: int = 64
    machine: int | None = None
    entry_size: int = 4
    notes_in: str = "program"  # program, section, both, neither
    more_notes: bytes = b""
    ident: dict[int, int] = field(default_factory=dict)
    header: dict[str, int] = field(default_factory=dict)
    notes_size: int | None = None
    pad: int = 0

    def build(self) -> bytes:
        headers = len(self.loads) + (self.notes_in in ("program", "both"))
        at = EHDR_SIZE[self.bits] + headers * PHDR_SIZE[self.bits] + self.pad
        body, programs = b"", []
        for load in self.loads:
            filesz = len(load.data) if load.filesz is None else load.filesz
            memsz = len(load.data) if load.memsz is None else load.memsz
            offset = at + len(body) if load.offset is None else load.offset
            programs.append(self._program(PT_LOAD, offset, load.paddr, filesz, memsz))
            body += load.data
        notes = self.more_notes
        if self.entry is not None:
            notes += note(b"Xen\0", 18, (self.entry).to_bytes(self.entry_size, "little"))
        body += bytes(-(at + len(body)) % 4)
        notes_at = at + len(body)
        size = len(notes) if self.notes_size is None else self.notes_size
        body += notes
        if self.notes_in in ("program", "both"):
            programs.append(self._program(PT_NOTE, notes_at, 0, size, size))
        sections = [self._section(0, 0, 0), self._section(SHT_STRTAB, 0, 0)]
        if self.notes_in in ("section", "both"):
            sections.append(self._section(SHT_NOTE, notes_at, size))
        head = self._header(len(programs), at + len(body), len(sections))
        return head + b"".join(programs) + bytes(self.pad) + body + b"".join(sections)

    def _header(self, n_programs: int, sections_at: int, n_sections: int) -> bytes:
        machine = EM_X86_64 if self.bits == 64 else EM_386
        values = {
            "e_type": 2,
            "e_machine": machine if self.machine is None else self.machine,
            "e_version": 1,
            "e_entry": 0xDEAD,
            "e_phoff": EHDR_SIZE[self.bits],
            "e_shoff": sections_at,
            "e_flags": 0,
            "e_ehsize": EHDR_SIZE[self.bits],
            "e_phentsize": PHDR_SIZE[self.bits],
            "e_phnum": n_programs,
            "e_shentsize": SHDR_SIZE[self.bits],
            "e_shnum": n_sections,
            "e_shstrndx": 1,
        } | self.header
        ident = bytearray(b"\x7fELF" + bytes([self.bits // 32, 1, 1]) + bytes(9))
        for index, byte in self.ident.items():
            ident[index] = byte
        code = "<HHIQQQIHHHHHH" if self.bits == 64 else "<HHIIIIIHHHHHH"
        return bytes(ident) + struct.pack(code, *values.values())

    def _program(self, type_: int, offset: int, paddr: int, filesz: int, memsz: int) -> bytes:
        if self.bits == 64:
            vaddr = 0xFFFFFFFF80000000 + paddr & 0xFFFFFFFFFFFFFFFF
            return struct.pack("<IIQQQQQQ", type_, 7, offset, vaddr, paddr, filesz, memsz, 4)
        return struct.pack("<IIIIIIII", type_, offset, 0xC0000000, paddr, filesz, memsz, 7, 4)

    def _section(self, type_: int, offset: int, size: int) -> bytes:
        code = "<IIQQQQIIQQ" if self.bits == 64 else "<IIIIIIIIII"
        return struct.pack(code, 0, type_, 0, 0, offset, size, 0, 0, 4, 0)


def note(name: bytes, type_: int, descriptor: bytes) -> bytes:
    """A note with its paddings."""
    head = struct.pack("<III", len(name), len(descriptor), type_)
    return head + name + bytes(-len(name) % 4) + descriptor + bytes(-len(descriptor) % 4)


def kernel(
    loads: Sequence[Load] = (), *, entry: int | None = None, bits: int = 64, **more: object
) -> bytes:
    """A small good kernel, unless told otherwise: code at 1 MiB, data and bss after it."""
    loads = loads or [
        Load(0x100000, b"\xf4code" * 700),
        Load(0x101000, b"data" * 300, memsz=0x3210),
    ]
    at = loads[0].paddr if entry is None else entry
    return Elf(loads, at, bits, **more).build()  # type: ignore[arg-type]
