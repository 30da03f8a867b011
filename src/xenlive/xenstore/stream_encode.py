"""Writing the server's whole state as a Xenstore migration stream.

Specification: Xen `docs/designs/xenstore-migration.md`. Version 1 is what is written, so that the C
daemon of any age can read it, unless a watch has a depth, or a domain features of its own, which
only version 2 can say.

    GLOBAL_DATA · quotas · each connection (rings first), its watches · each node · domains · END

What the format has no record for is among the quotas, under names of our own (`kept`).

**Invariants.** Every node comes after its parent, children of one directory in their order; a
connection's watches come in theirs. Records are whole multiples of 8. The state is not changed.
Open transactions are left out, as both daemons do (their place would be before the nodes): a
client finds its transaction unknown, and starts again.
"""

from __future__ import annotations

from xenlive.abi.xs_ring import XENSTORE_FEATURES
from xenlive.abi.xs_state import (
    WATCH_DEPTH_UNLIMITED,
    XS_STATE_CONN_FIELDS_UNIQ_ID,
    XS_STATE_CONN_RING,
    XS_STATE_CONN_SOCKET,
    XS_STATE_CONN_TYPE_RING,
    XS_STATE_CONN_TYPE_SOCKET,
    XS_STATE_CONN_UNIQUE_ID,
    XS_STATE_CONNECTION,
    XS_STATE_DOMAIN,
    XS_STATE_GLB_QUOTA,
    XS_STATE_GLOBAL,
    XS_STATE_IDENT,
    XS_STATE_NODE,
    XS_STATE_PREAMBLE,
    XS_STATE_RECORD_HEADER,
    XS_STATE_TYPE_CONN,
    XS_STATE_TYPE_DOMAIN,
    XS_STATE_TYPE_END,
    XS_STATE_TYPE_GLB_QUOTA,
    XS_STATE_TYPE_GLOBAL,
    XS_STATE_TYPE_NODE,
    XS_STATE_TYPE_WATCH,
    XS_STATE_TYPE_WATCH_EXT,
    XS_STATE_WATCH,
    XS_STATE_WATCH_EXT,
)
from xenlive.abi.xs_wire import DOMID_INVALID
from xenlive.errors import OutOfSpace
from xenlive.xenstore import kept, perms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xenlive.xenstore.accounts import Accounts
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.server import XenstoreServer
    from xenlive.xenstore.store import Node, Store
    from xenlive.xenstore.watches import Watch

CHUNK_NODES = 1024
#: How many entries of our own one record has.
OWN_ENTRIES = 4096
_ZEROES = [b"\0" * count for count in range(8)]
_U16_MAX = 0xFFFF


def encode_state(
    server: XenstoreServer,
    *,
    listen_fd: int,
    evtchn_fd: int,
    fd_of: Callable[[Connection], int],
) -> Iterator[bytes]:
    """The state in chunks of some ten KiB; nothing may change until the last one is taken.

    `listen_fd` and `evtchn_fd` are descriptors, -1 for none; `fd_of` gives a socket connection's.
    OutOfSpace if a connection has more unparsed input than a record can say (65535 bytes).
    """
    deep = any(
        watch.depth is not None for conn in server.connections for watch in conn.watches.values()
    )
    accounts = server.store.accounts
    version = (
        2 if deep or any(a.features != XENSTORE_FEATURES for a in accounts.by_domid.values()) else 1
    )
    head = [
        XS_STATE_PREAMBLE.pack(XS_STATE_IDENT, version, 0),
        _record(XS_STATE_TYPE_GLOBAL, XS_STATE_GLOBAL.pack(listen_fd, evtchn_fd)),
    ]
    if server.quotas.changed():
        head.append(_quota_record(server.quotas.values))
    head.extend(_own_records(kept.settings_of(server)))
    # The C daemon must know domain 0 before it reads a watch of a socket's: rings come first.
    rings = [conn for conn in server.connections if conn.ring is not None]
    sockets = [conn for conn in server.connections if conn.ring is None]
    for number, conn in enumerate([*rings, *sockets], 1):
        head.append(_connection_record(number, conn, fd_of))
        head.extend([_watch_record(number, watch) for watch in conn.watches.values()])
    yield b"".join(head)
    owners: set[int] = set()
    yield from _node_records(server.store, server.store.special, owners)
    yield from _node_records(server.store, server.store.nodes, owners)
    # Domains with a connection are known by it; the others would lose what they are allowed. Who
    # has quotas or features of its own has to be told of, too.
    connected = {conn.domid for conn in server.connections}
    tail = []
    early: dict[str, int] = {}
    for domid in server.store.domains:
        if domid and domid not in connected and domid not in owners:
            early |= kept.early_domain(accounts.open(domid))
        elif domid and (domid not in connected or accounts.open(domid).is_special()):
            tail.append(_domain_record(domid, accounts, version))
    yield b"".join([*tail, *_own_records(early), _record(XS_STATE_TYPE_END, b"")])


