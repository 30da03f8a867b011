"""Walking a Xenstore and drawing what is there.

    ├─ local = ""  (n0)
    │  └─ domain = ""  (n0)
    └─ tool = ""  (n0)

**Invariants.** A node that goes away while the tree is walked is left out, as if it had gone
before. Children come in the server's order, parents before children. No byte that a terminal
would act on is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from xenlive.client.blocking import Xenstore
from xenlive.client.requests import Permission
from xenlive.errors import XenstoreError

UNICODE_GUIDES = ("├─ ", "└─ ", "│  ", "   ")
ASCII_GUIDES = ("|- ", "`- ", "|  ", "   ")


@dataclass(frozen=True, slots=True)
class Node:
    """One node as found: `value` is None when we may not read it; `last` for each level above."""

    path: str
    value: bytes | None
    permissions: tuple[Permission, ...] | None
    last: tuple[bool, ...]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


def walk(store: Xenstore, top: str, *, perms: bool, recursive: bool) -> Iterator[Node]:
    """The nodes below `top`, without itself. XenstoreError if `top` itself can't be listed."""
    waiting = _children(top, store.directory(top), ())
    while waiting:
        path, last = waiting.pop()
        found = _node(store, path, last, perms)
        if found is None:
            continue
        yield found
        if recursive:
            waiting += _children(path, _names(store, path), last)


def draw(nodes: Iterable[Node], guides: tuple[str, str, str, str]) -> Iterator[str]:
    """A line for each node, behind the guides of its place in the tree."""
    branch, corner, through, blank = guides
    for node in nodes:
        *above, last = node.last
        lead = "".join(blank if ended else through for ended in above)
        lead += corner if last else branch
        value = "(no access)" if node.value is None else f'"{printable(node.value)}"'
        line = f"{click.style(lead, dim=True)}{_printable_text(node.name)} = {value}"
        if node.permissions is not None:
            shown = ",".join(map(str, node.permissions))
            line += click.style(f"  ({shown})", fg="cyan")
        yield line


def guides_for(encoding: str | None) -> tuple[str, str, str, str]:
    """Line drawing for a terminal that can show it, else plain characters."""
    try:
        "".join(UNICODE_GUIDES).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_GUIDES
    return UNICODE_GUIDES


def as_object(node: Node) -> dict[str, Any]:
    """For JSON: `path`, `value` (`value_hex` if it is no text), `permissions` if asked for."""
    found: dict[str, Any] = {"path": node.path, "value": None}
    if node.value is not None:
        try:
            found["value"] = node.value.decode("utf-8")
        except UnicodeDecodeError:
            found["value_hex"] = node.value.hex()
    if node.permissions is not None:
        found["permissions"] = [str(permission) for permission in node.permissions]
    return found


def printable(value: bytes) -> str:
    """A value as text, with escapes for all that is not plainly printable."""
    return _printable_text(value.decode("utf-8", "backslashreplace"))


def _printable_text(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _children(
    path: str, names: list[str], last: tuple[bool, ...]
) -> list[tuple[str, tuple[bool, ...]]]:
    """What is to be visited below `path`, the first one at the end, where `pop` takes it."""
    base = path.rstrip("/")
    pairs = [
        (f"{base}/{name}", (*last, index == len(names) - 1)) for index, name in enumerate(names)
    ]
    pairs.reverse()
    return pairs


def _node(store: Xenstore, path: str, last: tuple[bool, ...], perms: bool) -> Node | None:
    value: bytes | None = None
    permissions: tuple[Permission, ...] | None = None
    try:
        value = store.read(path)
        if perms:
            permissions = tuple(store.get_perms(path))
    except XenstoreError as error:
        if error.name == "ENOENT":
            return None
        if error.name != "EACCES":
            raise
    return Node(path, value, permissions, last)


def _names(store: Xenstore, path: str) -> list[str]:
    try:
        return store.directory(path)
    except XenstoreError as error:
        if error.name in ("ENOENT", "EACCES"):
            return []
        raise
