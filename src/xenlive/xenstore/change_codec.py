"""Changes as bytes: how a journal writes them down, and how another kernel reads them.

    ┌──────┬─────────┬─────────┬──            numbers: little endian, as wide as their field
    │ kind │ field 1 │ field 2 │ …            a number or id that may be missing: 0, or 1 and it
    └──u8──┴─────────┴─────────┴──            bytes: their length (u32), then they
                                              changes of a commit: their count (u32), then they

Which fields a kind has stands in `changes.FIELDS`. A change says itself where it ends.

**Invariants.** What `decode` returns has its fields in their bounds: paths are canonical,
permissions sound, nothing is longer than the wire allows. Each change has one encoding:
`encode(decode(data)) == data`. Anything else is an ImageError with the offset and the value.
Whether a change fits the state of a server is for `replay` to check.
"""

from __future__ import annotations

from xenlive.abi.xs_wire import XENSTORE_ABS_PATH_MAX, XENSTORE_PAYLOAD_MAX
from xenlive.errors import ImageError, XenstoreError
from xenlive.xenstore import changes, perms
from xenlive.xenstore.paths import canonical

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.xenstore.changes import Change

_U32 = (1 << 32) - 1
_U63 = (1 << 63) - 1
_U64 = (1 << 64) - 1
_COUNT_SIZE = 4
_PERMS_MAX = 0xFFFF * perms.ENTRY_SIZE
_NAME_MAX = 255
#: What a commit does to the store.
_OF_A_COMMIT = (changes.VALUE, changes.PERMS, changes.CREATE, changes.REMOVE)

# Numbers: size in bytes, smallest, largest, and whether there may be none.
_NUMBERS: dict[int, tuple[int, int, int, bool]] = {
    changes.CONNECTION: (8, 1, _U63, False),
    changes.DOMID: (2, 0, 0xFFFF, False),
    changes.MAYBE_DOMID: (2, 0, 0xFFFF, True),
    changes.PORT: (4, 0, _U32, False),
    changes.MAYBE_U64: (8, 0, _U64, True),
    changes.FLAG: (1, 0, 1, False),
    changes.U32: (4, 0, _U32, False),
    changes.TX_ID: (4, 1, _U32, False),
    changes.NANOSECONDS: (8, 0, _U63, False),
    changes.MAYBE_U32: (4, 0, _U32, True),
}


def encode(change: Change) -> bytes:
    """The bytes of a change, which is one that a server told its journal."""
    parts: list[bytes] = []
    _encode_into(parts, change)
    return b"".join(parts)


def decode(data: bytes) -> Change:
    """The change that `data` is, all of it. ImageError if it is not sound.

    Codes: `change-truncated`, `change-trailing`, `change-bad-kind`, `change-bad-number`,
    `change-bad-bytes`.
    """
    change, end = decode_at(data, 0)
    if end != len(data):
        raise ImageError("change-trailing", "bytes after a change", end, len(data) - end)
    return change


def decode_at(data: bytes, offset: int) -> tuple[Change, int]:
    """The change at `offset`, and where it ends. ImageError as `decode`."""
    reader = _Reader(data, offset)
    return reader.change(), reader.offset


def _encode_into(parts: list[bytes], change: Change) -> None:
    kind = change[0]
    parts.append(kind.to_bytes(1, "little"))
    for field, value in zip(changes.FIELDS[kind], change[1:], strict=True):
        if field == changes.CHANGES:
            parts.append(len(value).to_bytes(_COUNT_SIZE, "little"))
            for each in value:
                _encode_into(parts, each)
        elif field >= changes.PATH:
            parts += (len(value).to_bytes(_COUNT_SIZE, "little"), value)
        else:
            size, _, _, may_miss = _NUMBERS[field]
            if may_miss:
                parts.append(b"\0" if value == changes.NONE else b"\1")
                if value == changes.NONE:
                    continue
            parts.append(value.to_bytes(size, "little"))


class _Reader:
    """One reading of bytes that may be anybody's; `offset` is where it is."""

    __slots__ = ("data", "offset")

    def __init__(self, data: bytes, offset: int) -> None:
        self.data = data
        self.offset = offset

    def change(self, kinds: tuple[int, ...] | None = None) -> Change:
        """The next change, of one of `kinds` if that says any."""
        start = self.offset
        kind = self._number(1)
        fields = changes.FIELDS.get(kind)
        if fields is None or (kinds is not None and kind not in kinds):
            raise ImageError("change-bad-kind", "no kind of change that can be here", start, kind)
        return (kind, *[self._field(field) for field in fields])

    def _field(self, field: int) -> object:
        if field == changes.CHANGES:
            start = self.offset
            count = self._number(_COUNT_SIZE)
            if count > len(self.data) - self.offset:
                raise ImageError("change-truncated", "no room for that many changes", start, count)
            return tuple([self.change(_OF_A_COMMIT) for _ in range(count)])
        if field >= changes.PATH:
            return self._bytes(field)
        size, smallest, largest, may_miss = _NUMBERS[field]
        start = self.offset
        if may_miss:
            is_there = self._number(1)
            if is_there > 1:
                raise ImageError("change-bad-number", "neither there nor not", start, is_there)
            if not is_there:
                return changes.NONE
        number = self._number(size)
        if not smallest <= number <= largest:
            raise ImageError("change-bad-number", "a number out of its bounds", start, number)
        return number

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _bytes(self, field: int) -> bytes:
        start = self.offset
        size = self._number(_COUNT_SIZE)
        limit, is_sound = _BYTES[field]
        if size > limit:
            raise ImageError("change-bad-bytes", "longer than the field may be", start, size)
        raw = self._take(size)
        if not is_sound(raw):
            raise ImageError("change-bad-bytes", "not what the field has to be", start, raw)
        return perms.intern(raw) if field == changes.PERMISSIONS else raw

    def _take(self, size: int) -> bytes:
        start = self.offset
        end = start + size
        if end > len(self.data):
            raise ImageError("change-truncated", "a change ends too early", start, size)
        self.offset = end
        return self.data[start:end]


def _is_path(raw: bytes) -> bool:
    try:
        return canonical(b"", raw, True, XENSTORE_ABS_PATH_MAX) == raw
    except XenstoreError:
        return False


def _is_data(raw: bytes) -> bool:
    return True


def _is_token(raw: bytes) -> bool:
    return b"\0" not in raw


def _is_name(raw: bytes) -> bool:
    return raw != b"" and raw.isascii() and b"\0" not in raw


# Bytes: the greatest length, and whether they are sound.
_BYTES: dict[int, tuple[int, Callable[[bytes], bool]]] = {
    changes.PATH: (XENSTORE_ABS_PATH_MAX, _is_path),
    changes.DATA: (XENSTORE_PAYLOAD_MAX, _is_data),
    changes.PERMISSIONS: (_PERMS_MAX, perms.valid_stream_entry),
    changes.TOKEN: (XENSTORE_PAYLOAD_MAX, _is_token),
    changes.NAME: (_NAME_MAX, _is_name),
}
