"""Trees of nodes: walking one, and making one again, without I/O.

**Invariants.** A walk gives parents before children, and children in the server's order. A node
that goes away while it is walked is left out, as if it had gone before. Only so much is fetched
ahead as keeps a connection busy, so a large tree needs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xenlive.client import plans, requests
from xenlive.client.plans import Plan
from xenlive.client.requests import Permission, Request
from xenlive.errors import XenstoreError

#: Nodes that are asked for, or made, at a time.
BATCH = 32


@dataclass(frozen=True, slots=True)
class Node:
    """One node as found.

    `value` is None when we may not read it, `permissions` also when nobody asked for them; `last`
    says for the node and each level above it whether it was the last of its siblings.
    """

    path: str
    value: bytes | None
    permissions: tuple[Permission, ...] | None
    last: tuple[bool, ...] = ()

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class _Found:
    """A node that was fetched and not handed out yet, and what is below it."""

    __slots__ = ("below", "node")

    def __init__(self, node: Node, below: list[str]) -> None:
        self.node = node
        self.below = below


_Place = tuple[str, tuple[bool, ...]]


def walk(
    top: str,
    found: Callable[[Node], object],
    *,
    perms: bool,
    depth: int | None = None,
    with_top: bool = False,
) -> Plan[None]:
    """Calls `found` for each node below `top`, at most `depth` levels of them; `top` if asked for.

    XenstoreError if `top` itself can't be listed.
    """
    if with_top:
        value: bytes = yield from plans.one(requests.read(top))
        owner = (yield from plans.one(requests.get_perms(top))) if perms else None
        found(Node(top, value, None if owner is None else tuple(owner)))
    if depth == 0:
        return
    names = yield from plans.directory(top)
    # What is to be handed out, the next one at the end; the last few of it were fetched.
    waiting: list[_Place | _Found | None] = [*reversed(_children(top, names, ()))]
    while waiting:
        place = waiting[-1]
        if isinstance(place, tuple):
            yield from _fetch_last(waiting, perms, depth)
            continue
        waiting.pop()
        if place is None:
            continue
        found(place.node)
        waiting += reversed(_children(place.node.path, place.below, place.node.last))


def _fetch_last(
    waiting: list[_Place | _Found | None], perms: bool, depth: int | None
) -> Plan[None]:
    """Fetches the places at the end of `waiting`, and puts what was found where they were."""
    start = len(waiting)
    places: list[_Place] = []
    while start and len(places) < BATCH:
        place = waiting[start - 1]
        if not isinstance(place, tuple):
            break
        places.append(place)
        start -= 1
    batch: list[Request[Any]] = []
    for path, last in places:
        batch += _questions(path, perms, depth is None or len(last) < depth)
    outcomes = iter((yield batch))
    fetched: list[_Place | _Found | None] = []
    for path, last in places:
        deeper = depth is None or len(last) < depth
        value, owner, below = (
            next(outcomes),
            next(outcomes) if perms else None,
            next(outcomes) if deeper else [],
        )
        if isinstance(below, XenstoreError) and below.name == "E2BIG":
            below = yield from _long_directory(path)
        fetched.append(_combined(path, last, value, owner, below))
    waiting[start:] = reversed(fetched)


def _questions(path: str, perms: bool, deeper: bool) -> list[Request[Any]]:
    questions: list[Request[Any]] = [requests.read(path)]
    if perms:
        questions.append(requests.get_perms(path))
    if deeper:
        questions.append(requests.directory(path))
    return questions


def _long_directory(path: str) -> Plan[list[str] | XenstoreError]:
    try:
        return (yield from plans.directory_in_parts(path))
    except XenstoreError as error:
        return error


def _combined(
    path: str, last: tuple[bool, ...], value: Any, owner: Any, below: Any
) -> _Found | None:
    """What the answers about a node say together; None if it has gone. XenstoreError."""
    for answer in (value, owner, below):
        if isinstance(answer, XenstoreError):
            if answer.name == "ENOENT":
                return None
            if answer.name != "EACCES":
                raise answer
    if isinstance(value, XenstoreError):
        value = None
    permissions = None if owner is None or isinstance(owner, XenstoreError) else tuple(owner)
    return _Found(
        Node(path, value, permissions, last), [] if isinstance(below, XenstoreError) else below
    )


def _children(path: str, names: Sequence[str], last: tuple[bool, ...]) -> list[_Place]:
    base = path.rstrip("/")
    return [
        (f"{base}/{name}", (*last, index == len(names) - 1)) for index, name in enumerate(names)
    ]


def collect(top: str, *, perms: bool = True) -> Plan[list[Node]]:
    """All nodes of a tree, `top` first. XenstoreError, EACCES too: no node is left out for that."""
    nodes: list[Node] = []
    yield from walk(top, nodes.append, perms=perms, with_top=True)
    for node in nodes:
        if node.value is None or (perms and node.permissions is None):
            raise XenstoreError("EACCES", f"read {node.path}")
    return nodes


def make(nodes: Sequence[Node]) -> Plan[None]:
    """Makes nodes, in their order, with their values and permissions as far as these are known.

    XenstoreError for the first that is refused; some after it may be made all the same.
    """
    for start in range(0, len(nodes), BATCH):
        batch: list[Request[Any]] = []
        for node in nodes[start : start + BATCH]:
            batch.append(requests.write(node.path, node.value or b""))
            if node.permissions is not None:
                batch.append(requests.set_perms(node.path, node.permissions))
        yield from plans.all_of(batch)


def remove(top: str) -> Plan[None]:
    """Removes a tree if it is there; the root stays, without children."""
    if not (yield from plans.exists(top)):
        return
    if top != "/":
        yield from plans.one(requests.rm(top))
        return
    names = yield from plans.directory(top)
    yield from plans.all_of([requests.rm(f"/{name}") for name in names])
