"""What changed in a module's records, in words: the part of `diff.py` that knows their types.

**Invariants.** Whatever differs in an entry or in its data is told: fields of types that are known
one by one, all else as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from xenlive.dump.roles import record_name
from xenlive.dump.words import count, runs

_U32 = 0xFFFFFFFF
_HALF = 1 << 31

#: Indices that run free, and what it means that one has gone on by so many bytes.
_MEANINGS = {
    "prod_pvt_out": "sent",
    "cons_pvt_in": "received",
    "in_prod": "answered by the backend",
    "in_cons": "taken from the in ring",
    "out_prod": "put in the out ring",
    "out_cons": "taken by the backend",
}
#: Bytes of data that are shown; of more only their number.
_SHOWN_BYTES = 16


def record_changes(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[tuple[int, str]]:
    """(index, what changed) of every change to a record, lowest index first."""
    old = {record["index"]: record for record in before["records"]}
    new = {record["index"]: record for record in after["records"]}
    for index in sorted(old.keys() | new.keys()):
        if index not in new:
            yield index, f"record {index} deleted: {_about(old[index])}"
        elif index not in old:
            yield index, f"record {index} new: {_about(new[index])}"
        else:
            name = f"record {index} ({record_name(new[index])})"
            for text in _changes(old[index], new[index]):
                yield index, f"{name}: {text}"


def _about(record: Mapping[str, Any]) -> str:
    return f"{record_name(record)}, {count(record['size'], 'byte')}"


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if old["type"] != new["type"]:
        yield f"was {_about(old)}"
    if old["offset"] != new["offset"]:
        yield f"data moved: {old['offset']} -> {new['offset']}"
    if old["size"] != new["size"]:
        yield f"size {old['size']} -> {new['size']}"
    outside = [_bytes_outside(record) for record in (old, new)]
    if outside[0] != outside[1]:
        yield f"bytes of it outside the page: {outside[0]} -> {outside[1]}"
    if not all(record["data"] or not record["size"] for record in (old, new)):
        return  # of one of them nothing can be said
    if old["data"] == new["data"]:
        fields = _fields(old["decoded"] or {}), _fields(new["decoded"] or {})
    elif old["type"] != new["type"] or None in (old["decoded"], new["decoded"]):
        yield _bytes_changed(bytes.fromhex(old["data"]), bytes.fromhex(new["data"]))
        return
    else:
        fields = _fields(old["decoded"]), _fields(new["decoded"])
        if fields[0] == fields[1]:  # what is not decoded: the copy that does not count
            yield _bytes_changed(bytes.fromhex(old["data"]), bytes.fromhex(new["data"]))
    names = dict.fromkeys([*fields[0], *fields[1]])
    if ("interface page" in fields[0]) != ("interface page" in fields[1]):
        # An interface page that came or went is one change; its fields are not told beside it.
        own = {name for side in (old, new) for name in side["decoded"] or {}}
        names = dict.fromkeys(name for name in names if name in own or " " in name)
    for name in names:
        if fields[0].get(name) != fields[1].get(name):
            yield _field_changed(name, fields[0].get(name), fields[1].get(name))


def _bytes_outside(record: Mapping[str, Any]) -> int:
    size: int = record["size"]
    return size - len(record["data"]) // 2


def _fields(decoded: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are compared one by one: the record's own, and its interface page's."""
    fields = {name: value for name, value in decoded.items() if not isinstance(value, dict)}
    interface = decoded.get("interface")
    if interface is not None:
        fields["interface page"] = "found"
        fields |= {name: value for name, value in interface.items() if name not in ("page", "ref")}
        fields["ref"] = runs(interface["ref"])
    return fields


def _field_changed(name: str, old: Any, new: Any) -> str:
    text = f"{name} {_shown(old)} -> {_shown(new)}"
    if name in _MEANINGS and isinstance(old, int) and isinstance(new, int):
        gone_on = (new - old) & _U32
        if gone_on < _HALF:
            return f"{text} ({count(gone_on, 'byte')} {_MEANINGS[name]})"
        return f"{text} (back by {count(-gone_on & _U32, 'byte')})"
    return text


def _bytes_changed(old: bytes, new: bytes) -> str:
    both = min(len(old), len(new))
    places = [at for at in range(both) if old[at] != new[at]]
    if not places:
        return f"{count(abs(len(new) - len(old)), 'byte')} {'more' if len(new) > both else 'less'}"
    text = f"{count(len(places), 'byte')} differ at {runs(places)}"
    if places[-1] - places[0] < _SHOWN_BYTES:
        span = slice(places[0], places[-1] + 1)
        text += f": {old[span].hex()} -> {new[span].hex()}"
    return text


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
