"""A picture of a kexec module for a terminal: its pages, coloured by owner, and who they are.

     0x3fee000  0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 #
      0  9PFS, 17 pages, 16 bytes: grant 2047, port 4
      #  administration page: 1 of 16 records, 3984 bytes free
      .  free: 0 pages

**Invariants.** Every owner has a sign of its own besides its colour, as far as there are signs:
the picture says the same without colours. It is drawn from the object of `describe` alone, so that
it shows a saved description as well as a live domain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenlive.memory.address import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.text import Text

SIGNS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIGN_MANY = "+"  # for records beyond those
SIGN_FREE = "."
SIGN_ADMIN = "#"

COLOURS = ("green", "cyan", "yellow", "magenta", "blue", "bright_green", "bright_cyan", "red")
STYLE_ADMIN = "bold black on white"
STYLE_FREE = "dim"

_SPACED_UP_TO = 256  # pages; in larger modules they stand without a space between them
_GROUP = 8

# A picture is put together from pieces of text and their style.
Pieces = list[tuple[str, str]]


def draw_module(description: Mapping[str, Any], width: int = 80) -> Text | str:
    """The picture, at most `width` columns wide where a row of pages allows it.

    `description` is what `describe` gives. A `str` only where rich is not installed.
    """
    pieces = draw_pages(description, width) + draw_legend(description)
    try:
        from rich.text import Text
    except ImportError:
        return "".join(text for text, _ in pieces)
    return Text.assemble(*pieces)


def draw_pages(description: Mapping[str, Any], width: int) -> Pieces:
    """The rows of pages, each behind its address; rows that repeat the one above are left out."""
    cells = _cells(description)
    gap = " " if len(cells) <= _SPACED_UP_TO else ""
    base = description["address"]
    margin = len(_place(base, len(cells))) + 2
    fitting = max((width - margin) // (1 + len(gap)), _GROUP)
    per_row = len(cells) if len(cells) <= fitting else fitting // _GROUP * _GROUP
    pieces: Pieces = []
    skipped = 0
    above: list[tuple[str, str]] = []
    for start in range(0, len(cells), per_row):
        row = cells[start : start + per_row]
        if row == above:  # never the last: only that has the administration page
            skipped += 1
            continue
        if skipped:
            pieces.append((f"{'':{margin}}({skipped} more rows like this)\n", STYLE_FREE))
            skipped = 0
        above = row
        pieces.append((f"{_place(base, start):>{margin - 2}}  ", ""))
        for column, (sign, style) in enumerate(row):
            pieces.append((gap + sign if column else sign, style))
        pieces.append(("\n", ""))
    return pieces


def draw_legend(description: Mapping[str, Any]) -> Pieces:
    """What the signs mean, one line each."""
    pieces: Pieces = []
    for record in description["records"]:
        index = record["index"]
        line = f"{record['type_name']}"
        if record["type_name"] == "unknown":
            line = f"record of type {record['type']}"
        line += f", {_count(len(record['pages']), 'page')}, {_count(record['size'], 'byte')}"
        decoded = record["decoded"]
        if decoded:
            line += f": grant {decoded['ring_ref']}, port {decoded['evtchn']}"
        pieces += _legend_line(_sign(index), _colour(index), line)
    used = f"{len(description['records'])} of {_count(description['n_records'], 'record')}"
    room = f"{_count(description['free_record_bytes'], 'byte')} free"
    pieces += _legend_line(SIGN_ADMIN, STYLE_ADMIN, f"administration page: {used}, {room}")
    free = f"free: {_count(description['free_pages'], 'page')}"
    return pieces + _legend_line(SIGN_FREE, STYLE_FREE, free)


def _cells(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Sign and style of each page, the administration page last."""
    cells = [(SIGN_FREE, STYLE_FREE)] * description["n_pages"]
    for record in description["records"]:
        for page in record["pages"]:
            cells[page] = (_sign(record["index"]), _colour(record["index"]))
    return [*cells, (SIGN_ADMIN, STYLE_ADMIN)]


def _legend_line(sign: str, style: str, text: str) -> Pieces:
    return [("  ", ""), (sign, style), (f"  {text}\n", "")]


def _place(base: int | None, page: int) -> str:
    """Where a page lies: its address, or its index when the image does not say the address."""
    return f"page {page}" if base is None else f"{base + page * PAGE_SIZE:#x}"


def _sign(index: int) -> str:
    return SIGNS[index] if index < len(SIGNS) else SIGN_MANY


def _colour(index: int) -> str:
    return f"bold {COLOURS[index % len(COLOURS)]}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
