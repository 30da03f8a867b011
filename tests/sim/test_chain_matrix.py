"""Chains of kernels: a spread of the matrix, and seeds; the whole of both is `make campaign`."""

from __future__ import annotations

import sys

import pytest

from xenlive.sim.__main__ import main
from xenlive.sim.chain import ChainWorld
from xenlive.sim.chain_campaign import Chain, campaign, repeat_command, run_chain, run_chains
from xenlive.sim.chain_scenarios import AXES, Case, from_seed, matrix, pairs, spread

SEEDS = range(1, 261)


def run_clean(chains: list[Chain]) -> dict[str, int]:
    figures, failures = run_chains(chains)
    if failures:
        pytest.fail("\n".join(str(failure) for failure in failures[:5]), pytrace=False)
    return figures


@pytest.mark.parametrize("block", range(4))
def test_the_matrix(block: int) -> None:
    chains: list[Chain] = [case.name for case in spread()[block::4]]
    figures = run_clean(chains)
    assert figures["chains"] == len(chains)
    expected = ("deaths", "survivors", "stages undone", "guarded", "grow", "shrink", "compact")
    assert all(figures[name] > 0 for name in expected), figures


@pytest.mark.parametrize("block", range(4))
def test_chains_from_seeds(block: int) -> None:
    figures = run_clean(list(SEEDS[block::4]))
    for name in ("deaths", "survivors", "refused", "modules lost", "kernels posted", "reseal"):
        assert figures[name] > 0, figures


def test_the_spread_covers_every_pair_of_choices() -> None:
    wanted = {pair for case in matrix() for pair in pairs(case.words)}
    assert {pair for case in spread() for pair in pairs(case.words)} == wanted
    assert len(matrix()) == len(set(matrix())) == 5 * 3 * 2 * 5 * 6 * 15


def test_the_same_chain_is_the_same_chain() -> None:
    name = matrix()[4711].name
    assert run_chain(name) == run_chain(name)
    assert run_chain(3) == run_chain(3) != run_chain(4)


def test_cases_are_known_by_their_words() -> None:
    for words in ("18,growing", "18,growing,keep,plain,none,die-laughing"):
        with pytest.raises(ValueError, match=r"words|die-laughing"):
            Case.named(words)
    assert Case.named(",".join(axis[-1] for axis in AXES)).words[0] == "4000"


def test_a_failing_chain_says_how_to_repeat_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: ChainWorld) -> None:
        if self.scenario.seed == 12:
            raise ZeroDivisionError("made to fail")

    monkeypatch.setattr(ChainWorld, "_check_end", broken)
    command = [*repeat_command(12).split()[2:], "--jobs", "1"]
    assert command == ["xenlive.sim", "--chain", "--seed", "12", "--jobs", "1"]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 1
    printed = capsys.readouterr().out
    assert "ZeroDivisionError: made to fail" in printed
    assert "repeat: python -m xenlive.sim --chain --seed 12" in printed
    monkeypatch.setattr(sys, "argv", [*command, "--seed", "10", "--seeds", "5"])
    assert main() == 1
    assert "1 of 5 chains failed" in capsys.readouterr().out


def test_a_case_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = "18,growing,resize,hole,9pfs,die-grow"
    monkeypatch.setattr(sys, "argv", ["sim", "--chain", "--case", case, "--jobs", "1"])
    assert main() == 0
    assert "1 chains" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["sim", "--chain", "--case", "all"])
    with pytest.raises(SystemExit):
        main()
    assert "a case has 6 words" in capsys.readouterr().err


def test_a_campaign_counts_all_of_its_chains() -> None:
    heard: list[tuple[int, int, int]] = []
    chains: list[Chain] = list(range(20, 24))
    figures, failures = campaign(chains, 2, lambda *said: heard.append(said))
    assert failures == []
    assert figures == run_clean(chains)
    assert heard == [(4, 4, 0)]


def test_scenarios_say_what_they_are() -> None:
    assert str(Case.named("18,growing,resize,hole,9pfs,die-grow").scenario()).startswith(
        "hole, 9pfs, ours(18) -> ours(24 resizes die-grow) -> "
    )
    kinds = {spec.kind for seed in SEEDS for spec in from_seed(seed).kernels}
    assert kinds == {"ours", "posted", "ignorant"}
