"""The plan of the demo's store: which nodes there are, with which value and permissions.

    /demo
    ├── shared/counterK           each raised by many clients, in transactions
    ├── clients/NN/sK             each client's own nodes: nobody else writes them
    ├── watched/NN/eK             what watcher NN is told about
    └── guests/GGGG/nNN           the bulk, which nobody changes

The plan is made before the server sees anything, and kept up to date by whoever has a change
confirmed: it is the oracle that answers, and at the end the whole store, are compared with.

**Invariants.** A tree of N has exactly N nodes, `/demo` included. The same seed gives the same
tree. Every node is owned by domain 0: what a server does to the permissions of domains that don't
exist is its own business, and would be reported here as a loss. No directory's listing outgrows
one answer except that of `guests`, which the walk reads in parts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from xenlive.errors import ConfigError

ROOT = b"/demo"
SLOTS = 8
SHARING = 10  # clients that raise the same counter
WATCHED_CHILDREN = 4
GROUP = 100  # nodes of one directory under guests, the directory included

# The first entry is the owner and what all others may do; more entries name other domains.
PERMISSIONS: tuple[tuple[bytes, ...], ...] = (
    (b"n0",),
    (b"r0",),
    (b"b0",),
    (b"w0",),
    (b"n0", b"r0"),
    (b"r0", b"b0", b"n0"),
)
DEFAULT = PERMISSIONS[0]


@dataclass
class Node:
    """What the server must answer for one node."""

    value: bytes = b""
    perms: tuple[bytes, ...] = DEFAULT


@dataclass
class Tree:
    """The plan: `nodes` by path, and who uses which."""

    nodes: dict[bytes, Node]
    counters: list[bytes]
    slots: list[list[bytes]]
    scratch: list[bytes]
    watched: list[bytes]
    tokens: list[bytes]
    leaves: list[bytes]
    groups: dict[bytes, frozenset[bytes]] = field(default_factory=dict)

    def changes_of(self, watcher: int) -> list[bytes]:
        """The paths whose change watcher number `watcher` is told about."""
        path = self.watched[watcher]
        return [path] + [b"%s/e%d" % (path, k) for k in range(WATCHED_CHILDREN)]


def smallest(clients: int, watchers: int) -> int:
    """The fewest nodes that a tree for so many connections has."""
    folders = 5  # the root and those right below it
    fixed = folders + _counters(clients) + clients * (1 + SLOTS) + watchers * (1 + WATCHED_CHILDREN)
    return fixed + GROUP


def _counters(clients: int) -> int:
    return -(-clients // SHARING)


def make_tree(nodes: int, clients: int, watchers: int, seed: int = 1) -> Tree:
    """A tree of exactly `nodes` nodes. ConfigError when that is too few for the connections."""
    least = smallest(clients, watchers)
    if nodes < least:
        what = f"{clients} clients and {watchers} watchers need at least {least} nodes"
        raise ConfigError("nodes", 0, f"{what}, not {nodes}")
    chance = random.Random(seed)
    plan = _Plan(chance)
    plan.add(ROOT)
    plan.add(ROOT + b"/shared")
    counters = [
        plan.add(b"%s/shared/counter%d" % (ROOT, k), b"0") for k in range(_counters(clients))
    ]
    plan.add(ROOT + b"/clients")
    slots: list[list[bytes]] = []
    scratch = []
    for number in range(clients):
        home = plan.add(b"%s/clients/%02d" % (ROOT, number))
        slots.append([plan.add(b"%s/s%d" % (home, k), plan.value()) for k in range(SLOTS)])
        scratch.append(home + b"/scratch")
    plan.add(ROOT + b"/watched")
    watched = []
    tokens = []
    for number in range(watchers):
        home = plan.add(b"%s/watched/%02d" % (ROOT, number), b"0")
        for k in range(WATCHED_CHILDREN):
            plan.add(b"%s/e%d" % (home, k), b"0")
        watched.append(home)
        tokens.append(b"watcher-%02d/%04x" % (number, chance.getrandbits(16)))
    plan.add(ROOT + b"/guests")
    tree = Tree(plan.nodes, counters, slots, scratch, watched, tokens, leaves=[])
    _add_bulk(tree, plan, nodes)
    return tree


def _add_bulk(tree: Tree, plan: _Plan, nodes: int) -> None:
    number = 0
    while len(plan.nodes) < nodes:
        group = plan.add(b"%s/guests/%04d" % (ROOT, number), b"", plan.permissions())
        members = min(GROUP - 1, nodes - len(plan.nodes))
        for k in range(members):
            leaf = plan.add(b"%s/n%02d" % (group, k), plan.value(), plan.permissions())
            tree.leaves.append(leaf)
        tree.groups[group] = frozenset(b"n%02d" % k for k in range(members))
        number += 1


class _Plan:
    """The nodes so far, and the one source of chance."""

    def __init__(self, chance: random.Random) -> None:
        self.nodes: dict[bytes, Node] = {}
        self._chance = chance

    def add(self, path: bytes, value: bytes = b"", perms: tuple[bytes, ...] = DEFAULT) -> bytes:
        self.nodes[path] = Node(value, perms)
        return path

    def value(self) -> bytes:
        """Mostly short text; now and then empty, large, or bytes that are no text at all."""
        return make_value(self._chance)

    def permissions(self) -> tuple[bytes, ...]:
        return self._chance.choice(PERMISSIONS)


def make_value(chance: random.Random) -> bytes:
    """A node's value: mostly short text; now and then empty, large, or bytes that are no text."""
    kind = chance.random()
    if kind < 0.05:
        return b""
    if kind < 0.10:
        return chance.randbytes(chance.randrange(1, 64))
    if kind < 0.12:
        return b"%d;" % chance.getrandbits(30) * chance.randrange(40, 120)
    return b"value-%d" % chance.getrandbits(30)


def preload(tree: Tree) -> Iterator[tuple[bytes, Node]]:
    """All nodes in an order in which parents come before children."""
    yield from tree.nodes.items()
