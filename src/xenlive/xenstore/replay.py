"""Doing changes again: what a journal heard, on a server that is as the first one was before.

    server A ──journal──▶ (KIND, …) (KIND, …) …  ──replay──▶ server B, in the state of A

A is a new server, or has loaded a state stream; B is made the same way, with the same clock where
it is asked (`XenstoreServer.fresh_generation`). Bytes on their way are no part of it, and replaying
sends no events: whoever was to get them got them, or is told by other means to look again.

**Invariants.** After each change B is what A was after it, whichever was the last: nodes with their
generations, watches with their order, open transactions with all they looked at. A change that does
not fit the server (a node that is not there, a transaction nobody started) is an ImageError and
changes nothing. A journal of B hears the same changes as the one of A.
"""

from __future__ import annotations

from xenlive.errors import ImageError, XenstoreError
from xenlive.xenstore import changes
from xenlive.xenstore.paths import parent_of
from xenlive.xenstore.transaction import LogEntry
from xenlive.xenstore.watches import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from xenlive.xenstore.changes import Change
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.state import State
    from xenlive.xenstore.store import Node, Store
    from xenlive.xenstore.transaction import Transaction, TxNode

_DOM0 = 0


def replay(server: State, change: Change) -> None:
    """Does one change again; its fields are in their bounds, as those from `decode` are.

    ImageError `change-does-not-fit` if it can't be one of this server's; nothing was changed then.
    """
    try:
        _DO[change[0]](server, *change[1:])
    except XenstoreError as error:
        raise _unfit("more than a quota allows", error.name) from None


def _unfit(what: str, value: object) -> ImageError:
    return ImageError("change-does-not-fit", what, None, value)


# -- nodes -----------------------------------------------------------------------------------------


def _value(server: State, path: bytes, value: bytes) -> None:
    server.store.put_value(path, _node(server.store.nodes.get(path), path), value)


def _perms(server: State, path: bytes, node_perms: bytes) -> None:
    server.store.put_perms(path, _node(server.store.find(path), path), node_perms)


def _create(server: State, path: bytes, value: bytes, node_perms: bytes) -> None:
    _validate_list(server.store, ((changes.CREATE, path, value, node_perms),))
    server.store.create(path, value, node_perms)


def _remove(server: State, path: bytes) -> None:
    _validate_list(server.store, ((changes.REMOVE, path),))
    server.store.remove(path)


def _node(node: Node | None, path: bytes) -> Node:
    if node is None:
        raise _unfit("no such node", path)
    return node


def _validate_list(store: Store, listed: tuple[Change, ...]) -> None:
    """Each of these changes finds the node that it is of, after those before it."""
    made: dict[bytes, None] = {}
    gone: set[bytes] = set()

    def is_there(path: bytes) -> bool:
        if path in made:
            return True
        if path not in store.nodes:
            return False
        above = path
        while above != b"/":
            if above in gone:
                return False
            above = parent_of(above)
        return True

    for change in listed:
        kind, path = change[0], change[1]
        if kind == changes.CREATE:
            if path[:1] != b"/" or is_there(path) or not is_there(parent_of(path)):
                raise _unfit("a node that can't be made", path)
            made[path] = None
        elif kind == changes.PERMS and path in store.special:
            continue
        elif not is_there(path) or (kind == changes.REMOVE and path == b"/"):
            raise _unfit("a change of a node that can't be changed", path)
        elif kind == changes.REMOVE:
            gone.add(path)
            below = path + b"/"
            for each in [each for each in made if each == path or each.startswith(below)]:
                del made[each]


# -- connections and domains -----------------------------------------------------------------------


def _connect(server: State, number: int, domid: int) -> None:
    if number < server.next_number:
        raise _unfit("the number of an earlier connection", number)
    _known_domain(server, domid)
    server.connect_as(number, domid)


def _disconnect(server: State, number: int) -> None:
    conn = _connection(server, number)
    if conn.watches or conn.transactions:
        raise _unfit("a connection that still has watches or transactions", number)
    server.disconnect(conn)


