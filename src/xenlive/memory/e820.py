"""The memory map: which guest physical addresses are RAM, and where a kexec module goes.

Specification: the map is the one of Xen's `public/arch-x86/hvm/start_info.h`; placement is what
Mini-OS' `kexec.c` (posted July 2025) does, seen by running it:

    0                  RAM                    end of RAM      4 GiB - 1 page
    |------------------------------[ module ]|......................|
                                   ^ highest run that is long enough

**Invariants.** A map holds ranges in order of address that neither overlap nor wrap past 64 bits;
a map that does is an `ImageError`. Range ends need not be page aligned, as those of real machines
are not: only whole pages of RAM are ever given out. Where a module goes depends on the map alone,
so that two kernels that see the same map agree.
"""

from __future__ import annotations

from xenlive.errors import ImageError, OutOfSpace
from xenlive.memory.address import PAGE_SIZE, PhysAddr, round_down, round_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

E820_RAM = 1
E820_RESERVED = 2
E820_ACPI = 3
E820_NVS = 4
E820_UNUSABLE = 5
E820_DISABLED = 6
E820_PMEM = 7
# Mini-OS' own: addresses it maps foreign pages at. No other kernel gets to see them.
E820_SOFT_RESERVED = 0xEFFFFFFF

# A module lies below this: its addresses fit in 32 bits, and the page at 4 GiB is left out.
PLACEMENT_LIMIT = (1 << 32) - PAGE_SIZE

_ADDRESS_END = 1 << 64
_MAX_TYPE = (1 << 32) - 1


class MemoryRange:
    """`size` bytes from `addr` that are all of `type`, a number as in the `E820_` constants."""

    __slots__ = ("addr", "size", "type")

    def __init__(self, addr: int, size: int, type: int) -> None:
        self.addr = PhysAddr(addr)
        self.size = size
        self.type = type

    @property
    def end(self) -> PhysAddr:
        """The first address after the range."""
        return PhysAddr(self.addr + self.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MemoryRange):
            return NotImplemented
        return (self.addr, self.size, self.type) == (other.addr, other.size, other.type)

    def __hash__(self) -> int:
        return hash((self.addr, self.size, self.type))

    def __repr__(self) -> str:
        return f"MemoryRange({self.addr:#x}, {self.size:#x}, {self.type:#x})"


class MemoryMap:
    """The memory map of a domain: empty ranges are left out. ImageError if it can't be true."""

    __slots__ = ("_ranges",)

    def __init__(self, ranges: Iterable[MemoryRange]) -> None:
        known = []
        for range_ in ranges:
            _validate_range(range_)
            if range_.size:
                known.append(range_)
        known.sort(key=lambda range_: range_.addr)
        end = 0
        for range_ in known:
            if range_.addr < end:
                raise ImageError("memmap-overlap", "two memory ranges overlap", value=range_)
            end = range_.end
        self._ranges = known

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MemoryMap):
            return NotImplemented
        return self._ranges == other._ranges

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"MemoryMap({self._ranges!r})"

    def ranges(self) -> list[MemoryRange]:
        """All ranges, lowest first."""
        return list(self._ranges)

    def ram(self) -> list[MemoryRange]:
        """The runs of RAM, lowest first; ranges that touch are one run."""
        runs: list[MemoryRange] = []
        for range_ in self._ranges:
            if range_.type != E820_RAM:
                continue
            if runs and runs[-1].end == range_.addr:
                last = runs.pop()
                range_ = MemoryRange(last.addr, last.size + range_.size, E820_RAM)
            runs.append(range_)
        return runs

    def ram_end(self) -> PhysAddr:
        """The first address after the highest RAM; 0 without RAM."""
        ram = self.ram()
        return ram[-1].end if ram else PhysAddr(0)

    def is_ram(self, address: PhysAddr, size: int) -> bool:
        """Whether `size` bytes at `address` lie in one run of RAM."""
        return size >= 0 and any(
            range_.addr <= address and address + size <= range_.end for range_ in self.ram()
        )

    def place_module(self, n_pages: int, reserved: Iterable[tuple[int, int]] = ()) -> PhysAddr:
        """Address of the highest run of `n_pages` whole pages of RAM that a module can have.

        `n_pages` counts all of the module's pages, the administration page too; `reserved` are
        pairs of address and size in bytes that it must stay out of. OutOfSpace if there is none.
        """
        if n_pages < 1:
            raise OutOfSpace("pages for a kexec module", n_pages, 0)
        taken = list(reserved)
        longest = 0
        for range_ in reversed(self.ram()):
            free = _whole_pages(range_.addr, min(range_.end, PLACEMENT_LIMIT))
            for start, end in reversed(_without(free, taken)):
                if end - start >= n_pages * PAGE_SIZE:
                    return PhysAddr(end - n_pages * PAGE_SIZE)
                longest = max(longest, (end - start) // PAGE_SIZE)
        raise OutOfSpace("pages for a kexec module", n_pages, longest)

    def room_below(self, address: PhysAddr, reserved: Iterable[tuple[int, int]] = ()) -> int:
        """How many whole pages of RAM lie right below `address`, a multiple of a page's size.

        They end where the RAM does, or at the nearest of `reserved`, which are pairs of address
        and size in bytes.
        """
        for range_ in self.ram():
            if range_.addr < address <= range_.end:
                free = _without(_whole_pages(range_.addr, address), list(reserved))
                if free and free[-1][1] == address:
                    return (free[-1][1] - free[-1][0]) // PAGE_SIZE
        return 0

    def for_next_kernel(self) -> MemoryMap:
        """The map as the next kernel is to see it: without this kernel's own soft reservations."""
        return MemoryMap(range_ for range_ in self._ranges if range_.type != E820_SOFT_RESERVED)


def _validate_range(range_: MemoryRange) -> None:
    if range_.addr < 0 or range_.size < 0 or range_.addr + range_.size > _ADDRESS_END:
        raise ImageError("memmap-wrap", "a memory range wraps past 64 bits", value=range_)
    if not 0 <= range_.type <= _MAX_TYPE:
        raise ImageError("memmap-type", "a memory range's type is no 32-bit number", value=range_)


def _whole_pages(start: int, end: int) -> tuple[int, int]:
    return round_up(start, PAGE_SIZE), round_down(end, PAGE_SIZE)


def _without(free: tuple[int, int], taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of the run `free` outside of all `taken`, in whole pages, lowest first."""
    left = [free]
    for address, size in taken:
        if size <= 0:
            continue
        low, high = round_down(address, PAGE_SIZE), round_up(address + size, PAGE_SIZE)
        left = [
            (start, end)
            for run_start, run_end in left
            for start, end in ((run_start, min(run_end, low)), (max(run_start, high), run_end))
            if start < end
        ]
    return [(start, end) for start, end in left if start < end]
