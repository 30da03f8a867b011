"""Options that several commands have, so that they are named and explained alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from xenlive.rundir import default_rundir, default_socket, socket_in

F = TypeVar("F", bound=Callable[..., Any])


def rundir_option(command: F) -> F:
    """Adds `--rundir DIR`; the parameter `rundir` is a `Path`, the default one if not given."""
    return click.option(
        "--rundir",
        type=click.Path(file_okay=False, path_type=Path),
        default=default_rundir,
        metavar="DIR",
        help="Run directory of the domain.  [default: $XENLIVE_RUNDIR, else the user's own]",
    )(command)


def json_option(command: F) -> F:
    """Adds `--json`; the parameter is `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def choose_socket(path: Path | None, rundir: Path | None) -> Path:
    """The Xenstore socket that `--socket` and `--rundir` mean. UsageError if both are given."""
    if path is not None and rundir is not None:
        raise click.UsageError("--socket and --rundir exclude each other")
    if path is not None:
        return path
    return socket_in(rundir) if rundir is not None else default_socket()
