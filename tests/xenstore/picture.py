"""All that a server knows, as plain values to compare: nothing that counts may be left out.

**Invariants.** Orders that a client can notice are kept: of nodes, children, watches, changes in a
transaction. Bytes on their way, caches, the owners' own fields (descriptors, links) and what only
people look at (the most that a domain ever used) are left out.
"""

from __future__ import annotations

from xenlive.xenstore.accounts import Account
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.quota import ITEMS
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.state import State
from xenlive.xenstore.store import Node, Store
from xenlive.xenstore.transaction import Transaction, TxNode
from xenlive.xenstore.watches import Watch


def picture(server: State) -> dict[str, object]:
    """The state of a server."""
    store = server.store
    where = {id(node): path for path, node in store.nodes.items()}
    return {
        "generation": store.generation,
        "domains": list(store.domains.items()),
        "nodes": [(path, *_node(node)) for path, node in store.nodes.items()],
        "special": [(path, *_node(node)) for path, node in store.special.items()],
        "pins": sorted((where.get(id(node), b""), count) for node, count in store.pins.items()),
        "watches": {
            path: [_watch(watch) for watch in at] for path, at in server.watches.by_path.items()
        },
        "watch count": (server.watches.count, server.watches.n_set),
        "connections": [_connection(store, conn) for conn in server.connections],
        "numbers": ({n: c.domid for n, c in server.by_number.items()}, server.next_number),
        "introduced": sorted(server.introduced),
        "rings": [(domid, conn.number) for domid, conn in server.rings.items()],
        "unique ids": dict(server.unique_ids),
        "quotas": dict(server.quotas.values),
        "accounts": {
            domid: (account.features, dict(account.quotas), _used(account))
            for domid, account in store.accounts.by_domid.items()
        },
    }


def differences(one: State, other: State) -> list[tuple[str, object, object]]:
    """What is different in two servers: its name, and what each has."""
    mine, theirs = picture(one), picture(other)
    return [(name, mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]]


def idle(server: XenstoreServer) -> None:
    """Forgets all bytes on their way, so that state streams can be compared; and the maxima, as
    they were part of those."""
    for conn in server.connections:
        conn.drop_bytes()
        conn.events.clear()
    accounts = server.store.accounts
    for most in (accounts.most, *[account.most for account in accounts.by_domid.values()]):
        most[:] = [0] * len(most)


def _used(account: Account) -> dict[str, int]:
    used = {name: account.used[item] for item, (name, _) in enumerate(ITEMS)}
    del used["outstanding"]  # of answers on their way
    return used


def _node(node: Node) -> tuple[object, ...]:
    return node.value, node.perms, node.generation, list(node.paths()), node.children_bytes


def _watch(watch: Watch) -> tuple[object, ...]:
    return watch.conn.number, watch.path, watch.token, watch.depth, watch.prefix, watch.order


def _connection(store: Store, conn: Connection) -> tuple[object, ...]:
    ring = conn.ring
    return (
        (conn.number, conn.domid, conn.privileged, conn.home, conn.target),
        ring and (ring.evtchn, ring.unique_id, ring.is_shut_down),
        [_watch(watch) for watch in conn.watches.values()],
        (conn.next_transaction, conn.started_s),
        {number: _transaction(store, each) for number, each in conn.transactions.items()},
    )


def _transaction(store: Store, transaction: Transaction) -> tuple[object, ...]:
    places = {id(entry): index for index, entry in enumerate(transaction.log)}
    return (
        (transaction.owner, transaction.number, transaction.failed, transaction.in_conflict()),
        [(entry.kind, entry.path, entry.value, entry.perms) for entry in transaction.log],
        [(path, *_tx_node(store, path, n, places)) for path, n in transaction.nodes.items()],
    )


def _tx_node(store: Store, path: bytes, node: TxNode, places: dict[int, int]) -> tuple[object, ...]:
    entry = node.value_change
    now = store.find(path)
    return (
        (node.seen, node.generation, node.exists, node.value, node.perms, node.old_perms),
        (list(node.paths()), node.children_bytes),
        None if node.base_children is None else list(node.base_children),
        None if node.added is None else list(node.added),
        None if node.removed is None else sorted(node.removed),
        (node.event_here, node.event_below),
        # Which entry of its log a later value goes into, and whether it looks at the node of now.
        None if entry is None else places.get(id(entry)),
        (node.base is not None, node.base is now),
    )
