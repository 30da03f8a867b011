"""What is attacked: a target has inputs to begin with, a way to change one, and a check.

A check feeds one input to the product and holds the answer against what is promised. It gives a
short word for what happened (`sound`, `records-overlap`), which the tally counts and the plain
engine takes for news. Any exception that leaves a check is a find.

**Invariants.** A check depends on its input alone: the same bytes give the same word or the same
find, so that one saved file repeats it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


class Find(Exception):
    """A promise that does not hold: the message is one line and says which."""


@dataclass(frozen=True)
class Target:
    """One door into the product that strangers' bytes come through."""

    name: str
    about: str
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random], bytes]
    check: Callable[[bytes], str]
    max_bytes: int


def expect(holds: bool, promise: str) -> None:
    """A find unless `holds`; `promise` says what should be."""
    if not holds:
        raise Find(promise)
