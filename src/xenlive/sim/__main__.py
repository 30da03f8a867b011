"""`python -m xenlive.sim --seed N [--count M]`: runs seeds; says how to repeat one that fails."""

from __future__ import annotations

import argparse
import sys

from xenlive.sim.client import Mismatch
from xenlive.sim.world import SimWorld


def repeat_command(seed: int, steps: int) -> str:
    """The one command that repeats a seed."""
    return f"python -m xenlive.sim --seed {seed} --steps {steps}"


def main() -> int:
    """Runs `--count` seeds from `--seed` on; 1 when one failed."""
    parser = argparse.ArgumentParser(prog="python -m xenlive.sim")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--steps", type=int, default=600)
    wanted = parser.parse_args()
    totals: dict[str, int] = {}
    for seed in range(wanted.seed, wanted.seed + wanted.count):
        try:
            figures = SimWorld(seed).run(wanted.steps)
        except Mismatch as broken:
            print(f"seed {seed}: {broken}\nrepeat: {repeat_command(seed, wanted.steps)}")
            return 1
        for name, figure in figures.items():
            totals[name] = totals.get(name, 0) + figure
    print(", ".join(f"{figure} {name}" for name, figure in totals.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
