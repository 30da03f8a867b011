"""Names for addresses: the symbols of the kernels that a guest may be running.

A kernel runs by virtual addresses once it has paging, and by physical ones before: both are looked
up. After kexec another kernel runs in the same memory, so that each image is asked whether the
code at an address is its own.

**Invariants.** A file without symbols, or with nonsense for symbols, has no names; nothing is
raised. Names are printable and of bounded length: they come from a file.
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Names longer than this are cut.
_NAME_MAX = 80
# Of a file with more symbols, sections or segments, the first ones are looked at.
_SYMBOLS_MAX = 500_000
_PARTS_MAX = 4096
# A symbol without a size (assembly) reaches to the next one, and no further than this.
_REACH_MAX = 64 << 10
#: Of a chain of kernels that may have no end, the files of so many, the last ones, are asked.
CHAIN_FILES_MAX = 32
# How much of the code is compared to know whether it is this image's.
_COMPARED = 16
# What a section of instructions is marked with.
_SHF_EXECINSTR = 4
_STT_NOTYPE, _STT_FUNC = 0, 2
_SHN_UNDEF, _SHN_ABS = 0, 0xFFF1
_SYMBOL_64, _SYMBOL_32 = struct.Struct("<IBBHQQ"), struct.Struct("<IIIBBH")


class Segment(NamedTuple):
    """A part of a file in memory: where it is linked, where it is loaded."""

    virtual: int
    physical: int
    size: int
    data: memoryview


class Symbol(NamedTuple):
    """A name for `size` bytes at `address` (0: nobody said how many)."""

    address: int
    size: int
    name: str


class _Entry(NamedTuple):
    """A symbol as the file has it (ELF specification, "Symbol Table")."""

    name_at: int
    info: int
    section: int
    value: int
    size: int


def _entry_64(words: tuple[int, ...]) -> _Entry:
    name_at, info, _, section, value, size = words
    return _Entry(name_at, info, section, value, size)


def _entry_32(words: tuple[int, ...]) -> _Entry:
    name_at, value, size, info, _, section = words
    return _Entry(name_at, info, section, value, size)


def _add(found: dict[int, Symbol], entry: _Entry, names: bytes) -> None:
    """One more, if it names code; at the same address a function's name is the better one."""
    kind = entry.info & 0xF
    if kind not in (_STT_FUNC, _STT_NOTYPE) or entry.section in (_SHN_UNDEF, _SHN_ABS):
        return
    known = found.get(entry.value)
    if known is not None and (kind != _STT_FUNC or known.size):
        return
    name, _, _ = names[entry.name_at : entry.name_at + _NAME_MAX].partition(b"\0")
    if name:
        text = name.decode("utf-8", "replace")
        shown = "".join(c if c.isprintable() else "?" for c in text)
        found[entry.value] = Symbol(entry.value, entry.size, shown)


