"""The form of a world's Xenstore: nodes, connections, watches and open transactions, exactly.

A migration stream (`xenstore/stream.py`) would not do: it leaves out generations, transactions and
the order in which watches of different clients were set, all of which a guest can see. What guests
may use up, and did, is in `snapshot_accounts`.

**Invariants.** A store that was read is sound: each node after its parent, each watch of one of its
connections, each transaction one that can be committed. Nothing of the old store is changed before
all of the new one was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenlive.abi.xs_wire import XENSTORE_ABS_PATH_MAX, XENSTORE_PAYLOAD_MAX, XSD_SOCKMSG
from xenlive.errors import ConfigError, XenstoreError
from xenlive.machine.emulated.backends.xenstore import StoreRing, StoreService
from xenlive.machine.emulated.lens.snapshot_accounts import (
    ACCOUNTS,
    accounts_fields,
    fill_accounts,
    fill_log,
)
from xenlive.machine.emulated.lens.snapshot_forms import (
    Choice,
    Data,
    Fields,
    Flag,
    Form,
    Listed,
    Maybe,
    Place,
    Row,
    Seconds,
    Table,
    Whole,
)
from xenlive.xenstore import perms
from xenlive.xenstore.changes import CREATE, PERMS, REMOVE
from xenlive.xenstore.paths import canonical, parent_of
from xenlive.xenstore.store import Node, Store
from xenlive.xenstore.transaction import LogEntry, Transaction, TxNode
from xenlive.xenstore.watches import Watch, Watches

if TYPE_CHECKING:
    from xenlive.machine.emulated.world import World
    from xenlive.xenstore.connection import Connection

_MANY = 1 << 20
_COUNT = Whole(0, (1 << 62) - 1)
_DOMID, _U32 = Whole(0, 0xFFFF), Whole(0, (1 << 32) - 1)
_PATH, _VALUE = Data(XENSTORE_ABS_PATH_MAX), Data(XENSTORE_PAYLOAD_MAX)
_MISSING = Whole(-1, (1 << 62) - 1)


class Perms(Form):
    """A node's permissions."""

    _data = Data(4096)

    def save(self, value: Any) -> Any:
        return self._data.save(value)

    def load(self, plain: Any, at: Place) -> Any:
        raw = self._data.load(plain, at)
        if not perms.valid_stream_entry(raw):
            raise at.fail("permissions", raw)
        return perms.intern(raw)


_NODE = Row(_PATH, _VALUE, Perms(), _COUNT)
_CHANGE = Row(Whole(0, REMOVE), _PATH, _VALUE, Maybe(Perms()))
_TX_NODE = Fields(
    seen=_MISSING,
    generation=_MISSING,
    exists=Flag(),
    value=_VALUE,
    perms=Maybe(Perms()),
    old_perms=Maybe(Perms()),
    children_bytes=_COUNT,
    is_shared=Flag(),
    base_children=Maybe(Listed(_PATH, _MANY)),
    added=Maybe(Listed(_PATH, _MANY)),
    removed=Maybe(Listed(_PATH, _MANY, set, is_ordered=False)),
    event_here=Flag(),
    event_below=Flag(),
    change=Maybe(Whole(0, _MANY)),
    perms_change=Maybe(Whole(0, _MANY)),
)
_TRANSACTION = Fields(
    log=Listed(_CHANGE, _MANY), nodes=Table(_PATH, _TX_NODE, _MANY), failed=Flag()
)
_CONNECTION = Fields(
    who=Row(Choice("ring", "client"), _DOMID),
    target=Whole(-1, 0xFFFF),
    out=Listed(Data(XSD_SOCKMSG.size + XENSTORE_PAYLOAD_MAX), _MANY, list),
    head=Data(64 << 20),
    head_sent=_COUNT,
    unparsed=Data(1 << 20),
    closing=Flag(),
    stalled=Flag(),
    events=Listed(Data(XENSTORE_PAYLOAD_MAX), _MANY, set, is_ordered=False),
    noted=Flag(),
    next_transaction=_U32,
    started_s=Seconds(),
    watches=Listed(Row(_PATH, _VALUE, Maybe(_U32), _COUNT, _COUNT), _MANY),
    transactions=Table(_U32, _TRANSACTION, 64),
)
_STORE = Fields(
    generation=_COUNT,
    birth=_COUNT,
    domains=Table(_DOMID, _COUNT, 1 << 16),
    introduced=Listed(_DOMID, 1 << 16, set, is_ordered=False),
    nodes=Listed(_NODE, _MANY),
    special=Listed(_NODE, 1024),
    watches_set=_COUNT,
    connections=Listed(_CONNECTION, 4096),
    accounts=ACCOUNTS,
)


