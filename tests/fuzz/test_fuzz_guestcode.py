"""Hostile programs on the emulated processor: some of each kind, in a process of their own."""

from __future__ import annotations

from pathlib import Path

from hostile.campaign import Orders, attack, report

RUNS = 25


def test_hostile_programs_end_and_repeat(tmp_path: Path) -> None:
    orders = Orders("plain", seed=1, runs=RUNS, seconds=60, found=tmp_path)
    result = attack("hostile.guestcode", orders)
    assert not result.finds, report(result)
    assert result.executions == RUNS
    assert len(result.words) > 1
