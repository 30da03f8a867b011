"""The description of a module in lines of text: records, what is in rings, streams, problems.

**Invariants.** Everything that comes from the image is a number, hex, or went through `printable`:
nothing in these lines acts on a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xenlive.dump import ninepmessages, statestream
from xenlive.dump.describe import MAX_PROBLEMS_OF_OTHERS, SUSPICION
from xenlive.dump.device import BY_GRANTS
from xenlive.dump.words import count, printable, runs

_HEX_COLUMNS = 64
_KNOWN_BY = {True: "by the grant table", False: "by the order of the pages"}


def headline(description: Mapping[str, Any]) -> str:
    """`kexec module of 18 pages at 0x3fee000`."""
    address = description["address"]
    place = "at an unknown address" if address is None else f"at {address:#x}"
    return f"kexec module of {count(description['n_pages'] + 1, 'page')} {place}"


def record_lines(record: Mapping[str, Any]) -> list[str]:
    """A record: what it is, then its data decoded, or in hex."""
    lines = [
        f"record {record['index']}: type {record['type']} ({record['type_name']}), "
        f"{count(record['size'], 'byte')} at {record['offset']}, pages {runs(record['pages'])}"
    ]
    decoded = record["decoded"]
    if decoded is None:
        return lines + hex_lines(record["data"])
    if "ring_ref" in decoded:
        return lines + [f"    {line}" for line in _device_lines(decoded)]
    if "seal" in decoded:
        return lines + [f"    {line}" for line in _sealed_lines(decoded)]
    return [*lines, f"    {_resize_line(decoded)}"]


def hex_lines(data: str) -> list[str]:
    """Hex in rows of 32 bytes."""
    return [f"    {data[at : at + _HEX_COLUMNS]}" for at in range(0, len(data), _HEX_COLUMNS)]


def stream_line(stream: Mapping[str, Any]) -> str:
    """`Xenstore state stream in page 3 of record 1: version 2, ...`."""
    if stream["page"] is not None:
        owner = "" if stream["record"] is None else f" of record {stream['record']}"
        where = f"in page {stream['page']}{owner}"
    elif stream["address"] is not None:
        where = f"at {stream['address']:#x}"
    else:
        where = "by itself"
    return f"Xenstore state stream {where}: {statestream.in_words(dict(stream))}"


def other_line(other: Mapping[str, Any]) -> str:
    """`another kexec module of 4 pages at 0x100000, sound`."""
    state = "sound" if not other["problems"] else count(len(other["problems"]), "problem")
    state += " or more" if len(other["problems"]) == MAX_PROBLEMS_OF_OTHERS else ""
    return (
        f"another kexec module of {count(other['n_pages'] + 1, 'page')} at "
        f"{other['address']:#x}, {state}"
    )


def problem_line(problem: Mapping[str, Any]) -> str:
    """`record-outside at 32: record 0 ends at 5016, the page at 4096`; suspicions are marked."""
    mark = " (suspicion)" if is_suspicion(problem) else ""
    return printable(f"{problem['code']} at {problem['offset']}: {problem['message']}{mark}")


def is_suspicion(problem: Mapping[str, Any]) -> bool:
    """Whether a problem keeps no kernel from attaching; descriptions of old don't say."""
    return problem.get("kind") == SUSPICION


def more_line(left_out: int) -> str:
    """`and 18 modules more`."""
    return f"and {count(left_out, 'module')} more"


def passed_line(other: Mapping[str, Any]) -> str:
    """`also at 0x3fee000: bad-n-records; xenlive inspect --all shows it`."""
    codes = ", ".join(dict.fromkeys(problem["code"] for problem in other["problems"]))
    where = "" if other["address"] is None else f" at {other['address']:#x}"
    return printable(f"also{where}: {codes}; xenlive inspect --all shows it")


def _device_lines(decoded: Mapping[str, Any]) -> list[str]:
    plain = {name: value for name, value in decoded.items() if isinstance(value, int)}
    lines = [_fields(plain)]
    if "interface" not in decoded:
        return [*lines, "its interface page was not found"]
    interface = dict(decoded["interface"])
    refs, page = interface.pop("ref"), interface.pop("page")
    lines += [f"interface page {page}: {_fields(interface)}", f"ref {runs(refs)}"]
    rings = decoded.get("rings")
    if rings is None:
        return [*lines, "its ring pages were not found"]
    known_by = _KNOWN_BY[rings["ground"] == BY_GRANTS]
    lines.append(f"ring pages {runs(rings['pages'])}, {known_by}")
    for name, way in (("in", "to be read"), ("out", "to be taken by the backend")):
        lines += _ring_lines(name, way, rings[name])
    return lines


def _sealed_lines(decoded: Mapping[str, Any]) -> list[str]:
    covers = ", covers its pages" if decoded["covers_pages"] else ""
    said = {
        "ok": f"generation {decoded['generation']}, the seal is whole",
        "fell-back": f"generation {decoded['generation']}; the newer copy is damaged",
        "pages-missing": "not all of the pages it covers are in the image",
        "broken": "the seal is broken: neither copy matches its checksum",
    }
    lines = [f"kind {decoded['kind']}{covers}, {said[decoded['seal']]}"]
    return lines + ([f"payload {decoded['payload']}"] if decoded["payload"] else [])


def _resize_line(decoded: Mapping[str, Any]) -> str:
    sizes = f"{decoded['n_small']} and {decoded['n_large']} pages"
    way = "shrinking" if decoded["shrinking"] else "growing"
    return f"a resize between {sizes} was cut off while {way}, at page {decoded['boundary']}"


def _ring_lines(name: str, way: str, ring: Mapping[str, Any] | None) -> list[str]:
    if ring is None:
        return [f"{name} ring: not all of its pages are in the image"]
    if ring["pending_bytes"] is None:
        return [f"{name} ring: {ring['problem']}"]
    if not ring["pending_bytes"]:
        return [f"{name} ring: empty"]
    lines = [f"{name} ring: {count(ring['pending_bytes'], 'byte')} {way}"]
    lines += [f"  {ninepmessages.in_words(message)}" for message in ring["messages"]]
    if ring["left_out"]:
        lines.append(f"  and {count(ring['left_out'], 'message')} more")
    if ring["problem"]:
        lines.append(f"  {ring['problem']}")
    return lines


def _fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())
