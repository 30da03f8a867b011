"""Options under headings in the help of a command with many."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from xenlive.cli.boot import boot_command
from xenlive.cli.option_groups import OTHERS, HeadedCommand, HeadedOption, options_under

red, green = options_under("Red"), options_under("Green")

# What every command has stands under no heading.
OF_EVERY_COMMAND = {"--json", "--help"}
HEADINGS = [
    *("Kernel and machine", "Directories of this machine", "Several domains, and snapshots"),
    *("Kexec under the lens", "Faults and traces", "Hosted Xenstore", "Debugger", OTHERS),
]


@click.command(cls=HeadedCommand)
@click.argument("where")
@red("--rose", metavar="N", help="A flower.")
@green("--leaf", is_flag=True, help="Part of one.")
@click.option("--any", is_flag=True, help="Whatever.")
@red("--hidden", hidden=True)
@red("--a-name-that-is-much-longer-than-the-column", is_flag=True, help="Long.")
@red("--brick", is_flag=True, help="A stone.")
def garden(where: str, **values: object) -> None:
    """Things."""


def help_of(command: click.Command) -> list[str]:
    answer = CliRunner().invoke(command, ["--help"], prog_name="it")
    assert answer.exit_code == 0
    return answer.output.splitlines()


def sections_of(lines: list[str]) -> dict[str, list[str]]:
    """Headings, and the first long name of each option below."""
    sections: dict[str, list[str]] = {}
    for line in lines[lines.index("") :]:
        if line.endswith(":") and not line.startswith(" "):
            names = sections.setdefault(line[:-1], [])
        elif line.startswith("  -"):
            words = line.replace(",", " ").split()
            names.append(next(word for word in words if word.startswith("--")))
    return sections


def test_options_stand_under_their_headings() -> None:
    assert sections_of(help_of(garden)) == {
        "Red": ["--rose", "--a-name-that-is-much-longer-than-the-column", "--brick"],
        "Green": ["--leaf"],
        OTHERS: ["--any", "--help"],
    }


def test_descriptions_begin_in_one_column() -> None:
    lines = help_of(garden)
    texts = ("A flower.", "Part of one.", "Whatever.", "Long.", "A stone.", "Show this")
    columns = {line.index(text) for text in texts for line in lines if text in line}
    assert len(columns) == 1


def test_an_argument_is_no_option() -> None:
    assert not any("WHERE" in line for line in help_of(garden)[1:])


def test_every_option_of_boot_has_a_heading() -> None:
    bare = [
        param.opts[0]
        for param in boot_command.params
        if isinstance(param, click.Option) and not isinstance(param, HeadedOption)
    ]
    assert set(bare) <= OF_EVERY_COMMAND


def test_the_help_of_boot_has_every_option_once() -> None:
    sections = sections_of(help_of(boot_command))
    assert list(sections) == HEADINGS
    assert set(sections[OTHERS]) == OF_EVERY_COMMAND
    shown = [name for names in sections.values() for name in names]
    known = [param.opts[0] for param in boot_command.params if isinstance(param, click.Option)]
    assert sorted(shown) == sorted([*known, "--help"])


@pytest.mark.parametrize("arguments", [["--rose", "3", "here"], ["here", "--leaf", "--brick"]])
def test_headed_options_are_read_as_others_are(arguments: list[str]) -> None:
    assert CliRunner().invoke(garden, arguments).exit_code == 0
