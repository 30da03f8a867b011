"""The progress line: when it is there, that it goes away, and who never sees it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from dump.made import REAL, ram_with

from xenlive.cli import progress
from xenlive.cli.progress import Progress, progress_for
from xenlive.cli.root import run
from xenlive.dump import Image
from xenlive.dump.scan import CHUNK_BYTES

GIB = 1 << 30


class Clock:
    """Goes on only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_written_before_it_takes_long() -> None:
    out, clock = Terminal(), Clock()
    shown = Progress(out, "a hint", clock)
    clock.now_s = 0.9
    shown(GIB, 16 * GIB)
    shown.finish()
    assert out.getvalue() == ""
    clock.now_s = 1.1
    shown(3 * GIB + GIB // 5, 16 * GIB)
    shown(4 * GIB, 16 * GIB)  # too soon after
    assert out.getvalue() == "\rlooked at 3.2 of 16.0 GiB (a hint)"


def test_the_line_goes_away() -> None:
    out, clock = Terminal(), Clock()
    shown = Progress(out, "", clock)
    clock.now_s = 2.0
    shown(10 * GIB, 10 * GIB)
    clock.now_s = 3.0
    shown(0, GIB)
    shown.finish()
    *_, longest, last, cleared, end = out.getvalue().split("\r")
    assert (longest, last) == ("looked at 10.0 of 10.0 GiB", "looked at 0.0 of 1.0 GiB  ")
    assert (cleared, end) == (" " * len(longest), "")


@pytest.mark.parametrize(
    ("err_terminal", "out_terminal", "as_json", "shown"),
    [
        (True, True, False, True),
        (True, False, False, True),
        (True, True, True, True),
        (True, False, True, False),
        (False, True, False, False),
    ],
)
def test_who_sees_it(
    err_terminal: bool,
    out_terminal: bool,
    as_json: bool,
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal() if err_terminal else io.StringIO())
    monkeypatch.setattr(sys, "stdout", Terminal() if out_terminal else io.StringIO())
    assert (progress_for(as_json) is not None) == shown


def test_a_search_says_how_far_it_is(tmp_path: Path) -> None:
    """All bytes count, holes too, and each of them once."""
    told: list[tuple[int, int]] = []
    path = ram_with(tmp_path / "ram", b"", 0, (0x1800000, b"x" * 3 * CHUNK_BYTES))
    with Image(path, progress=lambda done, total: told.append((done, total))) as image:
        assert image.find_modules() == []
    assert [total for _, total in told] == [64 << 20] * len(told)
    done = [done for done, _ in told]
    assert done == sorted(set(done))
    assert done[0] > 36 << 20
    assert done[-1] == (64 << 20) - 0x1800000


@pytest.mark.parametrize("command", ["inspect", "verify", "diff"])
def test_commands_show_it_and_take_it_away(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(ram_with(tmp_path / "ram", REAL))
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    run([command, path, path] if command == "diff" else [command, path])
    assert "looked at 0.0 of 0.1 GiB" in err.getvalue()
    assert ("--quick" in err.getvalue()) == (command == "inspect")
    assert err.getvalue().endswith("\r")
