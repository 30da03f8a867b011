"""Memory in ELF cores: reading what both kinds have in common, and the kind with segments.

QEMU's `dump-guest-memory` (and a kdump kernel's `/proc/vmcore`) writes a program header for each
run of memory. `p_paddr` is its guest physical address; without paging there is one for each block
of RAM, with paging one for each mapping, so that some memory has several.

    ELF header | program headers | (section 0: sh_info = how many, from 65535 on) | notes | memory

pyelftools knows the layouts; every number it gives is checked here before it is used. Names and
notes are read here too: the library believes their lengths.

**Invariants.** Whatever the library raises for a broken file is one `ImageError`. What a segment
has in memory but not in the file (`p_filesz` < `p_memsz`) was not dumped, so it is not there.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from xenlive.dump.source import Source
from xenlive.dump.space import Extent, Space
from xenlive.errors import ImageError

# More than any machine has blocks of memory; each costs the library some microseconds.
MAX_SEGMENTS = 1 << 18
MAX_SECTIONS = 1024

_PN_XNUM = 0xFFFF  # in e_phnum: the number is in section 0
_NAME_BYTES = 64


class Section(NamedTuple):
    """Where a section's bytes are; `header_offset` is where the file says so."""

    name: str
    offset: int
    size: int
    header_offset: int


class ElfCore:
    """The headers of an ELF core. ImageError (`elf-image`, `elf-broken`, `truncated`) if unfit."""

    def __init__(self, source: Source) -> None:
        self.source = source
        with _library_errors(source):
            self._stream = io.BufferedReader(_Stream(source), 1 << 16)
            self._elf = ELFFile(self._stream)
            header = self._elf.header
            self._segments_at, self._n_segments = header["e_phoff"], header["e_phnum"]
            self._sections_at, self._n_sections = header["e_shoff"], header["e_shnum"]
            self._segment_step, self._section_step = header["e_phentsize"], header["e_shentsize"]
            self._names_index = header["e_shstrndx"]
            kind = header["e_type"]
        if kind != "ET_CORE" or not self._elf.little_endian:
            order = "" if self._elf.little_endian else ", big endian"
            what = "is an ELF file, but no core of a little endian machine"
            raise source.error("elf-image", what, 16, f"{kind}{order}")
        if self._n_segments == _PN_XNUM and self._sections_at:
            self._n_segments = self._section_header(0)["sh_info"]

    def segments(self) -> Iterator[tuple[int, Any]]:
        """(offset of the header, header) of each segment. ImageError if they aren't all there."""
        layout = self._elf.structs.Elf_Phdr
        if not self._n_segments:
            return
        if self._n_segments > MAX_SEGMENTS:
            raise self.source.error(
                "elf-broken", "has too many program headers", 56, self._n_segments
            )
        self._validate_table(self._segments_at, self._n_segments, self._segment_step, layout)
        for index in range(self._n_segments):
            at = self._segments_at + index * self._segment_step
            with _library_errors(self.source, at):
                header = struct_parse(layout, self._stream, at)
            yield at, header

    def sections(self) -> list[Section]:
        """All named sections. ImageError if headers or names aren't all there."""
        if not self._sections_at or not self._n_sections:
            return []
        layout = self._elf.structs.Elf_Shdr
        if self._n_sections > MAX_SECTIONS:
            raise self.source.error("elf-broken", "has too many sections", 60, self._n_sections)
        self._validate_table(self._sections_at, self._n_sections, self._section_step, layout)
        if self._names_index >= self._n_sections:
            return []
        names = self._section_header(self._names_index)["sh_offset"]
        found = []
        for index in range(1, self._n_sections):
            header = self._section_header(index)
            name = self.source.read(names + header["sh_name"], _NAME_BYTES).partition(b"\0")[0]
            at = self._sections_at + index * self._section_step
            text = name.decode("ascii", "replace")
            found.append(Section(text, header["sh_offset"], header["sh_size"], at))
        return found

    def _section_header(self, index: int) -> Any:
        at = self._sections_at + index * self._section_step
        with _library_errors(self.source, at):
            return struct_parse(self._elf.structs.Elf_Shdr, self._stream, at)

    def _validate_table(self, at: int, count: int, step: int, layout: Any) -> None:
        if step < layout.sizeof():
            raise self.source.error("elf-broken", "has headers that are too short", at, step)
        if at + count * step > self.source.size_bytes:
            raise truncated(self.source, at, at + count * step)


def space_of(core: ElfCore) -> Space:
    """The memory in a core's segments. ImageError if there is none, or it can't be true."""
    space = Space(core.source, _extents(core))
    if not space.extents:
        raise core.source.error("no-memory", "is a core without memory in it")
    return space


def _extents(core: ElfCore) -> Iterator[Extent]:
    for at, header in core.segments():
        size, in_memory = header["p_filesz"], header["p_memsz"]
        if header["p_type"] != "PT_LOAD" or not size:
            continue
        if size > in_memory:
            raise core.source.error(
                "elf-broken", "has a segment with more bytes than memory", at, size
            )
        if header["p_offset"] + size > core.source.size_bytes:
            raise truncated(core.source, at, header["p_offset"] + size)
        yield Extent(header["p_paddr"], size, header["p_offset"])


def truncated(source: Source, offset: int, end: int) -> ImageError:
    """What to raise when something at `offset` says that the file goes on to `end`."""
    what = f"ends at {source.size_bytes}, by its headers it goes on to {end}"
    return source.error("truncated", what, offset)


@contextmanager
def _library_errors(source: Source, offset: int = 0) -> Iterator[None]:
    """The library raises what it happens to run into; all of it means that the file is broken."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise source.error("elf-broken", f"is a broken ELF file ({reason})", offset) from None


class _Stream(io.RawIOBase):
    """A `Source` as the library wants it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size_bytes}
        self._at = base[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = self._source.read_into(self._at, memoryview(buffer))
        self._at += count
        return count
