"""Many chains: seeds and the matrix, in several processes, and which of them went wrong.

Each failure is one line of what went wrong, and the one command that repeats it.

**Invariants.** Whatever a chain raises is its failure, not the campaign's end: a crash of the
product counts as much as a mismatch. Figures are of chains that ran to their end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from xenlive.sim.chain import ChainWorld
from xenlive.sim.chain_scenarios import Case, from_seed

COMMAND = "python -m xenlive.sim --chain"

#: A seed, or a case of the matrix by its name.
Chain = int | str


@dataclass
class Failure:
    """A chain that went wrong, and how to see it again."""

    chain: Chain
    scenario: str
    what: str

    def __str__(self) -> str:
        return f"{self.what}\n  {self.scenario}\n  repeat: {repeat_command(self.chain)}"


def repeat_command(chain: Chain) -> str:
    """The one command that repeats a chain."""
    return f"{COMMAND} --seed {chain}" if isinstance(chain, int) else f"{COMMAND} --case {chain}"


def run_chain(chain: Chain) -> Counter[str] | Failure:
    """Runs one; its figures, or what went wrong."""
    scenario = from_seed(chain) if isinstance(chain, int) else Case.named(chain).scenario()
    try:
        return ChainWorld(scenario).run()
    except Exception as error:
        return Failure(chain, str(scenario), f"{type(error).__name__}: {error}")


def run_chains(chains: Sequence[Chain]) -> tuple[Counter[str], list[Failure]]:
    """Runs some in this process."""
    figures: Counter[str] = Counter()
    failures = []
    for chain in chains:
        result = run_chain(chain)
        if isinstance(result, Failure):
            failures.append(result)
        else:
            figures.update(result)
    return figures, failures


def campaign(
    chains: Sequence[Chain], jobs: int, progress: Callable[[int, int, int], None]
) -> tuple[Counter[str], list[Failure]]:
    """Runs all in `jobs` processes; `progress` hears how many are done, of how many, and failed."""
    figures: Counter[str] = Counter()
    failures: list[Failure] = []
    done = 0
    for part, (part_figures, part_failures) in _results(chains, jobs):
        figures.update(part_figures)
        failures += part_failures
        done += part
        progress(done, len(chains), len(failures))
    return figures, sorted(failures, key=lambda failure: str(failure.chain))


def _results(
    chains: Sequence[Chain], jobs: int
) -> Iterator[tuple[int, tuple[Counter[str], list[Failure]]]]:
    """Length and result of each part, as they come."""
    if jobs <= 1:
        for part in _parts(chains):
            yield len(part), run_chains(part)
        return
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(run_chains, part): len(part) for part in _parts(chains)}
        for finished in as_completed(waiting):
            yield waiting[finished], finished.result()


def _parts(chains: Sequence[Chain], size: int = 50) -> Iterator[Sequence[Chain]]:
    for start in range(0, len(chains), size):
        yield chains[start : start + size]
