"""`xenlive inspect` and `xenlive verify`: handed-over memory, described and checked.

An image is a raw module or memory image, a core of Xen or QEMU, or the run directory of a domain
that runs: its memory is looked at as it is, without a word to the domain.

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

from xenlive.cli.images import image_argument, image_rundir_option, kind_option, opened
from xenlive.cli.options import json_option
from xenlive.dump.describe import describe
from xenlive.dump.image import Image
from xenlive.dump.streams import stream_of

EXIT_UNSOUND = 1


@click.command()
@image_argument
@image_rundir_option
@kind_option
@click.option("--all", "all_modules", is_flag=True, help="Describe all modules of the image.")
@click.option("--quick", is_flag=True, help="Look at the module alone, not at all memory.")
@click.option(
    "--svg",
    "svg_path",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Write the picture to FILE as SVG, and no text; - is stdout.",
)
@json_option
def inspect_command(
    image: Path | None,
    rundir: Path | None,
    kind: str,
    all_modules: bool,
    quick: bool,
    svg_path: Path | None,
    as_json: bool,
) -> int:
    """Describe the kexec module in IMAGE.

    IMAGE is a module or memory image, a dump of Xen or QEMU, or the run directory of a running
    domain; without it, the default run directory. Of several modules the highest sound one is
    described, and the others are named. A file that is a Xenstore state stream is summed up.
    """
    if svg_path is not None and as_json:
        raise click.UsageError("--svg and --json exclude each other")
    with opened(image, rundir, kind) as memory:
        stream = stream_of(memory)
        if stream is not None and svg_path is None:
            print_stream(stream, as_json)
            return 0
        descriptions = describe_modules(memory, all_modules, not quick)
    if svg_path is not None:
        write_svg(descriptions[0], svg_path)
    elif as_json:
        chosen, *others = descriptions
        click.echo(json.dumps(chosen | {"others": others} if all_modules else chosen))
    else:
        for place, description in enumerate(descriptions):
            if place:
                click.echo()
            print_description(description, alone=len(descriptions) == 1)
    return 0


@click.command()
@image_argument
@image_rundir_option
@kind_option
@json_option
def verify_command(image: Path | None, rundir: Path | None, kind: str, as_json: bool) -> int:
    """Check the kexec module in IMAGE: exit 0 if it is sound, 1 if not, 2 if there is none.

    Each problem is a line of its own: its code, the offset in the module's last page, and what is
    wrong. IMAGE is as for inspect.
    """
    from xenlive.dump.lines import problem_line

    with opened(image, rundir, kind) as memory:
        (description,) = describe_modules(memory, all_modules=False, thorough=False)
    problems = description["problems"]
    if as_json:
        wanted = ("address", "n_pages", "problems")
        click.echo(json.dumps({"sound": not problems} | {key: description[key] for key in wanted}))
    else:
        for problem in problems:
            click.echo(problem_line(problem))
    return EXIT_UNSOUND if problems else 0


def describe_modules(memory: Image, all_modules: bool, thorough: bool) -> list[dict[str, Any]]:
    """What `describe` says of the module that counts, and of the others if they are asked for.

    ImageError if there is none.
    """
    chosen = memory.find_module()
    descriptions = [describe(memory, chosen, thorough)]
    if all_modules:
        others = [found for found in memory.find_modules() if found.offset != chosen.offset]
        descriptions += [describe(memory, found) for found in others]
    return descriptions


def print_stream(stream: dict[str, Any], as_json: bool) -> None:
    """What is said of a file that is a state stream by itself."""
    from xenlive.dump.lines import stream_line

    click.echo(json.dumps({"streams": [stream]}) if as_json else stream_line(stream))


def write_svg(description: dict[str, Any], path: Path) -> None:
    """Writes the picture as a file by itself, or to stdout if the path is `-`."""
    from xenlive.dump.svg import draw_svg

    drawn = draw_svg(description)
    if str(path) == "-":
        click.echo(drawn, nl=False)
    else:
        path.write_text(drawn, encoding="utf-8")


def print_description(description: dict[str, Any], alone: bool = True) -> None:
    """The description for people: where it lies, its picture, its records, its problems.

    `alone` says that nobody else describes the other modules of the image.
    """
    from rich.console import Console
    from rich.text import Text

    from xenlive.dump.lines import (
        headline,
        other_line,
        problem_line,
        record_lines,
        stream_line,
    )
    from xenlive.dump.picture import draw_module

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(Text(headline(description) + "\n", style="bold"))
    console.print(draw_module(description, console.width))
    for record in description["records"]:
        console.print(Text("\n".join(record_lines(record))))
    for stream in description["streams"]:
        console.print(Text(stream_line(stream)))
    if not description["settled"]:
        console.print(Text("the module was being changed while it was read", style="bold yellow"))
    for problem in description["problems"]:
        console.print(Text(f"problem: {problem_line(problem)}", style="bold red"))
    if not description["problems"]:
        console.print(Text("sound", style="green"))
    for other in description["others"] or [] if alone else []:
        console.print(Text(f"{other_line(other)} (--all describes it)"))
