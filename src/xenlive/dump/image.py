"""Opening an image and finding the kexec modules in it.

| kind | how it is told | guest physical addresses |
|---|---|---|
| `module` | it ends with the administration page, or less than a page behind it | not known |
| `memory` | all else: a raw dump, a memfd, a run directory, by its `ram` | offsets in the file |
| `xen-core` | Xen's `dump-core`: an ELF core with sections only | by `.xen_pfn` or `.xen_p2m` |
| `elf-core` | QEMU's `dump-guest-memory`: an ELF core with program headers | by `p_paddr` |

A directory is a run directory, or the `/proc/PID/fd` of a process that has the domain's memory. Of
several modules the highest sound one below 4 GiB counts: a module lies near the top, and what is
below it may be an older copy.

**Invariants.** The image is only ever read, by `pread` and never through a mapping: a file that
shrinks meanwhile is an error and no bus error, and a live domain is not held up. A page that is
being written to is read until it was the same twice. Whatever the bytes, there is a found module,
which may be unsound, or an `ImageError` that says what is missing.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from xenlive.abi.kexec_module import EYE_CATCHER, HEADER, PG2REC_OFFSET, fresh_recs_off
from xenlive.dump import formats
from xenlive.dump.formats import KINDS
from xenlive.dump.live import RAM_NAME, memory_file
from xenlive.dump.scan import Progress, chunks, eye_catchers
from xenlive.dump.source import Source
from xenlive.kexec.verify import first_problem
from xenlive.memory.address import PAGE_SIZE, PhysAddr, round_down

__all__ = ["KINDS", "RAM_NAME", "FoundModule", "Image", "Region"]

# A kernel at work on its module changes a page at a time, in moments; reading one takes less.
_READS_TO_SETTLE = 16
# Memory can have more; nobody looks at them one by one.
_MAX_FOUND = 256
# A file below this is no guest's whole memory; above, to end with a module is what memory does.
_SMALLEST_MEMORY_BYTES = 1 << 20
# No administration page has room for the owners of more pages, be its table as short as it can.
_MAX_PAGES_BEFORE = PAGE_SIZE - PG2REC_OFFSET


@dataclass(frozen=True)
class Region:
    """A run of memory that the image has; `address` is None in an image that does not say it."""

    address: PhysAddr | None
    size_bytes: int


@dataclass(frozen=True)
class FoundModule:
    """A module, sound or not. `offset` and `size_bytes` are in bytes of the image.

    `offset` counts from the start of a module image, else it is the guest physical address.
    `admin_page` is a copy of the last page, filled up with zeros if the image ends inside of it:
    `present_bytes` of it are really there;
    `address` is None in an image that does not say it. `settled` is False if the page was being
    written to each time it was read.
    """

    offset: int
    size_bytes: int
    admin_page: bytes
    address: PhysAddr | None
    admin_offset: int = 0
    settled: bool = True
    present_bytes: int = PAGE_SIZE
    _read: Callable[[int, int], bytes] = field(
        default=lambda offset, size: b"", repr=False, compare=False
    )
    _has: Callable[[int, int], bool] = field(
        default=lambda offset, size: False, repr=False, compare=False
    )

    def has_page(self, index: int) -> bool:
        """Whether the image has the page that `pg2rec[index]` speaks of; nothing is read."""
        offset = self._offset_of(index)
        return offset is not None and self._has(offset, PAGE_SIZE)

    def read_page(self, index: int) -> bytes | None:
        """The page that `pg2rec[index]` speaks of, as it is now; None if the image lacks it.

        Pages count up to the administration page, whose index is `n_pages`: a module that was cut
        off at its start lacks the first ones.
        """
        offset = self._offset_of(index)
        if offset is None:
            return None
        page = self._read(offset, PAGE_SIZE)
        return page if len(page) == PAGE_SIZE else None

    def _offset_of(self, index: int) -> int | None:
        _, n_pages, _, _ = HEADER.unpack(self.admin_page)
        offset: int = self.admin_offset - (n_pages - index) * PAGE_SIZE
        return offset if 0 <= index <= n_pages and offset >= 0 else None


class Image:
    """An open image. A context manager; `close` lets go of the file."""

    def __init__(
        self, path: Path | str, kind: str = "auto", progress: Progress | None = None
    ) -> None:
        """Opens a file or a directory. OSError as `open`, ImageError if nothing can be in it.

        `kind` says how to read it: one of `KINDS`, `auto` to tell by the table above. Afterwards
        `kind` is what it was found to be, `path` the file that is read. `progress` is told how
        far a search through all memory is.
        """
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}")
        self.path = Path(path)
        if self.path.is_dir():
            self.path, kind = memory_file(self.path), "memory"
        self._progress = progress
        self._source = Source(self.path)
        try:
            self.kind, self._space = formats.open_space(self._source, kind)
            self._doubt = ""
            if self.kind == "auto":
                self.kind = "module" if self._as_module_image(strict=True) else "memory"
                if self.kind == "memory" and self._could_be_module():
                    self._doubt = (
                        f"{self.path} ends with an administration page, but was read as memory: "
                        "if it is a module alone, say --as module"
                    )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file; no call after that, but a second `close` does nothing."""
        self._source.close()

    @property
    def size_bytes(self) -> int:
        """Size of the file when it was opened."""
        return self._source.size_bytes

    @property
    def doubt(self) -> str:
        """What speaks against the kind that it was found to be; empty if nothing does."""
        return self._doubt

    def is_at(self, path: Path) -> bool:
        """Whether a path leads to the file of this image, by whatever name."""
        return self._source.is_at(path)

    def regions(self) -> list[Region]:
        """The runs of guest physical memory that the image has, lowest first."""
        if self.kind == "module":
            return [Region(None, self.size_bytes)] if self.size_bytes else []
        return [Region(PhysAddr(address), size) for address, size in self._space.regions()]

    def has(self, address: int, size: int) -> bool:
        """Whether the image has all of `size` bytes at a guest physical address."""
        return self.kind != "module" and self._space.has(address, size)

    def read_phys(self, address: int, size: int) -> bytes:
        """Up to `size` bytes at a guest physical address; fewer where the image has no more."""
        return b"" if self.kind == "module" else self._space.read(address, size)

    def read(self, offset: int, size: int) -> bytes:
        """As `read_phys`, but of a module image `size` bytes at `offset` in the file."""
        return self._space.read(offset, size)

    def chunks(self) -> Iterator[tuple[int, mmap.mmap, int]]:
        """(address, buffer, how many bytes of it) of all memory that is there, see `scan.chunks`.

        Nothing of a module image.
        """
        return iter(()) if self.kind == "module" else chunks(self._space, self._progress)

    def find_module(self) -> FoundModule:
        """The module that counts. ImageError (`no-module`) if there is none."""
        return self.find_module_and_passed()[0]

    def find_module_and_passed(self) -> tuple[FoundModule, list[FoundModule]]:
        """The module that counts, and those that the search met before it: none of them is sound.

        If no module is sound, these are the others. At most 256. ImageError as `find_module`.
        """
        passed: list[FoundModule] = []
        for found, sound in self._candidates():
            if sound:
                return found, passed
            if len(passed) < _MAX_FOUND:
                passed.append(found)
        if not passed:
            raise formats.no_module(self._source)
        return passed[0], passed[1:]

    def find_modules(self) -> list[FoundModule]:
        """All modules, the one that counts first, those that are not sound last; maybe none."""
        return _sound_first(self._candidates())

    def modules_that_end_at(self, pages: Iterable[int]) -> list[FoundModule]:
        """As `find_modules`, of the modules whose last pages lie at these addresses."""
        return _sound_first(self._checked(self._ending_at(page) for page in pages))

    def _candidates(self) -> Iterator[tuple[FoundModule, bool]]:
        """All that look like modules, and whether they are sound, in the order of the search."""
        if self.kind == "module":
            yield from self._checked([self._as_module_image(strict=False)])
            return
        pages = eye_catchers(self._space, self._progress)
        yield from self._checked(self._ending_at(page) for page in pages)

    def _checked(self, modules: Iterable[FoundModule | None]) -> Iterator[tuple[FoundModule, bool]]:
        for found in modules:
            if found is not None:
                yield found, first_problem(found.admin_page, found.size_bytes) is None

    def _could_be_module(self) -> bool:
        """Whether a file taken for memory ends like a module, and is odd as memory.

        That is, too small for it, or what ends there is not sound.
        """
        found = self._as_module_image(strict=False)
        if found is None or found.admin_offset > _MAX_PAGES_BEFORE * PAGE_SIZE:
            return False
        in_memory = self._ending_at(found.admin_offset)
        return (
            self.size_bytes < _SMALLEST_MEMORY_BYTES
            or in_memory is None
            or first_problem(in_memory.admin_page, in_memory.size_bytes) is not None
        )

    def _as_module_image(self, strict: bool) -> FoundModule | None:
        """The whole file as a module, if its last page is one that can end it.

        A file that has less than a page behind that one is a module of a wrong size: to search it
        like memory would find a sound module in it. `strict` asks the page's numbers as well.
        """
        last = round_down(max(self.size_bytes - 1, 0), PAGE_SIZE)
        found = self._as_module_that_ends_at(last, strict)
        if found is None and self.size_bytes % PAGE_SIZE and last:
            found = self._as_module_that_ends_at(last - PAGE_SIZE, strict)
        return found

    def _as_module_that_ends_at(self, last: int, strict: bool) -> FoundModule | None:
        page, settled = self._read_settled(last)
        if page[: len(EYE_CATCHER)] != EYE_CATCHER or len(page) < HEADER.size:
            return None
        _, n_pages, _, recs_off = HEADER.unpack(page)
        pages_before = last // PAGE_SIZE
        if strict and not (
            pages_before <= _MAX_PAGES_BEFORE
            and (n_pages >= pages_before or recs_off == fresh_recs_off(pages_before))
        ):
            return None  # its numbers speak of a module that is a part of the file
        return FoundModule(
            0,
            self.size_bytes,
            page.ljust(PAGE_SIZE, b"\0"),
            None,
            last,
            settled,
            len(page),
            self.read,
            self._space.has,
        )

    def _ending_at(self, offset: int) -> FoundModule | None:
        """The module that the page at `offset` ends, as far as it is there; None without header."""
        page, settled = self._read_settled(offset)
        if page[: len(EYE_CATCHER)] != EYE_CATCHER or len(page) < HEADER.size:
            return None  # it went away since it was seen
        _, n_pages, _, _ = HEADER.unpack(page)
        start = max(offset - n_pages * PAGE_SIZE, 0)
        size = offset + len(page) - start
        return FoundModule(
            start,
            size,
            page.ljust(PAGE_SIZE, b"\0"),
            PhysAddr(start),
            offset,
            settled,
            len(page),
            self.read,
            self._space.has,
        )

    def _read_settled(self, offset: int) -> tuple[bytes, bool]:
        """A page as it was twice in a row: all of it is of one moment, if a domain writes to it."""
        before = None
        for _ in range(_READS_TO_SETTLE):
            page = self.read(offset, PAGE_SIZE)
            if page == before:
                return page, True
            before = page
        return page, False


def _sound_first(candidates: Iterable[tuple[FoundModule, bool]]) -> list[FoundModule]:
    sound_ones: list[FoundModule] = []
    others: list[FoundModule] = []
    for found, sound in candidates:
        known = sound_ones if sound else others
        if len(known) < _MAX_FOUND:
            known.append(found)
    return sound_ones + others
