"""What each page of a module is for, from the module's description alone.

    owner       a record's index, FREE, ADMIN, or STRAY: an owner that is no record in use
    part        of a 9PFS record's pages: `interface`, or `in` and `out`, the halves of the ring

**Invariants.** Any description gives one role for each page, the administration page last. Owners
come from `pg2rec`; a description without it (an old one) has what its records say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xenlive.abi.kexec_module import PAGE_FREE, PG2REC_OFFSET

FREE = -1
ADMIN = -2
STRAY = -3

INTERFACE = "interface"
RING_IN = "in"
RING_OUT = "out"


@dataclass(frozen=True)
class Role:
    """Whose a page is: a record's index or one of the constants above, and its part there.

    `place` counts the pages of one part from 0; `suspect` says that a problem names the page,
    `missing` that the image lacks it.
    """

    owner: int
    part: str = ""
    place: int = 0
    suspect: bool = False
    missing: bool = False


def roles_of(description: Mapping[str, Any]) -> list[Role]:
    """The role of each page, by index; the administration page is the last."""
    n_pages = description["n_pages"]
    parts: dict[int, tuple[int, str, int]] = {}
    for record in description["records"]:
        for place, page in enumerate(record["pages"]):
            parts[page] = (record["index"], "", place)
        for page, part, place in _device_pages(record):
            parts[page] = (record["index"], part, place)
    stray = _stray_pages(description)
    suspects = _suspect_pages(description) | stray
    missing = set(description.get("missing_pages") or ())
    roles = []
    for page in range(n_pages):
        owner, part, place = parts.get(page, (FREE, "", 0))
        if page in stray:
            owner, part, place = STRAY, "", 0
        roles.append(Role(owner, part, place, page in suspects, page in missing))
    suspect = any(_is_about_admin_page(problem, n_pages) for problem in description["problems"])
    return [*roles, Role(ADMIN, suspect=suspect)]


def in_words(role: Role, description: Mapping[str, Any]) -> str:
    """`record 0 (9PFS), ring in, page 3 of it`, `free`, `administration page`."""
    return _in_words(role, description) + (", not in the image" if role.missing else "")


def _in_words(role: Role, description: Mapping[str, Any]) -> str:
    if role.owner == FREE:
        return "free"
    if role.owner == ADMIN:
        return "administration page"
    if role.owner == STRAY:
        return "owned by no record in use"
    names = {record["index"]: record_name(record) for record in description["records"]}
    name = f"record {role.owner} ({names[role.owner]})"
    if role.part == INTERFACE:
        return f"{name}, interface page"
    if role.part:
        return f"{name}, {role.part} ring, page {role.place}"
    return f"{name}, page {role.place} of it"


def record_name(record: Mapping[str, Any]) -> str:
    """`9PFS`, or `type 7` for a type without a name."""
    name: str = record["type_name"]
    return f"type {record['type']}" if name == "unknown" else name


def _device_pages(record: Mapping[str, Any]) -> list[tuple[int, str, int]]:
    decoded = record["decoded"] or {}
    if "interface" not in decoded:
        return []
    pages: list[tuple[int, str, int]] = [(decoded["interface"]["page"], INTERFACE, 0)]
    ring = (decoded.get("rings") or {}).get("pages", [])
    half = len(ring) // 2
    pages += [(page, RING_IN, place) for place, page in enumerate(ring[:half])]
    return pages + [(page, RING_OUT, place) for place, page in enumerate(ring[half:])]


def _stray_pages(description: Mapping[str, Any]) -> set[int]:
    """Pages whose owner is no record in use."""
    owners = bytes.fromhex(description.get("pg2rec", ""))
    known = {record["index"] for record in description["records"]} | {PAGE_FREE}
    return {page for page, owner in enumerate(owners) if owner not in known}


def _suspect_pages(description: Mapping[str, Any]) -> set[int]:
    """Pages whose owner a problem's offset points to."""
    last = PG2REC_OFFSET + description["n_pages"]
    offsets = [problem["offset"] for problem in description["problems"]]
    return {offset - PG2REC_OFFSET for offset in offsets if PG2REC_OFFSET <= offset < last}


def _is_about_admin_page(problem: Mapping[str, Any], n_pages: int) -> bool:
    return not PG2REC_OFFSET <= problem["offset"] < PG2REC_OFFSET + n_pages
