"""A domain's guest physical space: which machine frame stands behind each guest frame.

What Xen calls the p2m, with the pages themselves. All frames that a domain can ever own are one
memfd, sparse, mapped once:

    memfd   | frames of RAM: as many as the domain may have | Xen's own: shared info, grant tables |
            0                                               n_ram

    gfn     0 ......... RAM ......... 0xfc000  (hole: ACPI, special pages, local APIC)  0x100000 RAM

Specification: what of `xen/arch/x86/mm/p2m.c` and `xen/common/memory.c` (Xen 4.17) a guest without
paging, sharing or populate-on-demand can see: `p2m_add_page`, `p2m_remove_page`,
`guest_remove_page`, `populate_physmap`.

**Invariants.** A machine frame of the domain stands behind at most one guest frame, except by
grants. A frame that somebody else holds (a grant, a vcpu_info) is not given out again before it was
let go. Where nothing stands is a hole: it reads as all ones and swallows what is written; through
`memory()` it is `BadAddress`. Each change reaches the attached mapper (the processor's view) before
it returns.

Why exceptions to a few runs, and not a table: 4 GiB are a million frames, and nearly all of them
stay where they were at boot.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xenlive.errors import BadAddress, OutOfSpace
from xenlive.machine.emulated.spacememory import SpaceMemory
from xenlive.machine.emulated.sparse import pieces
from xenlive.memory.address import PAGE_SHIFT, PAGE_SIZE, round_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Buffer

# What stands behind a guest frame.
RAM = "ram"
XEN = "xen"
GRANT = "grant"
GRANT_READONLY = "grant, read-only"

# What Xen's tables of four levels reach; a processor's addresses have 40 bits (CPUID 0x80000008).
MAX_GFN = (1 << (48 - PAGE_SHIFT)) - 1

# Frames of Xen's own: one shared info page, 64 grant frames, 8 status frames.
N_XEN_FRAMES = 73

# Machine frame numbers of different domains are this far apart: room for 64 GiB.
_MFN_STRIDE = 1 << 24


class Mapper(Protocol):
    """Whoever sees the space as a processor does; told of each change."""

    def map(self, address: int, size: int, buffer_address: int, writable: bool) -> None:
        """`size` bytes from `address` are those at `buffer_address` of this process."""

    def unmap(self, address: int, size: int) -> None:
        """There is nothing at `size` bytes from `address`: a hole, or something else soon."""

    def wrote(self, address: int, size: int) -> None:
        """The machine changed memory there: what was translated from it is no longer true."""


@dataclass(frozen=True, slots=True)
class MachineFrame:
    """A page of memory, wherever it stands: frame `index` of the memory of `home`."""

    home: Space
    index: int

    @property
    def mfn(self) -> int:
        """Its machine frame number, different from that of any other page."""
        return self.home.mfn_base + self.index

    @property
    def view(self) -> memoryview:
        """Its 4096 bytes, live."""
        return self.home.frame_view(self.index)

    @property
    def is_xen(self) -> bool:
        """Whether it is one of Xen's own, which is unhooked and never freed."""
        return self.index >= self.home.n_ram


@dataclass(frozen=True, slots=True)
class Mapping:
    """What stands behind a guest frame: `kind` is one of this file's four."""

    frame: MachineFrame
    kind: str

    @property
    def is_foreign(self) -> bool:
        """Whether it is a grant's."""
        return self.kind in (GRANT, GRANT_READONLY)

    @property
    def writable(self) -> bool:
        """Whether the guest's stores reach the page; Xen drops those that don't."""
        return self.kind != GRANT_READONLY


