"""`xenlive inspect` and `xenlive verify`: handed-over memory, described and checked.

An image is a raw module or memory image, a core of Xen or QEMU, or the run directory of a domain
that runs: its memory is looked at as it is, without a word to the domain.

| ends | exit |
|---|---|
| described; sound | 0 |
| `verify`: the module has problems, each on a line of stdout | 1 |
| no module in the image, an image that can't be read or is to be written to, wrong usage | 2 |

**Invariants.** Nothing is ever written to an image. `inspect` describes an unsound module too: its
problems are a part of the description.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from xenlive.cli.images import (
    console,
    image_argument,
    image_rundir_option,
    kind_option,
    opened,
    refuse_to_overwrite,
)
from xenlive.cli.options import json_option
from xenlive.cli.progress import progress_for
from xenlive.dump.describe import (
    MAX_OTHERS,
    checked,
    describe,
    in_short,
)
from xenlive.dump.image import Image
from xenlive.dump.streams import stream_of

EXIT_UNSOUND = 1
#: Modules that are named beside the one that is checked; the rest is counted.
MAX_LINES = 8


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
    hint = "" if quick else "--quick leaves this out"
    with opened(image, rundir, kind, progress_for(as_json, hint)) as memory:
        if svg_path is not None:
            refuse_to_overwrite(memory, svg_path)
        stream = stream_of(memory)
        if stream is not None and svg_path is None:
            print_stream(stream, as_json)
            return 0
        descriptions, left_out = describe_modules(memory, all_modules, not quick)
    if svg_path is not None:
        write_svg(descriptions[0], svg_path)
    elif as_json:
        chosen, *others = descriptions
        if all_modules:
            chosen |= {"others": others, "others_left_out": left_out}
        click.echo(json.dumps(chosen))
    else:
        for place, description in enumerate(descriptions):
            if place:
                click.echo()
            print_description(description, alone=len(descriptions) == 1)
        if left_out:
            from xenlive.dump.lines import more_line

            click.echo(f"\n{more_line(left_out)}")
    return 0


@click.command()
@image_argument
@image_rundir_option
@kind_option
@json_option
def verify_command(image: Path | None, rundir: Path | None, kind: str, as_json: bool) -> int:
    """Check the kexec module in IMAGE: exit 0 if it is sound, 1 if not, 2 if there is none.

    Each problem is a line of its own: its code, the offset in the module's last page, and what is
    wrong. Those that end with "(suspicion)" only look wrong: a kernel attaches to the module all
    the same. IMAGE is as for inspect. Of several modules the highest sound one is checked; others
    that lie above it are named on stderr.
    """
    from xenlive.dump.lines import problem_line

    with opened(image, rundir, kind, progress_for(as_json)) as memory:
        chosen, passed = memory.find_module_and_passed()
        said = checked(chosen)
        others = [in_short(other) for other in passed[:MAX_OTHERS]]
    problems = said["problems"]
    if as_json:
        said = {"sound": not problems, "attachable": said["attachable"]} | said
        said |= {"others": others, "others_left_out": len(passed[MAX_OTHERS:])}
        click.echo(json.dumps(said))
    else:
        for problem in problems:
            click.echo(problem_line(problem))
        if said["attachable"]:
            print_passed(others, len(passed))
    return EXIT_UNSOUND if problems else 0


def describe_modules(
    memory: Image, all_modules: bool, thorough: bool
) -> tuple[list[dict[str, Any]], int]:
    """What `describe` says of the module that counts, and of the others if they are asked for.

    With it, how many others are left out. ImageError if there is no module.
    """
    if not all_modules:
        return [describe(memory, memory.find_module(), thorough)], 0
    found = memory.find_modules() or [memory.find_module()]
    descriptions = [describe(memory, found[0], thorough)]
    descriptions += [describe(memory, other) for other in found[1 : 1 + MAX_OTHERS]]
    return descriptions, len(found[1 + MAX_OTHERS :])


def print_passed(others: list[dict[str, Any]], n: int) -> None:
    """On stderr: modules above the one that was checked, none of which is sound."""
    from xenlive.dump.lines import passed_line

    for other in others[:MAX_LINES]:
        click.echo(passed_line(other), err=True)
    if n > MAX_LINES:
        click.echo(f"and {n - MAX_LINES:,} more", err=True)


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
    from rich.text import Text

    from xenlive.dump.lines import (
        headline,
        more_line,
        other_line,
        problem_line,
        record_lines,
        stream_line,
    )
    from xenlive.dump.picture import draw_module

    out = console()
    out.print(Text(headline(description) + "\n", style="bold"))
    out.print(draw_module(description, out.width))
    for record in description["records"]:
        out.print(Text("\n".join(record_lines(record))))
    for stream in description["streams"]:
        out.print(Text(stream_line(stream)))
    if not description["settled"]:
        out.print(Text("the module was being changed while it was read", style="bold yellow"))
    for problem in description["problems"]:
        out.print(Text(f"problem: {problem_line(problem)}", style="bold red"))
    if not description["problems"]:
        out.print(Text("sound", style="green"))
    elif description["attachable"]:
        out.print(Text("suspicions only: a kernel attaches to it", style="yellow"))
    for other in description["others"] or [] if alone else []:
        out.print(Text(f"{other_line(other)} (--all describes it)"))
    if alone and description["others_left_out"]:
        out.print(Text(more_line(description["others_left_out"])))
