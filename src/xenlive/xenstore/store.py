"""The store: nodes by full path, and the one narrow place through which each of them changes.

Specification: Xen `docs/misc/xenstore.txt`. One dict maps the full path to the node. A node knows
the names of its children (an ordered dict without values), so a directory is listed in the order
its entries were made and gains or loses one at a price that does not depend on how many it has.

    nodes = { b"/": Node(children {b"tool"}), b"/tool": Node(children {b"xenstored"}), … }

Each change, whoever asked for it, is one of `put_value`, `put_perms`, `create` and `remove`; a
transaction keeps its own list of these four and runs it when it is committed.

**Invariants.** The parent of each node exists and names it. A node comes after its parent in
`nodes` (it was made later), so the dict's order is the order of a state stream. `generation`
counts changes; a node has the number of its last one, and a node that gains or loses a child has
changed. A node's children dict is replaced, not changed, while a transaction has it pinned.

Why not a tree of nodes: clients name full paths, and one lookup is cheaper than five.
"""

from __future__ import annotations

from xenlive.abi.xs_wire import DOMID_ANY
from xenlive.xenstore import perms
from xenlive.xenstore.paths import child_of, parent_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Node:
    """Value, permissions (see `perms`), generation and the names of the children, if any."""

    __slots__ = ("children", "children_bytes", "generation", "perms", "value")

    def __init__(self, value: bytes, node_perms: bytes, generation: int) -> None:
        self.value = value
        self.perms = node_perms
        self.generation = generation
        self.children: dict[bytes, None] | None = None
        self.children_bytes = 0

    def names(self) -> Iterable[bytes]:
        """The children's names, oldest first."""
        return self.children or ()


class Store:
    """All nodes, the special ones, and which domains exist since when."""

    __slots__ = ("domains", "generation", "nodes", "pins", "special")

    def __init__(self) -> None:
        self.generation = 0
        self.domains: dict[int, int] = {0: 0}
        self.nodes: dict[bytes, Node] = {b"/": Node(b"", perms.make(("n", 0)), 0)}
        self.special: dict[bytes, Node] = {}
        self.pins: dict[Node, int] = {}

    def populate(self) -> None:
        """Makes what every new store starts with."""
        nobody = perms.make(("n", 0))
        self.create(b"/tool", b"", nobody)
        self.create(b"/tool/xenstored", b"", nobody)
        everybody_reads = perms.make(("n", 0), ("r", DOMID_ANY))
        self.special[b"@releaseDomain"] = Node(b"", everybody_reads, self.generation)
        self.special[b"@introduceDomain"] = Node(b"", nobody, self.generation)

    def find(self, path: bytes) -> Node | None:
        """The node at a canonical path or of a special name."""
        node = self.nodes.get(path)
        if node is None and path[:1] == b"@":
            return self.special.get(path)
        return node

    def put_value(self, path: bytes, node: Node, value: bytes) -> None:
        """Changes the value of `node`, which is the one at `path`."""
        if len(node.perms) != 4:
            node.perms = perms.without_stale(node.perms, node.generation, self.domains)
        node.value = value
        self.generation = node.generation = self.generation + 1

    def put_perms(self, path: bytes, node: Node, node_perms: bytes) -> None:
        """Changes the permissions of `node`, which is the one at `path`."""
        node.perms = node_perms
        self.generation = node.generation = self.generation + 1

    def create(self, path: bytes, value: bytes, node_perms: bytes) -> Node:
        """Makes the node at `path`, which is not there yet while its parent is."""
        self.generation += 1
        cut = path.rfind(b"/")
        self._link(self.nodes[path[:cut] or b"/"], path[cut + 1 :])
        node = self.nodes[path] = Node(value, node_perms, self.generation)
        return node

    def remove(self, path: bytes, below: list[bytes] | None = None) -> None:
        """Removes the node at `path`, not `/`, and all below it (`subtree(path)`, if known)."""
        for each in self.subtree(path) if below is None else below:
            del self.nodes[each]
        self.generation += 1
        cut = path.rfind(b"/")
        parent = self.nodes[path[:cut] or b"/"]
        self._unlink(parent, path[cut + 1 :])

    def subtree(self, path: bytes) -> list[bytes]:
        """The paths of a node and all below it, each after those below it."""
        found = []
        todo = [path]
        while todo:
            each = todo.pop()
            found.append(each)
            children = self.nodes[each].children
            if children:
                todo.extend([child_of(each, name) for name in children])
        # A node came before its children and its last child first: backwards it is the C
        # daemon's order, first child first and a node after all below it.
        found.reverse()
        return found

    def add_domain(self, domid: int) -> None:
        """Says that a domain exists from now on: no permission older than this is meant for it."""
        self.domains.setdefault(domid, self.generation)

    def remove_domain(self, domid: int) -> None:
        """Says that a domain has gone."""
        self.domains.pop(domid, None)

    def allowed(self, node: Node, domid: int, target: int = -1) -> int:
        """What an unprivileged domain may do with `node`: an or of READ, WRITE and OWNER."""
        fresh = perms.without_stale(node.perms, node.generation, self.domains)
        return perms.allowed(fresh, domid, target)

    def pin_children(self, node: Node) -> dict[bytes, None] | None:
        """The names of the children as they are now, which will not change until unpinned."""
        if node.children is not None:
            self.pins[node] = self.pins.get(node, 0) + 1
        return node.children

    def unpin_children(self, node: Node, names: dict[bytes, None] | None) -> None:
        """Gives back what `pin_children` gave; replaced names are pinned no more."""
        if names is None or node.children is not names:
            return
        count = self.pins[node] - 1
        if count:
            self.pins[node] = count
        else:
            del self.pins[node]

    def check(self) -> list[str]:
        """What is wrong with the tree; empty, always, unless this program has a fault."""
        problems = []
        for path, node in self.nodes.items():
            parent = self.nodes.get(parent_of(path))
            name = path[path.rfind(b"/") + 1 :]
            if path != b"/" and (parent is None or name not in (parent.children or ())):
                problems.append(f"{path.decode()} is not in its parent")
            size = 0
            for name in node.children or ():
                size += len(name) + 1
                if child_of(path, name) not in self.nodes:
                    problems.append(f"{child_of(path, name).decode()} is not there")
            if size != node.children_bytes:
                problems.append(f"{path.decode()} has {size} bytes of names")
        return problems

    def _link(self, parent: Node, name: bytes) -> None:
        if self.pins:
            self._release_pinned(parent)
        if parent.children is None:
            parent.children = {name: None}
        else:
            parent.children[name] = None
        self._touch_directory(parent, len(name) + 1)

    def _unlink(self, parent: Node, name: bytes) -> None:
        if self.pins:
            self._release_pinned(parent)
        if parent.children is not None:
            del parent.children[name]
            if not parent.children:
                parent.children = None
        self._touch_directory(parent, -len(name) - 1)

    def _touch_directory(self, parent: Node, more_bytes: int) -> None:
        parent.children_bytes += more_bytes
        if len(parent.perms) != 4:
            parent.perms = perms.without_stale(parent.perms, parent.generation, self.domains)
        parent.generation = self.generation

    def _release_pinned(self, node: Node) -> None:
        """Gives a node its own names if a transaction looks at the ones it has."""
        if node in self.pins and node.children is not None:
            node.children = dict(node.children)
            del self.pins[node]
