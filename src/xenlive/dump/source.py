"""The file behind an image: read in place, never mapped, never changed.

    mapped         a file that shrinks while it is looked at is a SIGBUS; a page that is looked at
                   may be made; a live domain shares the mapping's page tables' costs
    read (pread)   fewer bytes come back; a hole is zeros and stays a hole

Opening `/proc/PID/fd/N` makes a descriptor of our own on the same memory: its offset, which
`SEEK_DATA` moves, is not the domain's.

**Invariants.** The file is opened for reading only and neither locked nor waited for. Numbers from
the outside may be of any size: what lies outside of the file is not there, and no error. Once it is
open, what the system can't read is an `ImageError` (`unreadable`): an `OSError` that somebody meets
while an image is open is not about the image.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from xenlive.errors import ImageError

# A file's runs of data are listed window by window, so that the list stays short.
_WINDOW_BYTES = 64 << 20
# Up to here reading zeros is cheaper than asking where the next data are.
_GAP_BYTES = 64 << 10


class Source:
    """An open file; `size_bytes` is its size when it was opened, `unlinked` what a memfd is."""

    def __init__(self, path: Path) -> None:
        """Opens a regular file. OSError as `open`; ImageError (`not-an-image`) if it is none."""
        self.path = path
        # Not waiting for a peer, should it be a FIFO.
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(self._fd)
            if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
                what = "is a pipe: save what comes out of it to a file first"
                raise self.error("not-an-image", what)
            if not stat.S_ISREG(status.st_mode):
                raise self.error("not-an-image", "is no regular file")
            self.size_bytes = status.st_size
            self.unlinked = status.st_nlink == 0
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the file; no call after that, but a second `close` does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def error(
        self, code: str, what: str, offset: int | None = None, value: object = None
    ) -> ImageError:
        """The ImageError for this file; `what` goes on from its name: "is empty"."""
        return ImageError(code, f"{self.path} {what}", offset, value)

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; fewer where the file ends, as it is now."""
        size = min(size, self.size_bytes - offset)
        if offset < 0 or size <= 0:
            return b""
        data = self._pread(size, offset)
        if len(data) == size:
            return data
        parts = [data]
        while parts[-1]:  # a signal, or more than one call gives
            offset += len(parts[-1])
            size -= len(parts[-1])
            parts.append(self._pread(size, offset) if size else b"")
        return b"".join(parts)

    def is_at(self, path: Path) -> bool:
        """Whether a path leads to this very file, by whatever name."""
        try:
            return os.path.samestat(path.stat(), os.fstat(self._fd))
        except OSError:
            return False  # it is not there

    def _pread(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise self._unreadable(error, offset) from None

    def _unreadable(self, error: OSError, offset: int) -> ImageError:
        what = f"can't be read at {offset:#x}: {error.strerror or error}"
        return self.error("unreadable", what, offset)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Reads to `buffer`; how many bytes came, fewer where the file ends, as it is now."""
        done = 0
        while done < len(buffer) and offset + done < self.size_bytes:
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise self._unreadable(error, offset + done) from None
            if not count:
                break
            done += count
        return done

    def data_runs_from_end(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs (start, end) of [start, end) that are not holes, the last first.

        A hole of any size costs a few calls: the range is halved until it is small or empty.
        """
        waiting = [(max(start, 0), min(end, self.size_bytes))]
        while waiting:
            low, high = waiting.pop()
            low = self._data_from(low, high)
            if low >= high:
                continue
            if high - low > _WINDOW_BYTES:
                middle = low + (high - low) // 2
                waiting += [(low, middle), (middle, high)]
            else:
                yield from reversed(self._data_runs(low, high))

    def _data_runs(self, start: int, end: int) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        while start < end:
            hole = min(self._seek(start, os.SEEK_HOLE, end), end)
            hole = max(hole, start + 1)  # the data went away meanwhile
            if runs and start - runs[-1][1] <= _GAP_BYTES:
                start = runs.pop()[0]
            runs.append((start, hole))
            start = self._data_from(hole, end)
        return runs

    def _data_from(self, start: int, end: int) -> int:
        """Where data start, at `start` or behind it; `end` or more if there are none before it."""
        return self._seek(start, os.SEEK_DATA, start) if start < end else end

    def _seek(self, offset: int, whence: int, without_holes: int) -> int:
        try:
            return os.lseek(self._fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return self.size_bytes
            return without_holes  # a file system that can't say
