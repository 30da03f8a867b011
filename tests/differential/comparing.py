"""Compares what two servers said to one sequence; finds what is not known, and makes it short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from differential.known import Difference, Moment, Story
from differential.playing import GONE, Heard, Record
from differential.steps import Step

#: How much is tried to make a sequence shorter.
SHRINK_TRIES = 400
NOTHING = Heard()


@dataclass(frozen=True)
class Finding:
    """A difference that nobody has named."""

    index: int
    step: Step
    client: int
    mine: Heard | None
    other: Heard | None

    def is_like(self, other: Finding) -> bool:
        """Whether it is the same, in a sequence of other length."""
        return (self.step, self.client, self.mine, self.other) == (
            other.step,
            other.client,
            other.mine,
            other.other,
        )

    def __str__(self) -> str:
        return f"step {self.index}, {self.step}\n  client {self.client} heard\n" + (
            f"    from ours:  {self.mine}\n    from theirs: {self.other}"
        )


@dataclass
class Outcome:
    """What came of a comparison: how many steps counted, what known differences were met."""

    compared: int = 0
    met: Counter[str] = field(default_factory=Counter)
    finding: Finding | None = None


def compare(
    steps: list[Step], mine: list[Record], other: list[Record], known: list[Difference]
) -> Outcome:
    """Step by step and client by client, up to the first finding or a difference that spoils."""
    outcome = Outcome()
    story = Story()
    for index, step in enumerate(steps):
        ours, theirs = mine[index], other[index] if index < len(other) else {step.who: GONE}
        if ours is None and theirs is None:
            story.note(step, NOTHING)
            continue
        for client in sorted({*(ours or ()), *(theirs or ())}, key=lambda each: each != step.who):
            one, two = (ours or {}).get(client), (theirs or {}).get(client)
            if one == two:
                continue
            moment = Moment(step, client, one or NOTHING, two or NOTHING, story)
            found = next((each for each in known if each.applies(moment)), None)
            if found is None or ((one is None or two is None) and not found.spoils):
                outcome.finding = Finding(index, step, client, one, two)
                return outcome
            outcome.met[found.name] += 1
            if found.spoils or two is GONE:
                return outcome
        own = (ours or {}).get(step.who, NOTHING)
        moment = Moment(step, step.who, own, (theirs or {}).get(step.who, NOTHING), story)
        spoilt = next((each for each in known if each.spoils and each.applies(moment)), None)
        if spoilt is not None:
            outcome.met[spoilt.name] += 1
            return outcome
        story.note(step, own)
        outcome.compared += 1
    return outcome


def shrink(steps: list[Step], fails: Callable[[list[Step]], bool]) -> list[Step]:
    """A shorter sequence that still `fails`, by leaving out ever smaller pieces."""
    tries = 0
    size = max(len(steps) // 2, 1)
    while True:
        at = 0
        shorter = False
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            tries += 1
            if tries > SHRINK_TRIES:
                return steps
            if fewer and fails(fewer):
                steps, shorter = fewer, True
            else:
                at += size
        if size == 1 and not shorter:
            return steps
        size = max(size // 2, 1)
