"""The demo from start to end: boot, load, update, update, settle, judge.

    world.start ─▶ load ─▶ snapshot ─▶ ┌ window ─ update ─ gap ─ snapshot ┐ ─▶ settle ─▶ judge
                                       └────────── once an image ─────────┘

**Invariants.** `run_demo` always comes to a verdict: whatever ends the demo early is part of the
evidence. When it returns or raises, world and load have ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from xenlive.demo.load import Plan
from xenlive.demo.loadproc import DemoError, LoadProcess
from xenlive.demo.verdict import Check, Evidence, Update, judge
from xenlive.demo.world import HandoverSnapshot, Image, UpdateReport, World
from xenlive.errors import XenliveError

PROGRESS_S = 0.2
PACE_MS = 10.0  # a client's pause between two actions, unless there are very many clients
CLIENTS_PER_MS = 10
FINISH_LIMIT_S = 300.0


@dataclass(frozen=True)
class Options:
    """How large the demo is, and for how long the load runs around the updates."""

    nodes: int = 10_000
    clients: int = 20
    watchers: int = 50
    warm_up_s: float = 0.8
    lead_s: float = 0.3
    tail_s: float = 0.3
    answer_limit_s: float = 10.0


@dataclass(frozen=True)
class Outcome:
    """What the demo came to."""

    evidence: Evidence
    checks: list[Check]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)


class Audience:
    """Who is told how far the demo is. This one isn't interested; `story.py` has one that is."""

    def stage(self, what: str) -> None:
        """Something that takes a while has begun."""

    def booted(self, version: str) -> None:
        """The first kernel serves."""

    def loaded(self, options: Options, seconds: float) -> None:
        """The store is filled, the watches are set."""

    def progress(self, requests: int, events: int) -> None:
        """The load is at work."""

    def working(self, options: Options, before: HandoverSnapshot | None) -> None:
        """The clients are at work, and the memory was looked at before the first update."""

    def updated(self, number: int, update: Update) -> None:
        """An update is over, well or not."""

    def judged(self, outcome: Outcome) -> None:
        """The verdict."""


def run_demo(
    options: Options,
    world: World,
    make_images: Callable[[], Sequence[Image]],
    audience: Audience,
) -> Outcome:
    """Runs the whole demo on `world`; the outcome has failed checks for all that went wrong."""
    began_s = time.monotonic()
    demo = _Demo(options, world, audience)
    try:
        with LoadProcess() as load:
            demo.run(load, make_images)
    except (XenliveError, OSError) as error:
        demo.trouble(str(error))
    finally:
        world.stop()
    outcome = Outcome(demo.evidence, judge(demo.evidence), time.monotonic() - began_s)
    audience.judged(outcome)
    return outcome


class _Demo:
    """The stages, and the evidence they gather."""

    def __init__(self, options: Options, world: World, audience: Audience) -> None:
        self._options = options
        self._world = world
        self._audience = audience
        self.evidence = Evidence(
            first_version="",
            nodes=options.nodes,
            watches=options.watchers,
            updates=(),
            planned_updates=0,
            before=None,
            load=None,
        )

    def trouble(self, why: str) -> None:
        """Keeps the first thing that ended the demo early."""
        if not self.evidence.trouble:
            self.evidence = replace(self.evidence, trouble=" ".join(why.split()))

    def run(self, load: LoadProcess, make_images: Callable[[], Sequence[Image]]) -> None:
        """All stages; an exception leaves the evidence so far."""
        audience, options = self._audience, self._options
        audience.stage("building kernels B and C")
        images = list(make_images())
        self.evidence = replace(self.evidence, planned_updates=len(images))
        audience.stage("booting kernel A")
        version = self._world.start()
        self.evidence = replace(self.evidence, first_version=version)
        audience.booted(version)
        audience.stage(f"loading {options.nodes:,} nodes")
        loaded = load.start(self._plan())
        audience.loaded(options, float(loaded["seconds"]))
        load.ask("run")
        audience.stage("clients at work")
        self._let_work(load, options.warm_up_s)
        self.evidence = replace(self.evidence, before=self._world.snapshot())
        audience.working(options, self.evidence.before)
        for number, image in enumerate(images, 1):
            if not self._update(load, number, image):
                break
        audience.stage("reading everything back")
        self.evidence = replace(self.evidence, load=load.finish(FINISH_LIMIT_S))

    def _plan(self) -> Plan:
        options = self._options
        return Plan(
            socket_path=str(self._world.socket_path),
            nodes=options.nodes,
            clients=options.clients,
            watchers=options.watchers,
            pace_ms=max(PACE_MS, options.clients / CLIENTS_PER_MS),
            answer_limit_s=options.answer_limit_s,
        )

    def _let_work(self, load: LoadProcess, duration_s: float) -> None:
        """Leaves the load alone for a while, but for a glance at its counters."""
        end_s = time.monotonic() + duration_s
        while (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(PROGRESS_S, left_s))
            counters = load.ask("progress")
            self._audience.progress(counters["requests"], counters["events"])

    def _update(self, load: LoadProcess, number: int, image: Image) -> bool:
        """One update with all its measurements; False when it failed and none should follow."""
        self._audience.stage(f"updating to {image.version}")
        load.ask("window")
        self._let_work(load, self._options.lead_s)
        report = self._world.update(image)
        update = Update(image, report)
        self._keep(number, update)
        try:
            self._let_work(load, self._options.tail_s)
            update = replace(update, gap=load.gap())
            self._keep(number, update)
            update = replace(update, after=self._world.snapshot())
            self._keep(number, update)
        except DemoError as error:
            self.trouble(str(error))
            raise
        finally:
            self._audience.updated(number, update)
        return report.ok

    def _keep(self, number: int, update: Update) -> None:
        updates = (*self.evidence.updates[: number - 1], update)
        self.evidence = replace(self.evidence, updates=updates)


def failed_report(from_version: str, why: str) -> UpdateReport:
    """The report of an update that came to nothing."""
    return UpdateReport(
        ok=False, from_version=from_version, to_version=from_version, reason=" ".join(why.split())
    )
