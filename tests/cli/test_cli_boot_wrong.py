"""`xenlive boot` with what can't be: options, files, places; one line, and one object of JSON."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kernels.building import build_kernel
from machine.emulated import small_guests

from xenlive.cli import root
from xenlive.machine.emulated.lens.snapshot import Snapshot
from xenlive.machine.emulated.lens.snapshot_file import write_snapshot

LIMIT_S = 30.0


@pytest.fixture(scope="module")
def hello() -> str:
    return str(build_kernel(small_guests.SAYS_HELLO))


def refused(capfd: pytest.CaptureFixture[str], *words: str, code: int) -> str:
    """The one line that is said instead of a run."""
    capfd.readouterr()
    assert root.run(["boot", *words]) == code
    stdout, stderr = capfd.readouterr()
    assert (stdout, stderr.count("\n")) == ("", 1)
    return stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--time-limit", "nan"], "nan is more than"),
        (["--time-limit", "inf"], "inf is more than"),
        (["--time-limit", "1e300"], "1e+300 is more than"),
        (["--save-at", "-1", "world"], "neither seconds nor entry:N"),
        (["--memory", "5G"], "not whole pages from 1 MiB to 4 GiB"),
        (["--memory", "4097K"], "not whole pages from 1 MiB to 4 GiB"),
        (["--memory", "0"], "not whole pages from 1 MiB to 4 GiB"),
        (["--name", ""], "are a name"),
        (["--name", "a/b"], "are a name"),
        (["--name", "a\nb"], "are a name"),
        (["--name", "x" * 64], "are a name"),
        (["--name", "guest2", "--with", "other.elf"], "what a guest of --with is called"),
    ],
)
def test_wrong_usage(
    capfd: pytest.CaptureFixture[str], hello: str, words: list[str], what: str
) -> None:
    assert what in refused(capfd, hello, *words, code=2)


@pytest.mark.parametrize(
    "words", [["--memory", "64M"], ["--name", "guest"], ["--console-io"], ["--cmdline", "x"]]
)
def test_what_a_saved_world_has_can_not_be_given_to_it(
    capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    said = refused(capfd, "--restore", "saved.world", *words, code=2)
    assert "--restore has a world of its own" in said


def test_a_saved_world_that_is_a_fifo_is_not_waited_for(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    said = refused(capfd, "--restore", str(fifo), code=1)
    assert said == f"xenlive: {fifo}: snapshot-file: no regular file\n"


def test_which_file_is_no_saved_world_is_said(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(b"\xff\xd8\xff\xe0" * 20)
    said = refused(capfd, "--restore", str(path), code=1)
    assert said.startswith(f"xenlive: {path}: snapshot-magic: ")


@pytest.mark.parametrize("option", ["--save-at", "--dump-at-entry"])
def test_a_place_that_can_not_be_written_to_is_told_before_the_run(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, hello: str, option: str
) -> None:
    nowhere = tmp_path / "missing" / "world"
    words = ["5", str(nowhere)] if option == "--save-at" else [str(nowhere)]
    assert str(nowhere.parent) in refused(capfd, hello, option, *words, code=1)


def test_only_a_file_is_put_away_for_a_saved_world(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, hello: str
) -> None:
    """A device would be a file from then on, for whoever may do that."""
    place = tmp_path / "fifo"
    os.mkfifo(place)
    said = refused(capfd, hello, "--save-at", "0", str(place), code=1)
    assert said == f"xenlive: {place}: is no regular file\n"
    with pytest.raises(OSError, match="is no regular file"):
        write_snapshot(Snapshot({}, {}, ()), place)
    assert stat.S_ISFIFO(place.stat().st_mode)
    assert list(tmp_path.iterdir()) == [place]


def test_a_kernel_for_boot_loaders_has_to_be_unpacked(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"MZ".ljust(0x202, b"\0") + b"HdrS".ljust(512, b"\0"))
    assert "a packed one, unpack it first" in refused(capfd, str(path), code=1)


def test_exceptions_alone_are_traced(capfd: pytest.CaptureFixture[str], hello: str) -> None:
    assert root.run(["boot", hello, "--trace-exceptions"]) == 0
    assert "---- kernel 0 at its entry" in capfd.readouterr().err


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("option", ["--trace", "--json"])
def test_what_is_closed_is_not_missed(hello: str, closed: str, option: str) -> None:
    command = f'exec "$0" -m xenlive boot "$1" {option} {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, hello],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "at its entry" not in done.stdout  # where a trace does not belong


# ---- one object, however it ends ----------------------------------------------------------------


def object_of(text: str) -> dict[str, Any]:
    """The only thing in it."""
    said = json.loads(text)
    assert isinstance(said, dict)
    return said


def test_what_could_not_be_booted_is_an_object_too(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "kernel"
    assert root.run(["boot", str(path), "--json"]) == 1
    stdout, stderr = capfd.readouterr()
    why = f"{path}: No such file or directory"
    assert object_of(stdout) == {"end": "failed", "why": why, "exit": 1, "console": ""}
    assert stderr == f"xenlive: {why}\n"


def test_what_fails_later_is_said_with_all_that_is_known(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, hello: str
) -> None:
    assert root.run(["boot", hello, "--json", "--save-at", "5", str(tmp_path / "world")]) == 1
    said = object_of(capfd.readouterr().out)
    assert (said["end"], said["exit"]) == ("failed", 1)
    assert "the run ended before --save-at" in said["why"]
    assert said["registers"]["rip"]
    assert said["console"] == "hi\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_interrupted_is_described(number: signal.Signals) -> None:
    kernel = str(build_kernel(small_guests.ECHOES))
    command = [sys.executable, "-m", "xenlive", "boot", kernel, "--json", "--trace"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "at its entry" in process.stderr.readline()  # it runs, and then waits for a key
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + number
    said = object_of(stdout)
    assert (said["end"], said["why"]) == ("interrupted", number.name)
    assert (said["exit"], said["bits"]) == (128 + number, 32)
    assert "Traceback" not in stderr
