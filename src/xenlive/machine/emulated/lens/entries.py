"""When a kernel of a chain is entered, from whom, and which file it is.

    kernel A ... mov %eax, %cr0 (no paging after it) ... jmp *%eax ──▶ entry of kernel B
                       │                                                  │
                 `Left`: A gives up its world;                    `Entry`: breakpoint at the entry
                 which kernels lie in memory?                      of each kernel that is known

Known are the kernel that was booted, the files handed over with it, those that are to be entered
from outside, and every PVH kernel that lies in the guest's memory when it leaves: its whole file,
or its note (`Xen`/18), which names the entry alone.

An entry is believed if the processor is where `docs/misc/pvh.pandoc` puts it (32 bit, protected, no
paging, privilege 0) at the entry of such a kernel, and ebx points to a start info: its magic is
there. Which of several kernels with one entry it is, memory says: each byte of the file's segments,
or if none fits, those at the entry.

What is not seen: a kernel that is entered without its file or note in memory, and one that never
wrote CR0, unless its file is known.

**Invariants.** Breakpoints are set only while paging is off, so that running kernels cost nothing.
Whatever lies in memory, nothing raises and the work is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xenlive.abi.start_info import XEN_HVM_START_MAGIC_VALUE
from xenlive.errors import ImageError
from xenlive.kexec.elf import KernelImage, analyse_kernel
from xenlive.machine.emulated.lens.pages import used_ram
from xenlive.machine.emulated.lens.symbols import CHAIN_FILES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xenlive.machine.emulated.processor.debugging import Breakpoint
    from xenlive.machine.emulated.space import Space
    from xenlive.machine.emulated.world import Guest

_CR0_PG, _CR0_PE = 1 << 31, 1
_ELF_MAGIC = b"\x7fELF"
# namesz 4, descsz 4 or 8, type 18, "Xen": what comes before the entry's address.
_NOTES = [b"\4\0\0\0%c\0\0\0\x12\0\0\0Xen\0" % size for size in (4, 8)]
_FILES_MAX = 16
_NOTES_MAX = 64
_FILE_MAX_BYTES = 256 << 20
# Code that never comes to an entry does not make memory be searched over and over.
_SEARCHES_MAX = 64
# A guest may fill its memory with what begins as a file does.
_LOOKED_AT_MAX = 4096
# What is kept of files that were found, in a chain without end, too.
_FOUND_MAX_BYTES = 512 << 20
_FOUND_MAX = 512
_FOUND = "a kernel in memory"
_COMPARED = 64


class Known(NamedTuple):
    """A kernel that may be entered: its file if there is one, and what that says."""

    name: str
    elf: bytes
    image: KernelImage | None


class Left(NamedTuple):
    """A kernel gave up: it turned paging off at `rip`, or, from outside, ended for `why`."""

    when_ns: int
    rip: int
    why: str = ""


class Entry(NamedTuple):
    """Kernel `n` of the chain, counted from 0, is at its entry; `known` says which it is."""

    n: int
    when_ns: int
    address: int
    start_info: int
    known: Known
    left: Left | None

    @property
    def from_outside(self) -> bool:
        """Whether the toolstack put it there, and not the kernel before."""
        return self.left is not None and bool(self.left.why)


class Entries:
    """Watches a guest from now on, best before it has run. `names` are those of its files."""

    def __init__(self, guest: Guest, names: dict[bytes, str] | None = None) -> None:
        self._guest = guest
        self._names = names or {}
        self._known: dict[int, list[Known]] = {}
        self._points: list[Breakpoint] = []
        self._searches = 0
        #: The number of the kernel to come. A guest that has run is in the middle of its chain.
        self.next_n = max(len(guest.chain), 1) if guest.vcpu.blocks else 0
        self._left: Left | None = None
        self._stored: Known | None = None
        #: The last entries.
        self.entries: list[Entry] = []
        #: Called when a kernel leaves, and when one is at its entry, before it does anything.
        self.on_left: list[Callable[[Left], object]] = []
        self.on_entry: list[Callable[[Entry], object]] = []
        self._before = guest.vcpu.on_write_cr
        guest.vcpu.on_write_cr = self._on_write_cr
        for elf in (guest.kernel, *guest.files):
            self.know(elf)

    def know(self, elf: bytes, name: str = "") -> None:
        """This file may be entered; one that is no kernel is none."""
        if name:
            self._names[elf] = name
        try:
            image = analyse_kernel(elf)
        except ImageError:
            return
        self._add(image.entry, Known(self._names.get(elf, "kernel"), elf, image))
        self.arm()

    def leave_from_outside(self, elf: bytes, name: str, left: Left) -> None:
        """The kernel ended, and the next entry is that of `elf`, which the toolstack stores now.

        `arm` when that is done.
        """
        self.know(elf)
        self._left = left
        self._stored = Known(name, elf, analyse_kernel(elf))
        for heard in self.on_left:
            heard(left)

    def _add(self, entry: int, known: Known) -> None:
        others = self._known.setdefault(entry, [])
        if all(other.elf != known.elf for other in others):
            others.append(known)

    # ---- leaving -------------------------------------------------------------------------

    def _on_write_cr(self, number: int) -> None:
        if self._before is not None:
            self._before(number)
        if number != 0:
            return
        engine = self._guest.vcpu.engine
        if engine.reg("cr0") & _CR0_PG:
            self._disarm()
            self._left = None
            return
        vcpu = self._guest.vcpu
        self._left = Left(vcpu.clock.now_ns, engine.reg("rip"))
        if self._searches < _SEARCHES_MAX:
            self._searches += 1
            self._search()
            for heard in self.on_left:
                heard(self._left)
        self.arm()

    def _search(self) -> None:
        """Kernels in the guest's memory: whole files, then notes."""
        for image, elf in _files_in(self._guest.domain.space):
            if not any(other.elf.startswith(elf) for other in self._known.get(image.entry, ())):
                self._make_room(len(elf))
                self._add(image.entry, Known(_FOUND, elf, image))
        for entry in _notes_in(self._guest.domain.space):
            if entry not in self._known:
                self._make_room(0)
                self._known[entry] = [Known(_FOUND, b"", None)]

    def _make_room(self, size: int) -> None:
        """Forgets all kernels that were found, if there were too many."""
        found = [known for others in self._known.values() for known in others if _is_found(known)]
        held = sum(len(known.elf) for known in found) + size
        if held <= _FOUND_MAX_BYTES and len(found) < _FOUND_MAX:
            return
        for entry, others in list(self._known.items()):
            others[:] = [known for known in others if not _is_found(known)]
            if not others:
                del self._known[entry]

    def arm(self) -> None:
        """Sets the breakpoints that are missing, if paging is off."""
        if self._guest.vcpu.engine.reg("cr0") & _CR0_PG:
            return
        points = self._guest.vcpu.points
        armed = {point.address for point in self._points}
        for entry in self._known:
            if entry not in armed:
                self._points.append(points.add(entry, self._on_break))

    def _disarm(self) -> None:
        for point in self._points:
            self._guest.vcpu.points.remove(point)
        self._points.clear()

    # ---- entering ------------------------------------------------------------------------

    def _on_break(self) -> None:
        engine, space = self._guest.vcpu.engine, self._guest.domain.space
        if (engine.code_bits, engine.cpl) != (32, 0):
            return
        if engine.reg("cr0") & (_CR0_PG | _CR0_PE) != _CR0_PE:
            return
        start_info, address = engine.reg("rbx") & 0xFFFFFFFF, engine.linear_rip
        magic = int.from_bytes(space.read(start_info, 4), "little")
        if magic != XEN_HVM_START_MAGIC_VALUE or address not in self._known:
            return
        now_ns = self._guest.vcpu.clock.now_ns
        known = self._stored or self._which(address)
        self._stored = None
        entry = Entry(self.next_n, now_ns, address, start_info, known, self._left)
        self.next_n += 1
        self._left, self._searches = None, 0
        self.entries.append(entry)
        if entry.n:
            self._guest.kernel = known.elf
            self._guest.chain.append((now_ns, known.elf))
            self._forget_files()
        for heard in self.on_entry:
            heard(entry)

    def _forget_files(self) -> None:
        """Of kernels long before, when they ran is kept, and the file is not."""
        chain = self._guest.chain
        if len(chain) > CHAIN_FILES_MAX:
            old = len(chain) - CHAIN_FILES_MAX - 1
            chain[old] = (chain[old][0], b"")
            self.entries[:] = self.entries[-CHAIN_FILES_MAX:]

    def _which(self, address: int) -> Known:
        space, candidates = self._guest.domain.space, self._known[address]
        for known in candidates:
            if known.image is not None and _is_whole(known, space):
                return known
        for known in candidates:
            if known.image is not None and _is_at_entry(known, space):
                return known
        return Known("a kernel that is not known", b"", None)


