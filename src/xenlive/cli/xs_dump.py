"""`xenlive xs dump` and `load`: trees of nodes as JSON (`client/treefile.py`), exact both ways.

**Invariants.** A dump is of one moment, unless `--live` asks for it as it is found. A load is all
or nothing, unless `--parts` asks for parts, and then it says how far it came. The whole file was
checked before the first change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import click

from xenlive.cli.options import json_option
from xenlive.cli.xs_store import store_path, with_store
from xenlive.client import tree, treefile
from xenlive.client.blocking import Transaction, Xenstore
from xenlive.client.plans import Plan
from xenlive.client.tree import Node
from xenlive.errors import XenstoreError

DUMP_ATTEMPTS = 10


@click.command("dump")
@click.argument("path", metavar="[PATH]", type=store_path, default="/")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="To FILE.",
)
@click.option("--live", is_flag=True, help="As it is found, for a tree that never stands still.")
@with_store
def dump_command(store: Xenstore, path: str, output: Path | None, live: bool) -> None:
    """Write the tree at PATH (the root if not given) as JSON: values and permissions.

    All of it is of one moment: it is read in a transaction, again if somebody changed it meanwhile.
    """
    if live:
        nodes: Iterable[Node] = _readable(store.walk(path, perms=True, with_top=True))
    else:
        try:
            nodes = store.transact(lambda tx: tx.carry_out(tree.collect(path)), DUMP_ATTEMPTS)
        except XenstoreError as error:
            if error.name != "EAGAIN":
                raise
            raise click.ClickException(
                f"{path} changed each time while it was read; --live takes it as it is found"
            ) from None
    if output is None:
        for line in treefile.lines(path, nodes):
            click.echo(line)
    else:
        _write_whole(output, treefile.lines(path, nodes))


@click.command("load")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--at", type=store_path, metavar="PATH", help="Make the tree here.")
@click.option("--replace", is_flag=True, help="Remove what was there before.")
@click.option("--no-perms", is_flag=True, help="Leave permissions as the server makes them.")
@click.option(
    "--parts",
    type=click.IntRange(min=1),
    metavar="N",
    help="N nodes a transaction, not all in one.",
)
@json_option
@with_store
def load_command(
    store: Xenstore,
    file: BinaryIO,
    at: str | None,
    replace: bool,
    no_perms: bool,
    parts: int | None,
    as_json: bool,
) -> None:
    """Make the tree that `dump` wrote to FILE (standard input if not given).

    All of it or nothing: it is one transaction. With --parts it is several, and what was done
    before an error stays.
    """
    name = getattr(file, "name", "<stdin>")
    source = "standard input" if name == "<stdin>" else str(name)
    top, nodes = treefile.parse(file.read(), source)
    if at is not None:
        nodes = treefile.moved(nodes, top, at)
        top = at
    if no_perms:
        nodes = [Node(node.path, node.value, None) for node in nodes]
    size = parts or max(len(nodes), 1)
    starts = range(0, len(nodes), size) or range(1)
    for done, start in enumerate(starts):
        part = nodes[start : start + size]
        try:
            _load_part(store, part, top if replace and start == 0 else None)
        except XenstoreError as error:
            if done:
                click.echo(f"{start} of {len(nodes)} nodes were loaded before this:", err=True)
            raise _explained(error) from None
    if as_json:
        click.echo(json.dumps({"path": top, "nodes": len(nodes), "transactions": len(starts)}))
    else:
        click.echo(f"{len(nodes)} nodes loaded, in {_transactions(len(starts))}")


def _write_whole(path: Path, lines: Iterable[str]) -> None:
    """Writes a file; one that is there is replaced only when all of the new one is written."""
    is_special = path.exists() and not path.is_file()  # a pipe, a terminal
    target = path if is_special else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with target.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        if not is_special:
            target.replace(path)
    except BaseException:
        if not is_special:
            target.unlink(missing_ok=True)
        raise


def _load_part(store: Xenstore, nodes: list[Node], remove: str | None) -> None:
    """Makes nodes in one transaction; first removes a tree, if asked for."""

    def change(tx: Transaction) -> None:
        tx.carry_out(_removed_and_made(nodes, remove))

    store.transact(change)


def _removed_and_made(nodes: list[Node], remove: str | None) -> Plan[None]:
    if remove is not None:
        yield from tree.remove(remove)
    yield from tree.make(nodes)


def _readable(nodes: Iterable[Node]) -> Iterable[Node]:
    """The same nodes; XenstoreError EACCES for one that we may not read."""
    for node in nodes:
        if node.value is None or node.permissions is None:
            raise XenstoreError("EACCES", f"read {node.path}")
        yield node


def _explained(error: XenstoreError) -> Exception:
    if error.name == "ENOENT" and error.request.startswith("set-perms"):
        return click.ClickException(
            f"{error.request}: a domain that it names is not there; load without with --no-perms"
        )
    return error


def _transactions(count: int) -> str:
    return "one transaction" if count == 1 else f"{count} transactions"
