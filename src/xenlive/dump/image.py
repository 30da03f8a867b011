"""Opening an image and finding the kexec module in it.

| image | how it is told | address of the module |
|---|---|---|
| module | a file that ends with the administration page, or less than a page behind it | unknown |
| memory | all else: a raw dump, a memfd, a run directory, by its `ram` | offset in the file |

In a memory image an offset is a guest physical address. Where the module lies is not written
anywhere, so every page boundary is tried for the eye catcher; holes of a sparse file are skipped.
Of several finds the highest sound one counts: a module lies near the top, and what is below it
may be an older copy.

**Invariants.** The image is only ever read, by `pread` and never through a mapping: a file that
shrinks meanwhile is an error and no bus error, and a live domain is not held up. Whatever the
bytes, there is a found module, which may be unsound, or an `ImageError` that says what is missing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from xenlive.abi.kexec_module import EYE_CATCHER, HEADER, MAX_MODULE_PAGES, fresh_recs_off
from xenlive.errors import ImageError
from xenlive.kexec.verify import verify
from xenlive.memory.address import PAGE_SIZE, PhysAddr, round_down, round_up

RAM_NAME = "ram"  # in a run directory: a link to the memory of the running domain
KINDS = ("auto", "module", "memory")

_CHUNK_BYTES = 1 << 20
_ELF_MAGIC = b"\x7fELF"


@dataclass(frozen=True)
class FoundModule:
    """Where a module lies in the image. `offset` and `size_bytes` are in bytes of the file.

    `admin_page` is a copy of the last page, filled up with zeros if the file ends inside of it;
    `address` is None in an image that does not say it.
    """

    offset: int
    size_bytes: int
    admin_page: bytes
    address: PhysAddr | None


class Image:
    """An open image. A context manager; `close` lets go of the file."""

    def __init__(self, path: Path | str, kind: str = "auto") -> None:
        """Opens a file or a run directory. OSError as `open`, ImageError if nothing can be in it.

        `kind` says how to read it: `module`, `memory`, or `auto` to tell by the table above.
        """
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}")
        self.path = Path(path)
        self.kind = kind
        if self.path.is_dir():
            self.path, self.kind = self.path / RAM_NAME, "memory"
        # Not waiting for a peer, should it be a FIFO.
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not-an-image", f"{self.path} is no regular file")
            self.size_bytes = status.st_size
            if status.st_nlink == 0 and self.kind == "auto":
                self.kind = "memory"  # a memfd
            if os.pread(self._fd, len(_ELF_MAGIC), 0) == _ELF_MAGIC:
                raise ImageError("elf-image", f"{self.path} is an ELF file, not raw memory", 0)
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
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; fewer where the file ends, as it is now."""
        parts = []
        while size > 0:
            part = os.pread(self._fd, size, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)

    def find_module(self) -> FoundModule:
        """The kexec module in it. ImageError (`no-module`) if there is none."""
        if self.kind != "memory":
            found = self._as_module_image()
            if found is not None:
                return found
        found = None if self.kind == "module" else self._scan()
        if found is None:
            raise ImageError("no-module", f"{self.path} has no kexec module in it")
        return found

    def _scan(self) -> FoundModule | None:
        """The highest sound module, else the highest that looks like one."""
        sound = other = None
        for offset in self._eye_catchers():
            candidate = self._candidate(offset)
            if candidate is None:
                continue
            if verify(candidate.admin_page, candidate.size_bytes):
                other = candidate
            else:
                sound = candidate
        return sound or other

    def _as_module_image(self) -> FoundModule | None:
        """The whole file as a module, if its last page is one that can end it.

        A file that has less than a page behind that one is a module of a wrong size: to search it
        like memory would find a sound module in it.
        """
        last = round_down(max(self.size_bytes - 1, 0), PAGE_SIZE)
        found = self._as_module_that_ends_at(last)
        if found is None and self.size_bytes % PAGE_SIZE and last:
            found = self._as_module_that_ends_at(last - PAGE_SIZE)
        return found

    def _as_module_that_ends_at(self, last: int) -> FoundModule | None:
        page = self.read(last, PAGE_SIZE)
        if page[: len(EYE_CATCHER)] != EYE_CATCHER or len(page) < HEADER.size:
            return None
        _, n_pages, _, recs_off = HEADER.unpack(page)
        pages_before = last // PAGE_SIZE
        if self.kind == "auto" and not (
            pages_before < MAX_MODULE_PAGES
            and (n_pages >= pages_before or recs_off == fresh_recs_off(pages_before))
        ):
            return None  # its numbers speak of a module that is a part of the file
        return FoundModule(0, self.size_bytes, page.ljust(PAGE_SIZE, b"\0"), None)

    def _candidate(self, offset: int) -> FoundModule | None:
        """The module that the page at `offset` ends, as far as it is there; None without header."""
        page = self.read(offset, PAGE_SIZE)
        if len(page) < HEADER.size:
            return None
        _, n_pages, _, _ = HEADER.unpack(page)
        start = max(offset - n_pages * PAGE_SIZE, 0)
        return FoundModule(
            start,
            offset + len(page) - start,
            page.ljust(PAGE_SIZE, b"\0"),
            PhysAddr(start),
        )

    def _eye_catchers(self) -> Iterator[int]:
        """Offsets of all pages that start with the eye catcher, lowest first."""
        for start, end in self._extents():
            for chunk_start in range(start, end, _CHUNK_BYTES):
                chunk = self.read(chunk_start, min(_CHUNK_BYTES, end - chunk_start))
                at = chunk.find(EYE_CATCHER)
                while at >= 0:
                    if at % PAGE_SIZE == 0:
                        yield chunk_start + at
                    at = chunk.find(EYE_CATCHER, round_up(at + 1, PAGE_SIZE))

    def _extents(self) -> Iterator[tuple[int, int]]:
        """Runs of the file that are not holes, from a page boundary on, lowest first."""
        end = 0
        while end < self.size_bytes:
            try:
                start = os.lseek(self._fd, end, os.SEEK_DATA)
                next_end = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    return
                start, next_end = end, self.size_bytes  # a file system without holes
            start = max(round_down(start, PAGE_SIZE), end)
            end = max(next_end, start + 1)
            end = min(round_up(end, PAGE_SIZE), self.size_bytes)
            yield start, end
