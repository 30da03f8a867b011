"""The transcripts of booting, in the guide and the README, are what the commands print.

Numbers of more than one digit are not compared: compilers lay kernels out differently. `...` stands
for lines that are left out. What needs a terminal, a debugger, or somebody else's kernels is tested
elsewhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from kernels.__main__ import main as write_own_kernels
from kernels.building import require_tools
from tidy.sources import ROOT

GUIDE = ROOT / "docs" / "boot.md"
PAGES = (GUIDE, ROOT / "README.md")
BLOCK = re.compile(r"^```(?:console)?\n(\$ .*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ((?:.*(?:\\|\|)\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
ELSEWHERE = re.compile(r"--gdb|--xenstore|vmlinux|grub-xen")
NUMBER = re.compile(r"-?\b(?:0x[0-9a-f]{2,}|(?=[0-9a-f.]*\d)[0-9a-f.]{2,})\b")
#: How the guide calls what `make kernels` writes.
NAMES = {
    "kernel.elf": "script-64.elf",
    "next.elf": "script-32.elf",
    "pair.elf": "pair-64.elf",
    "asker.elf": "asker-64.elf",
}
MARK = "\1"


class Step(NamedTuple):
    """A command of a transcript, and what it is said to print."""

    command: str
    printed: str


def transcripts(page: Path) -> list[list[Step]]:
    """The transcripts of a page that boot kernels of ours."""
    found = []
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        steps = [Step(*pair) for pair in COMMAND.findall(block)]
        steps = [step for step in steps if not step.command.startswith(("make ", "cd "))]
        if "xenlive boot" in block and not ELSEWHERE.search(block):
            found.append(steps)
    return found


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `make kernels` writes, under the guide's names too."""
    require_tools()
    folder = tmp_path_factory.mktemp("guide")
    assert write_own_kernels(folder) == 0
    for name, built in NAMES.items():
        (folder / name).symlink_to(built)
    return folder


def answers(steps: list[Step], folder: Path) -> list[str]:
    """What each command prints, on stdout and stderr, in one shell."""
    lines = ['xenlive() { "$PYTHON" -m xenlive "$@"; }']
    for step in steps:
        lines += ["code=$?", f"printf '{MARK}'", "(exit $code)", step.command]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env=os.environ | {"PYTHON": sys.executable, "COLUMNS": "80"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.stdout.split(MARK)[1:]


def without_numbers(text: str) -> str:
    """Its lines, with one space between words, and `N` for numbers of more than one digit."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(NUMBER.sub("N", line) for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_transcript_is_what_is_printed(page: Path, kernels: Path) -> None:
    found = transcripts(page)
    assert len(found) >= (8 if page == GUIDE else 1)
    for steps in found:
        for step, printed in zip(steps, answers(steps, kernels), strict=True):
            parts = re.split(r"^(?:\.\.\.|…)$", without_numbers(step.printed), flags=re.MULTILINE)
            pattern = "\n?.*\n?".join(re.escape(part.strip("\n")) for part in parts)
            said = without_numbers(printed)
            assert re.fullmatch(pattern, said, re.DOTALL), f"$ {step.command}\n{printed}"


def test_each_kernel_of_the_guide_is_one_that_is_made(kernels: Path) -> None:
    """The debugger's one has lines and variables: its transcript is GDB's, tested with GDB."""
    named = set(re.findall(r"[\w-]+\.elf", GUIDE.read_text(encoding="utf-8")))
    assert named <= {path.name for path in kernels.iterdir()}
    debugged = re.search(r"^\$ gdb (\S+)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert debugged
    assert b".debug_info" in (kernels / debugged[1]).read_bytes()
