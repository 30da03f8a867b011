"""A picture of a kexec module as a stand-alone SVG: the same as `picture.py`, to look at closely.

    headline
    [ memory bar: all that the image has, and the module in it ]
    address  [][][][][][][][]      a square a page, coloured by owner, a tooltip on each
    address  [][][][][][][][]
    legend   problems

**Invariants.** Well-formed XML whatever the description says: text is escaped, and characters that
XML can't hold are written as escapes. The same description gives the same bytes. It loads nothing
and runs nothing, and brings its background along: readable on dark and light pages, and in the
reader's own choice of the two where the viewer knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from textwrap import wrap
from typing import Any

from xenlive.dump import lines
from xenlive.dump.picture import MISSING, SIGN_MISSING, legend_of, sign_of
from xenlive.dump.roles import ADMIN, FREE, INTERFACE, RING_IN, RING_OUT, STRAY, Role, roles_of
from xenlive.dump.roles import in_words as role_in_words
from xenlive.dump.words import place_of, printable
from xenlive.memory.address import PAGE_SIZE

WIDTH = 960
MARGIN = 24
LINE = 20  # height of a line of text
LABEL = 110  # width of the addresses beside the rows
BAR = 14  # height of the memory bar
GAP = 2

#: Fill of records by index, in the light and in the dark.
PALETTE = (
    *(("#17794f", "#3ecf8e"), ("#2563c9", "#6ea8fe"), ("#8f5d14", "#f0b429")),
    *(("#8e44ad", "#c58af9"), ("#0c6f78", "#40c4d0"), ("#b83c0a", "#ff8a5c")),
    *(("#5b6b1f", "#b4c94c"), ("#9d174d", "#f27ab0")),
)
_PLAIN = {  # class: fill in the light, fill in the dark
    "bg": ("#ffffff", "#14171c"),
    "text": ("#1f2430", "#e6e8ee"),
    "dim": ("#626977", "#9aa3b2"),
    "bad": ("#c81e1e", "#ff6b6b"),
    "free": ("#e5e7eb", "#2b313b"),
    "admin": ("#1f2430", "#e6e8ee"),
    "ram": ("#d1d5db", "#3a424f"),
    "on": ("#ffffff", "#14171c"),  # what is written on a page, but on tints it is `text`
}
#: How much of an owner's colour the pages of out rings have; the rest is the background's.
OUT_TINT = 0.35
_COLUMNS = 110  # characters of a line, in whatever font the viewer has
#: Up to so many pages: so many in a row.
_ROWS = ((20, 20), (64, 16), (512, 32), (1 << 16, 64))
_SIDE_WITH_SIGNS = 16  # of a square; smaller ones have no room to write on
#: More problems than that are counted, not listed.
MAX_PROBLEMS = 50


def draw_svg(description: Mapping[str, Any]) -> str:
    """The whole file, from what `describe` gives."""
    y = MARGIN + LINE
    parts = [_text(MARGIN, y - 5, "text", lines.headline(description), size=17, bold=True)]
    y += 8
    for draw in (_memory, _pages, _legend, _problems):
        drawn, y = draw(description, y)
        parts += drawn
    height = y + MARGIN - 6
    title = _escaped(lines.headline(description))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="ui-monospace, DejaVu Sans Mono, Menlo, Consolas, monospace">'
    )
    background = f'<rect class="bg" width="{WIDTH}" height="{height}" rx="8"/>'
    return "\n".join([head, f"<title>{title}</title>", _style(), background, *parts, "</svg>", ""])


def _memory(description: Mapping[str, Any], y: int) -> tuple[list[str], int]:
    """The bar of all memory; nothing where the image does not say addresses."""
    regions = (description.get("image") or {}).get("regions") or []
    address = description["address"]
    if not regions or address is None:
        return [], y
    low = regions[0]["address"]
    high = max(max(region["address"] + region["size_bytes"] for region in regions), low + 1)
    width = WIDTH - 2 * MARGIN

    def bar(css: str, start: int, size: int, what: str) -> str:
        x = MARGIN + (start - low) * width // (high - low)
        across = max(size * width // (high - low), 3)
        x = max(min(x, MARGIN + width - across), MARGIN)
        return _rect(css, x, y, across, BAR, f"{what}, {start:#x} to {start + size:#x}")

    parts = [bar("ram", region["address"], region["size_bytes"], "memory") for region in regions]
    for other in description.get("others") or []:
        if other["address"] is not None:
            size = (other["n_pages"] + 1) * PAGE_SIZE
            parts.append(bar("dim", other["address"], size, "another kexec module"))
    size = (description["n_pages"] + 1) * PAGE_SIZE
    parts.append(bar("admin", address, size, "the kexec module"))
    y += BAR + 16
    parts.append(_text(MARGIN, y, "dim", f"{low:#x}"))
    parts.append(_text(WIDTH - MARGIN, y, "dim", f"{high:#x}", anchor="end"))
    return parts, y + 18


def _pages(description: Mapping[str, Any], y: int) -> tuple[list[str], int]:
    """The squares, in rows of a power of two."""
    roles = roles_of(description)
    per_row, side = _squares(len(roles))
    pitch = side + GAP
    parts = []
    for start in range(0, len(roles), per_row):
        label = place_of(description["address"], start)
        parts.append(_text(MARGIN, y + side // 2 + 4, "dim", label, size=min(13, side)))
        for column, role in enumerate(roles[start : start + per_row]):
            page = start + column
            x = MARGIN + LABEL + column * pitch
            where = place_of(description["address"], page)
            index = "" if description["address"] is None else f"page {page} "
            parts += _page(role, x, y, side, f"{index}{where}: {role_in_words(role, description)}")
        y += pitch
    return parts, y + 14


def _squares(n: int) -> tuple[int, int]:
    """How many squares a row has, of a module of `n` pages, and how long their sides are."""
    per_row = next(columns for most, columns in _ROWS if n <= most)
    return per_row, min((WIDTH - 2 * MARGIN - LABEL) // per_row, 40) - GAP


def _page(role: Role, x: int, y: int, side: int, about: str) -> list[str]:
    css = _class(role)
    if role.suspect:
        css += " suspect"
    drawn = [_rect(css, x, y, side, side, about)]
    if side >= _SIDE_WITH_SIGNS:
        mark = sign_of(role.owner) if role.owner != FREE else ""
        mark += {INTERFACE: "i", RING_IN: "<", RING_OUT: ">"}.get(role.part, "")
        mark = SIGN_MISSING if role.missing else mark
        ink = "text" if role.missing or role.part == RING_OUT else "on"
        if mark:
            drawn.append(_text(x + side // 2, y + side // 2 + 4, ink, mark, anchor="middle"))
    elif role.part == INTERFACE:
        drawn.append(f'<circle class="on" cx="{x + side / 2:g}" cy="{y + side / 2:g}" r="2"/>')
    return drawn


def _legend(description: Mapping[str, Any], y: int) -> tuple[list[str], int]:
    parts = []
    _, side = _squares(description["n_pages"] + 1)
    for owner, text in legend_of(description, side >= _SIDE_WITH_SIGNS):
        if owner is not None:
            role = Role(FREE, missing=True) if owner == MISSING else Role(owner)
            parts.append(_rect(_class(role), MARGIN, y, 14, 14, ""))
            ink = "text" if role.missing else "on"
            if owner != FREE:
                mark = sign_of(owner)
                parts.append(_text(MARGIN + 7, y + 11, ink, mark, size=11, anchor="middle"))
        parts.append(_text(MARGIN + 24, y + 12, "text" if owner is not None else "dim", text))
        y += LINE
    return parts, y + 4


def _problems(description: Mapping[str, Any], y: int) -> tuple[list[str], int]:
    problems = [lines.problem_line(problem) for problem in description["problems"]]
    left_out = len(problems) - MAX_PROBLEMS
    shown = [
        line
        for problem in problems[:MAX_PROBLEMS]
        for line in wrap(problem, _COLUMNS, subsequent_indent="    ")
    ]
    shown += [f"and {left_out} more"] if left_out > 0 else []
    parts = [_text(MARGIN, y + 12 + at * LINE, "bad", text) for at, text in enumerate(shown)]
    return parts, y + len(shown) * LINE


def _class(role: Role) -> str:
    if role.missing:
        return "missing"
    plain = {FREE: "free", ADMIN: "admin", STRAY: "bad"}
    if role.owner in plain:
        return plain[role.owner]
    css = f"o{role.owner % len(PALETTE)}"
    return f"{css} out" if role.part == RING_OUT else css


def _style() -> str:
    colours = _PLAIN | {f"o{index}": pair for index, pair in enumerate(PALETTE)}
    light = "".join(f".{name}{{fill:{pair[0]}}}" for name, pair in colours.items())
    dark = "".join(f".{name}{{fill:{pair[1]}}}" for name, pair in colours.items())
    more = f".out{{fill-opacity:{OUT_TINT}}}.suspect{{stroke:#e11d1d;stroke-width:3}}"
    more += ".missing{fill:none;stroke:#8b93a1;stroke-width:1.5;stroke-dasharray:3 2}"
    return f"<style>{light}{more}@media (prefers-color-scheme:dark){{{dark}}}</style>"


def _rect(css: str, x: int, y: int, width: int, height: int, about: str) -> str:
    shape = f'<rect class="{css}" x="{x}" y="{y}" width="{width}" height="{height}"'
    return f"{shape}><title>{_escaped(about)}</title></rect>" if about else f"{shape}/>"


def _text(
    x: int, y: int, css: str, text: str, size: int = 13, bold: bool = False, anchor: str = ""
) -> str:
    more = (' font-weight="bold"' if bold else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text class="{css}" x="{x}" y="{y}" font-size="{size}"{more}>{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    """Text as XML has it; `printable` leaves no character that XML could not hold."""
    return escape(printable(text), quote=False)
