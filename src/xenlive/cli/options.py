"""Options that several commands have, so that they are named and explained alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from xenlive.rundir import control_in, default_rundir, named_socket, socket_in

#: Seconds that a host process may take to say where the socket is.
HOST_LIMIT_S = 2.0

SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

F = TypeVar("F", bound=Callable[..., Any])


class SizeType(click.ParamType[int]):
    """A size in bytes: `8388608`, `8192K`, `8M`, `1G`."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The number of bytes; usage error for anything else."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,12})([KMG]?)", str(value).upper())
        if match is None:
            self.fail(f"{value!r} is no size; write 8M, for example", param, ctx)
        return int(match[1]) * SIZES[match[2]]


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
    if rundir is not None:
        return find_socket(rundir)
    return named_socket() or find_socket(default_rundir())


def find_socket(rundir: Path) -> Path:
    """The Xenstore socket of whoever runs in `rundir`: what its host says, else where it should be.

    Other servers' run directories have no host to ask.
    """
    door = control_in(rundir)
    if door.exists():
        from xenlive.machine.hosted.control import ask

        try:
            told = ask(str(door), {"verb": "status"}, HOST_LIMIT_S).get("socket")
        except (OSError, ValueError):
            told = None  # it was left behind
        if isinstance(told, str):
            return Path(told)
    return socket_in(rundir)
