"""A tree of nodes as a JSON file: exact, for people to read and change.

    {"xenstore": 1, "path": "/a", "nodes": [
    {"path": "/a", "value": "text", "permissions": ["n0", "r5"]},
    {"path": "/a/b", "value_hex": "ff00", "permissions": ["n0"]}
    ]}

`value` is text; what is not UTF-8 is `value_hex`. `permissions` may be left out: the node then has
what the server gives to a new one.

**Invariants.** A tree that is written and read again is the same, whatever bytes its values have.
Whatever is in a file, it is a tree or a ConfigError that names the entry; nothing has been sent to
a server by then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from xenlive.client.answers import Permission
from xenlive.client.tree import Node
from xenlive.errors import ConfigError

VERSION = 1
_KEYS = {"path", "value", "value_hex", "permissions"}


def lines(path: str, nodes: Iterable[Node]) -> Iterator[str]:
    """The lines of a file, without their ends, as the nodes come; `path` is the tree's top."""
    before = f'{{"xenstore": {VERSION}, "path": {json.dumps(path)}, "nodes": ['
    for node in nodes:
        yield before
        before = json.dumps(as_entry(node)) + ","
    yield before.removesuffix(",")
    yield "]}"


def as_entry(node: Node) -> dict[str, Any]:
    """One node. ValueError if its value is not known."""
    if node.value is None:
        raise ValueError(f"the value of {node.path} is not known")
    entry: dict[str, Any] = {"path": node.path}
    try:
        entry["value"] = node.value.decode("utf-8")
    except UnicodeDecodeError:
        entry["value_hex"] = node.value.hex()
    if node.permissions is not None:
        entry["permissions"] = [str(permission) for permission in node.permissions]
    return entry


def parse(text: str | bytes, source: str) -> tuple[str, list[Node]]:
    """The top of a tree and its nodes; ConfigError, which names `source`, if it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(source, 0, f"this is no JSON: {error}") from None
    if not isinstance(found, dict) or found.get("xenstore") != VERSION:
        raise ConfigError(source, 0, f'this is no tree of nodes: no "xenstore": {VERSION}')
    path, entries = found.get("path"), found.get("nodes")
    if not isinstance(path, str) or not path.startswith("/"):
        raise ConfigError(source, 0, '"path" is no absolute path')
    if not isinstance(entries, list):
        raise ConfigError(source, 0, '"nodes" is no list')
    nodes = []
    for index, entry in enumerate(entries):
        try:
            nodes.append(_parse_entry(entry, path))
        except ValueError as error:
            raise ConfigError(source, 0, f"nodes[{index}]: {error}") from None
    return path, nodes


def _parse_entry(entry: object, top: str) -> Node:
    """ValueError if it is no node below `top`."""
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    if unknown := set(entry) - _KEYS:
        raise ValueError(f"{min(unknown)!r} is not known")
    path = entry.get("path")
    if not isinstance(path, str) or "\0" in path or not is_below(path, top):
        raise ValueError(f'"path" is no path in {top}')
    path.encode("utf-8", "surrogateescape")
    if ("value" in entry) == ("value_hex" in entry):
        raise ValueError('one of "value" and "value_hex" is needed')
    permissions = None
    if "permissions" in entry:
        permissions = _parse_permissions(entry["permissions"])
    return Node(path, _parse_value(entry), permissions)


def _parse_value(entry: dict[str, Any]) -> bytes:
    key = "value" if "value" in entry else "value_hex"
    text = entry[key]
    if not isinstance(text, str):
        raise ValueError(f'"{key}" is no string')
    return text.encode("utf-8") if key == "value" else bytes.fromhex(text)


def _parse_permissions(texts: object) -> tuple[Permission, ...]:
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise ValueError('"permissions" is no list of permissions such as ["n0", "r5"]')
    return tuple(Permission.parse(text) for text in texts)


def is_below(path: str, top: str) -> bool:
    """Whether a path is `top` or below it."""
    return path == top or path.startswith(top if top == "/" else f"{top}/")


def moved(nodes: Iterable[Node], old_top: str, new_top: str) -> list[Node]:
    """The same nodes in another place."""
    old, new = old_top.rstrip("/"), new_top.rstrip("/")
    return [
        Node((new + node.path.rstrip("/").removeprefix(old)) or "/", node.value, node.permissions)
        for node in nodes
    ]


def from_mapping(tree: Mapping[str, bytes | str]) -> list[Node]:
    """Nodes from paths and values, in their order, without permissions."""
    return [
        Node(
            path,
            value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value,
            None,
        )
        for path, value in tree.items()
    ]
