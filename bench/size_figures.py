"""Figures of the store's size: resident memory, and the rate with a thousand and a million nodes.

    bench/size_figures.py [--quick]

Two domains, a small and a large one, are loaded and measured in turns, so that what disturbs the
machine disturbs both; what counts is the median of the rounds' ratios. Requests go to nodes all
over the store, by 16 clients. Memory is that of the domain's process, its interpreter included, as
/proc says it (`VmRSS`; MB are 1,000 KiB).

**Invariants.** A ratio is of two runs right after each other, at the same load.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from figures import Figure, table_of  # noqa: E402
from measure import Bench, Workload  # noqa: E402
from peer.tools import build_xsbench  # noqa: E402
from rich.console import Console  # noqa: E402
from servers import XenliveSubject  # noqa: E402

SMALL, MIDDLE, LARGE = 1_000, 100_000, 1_000_000
CLIENTS = 16


def resident_mb(subject: XenliveSubject) -> float:
    """Resident memory of the domain's process."""
    domain = subject.pids()[-1]
    for line in Path(f"/proc/{domain}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise RuntimeError(f"process {domain} has no memory")


def measure(
    bench: Bench,
    folder: Path,
    image: Path | None,
    *,
    quick: bool,
    say: Callable[[str], None],
) -> list[Figure]:
    """All figures of the installed xenlive, or of `image`."""
    large = MIDDLE if quick else LARGE
    subjects = [XenliveSubject(folder / str(number), image) for number in range(2)]
    name = subjects[0].name
    figures = [Figure(f"{name}: resident, empty", "MB")]
    rates = {
        mode: Figure(f"{name}: {mode}s, {large:,} nodes / {SMALL:,} nodes", "ratio")
        for mode in ("read", "write")
    }
    costs = {
        mode: Figure(f"{name}: CPU of {mode}s, {large:,} / {SMALL:,} nodes", "ratio")
        for mode in rates
    }
    try:
        for number, subject in enumerate(subjects):
            (folder / str(number)).mkdir(parents=True)
            subject.start(bench.server_prefix)
        small, big = subjects
        figures[0].rounds.append(resident_mb(small))
        bench.preload(small, SMALL)
        for nodes in (MIDDLE, LARGE)[: 1 if quick else 2]:
            say(f"{name}: {nodes:,} nodes")
            bench.preload(big, nodes)
            figures.append(Figure(f"{name}: resident, {nodes:,} nodes", "MB", [resident_mb(big)]))
        say(f"{name}: {large:,} nodes beside {SMALL:,}")
        for _ in range(2 if quick else 7):
            for mode in rates:
                load = Workload(mode, mode, CLIENTS, 20_000)
                few = bench.speed(small, load, SMALL)
                many = bench.speed(big, load, large)
                rates[mode].rounds.append(many.requests_per_s / few.requests_per_s)
                costs[mode].rounds.append(many.cpu_us / few.cpu_us)
    finally:
        for subject in subjects:
            subject.stop()
    return [*figures, *rates.values(), *costs.values()]


def main() -> int:
    """Measures and prints; gives the exit code."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    parser = argparse.ArgumentParser(description="What a large store costs.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the nodes, fewer rounds")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="xenlive-bench-") as name:
        folder = Path(name)
        bench = Bench(build_xsbench(folder))
        with console.status("") as status:
            figures = measure(bench, folder / "plain", None, quick=options.quick, say=status.update)
        console.print(table_of("A large store", figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
