"""`xenlive inspect` and `xenlive verify`: handed-over memory, described and checked.

An image is a raw module or memory image, or the run directory of a domain that runs: its memory is
looked at as it is, without a word to the domain.

| ends | exit |
|---|---|
| described; sound | 0 |
| `verify`: the module has problems, each on a line of stdout | 1 |
| no module in the image, an image that can't be read, wrong usage | 2 |

**Invariants.** Nothing is ever written to an image. `inspect` describes an unsound module too: its
problems are a part of the description.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from xenlive.cli.options import json_option
from xenlive.dump import describe_image, draw_module
from xenlive.dump.image import KINDS, RAM_NAME
from xenlive.errors import ImageError
from xenlive.rundir import default_rundir

EXIT_UNSOUND = 1
EXIT_NO_MODULE = 2

image_argument = click.argument("image", required=False, type=click.Path(path_type=Path))
kind_option = click.option(
    "--as",
    "kind",
    type=click.Choice(KINDS),
    default="auto",
    help="What IMAGE is: a module by itself, or memory with one in it.  [default: auto]",
)


class NoModule(click.ClickException):
    """There is nothing to describe."""

    exit_code = EXIT_NO_MODULE


@click.command()
@image_argument
@kind_option
@json_option
def inspect_command(image: Path | None, kind: str, as_json: bool) -> int:
    """Describe the kexec module in IMAGE.

    IMAGE is a module or memory image, or the run directory of a running domain; without it, the
    default run directory.
    """
    description = load_description(image, kind)
    if as_json:
        click.echo(json.dumps(description))
    else:
        print_description(description)
    return 0


@click.command()
@image_argument
@kind_option
def verify_command(image: Path | None, kind: str) -> int:
    """Check the kexec module in IMAGE: exit 0 if it is sound, 1 if not, 2 if there is none.

    Each problem is a line of its own: its code, the offset in the module's last page, and what is
    wrong. IMAGE is as for inspect.
    """
    problems = load_description(image, kind)["problems"]
    for problem in problems:
        click.echo(f"{problem['code']} at {problem['offset']}: {problem['message']}")
    return EXIT_UNSOUND if problems else 0


def load_description(image: Path | None, kind: str) -> dict[str, Any]:
    """What `describe_image` says of IMAGE, or of the default run directory.

    NoModule if there is nothing to describe.
    """
    path = default_rundir() if image is None else image
    try:
        return describe_image(path, kind)
    except ImageError as error:
        raise NoModule(error.what) from None
    except FileNotFoundError:
        if image is None or path.is_dir():
            raise NoModule(f"no domain runs in {path} (no {RAM_NAME} in it)") from None
        raise NoModule(f"{path}: no such file or directory") from None
    except OSError as error:
        raise NoModule(f"{path}: {error.strerror or error}") from None


def print_description(description: dict[str, Any]) -> None:
    """The description for people: where it lies, its picture, its records, its problems."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    address = description["address"]
    place = "at an unknown address" if address is None else f"at {address:#x}"
    size = description["n_pages"] + 1
    console.print(Text(f"kexec module of {size} page{'s' * (size != 1)} {place}\n"))
    console.print(draw_module(description, console.width))
    for record in description["records"]:
        console.print(Text("\n".join(_record_lines(record))))
    for problem in description["problems"]:
        line = f"problem: {problem['code']} at {problem['offset']}: {problem['message']}"
        console.print(Text(line, style="bold red"))
    if not description["problems"]:
        console.print(Text("sound", style="green"))


def _record_lines(record: dict[str, Any]) -> list[str]:
    name = record["type_name"]
    lines = [
        f"record {record['index']}: type {record['type']} ({name}), "
        f"{record['size']} bytes at {record['offset']}, pages {_runs(record['pages'])}"
    ]
    if record["decoded"] is None:
        data = record["data"]
        lines += [f"    {data[at : at + 64]}" for at in range(0, len(data), 64)]
        return lines
    decoded = dict(record["decoded"])
    interface = decoded.pop("interface", None)
    lines.append("    " + _fields(decoded))
    if interface is not None:
        refs = interface.pop("ref")
        page = interface.pop("page")
        lines.append(f"    interface page {page}: " + _fields(interface))
        lines.append(f"    ref {_runs(refs)}")
    return lines


def _fields(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())


def _runs(numbers: list[int]) -> str:
    """`0-16`, `3, 5-7`, `none`; runs may go down, as a device's references do."""
    runs: list[list[int]] = []
    for number in numbers:
        step = number - runs[-1][-1] if runs else 0
        if abs(step) == 1 and (len(runs[-1]) == 1 or runs[-1][-1] - runs[-1][-2] == step):
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = (f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return ", ".join(texts) or "none"
