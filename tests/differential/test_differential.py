"""The same sequences on Debian's daemons and on ours: every reply and every event.

A few of them here; `make differential` plays thousands.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from differential.__main__ import KNOWN, PEERS, PLAIN, run
from differential.comparing import Outcome, compare, shrink
from differential.known_c import C_4_17
from differential.known_newest import NEWEST, SHARED
from differential.ours import OurPeer
from differential.playing import Heard, Record, play
from differential.steps import Step, sequence

from xenlive.abi.xs_wire import XS_READ, XS_WRITE

PAGE = Path(__file__).parents[2] / "docs" / "differences.md"
LENGTH = 200
#: Fewer would hardly meet: what differs at once ends a sequence.
COMPARED_AT_LEAST = LENGTH * 2


@pytest.mark.peer
@pytest.mark.parametrize("first", range(0, 30, 5))
@pytest.mark.parametrize("peer", PEERS)
def test_ours_says_what_debians_say(
    peer: str, first: int, tmp_path: Path, peer_build_folder: Path
) -> None:
    compared = 0
    for seed in range(first, first + 5):
        steps = sequence(seed, LENGTH, plain=peer in PLAIN)
        outcome = run(peer, steps, tmp_path, peer_build_folder)
        assert outcome.finding is None, f"seed {seed}: {outcome.finding}"
        compared += outcome.compared
    assert compared >= COMPARED_AT_LEAST


@pytest.mark.parametrize("peer", PEERS)
def test_the_page_has_each_difference(peer: str) -> None:
    heading = {"c": "the C daemon 4.17", "ocaml": "the OCaml daemon 4.17"}[peer]
    section = PAGE.read_text().partition(f"## Sequences, {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]
    assert sorted(rows[1:]) == sorted(each.name for each in KNOWN[peer])


def test_the_page_has_what_differs_from_the_newest() -> None:
    rows = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if "|" in line]
    assert [each.name for each in NEWEST if each.name not in rows] == []
    assert {each.name for each in NEWEST} >= SHARED


def test_a_sequence_is_its_seed() -> None:
    assert sequence(7, 300) == sequence(7, 300)
    assert sequence(7, 300) != sequence(8, 300)
    assert {step.who for step in sequence(7, 300, guests=False)} <= {-1, -2}


def test_ours_says_the_same_twice() -> None:
    steps = sequence(3, 300)
    assert play(OurPeer(), steps) == play(OurPeer(), steps)


def compared(other: list[Record]) -> Outcome:
    steps = [Step(-1, XS_WRITE, b"/a\0b"), Step(-1, XS_READ, b"/a\0")]
    mine: list[Record] = [{-1: Heard(XS_WRITE, b"OK\0")}, {-1: Heard(XS_READ, b"b")}]
    return compare(steps, mine, other, C_4_17)


def test_what_nobody_has_named_is_found() -> None:
    same: list[Record] = [{-1: Heard(XS_WRITE, b"OK\0")}, {-1: Heard(XS_READ, b"b")}]
    assert compared(same).finding is None
    for wrong in (Heard(XS_READ, b"c"), Heard(XS_READ, b"b", events=(b"/a\0t\0",))):
        found = compared([same[0], {-1: wrong}]).finding
        assert found is not None
        assert (found.index, found.other) == (1, wrong)
    ended = compared(same[:1]).finding
    assert ended is not None
    assert ended.index == 1


def test_what_is_found_is_made_short() -> None:
    steps = sequence(5, 100)
    wanted = [steps[10], steps[70]]
    short = shrink(steps, lambda fewer: all(step in fewer for step in wanted))
    assert short == wanted
