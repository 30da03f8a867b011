"""What all commands of `xenlive xs` share: which store they mean, and what their words mean.

**Invariants.** A word that can't be a path or a permission is wrong usage, found before any request
is sent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from xenlive.cli.options import choose_socket
from xenlive.client.answers import Permission
from xenlive.client.blocking import Xenstore

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
