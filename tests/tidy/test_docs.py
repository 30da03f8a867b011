"""What the documents say is there: commands, targets, links, decisions, versions."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from tidy.sources import ROOT, files, refuse

from xenlive import __version__
from xenlive.cli.root import COMMANDS, root

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def documents() -> list[Path]:
    return [path for path in files() if path.suffix == ".md"]


def code_in(path: Path) -> str:
    """What stands in code blocks and between backquotes."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"```.*?\n(.*?)```", text, flags=re.DOTALL)
    indented = re.findall(r"^ {4,}(.*)$", text, flags=re.MULTILINE)
    return "\n".join([*blocks, *indented, *re.findall(r"`([^`\n]+)`", text)])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_says_what_it_does(name: str) -> None:
    context = click.Context(root)
    command = root.get_command(context, name)
    assert command is not None
    assert command.help or command.short_help


def test_documents_name_commands_that_are_there() -> None:
    refuse(named_but_missing(r"xenlive ([a-z]+)\b", set(COMMANDS)))


def test_documents_name_targets_that_are_there() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    refuse(named_but_missing(r"make ([a-z]+)\b", set(targets)))


def named_but_missing(pattern: str, known: set[str]) -> list[str]:
    """What code in documents names by `pattern`, at the start of a word, and is not known."""
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in documents()
        for name in re.findall(rf"(?:^|[\s$/]){pattern}", code_in(path), flags=re.MULTILINE)
        if name not in known
    ]


def test_relative_links_lead_somewhere() -> None:
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in documents()
        for target in LINK.findall(path.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists()
    ]
    refuse(broken)


def test_decisions_are_numbered_without_gaps() -> None:
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert names
    refuse([name for name in names if not re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", name)])
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(__version__)}\b", text, flags=re.MULTILINE)


def test_the_readme_says_how_to_begin() -> None:
    code = code_in(ROOT / "README.md")
    assert "make demo" in code
    assert "make test" in code
