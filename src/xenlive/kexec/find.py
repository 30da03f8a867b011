"""Finding the kexec module: by the start info, or, if that says nothing, in memory itself.

    start info names  stranger │ ours, broken │ ours, empty │ ours ◀── the first sound one that
                                                                       has records wins
    start info silent:   RAM   ◀── from 4 GiB downward, page by page, for the eye catcher

A module list may hold what is not ours, an initial RAM disk for one. Ours is known by the eye
catcher at the start of its last page. The posted C code looks at the first entry only: so when we
hand over, ours stands first.

A kernel that knows nothing of modules hands none on, and may leave all of it where it was. What it
did not overwrite is found again by scanning: such a module *survived*. But the scan also meets
pages that others filled, the rings' among them: 14 bytes make a page that is sound. So whoever
searches says what is accepted, and candidates are shown to it as read-only copies:

    page begins with KexecMem ─▶ header fits ─▶ first_problem: none ─▶ accept(copy) ─▶ attach
     one word of each page        two words      MAX_VERIFIED of them   MAX_SHOWN        that one

**Invariants.** What is given back is attached, so it is sound, and was accepted. Nothing is written
to any other page. Strangers are passed over in silence; one of ours that is handed over and not
sound, or that reaches into what is in use, is never used, and the reason tells of it. What a search
costs is a word of each page, and a bounded time for all that looks like a module. A search that
reaches a bound with more to look at ends with OutOfSpace, never as if there was no more.

Why not go on after the bounds: they are reached only if somebody wants that, and a kernel that has
looked for a second should rather boot. A module is made at the top of RAM, so the real one is among
the first that are met.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import EYE_CATCHER, MAX_RECORDS, PG2REC_OFFSET, RECORD
from xenlive.errors import ImageError, OutOfSpace
from xenlive.kexec.module import KexecModule
from xenlive.kexec.verify import first_problem
from xenlive.memory.address import PAGE_SIZE, PhysAddr, round_down, round_up
from xenlive.memory.guest import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from xenlive.kexec.start_info import StartInfo
    from xenlive.memory.e820 import MemoryMap

#: No module lies at or above this: its addresses fit in 32 bits.
SEARCH_LIMIT = 1 << 32

#: How many pages with a header that fits are verified in one search, and how many sound ones are
#: shown to whoever accepts. A page made for it costs 0.2 ms of the first and 35 ms of the second.
MAX_VERIFIED = 256
MAX_SHOWN = 32

_EYE = int.from_bytes(EYE_CATCHER, "little")
_U16 = 0xFFFF
_WORDS_PER_PAGE = PAGE_SIZE // 8
_CHUNK_BYTES = 1024 * PAGE_SIZE


def find_kexec_module(
    start_info: StartInfo, memory: GuestMemory, reserved: Iterable[tuple[int, int]] = ()
) -> tuple[KexecModule | None, str]:
    """The module that the start info hands over, or None, and what is wrong with ours that are not.

    It is the first sound one of the list that has records, else the first sound one. None that
    reaches into `reserved` (address and size in bytes) or into the start info's own block.
    The reason is empty if all of ours are right; it has one `module at …` a module.
    """
    in_use = [*reserved, *start_info.block]
    looked = _read_only(memory)
    try:
        places, reasons = _sound_ones(start_info, looked, in_use)
    finally:
        looked.release()
    for paddr, size in places:
        try:
            return KexecModule.attach(memory, PhysAddr(paddr), size), "; ".join(reasons)
        except ImageError as error:  # somebody is still writing there
            reasons.append(_reason(paddr, error))
    return None, "; ".join(reasons)


def has_records(module: KexecModule) -> bool:
    """Whether there is anything in a module: what is accepted if nobody says more."""
    return bool(module.records())


def find_surviving_module(
    memory: GuestMemory,
    memmap: MemoryMap,
    reserved: Iterable[tuple[int, int]] = (),
    populated: Iterable[tuple[int, int]] | None = None,
    accept: Callable[[KexecModule], bool] = has_records,
) -> KexecModule | None:
    """The highest accepted module that `surviving_modules` comes upon; None if there is none.

    `accept` is given a read-only copy, the same as that gives. Whatever it knows must not come from
    the module alone: anybody whose bytes can get into a page can make one. OutOfSpace if none was
    accepted before the search was cut short.
    """
    for candidate in surviving_modules(memory, memmap, reserved, populated):
        if accept(candidate):
            try:
                return KexecModule.attach(memory, candidate.address, candidate.size_bytes)
            except ImageError:
                continue  # somebody is still writing there
    return None


def surviving_modules(
    memory: GuestMemory,
    memmap: MemoryMap,
    reserved: Iterable[tuple[int, int]] = (),
    populated: Iterable[tuple[int, int]] | None = None,
) -> Iterator[KexecModule]:
    """All sound modules that lie in whole pages of RAM below 4 GiB, as copies, highest first.

    They are outside of all `reserved`. Administration pages outside of `populated` were never
    written to and are not looked at (reading them could cost the memory they don't take yet); None:
    all are looked at. Both are pairs of address and size in bytes. At most `MAX_SHOWN` are given,
    from at most `MAX_VERIFIED` pages; if more pages begin like a module, OutOfSpace follows the
    last one: what was not looked at may be one, too.
    """
    taken = [(address, size) for address, size in reserved if size > 0]
    looked = _read_only(memory)
    verified = shown = 0
    try:
        for page, n_pages in _headers(looked, _search_runs(memory, memmap, populated)):
            address, size = page - n_pages * PAGE_SIZE, (n_pages + 1) * PAGE_SIZE
            if not memmap.is_ram(PhysAddr(address), size) or _reaches(address, size, taken):
                continue
            if verified == MAX_VERIFIED or shown == MAX_SHOWN:
                bound = MAX_SHOWN if shown == MAX_SHOWN else MAX_VERIFIED
                raise OutOfSpace("looks at pages that begin like a module", bound + 1, bound)
            verified += 1
            if first_problem(looked.view(PhysAddr(page), PAGE_SIZE), size) is None:
                try:
                    candidate = KexecModule.attach(looked, PhysAddr(address), size)
                except ImageError:
                    continue
                shown += 1
                yield candidate
    finally:
        looked.release()


def _read_only(memory: GuestMemory) -> GuestMemory:
    """The same memory for looking only: a module that is attached there is a copy."""
    regions = [(base, memory.view(base, size).toreadonly()) for base, size in memory.regions()]
    return GuestMemory(regions)


def _validate_place(paddr: int, size: int, in_use: list[tuple[int, int]]) -> None:
    reached = _reaches(paddr, size, in_use)
    if reached:
        what = f"it reaches into the {reached[1]} bytes at {reached[0]:#x} that are in use"
        raise ImageError("module-in-use", what)


def _reaches(address: int, size: int, taken: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The first of the runs that the bytes reach into, if there is one."""
    for at, length in taken:
        if length and address < at + length and at < address + size:
            return at, length
    return None


def _sound_ones(
    start_info: StartInfo, looked: GuestMemory, in_use: list[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[str]]:
    """Address and size of those that can be used, the best first; why others before it can't be."""
    reasons: list[str] = []
    empty: list[tuple[int, int]] = []
    for paddr, size, _ in start_info.modules:
        if not _looks_like_ours(looked, paddr, size):
            continue
        try:
            _validate_place(paddr, size, in_use)
            if has_records(KexecModule.attach(looked, PhysAddr(paddr), size)):
                return [(paddr, size), *empty], reasons
            empty.append((paddr, size))
        except ImageError as error:
            reasons.append(_reason(paddr, error))
    return empty, reasons


def _reason(paddr: int, error: ImageError) -> str:
    return f"module at {paddr:#x}: {error}"


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


def _headers(memory: GuestMemory, runs: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Pages that begin with the eye catcher and numbers that fit; each with its `n_pages`."""
    for start, end in runs:
        while end > start:
            low = max(start, end - _CHUNK_BYTES)
            for page, numbers in _eye_catchers(memory, low, end):
                n_pages, n_records, recs_off = (numbers >> bit & _U16 for bit in (0, 16, 32))
                table_end = recs_off + n_records * RECORD.size
                fits = PG2REC_OFFSET + n_pages <= recs_off and table_end <= PAGE_SIZE
                if fits and n_records <= MAX_RECORDS:
                    yield page, n_pages
            end = low


def _eye_catchers(memory: GuestMemory, low: int, end: int) -> list[tuple[int, int]]:
    """The pages that begin with the eye catcher, highest first; each with its second word."""
    with memory.view(PhysAddr(low), end - low) as chunk, chunk.cast("Q") as words:
        firsts = words[::_WORDS_PER_PAGE].tolist()
        if _EYE not in firsts:
            return []
        found = [index for index, word in enumerate(firsts) if word == _EYE]
        return [
            (low + index * PAGE_SIZE, words[index * _WORDS_PER_PAGE + 1])
            for index in reversed(found)
        ]
