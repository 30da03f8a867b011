"""What a kernel's ELF file says: what goes where in memory, and where it is entered.

Specification: the checks of Mini-OS' `kexec.c` (posted July 2025) and what they leave open; entry
by Xen's note PHYS32_ENTRY (`public/elfnote.h`), in the program headers first, else in sections.

    code                    what
    elf-truncated           the file ends before a header, a segment or a note does
    elf-magic               it is no ELF file
    elf-class               neither 32 nor 64 bits
    elf-byte-order          not little endian
    elf-machine             neither EM_386 nor EM_X86_64
    elf-headers             program or section headers of another size, or absurdly many
    elf-segment-size        a segment has more bytes in the file than in memory
    elf-segment-address     a segment does not end below 4 GiB, where it is entered without paging
    elf-segments-overlap    two segments want the same memory
    elf-no-segments         nothing is to be loaded
    elf-notes               notes that don't end where they should, or absurdly many
    elf-entry-size          the entry is not 1, 2, 4 or 8 bytes long
    elf-no-entry            no note says where it is entered: no PVH kernel
    elf-entry-outside       the entry is not among the loaded bytes

**Invariants.** Any bytes give a `KernelImage` or one `ImageError`; `offset` of that is in the file.
Segments come in order of address, whatever their order in the file, none is empty, no two overlap.
The file is only read, each number in it once; the work is bounded whatever the numbers say.

Why the physical addresses: the next kernel starts with paging off; where it maps itself is its own
affair.
"""

from __future__ import annotations

from xenlive.abi import elf as abi
from xenlive.errors import ImageError
from xenlive.memory.address import PhysAddr, round_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from xenlive.abi.layout import Layout

MAX_PROGRAM_HEADERS = 128
MAX_SECTION_HEADERS = 4096
MAX_NOTES_BYTES = 0x10000

_ADDRESS_END = 1 << 32
_NOTE_ALIGN = 4
_GZIP_MAGIC = b"\x1f\x8b"
# A Linux kernel as boot loaders get it (Documentation/x86/boot.rst, field `header`).
_BZIMAGE_AT, _BZIMAGE_MAGIC = 0x202, b"HdrS"


class Segment:
    """`file_size` bytes from `offset` of the file go to `address`, zeroes after them.

    All of it is `memory_size` bytes long.
    """

    __slots__ = ("address", "file_size", "memory_size", "offset")

    def __init__(self, address: int, memory_size: int, offset: int, file_size: int) -> None:
        self.address = PhysAddr(address)
        self.memory_size = memory_size
        self.offset = offset
        self.file_size = file_size

    @property
    def end(self) -> PhysAddr:
        """The first address after it."""
        return PhysAddr(self.address + self.memory_size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segment):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        return "Segment({:#x}, {:#x}, {:#x}, {:#x})".format(*self._fields())

    def _fields(self) -> tuple[int, int, int, int]:
        return self.address, self.memory_size, self.offset, self.file_size


class KernelImage:
    """A kernel as its file describes it; addresses are guest physical.

    `end` is the first address after all segments, `size_bytes` the length of the file.
    """

    __slots__ = ("bits", "end", "entry", "machine", "segments", "size_bytes")

    def __init__(
        self, bits: int, machine: int, entry: int, segments: list[Segment], size_bytes: int
    ) -> None:
        self.bits = bits
        self.machine = machine
        self.entry = PhysAddr(entry)
        self.segments = segments
        self.end = max(segment.end for segment in segments)
        self.size_bytes = size_bytes

    def touched(self) -> list[tuple[int, int]]:
        """Address and size in bytes of all memory that it takes, bss too."""
        return [(segment.address, segment.memory_size) for segment in self.segments]

    def __repr__(self) -> str:
        return f"KernelImage(bits={self.bits}, entry={self.entry:#x}, segments={self.segments})"


def analyse_kernel(elf: Buffer) -> KernelImage:
    """What the ELF file `elf` says of the kernel in it. ImageError unless it is one we can load."""
    file = _File(memoryview(elf).cast("B"))
    segments = _segments(file)
    entry = _entry(file)
    if not any(s.address <= entry < s.address + s.file_size for s in segments):
        what = f"the entry {entry:#x} is in no segment's bytes"
        raise ImageError("elf-entry-outside", what, value=hex(entry))
    return KernelImage(file.bits, file.machine, entry, segments, len(file.data))