def _is_found(known: Known) -> bool:
    return known.name == _FOUND


def _is_whole(known: Known, space: Space) -> bool:
    assert known.image is not None
    return all(
        space.read(part.address, part.file_size)
        == known.elf[part.offset : part.offset + part.file_size]
        for part in known.image.segments
    )


def _is_at_entry(known: Known, space: Space) -> bool:
    assert known.image is not None
    for part in known.image.segments:
        offset = known.image.entry - part.address
        if 0 <= offset < part.file_size:
            size = min(_COMPARED, part.file_size - offset)
            start = part.offset + offset
            return space.read(known.image.entry, size) == known.elf[start : start + size]
    return False


def _files_in(space: Space) -> Iterator[tuple[KernelImage, bytes]]:
    """PVH kernels whose files lie in a row in memory, and how they analyse."""
    found = looked_at = 0
    for _, piece in used_ram(space):
        data = bytes(piece)
        at = data.find(_ELF_MAGIC)
        while at >= 0 and found < _FILES_MAX and looked_at < _LOOKED_AT_MAX:
            looked_at += 1
            rest = memoryview(data)[at : at + _FILE_MAX_BYTES]
            try:
                image = analyse_kernel(rest)
            except ImageError:
                pass
            else:
                found += 1
                yield image, bytes(rest[: _size_of(rest, image)])
            at = data.find(_ELF_MAGIC, at + 1)


def _size_of(elf: memoryview, image: KernelImage) -> int:
    """Where a file ends, by its segments and its section headers."""
    is_64bit = elf[4] == 2
    at, width, counts = (0x28, 8, 0x3A) if is_64bit else (0x20, 4, 0x2E)
    start = int.from_bytes(elf[at : at + width], "little")
    size, count = (int.from_bytes(elf[at : at + 2], "little") for at in (counts, counts + 2))
    ends = [part.offset + part.file_size for part in image.segments]
    return min(max(start + size * count, *ends), len(elf))


def _notes_in(space: Space) -> Iterator[int]:
    """Entries that notes in memory name."""
    found = 0
    for _, piece in used_ram(space):
        data = bytes(piece)
        for note in _NOTES:
            at = data.find(note)
            while at >= 0 and found < _NOTES_MAX:
                found += 1
                entry = data[at + len(note) : at + len(note) + 4]
                yield int.from_bytes(entry, "little")
                at = data.find(note, at + 1)