# ---- saving --------------------------------------------------------------------------------------


def save_store(world: World) -> Any:
    """The store of a world in plain form."""
    server = _service(world).server
    store = server.store
    names = _names(world)
    return _STORE.save(
        {
            "generation": store.generation,
            "birth": store.birth,
            "domains": store.domains,
            "introduced": server.introduced,
            "nodes": _node_rows(store, store.nodes),
            "special": _node_rows(store, store.special),
            "watches_set": server.watches.n_set,
            "connections": [
                _connection_fields(store, conn, names[conn])
                for conn in server.connections
                if conn in names
            ],
            "accounts": accounts_fields(store.accounts, server.log),
        }
    )


def _service(world: World) -> StoreService:
    """The store of a world, if it is in this process; ConfigError if it is another's."""
    if not isinstance(world.store, StoreService):
        raise ConfigError("snapshot", 0, "Xenstore is in another process, and can't be kept")
    return world.store


def _names(world: World) -> dict[Connection, tuple[str, int]]:
    rings = ((guest.store, guest.domain.domid) for guest in world.guests)
    names = {r.connection: ("ring", domid) for r, domid in rings if isinstance(r, StoreRing)}
    clients = enumerate(_service(world).clients())
    return names | {client.connection: ("client", index) for index, client in clients}


def _node_rows(store: Store, nodes: dict[bytes, Node]) -> list[tuple[bytes, bytes, bytes, int]]:
    return [(path, n.value, store.fresh_perms(n), n.generation) for path, n in nodes.items()]


def _connection_fields(store: Store, conn: Connection, who: tuple[str, int]) -> dict[str, Any]:
    return {
        "who": who,
        "target": conn.target,
        "out": conn.out,
        "head": conn.head,
        "head_sent": conn.head_sent,
        "unparsed": conn.unparsed,
        "closing": conn.closing,
        "stalled": conn.stalled,
        "events": conn.events,
        "noted": conn.noted,
        "next_transaction": conn.next_transaction,
        "started_s": conn.started_s,
        "watches": [(w.path, w.token, w.depth, w.prefix, w.order) for w in conn.watches.values()],
        "transactions": {
            number: _transaction_fields(store, each) for number, each in conn.transactions.items()
        },
    }


def _transaction_fields(store: Store, transaction: Transaction) -> dict[str, Any]:
    log = transaction.log
    places = {id(change): index for index, change in enumerate(log)}
    nodes = {}
    for path, node in transaction.nodes.items():
        now = store.find(path)
        children = node.base_children
        is_shared = children is not None and now is not None and now.paths() is children
        nodes[path] = {
            "seen": node.seen,
            "generation": node.generation,
            "exists": node.exists,
            "value": node.value,
            "perms": node.perms or None,
            "old_perms": node.old_perms,
            "children_bytes": node.children_bytes,
            "is_shared": is_shared,
            "base_children": None if is_shared or children is None else list(children),
            "added": None if node.added is None else list(node.added),
            "removed": node.removed,
            "event_here": node.event_here,
            "event_below": node.event_below,
            "change": None if node.value_change is None else places.get(id(node.value_change)),
            "perms_change": None
            if node.perms_change is None
            else places.get(id(node.perms_change)),
        }
    changed = [(c.kind, c.path, c.value, c.perms or None) for c in log]
    return {"log": changed, "nodes": nodes, "failed": transaction.failed}


