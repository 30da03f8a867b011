"""The store: nodes by full path, and the one narrow place through which each of them changes.

Specification: Xen `docs/misc/xenstore.txt`. One dict maps the full path to the node. A node knows
the full paths of its children in the order they were made, if it has any (`Directory`): a short
list, or an ordered dict without values, so that what it costs to gain or lose one does not depend
on how many there are; and each path is one object, held twice.

    nodes = { b"/": Node(directory [b"/tool"]), b"/tool": Node(directory [b"/tool/xenstored"]), … }

Each change, whoever asked for it, is one of `put_value`, `put_perms`, `create` and `remove` (a
transaction keeps its own list of these four and runs it when it is committed) or `add_domain`;
`journal`, if there is one, hears of each. The end of a domain is `State.forget_domain`.

**Invariants.** The parent of each node exists and lists it. A node comes after its parent in
`nodes` (it was made later), so the dict's order is the order of a state stream. `generation`
counts changes; a node has the number of its last one, and a node that gains or loses a child has
changed. A new node has `birth`, the number when last something was removed or a domain came: none
that was at its path before had it, no domain is younger, and many nodes share one int, which is a
tenth of what a node takes. The nodes of a loaded store share its first one, which is larger than
any of an earlier kernel (`XenstoreServer.fresh_generation`). The paths of a directory are replaced,
not changed, while a transaction has them pinned.

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

    Paths = list[bytes] | dict[bytes, None]


#: A directory of so many is a list: a fifth of the memory, and a path is soon found in it.
SMALL_DIRECTORY = 256


class Directory:
    """The children of a node that has some: `paths`, oldest first.

    `names_bytes` is what their names, each with a NUL, take; `listing` is those bytes, DIRECTORY's
    reply, once somebody has asked for it and until a child comes or goes.
    """

    __slots__ = ("listing", "names_bytes", "paths")

    def __init__(self, paths: Paths, names_bytes: int) -> None:
        self.paths = paths
        self.names_bytes = names_bytes
        self.listing: bytes | None = None

    def link(self, path: bytes, name_bytes: int) -> None:
        """Adds a child whose name and its NUL are so many bytes."""
        self.names_bytes += name_bytes
        self.listing = None
        paths = self.paths
        if isinstance(paths, dict):
            paths[path] = None
        elif len(paths) < SMALL_DIRECTORY:
            paths.append(path)
        else:
            self.paths = dict.fromkeys(paths)
            self.paths[path] = None

    def unlink(self, path: bytes, name_bytes: int) -> None:
        """Takes one away."""
        self.names_bytes -= name_bytes
        self.listing = None
        if isinstance(self.paths, dict):
            del self.paths[path]
        else:
            self.paths.remove(path)


class Node:
    """Value, permissions (see `perms`), generation, and what is below, if anything."""

    __slots__ = ("directory", "generation", "perms", "value")

    def __init__(self, value: bytes, node_perms: bytes, generation: int) -> None:
        self.value = value
        self.perms = node_perms
        self.generation = generation
        self.directory: Directory | None = None

    @property
    def children_bytes(self) -> int:
        """What the children's names take, each with a NUL."""
        return 0 if self.directory is None else self.directory.names_bytes

    def paths(self) -> Iterable[bytes]:
        """The children's paths, oldest first."""
        return () if self.directory is None else self.directory.paths

    def list_names(self) -> bytes:
        """The children's names, each with a NUL, as DIRECTORY replies them."""
        directory = self.directory
        if directory is None:
            return b""
        if directory.listing is None:
            directory.listing = join_names(directory.paths)
        return directory.listing

    def add_child(self, path: bytes) -> None:
        """Adds a child that is not there; what else changes with it is the caller's."""
        name_bytes = len(path) - path.rfind(b"/")
        if self.directory is None:
            self.directory = Directory([path], name_bytes)
        else:
            self.directory.link(path, name_bytes)


def join_names(paths: Iterable[bytes]) -> bytes:
    """The last names of paths that differ in nothing else, each with a NUL."""
    paths = list(paths)
    if not paths:
        return b""
    cut = paths[0].rfind(b"/") + 1
    return b"\0".join([path[cut:] for path in paths]) + b"\0"


class Store:
    """All nodes, the special ones, and which domains exist since when."""

    __slots__ = (
        "accounts",
        "birth",
        "domains",
        "generation",
        "journal",
        "nodes",
        "pins",
        "special",
    )

    def __init__(self, generation: int = 0) -> None:
        self.journal: Journal | None = None
        self.accounts = Accounts(XENSTORE_FEATURES)
        self.generation = self.birth = generation
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
        node = self.nodes[path] = Node(value, node_perms, self.birth)
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
        self.birth = self.generation
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
            directory = self.nodes[each].directory
            if directory is not None:
                todo.extend(directory.paths)
        # A node came before its children and its last child first: backwards it is the C
        # daemon's order, first child first and a node after all below it.
        found.reverse()
        return found

    def add_domain(self, domid: int) -> None:
        """Says that a domain exists from now on: no permission older than this is meant for it."""
        if domid not in self.domains:
            self.generation += 1
            self.domains[domid] = self.birth = self.generation
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

    def pin_children(self, node: Node) -> Paths | None:
        """The paths of the children as they are now, which will not change until unpinned."""
        if node.directory is None:
            return None
        self.pins[node] = self.pins.get(node, 0) + 1
        return node.directory.paths

    def unpin_children(self, node: Node, paths: Paths | None) -> None:
        """Gives back what `pin_children` gave; what was replaced since is pinned no more."""
        if paths is None or node.directory is None or node.directory.paths is not paths:
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
            if path != b"/" and (parent is None or path not in parent.paths()):
                problems.append(f"{path.decode()} is not in its parent")
            size = 0
            for child in node.paths():
                size += len(child) - child.rfind(b"/")
                if child not in self.nodes:
                    problems.append(f"{child.decode()} is not there")
            if size != node.children_bytes:
                problems.append(f"{path.decode()} has {size} bytes of names")
        return problems

    def _link(self, path: bytes) -> None:
        parent = self.nodes[path[: path.rfind(b"/")] or b"/"]
        if self.pins:
            self._release_pinned(parent)
        parent.add_child(path)
        self._touch_directory(parent, len(path) - path.rfind(b"/"))

    def _unlink(self, path: bytes) -> None:
        cut = path.rfind(b"/")
        parent = self.nodes[path[:cut] or b"/"]
        if self.pins:
            self._release_pinned(parent)
        directory = parent.directory
        if directory is not None:
            directory.unlink(path, len(path) - cut)
            if not directory.paths:
                parent.directory = None
        self._touch_directory(parent, cut - len(path))

    def _set_perms(self, path: bytes, node: Node, node_perms: bytes) -> None:
        if node_perms is not node.perms:
            self.accounts.add_node(path, node, -1)
            node.perms = node_perms
            self.accounts.add_node(path, node, 1)

    def _touch_directory(self, parent: Node, more_bytes: int) -> None:
        if parent.perms is not OWN:
            if len(parent.perms) != 4:
                parent.perms = self.fresh_perms(parent)
            owner = perms.owner_of(parent.perms)
            if owner:
                self.accounts.grow(owner, more_bytes)
        parent.generation = self.generation

    def _release_pinned(self, node: Node) -> None:
        """Gives a node paths of its own if a transaction looks at the ones it has."""
        if node in self.pins and node.directory is not None:
            node.directory.paths = node.directory.paths.copy()
            del self.pins[node]