class _File:
    """An ELF file whose header was found good."""

    __slots__ = ("bits", "data", "header", "machine", "program_headers")

    def __init__(self, data: memoryview) -> None:
        self.data = data
        ident = bytes(data[: abi.EI_NIDENT])
        if ident[: len(abi.ELFMAG)] != abi.ELFMAG:
            is_packed = ident[:2] == _GZIP_MAGIC or data[_BZIMAGE_AT:][:4] == _BZIMAGE_MAGIC
            packed = " but a packed one, unpack it first" if is_packed else ""
            raise ImageError("elf-magic", f"the file is no ELF file{packed}", 0, ident[:4])
        if len(ident) < abi.EI_NIDENT:
            raise ImageError("elf-truncated", "the file ends in its header", len(ident))
        if ident[abi.EI_CLASS] not in (abi.ELFCLASS32, abi.ELFCLASS64):
            what = "neither 32 nor 64 bits"
            raise ImageError("elf-class", what, abi.EI_CLASS, ident[abi.EI_CLASS])
        if ident[abi.EI_DATA] != abi.ELFDATA2LSB:
            raise ImageError("elf-byte-order", "not little endian", abi.EI_DATA, ident[abi.EI_DATA])
        self.bits = 32 if ident[abi.EI_CLASS] == abi.ELFCLASS32 else 64
        layout = abi.ELF32_EHDR if self.bits == 32 else abi.ELF64_EHDR
        if len(data) < layout.size:
            raise ImageError("elf-truncated", "the file ends in its header", len(data))
        self.header: dict[str, int] = layout.decode(data)
        self.machine: int = self.header["e_machine"]
        if self.machine not in (abi.EM_386, abi.EM_X86_64):
            where = layout.offset_of("e_machine")
            raise ImageError("elf-machine", "neither EM_386 nor EM_X86_64", where, self.machine)
        self.program_headers = self._program_headers()

    def _program_headers(self) -> list[dict[str, int]]:
        layout = abi.ELF32_PHDR if self.bits == 32 else abi.ELF64_PHDR
        return list(self._table(layout, "e_ph", MAX_PROGRAM_HEADERS))

    def section_headers(self) -> list[dict[str, int]]:
        """All section headers; none is an answer."""
        layout = abi.ELF32_SHDR if self.bits == 32 else abi.ELF64_SHDR
        return list(self._table(layout, "e_sh", MAX_SECTION_HEADERS))

    def _table(self, layout: Layout, prefix: str, most: int) -> Iterator[dict[str, int]]:
        """The headers that `e_phoff`, `e_phentsize` and `e_phnum`, or their e_sh kin, tell of."""
        start, count = self.header[f"{prefix}off"], self.header[f"{prefix}num"]
        if start == 0 or count == 0:
            return
        size = self.header[f"{prefix}entsize"]
        if size != layout.size or count > most:
            what = f"{count} headers of {size} bytes, at most {most} of {layout.size} are read"
            raise ImageError("elf-headers", what)
        self.validate_range(start, count * size, "headers")
        for index in range(count):
            yield layout.decode(self.data, start + index * size)

    def validate_range(self, offset: int, size: int, what: str) -> None:
        """Refuses what is not all in the file."""
        if offset + size > len(self.data):
            what = f"{what} of {size} bytes in a file of {len(self.data)}"
            raise ImageError("elf-truncated", what, offset)


def _segments(file: _File) -> list[Segment]:
    segments = []
    for header in file.program_headers:
        if header["p_type"] != abi.PT_LOAD:
            continue
        address, offset = header["p_paddr"], header["p_offset"]
        file_size, memory_size = header["p_filesz"], header["p_memsz"]
        if file_size > memory_size:
            what = f"a segment of {file_size} bytes for {memory_size} bytes of memory"
            raise ImageError("elf-segment-size", what, offset)
        if file_size:
            file.validate_range(offset, file_size, "a segment")
        if memory_size == 0:
            continue
        if address + memory_size > _ADDRESS_END:
            what = f"a segment of {memory_size} bytes at {address:#x} does not end below 4 GiB"
            raise ImageError("elf-segment-address", what, offset)
        segments.append(Segment(address, memory_size, offset, file_size))
    if not segments:
        raise ImageError("elf-no-segments", "the file has nothing to load")
    segments.sort(key=lambda segment: segment.address)
    end = PhysAddr(0)
    for segment in segments:
        if segment.address < end:
            what = f"the segment at {segment.address:#x} begins before another ends, at {end:#x}"
            raise ImageError("elf-segments-overlap", what, segment.offset)
        end = segment.end
    return segments


def _entry(file: _File) -> int:
    """The entry that the first note about it names: program headers first, else sections."""
    programs = file.program_headers
    areas = [(h["p_offset"], h["p_filesz"]) for h in programs if h["p_type"] == abi.PT_NOTE]
    left = MAX_NOTES_BYTES
    entry, left = _entry_in(file, areas, left)
    if entry is None:
        sections = file.section_headers()
        areas = [(h["sh_offset"], h["sh_size"]) for h in sections if h["sh_type"] == abi.SHT_NOTE]
        entry, _ = _entry_in(file, areas, left)
    if entry is None:
        raise ImageError("elf-no-entry", "no note PHYS32_ENTRY of Xen's: no PVH kernel")
    return entry


def _entry_in(file: _File, areas: list[tuple[int, int]], left: int) -> tuple[int | None, int]:
    """The entry from the first of the `areas` that has one, and how much of `left` is left."""
    for offset, size in areas:
        if size > left:
            raise ImageError("elf-notes", f"more than {MAX_NOTES_BYTES} bytes of notes", offset)
        left -= size
        file.validate_range(offset, size, "notes")
        for name, type_, descriptor, where in _notes(file.data, offset, offset + size):
            if name == abi.XEN_NOTE_NAME and type_ == abi.XEN_ELFNOTE_PHYS32_ENTRY:
                if len(descriptor) not in (1, 2, 4, 8):
                    what = "an entry has 1, 2, 4 or 8 bytes"
                    raise ImageError("elf-entry-size", what, where, len(descriptor))
                return int.from_bytes(descriptor, "little"), left
    return None, left


def _notes(data: memoryview, start: int, end: int) -> Iterator[tuple[bytes, int, bytes, int]]:
    """Name, type, descriptor and place of each note; less than a header at the end is padding."""
    while end - start >= abi.ELF_NHDR.size:
        name_size, descriptor_size, type_ = abi.ELF_NHDR.unpack(data, start)
        name_at = start + abi.ELF_NHDR.size
        descriptor_at = name_at + round_up(name_size, _NOTE_ALIGN)
        if descriptor_at + descriptor_size > end:
            what = f"a name of {name_size} and a descriptor of {descriptor_size} bytes"
            raise ImageError("elf-notes", what, start)
        name = bytes(data[name_at : name_at + name_size])
        yield name, type_, bytes(data[descriptor_at : descriptor_at + descriptor_size]), start
        start = descriptor_at + round_up(descriptor_size, _NOTE_ALIGN)
