"""Building a domain: memory, pages that Xen and its toolstack put there, a kernel, its start info.

    0            RAM            fc000000        feff8000   fefffffff  100000000        RAM
    | kernel | modules | start info | ... | ACPI | hole | special pages | hole |  what is left  |

Specification: `tools/libs/light/libxl_dom.c`, `libxl_x86.c`, `tools/libs/guest/xg_dom_x86.c` of
Xen 4.17, for a PVH guest: where things lie, ports 1 (Xenstore) and 2 (console), grants 0 (console)
and 1 (Xenstore). The start info block is `kexec/start_info.py`'s.

**Invariants.** A kernel that can't be loaded is one `ImageError`, and nothing was made. What is
handed over is never overlapped: kernel, modules, start info and what the caller keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xenlive.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from xenlive.abi.hypercalls import hvm
from xenlive.errors import ConfigError, ImageError
from xenlive.kexec.elf import analyse_kernel
from xenlive.kexec.start_info import build_start_info, encode_cmdline
from xenlive.machine.emulated import acpi
from xenlive.machine.emulated.hypervisor.domain import HOST_DOMID, Domain
from xenlive.machine.emulated.space import Space
from xenlive.memory.address import PAGE_SHIFT, PAGE_SIZE, PhysAddr, round_up
from xenlive.memory.e820 import E820_ACPI, E820_RAM, E820_RESERVED, MemoryMap, MemoryRange

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from xenlive.kexec.elf import KernelImage
    from xenlive.machine.emulated.interface import Clock

MEMORY_MIN = 1 << 20
MEMORY_MAX = 4 << 30

# RAM ends where the ACPI tables begin; what does not fit goes above 4 GiB.
LOW_END = acpi.ACPI_BASE
HIGH_START = 1 << 32

# Eight pages, the last of them the console's.
SPECIAL_AT = 0xFEFF8000
SPECIAL_PAGES = 8
STORE_GFN = (SPECIAL_AT >> PAGE_SHIFT) + 4
IDENT_PT_GFN = (SPECIAL_AT >> PAGE_SHIFT) + 6
CONSOLE_GFN = (SPECIAL_AT >> PAGE_SHIFT) + 7

# A toolstack lets a guest have this much more than it was given: LIBXL_MAXMEM_CONSTANT.
_SLACK_PAGES = (1024 << 10) >> PAGE_SHIFT


@dataclass(frozen=True, slots=True)
class Module:
    """A file that is handed to the kernel, with a command line of its own."""

    data: bytes
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A kernel in memory: where it is entered, and the block that `ebx` points to.

    `taken` are address and size of all that was put into memory, in order of address.
    """

    image: KernelImage
    entry: int
    start_info: int
    taken: tuple[tuple[int, int], ...]


def memory_map(memory_bytes: int) -> list[tuple[int, int, int]]:
    """Address, size and type of each range, in the order of `domain_construct_memmap`."""
    low = min(memory_bytes, LOW_END)
    ranges = [
        (0, low, E820_RAM),
        (SPECIAL_AT, SPECIAL_PAGES * PAGE_SIZE, E820_RESERVED),
        (acpi.RSDP_AT, acpi.RSDP_BYTES, E820_ACPI),
        (acpi.ACPI_BASE, PAGE_SIZE, E820_ACPI),
        (acpi.TABLES_AT, acpi.TABLES_BYTES, E820_ACPI),
    ]
    if memory_bytes > low:
        ranges.append((HIGH_START, memory_bytes - low, E820_RAM))
    return ranges


def make_domain(
    domid: int,
    memory_bytes: int,
    peers: dict[int, Domain],
    clock: Clock,
    handle: bytes = bytes(16),
) -> Domain:
    """A domain with memory and special pages, and no kernel.

    ConfigError for a size that is no multiple of a page, too little or too much.
    """
    if memory_bytes % PAGE_SIZE or not MEMORY_MIN <= memory_bytes <= MEMORY_MAX:
        what = f"{memory_bytes} bytes are not whole pages from 1 MiB to 4 GiB"
        raise ConfigError("memory of a domain", 0, what)
    e820 = memory_map(memory_bytes)
    runs = [(addr >> PAGE_SHIFT, size >> PAGE_SHIFT) for addr, size, kind in e820 if kind == 1]
    runs.append((SPECIAL_AT >> PAGE_SHIFT, SPECIAL_PAGES))
    runs.append((acpi.ACPI_BASE >> PAGE_SHIFT, acpi.ACPI_PAGES))
    space = Space(domid, runs, (memory_bytes >> PAGE_SHIFT) + _SLACK_PAGES)
    domain = Domain(domid, space, peers, clock, e820, handle)
    for address, table in acpi.build_acpi():
        space.write(address, table)
    _give_pages_and_ports(domain)
    return domain


