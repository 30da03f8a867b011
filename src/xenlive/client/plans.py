"""What takes several requests, without I/O: any kind of client carries a plan out.

A `Plan` yields batches of requests that may be under way at the same time, is sent what came of
each, and returns the result:

    plan ── [Request, Request] ──▶ client ── sends all, waits for all
         ◀── [value, XenstoreError] ──┘

**Invariants.** What is sent back has one item for each request, in their order: its meaning, or the
server's refusal as a `XenstoreError` that was not raised. No plan has two requests in one batch of
which the second must not happen if the first is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from xenlive.client import requests
from xenlive.client.codec import decode_text
from xenlive.client.requests import Request
from xenlive.errors import XenstoreError

T = TypeVar("T")

Plan: TypeAlias = Generator[Sequence[Request[Any]], Sequence[Any], T]

#: How often a transaction is tried, and the first and longest pause between two attempts. Each
#: conflict means that somebody else got through, so the first few need no pause at all.
ATTEMPTS = 100
_AT_ONCE = 3
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


def pause_s(conflicts: int, chance: float) -> float:
    """How long to wait after so many conflicts in a row; `chance` is a random number below 1.

    Clients that were in each other's way should not come back at the same moment.
    """
    if conflicts < _AT_ONCE:
        return 0.0
    longest = min(_FIRST_PAUSE_S * 2.0 ** min(conflicts - _AT_ONCE, 16), _LONGEST_PAUSE_S)
    return longest * chance


def one(request: Request[T]) -> Plan[T]:
    """A single request. XenstoreError if it is refused."""
    (outcome,) = yield [request]
    if isinstance(outcome, XenstoreError):
        raise outcome
    meaning: T = outcome
    return meaning


def all_of(batch: Sequence[Request[T]]) -> Plan[list[T]]:
    """Several at a time. The first refusal is raised, when all were answered."""
    outcomes = yield batch
    for outcome in outcomes:
        if isinstance(outcome, XenstoreError):
            raise outcome
    return list(outcomes)


def directory(path: str) -> Plan[list[str]]:
    """The names of a node's children, however many there are."""
    try:
        return (yield from one(requests.directory(path)))
    except XenstoreError as error:
        if error.name != "E2BIG":
            raise
    return (yield from directory_in_parts(path))


def directory_in_parts(path: str) -> Plan[list[str]]:
    """The same, part by part; from the start again when the node changed between two parts."""
    generation: str | None = None
    names = bytearray()
    while True:
        found, part = yield from one(requests.directory_part(path, len(names)))
        if generation is not None and found != generation:
            generation = None
            names.clear()
            continue
        generation = found
        at_end = part.endswith(b"\0\0") or part == b"\0"  # an empty name after the last
        names += part[:-1] if at_end else part
        if at_end:
            return [decode_text(name) for name in bytes(names).split(b"\0")[:-1]]


def exists(path: str) -> Plan[bool]:
    """Whether there is such a node, and we may know of it."""
    try:
        yield from one(requests.get_perms(path))
    except XenstoreError as error:
        if error.name in ("ENOENT", "EACCES"):
            return False
        raise
    return True


def value_or_none(path: str) -> Plan[bytes | None]:
    """A node's value, None if there is no such node."""
    try:
        return (yield from one(requests.read(path)))
    except XenstoreError as error:
        if error.name != "ENOENT":
            raise
        return None


def wanted_value(
    is_wanted: bytes | str | Callable[[bytes | None], object],
) -> Callable[[bytes | None], object]:
    """What says whether a value is the one waited for."""
    if callable(is_wanted):
        return is_wanted
    value = (
        is_wanted.encode("utf-8", "surrogateescape") if isinstance(is_wanted, str) else is_wanted
    )
    return lambda found: found == value
