"""`xenlive hexdump`: the bytes of a module, or of the memory around it, and what they are.

| ends | exit |
|---|---|
| dumped | 0 |
| nothing there to dump, an image that can't be read, wrong usage | 2 |

**Invariants.** Nothing is ever written to an image, and nothing of it acts on the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from xenlive.cli.images import console, image_argument, image_rundir_option, kind_option, opened
from xenlive.cli.options import json_option
from xenlive.dump.annotate import DATA, HEAD, OWNERS, PENDING, REST, TABLE
from xenlive.dump.hexdump import Row, rows_of
from xenlive.dump.picture import COLOURS
from xenlive.dump.pieces import Piece, memory_pieces, page_piece, record_piece

MAX_BYTES = 64 << 20
DEFAULT_BYTES = 256


class Number(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since 8.2
    """A number as C has it: 4096, 0x1000."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """The number; a usage error if it is none, or below zero."""
        try:
            number = value if isinstance(value, int) else int(value, 0)
        except ValueError:
            number = -1
        if number < 0:
            self.fail(f"{value!r} is no number such as 4096 or 0x1000", param, ctx)
        return number


@click.command()
@image_argument
@click.option("--admin", is_flag=True, help="The administration page.  [default]")
@click.option("--page", type=Number(), metavar="N", help="The module's page of that index.")
@click.option("--record", type=Number(), metavar="N", help="The data of record N.")
@click.option("--address", type=Number(), metavar="A", help="Memory from that address on.")
@click.option(
    "--size",
    type=Number(),
    metavar="N",
    help=f"Bytes from --address on.  [default: {DEFAULT_BYTES}]",
)
@image_rundir_option
@kind_option
@json_option
def hexdump_command(
    image: Path | None,
    admin: bool,
    page: int | None,
    record: int | None,
    address: int | None,
    size: int | None,
    rundir: Path | None,
    kind: str,
    as_json: bool,
) -> int:
    """Dump bytes of the kexec module in IMAGE, and say what they are.

    IMAGE is as for inspect. Numbers may be written as 0x1000.
    """
    if sum((admin, page is not None, record is not None, address is not None)) > 1:
        raise click.UsageError("--admin, --page, --record and --address exclude each other")
    if size is not None and (address is None or not 0 < size <= MAX_BYTES):
        raise click.UsageError(f"--size goes with --address, and is 1 to {MAX_BYTES}")
    with opened(image, rundir, kind) as memory:
        pieces: Iterable[Piece]
        if address is not None:
            pieces = memory_pieces(memory, address, size or DEFAULT_BYTES)
        elif record is not None:
            pieces = [record_piece(memory, memory.find_module(), record)]
        else:
            pieces = [page_piece(memory, memory.find_module(), page)]
        if as_json:
            click.echo(json.dumps([piece.as_object() for piece in pieces]))
        else:
            print_pieces(pieces)
    return 0


def print_pieces(pieces: Iterable[Piece]) -> None:
    """The pieces for people, each with what it is above it."""
    from rich.text import Text

    out = console()
    for piece in pieces:
        if piece.title:
            out.print(Text(piece.title, style="bold"))
        for row in rows_of(piece.data, piece.notes, piece.start):
            out.print(Text.assemble((row.place, "dim"), (row.rest, style_of(row))))


def style_of(row: Row) -> str:
    """The colour of a row, by what it is and whose."""
    if row.kind in (OWNERS, DATA, PENDING) and 0 <= row.owner < 255:
        return ("bold " if row.kind == PENDING else "") + COLOURS[row.owner % len(COLOURS)]
    return {HEAD: "bold", TABLE: "yellow", REST: "dim"}.get(row.kind, "")
