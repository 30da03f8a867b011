"""`xenlive xs`: read and change a Xenstore, ours or any other, from the command line.

Values may hold any bytes and come from guests: what is not printable is shown as an escape
(`\\x1b`), so that a guest can't play with an administrator's terminal. `read --raw` gives the
bytes.

**Invariants.** Several changes in one command are one transaction: all of them or none. Output is
written as it is found, so a large tree needs no memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click

from xenlive.cli import xs_tree
from xenlive.cli.options import json_option
from xenlive.cli.xs_dump import dump_command, load_command
from xenlive.cli.xs_limits import features_command, quota_command
from xenlive.cli.xs_store import in_pairs, permission, store_options, store_path, with_store
from xenlive.cli.xs_tree import as_object, printable, value_as_object
from xenlive.cli.xs_watch import watch_command
from xenlive.client.answers import Permission
from xenlive.client.blocking import Xenstore
from xenlive.client.operations import StoreOperations
from xenlive.errors import XenstoreError


@click.group("xs")
@store_options
@click.pass_context
def xs_group(ctx: click.Context, socket: Path | None, rundir: Path | None) -> None:
    """Read and change a Xenstore.

    Which one: --socket, else --rundir, else $XENSTORED_PATH, else $XENSTORED_RUNDIR/socket, else
    the domain in the default run directory.
    """
    ctx.obj = (socket, rundir)


@xs_group.command("ls")
@click.argument("path", metavar="[PATH]", type=store_path, default="/")
@click.option("-p", "--perms", is_flag=True, help="Show permissions.")
@click.option(
    "-d", "--depth", type=click.IntRange(min=1), metavar="N", help="Show N levels, not all."
)
@json_option
@with_store
def ls_command(store: Xenstore, path: str, perms: bool, depth: int | None, as_json: bool) -> None:
    """Draw the tree below PATH (the root if not given)."""
    nodes = store.walk(path, perms=perms, depth=depth)
    if as_json:
        click.echo(json.dumps({"path": path, "nodes": [as_object(node) for node in nodes]}))
        return
    for line in xs_tree.draw(nodes, guides=xs_tree.guides_for(sys.stdout.encoding)):
        click.echo(line)


@xs_group.command("read")
@click.argument("paths", metavar="PATH...", type=store_path, nargs=-1, required=True)
@click.option("--raw", is_flag=True, help="The value's bytes as they are, no newline added.")
@json_option
@with_store
def read_command(store: Xenstore, paths: tuple[str, ...], raw: bool, as_json: bool) -> None:
    """Print the value of each PATH."""
    if raw and as_json:
        raise click.UsageError("--raw and --json exclude each other")
    if as_json:
        values = [{"path": path, **value_as_object(store.read(path))} for path in paths]
        click.echo(json.dumps({"nodes": values}))
        return
    for path in paths:
        value = store.read(path)
        if raw:
            sys.stdout.buffer.write(value)
            sys.stdout.buffer.flush()
        else:
            click.echo(printable(value))


@xs_group.command("write")
@click.argument(
    "changes",
    metavar="PATH VALUE [PATH VALUE]...",
    nargs=-1,
    required=True,
    callback=lambda ctx, param, words: in_pairs(words),
)
@with_store
def write_command(store: Xenstore, changes: list[tuple[str, str]]) -> None:
    """Store each VALUE at its PATH, making missing nodes."""

    def apply(target: StoreOperations) -> None:
        for path, value in changes:
            target.write(path, value)

    _at_once(store, len(changes), apply)


@xs_group.command("mkdir")
@click.argument("paths", metavar="PATH...", type=store_path, nargs=-1, required=True)
@with_store
def mkdir_command(store: Xenstore, paths: tuple[str, ...]) -> None:
    """Make each PATH, if it is missing."""

    def apply(target: StoreOperations) -> None:
        for path in paths:
            target.mkdir(path)

    _at_once(store, len(paths), apply)


@xs_group.command("rm")
@click.argument("paths", metavar="PATH...", type=store_path, nargs=-1, required=True)
@with_store
def rm_command(store: Xenstore, paths: tuple[str, ...]) -> None:
    """Remove each PATH and all below it."""

    def apply(target: StoreOperations) -> None:
        for path in paths:
            target.rm(path)

    _at_once(store, len(paths), apply)


@xs_group.command("exists")
@click.argument("path", metavar="PATH", type=store_path)
@with_store
def exists_command(store: Xenstore, path: str) -> None:
    """Exit 0 if PATH exists, 1 if not; print nothing."""
    if not store.exists(path):
        raise click.exceptions.Exit(1)


@xs_group.command("get-perms")
@click.argument("path", metavar="PATH", type=store_path)
@json_option
@with_store
def get_perms_command(store: Xenstore, path: str, as_json: bool) -> None:
    """Print the permissions of PATH, its owner first.

    Each is a letter and a domain: n no access, r read, w write, b both. The owner may do
    everything; the owner's letter is what all other domains may do.
    """
    found = [str(entry) for entry in store.get_perms(path)]
    click.echo(json.dumps({"path": path, "permissions": found}) if as_json else " ".join(found))


@xs_group.command("chmod")
@click.argument("path", metavar="PATH", type=store_path)
@click.argument("perms", metavar="PERM...", type=permission, nargs=-1, required=True)
@click.option("-R", "--recursive", is_flag=True, help="Also all nodes below PATH.")
@with_store
def chmod_command(
    store: Xenstore, path: str, perms: tuple[Permission, ...], recursive: bool
) -> None:
    """Replace the permissions of PATH, such as: n0 r5 (domain 0 owns it, 5 may read)."""
    store.set_perms(path, perms)
    if recursive:
        for node in store.walk(path):
            _set_perms_if_there(store, node.path, perms)


@xs_group.command("control", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", metavar="COMMAND [ARGUMENT]...", nargs=-1, required=True)
@json_option
@with_store
def control_command(store: Xenstore, arguments: tuple[str, ...], as_json: bool) -> None:
    """Run a control COMMAND of the server's, such as: help."""
    said = store.control(*arguments)
    if as_json:
        click.echo(json.dumps({"command": arguments, "said": said}))
    elif said:
        click.echo(said.rstrip("\n"))


def _set_perms_if_there(store: Xenstore, path: str, perms: tuple[Permission, ...]) -> None:
    """A node that went away while the tree was walked needs no permissions."""
    try:
        store.set_perms(path, perms)
    except XenstoreError:
        if store.exists(path):
            raise


for further in (watch_command, dump_command, load_command, quota_command, features_command):
    xs_group.add_command(further)


def _at_once(store: Xenstore, n_changes: int, apply: Callable[[StoreOperations], object]) -> None:
    """Applies changes; several of them in one transaction."""
    if n_changes == 1:
        apply(store)
    else:
        store.transact(apply)
