"""Drawing nodes of a Xenstore, and saying them in JSON.

    ├─ local = ""  (n0)
    │  └─ domain = ""  (n0)
    └─ tool = ""  (n0)

**Invariants.** No byte that a terminal would act on is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click

from xenlive.client.tree import Node

UNICODE_GUIDES = ("├─ ", "└─ ", "│  ", "   ")
ASCII_GUIDES = ("|- ", "`- ", "|  ", "   ")


def draw(nodes: Iterable[Node], guides: tuple[str, str, str, str]) -> Iterator[str]:
    """A line for each node, behind the guides of its place in the tree."""
    branch, corner, through, blank = guides
    for node in nodes:
        *above, last = node.last
        lead = "".join(blank if ended else through for ended in above)
        lead += corner if last else branch
        name = printable_text(node.name)
        line = f"{click.style(lead, dim=True)}{name} = {shown_value(node.value)}"
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
    found: dict[str, Any] = {"path": node.path, **value_as_object(node.value)}
    if node.permissions is not None:
        found["permissions"] = [str(permission) for permission in node.permissions]
    return found


def value_as_object(value: bytes | None) -> dict[str, Any]:
    """For JSON: `value`, and `value_hex` if it is no text; `value` is null if there is none."""
    try:
        return {"value": None if value is None else value.decode("utf-8")}
    except UnicodeDecodeError:
        return {"value": None, "value_hex": value.hex() if value is not None else ""}


def shown_value(value: bytes | None) -> str:
    """A value in quotes, or that we may not know it."""
    return "(no access)" if value is None else f'"{printable(value)}"'


def printable(value: bytes) -> str:
    """A value as text, with escapes for all that is not plainly printable."""
    return printable_text(value.decode("utf-8", "backslashreplace"))


def printable_text(text: str) -> str:
    """The same for text; what was no UTF-8 is a surrogate in it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
