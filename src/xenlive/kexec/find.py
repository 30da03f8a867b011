"""Finding the kexec module: by the start info, or, if that says nothing, in memory itself.

    start info names  stranger │ ours, broken │ ours ◀── the first sound one wins
    start info silent:   RAM   ◀── from 4 GiB downward, page by page, for the eye catcher

A module list may hold what is not ours, an initial RAM disk for one. Ours is known by the eye
catcher at the start of its last page. The posted C code looks at the first entry only: so when we
hand over, ours stands first.

A kernel that knows nothing of modules hands none on, and may leave all of it where it was. What it
did not overwrite is found again by scanning: such a module *survived*.

**Invariants.** What is given back is attached, so it is sound. Strangers are passed over in
silence; one of ours that is not sound is never used, and the reason tells of it. Finding reads one
word of each page and writes nothing, but for what `KexecModule.attach` puts in order in the module
it is about to give back.

Why not trust a surviving module's neighbours: `reserved` names what is known to be in use since,
and a module that reaches into it did not survive.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import EYE_CATCHER, HEADER
from xenlive.errors import ImageError
from xenlive.kexec.module import KexecModule
from xenlive.memory.address import PAGE_SIZE, PhysAddr, round_down, round_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenlive.kexec.start_info import StartInfo
    from xenlive.memory.e820 import MemoryMap
    from xenlive.memory.guest import GuestMemory

#: No module lies at or above this: its addresses fit in 32 bits.
SEARCH_LIMIT = 1 << 32

_EYE = int.from_bytes(EYE_CATCHER, "little")
_WORDS_PER_PAGE = PAGE_SIZE // 8
_CHUNK_BYTES = 1024 * PAGE_SIZE


def find_kexec_module(start_info: StartInfo, memory: GuestMemory) -> tuple[KexecModule | None, str]:
    """The first sound module of the list, or None, and what is wrong with ours that are not.

    The reason is empty if none of ours was passed over; it has one `module at …` a module.
    """
    reasons: list[str] = []
    for paddr, size, _ in start_info.modules:
        if not _looks_like_ours(memory, paddr, size):
            continue
        try:
            return KexecModule.attach(memory, PhysAddr(paddr), size), "; ".join(reasons)
        except ImageError as error:
            reasons.append(f"module at {paddr:#x}: {error}")
    return None, "; ".join(reasons)


def find_surviving_module(
    memory: GuestMemory,
    memmap: MemoryMap,
    reserved: Iterable[tuple[int, int]] = (),
    populated: Iterable[tuple[int, int]] | None = None,
) -> KexecModule | None:
    """The highest sound module that lies in whole pages of RAM below 4 GiB; None if there is none.

    It is outside of all `reserved`. Pages outside of `populated` were never written to and are not
    looked at (reading them could cost the memory they don't take yet); None: all are looked at.
    Both are pairs of address and size in bytes.
    """
    taken = [(address, size) for address, size in reserved if size > 0]
    for start, end in _search_runs(memory, memmap, populated):
        for page in _eye_catchers(memory, start, end):
            module = _attach_around(memory, memmap, page, taken)
            if module is not None:
                return module
    return None


def _looks_like_ours(memory: GuestMemory, paddr: int, size: int) -> bool:
    """Whether the eye catcher starts the last page, be it cut short by an odd size."""
    last = round_up(paddr + size, PAGE_SIZE) - PAGE_SIZE
    return _has_eye_catcher(memory, last) if size > 0 else False


def _has_eye_catcher(memory: GuestMemory, page: int) -> bool:
    address, size = PhysAddr(page), len(EYE_CATCHER)
    return memory.contains(address, size) and memory.read(address, size) == EYE_CATCHER


def _search_runs(
    memory: GuestMemory, memmap: MemoryMap, populated: Iterable[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """Start and end of the runs of whole pages to look through, highest first."""
    runs: list[tuple[int, int]] = [(ram.addr, min(ram.end, SEARCH_LIMIT)) for ram in memmap.ram()]
    there = [(base, base + size) for base, size in memory.regions()]
    runs = _common([_whole_pages(run) for run in runs], [_whole_pages(run) for run in there])
    if populated is not None:
        touched = [
            (round_down(address, PAGE_SIZE), round_up(address + size, PAGE_SIZE))
            for address, size in populated
        ]
        runs = _common(runs, touched)
    return sorted(runs, reverse=True)


def _whole_pages(run: tuple[int, int]) -> tuple[int, int]:
    return round_up(run[0], PAGE_SIZE), round_down(run[1], PAGE_SIZE)


def _common(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[tuple[int, int]]:
    both = [(max(a, c), min(b, d)) for a, b in some for c, d in others]
    return [(start, end) for start, end in both if start < end]


def _eye_catchers(memory: GuestMemory, start: int, end: int) -> Iterable[int]:
    """Addresses of the pages of a run that begin with the eye catcher, highest first."""
    while end > start:
        low = max(start, end - _CHUNK_BYTES)
        with memory.view(PhysAddr(low), end - low) as chunk, chunk.cast("Q") as words:
            firsts = words[::_WORDS_PER_PAGE].tolist()
        if _EYE in firsts:
            for index in range(len(firsts) - 1, -1, -1):
                if firsts[index] == _EYE:
                    yield low + index * PAGE_SIZE
        end = low


def _attach_around(
    memory: GuestMemory, memmap: MemoryMap, page: int, taken: list[tuple[int, int]]
) -> KexecModule | None:
    """The module that ends with `page`, as long as `n_pages` there says, if it is one."""
    _, n_pages, _, _ = HEADER.unpack(memory.read(PhysAddr(page), HEADER.size))
    address, size = page - n_pages * PAGE_SIZE, (n_pages + 1) * PAGE_SIZE
    if address < 0 or not memmap.is_ram(PhysAddr(address), size):
        return None
    if any(address < at + length and at < address + size for at, length in taken):
        return None
    try:
        return KexecModule.attach(memory, PhysAddr(address), size)
    except ImageError:
        return None
