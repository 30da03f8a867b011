"""A hex dump that says what the bytes are.

    0x3fff000  4b 65 78 65 63 4d 65 6d                          |KexecMem|          eye_catcher
    0x3fff008  11 00                                            |..|                n_pages 17
    ...
    0x3fff088  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  |................|  unused
    *          (246 more rows like this)

Each note (see `annotate.py`) begins a row of its own, and has as many as it needs. Rows that repeat
the one above are told once.

**Invariants.** Nothing in a row acts on a terminal: bytes are shown as hex and as ASCII, all else
went through `printable`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xenlive.dump.annotate import Note

ROW_BYTES = 16

_SHOWN = bytes(byte if 0x20 <= byte < 0x7F else ord(".") for byte in range(256))
_HEX_WIDTH = 3 * ROW_BYTES - 1
_TEXT_WIDTH = ROW_BYTES + 2


@dataclass(frozen=True)
class Row:
    """One line: where, and the rest of it; what the bytes are (`Note.kind`) and whose."""

    place: str
    rest: str
    kind: str
    owner: int

    def __str__(self) -> str:
        return self.place + self.rest


def rows_of(data: bytes, notes: list[Note], start: int) -> Iterator[Row]:
    """The rows of a stretch of memory that lies at `start`; its `notes` are in order."""
    width = len(f"{start + len(data):#x}")
    for note in notes:
        above = b""
        repeated = 0
        for at in range(note.offset, note.end, ROW_BYTES):
            part = data[at : min(at + ROW_BYTES, note.end)]
            if part == above and at + ROW_BYTES < note.end:
                repeated += 1
                continue
            if repeated:
                yield _squeezed(repeated, width, note)
                repeated = 0
            above = part
            text = f"|{part.translate(_SHOWN).decode('ascii')}|"
            rest = f"  {part.hex(' '):{_HEX_WIDTH}}  {text:{_TEXT_WIDTH}}"
            if at == note.offset:
                rest += f"  {note.name} {note.value}"
            yield Row(f"{start + at:#0{width}x}", rest.rstrip(), note.kind, note.owner)


def _squeezed(repeated: int, width: int, note: Note) -> Row:
    more = "row" if repeated == 1 else "rows"
    return Row(f"{'*':{width}}", f"  ({repeated} more {more} like this)", note.kind, note.owner)
