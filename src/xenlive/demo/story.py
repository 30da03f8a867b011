"""The demo as people see it: what happens while it happens, pictures, the verdict.

Works on any terminal and without one: where there is nobody to watch, only whole lines are
written, and nothing moves.
"""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.status import Status
from rich.text import Text

from xenlive.demo.drawings import WIDTH_MAX, draw_checks, draw_handover, draw_timeline, marks_for
from xenlive.demo.run import Audience, Options, Outcome
from xenlive.demo.verdict import Update
from xenlive.demo.world import HandoverSnapshot
from xenlive.dump.picture import draw_module

KERNELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Story(Audience):
    """Tells the demo on `console`; call `close` when nothing more comes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._marks = marks_for(console.encoding)
        self._width = min(console.width, WIDTH_MAX)
        self._status: Status | None = None
        self._stage = ""
        self._say(Text("A Xenstore stub domain is updated twice, under load. Does anybody notice?"))
        self._say()

    # -- what is told ----------------------------------------------------------------------------

    def stage(self, what: str) -> None:
        """Something that takes a while has begun: shown until the next line."""
        self._stage = what
        if not self._console.is_terminal:
            return
        if self._status is None:
            self._status = self._console.status(what, spinner=self._marks.spinner)
            self._status.start()
        else:
            self._status.update(what)

    def booted(self, version: str) -> None:
        """The first kernel serves."""
        self._done(f"kernel A, version {version}, serves")

    def loaded(self, options: Options, seconds: float) -> None:
        """The store is filled, the watches are set."""
        self._done(
            f"{options.nodes:,} nodes written and read back, {options.watchers} watches set"
            f" ({seconds:.1f} s)"
        )

    def progress(self, requests: int, events: int) -> None:
        """The load is at work."""
        if self._status is not None:
            self._status.update(f"{self._stage}: {requests:,} requests, {events:,} events so far")

    def working(self, options: Options, before: HandoverSnapshot | None) -> None:
        """The clients are at work, and the memory was looked at before the first update."""
        self._done(f"{options.clients} clients keep reading and writing")
        self._picture("what is handed over, before", before)

    def updated(self, number: int, update: Update) -> None:
        """An update is over, well or not."""
        report = update.report
        name = f"{KERNELS[number - 1]} to {KERNELS[number]}"
        self._say()
        if not report.ok:
            self._say(Text(f"Update {name} failed: {report.reason}", "bold red"))
            return
        versions = f"{report.from_version} {self._marks.to} {report.to_version}"
        self._say(Text.assemble((f"Update {name}", "bold"), f"   {versions}"))
        for line in draw_timeline(update, self._width, self._marks):
            self._say(line)
        if update.gap is not None:
            gap = update.gap
            self._say(
                Text(
                    f"  longest silence of the median client {gap.median_ms:.1f} ms,"
                    f" longest single request {gap.wait_ms:.1f} ms",
                    "dim",
                )
            )

    def judged(self, outcome: Outcome) -> None:
        """The verdict."""
        self.close()
        evidence = outcome.evidence
        self._picture("what was handed over, after", evidence.last)
        table = draw_handover(evidence, self._width)
        if table is not None:
            self._say()
            self._say(Text("What each kernel found there (> is what moved on)", "bold"))
            self._say(table)
        self._say()
        self._say(Text("Measured:", "bold"))
        for line in draw_checks(outcome.checks, self._width, self._marks):
            self._say(line)
        self._say()
        broken = [check.name for check in outcome.checks if not check.ok]
        if broken:
            self._say(Text(f"FAILED: {evidence.trouble or ', '.join(broken)}", "bold red"))
            return
        longest_ms = max(update.gap.silence_ms for update in evidence.updates if update.gap)
        self._say(
            Text.assemble(
                ("PASSED", "bold green"),
                f": the code was replaced {len(evidence.updates)} times;"
                f" no client was without an answer for longer than {longest_ms:.0f} ms"
                f" ({outcome.seconds:.1f} s)",
            )
        )

    def close(self) -> None:
        """Takes away what moves."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    # -- how -------------------------------------------------------------------------------------

    def _done(self, what: str) -> None:
        self._say(Text.assemble("  ", (self._marks.good, "green"), f" {what}"))

    def _picture(self, title: str, snapshot: HandoverSnapshot | None) -> None:
        if snapshot is None or not snapshot.description:
            return
        self._say()
        self._say(Text(f"Memory: {title}", "bold"))
        drawn = draw_module(snapshot.description, self._width - 2)
        for line in str(drawn).splitlines() if isinstance(drawn, str) else drawn.split():
            self._say(Text.assemble("  ", line))

    def _say(self, what: RenderableType = "") -> None:
        self._console.print(what, highlight=False, soft_wrap=isinstance(what, Text))
