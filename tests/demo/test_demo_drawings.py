"""Pictures: to scale, never wider than the terminal, and the same words without colours."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from demo.evidence import PHASES_MS, gap, sound, update, with_after, with_load, with_update
from rich.console import Console

from xenlive.demo.drawings import (
    ASCII,
    UNICODE,
    Marks,
    draw_checks,
    draw_handover,
    draw_timeline,
    marks_for,
)
from xenlive.demo.load import Gap
from xenlive.demo.run import Options, Outcome
from xenlive.demo.story import Story
from xenlive.demo.verdict import Check, Evidence, judge
from xenlive.demo.world import UpdateReport

GOLDEN = """\
  quiesce       ▏                                   0.4 ms
  dump          ██████                             12.0 ms
  kexec               █████                         9.5 ms
  boot                     ████                     7.5 ms
  restore                      █████████████       24.0 ms
  first reply                               ▏       0.3 ms
  clients saw  ├──────────────────────────────┤    61.0 ms"""


def test_a_timeline() -> None:
    one = update("0.1.0", "0.1.0+b", 1, 24)
    lines = [line.plain for line in draw_timeline(one, 58)]
    assert "\n".join(lines) == GOLDEN


@pytest.mark.parametrize("marks", [UNICODE, ASCII])
@pytest.mark.parametrize("width", [40, 58, 80, 100, 300])
def test_no_line_is_too_wide(marks: Marks, width: int) -> None:
    one = update("0.1.0", "0.1.0+b", 1, 24)
    lines = draw_timeline(one, width, marks) + draw_checks(judge(sound()), width, marks)
    assert max(line.cell_len for line in lines) <= width
    if marks is ASCII:
        assert all(line.plain.isascii() for line in draw_timeline(one, width, marks))


def test_phases_lie_end_to_end() -> None:
    """Where one bar ends the next begins, and the longest phase has the longest bar."""
    bars = [line.plain[15:-11] for line in draw_timeline(update("a", "b", 1, 24), 100)]
    ends = [len(bar.rstrip()) for bar in bars[1:5]]
    starts = [len(bar) - len(bar.lstrip()) for bar in bars[1:5]]
    assert starts[1:] == ends[:-1]
    longest = max(bars[:6], key=lambda bar: bar.count("█"))
    assert bars.index(longest) == list(PHASES_MS).index("restore")


@pytest.mark.parametrize(
    "strange",
    [
        Gap(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0),
        gap(5000.0, 90.0),
        gap(1.0, 200.0),
    ],
)
def test_strange_numbers_are_drawn_all_the_same(strange: Gap) -> None:
    one = replace(update("a", "b", 1, 24), gap=strange)
    assert all(line.cell_len <= 60 for line in draw_timeline(one, 60))
    assert draw_timeline(replace(one, report=UpdateReport(False, "a", "a")), 60)
    assert draw_timeline(replace(one, gap=None), 60)


def test_the_verdict_says_what_is_broken() -> None:
    checks = [Check("good", True, "as it was"), Check("grants", False, "grant 2031 " * 8)]
    lines = [line.plain for line in draw_checks(checks, 50)]
    assert lines[0] == "  ✓ good    as it was"
    assert lines[1].startswith("  ✗ grants  grant 2031 grant 2031")
    assert all(line.startswith(" " * 12) for line in lines[2:])


def test_a_word_longer_than_the_line_is_cut() -> None:
    lines = draw_checks([Check("x", False, "y" * 100)], 40)
    assert "".join(line.plain.strip(" ✗x") for line in lines) == "y" * 100


def test_marks_follow_the_encoding() -> None:
    assert marks_for("utf-8") is marks_for("UTF8") is UNICODE
    assert marks_for("ascii") is marks_for("latin-1") is ASCII


def printed(what: object, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(what)
    return out.getvalue()


def test_what_each_kernel_found() -> None:
    text = printed(draw_handover(sound(), 100))
    lines = {line[:17].strip(): line for line in text.splitlines()}
    assert "24 module pages" in lines["> configured for"]
    assert lines["module"].count("18 pages at 0x7ee000") == 3
    assert lines["pages"].count("00000000000000000#") == 3
    assert "> kernel" in lines
    moved = printed(draw_handover(with_after(sound(), 1, event_channel=9), 100))
    assert "> event channel" in moved
    nothing = Evidence("", 1, 1, (), 2, None, None)
    assert draw_handover(nothing, 100) is None


def story(evidence: Evidence, width: int = 80) -> str:
    out = io.StringIO()
    told = Story(Console(file=out, width=width))
    told.stage("booting")
    told.booted("0.1.0")
    told.loaded(Options(), 1.5)
    told.progress(10, 2)
    told.working(Options(), evidence.before)
    for number, one in enumerate(evidence.updates, 1):
        told.updated(number, one)
    told.judged(Outcome(evidence, judge(evidence), 9.9))
    return out.getvalue()


@pytest.mark.parametrize("width", [50, 80, 120])
def test_the_story_of_a_demo_that_went_well(width: int) -> None:
    text = story(sound(), width)
    assert "Update A to B   0.1.0 → 0.1.0+b" in text
    assert "Update B to C" in text
    assert "PASSED: the code was replaced 2 times" in " ".join(text.split())
    assert "\x1b" not in text, "nobody watches: nothing moves and nothing is coloured"
    assert "✗" not in text


def test_the_story_of_one_that_did_not() -> None:
    failed = UpdateReport(False, "0.1.0+b", "0.1.0+b", reason="no such image")
    evidence = with_update(with_load(sound(), nodes_lost=3), 1, report=failed)
    text = story(evidence)
    assert "Update B to C failed: no such image" in text
    assert text.rstrip().endswith("FAILED: updates, nodes")


def test_the_story_on_a_terminal() -> None:
    out = io.StringIO()
    told = Story(Console(file=out, force_terminal=True, width=80))
    told.stage("booting")
    told.progress(1000, 20)
    told.booted("0.1.0")
    told.close()
    told.close()
    assert "booting" in out.getvalue()