class Space:
    """The physical space of domain `domid`.

    `runs` are pairs of first guest frame and number of frames that have RAM at boot, `max_pages`
    how much RAM the domain may have. OutOfSpace if the runs want more.
    """

    def __init__(self, domid: int, runs: Iterable[tuple[int, int]], max_pages: int) -> None:
        self.domid = domid
        self.n_ram = max_pages
        self.mfn_base = (domid + 1) * _MFN_STRIDE
        self._runs: list[tuple[int, int, int]] = []
        used = 0
        for gfn, count in runs:
            self._runs.append((gfn, gfn + count, used))
            used += count
        if used > max_pages:
            raise OutOfSpace("pages of RAM", used, max_pages)
        self.max_gfn = max((end - 1 for _, end, _ in self._runs), default=0)
        self._size = (max_pages + N_XEN_FRAMES) * PAGE_SIZE
        self._fd = os.memfd_create(f"domain-{domid}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, self._size)
        # Other processes may map some of it: one that became shorter would end them.
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._mmap = mmap.mmap(self._fd, self._size)
        self._buffer = ctypes.c_char.from_buffer(self._mmap)
        self._base = ctypes.addressof(self._buffer)
        self._view = memoryview(self._mmap)
        self._quads = self._view.cast("Q")
        # Guest frames that differ from the runs, and machine frames that moved.
        self._moved: dict[int, Mapping | None] = {}
        self._gfn_of: dict[int, int | None] = {}
        self._fresh = self.boot_pages = used
        self._freed: list[int] = []
        self._held: dict[int, int] = {}
        self._unowned: set[int] = set()
        self._mapper: Mapper | None = None
        #: Told of each change of what stands behind a guest frame: what stood there, what does now.
        self.watch: Callable[[int, Mapping | None, Mapping | None], object] | None = None

    # ---- pages ---------------------------------------------------------------------------

    def frame_view(self, index: int) -> memoryview:
        """The bytes of frame `index`, live."""
        return self._view[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]

    def xen_frame(self, number: int) -> MachineFrame:
        """Xen's own page `number`, counted from 0."""
        if not 0 <= number < N_XEN_FRAMES:
            raise IndexError(f"no page {number} of Xen's")
        return MachineFrame(self, self.n_ram + number)

    @property
    def fd(self) -> int:
        """The memfd behind all frames: RAM of a domain below its hole lies at its own address."""
        return self._fd

    @property
    def size_bytes(self) -> int:
        """The size of the memfd."""
        return self._size

    @property
    def total_pages(self) -> int:
        """How many pages of RAM the domain owns now."""
        return self._fresh - len(self._freed)

    def hold(self, frame: MachineFrame) -> None:
        """Keeps a page from being given out again, whatever its domain does, until `let_go`."""
        self._held[frame.index] = self._held.get(frame.index, 0) + 1

    def let_go(self, frame: MachineFrame) -> None:
        """Takes one `hold` back; a page that its domain gave up meanwhile becomes free."""
        count = self._held.pop(frame.index) - 1
        if count:
            self._held[frame.index] = count
        elif frame.index in self._unowned:
            self._unowned.discard(frame.index)
            self._free(frame.index)

    def allocate(self) -> MachineFrame | None:
        """A page of RAM that stands behind no guest frame yet, zeroed; None if there is none."""
        if self._freed:
            index = self._freed.pop()
        elif self._fresh < self.n_ram:
            index = self._fresh
            self._fresh += 1
        else:
            return None
        self._gfn_of[index] = None
        return MachineFrame(self, index)

    def _free(self, index: int) -> None:
        # Back to the system, and zero for whoever gets it next.
        self._mmap.madvise(mmap.MADV_REMOVE, index * PAGE_SIZE, PAGE_SIZE)
        self._freed.append(index)

    def give_up(self, frame: MachineFrame) -> None:
        """The domain no longer owns this page of its RAM; it is free once nobody holds it."""
        if frame.index in self._held:
            self._unowned.add(frame.index)
        else:
            self._free(frame.index)

    # ---- guest frames --------------------------------------------------------------------

    def lookup(self, gfn: int) -> Mapping | None:
        """What stands behind a guest frame; None for a hole."""
        if gfn in self._moved:
            return self._moved[gfn]
        for first, end, index in self._runs:
            if first <= gfn < end:
                return Mapping(MachineFrame(self, index + gfn - first), RAM)
        return None

    def gfn_of(self, frame: MachineFrame) -> int | None:
        """The guest frame that a page of this domain's stands behind, if there is one."""
        if frame.index in self._gfn_of:
            return self._gfn_of[frame.index]
        for first, end, index in self._runs:
            if index <= frame.index < index + end - first:
                return first + frame.index - index
        return None

    def place(self, gfn: int, frame: MachineFrame, kind: str) -> None:
        """Puts a page behind a guest frame, and away from where it stood, as `p2m_add_page`.

        What stood there before is owned by the domain still, but stands nowhere. BadAddress for a
        guest frame beyond all physical addresses.
        """
        if not 0 <= gfn <= MAX_GFN:
            raise BadAddress(gfn << PAGE_SHIFT, PAGE_SIZE, "beyond 48 bits of address")
        old = self.lookup(gfn)
        if old is not None and not old.is_foreign:
            self._gfn_of[old.frame.index] = None
        mapping = Mapping(frame, kind)
        if not mapping.is_foreign:
            elsewhere = self.gfn_of(frame)
            if elsewhere is not None and elsewhere != gfn:
                self.unhook(elsewhere)
            self._gfn_of[frame.index] = gfn
        if old is not None:
            self._tell_unmap(gfn)
        self._moved[gfn] = mapping
        self.max_gfn = max(self.max_gfn, gfn)
        if self.watch is not None:
            self.watch(gfn, old, mapping)
        if self._mapper is not None:
            self._mapper.map(gfn << PAGE_SHIFT, PAGE_SIZE, frame_address(frame), mapping.writable)

    def unhook(self, gfn: int) -> None:
        """Makes a guest frame a hole; who owns the page that stood there does not change."""
        old = self.lookup(gfn)
        if old is None:
            return
        if not old.is_foreign:
            self._gfn_of[old.frame.index] = None
        self._moved[gfn] = None
        self._tell_unmap(gfn)
        if self.watch is not None:
            self.watch(gfn, old, None)

    def populate(self, gfn: int) -> bool:
        """New zeroed RAM behind a guest frame; False if the domain has all it may have."""
        frame = self.allocate()
        if frame is None:
            return False
        self.place(gfn, frame, RAM)
        return True

    def runs(self) -> Iterator[tuple[int, int, int, bool]]:
        """All that stands behind something: (first gfn, number, buffer address, writable)."""
        moved = sorted(self._moved)
        for first, end, index in self._runs:
            start = first
            for gfn in [*(g for g in moved if first <= g < end), end]:
                if gfn > start:
                    address = self._base + (index + start - first) * PAGE_SIZE
                    yield start, gfn - start, address, True
                start = gfn + 1
        for gfn in moved:
            mapping = self._moved[gfn]
            if mapping is not None:
                yield gfn, 1, frame_address(mapping.frame), mapping.writable

    def attach(self, mapper: Mapper) -> None:
        """Tells `mapper` all there is, and from now on each change."""
        self._mapper = mapper
        for gfn, count, address, writable in self.runs():
            mapper.map(gfn << PAGE_SHIFT, count << PAGE_SHIFT, address, writable)

    def tell_wrote(self, frame: MachineFrame) -> None:
        """The machine wrote to a page of this domain, which may have code in it."""
        gfn = self.gfn_of(frame)
        if self._mapper is not None and gfn is not None:
            self._mapper.wrote(gfn << PAGE_SHIFT, PAGE_SIZE)

    def _tell_unmap(self, gfn: int) -> None:
        if self._mapper is not None:
            self._mapper.unmap(gfn << PAGE_SHIFT, PAGE_SIZE)

    @property
    def base_address(self) -> int:
        """Where frame 0 lies in this process."""
        return self._base

    # ---- bytes ---------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """A copy of `size` bytes as a processor reads them: holes are all ones."""
        start = self._in_a_run(address, size)
        if start is not None:
            return bytes(self._view[start : start + size])
        parts = []
        for gfn, offset, length in _split(address, size):
            mapping = self.lookup(gfn)
            if mapping is None:
                parts.append(b"\xff" * length)
            else:
                parts.append(bytes(mapping.frame.view[offset : offset + length]))
        return b"".join(parts)

    def read_u64(self, address: int) -> int:
        """An aligned word as `read` reads it: page walks, which are many, ask for these."""
        first, end, index = self._runs[0] if self._runs else (0, 0, 0)
        gfn = address >> PAGE_SHIFT
        if first <= gfn < end and gfn not in self._moved:
            return self._quads[(address >> 3) + (index - first << PAGE_SHIFT - 3)]
        return int.from_bytes(self.read(address, 8), "little")

    def write(self, address: int, data: Buffer) -> None:
        """Stores `data` as a processor does: holes and read-only grants swallow what is theirs."""
        source = memoryview(data).cast("B")
        start = self._in_a_run(address, len(source))
        if start is not None:
            self._view[start : start + len(source)] = source
            return
        done = 0
        for gfn, offset, length in _split(address, len(source)):
            mapping = self.lookup(gfn)
            if mapping is not None and mapping.writable:
                mapping.frame.view[offset : offset + length] = source[done : done + length]
            done += length

    def load(self, address: int, data: Buffer) -> None:
        """Stores code: as `write`, and what was translated from there before is forgotten."""
        self.write(address, data)
        if self._mapper is not None:
            self._mapper.wrote(address, memoryview(data).nbytes)

    def clear(self, address: int, size: int) -> None:
        """Makes RAM zero, as `load` of zeroes would; whole pages go back to the system."""
        start = self.contiguous(address, size)
        first, last = round_up(address, PAGE_SIZE), (address + size) // PAGE_SIZE * PAGE_SIZE
        if start is None or first >= last:
            done = 0
            for _, _, length in _split(address, size):
                self.write(address + done, bytes(length))
                done += length
        else:
            self.write(address, bytes(first - address))
            self._mmap.madvise(mmap.MADV_REMOVE, start + first - address, last - first)
            self.write(last, bytes(address + size - last))
        if self._mapper is not None:
            self._mapper.wrote(address, size)

    def is_backed(self, address: int, size: int) -> bool:
        """Whether there is a page behind each of `size` bytes, of its own or granted."""
        if self._in_a_run(address, size) is not None:
            return True
        return all(self.lookup(gfn) is not None for gfn, _, _ in _split(address, size))

    def contiguous(self, address: int, size: int) -> int | None:
        """The offset in the memfd of `size` bytes that lie in a row there; None if they don't.

        Pages of other domains don't count: they are in no memfd of this one.
        """
        start = self._in_a_run(address, size)
        if start is not None:
            return start
        expected = None
        for gfn, offset, _ in _split(address, max(size, 1)):
            mapping = self.lookup(gfn)
            if mapping is None or mapping.frame.home is not self:
                return None
            if expected is None:
                start = mapping.frame.index * PAGE_SIZE + offset
            elif mapping.frame.index != expected:
                return None
            expected = mapping.frame.index + 1
        return start

    def _in_a_run(self, address: int, size: int) -> int | None:
        """The same for what is as it was at boot, which nearly all is: no look at each page."""
        gfn, last = address >> PAGE_SHIFT, address + max(size, 1) - 1 >> PAGE_SHIFT
        for first, end, index in self._runs:
            if first <= gfn and last < end:
                if self._has_moved(gfn, last):
                    return None
                return (index - first << PAGE_SHIFT) + address
        return None

    def _has_moved(self, gfn: int, last: int) -> bool:
        if last - gfn < len(self._moved):
            return any(g in self._moved for g in range(gfn, last + 1))
        return any(gfn <= g <= last for g in self._moved)

    def memory(self) -> SpaceMemory:
        """The domain's own pages as the one door to guest memory that other rooms know."""
        return SpaceMemory(self, self._view)

    # ---- snapshots -----------------------------------------------------------------------

    def save(self, with_memory: bool = True) -> SpaceState:
        """What stands where, and the bytes of all memory that is not zero, for `restore`."""
        return SpaceState(
            tuple(self.pieces()) if with_memory else (),
            dict(self._moved),
            dict(self._gfn_of),
            self._fresh,
            tuple(self._freed),
            dict(self._held),
            frozenset(self._unowned),
            self.max_gfn,
        )

    def restore(self, state: SpaceState) -> None:
        """Goes back to what `save` gave, the mapper's view too."""
        old = list(self.runs())
        wanted = dict(state.pieces)
        for start, data in self.pieces():
            if start not in wanted:
                self._mmap.madvise(mmap.MADV_REMOVE, start, len(data))
            elif wanted[start] == data:
                del wanted[start]
        for start, data in wanted.items():
            self._view[start : start + len(data)] = data
        self._moved, self._gfn_of = dict(state.moved), dict(state.gfn_of)
        self._fresh, self._freed = state.fresh, list(state.freed)
        self._held, self._unowned = dict(state.held), set(state.unowned)
        self.max_gfn = state.max_gfn
        if self._mapper is not None:
            for gfn, count, _, _ in old:
                self._mapper.unmap(gfn << PAGE_SHIFT, count << PAGE_SHIFT)
            self.attach(self._mapper)

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """All memory that is not zero, by its place in the memfd (`sparse.py`)."""
        return pieces(self._fd, self._size)

    def close(self) -> None:
        """Closes the memfd. The mapping goes with the last view of it, whoever has that."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True, slots=True)
class SpaceState:
    """What `Space.save` gives; `pieces` are the memory that is not zero, the rest `restore`'s."""

    pieces: tuple[tuple[int, bytes], ...]
    moved: dict[int, Mapping | None]
    gfn_of: dict[int, int | None]
    fresh: int
    freed: tuple[int, ...]
    held: dict[int, int]
    unowned: frozenset[int]
    max_gfn: int


def frame_address(frame: MachineFrame) -> int:
    """Where a page lies in this process."""
    return frame.home.base_address + frame.index * PAGE_SIZE


def _split(address: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Guest frame, offset in it and length of each page's part of `size` bytes."""
    while size > 0:
        offset = address & (PAGE_SIZE - 1)
        length = min(size, PAGE_SIZE - offset)
        yield address >> PAGE_SHIFT, offset, length
        address += length
        size -= length
