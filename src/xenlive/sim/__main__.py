"""`python -m xenlive.sim`: runs seeds of the simulated world; says how to repeat one that fails.

--seed N [--count M] [--steps S]              Xenstore stub domains that update live
--chain --seed N | --seeds M | --case WORDS   chains of kernels over one kexec module
--chain --matrix                              each case of the matrix
"""

from __future__ import annotations

import argparse
import os
import sys

from xenlive.sim.chain_campaign import Chain, campaign
from xenlive.sim.chain_scenarios import Case, matrix
from xenlive.sim.client import Mismatch
from xenlive.sim.world import SimWorld

FAILURES_SHOWN = 10


def repeat_command(seed: int, steps: int) -> str:
    """The one command that repeats a seed."""
    return f"python -m xenlive.sim --seed {seed} --steps {steps}"


def main() -> int:
    """Runs what the options name; 1 when something failed."""
    parser = argparse.ArgumentParser(prog="python -m xenlive.sim")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", "--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--chain", action="store_true", help="chains of kernels instead")
    parser.add_argument("--case", help="one chain of the matrix, by its words")
    parser.add_argument("--matrix", action="store_true", help="all chains of the matrix")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    wanted = parser.parse_args()
    if not wanted.chain:
        return run_worlds(wanted.seed, wanted.count, wanted.steps)
    chains: list[Chain] = list(range(wanted.seed, wanted.seed + wanted.count))
    if wanted.case:
        try:
            chains = [Case.named(wanted.case).name]
        except ValueError as error:
            parser.error(str(error))
    elif wanted.matrix:
        chains = [case.name for case in matrix()]
    return run_chains(chains, min(wanted.jobs, len(chains)))


def run_worlds(first: int, count: int, steps: int) -> int:
    """Runs `count` seeds from `first` on; 1 when one failed."""
    totals: dict[str, int] = {}
    for seed in range(first, first + count):
        try:
            figures = SimWorld(seed).run(steps)
        except Mismatch as broken:
            print(f"seed {seed}: {broken}\nrepeat: {repeat_command(seed, steps)}")
            return 1
        for name, figure in figures.items():
            totals[name] = totals.get(name, 0) + figure
    print(", ".join(f"{figure} {name}" for name, figure in totals.items()))
    return 0


def run_chains(chains: list[Chain], jobs: int) -> int:
    """Runs chains and prints what happened in them; 1 when some failed."""
    figures, failures = campaign(chains, jobs, show_progress)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(", ".join(f"{figure} {name}" for name, figure in sorted(figures.items()) if figure))
    for failure in failures[:FAILURES_SHOWN]:
        print(failure)
    if failures:
        print(f"{len(failures)} of {len(chains)} chains failed")
    return 1 if failures else 0


def show_progress(done: int, of: int, failed: int) -> None:
    """One line that is written over, on a terminal; else a line every tenth of the way."""
    line = f"{done} of {of} chains" + (f", {failed} failed" if failed else "")
    if sys.stderr.isatty():
        print(f"\r{line}", end="", file=sys.stderr, flush=True)
    elif done * 10 // of != (done - 1) * 10 // of and of > 1:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
