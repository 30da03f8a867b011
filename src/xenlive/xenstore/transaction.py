"""Transactions: a view of the store that becomes true at once, or not at all.

Specification: Xen `docs/misc/xenstore.txt`, "Transactions"; conflicts as in the C daemon. Each
node is copied into the transaction when it is first looked at. A transaction is in conflict if one
of those nodes, or its absence, is no longer what it was then (its generation tells), or if a domain
to which it gives a right has gone.

    first look ─▶ TxNode (value, perms, children as of now) ─▶ changed in here ─▶ log of changes
    commit: all generations as they were? ── no ─▶ EAGAIN
                                          └─ yes ▶ the log is run on the store, then the events

**Invariants.** Until it is committed a transaction changes nothing outside. What it costs depends
on what it touches, not on the size of the store or of a directory it adds to: a
directory's children are pinned, not copied. Since nothing it looked at has changed, the log finds
the store just as the transaction saw it.
"""

from __future__ import annotations

from xenlive.errors import XenstoreError
from xenlive.xenstore import changes
from xenlive.xenstore.accounts import node_size
from xenlive.xenstore.changes import CREATE, PERMS, REMOVE, VALUE
from xenlive.xenstore.paths import parent_of
from xenlive.xenstore.perms import ENTRY_SIZE, all_as_old, owner_of
from xenlive.xenstore.quota import MEMORY, TRANSACTIONS, TX_NODES
from xenlive.xenstore.store import Node, join_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenlive.xenstore.accounts import Account
    from xenlive.xenstore.changes import Change
    from xenlive.xenstore.store import Paths, Store

    Event = tuple[bytes, bool, bytes | None]

_MISSING = -1
_ENTRY_BYTES = 100  # that an entry of the log takes beside its path


class LogEntry:
    """One change of the log: VALUE, PERMS, CREATE or REMOVE.

    A later value or permissions replace those of an earlier entry.
    """

    __slots__ = ("kind", "path", "perms", "value")

    def __init__(self, kind: int, path: bytes, value: bytes = b"", node_perms: bytes = b"") -> None:
        self.kind = kind
        self.path = path
        self.value = value
        self.perms = node_perms

    def change(self) -> Change:
        """The same as a value that stays as it is (`changes`)."""
        kind = self.kind
        if kind == VALUE:
            return (kind, self.path, self.value)
        if kind == CREATE:
            return (kind, self.path, self.value, self.perms)
        return (kind, self.path, self.perms) if kind == PERMS else (kind, self.path)


class TxNode(Node):
    """A node as one transaction sees it; `seen` is the generation outside at the first look."""

    children_bytes: int

    __slots__ = (
        "added",
        "base",
        "base_children",
        "children_bytes",
        "event_below",
        "event_here",
        "exists",
        "listing",
        "old_perms",
        "perms_change",
        "removed",
        "seen",
        "value_change",
    )

    def __init__(self, base: Node | None, store: Store) -> None:
        self.base = base
        if base is None:
            self.value = self.perms = b""
            self.generation = self.seen = _MISSING
            self.children_bytes = 0
            self.exists = False
            self.base_children: Paths | None = None
            self.old_perms: bytes | None = None
        else:
            self.value = base.value
            self.perms = self.old_perms = store.fresh_perms(base)
            self.generation = self.seen = base.generation
            self.children_bytes = base.children_bytes
            self.exists = True
            self.base_children = store.pin_children(base)
        self.listing: bytes | None = None
        self.added: dict[bytes, None] | None = None
        self.removed: set[bytes] | None = None
        self.event_here = False
        self.event_below = False
        self.value_change: LogEntry | None = None
        self.perms_change: LogEntry | None = None

    def paths(self) -> Iterable[bytes]:
        kept: Iterable[bytes] = self.base_children or ()
        if self.removed:
            removed = self.removed
            kept = [path for path in kept if path not in removed]
        return [*kept, *self.added] if self.added else kept

    def list_names(self) -> bytes:
        if self.listing is None:
            base, paths = self.base, self.paths()
            # Mostly nothing has changed: the store has the list, or keeps it for all who ask.
            if base is not None and base.directory is not None and base.directory.paths is paths:
                self.listing = base.list_names()
            else:
                self.listing = join_names(paths)
        return self.listing

    def link(self, path: bytes) -> None:
        """Adds a child, which is not there."""
        if self.added is None:
            self.added = {}
        self.added[path] = None
        self.children_bytes += len(path) - path.rfind(b"/")
        self.listing = None

    def unlink(self, path: bytes) -> None:
        """Takes away a child."""
        if self.added is not None and path in self.added:
            del self.added[path]
        else:
            if self.removed is None:
                self.removed = set()
            self.removed.add(path)
        self.children_bytes -= len(path) - path.rfind(b"/")
        self.listing = None

    def start_over(self, value: bytes, node_perms: bytes) -> None:
        """Makes this the fresh node at a path where there was none."""
        self.exists = True
        self.value = value
        self.perms = node_perms
        self.hide_children()

    def hide_children(self) -> None:
        """Forgets all children."""
        self.added = None
        self.removed = set(self.base_children) if self.base_children else None
        self.children_bytes = 0
        self.listing = None


