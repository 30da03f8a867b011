"""Which bytes of a module's pages are what: the notes beside a hex dump.

    administration page   header fields, pg2rec, record table, data of the records by their fields
    interface page        its indices, ring_order, ref[]
    ring page             the 9P messages that are pending; the rest was taken, or never written

**Invariants.** The notes of a page are in order, don't overlap, and cover every byte of it,
whatever the page says: where two claim the same byte, as in a module that is not sound, the first
in the page has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from xenlive.abi.kexec_module import (
    HEADER,
    PAGE_FREE,
    PG2REC_OFFSET,
    RECORD,
    RECORD_9PFS,
    RECORD_NONE,
    TYPE_NAMES,
)
from xenlive.abi.layout import Layout
from xenlive.abi.xen9pfs import INTERFACE
from xenlive.abi.xen9pfs import RECORD_9PFS as LAYOUT_9PFS
from xenlive.dump.own_records import layouts_in
from xenlive.dump.roles import ADMIN, RING_IN, RING_OUT, record_name, roles_of
from xenlive.dump.roles import INTERFACE as INTERFACE_PAGE
from xenlive.dump.roles import in_words as role_in_words
from xenlive.dump.words import printable
from xenlive.memory.address import PAGE_SIZE

HEAD = "head"  # kinds of notes, for colours
OWNERS = "owners"
TABLE = "table"
DATA = "data"
PENDING = "pending"
REST = "rest"


@dataclass(frozen=True)
class Note:
    """`size` bytes at `offset` of a page are `name`; `value` says what they say, if that is short.

    `owner` is the record they belong to, or -1.
    """

    offset: int
    size: int
    name: str
    value: str = ""
    kind: str = REST
    owner: int = -1

    @property
    def end(self) -> int:
        """The first offset after it."""
        return self.offset + self.size


class Annotator:
    """The notes for any page of one module, from what `describe` says of it."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._description = description
        self._roles = roles_of(description)
        self._records = {record["index"]: record for record in description["records"]}

    def notes(self, page: int, data: bytes) -> list[Note]:
        """The notes for the page of that index, whose bytes are `data`."""
        role = self._roles[page]
        if role.owner == ADMIN:
            return _all_of(_admin_notes(self._description, data), data)
        if role.part == INTERFACE_PAGE:
            return _all_of(_interface_notes(self._records[role.owner], data), data)
        if role.part in (RING_IN, RING_OUT):
            notes = _ring_notes(self._records[role.owner], role.part, role.place)
            return _all_of(notes, data, "not pending")
        return [Note(0, len(data), "", owner=role.owner)] if data else []

    def title(self, page: int) -> str:
        """What the page is: `page 3: record 0 (9PFS), in ring, page 2`."""
        return f"page {page}: {role_in_words(self._roles[page], self._description)}"


def record_notes(record: Mapping[str, Any], start: int = 0) -> list[Note]:
    """The fields of a record's data, or all of it as one; `start` is where the data lies."""
    data = bytes.fromhex(record["data"])
    name = f"record {record['index']} ({record_name(record)})"
    owner = record["index"]
    layouts = layouts_in(record["type"], data)
    if record["type"] == RECORD_9PFS and len(data) >= LAYOUT_9PFS.size:
        layouts = [("", LAYOUT_9PFS, 0)]
    notes = [
        replace(note, name=f"{name} {prefix}{note.name}", owner=owner)
        for prefix, part, offset in layouts
        for note in _fields(part, data, start, offset, DATA)
    ]
    return _filled(
        notes, start, len(data), lambda first, end: Note(first, end, name, "", DATA, owner)
    )


def _admin_notes(description: Mapping[str, Any], page: bytes) -> Iterable[Note]:
    yield from _fields(HEADER, page, 0, 0, HEAD)
    owners = bytes.fromhex(description["pg2rec"])
    first = 0
    for owner, group in groupby(owners):
        last = first + len(list(group)) - 1
        value = "free" if owner == PAGE_FREE else f"record {owner}"
        yield Note(
            PG2REC_OFFSET + first,
            last - first + 1,
            _indexed("pg2rec", first, last),
            value,
            OWNERS,
            owner,
        )
        first = last + 1
    yield from _table_notes(description, page)
    for record in description["records"]:
        yield from record_notes(record, record["offset"])


