"""Memory in the ELF cores of Xen's `dump-core` (`xl dump-core`).

Specification: Xen `docs/misc/dump-core-format.txt`, and what `tools/libs/guest/xg_core.c` writes.
There are no program headers for memory, only sections:

    .note.Xen     notes "Xen": header (magic, vcpus, pages, page size), versions
    .xen_pages    the pages, one after the other
    .xen_pfn      u64 frame of each page                          translated guests: HVM, PVH
    .xen_p2m      u64 pfn, u64 gmfn of each page                  PV guests

A frame of all ones means that the page behind it is padding. For a PV guest the addresses are
those that the guest thinks in, by pfn: they are what its records and tables speak of.

**Invariants.** The tables' sizes hold for the file and for the header's number of pages before
anything is read. Frames may come in any order, but none twice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from xenlive.dump.elfcore import ElfCore, Section, truncated
from xenlive.dump.source import Source
from xenlive.dump.space import Extent, Space
from xenlive.dump.words import count

NOTE_HEADER = 0x2000001  # XEN_ELFNOTE_DUMPCORE_HEADER
NOTE_FORMAT_VERSION = 0x2000003  # XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION
MAGIC_PV = 0xF00FEBED  # XC_CORE_MAGIC
MAGIC_HVM = 0xF00FEBEE  # XC_CORE_MAGIC_HVM
INVALID_FRAME = (1 << 64) - 1

_NOTE = struct.Struct("<III")
_NOTE_OWNER = b"Xen\0"
_HEADER = struct.Struct("<QQQQ")
_VERSION = struct.Struct("<Q")
_NOTES_BYTES = 1 << 16
_PAGE_SIZES = tuple(1 << shift for shift in range(12, 17))
_WORD_BYTES = 8
_ENTRIES_AT_ONCE = 1 << 13


def is_one(core: ElfCore) -> bool:
    """Whether a core is one of Xen's: it has the pages, or at least the notes."""
    return any(section.name in (".xen_pages", ".note.Xen") for section in core.sections())


def space_of(core: ElfCore) -> Space:
    """The memory in a Xen core. ImageError if it has none, or says what can't be true."""
    source, sections = core.source, _sections(core)
    magic, n_pages, page_size = _header(source, sections[".note.Xen"])
    pages = sections[".xen_pages"]
    table, words = _frame_table(source, sections, magic)
    for section, size in ((pages, n_pages * page_size), (table, n_pages * words * _WORD_BYTES)):
        if size > section.size:
            what = f"has a section {section.name} too short for {count(n_pages, 'page')}"
            raise source.error("xen-core-size", what, section.header_offset, section.size)
        if section.offset + size > source.size_bytes:
            raise truncated(source, section.header_offset, section.offset + size)
    frames = _frames(source, table.offset, n_pages, words)
    return Space(source, _extents(frames, pages.offset, page_size))


def _sections(core: ElfCore) -> dict[str, Section]:
    found: dict[str, Section] = {}
    for section in core.sections():
        if section.name in found and section.name.startswith((".xen_", ".note.Xen")):
            what = f"has the section {section.name} twice"
            raise core.source.error("xen-core-section", what, section.header_offset)
        found[section.name] = section
    for name in (".note.Xen", ".xen_pages"):
        if name not in found:
            raise core.source.error("xen-core-section", f"has no section {name}")
    return found


def _frame_table(source: Source, sections: dict[str, Section], magic: int) -> tuple[Section, int]:
    """The section that says which frame each page is, and how many words an entry has."""
    names = [(".xen_pfn", 1), (".xen_p2m", 2)]
    for name, words in names if magic == MAGIC_HVM else reversed(names):
        if name in sections:
            return sections[name], words
    raise source.error("xen-core-section", "has no section .xen_pfn and no .xen_p2m")


def _header(source: Source, section: Section) -> tuple[int, int, int]:
    """(magic, pages, page size) by the notes."""
    header = None
    for type_, offset, data in _notes(source, section):
        if type_ == NOTE_HEADER and len(data) >= _HEADER.size and header is None:
            header = offset, _HEADER.unpack_from(data)
        if type_ == NOTE_FORMAT_VERSION and len(data) >= _VERSION.size:
            major = _VERSION.unpack_from(data)[0] >> 32
            if major:
                raise source.error("xen-core-version", "is not of format version 0", offset, major)
    if header is None:
        raise source.error("xen-core-header", "has no header among Xen's notes", section.offset)
    offset, (magic, _, n_pages, page_size) = header
    if magic not in (MAGIC_PV, MAGIC_HVM):
        raise source.error("xen-core-header", "has no magic number of Xen's", offset, magic)
    if page_size not in _PAGE_SIZES:
        raise source.error("xen-core-header", "has an odd page size", offset + 24, page_size)
    return magic, n_pages, page_size


def _notes(source: Source, section: Section) -> Iterator[tuple[int, int, bytes]]:
    """(type, offset in the file, descriptor) of the notes that are Xen's."""
    data = source.read(section.offset, min(section.size, _NOTES_BYTES))
    at = 0
    while at + _NOTE.size <= len(data):
        owner_size, size, type_ = _NOTE.unpack_from(data, at)
        at += _NOTE.size
        owner = data[at : at + owner_size]
        at += -(-owner_size // 4) * 4
        if owner == _NOTE_OWNER:
            yield type_, section.offset + at, data[at : at + size]
        at += -(-size // 4) * 4


def _frames(source: Source, offset: int, count: int, words: int) -> Iterator[list[int]]:
    """The pages' frames, a list of some at a time."""
    entry_bytes = words * _WORD_BYTES
    for first in range(0, count, _ENTRIES_AT_ONCE):
        size = min(_ENTRIES_AT_ONCE, count - first) * entry_bytes
        data = source.read(offset + first * entry_bytes, size)
        if len(data) < size:
            raise truncated(source, offset, offset + first * entry_bytes + size)
        yield memoryview(data).cast("Q")[::words].tolist()


def _extents(chunks: Iterator[list[int]], pages_at: int, page_size: int) -> Iterator[Extent]:
    """An extent for each run of frames that count up."""
    first = INVALID_FRAME
    count = start = index = 0
    for frames in chunks:
        if first != INVALID_FRAME and frames == list(
            range(first + count, first + count + len(frames))
        ):
            count += len(frames)  # what most of a dump is
            index += len(frames)
            continue
        for frame in frames:
            if frame != first + count or first == INVALID_FRAME:
                if first != INVALID_FRAME:
                    yield Extent(first * page_size, count * page_size, pages_at + start * page_size)
                first, count, start = frame, 0, index
            count += 1
            index += 1
    if first != INVALID_FRAME:
        yield Extent(first * page_size, count * page_size, pages_at + start * page_size)
