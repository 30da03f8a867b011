"""The command line's frame: exit codes, one line for an error, nothing imported too early."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from xenlive import __version__
from xenlive.cli import main as cli
from xenlive.errors import ImageError, XenstoreError


def xenlive(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xenlive", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """Exit code of a command line whose only command raises `error`."""

    @click.command()
    def broken() -> None:
        click.echo("before")
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: broken)
    return cli.run(["broken"])


def test_the_version() -> None:
    answer = xenlive("--version")
    assert (answer.returncode, answer.stdout) == (0, f"xenlive {__version__}\n")


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from xenlive.cli.main import run; code = run(['--help']);"
        "print(code, *(m for m in sys.modules if m.startswith('xenlive.cli.')))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == "0 xenlive.cli.main"
    for name, (_, line) in cli.COMMANDS.items():
        assert name in answer.stdout
        assert line in answer.stdout


@pytest.mark.parametrize("arguments", [["no-such"], ["--no-such"], ["xs", "ls", "--no-such"]])
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str]) -> None:
    answer = xenlive(*arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stderr.startswith("xenlive")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ImageError("bad-size", "not whole\npages", 3), "bad-size: not whole pages at offset 3"),
        (XenstoreError("ENOENT", "read /a"), "read /a: No such file or directory (ENOENT)"),
        (XenstoreError("EWHATEVER"), "EWHATEVER"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: No such file or directory"),
        (OSError("odd"), "odd"),
    ],
)
def test_an_error_is_one_line_and_exit_1(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    line: str,
) -> None:
    assert fails(monkeypatch, error) == 1
    assert capsys.readouterr() == ("before\n", f"xenlive: {line}\n")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        fails(monkeypatch, ZeroDivisionError())


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (click.Abort(), 130), (click.exceptions.Exit(7), 7)],
)
def test_other_ends_are_quiet(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    assert fails(monkeypatch, error) == code
    assert capsys.readouterr().err.strip() == ""


def test_a_commands_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def odd() -> int:
        return 3

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: odd)
    assert cli.run(["odd"]) == 3


def test_a_reader_that_went_away_is_quiet(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with (tmp_path / "err").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "xenlive", "--help"], stdout=writing, stderr=errors
        )
        os.close(writing)
        assert process.wait(60) == 1
        errors.seek(0)
        assert errors.read() == ""
