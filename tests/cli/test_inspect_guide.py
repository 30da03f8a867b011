"""The guide's transcripts are what the commands print; the example does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli.image_files import MODULES, updating, write_images
from tidy.sources import ROOT

from xenlive.cli.root import run

GUIDE = ROOT / "docs" / "inspect.md"
EXAMPLE = ROOT / "examples" / "look_at_a_module.py"
TRANSCRIPT = re.compile(r"(?<=^```console\n)\$ xenlive (.*)\n(?:.*\n)*?(?=^```$)", re.MULTILINE)


def test_each_transcript_is_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With XENLIVE_UPDATE_GOLDEN=1 they are written anew."""
    write_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def printed(found: re.Match[str]) -> str:
        run(found[1].split())
        out, err = capsys.readouterr()
        return f"$ xenlive {found[1]}\n{out}{err}"

    text = GUIDE.read_text(encoding="utf-8")
    fresh, n = TRANSCRIPT.subn(printed, text)
    assert n >= 7
    if updating():
        GUIDE.write_text(fresh, encoding="utf-8")
    assert GUIDE.read_text(encoding="utf-8") == fresh


def example(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_example_on_a_real_image(tmp_path: Path) -> None:
    path = tmp_path / "device"
    path.write_bytes(MODULES["device"])
    answer = example(str(path))
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.splitlines() == [
        "18 pages at 0x0, 0 free, 3960 bytes for records",
        "record 0: type 1, 17 pages, ff07000004000000969d0000869d0000",
        "record 1: type 2, 0 pages, 171a1d202326292c2f3235383b3e4144",
    ]
    assert path.read_bytes() == MODULES["device"]


def test_the_example_on_what_is_no_module(tmp_path: Path) -> None:
    path = tmp_path / "nothing"
    path.write_bytes(bytes(4096))
    for arguments in ([str(path)], [str(tmp_path / "missing")]):
        answer = example(*arguments)
        assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (1, "", 1)
    assert example().returncode == 2
