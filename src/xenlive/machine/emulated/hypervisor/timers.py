"""The timers of one domain, in virtual time.

Specification: Xen 4.17 `do_set_timer_op`, `vcpu_set_periodic_timer`, `domain_watchdog` of
`xen/common/sched/core.c`.

**Invariants.** A timer fires once for each time it was due, in order of its time; a periodic one
that was due several times fires once, as Xen's does.
"""

from __future__ import annotations

N_WATCHDOGS = 2

# What fires: names that `Timers.due` gives.
SINGLESHOT = "singleshot"
PERIODIC = "periodic"
POLL = "poll"
WATCHDOG = "watchdog"


class Timers:
    """When the timers of a domain fire, in virtual nanoseconds; None is never.

    `periodic_ns` is when the periodic one fires next, `period_ns` how long after that again, and
    `watchdogs` when each that was started bites.
    """

    __slots__ = ("period_ns", "periodic_ns", "poll_ns", "singleshot_ns", "watchdogs")

    def __init__(self) -> None:
        self.singleshot_ns: int | None = None
        self.poll_ns: int | None = None
        self.periodic_ns: int | None = None
        self.period_ns = 0
        self.watchdogs: dict[int, int] = {}

    def set_period(self, period_ns: int, now_ns: int) -> None:
        """Fires each `period_ns` from now on, 0 for never."""
        self.period_ns = period_ns
        self.periodic_ns = now_ns + period_ns if period_ns else None

    def new_watchdog(self, when_ns: int) -> int | None:
        """Number of a watchdog that nobody uses, counted from 1; None if all are in use."""
        for number in range(1, N_WATCHDOGS + 1):
            if number not in self.watchdogs:
                self.watchdogs[number] = when_ns
                return number
        return None

    def has_watchdog(self, number: int) -> bool:
        """Whether it was started and not stopped."""
        return number in self.watchdogs

    def set_watchdog(self, number: int, when_ns: int | None) -> None:
        """Starts one anew, or stops it."""
        if when_ns is None:
            self.watchdogs.pop(number, None)
        else:
            self.watchdogs[number] = when_ns

    def next_ns(self) -> int | None:
        """When the next of them fires. Asked after each hypercall, mostly of timers not set."""
        found = self.singleshot_ns
        for other in (self.periodic_ns, self.poll_ns, *self.watchdogs.values()):
            if other is not None and (found is None or other < found):
                found = other
        return found

    def copy(self) -> Timers:
        """The same timers, set to the same times."""
        other = Timers()
        other.singleshot_ns, other.poll_ns = self.singleshot_ns, self.poll_ns
        other.period_ns, other.periodic_ns = self.period_ns, self.periodic_ns
        other.watchdogs = dict(self.watchdogs)
        return other

    def _all(self) -> list[tuple[int, str]]:
        single = (
            (self.singleshot_ns, SINGLESHOT),
            (self.periodic_ns, PERIODIC),
            (self.poll_ns, POLL),
        )
        known = [(when, name) for when, name in single if when is not None]
        return known + [(when, WATCHDOG) for when in self.watchdogs.values()]

    def due(self, now_ns: int) -> list[str]:
        """What is due now, first come first; it will not be due again for the same time."""
        next_ns = self.next_ns()
        if next_ns is None or next_ns > now_ns:
            return []
        fired = sorted(found for found in self._all() if found[0] <= now_ns)
        for _, name in fired:
            if name == SINGLESHOT:
                self.singleshot_ns = None
            elif name == POLL:
                self.poll_ns = None
            elif name == PERIODIC and self.periodic_ns is not None:
                missed = (now_ns - self.periodic_ns) // self.period_ns
                self.periodic_ns += (missed + 1) * self.period_ns
        if any(name == WATCHDOG for _, name in fired):
            self.watchdogs.clear()
        return [name for _, name in fired]
