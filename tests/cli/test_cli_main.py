"""The command line's frame: exit codes, one line for an error, nothing imported too early."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from xenlive import __version__
from xenlive.cli import root as cli
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
        "import sys; from xenlive.cli.root import run; code = run(['--help']);"
        "print(code, *(m for m in sys.modules if m.startswith('xenlive.cli.')))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.splitlines()[-1] == "0 xenlive.cli.failure xenlive.cli.root"
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


#: Has this process interrupted while it imports `module`, as Ctrl-C would, then runs the command.
INTERRUPTED_WHILE_IMPORTING = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, {sigint})
sys.meta_path.insert(0, Interrupting())
sys.argv = ["xenlive", {command!r}, "--help"]
from xenlive.cli.main import main
main()
"""


def interrupted(command: str, module: str, sigint: str) -> subprocess.CompletedProcess[str]:
    code = INTERRUPTED_WHILE_IMPORTING.format(command=command, module=module, sigint=sigint)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize("module", ["click", "xenlive.cli.root", "{command}"])
def test_an_interrupt_during_the_imports_is_quiet(name: str, module: str) -> None:
    module = module.format(command=cli.COMMANDS[name][0].partition(":")[0])
    answer = interrupted(name, module, "signal.default_int_handler")
    assert (answer.returncode, answer.stdout, answer.stderr) == (130, "", "")


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    answer = interrupted("status", "click", "signal.SIG_IGN")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "--rundir" in answer.stdout


#: Interrupts itself where Python drops what is raised, and would then go on for a minute.
INTERRUPTED_WHERE_IT_IS_DROPPED = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)

class Dropping:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):
            pass

def run():
    Dropping()
    time.sleep(60)

from xenlive.cli import main, root
root.run = run
main.main()
"""


def test_an_interrupt_that_python_drops_is_not_lost() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHERE_IT_IS_DROPPED],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert (answer.returncode, answer.stderr) == (130, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_the_output_cannot_show_is_escaped(encoding: str) -> None:
    code = (
        "import click\n"
        "from xenlive.cli import root\n"
        "said = click.Command('x', callback=lambda: print('\\u2192\\xe9'))\n"
        "root.LazyGroup.get_command = lambda *_: said\n"
        "raise SystemExit(root.run(['x']))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (answer.returncode, answer.stderr) == (0, b"")
    shown = "\u2192\xe9\n".encode(encoding, "backslashreplace")
    assert answer.stdout == shown


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
        try:
            assert process.wait(60) == 1
        finally:
            process.kill()
        errors.seek(0)
        assert errors.read() == ""