# ---- restoring -----------------------------------------------------------------------------------


class LoadedStore:
    """A store that was read and checked; `put_into` makes it a world's."""

    def __init__(self, plain: Any, domids: set[int], at: Place) -> None:
        self._fields: dict[str, Any] = _STORE.load(plain, at)
        self._at = at
        self.store = Store(self._fields["generation"])
        self.store.domains = self._fields["domains"]
        birth = self.store.birth = self._fields["birth"]
        if not max(self.store.domains.values(), default=0) <= birth <= self.store.generation:
            raise at.down("birth").fail("a generation since the last domain came", birth)
        self._load_nodes()
        self.transactions = [
            {n: self._transaction(f, at.down(f"connections.{i}.transactions.{n}")) for n, f in all_}
            for i, c in enumerate(self._fields["connections"])
            for all_ in [c["transactions"].items()]
        ]
        self._validate_connections(domids)
        self._quotas = fill_accounts(self.store.accounts, self._fields["accounts"])

    def _load_nodes(self) -> None:
        store, at = self.store, self._at.down("nodes")
        rows = self._fields["nodes"]
        if not rows or rows[0][0] != b"/":
            raise at.fail("a list of nodes with the root first", len(rows))
        store.nodes.clear()
        for index, (path, value, node_perms, generation) in enumerate(rows):
            parent = store.nodes.get(parent_of(path)) if index else None
            if index and (parent is None or path in store.nodes or not _is_path(path)):
                raise at.down(index).fail("a path below one before it", path)
            store.nodes[path] = Node(value, node_perms, generation)
            if parent is not None:
                parent.add_child(path)
        for path, value, node_perms, generation in self._fields["special"]:
            if path[:1] != b"@":
                raise self._at.down("special").fail("a special node", path)
            store.special[path] = Node(value, node_perms, generation)
        store.populate_special()

    def _transaction(self, fields: dict[str, Any], at: Place) -> Transaction:
        log = [LogEntry(k, p, v, node_perms or b"") for k, p, v, node_perms in fields["log"]]
        nodes = {
            path: self._tx_node(path, each, log, at.down(path))
            for path, each in fields["nodes"].items()
        }
        made = Transaction.restore(self.store, nodes, log)
        made.failed = fields["failed"]
        _validate_log(made, at)
        return made

    def _tx_node(
        self, path: bytes, fields: dict[str, Any], log: list[LogEntry], at: Place
    ) -> TxNode:
        node: TxNode = TxNode.__new__(TxNode)
        node.seen, node.generation = fields["seen"], fields["generation"]
        node.exists, node.value = fields["exists"], fields["value"]
        node.perms, node.old_perms = fields["perms"] or b"", fields["old_perms"]
        if (node.exists and not node.perms) or (node.seen >= 0 and node.old_perms is None):
            raise at.fail("a node with permissions", node.perms)
        node.children_bytes, node.listing = fields["children_bytes"], None
        now = self.store.find(path) if fields["is_shared"] else None
        if fields["is_shared"] and (now is None or now.directory is None):
            raise at.fail("a node with children", path)
        node.base = now
        if now is not None:
            node.base_children = self.store.pin_children(now)
        else:
            listed = fields["base_children"]
            node.base_children = None if listed is None else dict.fromkeys(listed)
        node.added = None if fields["added"] is None else dict.fromkeys(fields["added"])
        node.removed = fields["removed"]
        node.event_here, node.event_below = fields["event_here"], fields["event_below"]
        node.value_change = _entry(log, path, fields["change"], at)
        node.perms_change = _entry(log, path, fields["perms_change"], at)
        return node

    def _validate_connections(self, domids: set[int]) -> None:
        seen = set()
        for index, fields in enumerate(self._fields["connections"]):
            at = self._at.down(f"connections.{index}")
            kind, number = who = fields["who"]
            if who in seen or (kind == "ring" and number not in domids):
                raise at.fail("a connection of one of the guests", who)
            seen.add(who)
            if fields["head_sent"] > len(fields["head"]):
                raise at.fail("a part of what is being sent", fields["head_sent"])
            keys = [(path, token) for path, token, *_ in fields["watches"]]
            if len(set(keys)) != len(keys):
                raise at.fail("a list of different watches", len(keys))
            for path, _, _, prefix, _ in fields["watches"]:
                if prefix > len(path) or not (_is_path(path) or path[:1] == b"@"):
                    raise at.fail("a watch", path)
            for message in fields["out"]:
                if len(message) < XSD_SOCKMSG.size:
                    raise at.fail("a message", message)
        missing = domids - {number for kind, number in seen if kind == "ring"}
        if missing:
            raise self._at.fail("a store that knows all guests", sorted(missing))

    def put_into(self, world: World) -> None:
        """Makes it the store of `world`, whose guests are those of the snapshot."""
        server = _service(world).server
        by_name = {name: conn for conn, name in _names(world).items()}
        handlers = {client.connection: client.tokens() for client in _service(world).clients()}
        made = Watches()
        watches: list[tuple[int, Watch]] = []
        order = []
        for fields, transactions in zip(
            self._fields["connections"], self.transactions, strict=True
        ):
            conn = by_name.pop(fields["who"], None)
            if conn is None:
                continue  # of a part of this program that is not there now
            order.append(conn)
            _fill(conn, fields, transactions)
            for path, token, depth, prefix, place in fields["watches"]:
                if conn not in handlers or token in handlers[conn]:
                    watches.append((place, Watch(conn, path, token, depth, prefix)))
        for conn in by_name.values():
            conn.watches, conn.transactions = {}, {}
        for place, watch in sorted(watches, key=lambda pair: pair[0]):
            made.add(watch, place)
        made.n_set = max(self._fields["watches_set"], made.n_set)
        connections = [*order, *by_name.values()]
        server.adopt(self.store, made, connections, self._fields["introduced"], self._quotas)
        fill_log(server.log, self._fields["accounts"])
        server.follow_log()


