"""Changes as bytes: how a journal writes them down, and how another kernel reads them.

    ┌──────┬─────────┬─────────┬──────┬──────┬──────┬──         numbers: little endian, as wide as
    │ kind │ field 1 │ field 2 │ len  │ len  │ bytes│ …         their field; -1 where there is none
    └──u8──┴─────────┴─────────┴─u32──┴─u32──┴──────┴──         of a commit: the count (u32) of its
     ◀───────────── head ────────────────────▶◀ body ▶          changes, and these for a body

Which fields a kind has stands in `changes.FIELDS`. A change says itself where it ends.

**Invariants.** What `decode` returns has its fields in their bounds: paths are canonical,
permissions sound, nothing is longer than the wire allows. Each change has one encoding:
`encode(decode(data)) == data`. Anything else is an ImageError with the offset and the value.
Whether a change fits the state of a server is for `replay` to check.

Why all lengths are in the head: so a change is one `pack` and a concatenation, half a microsecond.
"""

from __future__ import annotations

import struct

from xenlive.abi.xs_wire import XENSTORE_ABS_PATH_MAX, XENSTORE_PAYLOAD_MAX
from xenlive.errors import ImageError, XenstoreError
from xenlive.xenstore import changes, perms
from xenlive.xenstore.paths import canonical

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from xenlive.xenstore.changes import Change

_U32 = (1 << 32) - 1
_U63 = (1 << 63) - 1
_U64 = (1 << 64) - 1
_PERMS_MAX = 0xFFFF * perms.ENTRY_SIZE
_NAME_MAX = 255
#: What a commit does to the store.
_OF_A_COMMIT = (changes.VALUE, changes.PERMS, changes.CREATE, changes.REMOVE)

# Numbers: how `struct` has them, the smallest and the largest.
_NUMBERS: dict[int, tuple[str, int, int]] = {
    changes.CONNECTION: ("Q", 1, _U63),
    changes.DOMID: ("H", 0, 0xFFFF),
    changes.MAYBE_DOMID: ("i", changes.NONE, 0xFFFF),
    changes.FLAG: ("B", 0, 1),
    changes.TX_ID: ("I", 1, _U32),
    changes.U32: ("I", 0, _U32),
    changes.MAYBE_U32: ("q", changes.NONE, _U32),
    changes.U64: ("Q", 0, _U64),
    changes.NANOSECONDS: ("Q", 0, _U63),
}


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


class _Form:
    """How one kind is written: its head, the fields of the head, and the bytes after it."""

    __slots__ = ("bytes", "has_changes", "head", "numbers", "pack")

    def __init__(self, fields: tuple[int, ...]) -> None:
        self.numbers = [field for field in fields if field in _NUMBERS]
        self.bytes = [field for field in fields if field in _BYTES]
        self.has_changes = changes.CHANGES in fields
        sizes = len(fields) - len(self.numbers)
        letters = "".join([_NUMBERS[field][0] for field in self.numbers])
        self.head = struct.Struct("<B" + letters + "I" * sizes)
        self.pack = self.head.pack


_FORMS = {kind: _Form(fields) for kind, fields in changes.FIELDS.items()}
#: By kind: how its head is packed, and how many byte fields there are; -1 for a list of changes.
_PACKING = {
    kind: (form.pack, -1 if form.has_changes else len(form.bytes)) for kind, form in _FORMS.items()
}

_pack_pair = _FORMS[changes.VALUE].pack


def encode(change: Change) -> bytes:
    """The bytes of a change, which is one that a server told its journal."""
    pack: Callable[..., bytes]
    first: bytes
    second: bytes
    last: bytes
    kind = change[0]
    if kind == changes.VALUE or kind == changes.PERMS:  # nearly all there are
        _, first, last = change
        return _pack_pair(kind, len(first), len(last)) + first + last
    pack, count = _PACKING[kind]
    if count == 1:
        last = change[-1]
        return pack(*change[:-1], len(last)) + last
    if count == 2:
        *numbers, first, last = change
        return pack(*numbers, len(first), len(last)) + first + last
    if count == 0:
        return pack(*change)
    if count == 3:
        *numbers, first, second, last = change
        return pack(*numbers, len(first), len(second), len(last)) + first + second + last
    listed = change[-1]
    return pack(*change[:-1], len(listed)) + b"".join([encode(each) for each in listed])


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
    return _decode(data, offset, _FORMS)


def _decode(data: bytes, offset: int, kinds: Container[int]) -> tuple[Change, int]:
    if offset >= len(data):
        raise ImageError("change-truncated", "no byte left for a change", offset, 0)
    kind = data[offset]
    if kind not in kinds:
        raise ImageError("change-bad-kind", "no kind of change that can be here", offset, kind)
    form = _FORMS[kind]
    at = offset + form.head.size
    if at > len(data):
        raise ImageError("change-truncated", "a change ends in its head", offset, kind)
    head = form.head.unpack_from(data, offset)
    count = len(form.numbers) + 1
    for field, number in zip(form.numbers, head[1:count], strict=True):
        _, smallest, largest = _NUMBERS[field]
        if not smallest <= number <= largest:
            raise ImageError("change-bad-number", "a number out of its bounds", offset, number)
    if form.has_changes:
        listed, at = _decode_list(data, at, head[-1])
        return (*head[:-1], listed), at
    found: list[bytes] = []
    for field, size in zip(form.bytes, head[count:], strict=True):
        limit, is_sound = _BYTES[field]
        if size > limit:
            raise ImageError("change-bad-bytes", "longer than the field may be", at, size)
        raw = data[at : at + size]
        if len(raw) != size:
            raise ImageError("change-truncated", "a change ends in its bytes", at, size)
        if not is_sound(raw):
            raise ImageError("change-bad-bytes", "not what the field has to be", at, raw)
        found.append(perms.intern(raw) if field == changes.PERMISSIONS else raw)
        at += size
    return (*head[:count], *found), at


def _decode_list(data: bytes, at: int, count: int) -> tuple[tuple[Change, ...], int]:
    if count > len(data) - at:
        raise ImageError("change-truncated", "no room for that many changes", at, count)
    listed: list[Change] = []
    for _ in range(count):
        change, at = _decode(data, at, _OF_A_COMMIT)
        listed.append(change)
    return tuple(listed), at
