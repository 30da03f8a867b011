"""Single measurements: one run of the load client against one server, and what it says.

The load client is `tests/peer/xsbench.c`; with it, not the client but the server is the limit.
One client and its server share a CPU, because on two every server lands at the speed at which the
system wakes processes; more clients get a CPU of their own.

**Invariants.** A run in which any request failed is an error, never a number.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from servers import Subject, cpu_s

from xenlive.client import Xenstore

RUN_TIMEOUT_S = 300.0
NODES = 10_000


class BenchError(Exception):
    """A measurement that went wrong; the message is one line."""


@dataclass(frozen=True)
class Workload:
    """One kind of load: mode of the load client, its clients, the requests each has out at once."""

    name: str
    mode: str
    clients: int
    requests: int
    depth: int = 1
    watches: int = 0


@dataclass(frozen=True)
class Speed:
    """What a workload gave: requests a second, and CPU microseconds of the server a request."""

    requests_per_s: float
    cpu_us: float


class Bench:
    """Runs measurements with the load client at `xsbench`, on the CPUs this process may use."""

    def __init__(self, xsbench: Path) -> None:
        self._xsbench = xsbench
        cpus = sorted(os.sched_getaffinity(0))
        self._server_cpu, self._client_cpu = cpus[0], cpus[min(1, len(cpus) - 1)]

    @property
    def server_prefix(self) -> tuple[str, ...]:
        """What pins a server to its CPU."""
        return ("taskset", "-c", str(self._server_cpu))

    def preload(self, subject: Subject, nodes: int) -> None:
        """Makes `nodes` nodes."""
        self._run(subject, self._client_cpu, "-p", "-m", "none", "-n", str(nodes))

    def speed(self, subject: Subject, load: Workload, nodes: int = NODES) -> Speed:
        """Runs a workload on a server that has been preloaded with so many nodes."""
        cpu = self._server_cpu if load.clients == 1 else self._client_cpu
        pids = subject.pids()
        before_s = cpu_s(pids)
        said = self._run(
            subject,
            cpu,
            *("-m", load.mode, "-c", str(load.clients), "-d", str(load.depth)),
            *("-n", str(nodes), "-r", str(load.requests), "-w", str(load.watches)),
        )
        used_s = cpu_s(pids) - before_s
        # The load client sends a twentieth more, to warm up, and sets the watches.
        sent = load.requests + load.requests // 20 + load.watches
        return Speed(_number(said, "rps"), used_s * 1e6 / sent)

    def children_s(self, subject: Subject, count: int) -> float:
        """Seconds to make `count` children of one directory, one request after the other."""
        said = self._run(subject, self._server_cpu, "-m", "kids", "-r", str(count))
        match = re.search(r"children total ([\d.]+)s errs=0\b", said)
        if match is None:
            raise BenchError(f"{subject.name}: making children failed: {said.strip()[:200]}")
        return float(match[1])

    def update_gap_ms(self, subject: Subject, nodes: int) -> float:
        """Longest time without an answer that a reader sees while the server is updated."""
        said = self._run(
            subject,
            self._client_cpu,
            *("-m", "lu", "-n", str(nodes), "--", *subject.update_command()),
        )
        if not re.search(r"cmd_rc=0 .*watches_ok=50/50", said):
            raise BenchError(f"{subject.name}: live update failed: {said.strip()[:200]}")
        return _number(said, "gap")

    def start_ms(self, subject: Subject) -> float:
        """Time from starting a server to its first answer. It is left running."""
        began_s = time.monotonic()
        subject.start(self.server_prefix)
        with Xenstore.connect(subject.socket_path, timeout_s=RUN_TIMEOUT_S) as store:
            store.directory("/")
        return (time.monotonic() - began_s) * 1e3

    def _run(self, subject: Subject, cpu: int, *arguments: str) -> str:
        command = ["taskset", "-c", str(cpu), str(self._xsbench), "-s", str(subject.socket_path)]
        answer = subprocess.run(
            [*command, *arguments],
            env=subject.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        failed = re.search(r"errs=[1-9]|stalled|timeout", answer.stdout)
        if answer.returncode or failed:
            raise BenchError(
                f"{subject.name}: {' '.join(arguments)}: {answer.stdout.strip()[:200]}"
            )
        return answer.stdout


def _number(said: str, name: str) -> float:
    match = re.search(rf"\b{name}=([\d.]+)", said)
    if match is None:
        raise BenchError(f"the load client did not say {name}: {said.strip()[:200]}")
    return float(match[1])