def _ring(server: State, number: int, evtchn: int, is_known: int, unique_id: int) -> None:
    if unique_id and not is_known:
        raise _unfit("a unique id that is not known", unique_id)
    conn = _connection(server, number)
    others = [each for each in server.connections if each.ring is not None and each is not conn]
    if any(each.domid == conn.domid for each in others):
        raise _unfit("a second ring of a domain", number)
    server.set_ring(conn, evtchn, unique_id if is_known else None)


def _target(server: State, number: int, target: int) -> None:
    server.set_target(_connection(server, number), target)


def _shut_down(server: State, number: int, is_shut_down: int) -> None:
    conn = _connection(server, number)
    if conn.ring is None:
        raise _unfit("a connection without a ring", number)
    server.set_shut_down(conn, bool(is_shut_down))


def _connection(server: State, number: int) -> Connection:
    conn = server.by_number.get(number)
    if conn is None:
        raise _unfit("no such connection", number)
    return conn


def _known(server: State, domid: int) -> None:
    if domid in server.store.domains:
        raise _unfit("a domain that is known already", domid)
    server.store.add_domain(domid)


def _gone(server: State, domid: int) -> None:
    if domid == _DOM0:
        raise _unfit("domain 0 does not go", domid)
    if any(conn.domid == domid for conn in server.connections):
        raise _unfit("a domain that is still connected", domid)
    if any(path != b"/" for path in server.store.owned_by(domid)):
        raise _unfit("a domain that still has nodes", domid)
    server.forget_domain(domid)


def _introduced(server: State, domid: int, number: int) -> None:
    conn = _connection(server, number)
    if conn.domid != domid or server.rings.get(domid, conn) is not conn:
        raise _unfit("the connection of another domain, or a second one", number)
    server.introduce(conn)


def _released(server: State, domid: int) -> None:
    server.release(domid)


def _features(server: State, domid: int, features: int) -> None:
    _known_domain(server, domid)
    server.set_features(domid, features)


def _unique_id(server: State, domid: int, unique_id: int) -> None:
    _known_domain(server, domid)
    if domid in server.rings:
        raise _unfit("a domain whose unique id its ring has", domid)
    server.identify(domid, unique_id)


def _quota(server: State, domid: int, value: int, name: bytes) -> None:
    if domid != changes.ALL_DOMAINS:
        _known_domain(server, domid)
    server.set_quota(name.decode("ascii"), value, domid)


def _known_domain(server: State, domid: int) -> None:
    if domid not in server.store.domains:
        raise _unfit("a domain that is not known", domid)


# -- watches ---------------------------------------------------------------------------------------


def _watch(server: State, number: int, depth: int, prefix: int, path: bytes, token: bytes) -> None:
    conn = _connection(server, number)
    if (path, token) in conn.watches:
        raise _unfit("a watch that is set already", path)
    home = conn.home + b"/"
    if prefix and (prefix != len(home) or not path.startswith(home)):
        raise _unfit("no relative path of this connection", path)
    limit = None if depth == changes.NONE else depth
    server.watches.add(Watch(conn, path, token, limit, prefix))


def _unwatch(server: State, number: int, path: bytes, token: bytes) -> None:
    watch = _connection(server, number).watches.get((path, token))
    if watch is None:
        raise _unfit("no such watch", path)
    server.watches.remove(watch)


def _unwatch_all(server: State, number: int) -> None:
    server.watches.remove_all(_connection(server, number))


# -- transactions ----------------------------------------------------------------------------------


def _start(server: State, number: int, tx_id: int, now_ns: int) -> None:
    conn = _connection(server, number)
    if tx_id in conn.transactions:
        raise _unfit("the id of an open transaction", tx_id)
    server.begin_transaction(conn, tx_id, now_ns)


def _end(server: State, number: int, tx_id: int) -> None:
    _transaction(server, number, tx_id)
    server.end_transaction(_connection(server, number), tx_id)


