"""A picture of a kexec module for a terminal: its pages, coloured by owner, and who they are.

    memory  0x0 [---------------------------------------------#] 0x4000000

     0x3fee000  0i 0< 0< 0< 0< 0< 0< 0< 0< 0> 0> 0> 0> 0> 0> 0> 0> #
      0  9PFS, 17 pages, 16 bytes: grant 2047, port 4
         i interface page 0, < in ring 1-8, > out ring 9-16
      #  administration page: 1 of 16 records, 3984 bytes free
      .  free: 0 pages

Large modules have no room for the second sign, and the pages of a row stand side by side: 64 in a
terminal of 80 columns, so that a row is 256 KiB. Rows like the one above are told once. A `?` marks
pages that the image lacks.

**Invariants.** Every owner has a sign of its own besides its colour, as far as there are signs:
the picture says the same without colours. It is drawn from the object of `describe` alone, so that
it shows a saved description as well as a live domain. It is ASCII.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenlive.dump.roles import (
    ADMIN,
    FREE,
    INTERFACE,
    RING_IN,
    RING_OUT,
    STRAY,
    Role,
    record_name,
    roles_of,
)
from xenlive.dump.words import count, place_of, runs
from xenlive.memory.address import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.text import Text

SIGNS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIGN_MANY = "+"  # for records beyond those
SIGN_FREE = "."
SIGN_ADMIN = "#"
SIGN_STRAY = "!"
SIGN_MISSING = "?"
PART_SIGNS = {INTERFACE: "i", RING_IN: "<", RING_OUT: ">"}

COLOURS = (
    "green",
    "cyan",
    "yellow",
    "magenta",
    "blue",
    "bright_green",
    "bright_cyan",
    "bright_blue",
)
STYLE_ADMIN = "bold black on white"
STYLE_FREE = "dim"
STYLE_STRAY = "bold red"
STYLE_SUSPECT = "bold white on red"
STYLE_PLACE = ""

_SPACED_UP_TO = 256  # pages; in larger modules they stand without a space between them
_GROUPS = (64, 8)  # pages of a row are a multiple of the first of these that fits
_LEGEND_UP_TO = 16  # records; of more only those with pages are told

#: Stands in a legend where an owner does.
MISSING = -4

# A picture is put together from pieces of text and their style.
Pieces = list[tuple[str, str]]


def draw_module(description: Mapping[str, Any], width: int = 80) -> Text | str:
    """The picture, at most `width` columns wide where a row of pages allows it.

    `description` is what `describe` gives. A `str` only where rich is not installed.
    """
    pieces = draw_memory(description, width)
    pieces += draw_pages(description, width) + draw_legend(description)
    try:
        from rich.text import Text
    except ImportError:
        return "".join(text for text, _ in pieces)
    return Text.assemble(*pieces)


def draw_memory(description: Mapping[str, Any], width: int) -> Pieces:
    """All memory of the image as one row, and where in it the module lies; nothing if unknown.

    `-` is memory, a space none, `#` the module, `o` other modules, `s` state streams.
    """
    regions = (description.get("image") or {}).get("regions") or []
    address = description["address"]
    if not regions or address is None:
        return []
    low = regions[0]["address"]
    high = max(region["address"] + region["size_bytes"] for region in regions)
    columns = max(width - len(f"memory  {low:#x} [] {high:#x}"), _GROUPS[-1])
    row = [" "] * columns
    step = max(-(-(high - low) // columns), 1)

    def mark(start: int, end: int, sign: str) -> None:
        for column in range((start - low) // step, min(-(-(end - low) // step), columns)):
            if column >= 0:
                row[column] = sign

    for region in regions:
        mark(region["address"], region["address"] + region["size_bytes"], "-")
    for stream in description.get("streams") or []:
        if stream["address"] is not None:
            mark(stream["address"], stream["address"] + 1, "s")
    for other in description.get("others") or []:
        if other["address"] is not None:
            mark(other["address"], other["address"] + (other["n_pages"] + 1) * PAGE_SIZE, "o")
    mark(address, address + (description["n_pages"] + 1) * PAGE_SIZE, SIGN_ADMIN)
    pieces: Pieces = [(f"memory  {low:#x} [", STYLE_PLACE)]
    pieces += [(sign, STYLE_ADMIN if sign == SIGN_ADMIN else STYLE_FREE) for sign in row]
    return [*pieces, (f"] {high:#x}\n\n", STYLE_PLACE)]


def draw_pages(description: Mapping[str, Any], width: int) -> Pieces:
    """The rows of pages, each behind its address; rows that repeat the one above are left out."""
    cells = _cells(description)
    gap = " " if len(cells) <= _SPACED_UP_TO else ""
    columns = len(cells[0][0] + gap)
    base = description["address"]
    margin = len(place_of(base, len(cells))) + 2
    fitting = max((width - margin + len(gap)) // columns, _GROUPS[-1])
    group = next(group for group in _GROUPS if group <= fitting)
    per_row = len(cells) if len(cells) <= fitting else fitting // group * group
    pieces: Pieces = []
    skipped = 0
    above: list[tuple[str, str]] = []
    for start in range(0, len(cells), per_row):
        row = cells[start : start + per_row]
        if row == above:  # never the last: only that has the administration page
            skipped += 1
            continue
        if skipped:
            rows = "row" if skipped == 1 else "rows"
            pieces.append((f"{'':{margin}}({skipped} more {rows} like this)\n", STYLE_FREE))
            skipped = 0
        above = row
        pieces.append((f"{place_of(base, start):>{margin - 2}}  ", STYLE_PLACE))
        for column, (sign, style) in enumerate(row):
            last = column == len(row) - 1
            pieces.append((sign.rstrip() if last else sign, style))
            pieces.append(("" if last else gap, ""))
        pieces.append(("\n", ""))
    return pieces


def draw_legend(description: Mapping[str, Any]) -> Pieces:
    """What the signs mean, one line each."""
    pieces: Pieces = []
    with_parts = description["n_pages"] + 1 <= _SPACED_UP_TO
    for owner, text in legend_of(description, with_parts):
        if owner is None:
            pieces.append((f"     {text}\n", STYLE_FREE))
        else:
            styles = {STRAY: STYLE_STRAY, MISSING: STYLE_FREE}
            style = styles[owner] if owner in styles else _style(Role(owner))
            pieces += [("  ", ""), (sign_of(owner), style), (f"  {text}\n", "")]
    return pieces


def legend_of(
    description: Mapping[str, Any], with_parts: bool = True
) -> list[tuple[int | None, str]]:
    """Owners as in `roles`, and who they are; None goes on about the owner before.

    `with_parts` says that the picture has signs for the parts of a device. `MISSING` is no owner
    but what the sign of pages that the image lacks means.
    """
    found: list[tuple[int | None, str]] = []
    records = description["records"]
    if len(records) > _LEGEND_UP_TO:
        records = [record for record in records if record["pages"]]
    for record in records:
        if record["index"] < len(SIGNS):
            found.append((record["index"], _about(record)))
            found += [(None, parts) for parts in [_about_parts(record, with_parts)] if parts]
    left_out = len(description["records"]) - len(records)
    if left_out:
        found.append((None, f"and {count(left_out, 'record')} without pages"))
    many = [record for record in records if record["index"] >= len(SIGNS)]
    if many:
        pages = sum(len(record["pages"]) for record in many)
        more = f"{len(many)} more {'record' if len(many) == 1 else 'records'}"
        found.append((len(SIGNS), f"{more}, {count(pages, 'page')}"))
    used = f"{len(description['records'])} of {count(description['n_records'], 'record')}"
    room = f"{count(description['free_record_bytes'], 'byte')} free"
    found.append((ADMIN, f"administration page: {used}, {room}"))
    stray = sum(role.owner == STRAY for role in roles_of(description))
    if stray:
        found.append((STRAY, f"owned by no record in use: {count(stray, 'page')}"))
    missing = len(description.get("missing_pages") or ())
    if missing:
        found.append((MISSING, f"not in the image: {count(missing, 'page')}"))
    return [*found, (FREE, f"free: {count(description['free_pages'], 'page')}")]


def sign_of(owner: int) -> str:
    """One character for an owner as in `roles`."""
    special = {FREE: SIGN_FREE, ADMIN: SIGN_ADMIN, STRAY: SIGN_STRAY, MISSING: SIGN_MISSING}
    if owner in special:
        return special[owner]
    return SIGNS[owner] if owner < len(SIGNS) else SIGN_MANY


def _about(record: Mapping[str, Any]) -> str:
    name = record_name(record)
    if record["type_name"] == "unknown":
        name = f"record of {name}"
    line = f"{name}, {count(len(record['pages']), 'page')}, {count(record['size'], 'byte')}"
    decoded = record["decoded"] or {}
    if "ring_ref" in decoded:
        line += f": grant {decoded['ring_ref']}, port {decoded['evtchn']}"
    return line


def _about_parts(record: Mapping[str, Any], with_signs: bool) -> str:
    """`i interface page 0, < in ring 1-8, > out ring 9-16`; empty for all but devices."""
    signs = {part: f"{sign} " if with_signs else "" for part, sign in PART_SIGNS.items()}
    decoded = record["decoded"] or {}
    if "interface" not in decoded:
        return ""
    line = f"{signs[INTERFACE]}interface page {decoded['interface']['page']}"
    ring = (decoded.get("rings") or {}).get("pages", [])
    half = len(ring) // 2
    if ring:
        line += f", {signs[RING_IN]}in ring {runs(ring[:half])}"
        line += f", {signs[RING_OUT]}out ring {runs(ring[half:])}"
    return line


def _cells(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Signs and style of each page, the administration page last; all of one width."""
    roles = roles_of(description)
    if len(roles) > _SPACED_UP_TO:
        return [(SIGN_MISSING if r.missing else sign_of(r.owner), _style(r)) for r in roles]
    seconds = [SIGN_MISSING if r.missing else PART_SIGNS.get(r.part, "") for r in roles]
    width = 2 if any(seconds) else 1
    return [
        (f"{sign_of(role.owner) + second:{width}}", _style(role))
        for role, second in zip(roles, seconds, strict=True)
    ]


def _style(role: Role) -> str:
    if role.suspect:
        return STYLE_SUSPECT
    if role.owner == FREE:
        return STYLE_FREE
    if role.owner == ADMIN:
        return STYLE_ADMIN
    return _colour(role.owner) + (" reverse" if role.part == INTERFACE else "")


def _colour(owner: int) -> str:
    return f"bold {COLOURS[owner % len(COLOURS)]}"
