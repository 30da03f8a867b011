"""`xenlive xs`: read and change a Xenstore, ours or any other, from the command line.

Values may hold any bytes and come from guests: what is not printable is shown as an escape
(`\\x1b`), so that a guest can't play with an administrator's terminal. `read --raw` gives the
bytes.

**Invariants.** Several changes in one command are one transaction: all of them or none. Output is
written as it is found, so a large tree needs no memory.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from xenlive.cli import xs_tree
from xenlive.cli.options import choose_socket, json_option
from xenlive.cli.xs_tree import printable
from xenlive.client.blocking import StoreOperations, Xenstore
from xenlive.client.requests import Permission

ANSWER_TIMEOUT_S = 60.0  # a live update of a large store is allowed to be in the way

Command = Callable[..., Any]


def store_options(command: Command) -> Command:
    """Adds `--socket` and `--rundir`."""
    options = [
        click.option("--socket", type=click.Path(path_type=Path), metavar="PATH", help="Socket."),
        click.option(
            "--rundir",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Run directory of a domain; its socket is used.",
        ),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def with_store(command: Command) -> Command:
    """Opens the store that the options name, here or before the command, as first argument."""

    @store_options
    @functools.wraps(command)
    def wrapper(socket: Path | None, rundir: Path | None, **arguments: Any) -> None:
        if socket is None and rundir is None:
            socket, rundir = click.get_current_context().obj
        path = choose_socket(socket, rundir)
        with Xenstore.connect(path, timeout_s=ANSWER_TIMEOUT_S) as store:
            command(store, **arguments)

    return wrapper


def store_path(text: str) -> str:
    """An absolute path of the store, or wrong usage."""
    if not text.startswith(("/", "@")):
        raise click.BadParameter(f"{text!r} does not start with a slash")
    return text


def permission(text: str) -> Permission:
    """A permission such as `r5`, or wrong usage."""
    try:
        return Permission.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def in_pairs(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Paths and values that follow each other, or wrong usage."""
    if len(words) % 2:
        raise click.BadParameter("each PATH needs a VALUE")
    return [(store_path(path), value) for path, value in zip(words[::2], words[1::2], strict=True)]


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
@click.option("-R", "--tree", is_flag=True, help="Show all below PATH, not just its children.")
@json_option
@with_store
def ls_command(store: Xenstore, path: str, perms: bool, tree: bool, as_json: bool) -> None:
    """Draw the nodes below PATH (the root if not given)."""
    nodes = xs_tree.walk(store, path, perms=perms, recursive=tree)
    if as_json:
        found = {"path": path, "nodes": [xs_tree.as_object(node) for node in nodes]}
        click.echo(json.dumps(found))
        return
    for line in xs_tree.draw(nodes, guides=xs_tree.guides_for(sys.stdout.encoding)):
        click.echo(line)


@xs_group.command("read")
@click.argument("paths", metavar="PATH...", type=store_path, nargs=-1, required=True)
@click.option("--raw", is_flag=True, help="The value's bytes as they are, no newline added.")
@with_store
def read_command(store: Xenstore, paths: tuple[str, ...], raw: bool) -> None:
    """Print the value of each PATH."""
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
@with_store
def get_perms_command(store: Xenstore, path: str) -> None:
    """Print the permissions of PATH, its owner first.

    Each is a letter and a domain: n no access, r read, w write, b both. The owner may do
    everything; the owner's letter is what all other domains may do.
    """
    click.echo(" ".join(map(str, store.get_perms(path))))


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
        for node in xs_tree.walk(store, path, perms=False, recursive=True):
            store.set_perms(node.path, perms)


@xs_group.command("watch")
@click.argument("paths", metavar="PATH...", type=store_path, nargs=-1, required=True)
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@with_store
def watch_command(store: Xenstore, paths: tuple[str, ...], count: int | None) -> None:
    """Print the path of each change at or below PATH as it comes; the first comes at once."""
    for index, path in enumerate(paths):
        store.watch(path, str(index))
    seen = 0
    while count is None or seen < count:
        event = store.next_event()
        if event is None:
            continue
        click.echo(printable(event.path.encode("utf-8", "surrogateescape")))
        sys.stdout.flush()
        seen += 1


@xs_group.command("control", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", metavar="COMMAND [ARGUMENT]...", nargs=-1, required=True)
@with_store
def control_command(store: Xenstore, arguments: tuple[str, ...]) -> None:
    """Run a control COMMAND of the server's, such as: help."""
    said = store.control(*arguments)
    if said:
        click.echo(said.rstrip("\n"))


def _at_once(store: Xenstore, n_changes: int, apply: Callable[[StoreOperations], object]) -> None:
    """Applies changes; several of them in one transaction."""
    if n_changes == 1:
        apply(store)
    else:
        store.transact(apply)