class Transaction:
    """One open transaction; it has the store's own `find`, `put_…`, `create` and `remove`.

    `log` is what `commit` will do, in order; `nodes` what was looked at; `owner` is the number of
    its connection, `number` its id there. The store's journal hears of all that happens in it.
    """

    __slots__ = ("_account", "_memory", "_store", "failed", "log", "nodes", "number", "owner")

    def __init__(
        self, store: Store, owner: int, number: int, account: Account | None = None
    ) -> None:
        self._store = store
        self._memory = 0
        self._account: Account | None = None
        self.failed = False  # a quota was hit in here: it can't be committed
        self.owner = owner
        self.number = number
        self.log: list[LogEntry] = []
        self.nodes: dict[bytes, TxNode] = {}
        store.generation += 1
        if account is not None:
            self.use(account)

    @classmethod
    def restore(cls, store: Store, nodes: dict[bytes, TxNode], log: list[LogEntry]) -> Transaction:
        """One that was open before: the children of its nodes are pinned in `store` again."""
        generation = store.generation
        restored = cls(store, 0, 0)
        store.generation = generation  # it has started before
        restored.nodes, restored.log = nodes, log
        return restored

    def use(self, account: Account) -> None:
        """Says which domain pays for it, with what it looks at already."""
        self._account = account
        account.add(TRANSACTIONS, 1)
        self._memory = 0
        for path, node in self.nodes.items():
            self._pay(len(path) + node_size(node.perms, len(node.value), node.children_bytes))
        for entry in self.log:
            self._pay(len(entry.path) + _ENTRY_BYTES)

    def fail(self) -> None:
        """Says that this can't be committed any more: a request in here was done in part."""
        self.failed = True
        if self._store.journal is not None:
            self._store.journal((changes.FAIL, self.owner, self.number))

    def has_created(self) -> bool:
        """Whether a node was made in here, as far as is left of it."""
        return any(entry.kind == CREATE for entry in self.log)

    def owned_more(self, domid: int) -> int:
        """How many more nodes a domain will own once this is committed; less than 0 for fewer."""
        more = 0
        for node in self.nodes.values():
            if node.exists and owner_of(node.perms) == domid:
                more += 1
            if node.old_perms is not None and owner_of(node.old_perms) == domid:
                more -= 1
        return more

    def _pay(self, count: int) -> None:
        if self._account is not None:
            self._memory += count
            self._account.add(MEMORY, count)

    def belong_to(self, owner: int, number: int) -> None:
        """Says whose transaction this is, once it has been restored."""
        self.owner = owner
        self.number = number

    def find(self, path: bytes) -> TxNode | None:
        """The node at `path` in this view; from now on it must not change outside."""
        node = self.nodes.get(path)
        if node is None:
            self._make_room(1)
            node = self._look(path)
            if self._store.journal is not None:
                self._store.journal((changes.LOOK, self.owner, self.number, path))
        return node if node.exists else None

    def put_value(self, path: bytes, node: Node, value: bytes) -> None:
        """Changes the value of the node at `path`."""
        seen = self.nodes[path]
        if seen.value_change is None:
            self._make_log_room(path)
        self._pay(len(value) - len(seen.value))
        seen.value = value
        self._touch(seen)
        if seen.value_change is None:
            seen.value_change = LogEntry(VALUE, path)
            self._note(seen.value_change)
        seen.value_change.value = value
        if self._store.journal is not None:
            self._store.journal((changes.TX_VALUE, self.owner, self.number, path, value))

    def put_perms(self, path: bytes, node: Node, node_perms: bytes) -> None:
        """Changes the permissions of the node at `path`."""
        seen = self.nodes[path]
        if seen.perms_change is None:
            self._make_log_room(path)
            seen.perms_change = LogEntry(PERMS, path)
            self._note(seen.perms_change)
        self._touch(seen)
        seen.perms = node_perms
        seen.perms_change.perms = node_perms
        if self._store.journal is not None:
            self._store.journal((changes.TX_PERMS, self.owner, self.number, path, node_perms))

    def create(self, path: bytes, value: bytes, node_perms: bytes) -> Node:
        """Makes the node at `path`, which is not there in this view while its parent is.

        Both have been looked at, so that it needs no room.
        """
        self._make_log_room(path, len(path) + len(value) + len(node_perms))
        node = self._look(path)
        parent = self._look(parent_of(path))
        parent.link(path)
        self._touch(parent)
        self._pay(len(path) + len(value) + len(node_perms))
        self._touch(node)
        node.start_over(value, node_perms)
        node.value_change = LogEntry(CREATE, path, value, node_perms)
        self._note(node.value_change)
        journal = self._store.journal
        if journal is not None:
            journal((changes.TX_CREATE, self.owner, self.number, path, value, node_perms))
        return node

    def remove(self, path: bytes) -> None:
        """Removes the node at `path`, not `/`, and all below it, and notes their events."""
        if self._account is not None:
            self._make_room(self.count_unseen(path))
            self._make_log_room(path)
        parent = self._look(parent_of(path))
        todo = [path]
        while todo:
            each = todo.pop()
            node = self._look(each)
            below = list(node.paths())
            below.reverse()
            todo.extend(below)
            node.exists = False
            node.value_change = node.perms_change = None
            node.hide_children()
            self._touch(node)
            node.event_here = True
            node.event_below |= each == path
        parent.unlink(path)
        self._touch(parent)
        self._note(LogEntry(REMOVE, path))
        if self._store.journal is not None:
            self._store.journal((changes.TX_REMOVE, self.owner, self.number, path))

    def has_room(self, count: int) -> bool:
        """Whether so many nodes more may be looked at, for all that who pays for it has."""
        account = self._account
        return account is None or not account.too_many(TX_NODES, len(self.nodes) + count)

    def count_unseen(self, path: bytes) -> int:
        """How many nodes have not been looked at, of the one above `path`, it and all below it.

        Or so many that there is no room for them: it stops counting there.
        """
        count = int(parent_of(path) not in self.nodes)
        todo = [path]
        while todo:
            each = todo.pop()
            node: Node | None = self.nodes.get(each)
            if node is None:
                count += 1
                if not self.has_room(count):
                    break
                node = self._store.find(each)
            if node is not None:
                todo.extend(node.paths())
        return count

    def note_event(self, path: bytes, *, below: bool) -> None:
        """Says that a change at `path` is to be told when this is committed.

        `below` also tells those who watch a path above it.
        """
        node = self.nodes[path]
        if node.event_here and (node.event_below or not below):
            return
        node.event_here = True
        node.event_below |= below
        if self._store.journal is not None:
            self._store.journal((changes.TX_EVENT, self.owner, self.number, int(below), path))

    def in_conflict(self) -> bool:
        """Whether something this transaction looked at, or a domain it names, has changed since."""
        find = self._store.find
        for path, node in self.nodes.items():
            now = find(path)
            if (_MISSING if now is None else now.generation) != node.seen:
                return True
        # Nor may a right fall to nobody, or to a domain that got its id since it was given. (Who
        # is to own what was made here, owns what is above it, or asks.)
        domains = self._store.domains
        for path, entry in {e.path: e for e in self.log if e.kind in (PERMS, CREATE)}.items():
            node = self.nodes[path]
            given = entry.perms if entry.kind == PERMS else entry.perms[ENTRY_SIZE:]
            if node.exists and (
                node.perms != entry.perms or not all_as_old(given, node.generation, domains)
            ):
                return True
        return False

    def commit(self) -> list[Event]:
        """Changes the store; only if not `in_conflict`. Ends the transaction (see `State.commit`).

        Returns the events in order: path, whether only watches right on it are meant, and the
        permissions the node had before, if it was there.
        """
        self.end()
        store = self._store
        for change in self.log:
            if change.kind == CREATE:
                store.create(change.path, change.value, change.perms)
            elif change.kind == REMOVE:
                store.remove(change.path)
            else:
                node = store.find(change.path)
                if node is None:
                    raise RuntimeError(f"the log of a transaction misses {change.path!r}")
                if change.kind == VALUE:
                    store.put_value(change.path, node, change.value)
                else:
                    store.put_perms(change.path, node, change.perms)
        return [
            (path, not node.event_below, node.old_perms)
            for path, node in self.nodes.items()
            if node.event_here and (node.exists or node.old_perms is not None)
        ]

    def end(self) -> None:
        """Lets go of what is pinned. Each transaction is ended exactly once."""
        account = self._account
        if account is not None:
            self._account = None
            account.add(TRANSACTIONS, -1)
            account.add(MEMORY, -self._memory)
        for node in self.nodes.values():
            if node.base is not None:
                self._store.unpin_children(node.base, node.base_children)

    def _make_room(self, count: int) -> None:
        if not self.has_room(count):
            self.fail()
            raise XenstoreError("ENOSPC")

    def _make_log_room(self, path: bytes, more_bytes: int = 0) -> None:
        """Refuses another entry while there is some memory left: to end this, a guest needs it."""
        account = self._account
        if account is not None:
            most = account.quotas["memory"]
            if most and account.used[MEMORY] + len(path) + more_bytes + 2 * _ENTRY_BYTES >= most:
                self.fail()
                raise XenstoreError("ENOMEM")

    def _look(self, path: bytes) -> TxNode:
        node = self.nodes.get(path)
        if node is None:
            node = self.nodes[path] = TxNode(self._store.find(path), self._store)
            if self._account is not None:
                self._pay(len(path) + node_size(node.perms, len(node.value), node.children_bytes))
        return node

    def _note(self, entry: LogEntry) -> None:
        """Adds to the log. Whoever makes it long with ever the same nodes pays for that, too."""
        self.log.append(entry)
        self._pay(len(entry.path) + _ENTRY_BYTES)

    def _touch(self, node: TxNode) -> None:
        """Makes the node younger; what its permissions mean by then stays as old as it was."""
        if len(node.perms) > ENTRY_SIZE:
            node.perms = self._store.fresh_perms(node)
        self._store.generation += 1
        node.generation = self._store.generation