def _commit(server: State, number: int, tx_id: int, listed: tuple[Change, ...]) -> None:
    if _transaction(server, number, tx_id).in_conflict():
        raise _unfit("a transaction in conflict", tx_id)
    _validate_list(server.store, listed)
    log = []
    for change in listed:
        if change[0] == changes.PERMS:
            log.append(LogEntry(changes.PERMS, change[1], b"", change[2]))
        else:
            log.append(LogEntry(*change))
    server.commit(_connection(server, number), tx_id, log)


def _look(server: State, number: int, tx_id: int, path: bytes) -> None:
    transaction = _transaction(server, number, tx_id)
    if path in transaction.nodes:
        raise _unfit("a second first look", path)
    if not transaction.has_room(1):
        raise _unfit("more than a transaction may look at", path)
    transaction.find(path)


def _tx_value(server: State, number: int, tx_id: int, path: bytes, value: bytes) -> None:
    transaction = _transaction(server, number, tx_id)
    transaction.put_value(path, _seen(transaction, path), value)


def _tx_perms(server: State, number: int, tx_id: int, path: bytes, node_perms: bytes) -> None:
    transaction = _transaction(server, number, tx_id)
    transaction.put_perms(path, _seen(transaction, path), node_perms)


def _tx_create(
    server: State, number: int, tx_id: int, path: bytes, value: bytes, node_perms: bytes
) -> None:
    transaction = _transaction(server, number, tx_id)
    _seen(transaction, parent_of(path))
    node = transaction.nodes.get(path)
    if path[:1] != b"/" or node is None or node.exists:
        raise _unfit("a node that can't be made in a transaction", path)
    transaction.create(path, value, node_perms)


def _tx_remove(server: State, number: int, tx_id: int, path: bytes) -> None:
    transaction = _transaction(server, number, tx_id)
    _seen(transaction, path)
    if path[:1] != b"/" or path == b"/":
        raise _unfit("a node that can't be removed", path)
    if not transaction.has_room(transaction.count_unseen(path)):
        raise _unfit("more than a transaction may look at", path)
    transaction.remove(path)


def _tx_event(server: State, number: int, tx_id: int, below: int, path: bytes) -> None:
    transaction = _transaction(server, number, tx_id)
    if path not in transaction.nodes:
        raise _unfit("an event where a transaction did not look", path)
    transaction.note_event(path, below=bool(below))


def _fail(server: State, number: int, tx_id: int) -> None:
    _transaction(server, number, tx_id)
    server.fail_transaction(_connection(server, number), tx_id)


def _transaction(server: State, number: int, tx_id: int) -> Transaction:
    transaction = _connection(server, number).transactions.get(tx_id)
    if transaction is None:
        raise _unfit("no such transaction", tx_id)
    return transaction


def _seen(transaction: Transaction, path: bytes) -> TxNode:
    node = transaction.nodes.get(path)
    if node is None or not node.exists:
        raise _unfit("a node that the transaction has not seen", path)
    return node


_DO: dict[int, Callable[..., Any]] = {
    changes.VALUE: _value,
    changes.PERMS: _perms,
    changes.CREATE: _create,
    changes.REMOVE: _remove,
    changes.CONNECT: _connect,
    changes.DISCONNECT: _disconnect,
    changes.RING: _ring,
    changes.TARGET: _target,
    changes.SHUT_DOWN: _shut_down,
    changes.KNOWN: _known,
    changes.GONE: _gone,
    changes.INTRODUCED: _introduced,
    changes.RELEASED: _released,
    changes.FEATURES: _features,
    changes.UNIQUE_ID: _unique_id,
    changes.WATCH: _watch,
    changes.UNWATCH: _unwatch,
    changes.UNWATCH_ALL: _unwatch_all,
    changes.START: _start,
    changes.END: _end,
    changes.COMMIT: _commit,
    changes.LOOK: _look,
    changes.TX_VALUE: _tx_value,
    changes.TX_PERMS: _tx_perms,
    changes.TX_CREATE: _tx_create,
    changes.TX_REMOVE: _tx_remove,
    changes.TX_EVENT: _tx_event,
    changes.FAIL: _fail,
    changes.QUOTA: _quota,
}
