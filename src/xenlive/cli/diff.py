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
import sys
from pathlib import Path

import click

from xenlive.cli.images import kind_option, opened
from xenlive.cli.options import json_option
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
    with opened(before, kind=kind) as first, opened(after, kind=kind) as second:
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
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    for change in changes:
        console.print(Text(change.text, style=_STYLES.get(change.kind, "")))
