"""A kernel's side of the posted format, and nothing more: what the others of a chain know.

This is the posted behaviour where it is right, in the plainest form: a module is accepted by three
checks, records go behind the last one, pages are the first free run, nothing is ever deleted or
moved. Start infos too are read and written here without the product's code, so that two readers of
the format meet in each chain. It uses nothing of `kexec/` or `abi/`.

**Invariants.** An operation that can't be done gives None and changes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from xenlive.memory.address import PhysAddr
from xenlive.memory.guest import GuestMemory

PAGE = 4096
MAGIC = 0x336EC578
HEAD = struct.Struct("<8sHHH")
ENTRY = struct.Struct("<HBB")
START_INFO = struct.Struct("<4I4Q2I")
MODULE = struct.Struct("<4Q")
RANGE = struct.Struct("<QQII")
RAM = 1
SOFT_RESERVED = 0xEFFFFFFF
BELOW = (1 << 32) - PAGE

#: First address, size and type of a range of the memory map.
Range = tuple[int, int, int]


class PostedModule:
    """A module as such a kernel knows it; `create` or `attach` makes one."""

    def __init__(self, memory: GuestMemory, address: int, n_pages: int) -> None:
        self.address = address
        self.n_pages = n_pages
        self._memory = memory
        self.admin = address + n_pages * PAGE

    @classmethod
    def create(cls, memory: GuestMemory, address: int, module_pages: int) -> PostedModule:
        """A fresh one of `module_pages`, the last page included."""
        module = cls(memory, address, module_pages - 1)
        n = module.n_pages
        page = HEAD.pack(b"KexecMem", n, 16, HEAD.size + n + n % 2) + b"\xff" * n
        memory.write(PhysAddr(module.admin), page.ljust(PAGE, b"\0"))
        return module

    @classmethod
    def attach(cls, memory: GuestMemory, address: int, size: int) -> PostedModule | None:
        """The one that lies there, if size, eye catcher and number of pages say so."""
        if size % PAGE or size < PAGE or not memory.contains(PhysAddr(address), size):
            return None
        eye, n_pages, _, _ = HEAD.unpack(memory.read(PhysAddr(address + size - PAGE), HEAD.size))
        if eye != b"KexecMem" or n_pages != size // PAGE - 1:
            return None
        return cls(memory, address, n_pages)

    @property
    def size(self) -> int:
        """Bytes of the whole module."""
        return (self.n_pages + 1) * PAGE

    def entries(self) -> list[tuple[int, int, int]]:
        """Offset, type and size of each entry of the table."""
        _, _, n_records, recs_off = HEAD.unpack(self._read(0, HEAD.size))
        return list(ENTRY.iter_unpack(self._read(recs_off, n_records * ENTRY.size)))

    def find(self, type_: int, start: int = 0) -> int | None:
        """The first record of a type from `start` on."""
        for index, (_, found, _) in enumerate(self.entries()):
            if index >= start and found == type_:
                return index
        return None

    def add(self, type_: int, data: bytes) -> int | None:
        """A new record behind all others; its index."""
        entries = self.entries()
        index = self.find(0)
        recs_off = HEAD.unpack(self._read(0, HEAD.size))[3]
        ends = [offset + size for offset, type_, size in entries if type_]
        end = max([recs_off + len(entries) * ENTRY.size, *ends])
        if index is None or end + len(data) > PAGE:
            return None
        self._write(end, data)
        self._write(recs_off + index * ENTRY.size, ENTRY.pack(end, type_, len(data)))
        return index

    def read(self, index: int) -> bytes:
        """A record's data."""
        offset, _, size = self.entries()[index]
        return self._read(offset, size)

    def update(self, index: int, data: bytes) -> None:
        """Overwrites a record's data, which has the same size."""
        self._write(self.entries()[index][0], data)

    def owners(self) -> bytes:
        """The owner of each page, 255 for nobody."""
        return self._read(HEAD.size, self.n_pages)

    def alloc(self, index: int, n: int) -> int | None:
        """Gives a record the first `n` free pages in a row; the first of them."""
        first = self.owners().find(b"\xff" * n)
        if first < 0:
            return None
        self._write(HEAD.size + first, bytes([index]) * n)
        return first

    def free(self, first: int, n: int) -> None:
        """Takes pages from their owner."""
        self._write(HEAD.size + first, b"\xff" * n)

    def _read(self, offset: int, size: int) -> bytes:
        return self._memory.read(PhysAddr(self.admin + offset), size)

    def _write(self, offset: int, data: bytes) -> None:
        self._memory.write(PhysAddr(self.admin + offset), data)


@dataclass
class Block:
    """A start info: ranges of the memory map, modules as (address, size), command line."""

    memmap: list[Range]
    modules: list[tuple[int, int]]
    cmdline: bytes
    #: Address and size of each of its parts.
    parts: list[tuple[int, int]]


def build_block(
    address: int, memmap: Iterable[Range], modules: list[tuple[int, int]], cmdline: bytes
) -> bytes:
    """The bytes of a start info that lies at `address`."""
    ranges = [range_ for range_ in memmap if range_[2] != SOFT_RESERVED]
    memmap_at = address + START_INFO.size
    modlist_at = memmap_at + len(ranges) * RANGE.size
    cmdline_at = modlist_at + len(modules) * MODULE.size
    n = len(modules)
    head = START_INFO.pack(
        *(MAGIC, 1, 0, n, modlist_at if n else 0, cmdline_at, 0, memmap_at, len(ranges), 0)
    )
    parts = [head, *(RANGE.pack(*range_, 0) for range_ in ranges)]
    parts += [MODULE.pack(start, size, 0, 0) for start, size in modules]
    return b"".join([*parts, cmdline, b"\0"])


def read_block(memory: GuestMemory, address: int) -> Block:
    """The start info at `address`; ValueError if there is none."""
    head = START_INFO.unpack(memory.read(PhysAddr(address), START_INFO.size))
    magic, version, _, n_modules, modlist_at, cmdline_at, _, memmap_at, n_ranges, _ = head
    if magic != MAGIC or version != 1:
        raise ValueError(f"no start info at {address:#x}")
    ranges = memory.read(PhysAddr(memmap_at), n_ranges * RANGE.size)
    modules = memory.read(PhysAddr(modlist_at), n_modules * MODULE.size)
    cmdline = bytearray()
    while not cmdline.endswith(b"\0"):
        cmdline += memory.read(PhysAddr(cmdline_at + len(cmdline)), 1)
    parts = [(address, START_INFO.size), (memmap_at, len(ranges)), (cmdline_at, len(cmdline))]
    return Block(
        [(start, size, type_) for start, size, type_, _ in RANGE.iter_unpack(ranges)],
        [(start, size) for start, size, _, _ in MODULE.iter_unpack(modules)],
        bytes(cmdline[:-1]),
        [*parts, (modlist_at, len(modules))] if modules else parts,
    )


def place(memmap: Iterable[Range], module_pages: int, taken: list[tuple[int, int]]) -> int | None:
    """Where a new module goes, page by page from the top: the highest free run that is RAM."""
    busy = {
        page for start, size in taken for page in range(start // PAGE, -(-(start + size) // PAGE))
    }
    run = 0
    last = -1
    for start, size, type_ in sorted(memmap, reverse=True):
        if type_ != RAM:
            continue
        end = min(start + size, BELOW) // PAGE
        for page in range(end - 1, -(-start // PAGE) - 1, -1):
            run = 0 if page in busy else run + 1 if page == last - 1 else 1
            last = page
            if run == module_pages:
                return page * PAGE
    return None