class Symbols:
    """The symbols of one ELF file; none if it has none."""

    def __init__(self, elf: bytes) -> None:
        self._segments: list[Segment] = []
        self._code: list[range] = []
        found: dict[int, Symbol] = {}
        try:
            self._read(elf, found)
        except Exception:  # the file is somebody's: pyelftools raises much, and names are a help
            found.clear()
        self._symbols = [found[address] for address in sorted(found)]
        self._addresses = [symbol.address for symbol in self._symbols]

    def _read(self, elf: bytes, found: dict[int, Symbol]) -> None:
        from elftools.elf.elffile import ELFFile

        file: Any = ELFFile(io.BytesIO(elf))
        for part in islice(file.iter_segments(), _PARTS_MAX):
            if part["p_type"] == "PT_LOAD":
                data = memoryview(elf)[part["p_offset"] :][: part["p_filesz"]]
                self._segments.append(
                    Segment(part["p_vaddr"], part["p_paddr"], part["p_memsz"], data)
                )
        table, names = None, b""
        for section in islice(file.iter_sections(), _PARTS_MAX):
            if section["sh_flags"] & _SHF_EXECINSTR:
                start = section["sh_addr"]
                self._code.append(range(start, start + section["sh_size"]))
            if section.name == ".symtab" and table is None:
                table, names = section, section.stringtable.data()
        if table is not None:
            layout = _SYMBOL_64 if file.elfclass == 64 else _SYMBOL_32
            content = table.data()
            end = min(len(content) // layout.size, _SYMBOLS_MAX) * layout.size
            for entry in layout.iter_unpack(content[:end]):
                _add(found, _entry_64(entry) if file.elfclass == 64 else _entry_32(entry), names)

    def __len__(self) -> int:
        return len(self._symbols)

    def find(self, address: int, in_code: bool = False) -> tuple[str, int] | None:
        """The name that `address` belongs to and the distance from it; virtual or physical.

        With `in_code` only where the file's sections have instructions: segments of small kernels
        are for all uses at once, and assembly's functions are mere labels.
        """
        linked = self._linked_at(address)
        if linked is None or (in_code and not any(linked in code for code in self._code)):
            return None
        place = bisect_right(self._addresses, linked) - 1
        if place < 0:
            return None
        symbol = self._symbols[place]
        offset = linked - symbol.address
        if offset >= (symbol.size or _REACH_MAX):
            return None
        return symbol.name, offset

    def has_no_content_at(self, address: int) -> bool:
        """Whether the file has zeros there, so that nothing can be compared: a hypercall page."""
        return any(
            len(segment.data) <= address - start < segment.size
            for segment in self._segments
            for start in (segment.virtual, segment.physical)
        )

    def is_at(self, address: int, read: Callable[[int, int], bytes | None]) -> bool:
        """Whether the code at `address` is this file's; `read` gives what is in memory there."""
        for segment in self._segments:
            for start in (segment.virtual, segment.physical):
                offset = address - start
                if 0 <= offset < len(segment.data):
                    wanted = bytes(segment.data[offset : offset + _COMPARED])
                    if read(address, len(wanted)) == wanted:
                        return True
        return False

    def _linked_at(self, address: int) -> int | None:
        """The address at which the file has what is at `address` in memory."""
        for segment in self._segments:
            if 0 <= address - segment.virtual < segment.size:
                return address
        for segment in self._segments:
            if 0 <= address - segment.physical < segment.size:
                return address - segment.physical + segment.virtual
        return None


@lru_cache(maxsize=32)
def symbols_of(elf: bytes) -> Symbols:
    """The symbols of a file, read once."""
    return Symbols(elf)


def name_in_chain(
    chain: Sequence[tuple[int, bytes]],
    files: Sequence[bytes],
    address: int,
    when_ns: int,
    read: Callable[[int, int], bytes | None],
    *,
    in_code: bool = False,
) -> str:
    """`address` in words as it was at `when_ns`; empty if no kernel has a name for it.

    `chain` are the kernels that were entered, each with the time, `files` others that may run. The
    one that is in charge now is asked whether its code is there; of those before nothing is left.
    With `in_code` only instructions have a name, and data none.
    """
    n_entered = bisect_right(chain, when_ns, key=lambda kernel: kernel[0])
    if 0 < n_entered < len(chain):
        found = symbols_of(chain[n_entered - 1][1]).find(address, in_code)
        if found is not None:
            return f"{found[0]}+{found[1]:#x}"
    if chain and symbols_of(chain[-1][1]).has_no_content_at(address):
        found = symbols_of(chain[-1][1]).find(address, in_code)
        return f"{found[0]}+{found[1]:#x}" if found is not None else ""
    images = [symbols_of(elf) for _, elf in islice(reversed(chain), CHAIN_FILES_MAX)]
    images += [symbols_of(elf) for elf in files]
    return _name_address(images, address, read, in_code)


def _name_address(
    images: list[Symbols],
    address: int,
    read: Callable[[int, int], bytes | None],
    in_code: bool,
) -> str:
    """`address` in words, `console_write+0x1c`; empty if no image has a name for it."""
    for image in images:
        found = image.find(address, in_code)
        if found is not None and image.is_at(address, read):
            return f"{found[0]}+{found[1]:#x}"
    return ""
