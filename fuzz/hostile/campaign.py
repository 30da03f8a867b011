"""Starts workers, shows how far they are, says what came of it."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hostile.guided import can_guide
from hostile.sparse import scratch_place
from hostile.tally import distinct, read_tally, slowest_ns
from hostile.targets import TARGETS, load_target

FUZZ = Path(__file__).resolve().parents[1]
ROOT = FUZZ.parent
HUNT = FUZZ / "hunt.py"
POLL_S = 0.1
NO_INPUT = "(a worker failed without an input)"
SHOW_S = 2.0
COVERAGE = re.compile(r"cov: (\d+) ft: (\d+)")


@dataclass
class Result:
    """What one target's workers did together; `finds` are saved inputs, `said` their tracebacks."""

    target: str
    engine: str
    executions: int = 0
    distinct: int = 0
    seconds: float = 0.0
    branches: int = 0
    slowest_ms: float = 0.0
    words: dict[str, int] = field(default_factory=dict)
    finds: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        """Inputs a second, by all workers together."""
        return self.executions / self.seconds if self.seconds else 0.0

    def line(self) -> str:
        """The summary, for people."""
        seen = f", {self.branches} branches" if self.branches else ""
        return (
            f"{self.target}: {self.executions:,} inputs ({self.distinct:,} or more different), "
            f"{self.per_s:,.0f}/s{seen}, slowest {self.slowest_ms:,.1f} ms, "
            f"{len(self.finds)} finds [{self.engine}]"
        )


@dataclass
class Orders:
    """What workers of one target are told. `runs` and `seconds` are of each worker; 0: no limit."""

    engine: str
    seed: int
    processes: int = 1
    runs: int = 0
    seconds: float = 0.0
    found: Path = FUZZ / "found"
    corpus: Path | None = None  # None: nothing is kept for the next time


def attack(target: str, orders: Orders, *, show: bool = False) -> Result:
    """Attacks one target and waits for all of its workers."""
    result = Result(target, orders.engine)
    with tempfile.TemporaryDirectory(prefix="xenlive-fuzz-", dir=scratch_place()) as scratch:
        folders = [Path(scratch) / str(number) for number in range(orders.processes)]
        began_s = time.monotonic()
        workers = [_start(target, orders, folder, n) for n, folder in enumerate(folders)]
        try:
            _watch(workers, folders, target, show)
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                worker.wait()
        result.seconds = time.monotonic() - began_s
        _sum_up(result, folders)
        _collect(result, workers, folders, orders.found)
    return result


def _start(target: str, orders: Orders, folder: Path, number: int) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True)
    corpus = orders.corpus / target if orders.corpus else folder / "corpus"
    command = [sys.executable, str(HUNT), "worker", target]
    command += ["--engine", orders.engine, "--folder", str(folder), "--corpus", str(corpus)]
    command += ["--seed", str(orders.seed + number)]
    command += ["--runs", str(orders.runs), "--seconds", str(orders.seconds)]
    with open(folder / "output", "wb") as output:
        return subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )


def _watch(
    workers: list[subprocess.Popen[bytes]], folders: list[Path], target: str, show: bool
) -> None:
    began_s = shown_s = time.monotonic()
    while any(worker.poll() is None for worker in workers):
        time.sleep(POLL_S)
        if show and time.monotonic() - shown_s >= SHOW_S:
            shown_s = time.monotonic()
            executions = sum(read_tally(folder)[0] for folder in folders)
            rate = executions / (shown_s - began_s)
            print(f"\r{target}: {executions:,} inputs, {rate:,.0f}/s ", end="", flush=True)
    if show:
        print("\r\033[K" if sys.stdout.isatty() else "", end="", flush=True)


def _sum_up(result: Result, folders: list[Path]) -> None:
    for folder in folders:
        executions, words = read_tally(folder)
        result.executions += executions
        if executions:
            result.slowest_ms = max(result.slowest_ms, slowest_ns(folder) / 1e6)
        for word, count in words.items():
            result.words[word] = result.words.get(word, 0) + count
        for seen, _ in COVERAGE.findall((folder / "output").read_text(errors="replace")):
            result.branches = max(result.branches, int(seen))
    result.distinct = distinct(folders)


def _collect(
    result: Result, workers: list[subprocess.Popen[bytes]], folders: list[Path], found: Path
) -> None:
    """Saves the finds; a worker that failed without one is a find without an input."""
    for worker, folder in zip(workers, folders, strict=True):
        inputs = sorted(folder.glob("find-*"))
        if (folder / "slowest").exists():
            found.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "slowest", found / f"{result.target}-slowest")
        if worker.returncode or inputs:
            text = (folder / "output").read_text(errors="replace")
            result.said.append(
                _traceback_in(text) or f"exit code {worker.returncode}\n{text[-2000:]}"
            )
            result.finds += [] if inputs else [NO_INPUT]
        for path in inputs:
            found.mkdir(parents=True, exist_ok=True)
            saved = found / f"{result.target}-{path.name.rpartition('-')[2][:12]}"
            shutil.copyfile(path, saved)
            result.finds.append(str(saved))


def _traceback_in(text: str) -> str:
    at = text.find("Traceback (most recent call last)")
    return text[at:].partition("\n==")[0].strip() if at >= 0 else ""


def repeat_command(target: str, path: str) -> str:
    """The one command that gives a saved input to its target again."""
    shown = Path(path)
    if shown.is_relative_to(ROOT):
        shown = shown.relative_to(ROOT)
    return f".venv/bin/python fuzz/hunt.py --target {target} --input {shlex.quote(str(shown))}"


def report(result: Result) -> str:
    """The summary and, for each find, its traceback and how to repeat it."""
    parts = [result.line(), *result.said]
    saved = [path for path in result.finds if path != NO_INPUT]
    parts += [f"again: {repeat_command(result.target, path)}" for path in saved]
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """The command; 1 if anything was found."""
    # Ended by a signal, it takes its workers with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parser = argparse.ArgumentParser(description="Attacks the product with hostile input.")
    parser.add_argument(
        "--target", action="append", metavar="NAME", help=f"[all of {', '.join(TARGETS)}]"
    )
    parser.add_argument("--engine", choices=("auto", "plain", "guided"), default="auto")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--runs", type=int, default=0, help="inputs for each target")
    limit.add_argument("--minutes", type=float, default=1.0, help="for all targets together [1]")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--found", type=Path, default=FUZZ / "found", help="where finds go")
    parser.add_argument("--input", type=Path, metavar="FILE", help="check this input alone")
    options = parser.parse_args(arguments)
    targets = options.target or list(TARGETS)
    if options.input:
        if len(targets) != 1:
            parser.error("--input needs the one --target it is for")
        print(load_target(targets[0]).check(options.input.read_bytes()))
        return 0
    engine = options.engine
    if engine == "auto":
        engine = "guided" if can_guide() else "plain"
    seconds = 0.0 if options.runs else options.minutes * 60 / len(targets)
    orders = Orders(engine, options.seed, options.processes, found=options.found)
    orders.runs = -(-options.runs // options.processes)
    orders.seconds = seconds
    orders.corpus = FUZZ / "corpus"
    results = []
    for target in targets:
        results.append(attack(target, orders, show=True))
        print(report(results[-1]), flush=True)
    if options.json:
        rows = [{**asdict(result), "per_s": round(result.per_s, 1)} for result in results]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(result.finds for result in results))
