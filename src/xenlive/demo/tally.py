"""What the load counts, and in which words it remembers what went wrong.

**Invariants.** Counting never stops; only the first `DETAILS_MAX` descriptions are kept. An answer
of `EAGAIN` to the end of a transaction is no failure: the protocol says to try again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

DETAILS_MAX = 20


@dataclass
class Tally:
    """Counts of the whole load."""

    requests: int = 0
    failed: int = 0
    retried: int = 0
    committed: int = 0
    connections_lost: int = 0
    details: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Keeps a description of something wrong, if there is room left."""
        if len(self.details) < DETAILS_MAX:
            self.details.append(what)

    def fail(self, what: str, requests: int = 1) -> None:
        """Counts requests that failed, were answered wrongly or not at all."""
        self.failed += requests
        self.note(what)


@dataclass
class Watch:
    """One watch: the events that are due on its connection, in order, and what came instead."""

    path: bytes
    token: bytes
    due: deque[bytes] = field(default_factory=deque)
    due_total: int = 0
    received: int = 0
    missing: int = 0
    unexpected: int = 0
    wrong_token: int = 0
    fired_last: bool = False
    details: list[str] = field(default_factory=list)

    def expect(self, path: bytes) -> None:
        """A change of `path` is on its way to the server."""
        self.due.append(path)
        self.due_total += 1

    def event(self, path: bytes, token: bytes) -> None:
        """Takes one event and compares it with what is due next.

        An event that is due later means that those before it were lost; one that isn't due at all
        is a duplicate or a stranger's.
        """
        self.received += 1
        if token != self.token:
            self.wrong_token += 1
            self.details.append(f"{self.path!r}: token {token!r} instead of {self.token!r}")
            return
        if path not in self.due:
            self.unexpected += 1
            self.details.append(f"{self.path!r}: event for {path!r} was not due")
            return
        while self.due[0] != path:
            self._lose(self.due.popleft())
        self.due.popleft()

    def close(self) -> None:
        """All events must be in by now: those still due are lost."""
        while self.due:
            self._lose(self.due.popleft())

    def _lose(self, path: bytes) -> None:
        self.missing += 1
        self.details.append(f"{self.path!r}: no event for {path!r}")

    @property
    def sound(self) -> bool:
        """Whether exactly the due events came, each with the token, the last one included."""
        return self.fired_last and not (
            self.missing or self.unexpected or self.wrong_token or self.due
        )
