"""The differences between servers that are known, each with a name, a test for it, and a reason.

`docs/differences.md` lists them for people, under the same names.

**Invariants.** A difference applies to what one client heard after one step; what no entry applies
to is a failure. After one that `spoils`, the servers' states are apart: the rest of the sequence
says nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from differential.playing import GONE, Heard
from differential.steps import DESTROY, SHUTDOWN, Step

from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_ERROR,
    XS_GET_PERMS,
    XS_READ,
    XS_RELEASE,
    XS_RM,
    XS_SET_PERMS,
    XS_SET_TARGET,
    XS_TRANSACTION_END,
    XS_UNWATCH,
)

OK = b"OK\0"


@dataclass
class Story:
    """What of a sequence's past a difference may depend on."""

    gone: set[int] = field(default_factory=set)  # domains that have ended or were released
    targets: set[int] = field(default_factory=set)  # who was named as a target
    root_given: bool = False  # some domain owns `/`, or did
    apart: set[tuple[int, int]] = field(default_factory=set)  # transactions that are told apart

    def note(self, step: Step, mine: Heard) -> None:
        """Takes in a step, and what its client heard from ours."""
        if step.kind == DESTROY:
            self.gone.add(step.who)
        elif mine.payload == OK and step.kind == XS_RELEASE:
            self.gone.add(_domid(step))
        elif mine.payload == OK and step.kind == XS_SET_TARGET:
            self.targets.add(_domid(step, 1))
        elif step.kind == XS_SET_PERMS and step.payload.startswith(b"/\0"):
            self.root_given = True


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


def _domid(step: Step, at: int = 0) -> int:
    return int(step.payload.split(b"\0")[at])


def _special(payload: bytes) -> bool:
    return payload.startswith(b"@")


def _is_string(payload: bytes) -> bool:
    return payload.endswith(b"\0") and payload.count(b"\0") == 1


def _perms_without(payload: bytes, domids: set[int]) -> list[bytes]:
    first, *rest = payload.split(b"\0")[:-1]
    return [first, *(text for text in rest if int(text[1:]) not in domids)]


def _gone_entries(moment: Moment) -> bool:
    if moment.step.kind != XS_GET_PERMS or not moment.same_events:
        return False
    if moment.mine.error or moment.other.error:
        return False
    gone = moment.story.gone
    return _perms_without(moment.mine.payload, gone) == _perms_without(moment.other.payload, gone)


def _removed_in_conflict(moment: Moment) -> bool:
    """Notes the transaction: from now on only its end must be the same."""
    step = moment.step
    if not (moment.is_own and step.tx):
        return False
    if step.kind == XS_RM and moment.errors("", "EIO", "EINVAL"):
        moment.story.apart.add((step.who, step.tx))
    if (step.who, step.tx) not in moment.story.apart:
        return False
    return step.kind != XS_TRANSACTION_END or not moment.mine.error


C_4_17 = [
    Difference(
        "guests hear @releaseDomain",
        lambda m: m.client > 0 and m.only_ours(lambda event: event.startswith(b"@releaseDomain")),
    ),
    Difference(
        "SET_PERMS of a special node fires its watches",
        lambda m: (
            m.step.kind == XS_SET_PERMS
            and _special(m.step.payload)
            and m.mine.payload in (b"", OK)
            and m.only_ours(_special)
        ),
    ),
    Difference(
        "SET_PERMS of a special node by a guest",
        lambda m: (
            m.step.kind == XS_SET_PERMS
            and _special(m.step.payload)
            and m.step.who > 0
            and m.is_own
            and m.mine.kind == XS_ERROR
            and (m.other.kind == XS_ERROR or m.other is GONE)
        ),
    ),
    Difference(
        "a guest that acts for domain 0 gives a special node away",
        lambda m: (
            m.step.kind == XS_SET_PERMS
            and _special(m.step.payload)
            and m.step.who > 0
            and m.errors("EPERM", "")
        ),
        spoils=True,
    ),
    Difference(
        "SET_PERMS of a special node in a transaction",
        lambda m: m.step.kind == XS_SET_PERMS and _special(m.step.payload) and m.step.tx != 0,
        spoils=True,
    ),
    Difference(
        "RELEASE answers before or after its event",
        lambda m: m.step.kind == XS_RELEASE and m.is_own and m.same_reply and m.same_events,
    ),
    Difference("permissions of domains that have gone", _gone_entries),
    Difference("RM in a transaction that is in conflict", _removed_in_conflict),
    Difference(
        "UNWATCH of what can't be a path",
        lambda m: m.step.kind == XS_UNWATCH and m.errors("EINVAL", "ENOENT"),
    ),
    Difference(
        "a payload that is not one string",
        lambda m: (
            m.step.kind in (XS_READ, XS_DIRECTORY, XS_RM, XS_GET_PERMS)
            and not _is_string(m.step.payload)
            and m.is_own
            and m.mine.error == "EINVAL"
            and m.other.kind == XS_ERROR
        ),
    ),
    Difference(
        "a commit over nodes of a domain that has gone",
        lambda m: m.step.kind == XS_TRANSACTION_END and m.errors("EAGAIN", "ENOMEM"),
    ),
    Difference(
        "several domains that end or shut down at once",
        lambda m: (
            m.step.kind in (DESTROY, SHUTDOWN)
            and set(m.mine.events) == set(m.other.events)
            and all(_special(event) for event in m.mine.events)
        ),
    ),
    Difference(
        "the end of a domain that owns the root",
        lambda m: m.story.root_given and m.step.kind in (XS_RELEASE, DESTROY),
        spoils=True,
    ),
    Difference(
        "the end of a domain that others act for",
        lambda m: (
            (m.step.kind == XS_RELEASE and _domid(m.step) in m.story.targets)
            or (m.step.kind == DESTROY and m.step.who in m.story.targets)
        ),
        spoils=True,
    ),
]

OCAML_4_17: list[Difference] = []

KNOWN = {"c": C_4_17, "ocaml": OCAML_4_17}
