"""Live updates as the host saw them: milestones in, a list of updates with phases out.

The kernels report milestones with CLOCK_MONOTONIC, which all processes share. An update is

    freeze -> frozen -> dumped -> entry -> booted -> restored -> first-reply
        quiesce   dump      kexec    boot      restore   first_reply

The first three come from the old kernel, the rest from the next one. A `failed REASON` ends an
update that was undone; `running VERSION` names the kernel that serves.

**Invariants.** Milestones are a domain's word: a name out of turn or a time that runs backwards is
dropped, and can't make an update look finished.
"""

from __future__ import annotations

from typing import Any

STEPS = ("freeze", "frozen", "dumped", "entry", "booted", "restored", "first-reply")
PHASES = ("quiesce", "dump", "kexec", "boot", "restore", "first_reply")

#: Updates that are remembered; older ones are only counted.
KEPT = 100


class Timeline:
    """What has run in the domain, and the updates between."""

    def __init__(self) -> None:
        self.version = ""
        self.running_since_ns = 0
        self.updates: list[dict[str, Any]] = []
        self.updates_done = 0
        self.updates_failed = 0
        self._open: dict[str, int] = {}
        self._from = ""

    def note(self, name: str, when_ns: int) -> None:
        """Takes one milestone; `when_ns` is CLOCK_MONOTONIC in nanoseconds."""
        word, _, rest = name.partition(" ")
        if word == "running":
            self.version = rest
            self.running_since_ns = when_ns
        elif word == "failed":
            self._close(rest or "no reason given")
        elif word == STEPS[0]:
            self._open = {word: when_ns}
            self._from = self.version
        elif word in STEPS and self._open:
            due = STEPS[len(self._open)] if len(self._open) < len(STEPS) else ""
            if word == due and when_ns >= max(self._open.values()):
                self._open[word] = when_ns
                if word == STEPS[-1]:
                    self._close("")

    def _close(self, failure: str) -> None:
        phases = {
            phase: round((self._open[after] - self._open[before]) / 1e6, 3)
            for phase, before, after in zip(PHASES, STEPS, STEPS[1:], strict=False)
            if before in self._open and after in self._open
        }
        times = list(self._open.values())
        self.updates.append(
            {
                "ok": not failure,
                "from": self._from or self.version,
                "to": self.version,
                "gap_ms": round((times[-1] - times[0]) / 1e6, 3) if times else 0.0,
                "phases": phases,
                "started_ns": times[0] if times else 0,
                "reason": failure,
            }
        )
        del self.updates[:-KEPT]
        if failure:
            self.updates_failed += 1
        else:
            self.updates_done += 1
        self._open = {}
