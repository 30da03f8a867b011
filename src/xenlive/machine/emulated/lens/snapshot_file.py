"""Snapshots on disk.

    0    8     magic, "XenlvSnp"
    8    4     version of this format, 2
    12   4     how many records follow
    16   16    the processor's release, "unicorn 2.1.4", padded with NUL
    32         records, one after the other:
             u32 kind, u32 domain, u64 place, u64 size, u32 CRC-32, u32 0; the bytes

    kind 1  state: JSON in UTF-8, the first record and there once
    kind 2  file number `place`: a kernel or a module, in order
    kind 3  memory of `domain` from `place` on, what lies in a row together

All numbers are little-endian.

**Invariants.** A file is a whole snapshot or one ImageError, whose offset is in the file; each
number is checked before it is used, and no more is held than the file has bytes. What the JSON says
is for `restore_world` to check. A file that was made with another release of the processor, or
another version of the format, is refused: the state of a processor is that release's alone.
"""

from __future__ import annotations

import binascii
import errno
import json
import os
import stat
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

from xenlive.errors import ImageError
from xenlive.machine.emulated.lens.snapshot import GUESTS_MAX, Snapshot
from xenlive.machine.emulated.processor.library import VERSION as UNICORN
from xenlive.machine.emulated.sparse import PIECE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"XenlvSnp"
VERSION = 2
ENGINE = f"unicorn {UNICORN}".encode()

_HEADER = struct.Struct("<8sII16s")
_RECORD = struct.Struct("<IIQQII")
_STATE, _FILE, _MEMORY = 1, 2, 3
_STATE_MAX = 256 << 20
# Memory that lies in a row is written in parts of this size, so that it can be read in parts.
_ROW_BYTES = 4 << 20


# ---- writing -------------------------------------------------------------------------------------


def write_snapshot(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Writes it to a file, whole or not at all: what was there stays until then. OSError.

    Only a file is put in the place of what was there: a device stays one.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "is no regular file", os.fspath(path))
    records = list(_records(snapshot))
    aside = f"{os.fspath(path)}.{os.getpid()}"
    try:
        with open(aside, "xb") as file:
            file.write(_HEADER.pack(MAGIC, VERSION, len(records), ENGINE))
            for kind, domid, place, data in records:
                crc = binascii.crc32(data)
                file.write(_RECORD.pack(kind, domid, place, len(data), crc, 0))
                file.write(data)
        os.replace(aside, path)
    except BaseException as problem:
        if os.path.exists(aside):
            os.unlink(aside)
        if isinstance(problem, OSError) and problem.filename == aside:
            raise OSError(problem.errno, problem.strerror, os.fspath(path)) from None
        raise


def _records(snapshot: Snapshot) -> Iterator[tuple[int, int, int, bytes]]:
    yield _STATE, 0, 0, json.dumps(snapshot.state, separators=(",", ":")).encode()
    for number, data in enumerate(snapshot.files):
        yield _FILE, 0, number, data
    for domid, pieces in snapshot.memory.items():
        for start, data in _rows(pieces):
            yield _MEMORY, domid, start, data


