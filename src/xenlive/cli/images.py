"""What the commands that look at images have in common: which image, how to open it, what if not.

**Invariants.** Whatever an image is, a command on it ends with what it has to say or with one line
on stderr and exit 2, which means: there was nothing to look at. What goes wrong with the output is
no fault of the image: it ends the command as it ends any other (`root.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xenlive.dump.image import KINDS, RAM_NAME, Image
from xenlive.dump.words import printable
from xenlive.errors import ImageError
from xenlive.rundir import default_rundir

if TYPE_CHECKING:
    from rich.console import Console

    from xenlive.cli.progress import Progress

EXIT_CANNOT_READ = 2

F = TypeVar("F", bound=Callable[..., Any])

image_argument = click.argument("image", required=False, type=click.Path(path_type=Path))


def kind_option(command: F) -> F:
    """Adds `--as KIND`; the parameter is `kind`."""
    return click.option(
        "--as",
        "kind",
        type=click.Choice(KINDS),
        default="auto",
        help="What IMAGE is: a module by itself, or memory with one in it.  [default: auto]",
    )(command)


def image_rundir_option(command: F) -> F:
    """Adds `--rundir DIR` instead of an image; the parameter is None if it is not given."""
    return click.option(
        "--rundir",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Run directory of the domain.  [default: $XENLIVE_RUNDIR, else the user's own]",
    )(command)


class CannotRead(click.ClickException):
    """There is nothing to look at."""

    exit_code = EXIT_CANNOT_READ


@contextmanager
def opened(
    image: Path | None,
    rundir: Path | None = None,
    kind: str = "auto",
    progress: Progress | None = None,
) -> Iterator[Image]:
    """The image that IMAGE or `--rundir` names, else the default run directory's; open meanwhile.

    CannotRead for any that can't be read, also when that shows later, in the body. An OSError of
    the body is not about the image: it goes through.
    """
    if image is not None and rundir is not None:
        raise click.UsageError("IMAGE and --rundir exclude each other")
    path = image or rundir or default_rundir()
    if str(path) == "-":
        raise CannotRead("an image can't be read from standard input: save it to a file first")
    try:
        with _open(path, image is None, kind, progress) as memory:
            if memory.doubt:
                click.echo(printable(memory.doubt), err=True)
            yield memory
    except ImageError as error:
        raise CannotRead(printable(error.what)) from None
    finally:
        if progress is not None:
            progress.finish()


def _open(path: Path, is_rundir: bool, kind: str, progress: Progress | None) -> Image:
    try:
        return Image(path, kind, progress)
    except FileNotFoundError:
        if is_rundir or path.is_dir():
            raise CannotRead(printable(f"no domain runs in {path} (no {RAM_NAME} in it)")) from None
        raise CannotRead(printable(f"{path}: no such file or directory")) from None
    except OSError as error:
        raise CannotRead(printable(f"{path}: {error.strerror or error}")) from None


def refuse_to_overwrite(memory: Image, output: Path) -> None:
    """CannotRead if a file to be written is the image itself, under whatever name."""
    if memory.is_at(output):
        raise CannotRead(printable(f"{output} is the image: nothing is written to it"))


def console() -> Console:
    """Where text for people is printed; with NO_COLOR set nothing but the text."""
    from rich.console import Console

    plain = bool(os.environ.get("NO_COLOR"))
    return Console(
        file=sys.stdout,
        highlight=False,
        soft_wrap=True,
        color_system=None if plain else "auto",
    )
