"""`xenlive xs watch`: what changes in a Xenstore, as it changes.

    /local/domain/1/state = "4"
    /local/domain/1/device is gone

**Invariants.** Each event is one line, written at once. The value is the one that the node has when
its event is looked at: of two changes in a row the second may be shown twice.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from xenlive.cli.options import json_option
from xenlive.cli.xs_store import store_path, with_store
from xenlive.cli.xs_tree import printable_text, shown_value, value_as_object
from xenlive.client.blocking import Xenstore
from xenlive.errors import XenstoreError


@click.command("watch")
@click.argument("paths", metavar="PATH...", type=store_path, nargs=-1, required=True)
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@click.option("-q", "--paths-only", is_flag=True, help="Do not read the nodes: print paths alone.")
@click.option(
    "-d",
    "--depth",
    type=click.IntRange(min=0),
    metavar="N",
    help="Watch N levels below each PATH, not all; needs a new server.",
)
@json_option
@with_store
def watch_command(
    store: Xenstore,
    paths: tuple[str, ...],
    count: int | None,
    paths_only: bool,
    depth: int | None,
    as_json: bool,
) -> None:
    """Print each change at or below PATH as it comes: the node and its value.

    The first line comes at once. With --json there is one object for each change, on a line of its
    own: `path`, `exists`, and `value` or `value_hex`.
    """
    for index, path in enumerate(paths):
        store.watch(path, str(index), depth)
    seen = 0
    while count is None or seen < count:
        event = store.next_event()
        if event is None:
            continue
        said = _said(store, event.path, not paths_only and not event.path.startswith("@"))
        click.echo(json.dumps(said) if as_json else _line(said))
        sys.stdout.flush()
        seen += 1


def _said(store: Xenstore, path: str, look: bool) -> dict[str, Any]:
    """What there is to say of the node that an event names."""
    if not look:
        return {"path": path}
    try:
        value = store.read(path)
    except XenstoreError as error:
        if error.name not in ("ENOENT", "EACCES"):
            raise
        return {"path": path, "exists": error.name == "EACCES", "value": None}
    return {"path": path, "exists": True, **value_as_object(value)}


def _line(said: dict[str, Any]) -> str:
    path = printable_text(said["path"])
    if "exists" not in said:
        return path
    if not said["exists"]:
        return f"{path} {click.style('is gone', dim=True)}"
    value = bytes.fromhex(said["value_hex"]) if "value_hex" in said else said["value"]
    if isinstance(value, str):
        value = value.encode()
    return f"{path} = {shown_value(value)}"
