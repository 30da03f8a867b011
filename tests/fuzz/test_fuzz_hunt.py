"""The short hunt: some thousand hostile inputs for each target, and engines that do find things."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hostile.campaign import HUNT, Orders, attack, repeat_command, report
from hostile.guided import can_guide
from hostile.tally import Tally, distinct, read_tally
from hostile.targets import TARGETS, load_target

ENGINES = ["plain", "guided"] if can_guide() else ["plain"]
ENGINE = ENGINES[-1]
# Inputs in `make test`; a second or two each. `make fuzz` goes on for as long as it is told.
RUNS = {"module": 1000, "start-info": 800, "kernel": 600, "image": 200, "show": 40, "guest": 150}
RUNS["code"] = 30
RUNS |= {"xenstore-socket": 60, "xenstore-ring": 60, "xenstore-stream": 800, "xenstore-change": 150}
REGRESSIONS = sorted((HUNT.parent / "regressions").glob("*/*"))


@pytest.mark.parametrize("target", TARGETS)
def test_a_short_hunt_finds_nothing(target: str, tmp_path: Path) -> None:
    result = attack(target, Orders(ENGINE, seed=1, runs=RUNS[target], found=tmp_path))
    assert not result.finds, report(result)
    assert result.executions >= RUNS[target]
    assert RUNS[target] / 3 < result.distinct <= result.executions
    assert sum(result.words.values()) == result.executions


@pytest.mark.parametrize(
    "path", REGRESSIONS, ids=[f"{path.parent.name}-{path.name}" for path in REGRESSIONS]
)
def test_saved_inputs_are_answered_as_they_were(path: Path) -> None:
    """What was found once stays mended; of each answer there is one by its name."""
    word = load_target(path.parent.name).check(path.read_bytes())
    if not path.name.startswith("found-"):
        assert re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") == path.name


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_fit_to_begin_with(name: str) -> None:
    target = load_target(name)
    seeds = target.seeds()
    assert len(set(seeds)) > 1
    assert seeds == target.seeds()
    assert max(map(len, seeds)) <= target.max_bytes
    for data in seeds[:20]:
        assert target.check(data) == target.check(data)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mistake_is_found_saved_and_repeated(engine: str, tmp_path: Path) -> None:
    result = attack("fuzz.planted", Orders(engine, seed=1, runs=200_000, found=tmp_path))
    assert result.executions < 200_000
    (saved,) = result.finds
    assert Path(saved).read_bytes().startswith(b"Kex")
    assert "Find: no input begins like that" in report(result)
    assert repeat_command("fuzz.planted", saved) in report(result)
    arguments = repeat_command("fuzz.planted", saved).split()[2:]
    again = subprocess.run(
        [sys.executable, str(HUNT), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode != 0
    assert "no input begins like that" in again.stderr


def test_a_worker_that_dies_is_a_find(tmp_path: Path) -> None:
    result = attack("no.such.target", Orders("plain", seed=1, runs=1, found=tmp_path))
    assert result.finds
    assert "No module named" in report(result)


def test_the_tally_counts_what_is_there(tmp_path: Path) -> None:
    one, two = Tally(tmp_path / "1"), Tally(tmp_path / "2")
    assert one.note(b"a", "x")
    assert not one.note(b"b", "x")
    assert not one.note(b"a", "x")
    assert two.note(b"b", "x")
    assert two.note(b"c", "y")
    assert read_tally(tmp_path / "1") == (3, {"x": 3})
    assert read_tally(tmp_path / "2") == (2, {"x": 1, "y": 1})
    assert distinct([tmp_path / "1", tmp_path / "2"]) == 3


def test_the_tally_has_room_for_any_number_of_words(tmp_path: Path) -> None:
    tally = Tally(tmp_path)
    for number in range(1000):
        assert tally.note(bytes([number % 256]), f"word {number}")
    assert not tally.note(b"", "word 999")
    assert tally.note(b"", "word 1: more of it")
    executions, words = read_tally(tmp_path)
    assert sum(words.values()) == executions == 1002
    assert words["word 1"] == 2
