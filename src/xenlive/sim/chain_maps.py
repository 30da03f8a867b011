"""The machines of a chain: a few memory maps, as small as the module in question allows.

    0x0      0x4000     0x30000                      top
    | -      | kernel, block, its pages | ... | modules |    `plain`; the others vary the top

The lower end is the same everywhere, so that kernels can be loaded at one place. The chain's RAM
outlives its kernels; all that is not handed over is poisoned when one leaves.

**Invariants.** Each machine has room for a module of `pages_max` pages and some more below it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xenlive.memory.guest import GuestMemory
from xenlive.sim.posted import PAGE, RAM, SOFT_RESERVED, Range

POISON = 0xA5
RESERVED = 2
LOAD_AT = 0x4000
LOW_END = 0x30000
SPARE_PAGES = 12
FOUR_GIB = 1 << 32
MAPS = ("plain", "hole", "soft", "unaligned", "above-4g")


@dataclass
class Machine:
    """RAM that outlives kernels, and the memory map that each of them is told."""

    name: str
    memmap: list[Range]
    regions: list[tuple[int, bytearray]]
    memory: GuestMemory

    def read(self, address: int, size: int) -> bytes:
        """A copy of `size` bytes at `address`; IndexError if they are not there."""
        for base, data in self.regions:
            if base <= address and address + size <= base + len(data):
                return bytes(data[address - base : address - base + size])
        raise IndexError(f"{size} bytes at {address:#x}")

    def poison(self, keep: Iterable[tuple[int, int]]) -> None:
        """Fills all RAM outside of the runs `keep` (address, size) with POISON."""
        kept = sorted((at, at + size) for at, size in keep if size)
        for base, data in self.regions:
            at = base
            for start, end in [*kept, (base + len(data), base + len(data))]:
                stop = max(at, min(start, base + len(data)))
                data[at - base : stop - base] = bytes([POISON]) * (stop - at)
                at = max(at, min(end, base + len(data)))

    def poison_run(self, address: int, size: int) -> None:
        """Fills one run that lies in one region."""
        self.memory.fill(address, size, POISON)  # type: ignore[arg-type]

    def snapshot(self) -> list[bytes]:
        """All of RAM."""
        return [bytes(data) for _, data in self.regions]

    def is_free_ram(self, page: int, taken: Iterable[tuple[int, int]]) -> bool:
        """Whether the whole page at this address is RAM by the map and outside of `taken`."""
        # Touching ranges of RAM don't occur in these maps: one range has to hold the page.
        ram = any(t == RAM and a <= page and page + PAGE <= a + s for a, s, t in self.memmap)
        return ram and not any(at < page + PAGE and page < at + size for at, size in taken)


def machine(name: str, pages_max: int) -> Machine:
    """The machine of one of `MAPS` for modules of up to `pages_max` pages."""
    span = (pages_max + SPARE_PAGES) * PAGE
    top = LOW_END + span
    if name == "plain":
        return _made(name, [(0, top, RAM)])
    if name == "hole":
        # The upper range is one page too short for the module, or has no whole page at all.
        upper = max((pages_max - 1) * PAGE, PAGE // 2)
        hole = 3 * PAGE
        return _made(name, [(0, top, RAM), (top, hole, RESERVED), (top + hole, upper, RAM)])
    if name == "soft":
        return _made(name, [(0, top, RAM), (top, 4 * PAGE, SOFT_RESERVED)])
    if name == "unaligned":
        return _made(name, [(0, 0x2FC00, RAM), (LOW_END + 0x10, span + 0x123, RAM)])
    if name == "above-4g":
        return _made(name, [(0, LOW_END, RAM), (FOUR_GIB - span, span + 8 * PAGE, RAM)])
    raise KeyError(name)


def _made(name: str, memmap: list[Range]) -> Machine:
    regions = [(start, bytearray([POISON]) * size) for start, size, t in memmap if t != RESERVED]
    return Machine(name, memmap, regions, GuestMemory(regions))