def _give_pages_and_ports(domain: Domain) -> None:
    """What the toolstack sets up for Xenstore and console."""
    params = domain.params
    params.give(hvm.HVM_PARAM_STORE_PFN, STORE_GFN)
    params.give(hvm.HVM_PARAM_CONSOLE_PFN, CONSOLE_GFN)
    params.give(hvm.HVM_PARAM_IDENT_PT, IDENT_PT_GFN << PAGE_SHIFT)
    params.give(hvm.HVM_PARAM_STORE_EVTCHN, domain.events.alloc_unbound(HOST_DOMID))
    params.give(hvm.HVM_PARAM_CONSOLE_EVTCHN, domain.events.alloc_unbound(HOST_DOMID))
    domain.grants.seed(GNTTAB_RESERVED_CONSOLE, HOST_DOMID, CONSOLE_GFN)
    domain.grants.seed(GNTTAB_RESERVED_XENSTORE, HOST_DOMID, STORE_GFN)


def load_kernel(
    domain: Domain,
    kernel: bytes,
    cmdline: str = "",
    modules: Sequence[Module] = (),
    handed: Iterable[tuple[int, int, str]] = (),
    in_use: Iterable[tuple[int, int]] = (),
) -> Loaded:
    """Puts a kernel and what it is handed into the domain's memory.

    `handed` are address, size and command line of modules that lie in memory already: they are
    named in the start info, and nothing is put over them, nor over what is `in_use`. ImageError,
    with nothing stored, for a file that is no PVH kernel (`elf-…`), does not fit
    (`kernel-too-large`) or would overlap what is there (`kernel-overlaps`); ConfigError for a
    command line that can't be handed over.
    """
    image = analyse_kernel(kernel)
    kept_modules = list(handed)
    kept = [*((address, size) for address, size, _ in kept_modules), *in_use]
    room = _Room(domain, kept)
    for segment in image.segments:
        room.validate(segment.address, segment.memory_size, "kernel")
    room.take_up_to(image.end)
    placed = [(room.place(len(m.data), "module"), m) for m in modules]
    named = [(at, len(m.data), m.cmdline) for at, m in placed] + kept_modules
    lines = [encode_cmdline(line) + b"\0" if line else b"" for _, _, line in named]
    strings_size = sum(len(line) for line in lines)
    # The block's size does not depend on its address.
    ranges = MemoryMap(MemoryRange(*entry) for entry in domain.boot_map)
    probe = build_start_info(
        PhysAddr(PAGE_SIZE), ranges, [(at, size, 0) for at, size, _ in named], cmdline
    )
    block_at = room.place(round_up(len(probe), 8) + strings_size, "start info")
    strings, entries = bytearray(), []
    for (at, size, _), line in zip(named, lines, strict=True):
        where = block_at + round_up(len(probe), 8) + len(strings) if line else 0
        strings += line
        entries.append((at, size, where))
    block = build_start_info(PhysAddr(block_at), ranges, entries, cmdline, acpi.RSDP_AT)
    _store(domain, kernel, image, placed)
    domain.space.load(block_at, block.ljust(round_up(len(block), 8), b"\0") + strings)
    return Loaded(image, image.entry, block_at, tuple(sorted([*image.touched(), *room.taken])))


def _store(
    domain: Domain, kernel: bytes, image: KernelImage, placed: list[tuple[int, Module]]
) -> None:
    for segment in image.segments:
        data = kernel[segment.offset : segment.offset + segment.file_size]
        domain.space.load(segment.address, data)
        # Not as bytes: it may be gigabytes.
        left = segment.memory_size - segment.file_size
        domain.space.clear(segment.address + segment.file_size, left)
    for at, module in placed:
        domain.space.load(at, module.data)


class _Room:
    """Where in low RAM there is still room: above the kernel, beside what is kept."""

    def __init__(self, domain: Domain, kept: Sequence[tuple[int, int]]) -> None:
        self._space = domain.space
        self._end = max(
            (a + s for a, s, kind in domain.boot_map if a == 0 and kind == 1), default=0
        )
        self._kept = sorted(kept)
        self._next = 0
        self.taken: list[tuple[int, int]] = []

    def validate(self, address: int, size: int, what: str) -> None:
        """Refuses what is not all RAM, or kept."""
        if address + size > self._end or not self._space.is_backed(address, size):
            raise self._too_large(what, address + size)
        for kept, kept_size in self._kept:
            if address < kept + kept_size and kept < address + size:
                text = f"{size} bytes of the {what} at {address:#x} go over what is at {kept:#x}"
                raise ImageError("kernel-overlaps", text, value=hex(address))

    def take_up_to(self, end: int) -> None:
        """Everything below is taken."""
        self._next = round_up(end, PAGE_SIZE)

    def place(self, size: int, what: str) -> int:
        """The address of `size` bytes, page aligned, above all that was placed before."""
        address = self._next
        for kept, kept_size in self._kept:
            if address < kept + kept_size and kept < address + size:
                address = round_up(kept + kept_size, PAGE_SIZE)
        if address + size > self._end or not self._space.is_backed(address, max(size, 1)):
            raise self._too_large(what, address + size)
        self._next = round_up(address + max(size, 1), PAGE_SIZE)
        self.taken.append((address, size))
        return address

    def _too_large(self, what: str, end: int) -> ImageError:
        text = f"the {what} does not fit: it ends at {end:#x}, and RAM at {self._end:#x}"
        return ImageError("kernel-too-large", text, value=hex(end))
