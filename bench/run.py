"""`make bench`: our Xenstore beside Debian's C daemon, on this machine, in this hour.

Ours is measured as it is installed, and as an image that was compiled (`xenlive build --compiled`).

    bench/run.py [--quick] [--json FILE] [--rounds N]

Absolute numbers say more about the machine than about the server. So the servers run in turns
within one run, the order changes from round to round, and what counts is the median of the
rounds' ratios. CPU time a request is steadier than requests a second.

**Invariants.** A number in the table was measured in this run; what could not be measured stops
the run with a line that says why.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

import emulator_figures  # noqa: E402
import kexec_figures  # noqa: E402
import size_figures  # noqa: E402
from figures import Figure, as_objects, table_of  # noqa: E402
from measure import NODES, Bench, BenchError, Workload  # noqa: E402
from peer.tools import build_xsbench, missing_peers  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from servers import C_DAEMON, COMPILED, OURS, CSubject, Subject, XenliveSubject  # noqa: E402

from xenlive import __version__  # noqa: E402
from xenlive.builder.compiled import build_compiled  # noqa: E402
from xenlive.errors import XenliveError  # noqa: E402

T = TypeVar("T")
CHILDREN = 20_000
UPDATE_NODES = (1_000, 10_000, 100_000)


@dataclass
class Row:
    """One line of the result: medians of each server, and of ours divided by the C daemon's."""

    name: str
    unit: str
    c: float
    xenlive: float
    compiled: float
    ratio: float
    compiled_ratio: float
    more_is_better: bool


def workloads(scale: float) -> list[Workload]:
    """All kinds of load; `scale` shortens them."""
    loads = [
        Workload(f"{mode}, {clients} client{'s' if clients > 1 else ''}", mode, clients, 20_000)
        for mode in ("read", "write", "mixed")
        for clients in (1, 16, 64)
    ]
    loads += [
        Workload("read, 16 deep pipeline", "read", 1, 60_000, depth=16),
        Workload("mixed, 16 deep pipeline", "mixed", 1, 60_000, depth=16),
        Workload("transactions, 16 clients", "txn", 16, 20_000),
        Workload("write, 1000 foreign watches", "write", 16, 20_000, watches=1000),
    ]
    return [
        Workload(w.name, w.mode, w.clients, int(w.requests * scale), w.depth, w.watches)
        for w in loads
    ]


class Run:
    """One run of everything: `rounds` rounds, results in `rows`."""

    def __init__(
        self, folder: Path, *, rounds: int, quick: bool, say: Callable[[str], None]
    ) -> None:
        self.rows: list[Row] = []
        self._folder = folder
        self._rounds = rounds
        self._quick = quick
        self._say = say
        self._bench = Bench(build_xsbench(folder))
        self._image = folder / "image"
        self.sizes: list[Figure] = []

    def measure(self) -> None:
        """Measures all; BenchError if something went wrong."""
        self._say("compiling")
        build_compiled(self._image, __version__)
        self._speeds()
        self._children()
        for nodes in UPDATE_NODES[:2] if self._quick else UPDATE_NODES:
            self._update(nodes)
        self._start()
        for kind, image in (("plain", None), ("compiled", self._image)):
            folder = self._folder / kind
            self.sizes += size_figures.measure(
                self._bench, folder, image, quick=self._quick, say=self._say
            )

    def _speeds(self) -> None:
        with self._servers(NODES) as subjects:
            for load in workloads(0.25 if self._quick else 1.0):
                self._say(load.name)
                speeds = self._in_turns(subjects, partial(self._bench.speed, load=load))
                per_s = {name: [x.requests_per_s for x in found] for name, found in speeds.items()}
                cpu = {name: [x.cpu_us for x in found] for name, found in speeds.items()}
                self._add(load.name, "requests/s", per_s, more_is_better=True)
                self._add(load.name, "CPU us/request", cpu)

    def _children(self) -> None:
        count = CHILDREN // 4 if self._quick else CHILDREN
        name = f"{count:,} children of one directory"
        self._say(name)
        with self._servers(0) as subjects:
            found = self._in_turns(subjects, lambda s: self._bench.children_s(s, count))
        self._add(name, "s", found)

    def _update(self, nodes: int) -> None:
        name = f"live update, {nodes:,} nodes: longest gap"
        self._say(name)
        with self._servers(nodes) as subjects:
            self._add(
                name, "ms", self._in_turns(subjects, lambda s: self._bench.update_gap_ms(s, nodes))
            )

    def _start(self) -> None:
        self._say("start")

        def start(subject: Subject) -> float:
            try:
                return self._bench.start_ms(subject)
            finally:
                subject.stop()

        self._add("start to first answer", "ms", self._in_turns(self._subjects(), start))

    def _subjects(self) -> list[Subject]:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        ours = [XenliveSubject(folder), XenliveSubject(folder, self._image)]
        return [CSubject(folder, self._folder), *ours]

    @contextmanager
    def _servers(self, nodes: int) -> Iterator[list[Subject]]:
        """All servers, running, with so many nodes."""
        subjects = self._subjects()
        try:
            for subject in subjects:
                subject.start(self._bench.server_prefix)
                if nodes:
                    self._bench.preload(subject, nodes)
            yield subjects
        finally:
            for subject in subjects:
                subject.stop()

    def _in_turns(self, subjects: list[Subject], one: Callable[[Subject], T]) -> dict[str, list[T]]:
        """`one` for each subject in each round, who goes first changing from round to round."""
        found: dict[str, list[T]] = {subject.name: [] for subject in subjects}
        for number in range(self._rounds):
            for subject in subjects if number % 2 == 0 else reversed(subjects):
                found[subject.name].append(one(subject))
        return found

    def _add(
        self, name: str, unit: str, found: dict[str, list[float]], *, more_is_better: bool = False
    ) -> None:
        def ratio(who: str) -> float:
            pairs = zip(found[who], found[C_DAEMON], strict=True)
            return statistics.median(ours / theirs if theirs else 0.0 for ours, theirs in pairs)

        c, ours, compiled = (statistics.median(found[who]) for who in (C_DAEMON, OURS, COMPILED))
        ratios = ratio(OURS), ratio(COMPILED)
        self.rows.append(Row(name, unit, c, ours, compiled, *ratios, more_is_better))


