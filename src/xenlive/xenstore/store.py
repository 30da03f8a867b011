"""The store: nodes by full path, and the one narrow place through which each of them changes.

Specification: Xen `docs/misc/xenstore.txt`. One dict maps the full path to the node. A node knows
the full paths of its children (an ordered dict without values), so a directory is listed in the
order its entries were made and gains or loses one at a price that does not depend on how many it
has; and each path is one object, held twice.

    nodes = { b"/": Node(children {b"/tool"}), b"/tool": Node(children {b"/tool/xenstored"}), … }

Each change, whoever asked for it, is one of `put_value`, `put_perms`, `create` and `remove` (a
transaction keeps its own list of these four and runs it when it is committed) or `add_domain`;
`journal`, if there is one, hears of each. The end of a domain is `State.forget_domain`.

**Invariants.** The parent of each node exists and lists it. A node comes after its parent in
`nodes` (it was made later), so the dict's order is the order of a state stream. `generation`
counts changes; a node has the number of its last one, and a node that gains or loses a child has
changed. The nodes of a loaded store share its first one, which is larger than any of an earlier
kernel (`XenstoreServer.fresh_generation`). A node's children dict is replaced, not changed, while a
transaction has it pinned.

Why not a tree of nodes: clients name full paths, and one lookup is cheaper than five.
"""

from __future__ import annotations

from xenlive.abi.xs_ring import XENSTORE_FEATURES
from xenlive.abi.xs_wire import DOMID_ANY
from xenlive.xenstore import changes, perms
from xenlive.xenstore.accounts import Accounts
from xenlive.xenstore.paths import parent_of
from xenlive.xenstore.perms import OWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenlive.xenstore.changes import Journal


class Node:
    """Value, permissions (see `perms`), generation and the paths of the children, if any.

    `children_bytes` is what the children's names, each with a NUL, take; `listing` is those bytes,
    DIRECTORY's reply, once somebody has asked for it and until a child comes or goes.
    """

    __slots__ = ("children", "children_bytes", "generation", "listing", "perms", "value")

    def __init__(self, value: bytes, node_perms: bytes, generation: int) -> None:
        self.value = value
        self.perms = node_perms
        self.generation = generation
        self.children: dict[bytes, None] | None = None
        self.children_bytes = 0
        self.listing: bytes | None = None

    def paths(self) -> Iterable[bytes]:
        """The children's paths, oldest first."""
        return self.children or ()

    def list_names(self) -> bytes:
        """The children's names, each with a NUL, as DIRECTORY replies them."""
        paths = list(self.paths())
        if not paths:
            return b""
        cut = paths[0].rfind(b"/") + 1
        self.listing = b"\0".join([path[cut:] for path in paths]) + b"\0"
        return self.listing