def _rows(pieces: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """Pieces that follow each other as one, up to a size."""
    row: list[bytes] = []
    first = size = 0
    for start in sorted(pieces):
        if row and (start != first + size or size >= _ROW_BYTES):
            yield first, b"".join(row)
            row, size = [], 0
        if not row:
            first = start
        row.append(pieces[start])
        size += len(pieces[start])
    if row:
        yield first, b"".join(row)


# ---- reading -------------------------------------------------------------------------------------


def read_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """The snapshot in a file. ImageError if it is not a sound one; OSError."""
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("snapshot-file", "no regular file")
        return read_from(file, status.st_size)


def _open_at_once(path: str, flags: int) -> int:
    """Opens for `open`, without waiting for whoever writes to a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def read_from(file: BinaryIO, size: int) -> Snapshot:
    """The same from an open file of `size` bytes."""
    reader = _Reader(file, size)
    n_records = reader.read_header()
    if not 1 <= n_records <= size // _RECORD.size:
        raise ImageError("snapshot-records", "an odd number of records", 12, n_records)
    for index in range(n_records):
        reader.read_record(is_first=index == 0)
    if reader.offset != size:
        raise ImageError("snapshot-records", "bytes after the last record", reader.offset)
    return Snapshot(reader.state, reader.memory, tuple(reader.files))


class _Reader:
    """One reading of a file; `offset` is where the next bytes are."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self.offset = 0
        self.state: dict[str, Any] = {}
        self.memory: dict[int, dict[int, bytes]] = {}
        self.files: list[bytes] = []

    def _read(self, size: int, what: str) -> bytes:
        if size > self._size - self.offset:
            raise ImageError("snapshot-truncated", f"no room for {what}", self.offset, size)
        data = self._file.read(size)
        if len(data) != size:
            raise ImageError("snapshot-truncated", f"the file ends in {what}", self.offset)
        self.offset += size
        return data

    def read_header(self) -> int:
        """How many records there are. ImageError for a file that this program did not make."""
        header = self._read(_HEADER.size, "a header")
        magic, version, n_records, engine = _HEADER.unpack(header)
        if magic != MAGIC:
            raise ImageError("snapshot-magic", "no snapshot of a world", 0, magic)
        if version != VERSION:
            what = f"a snapshot in a form that is not version {VERSION}"
            raise ImageError("snapshot-version", what, 8, version)
        if engine.rstrip(b"\0") != ENGINE:
            what = f"made with another processor than {ENGINE.decode()}"
            raise ImageError("snapshot-engine", what, 16, engine.rstrip(b"\0"))
        count: int = n_records
        return count

    def read_record(self, is_first: bool) -> None:
        """Reads and keeps the next record."""
        at = self.offset
        kind, domid, place, size, crc, pad = _RECORD.unpack(self._read(_RECORD.size, "a record"))
        if kind not in (_STATE, _FILE, _MEMORY) or pad or (kind == _STATE) is not is_first:
            raise ImageError("snapshot-record", "no such record here", at, kind)
        if size > (_STATE_MAX if kind == _STATE else self._size):
            raise ImageError("snapshot-record", "a record of that size", at + 16, size)
        data = self._read(size, "a record's bytes")
        if binascii.crc32(data) != crc:
            raise ImageError("snapshot-crc", "bytes that are not what was written", at + 24, crc)
        if kind == _STATE:
            self.state = _decode_state(data, at + _RECORD.size)
        elif kind == _FILE:
            if place != len(self.files):
                raise ImageError("snapshot-record", "files are out of order", at + 8, place)
            self.files.append(data)
        else:
            self._keep_memory(domid, place, data, at)

    def _keep_memory(self, domid: int, start: int, data: bytes, at: int) -> None:
        if start % PIECE_SIZE or start >> 40 or not data:
            raise ImageError("snapshot-memory", "memory at an odd place", at + 8, start)
        if domid not in self.memory and len(self.memory) == GUESTS_MAX:
            raise ImageError("snapshot-memory", "memory of too many domains", at + 4, domid)
        known = self.memory.setdefault(domid, {})
        for offset in range(0, len(data), PIECE_SIZE):
            if start + offset in known:
                raise ImageError("snapshot-memory", "memory twice", at + 8, start + offset)
            known[start + offset] = data[offset : offset + PIECE_SIZE]


def _decode_state(data: bytes, at: int) -> dict[str, Any]:
    try:
        state = json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise ImageError("snapshot-json", "a state of too many levels", at) from None
    except ValueError as error:
        where = at + getattr(error, "pos", 0)
        raise ImageError("snapshot-json", "a state that is no JSON", where) from None
    if type(state) is not dict:
        raise ImageError("snapshot-json", "a state that is no object", at)
    return state


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)