def draw(rows: list[Row]) -> Table:
    """The result for people; green where ours is at least as good."""
    table = Table(title="xenlive beside Debian's C xenstored", title_justify="left")
    table.add_column("what")
    table.add_column("unit")
    for name in (C_DAEMON, OURS, "ratio", COMPILED, "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        figures = [_short(row.c)]
        for value, ratio in ((row.xenlive, row.ratio), (row.compiled, row.compiled_ratio)):
            good = ratio >= 1 if row.more_is_better else ratio <= 1
            figures += [_short(value), f"[{'green' if good else 'yellow'}]{ratio:.2f}[/]"]
        table.add_row(row.name, row.unit, *figures)
    return table


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    """Runs the benchmark; gives the exit code."""
    # As installed: modules are compiled once, not at each start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    parser = argparse.ArgumentParser(description="Our Xenstore beside Debian's C daemon.")
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument("--rounds", type=int, default=0, help="how many rounds [5]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    options = parser.parse_args()
    console = Console()
    missing = missing_peers()
    if missing:
        console.print(f"No server measured, missing: {', '.join(missing)}")
        with console.status("") as status:
            figures = kexec_figures.measure(quick=options.quick, say=status.update)
            emulator = emulator_figures.measure(quick=options.quick, say=status.update)
        console.print(kexec_figures.draw(figures))
        console.print(emulator_figures.draw(*emulator))
        return 1
    rounds = options.rounds or (1 if options.quick else 5)
    with (
        tempfile.TemporaryDirectory(prefix="xenlive-bench-") as folder,
        console.status("") as status,
    ):
        run = Run(Path(folder), rounds=rounds, quick=options.quick, say=status.update)
        try:
            run.measure()
            figures = kexec_figures.measure(quick=options.quick, say=status.update)
            emulator = emulator_figures.measure(quick=options.quick, say=status.update)
        except (BenchError, XenliveError, RuntimeError, emulator_figures.Unmeasured) as error:
            console.print(draw(run.rows))
            console.print(f"stopped: {error}", style="red", markup=False)
            return 1
        except KeyboardInterrupt:
            return 130
    console.print(draw(run.rows))
    console.print(table_of("A large store", run.sizes))
    console.print(kexec_figures.draw(figures))
    console.print(emulator_figures.draw(*emulator))
    if options.json:
        result = {
            "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
            "python": platform.python_version(),
            "rounds": rounds,
            "rows": [asdict(row) for row in run.rows],
            "size": as_objects(run.sizes),
            "kexec_module": as_objects(figures),
            "emulated_machine": as_objects(emulator[0]),
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
