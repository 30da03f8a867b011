"""The differences between servers that are known, each with a name, a test for it, and a reason.

`docs/differences.md` lists them for people, under the same names.

**Invariants.** A difference applies to what one client heard after one step; what no entry applies
to is a failure. After one that `spoils`, the servers' states are apart: the rest of the sequence
says nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from differential.playing import Heard
from differential.steps import DESTROY, Step

from xenlive.abi.xs_wire import (
    XS_INTRODUCE,
    XS_MKDIR,
    XS_RELEASE,
    XS_RM,
    XS_SET_PERMS,
    XS_SET_TARGET,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WRITE,
)

OK = b"OK\0"
ENDING = XS_TRANSACTION_END
CHANGING = (XS_WRITE, XS_MKDIR, XS_RM, XS_SET_PERMS, XS_RELEASE, ENDING)


@dataclass
class Story:
    """What of a sequence's past a difference may depend on."""

    gone: set[int] = field(default_factory=set)  # domains that have ended or were released
    targets: set[int] = field(default_factory=set)  # who was named as a target
    served: set[int] = field(default_factory=set)  # domains that are introduced
    root_given: bool = False  # some domain owns `/`, or did
    changes: int = 0  # of the store, by requests of anybody that were done
    begun: dict[tuple[int, int], int] = field(default_factory=dict)  # a transaction: at how many
    starts: dict[int, int] = field(default_factory=dict)  # how many transactions of a client
    made_behind: set[tuple[int, int]] = field(default_factory=set)  # with a MKDIR after others
    apart: set[tuple[int, int]] = field(default_factory=set)  # transactions that are told apart

    def note(self, step: Step, mine: Heard) -> None:
        """Takes in a step, and what its client heard from ours."""
        if step.kind == XS_TRANSACTION_START and not step.tx:
            self.starts[step.who] = number = self.starts.get(step.who, 0) + 1
            self.begun[step.who, number] = self.changes
        elif step.kind == DESTROY or (
            mine.payload == OK and step.kind in CHANGING and (not step.tx or step.kind == ENDING)
        ):
            self.changes += 1
        if step.kind == XS_MKDIR and self.is_behind(step):
            self.made_behind.add((step.who, step.tx))
        if step.kind == DESTROY:
            self._end(step.who)
        elif mine.payload == OK and step.kind == XS_RELEASE:
            self._end(domid_of(step))
        elif mine.payload == OK and step.kind == XS_INTRODUCE:
            self.served.add(domid_of(step))
        elif mine.payload == OK and step.kind == XS_SET_TARGET:
            self.targets.add(domid_of(step, 1))
        elif step.kind == XS_SET_PERMS and step.payload.startswith(b"/\0"):
            self.root_given = True

    def is_behind(self, step: Step) -> bool:
        """Whether the store was changed since the step's transaction began."""
        return self.begun.get((step.who, step.tx), self.changes) != self.changes

    def _end(self, domid: int) -> None:
        self.gone.add(domid)
        self.served.discard(domid)


@dataclass(frozen=True)
class Moment:
    """What one client, or the step's own, heard from both sides."""

    step: Step
    client: int
    mine: Heard
    other: Heard
    story: Story

    @property
    def is_own(self) -> bool:
        """Whether the client is the one that acted."""
        return self.client == self.step.who

    @property
    def same_events(self) -> bool:
        return self.mine.events == self.other.events

    def only_ours(self, events: Callable[[bytes], bool]) -> bool:
        """Whether the other's events are ours without some of these; same reply."""
        kept = [event for event in self.mine.events if not events(event)]
        others = [event for event in self.other.events if not events(event)]
        return self.same_reply and kept == others and len(self.mine.events) > len(self.other.events)

    @property
    def same_reply(self) -> bool:
        return (self.mine.kind, self.mine.payload, self.mine.right_ids) == (
            self.other.kind,
            self.other.payload,
            self.other.right_ids,
        )

    def errors(self, mine: str, *others: str) -> bool:
        """Whether ours replies this error (empty: none) and the other one of these."""
        return (
            self.is_own
            and self.same_events
            and self.mine.error == mine
            and self.other.error in others
        )


@dataclass(frozen=True)
class Difference:
    """One way in which a server differs from ours."""

    name: str
    applies: Callable[[Moment], bool]
    spoils: bool = False  # also where nobody hears the difference at once


def domid_of(step: Step, at: int = 0) -> int:
    """The domain that a request names."""
    return int(step.payload.split(b"\0")[at])


def is_special(payload: bytes) -> bool:
    """Whether a request or an event is about a special node."""
    return payload.startswith(b"@")
