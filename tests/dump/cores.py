"""Writers of ELF cores for tests: small, sparse, and independent of what reads them.

Both write the layout that the real tools do: QEMU's `dump-guest-memory` puts its headers first and
the memory at whatever offset follows, Xen's `dump-core` puts pages at a page boundary, the table of
frames behind them and the names of the sections at the very end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096
INVALID = (1 << 64) - 1
MAGIC_PV, MAGIC_HVM = 0xF00FEBED, 0xF00FEBEE
PT_LOAD, PT_NOTE = 1, 4
ET_CORE = 4


@dataclass
class Segment:
    """Memory at `address`: `parts` are (offset, bytes) in it, the rest of `size` is a hole."""

    address: int
    size: int
    parts: list[tuple[int, bytes]] = field(default_factory=list)
    memory_size: int | None = None  # p_memsz, should it differ


def write_elf_core(
    path: Path,
    segments: list[Segment],
    *,
    bits: int = 64,
    order: str = "<",
    type_: int = ET_CORE,
    many: bool = False,
    note: bytes = b"",
) -> Path:
    """A core with a program header for each segment; `many`: their number is in section 0."""
    n_headers = len(segments) + 1
    header_size, entry_size, section_size = (64, 56, 64) if bits == 64 else (52, 32, 40)
    sections_at = header_size + n_headers * entry_size if many else 0
    note_at = header_size + n_headers * entry_size + (section_size if many else 0)
    at = note_at + len(note)
    table = [_program_header(bits, order, PT_NOTE, note_at, 0, len(note), len(note))]
    bodies = []
    for one in segments:
        memory_size = one.size if one.memory_size is None else one.memory_size
        table.append(_program_header(bits, order, PT_LOAD, at, one.address, one.size, memory_size))
        bodies += [(at + offset, data) for offset, data in one.parts]
        at += one.size
    ident = b"\x7fELF" + bytes([bits // 32, 1 if order == "<" else 2, 1]) + bytes(9)
    word = "Q" if bits == 64 else "I"
    counts = (0xFFFF, section_size, 1, 0) if many else (n_headers, 0, 0, 0)
    header = ident + struct.pack(
        f"{order}HHI{word}{word}{word}IHHHHHH",
        *(type_, 62 if bits == 64 else 3, 1, 0, header_size, sections_at, 0),
        *(header_size, entry_size, *counts),
    )
    bodies.append((0, header + b"".join(table)))
    bodies.append((note_at, note))
    if many:  # sh_info of section 0
        before = 44 if bits == 64 else 28
        bodies.append((sections_at, bytes(before) + struct.pack(f"{order}I", n_headers)))
    return write_sparse(path, at, bodies)


def _program_header(
    bits: int, order: str, type_: int, offset: int, address: int, size: int, memory: int
) -> bytes:
    if bits == 64:
        fields = (type_, 0, offset, 0, address, size, memory, 0)
        return struct.pack(f"{order}IIQQQQQQ", *fields)
    return struct.pack(f"{order}IIIIIIII", type_, offset, 0, address, size, memory, 0, 0)


@dataclass
class XenCore:
    """What goes into a core of Xen's: change a field to make it a lie."""

    frames: list[int]
    pages: dict[int, bytes]  # by index in `frames`; the others are holes
    magic: int = MAGIC_HVM
    n_pages: int | None = None  # what the note says
    page_size: int = PAGE
    format_version: int = 1
    header_note: bool = True
    names: tuple[str, ...] = (".shstrtab", ".note.Xen", ".xen_prstatus", ".xen_pages", "")
    extra_names: tuple[str, ...] = ()

    @property
    def table_name(self) -> str:
        """The section that says which frame a page is."""
        return ".xen_pfn" if self.magic == MAGIC_HVM else ".xen_p2m"

    def write(self, path: Path) -> Path:
        """Writes it, with holes where a page has no bytes."""
        names = [*(name or self.table_name for name in self.names), *self.extra_names]
        strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
        notes, registers = self._notes(), bytes(5168)
        at = 64 + (len(names) + 1) * 64
        notes_at, registers_at = at, at + len(notes)
        pages_at = -(-(registers_at + len(registers)) // PAGE) * PAGE
        table, table_at = self._table(), pages_at + len(self.frames) * self.page_size
        strings_at = table_at + len(table)
        places = {
            ".shstrtab": (3, strings_at, len(strings)),
            ".note.Xen": (7, notes_at, len(notes)),
            ".xen_prstatus": (1, registers_at, len(registers)),
            ".xen_pages": (1, pages_at, table_at - pages_at),
            ".xen_pfn": (1, table_at, len(table)),
            ".xen_p2m": (1, table_at, len(table)),
        }
        headers = bytes(64)
        for name in names:
            type_, offset, size = places.get(name, (1, 0, 0))
            name_at = strings.index(b"\0" + name.encode() + b"\0") + 1
            headers += struct.pack("<IIQQQQIIQQ", name_at, type_, 0, 0, offset, size, 0, 0, 0, 0)
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        header = ident + struct.pack(
            "<HHIQQQIHHHHHH", ET_CORE, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, len(names) + 1, 1
        )
        bodies = [(0, header + headers + notes + registers), (table_at, table)]
        bodies += [(pages_at + i * self.page_size, page) for i, page in self.pages.items()]
        bodies.append((strings_at, strings))
        return write_sparse(path, strings_at + len(strings), bodies)

    def _table(self) -> bytes:
        if self.table_name == ".xen_pfn":
            return struct.pack(f"<{len(self.frames)}Q", *self.frames)
        pairs = [(pfn, INVALID if pfn == INVALID else 0x80000 + pfn * 7) for pfn in self.frames]
        return b"".join(struct.pack("<QQ", *pair) for pair in pairs)

    def _notes(self) -> bytes:
        n_pages = len(self.frames) if self.n_pages is None else self.n_pages
        header = struct.pack("<QQQQ", self.magic, 1, n_pages, self.page_size)
        notes = xen_note(0x2000000, b"")
        if self.header_note:
            notes += xen_note(0x2000001, header)
        notes += xen_note(0x2000002, bytes(1276))
        return notes + xen_note(0x2000003, struct.pack("<Q", self.format_version))


def xen_note(type_: int, descriptor: bytes) -> bytes:
    """A note whose owner is Xen."""
    return struct.pack("<III", 4, len(descriptor), type_) + b"Xen\0" + descriptor


def write_sparse(path: Path, size: int, bodies: list[tuple[int, bytes]]) -> Path:
    """A file of `size` bytes with `bodies` at their offsets, and holes between them."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in bodies:
            file.seek(offset)
            file.write(data)
    return path
