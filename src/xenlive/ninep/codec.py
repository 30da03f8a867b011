"""9P2000.u messages as bytes, and back, driven by the table in `messages.py`.

`frame_size` says how long the message at the start of a buffer is, `decode` reads one whole
message, `encode` writes one. `encode_write` and `encode_read` are the short ways for the data
messages, which all the speed of a transfer hangs on.

**Invariants.** Any bytes give a message or one PeerError, never anything else; a message that
decodes has been used up to its last byte. `encode(*decode(x)) == x` for every message, but for
owners' names in a stat, which are neither kept nor sent.
"""

from __future__ import annotations

import struct

from xenlive.errors import PeerError
from xenlive.ninep.messages import (
    HEADER_BYTES,
    MAX_WALK,
    MESSAGES,
    RREAD,
    RREAD_BYTES,
    TWRITE,
    TWRITE_BYTES,
    Qid,
    Stat,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Buffer

_HEADER = struct.Struct("<IBH")
_TWRITE = struct.Struct("<IBHIQI")
_RREAD = struct.Struct("<IBHI")
_INTS = {
    "u8": struct.Struct("<B"),
    "u16": struct.Struct("<H"),
    "u32": struct.Struct("<I"),
    "u64": struct.Struct("<Q"),
}
_U16 = _INTS["u16"]
_U32 = _INTS["u32"]
_QID = struct.Struct("<BIQ")
_STAT = struct.Struct("<HIBIQIIIQ")  # type dev qid(type version path) mode atime mtime length
_STAT_OWNERS = struct.Struct("<III")
_STAT_STRINGS = 5

#: Xen's own backend (`tools/9pfsd/io.c`) counts its five length fields twice.
_STAT_EXCESS = 10


class Message:
    """One decoded message: its number, its tag, its fields by name."""

    __slots__ = ("fields", "tag", "type")

    def __init__(self, type: int, tag: int, fields: dict[str, Any]) -> None:
        self.type = type
        self.tag = tag
        self.fields = fields

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def __repr__(self) -> str:
        return f"{name_of(self.type)}(tag={self.tag}, {self.fields})"


def name_of(type: int) -> str:
    """A message number's name; any number has one."""
    known = MESSAGES.get(type)
    return known[0] if known else f"message {type}"


def frame_size(buffer: Buffer, limit: int) -> int:
    """Bytes of the message that starts the buffer; 0 when its length is not there yet.

    PeerError if the length is below a header's or above `limit`: nothing after it can be trusted.
    """
    view = memoryview(buffer)
    if len(view) < 4:
        return 0
    size: int = _U32.unpack_from(view)[0]
    if not HEADER_BYTES <= size <= limit:
        raise PeerError("9P message length out of range", 0, size)
    return size


def header(frame: Buffer) -> tuple[int, int]:
    """Number and tag of a message, without a look at its fields; `frame` has at least a header."""
    _, type, tag = _HEADER.unpack_from(frame)
    return type, tag


def decode(frame: Buffer) -> Message:
    """One whole message. `data` fields are views of `frame`; all else is copied. PeerError."""
    view = memoryview(frame)
    if len(view) < HEADER_BYTES:
        raise PeerError("9P message shorter than its header", 0, len(view))
    size, type, tag = _HEADER.unpack_from(view)
    if size != len(view):
        raise PeerError("9P message length is not its size", 0, size)
    known = MESSAGES.get(type)
    if known is None:
        raise PeerError("unknown 9P message", 4, type)
    reader = _Reader(view, HEADER_BYTES)
    try:
        fields = {name: getattr(reader, kind)() for name, kind in known[1]}
    except struct.error:
        raise PeerError(f"{known[0]} ends early", reader.at, size) from None
    if reader.at != size:
        raise PeerError(f"{known[0]} has bytes after its end", reader.at, size - reader.at)
    return Message(type, tag, fields)


def encode(type: int, tag: int, **fields: Any) -> bytes:
    """One whole message; KeyError or struct.error for fields the table does not know or allow."""
    _, layout = MESSAGES[type]
    parts = [b""]
    for name, kind in layout:
        parts.append(_WRITERS[kind](fields.pop(name)))
    if fields:
        raise KeyError(f"{name_of(type)} has no field {', '.join(fields)}")
    parts[0] = _HEADER.pack(HEADER_BYTES + sum(map(len, parts)), type, tag)
    return b"".join(parts)


def encode_write(tag: int, fid: int, offset: int, size: int) -> bytes:
    """The start of a Twrite; the `size` bytes of data follow it."""
    return _TWRITE.pack(TWRITE_BYTES + size, TWRITE, tag, fid, offset, size)


def encode_read_reply(tag: int, size: int) -> bytes:
    """The start of an Rread; the `size` bytes of data follow it."""
    return _RREAD.pack(RREAD_BYTES + size, RREAD, tag, size)


def encode_stat(stat: Stat) -> bytes:
    """A stat with its own length in front, as Rstat and the contents of a directory have it."""
    body = b"".join(
        (
            _STAT.pack(
                *(0, 0, stat.qid.type, stat.qid.version, stat.qid.path),
                *(stat.mode, stat.atime, stat.mtime, stat.length),
            ),
            _write_string(stat.name),
            _write_string(b"") * (_STAT_STRINGS - 1),
            _STAT_OWNERS.pack(0, 0, 0),
        )
    )
    return _U16.pack(len(body)) + body


def decode_directory(data: Buffer) -> list[Stat]:
    """The entries in what was read from a directory. PeerError if they are not whole stats."""
    view = memoryview(data)
    reader = _Reader(view, 0)
    entries = []
    try:
        while reader.at < len(view):
            entries.append(reader.bare_stat())
    except struct.error:
        raise PeerError("a directory entry ends early", reader.at, len(view)) from None
    return entries


class _Reader:
    """Reads fields one after the other; struct.error past the end, PeerError for bad contents."""

    __slots__ = ("at", "view")

    def __init__(self, view: memoryview, at: int) -> None:
        self.view = view
        self.at = at

    def _integer(self, kind: struct.Struct) -> int:
        value: int = kind.unpack_from(self.view, self.at)[0]
        self.at += kind.size
        return value

    def u8(self) -> int:
        return self._integer(_INTS["u8"])

    def u16(self) -> int:
        return self._integer(_U16)

    def u32(self) -> int:
        return self._integer(_U32)

    def u64(self) -> int:
        return self._integer(_INTS["u64"])

    def _bytes(self, size: int) -> memoryview:
        end = self.at + size
        if end > len(self.view):
            raise PeerError("9P field reaches past the end", self.at, size)
        data = self.view[self.at : end]
        self.at = end
        return data

    def string(self) -> bytes:
        return bytes(self._bytes(self._integer(_U16)))

    def strings(self) -> list[bytes]:
        count = self._counted("names")
        return [self.string() for _ in range(count)]

    def data(self) -> memoryview:
        return self._bytes(self._integer(_U32))

    def qid(self) -> Qid:
        qid = Qid(*_QID.unpack_from(self.view, self.at))
        self.at += _QID.size
        return qid

    def qids(self) -> list[Qid]:
        count = self._counted("qids")
        return [self.qid() for _ in range(count)]

    def _counted(self, what: str) -> int:
        count = self._integer(_U16)
        if count > MAX_WALK:
            raise PeerError(f"more than {MAX_WALK} {what}", self.at - 2, count)
        return count

    def stat(self) -> Stat:
        start = self.at
        outer = self._integer(_U16)
        stat = self.bare_stat()
        if outer not in (self.at - start - 2, self.at - start - 2 + _STAT_EXCESS):
            raise PeerError("length around a stat is not its size", start, outer)
        return stat

    def bare_stat(self) -> Stat:
        start = self.at
        size = self._integer(_U16)
        _, _, qtype, version, path, mode, atime, mtime, length = _STAT.unpack_from(
            self.view, self.at
        )
        self.at += _STAT.size
        name, *_ = [self.string() for _ in range(_STAT_STRINGS)]
        _STAT_OWNERS.unpack_from(self.view, self.at)
        self.at += _STAT_OWNERS.size
        if size not in (self.at - start - 2, self.at - start - 2 + _STAT_EXCESS):
            raise PeerError("length of a stat is not its size", start, size)
        return Stat(name, Qid(qtype, version, path), mode, length, atime, mtime)


def _write_string(value: Buffer) -> bytes:
    data = bytes(value)
    return _U16.pack(len(data)) + data


def _write_strings(values: list[bytes]) -> bytes:
    return _U16.pack(len(values)) + b"".join(map(_write_string, values))


def _write_data(value: Buffer) -> bytes:
    data = bytes(value)
    return _U32.pack(len(data)) + data


def _write_qid(qid: Qid) -> bytes:
    return _QID.pack(qid.type, qid.version, qid.path)


def _write_qids(qids: list[Qid]) -> bytes:
    return _U16.pack(len(qids)) + b"".join(map(_write_qid, qids))


def _write_stat(stat: Stat) -> bytes:
    body = encode_stat(stat)
    return _U16.pack(len(body)) + body


_WRITERS: dict[str, Callable[[Any], bytes]] = {
    **{kind: integer.pack for kind, integer in _INTS.items()},
    "string": _write_string,
    "strings": _write_strings,
    "data": _write_data,
    "qid": _write_qid,
    "qids": _write_qids,
    "stat": _write_stat,
}
