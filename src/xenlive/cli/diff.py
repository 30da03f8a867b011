"""`xenlive diff`: what changed from one image of a kexec module to another.

| ends | exit |
|---|---|
| the same | 0 |
| different: each change is a line | 1 |
| no module in one, an image that can't be read, wrong usage | 2 |

**Invariants.** Nothing is ever written to an image. Exit 0 and no line go together.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from xenlive.cli.images import console, kind_option, opened
from xenlive.cli.options import json_option
from xenlive.cli.progress import progress_for
from xenlive.dump.diff import CONTENT, MODULE, OWNER, PROBLEM, Change, Side, diff

EXIT_DIFFERENT = 1

_STYLES = {MODULE: "bold", OWNER: "yellow", CONTENT: "dim", PROBLEM: "bold red"}


@click.command()
@click.argument("before", type=click.Path(path_type=Path), metavar="A")
@click.argument("after", type=click.Path(path_type=Path), metavar="B")
@kind_option
@json_option
def diff_command(before: Path, after: Path, kind: str, as_json: bool) -> int:
    """Say what changed in the kexec module from image A to image B.

    A and B are images as for inspect, or run directories. Exit 0 if nothing did, 1 if something,
    2 if there is nothing to compare.
    """
    with (
        opened(before, kind=kind, progress=progress_for(as_json)) as first,
        opened(after, kind=kind, progress=progress_for(as_json)) as second,
    ):
        changes = diff(
            Side(first, first.find_module()),
            Side(second, second.find_module()),
        )
    if as_json:
        same = {"same": not changes, "changes": [change.as_object() for change in changes]}
        click.echo(json.dumps(same))
    else:
        print_changes(changes)
    return EXIT_DIFFERENT if changes else 0


def print_changes(changes: list[Change]) -> None:
    """A line a change."""
    from rich.text import Text

    out = console()
    for change in changes:
        out.print(Text(change.text, style=_STYLES.get(change.kind, "")))
