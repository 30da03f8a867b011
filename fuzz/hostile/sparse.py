"""Inputs that are files with holes: a few kilobytes stand for an image of many gigabytes.

 0 options  u8, what the target makes of it
 1 n_pieces u8
 2 size     u64, of the file
10 piece    12 bytes each: offset u64, length u32
   contents of the pieces, one after the other
"""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from hostile import bytewise

PAGE = 4096
MAX_FILE_BYTES = 1 << 40
MAX_PIECES = 48
_HEAD = struct.Struct("<BBQ")
_PIECE = struct.Struct("<QI")


@dataclass
class SparseCase:
    """A file of `size` bytes; `pieces` are (offset, bytes), later ones over earlier ones."""

    options: int
    size: int
    pieces: list[tuple[int, bytearray]] = field(default_factory=list)

    def encode(self) -> bytes:
        """The input's bytes."""
        pieces = self.pieces[:MAX_PIECES]
        head = _HEAD.pack(self.options % 256, len(pieces), self.size % (1 << 64))
        table = [_PIECE.pack(offset % (1 << 64), len(data)) for offset, data in pieces]
        return b"".join([head, *table, *(data for _, data in pieces)])


def decode_sparse(data: bytes) -> SparseCase:
    """The case that an input is; any bytes are one."""
    options, n_pieces, size = _HEAD.unpack_from(data.ljust(_HEAD.size, b"\0"))
    count = min(n_pieces, MAX_PIECES, max(len(data) - _HEAD.size, 0) // _PIECE.size)
    at = _HEAD.size + count * _PIECE.size
    case = SparseCase(options, size)
    for number in range(count):
        offset, length = _PIECE.unpack_from(data, _HEAD.size + number * _PIECE.size)
        case.pieces.append((offset, bytearray(data[at : at + length])))
        at += length
    return case


def scratch_place() -> str | None:
    """Where files are made that live for a moment: in memory if possible, a disk would take longer.

    A worker's own folder, if this is one (it goes away with the worker); None is the system's.
    """
    if tempfile.tempdir:
        return tempfile.tempdir
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class ScratchFile:
    """One file that is written anew for each input."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(
            prefix="xenlive-fuzz-image-", dir=scratch_place()
        )
        self.path = Path(self._folder.name) / "image"
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)

    def write(self, size: int, pieces: Iterator[tuple[int, bytes]]) -> None:
        """Makes it `size` bytes long, at most a terabyte, with `pieces` as far as they fit."""
        os.ftruncate(self._fd, 0)
        size = min(max(size, 0), MAX_FILE_BYTES)
        os.ftruncate(self._fd, size)
        for offset, data in pieces:
            if offset < size:
                os.pwrite(self._fd, data[: size - offset], offset)


def pieces_of_file(path: Path) -> SparseCase:
    """A file as a case: its pages that are not zero, runs of them as one piece."""
    case = SparseCase(0, path.stat().st_size)
    with path.open("rb") as file:
        for start, end in _data_runs(file.fileno(), case.size):
            file.seek(start)
            for at in range(start, end, PAGE):
                page = file.read(min(PAGE, end - at))
                if not page.strip(b"\0"):
                    continue
                last = case.pieces[-1] if case.pieces else None
                if last and last[0] + len(last[1]) == at:
                    last[1].extend(page)
                else:
                    case.pieces.append((at, bytearray(page)))
    return case


def _data_runs(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def mutate_sparse(data: bytes, rng: Random, max_bytes: int) -> bytes:
    """Another file: a number somewhere near the start of a piece, any byte, or its form."""
    case = decode_sparse(data)
    kind = rng.randrange(12)
    if kind == 0:
        case.options = rng.randrange(256)
    elif kind == 1:
        case.size = max(bytewise.number(rng, case.size, 8) % (1 << 41), 0)
    elif kind == 2 and case.pieces:
        index = rng.randrange(len(case.pieces))
        offset, content = case.pieces[index]
        case.pieces[index] = max(bytewise.near(rng, offset), 0), content
    elif kind == 3 and case.pieces and len(case.pieces) < MAX_PIECES:
        _, content = rng.choice(case.pieces)
        where = rng.randrange(max(case.size, 1)) & -PAGE
        case.pieces.append((where, bytearray(content[:PAGE])))
    elif case.pieces:
        _, content = case.pieces[rng.choice((0, 0, -1, rng.randrange(len(case.pieces))))]
        if kind < 9 and content:
            at = rng.randrange(min(len(content), rng.choice((64, 256, 1024)))) & ~1
            bytewise.put_number(content, rng, at, rng.choice((1, 2, 4, 4, 8)))
        else:
            bytewise.change(content, rng, max_bytes)
    return case.encode()[:max_bytes]