def _table_notes(description: Mapping[str, Any], page: bytes) -> Iterable[Note]:
    start = description["recs_off"]
    n_fitting = max(min(description["n_records"], (len(page) - start) // RECORD.size), 0)
    entries = [page[start + i * 4 : start + i * 4 + 4] for i in range(n_fitting)]
    index = 0
    for entry, group in groupby(entries, lambda entry: entry if any(entry) else None):
        n = len(list(group))
        if entry is None:
            where, size = start + index * RECORD.size, n * RECORD.size
            yield Note(where, size, _indexed("rec", index, index + n - 1), "unused", TABLE)
        else:
            for i in range(index, index + n):
                yield Note(
                    start + i * RECORD.size, RECORD.size, f"rec[{i}]", _entry(entry), TABLE, i
                )
        index += n


def _entry(entry: bytes) -> str:
    offset, type_, size = RECORD.unpack(entry)
    if type_ == RECORD_NONE:
        return f"reserved: {size} bytes at {offset}"
    return f"type {type_} ({TYPE_NAMES.get(type_, 'unknown')}), {size} bytes at {offset}"


def _interface_notes(record: Mapping[str, Any], page: bytes) -> Iterable[Note]:
    yield from _fields(INTERFACE, page, 0, 0, HEAD)
    refs = record["decoded"]["interface"]["ref"]
    value = f"{refs[0]} to {refs[-1]}"
    yield Note(INTERFACE.size, 4 * len(refs), _indexed("ref", 0, len(refs) - 1), value, TABLE)


def _ring_notes(record: Mapping[str, Any], part: str, place: int) -> Iterable[Note]:
    """The pending messages that lie in the page `place` of one half of the ring."""
    ring = record["decoded"]["rings"][part]
    if not ring or not ring["pending_bytes"]:
        return
    size = ring["size_bytes"]
    stretches = [
        (
            message["index"],
            message["present_bytes"],
            f"{message['type_name']} tag {message['tag']}",
            f"{message['size']} bytes",
        )
        for message in ring["messages"]
    ]
    told = sum(length for _, length, _, _ in stretches)
    if told < ring["pending_bytes"]:
        stretches.append(
            (ring["cons"] + told, ring["pending_bytes"] - told, f"{part} ring, pending", "")
        )
    low, high = place * PAGE_SIZE, (place + 1) * PAGE_SIZE
    for index, length, name, value in stretches:
        first = index & (size - 1)
        for turn in (0, size):  # what goes over the end of the ring goes on at its start
            begin, end = max(first - turn, low), min(first + length - turn, high)
            if begin < end:
                goes_on = "" if begin == first - turn else " (goes on)"
                yield Note(
                    begin - low, end - begin, name + goes_on, value, PENDING, record["index"]
                )


def _fields(layout: Layout, data: bytes, start: int, offset: int, kind: str) -> Iterable[Note]:
    """A structure that starts at `offset` of `data`; `start` is where `data` lies in the page."""
    if offset + layout.size > len(data):
        return
    values = layout.decode(data, offset)
    for field in layout.fields:
        value = values.get(field.name, "")
        shown = (
            printable(value.decode("ascii", "backslashreplace"))
            if isinstance(value, bytes)
            else str(value)
        )
        yield Note(start + offset + field.offset, field.size, field.name.lstrip("_"), shown, kind)


def _indexed(name: str, first: int, last: int) -> str:
    return f"{name}[{first}]" if first == last else f"{name}[{first}-{last}]"


def _all_of(notes: Iterable[Note], page: bytes, rest: str = "") -> list[Note]:
    """The notes, and what they leave of the page: zeros are unused."""

    def between(first: int, end: int) -> Note:
        return Note(
            first, end, rest or ("in no record" if any(page[first : first + end]) else "unused")
        )

    return _filled(notes, 0, len(page), between)


def _filled(
    notes: Iterable[Note], start: int, size: int, between: Callable[[int, int], Note]
) -> list[Note]:
    """Notes in order, each cut to what those before it left; `between(offset, size)` for gaps."""
    filled: list[Note] = []
    at, end = start, start + size
    for note in sorted(notes, key=lambda note: (note.offset, note.end)):
        first, last = max(note.offset, at), min(note.end, end)
        if first >= last:
            continue
        if first > at:
            filled.append(between(at, first - at))
        filled.append(replace(note, offset=first, size=last - first))
        at = last
    if at < end:
        filled.append(between(at, end - at))
    return filled