def _record(kind: int, body: bytes) -> bytes:
    padding = _ZEROES[-len(body) & 7]
    return XS_STATE_RECORD_HEADER.pack(kind, len(body) + len(padding)) + body + padding


def _connection_record(number: int, conn: Connection, fd_of: Callable[[Connection], int]) -> bytes:
    fields = 0
    extra = b""
    if conn.ring is None:
        kind = XS_STATE_CONN_TYPE_SOCKET
        spec = XS_STATE_CONN_SOCKET.pack(fd_of(conn))
    else:
        kind = XS_STATE_CONN_TYPE_RING
        target = conn.target if conn.target >= 0 else DOMID_INVALID
        spec = XS_STATE_CONN_RING.pack(conn.domid, target, conn.ring.evtchn)
        if conn.ring.unique_id is not None:
            fields |= XS_STATE_CONN_FIELDS_UNIQ_ID
            extra = XS_STATE_CONN_UNIQUE_ID.pack(conn.ring.unique_id)
    unsent, partial = conn.unsent()
    unparsed = conn.unparsed
    if len(unparsed) > _U16_MAX:
        raise OutOfSpace("room for unparsed input in a state record", len(unparsed), _U16_MAX)
    body = (
        XS_STATE_CONNECTION.pack(number, kind, fields, spec, len(unparsed), partial, len(unsent))
        + unparsed
        + unsent
    )
    return _record(XS_STATE_TYPE_CONN, body + _ZEROES[-len(body) & 7] + extra)


def _watch_record(number: int, watch: Watch) -> bytes:
    path = watch.path[watch.prefix :] + b"\0"
    token = watch.token + b"\0"
    if watch.depth is None:
        head = XS_STATE_WATCH.pack(number, len(path), len(token))
        return _record(XS_STATE_TYPE_WATCH, head + path + token)
    # No path has so many levels; and for special nodes any depth is another thing than none.
    depth = min(watch.depth, WATCH_DEPTH_UNLIMITED - 1)
    head = XS_STATE_WATCH_EXT.pack(number, len(path), len(token), depth)
    return _record(XS_STATE_TYPE_WATCH_EXT, head + path + token)


def _quota_record(values: dict[str, int]) -> bytes:
    head = XS_STATE_GLB_QUOTA.pack(len(values), 0)
    return _record(XS_STATE_TYPE_GLB_QUOTA, head + _quota_values(values))


def _own_records(entries: dict[str, int]) -> Iterator[bytes]:
    """Records of entries under names of our own: they are no domain's quotas."""
    names = list(entries)
    for start in range(0, len(names), OWN_ENTRIES):
        chosen = {name: entries[name] for name in names[start : start + OWN_ENTRIES]}
        head = XS_STATE_GLB_QUOTA.pack(0, len(chosen))
        yield _record(XS_STATE_TYPE_GLB_QUOTA, head + _quota_values(chosen))


def _domain_record(domid: int, accounts: Accounts, version: int) -> bytes:
    account = accounts.open(domid)
    values = account.own_quotas()
    head = XS_STATE_DOMAIN.pack(domid, len(values), account.features if version > 1 else 0)
    return _record(XS_STATE_TYPE_DOMAIN, head + _quota_values(values))


def _quota_values(values: dict[str, int]) -> bytes:
    numbers = b"".join([value.to_bytes(4, "little") for value in values.values()])
    return numbers + b"".join([name.encode() + b"\0" for name in values])


def _node_records(store: Store, nodes: dict[bytes, Node], owners: set[int]) -> Iterator[bytes]:
    """The records of `nodes`, in their order; adds who owns them to `owners`."""
    # What comes before the path and after the value depends on few things, and is kept by them.
    frames: dict[tuple[int, int, bytes], tuple[bytes, bytes]] = {}
    parts: list[bytes] = []
    count = 0
    for path, node in nodes.items():
        value = node.value
        node_perms = node.perms
        if len(node_perms) != perms.ENTRY_SIZE:
            node_perms = store.fresh_perms(node)
        key = (len(path), len(value), node_perms)
        frame = frames.get(key)
        if frame is None:
            frame = frames[key] = _node_frame(len(path) + 1, len(value), node_perms)
            owners.add(perms.owner_of(node_perms))
        parts += (frame[0], path, b"\0", value, frame[1])
        count += 1
        if count == CHUNK_NODES:
            yield b"".join(parts)
            parts.clear()
            count = 0
    if parts:
        yield b"".join(parts)


def _node_frame(path_len: int, data_len: int, node_perms: bytes) -> tuple[bytes, bytes]:
    length = XS_STATE_NODE.size + len(node_perms) + path_len + data_len
    padding = _ZEROES[-length & 7]
    head = XS_STATE_RECORD_HEADER.pack(XS_STATE_TYPE_NODE, length + len(padding))
    entries = len(node_perms) // perms.ENTRY_SIZE
    return head + XS_STATE_NODE.pack(0, 0, path_len, data_len, 0, entries) + node_perms, padding