def _fill(conn: Connection, fields: dict[str, Any], transactions: dict[int, Transaction]) -> None:
    for name in ("target", "unparsed", "closing", "stalled"):
        setattr(conn, name, fields[name])
    out, events = list(fields["out"]), set(fields["events"])
    conn.restore_output(out, events, fields["noted"], fields["head"], fields["head_sent"])
    conn.next_transaction, conn.started_s = fields["next_transaction"], fields["started_s"]
    conn.transactions, conn.watches = transactions, {}
    conn.held = False


def _is_path(path: bytes) -> bool:
    try:
        return canonical(b"", path, False, XENSTORE_ABS_PATH_MAX) == path
    except XenstoreError:
        return False


def _entry(log: list[LogEntry], path: bytes, index: int | None, at: Place) -> LogEntry | None:
    """The entry of a log that a node goes on changing."""
    if index is None:
        return None
    if index >= len(log) or log[index].path != path:
        raise at.fail("a change in its log", index)
    return log[index]


def _validate_log(transaction: Transaction, at: Place) -> None:
    """Each change is of a node that is there then: the log can be run."""
    nodes = transaction.nodes
    there = {path for path, node in nodes.items() if node.seen >= 0}
    for index, change in enumerate(transaction.log):
        path = change.path
        if change.kind == CREATE:
            is_sound = path in nodes and path not in there and parent_of(path) in there
            is_sound = is_sound and _is_path(path) and bool(change.perms)
            there.add(path)
        else:
            is_sound = path in there and (change.kind != REMOVE or path not in (b"/", b""))
            is_sound = is_sound and (change.kind != REMOVE or path[:1] == b"/")
            if change.kind == REMOVE:
                below = path + b"/"
                there = {p for p in there if p != path and not p.startswith(below)}
        if not is_sound or (change.kind == PERMS and not change.perms):
            raise at.down(f"log.{index}").fail("a change that can be made", path)