class Store:
    """All nodes, the special ones, and which domains exist since when."""

    __slots__ = ("accounts", "domains", "generation", "journal", "nodes", "pins", "special")

    def __init__(self, generation: int = 0) -> None:
        self.journal: Journal | None = None
        self.accounts = Accounts(XENSTORE_FEATURES)
        self.generation = generation
        self.domains: dict[int, int] = {0: 0}
        self.nodes: dict[bytes, Node] = {b"/": Node(b"", perms.make(("n", 0)), generation)}
        self.special: dict[bytes, Node] = {}
        self.pins: dict[Node, int] = {}

    def populate(self) -> None:
        """Makes what every new store starts with."""
        nobody = perms.make(("n", 0))
        self.create(b"/tool", b"", nobody)
        self.create(b"/tool/xenstored", b"", nobody)
        self.populate_special()

    def populate_special(self) -> None:
        """Makes the special nodes that are missing: they only carry permissions for watches."""
        nobody = perms.make(("n", 0))
        everybody_reads = perms.make(("n", 0), ("r", DOMID_ANY))
        for name, who in ((b"@releaseDomain", everybody_reads), (b"@introduceDomain", nobody)):
            self.special.setdefault(name, Node(b"", who, self.generation))

    def find(self, path: bytes) -> Node | None:
        """The node at a canonical path or of a special name."""
        node = self.nodes.get(path)
        if node is None and path[:1] == b"@":
            return self.special.get(path)
        return node

    def put_value(self, path: bytes, node: Node, value: bytes) -> None:
        """Changes the value of `node`, which is the one at `path`."""
        node_perms = node.perms
        if node_perms is not OWN:
            if len(node_perms) != 4:
                node.perms = self.fresh_perms(node)
            if node_perms[2] or node_perms[3]:
                self.accounts.grow(perms.owner_of(node_perms), len(value) - len(node.value))
        node.value = value
        self.generation = node.generation = self.generation + 1
        if self.journal is not None:
            self.journal((changes.VALUE, path, value))

    def put_perms(self, path: bytes, node: Node, node_perms: bytes) -> None:
        """Changes the permissions of `node`, which is the one at `path`."""
        self._set_perms(path, node, node_perms)
        self.generation = node.generation = self.generation + 1
        if self.journal is not None:
            self.journal((changes.PERMS, path, node_perms))

    def create(self, path: bytes, value: bytes, node_perms: bytes) -> Node:
        """Makes the node at `path`, which is not there yet while its parent is."""
        self.generation += 1
        self._link(path)
        node = self.nodes[path] = Node(value, node_perms, self.generation)
        if node_perms is not OWN:
            self.accounts.add_node(path, node, 1)
        if self.journal is not None:
            self.journal((changes.CREATE, path, value, node_perms))
        return node

    def remove(self, path: bytes, below: list[bytes] | None = None) -> None:
        """Removes the node at `path`, not `/`, and all below it (`subtree(path)`, if known)."""
        pop = self.nodes.pop
        for each in self.subtree(path) if below is None else below:
            node = pop(each)
            if node.perms is not OWN:
                self.accounts.add_node(each, node, -1)
        self.generation += 1
        self._unlink(path)
        if self.journal is not None:
            self.journal((changes.REMOVE, path))

    def subtree(self, path: bytes) -> list[bytes]:
        """The paths of a node and all below it, each after those below it."""
        found = []
        todo = [path]
        while todo:
            each = todo.pop()
            found.append(each)
            children = self.nodes[each].children
            if children:
                todo.extend(children)
        # A node came before its children and its last child first: backwards it is the C
        # daemon's order, first child first and a node after all below it.
        found.reverse()
        return found

    def add_domain(self, domid: int) -> None:
        """Says that a domain exists from now on: no permission older than this is meant for it."""
        if domid not in self.domains:
            self.generation += 1
            self.domains[domid] = self.generation
            if domid:
                self.accounts.open(domid)
            if self.journal is not None:
                self.journal((changes.KNOWN, domid))

    def purge_domain(self, domid: int) -> None:
        """Says that a domain has gone: no permission names it any more, but as an owner.

        Only for `State.forget_domain`, which tells the journal. What can't be removed with its
        owner, `/` and the special nodes, goes to domain 0.
        """
        without: dict[bytes, bytes] = {}
        for path, node in self.nodes.items():
            old = node.perms
            new = without.get(old)
            if new is None:
                new = without[old] = perms.without_domain(old, domid)
            if new is not old:
                self._set_perms(path, node, new)
        for path, node in ((b"/", self.nodes[b"/"]), *self.special.items()):
            left = perms.without_domain(node.perms, domid)
            if perms.owner_of(left) == domid:
                left = perms.with_owner(left, 0)
            self._set_perms(path, node, left)
        self.domains.pop(domid, None)
        self.accounts.close(domid)

    def owned_by(self, domid: int) -> list[bytes]:
        """The paths of a domain's own nodes, each after those above it; this looks at all nodes."""
        low, high = domid & 0xFF, domid >> 8
        return [path for path, n in self.nodes.items() if n.perms[2] == low and n.perms[3] == high]

    def allowed(self, node: Node, domid: int, target: int = -1) -> int:
        """What an unprivileged domain may do with `node`: an or of READ, WRITE and OWNER."""
        return perms.allowed(self.fresh_perms(node), domid, target)

    def fresh_perms(self, node: Node) -> bytes:
        """The permissions of `node`, with the entries marked stale that now are."""
        if len(node.perms) == perms.ENTRY_SIZE:
            return node.perms
        return perms.without_stale(node.perms, node.generation, self.domains)

    def pin_children(self, node: Node) -> dict[bytes, None] | None:
        """The paths of the children as they are now, which will not change until unpinned."""
        if node.children is not None:
            self.pins[node] = self.pins.get(node, 0) + 1
        return node.children

    def unpin_children(self, node: Node, children: dict[bytes, None] | None) -> None:
        """Gives back what `pin_children` gave; what was replaced since is pinned no more."""
        if children is None or node.children is not children:
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
            if path != b"/" and (parent is None or path not in (parent.children or ())):
                problems.append(f"{path.decode()} is not in its parent")
            size = 0
            for child in node.children or ():
                size += len(child) - child.rfind(b"/")
                if child not in self.nodes:
                    problems.append(f"{child.decode()} is not there")
            if size != node.children_bytes:
                problems.append(f"{path.decode()} has {size} bytes of names")
        return problems

    def _link(self, path: bytes) -> None:
        cut = path.rfind(b"/")
        parent = self.nodes[path[:cut] or b"/"]
        if self.pins:
            self._release_pinned(parent)
        if parent.children is None:
            parent.children = {path: None}
        else:
            parent.children[path] = None
        self._touch_directory(parent, len(path) - cut)

    def _unlink(self, path: bytes) -> None:
        cut = path.rfind(b"/")
        parent = self.nodes[path[:cut] or b"/"]
        if self.pins:
            self._release_pinned(parent)
        if parent.children is not None:
            del parent.children[path]
            if not parent.children:
                parent.children = None
        self._touch_directory(parent, cut - len(path))

    def _set_perms(self, path: bytes, node: Node, node_perms: bytes) -> None:
        if node_perms is not node.perms:
            self.accounts.add_node(path, node, -1)
            node.perms = node_perms
            self.accounts.add_node(path, node, 1)

    def _touch_directory(self, parent: Node, more_bytes: int) -> None:
        parent.children_bytes += more_bytes
        parent.listing = None
        if parent.perms is not OWN:
            if len(parent.perms) != 4:
                parent.perms = self.fresh_perms(parent)
            owner = perms.owner_of(parent.perms)
            if owner:
                self.accounts.grow(owner, more_bytes)
        parent.generation = self.generation

    def _release_pinned(self, node: Node) -> None:
        """Gives a node its own children if a transaction looks at the ones it has."""
        if node in self.pins and node.children is not None:
            node.children = dict(node.children)
            del self.pins[node]
