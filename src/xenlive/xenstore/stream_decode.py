"""Reading a Xenstore migration stream into an empty server.

Specification: Xen `docs/designs/xenstore-migration.md`, versions 1 and 2. The stream may be this
program's own, of any earlier version, or the C daemon's. Unknown records and quotas are passed
over; records of open transactions, and nodes that only such a transaction sees, as well.

**Invariants.** Every length is checked against the record it is in, every record against the
stream, every path against its parent, before it is used. Anything unsound is an ImageError with the
offset of its record, and the server is as empty as it was: all is built aside, and moved in last.
"""

from __future__ import annotations

import struct

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
    XS_STATE_VERSION_MAX,
    XS_STATE_WATCH,
    XS_STATE_WATCH_EXT,
)
from xenlive.abi.xs_wire import (
    DOMID_INVALID,
    XENSTORE_ABS_PATH_MAX,
    XENSTORE_PAYLOAD_MAX,
    XSD_SOCKMSG,
)
from xenlive.errors import ImageError, XenstoreError
from xenlive.xenstore import kept, perms
from xenlive.xenstore.connection import Connection, Ring
from xenlive.xenstore.paths import PATH_BYTES, canonical, valid_name
from xenlive.xenstore.quota import Quotas
from xenlive.xenstore.store import Directory, Node, Store
from xenlive.xenstore.watches import Watch, Watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Buffer

    from xenlive.abi.layout import Layout
    from xenlive.xenstore.server import XenstoreServer

# Record header and node header at once, without ta_id and ta_access.
_NODE_RECORD = struct.Struct("<III4xHH2xH").unpack_from
_NODE_TYPE = XS_STATE_TYPE_NODE.to_bytes(4, "little")
_NODE_FIXED = XS_STATE_RECORD_HEADER.size + XS_STATE_NODE.size
_PATH_LIMIT = 1 << 16
_NODE_PATH_LIMIT = XENSTORE_ABS_PATH_MAX + 1


class LoadedState:
    """What a stream said that is not the server's: descriptors, and whose they are.

    `connections` are the socket connections with their descriptors, ready for a serve loop;
    `rings` those by shared ring, whose ports are in their `ring`.
    """

    __slots__ = ("connections", "evtchn_fd", "listen_fd", "rings")

    def __init__(self) -> None:
        self.listen_fd = -1
        self.evtchn_fd = -1
        self.connections: list[tuple[Connection, int]] = []
        self.rings: list[Connection] = []


def load_state(server: XenstoreServer, data: Buffer) -> LoadedState:
    """Fills `server`, which has no connection and only the nodes it began with.

    ImageError, and the server is left as it was, if the stream is not sound.
    """
    if server.connections:
        raise ValueError("a state can only be loaded into an empty server")
    generation = server.fresh_generation()
    reader = _Reader(bytes(data), generation)
    reader.read()
    reader.store.populate_special()
    first = _first_transaction(generation)
    for conn in reader.connections.values():
        conn.next_transaction = first
    server.adopt(
        reader.store,
        reader.watches,
        list(reader.connections.values()),
        {0, *[conn.domid for conn in reader.loaded.rings]},
        reader.quotas,
    )
    kept.put_back(server, reader.own)
    return reader.loaded


def _first_transaction(generation: int) -> int:
    """Where the transactions of connections from an earlier kernel start to count.

    Their client may still believe in one that the update dropped. If they began at 1 again, its
    next request would go into another one of that number; so it finds its own unknown. This is the
    clock in microseconds: the numbers of two kernels don't meet before half an hour has gone.
    """
    return (generation // 1000 & 0x7FFFFFFF) or 1


class _Reader:
    """One reading of a stream; `offset` is that of the record at hand."""

    __slots__ = (
        "connections",
        "data",
        "domains",
        "fds",
        "loaded",
        "offset",
        "own",
        "quotas",
        "root_seen",
        "store",
        "version",
        "watches",
    )

    def __init__(self, data: bytes, generation: int) -> None:
        self.data = data
        self.offset = 0
        self.store = Store(generation)
        self.watches = Watches()
        self.quotas = Quotas()
        self.own: dict[str, int] = {}
        self.loaded = LoadedState()
        self.connections: dict[int, Connection] = {}
        self.fds: set[int] = set()
        self.root_seen = False
        self.version = 1
        self.domains: list[tuple[int, dict[str, int], int]] = []

    def fail(self, code: str, what: str, value: object = None) -> ImageError:
        return ImageError(code, what, self.offset, value)

    def read(self) -> None:
        """Reads all of it. ImageError if it is not sound."""
        data = self.data
        self._read_preamble()
        offset = XS_STATE_PREAMBLE.size
        end = len(data)
        while True:
            self.offset = offset
            if end - offset < XS_STATE_RECORD_HEADER.size:
                raise self.fail("state-truncated", "the stream ends without an END record")
            kind, length = XS_STATE_RECORD_HEADER.unpack(data, offset)
            if kind == XS_STATE_TYPE_NODE:
                offset = self._read_nodes(offset)
                continue
            if kind == XS_STATE_TYPE_END:
                break
            start = offset + XS_STATE_RECORD_HEADER.size
            # The specification pads a record to 8 bytes without counting them, the C daemon
            # counts them: this takes both.
            offset = start + length + (-length & 7)
            if offset > end:
                raise self.fail("state-truncated", "a record is longer than the stream", length)
            self._read_record(kind, data[start : start + length])
        self._validate_names()
        self._set_up_accounts()

    def _read_preamble(self) -> None:
        if len(self.data) < XS_STATE_PREAMBLE.size:
            raise self.fail("state-truncated", "no room for a stream header", len(self.data))
        ident, version, flags = XS_STATE_PREAMBLE.unpack(self.data)
        if ident != XS_STATE_IDENT:
            raise self.fail("state-bad-ident", "not a Xenstore state stream", ident)
        self.version = version
        if not 1 <= version <= XS_STATE_VERSION_MAX:
            raise self.fail("state-bad-version", "version not supported", version)
        if flags:
            raise self.fail("state-bad-flags", "big endian, or flags not supported", flags)

    def _read_record(self, kind: int, body: bytes) -> None:
        if kind == XS_STATE_TYPE_GLOBAL:
            self.loaded.listen_fd, self.loaded.evtchn_fd = self._fields(XS_STATE_GLOBAL, body)
        elif kind == XS_STATE_TYPE_CONN:
            self._read_connection(body)
        elif kind == XS_STATE_TYPE_WATCH:
            number, path_len, token_len = self._fields(XS_STATE_WATCH, body)
            strings = body[XS_STATE_WATCH.size :]
            self._read_watch(number, path_len, token_len, None, strings)
        elif kind == XS_STATE_TYPE_WATCH_EXT:
            number, path_len, token_len, depth = self._fields(XS_STATE_WATCH_EXT, body)
            limit = None if depth == WATCH_DEPTH_UNLIMITED else depth
            strings = body[XS_STATE_WATCH_EXT.size :]
            self._read_watch(number, path_len, token_len, limit, strings)
        elif kind == XS_STATE_TYPE_GLB_QUOTA:
            self._read_quotas(body)
        elif kind == XS_STATE_TYPE_DOMAIN:
            domid, count, features = self._fields(XS_STATE_DOMAIN, body)
            self.store.domains[domid] = 0
            values = self._quota_values(body[XS_STATE_DOMAIN.size :], count)
            self.domains.append((domid, values, features))

    def _fields(self, layout: Layout, body: bytes) -> tuple[Any, ...]:
        if len(body) < layout.size:
            raise self.fail("state-short-record", f"no room for {layout.name}", len(body))
        return layout.unpack(body)

    def _read_connection(self, body: bytes) -> None:
        number, kind, fields, spec, in_len, resp_len, out_len = self._fields(
            XS_STATE_CONNECTION, body
        )
        start = XS_STATE_CONNECTION.size
        end = start + in_len + out_len
        if end > len(body) or resp_len > out_len:
            raise self.fail("state-bad-connection", "pending data is longer than its record")
        if number == 0 or number in self.connections:
            raise self.fail("state-bad-connection", "a connection's id is 0 or not its own", number)
        if kind == XS_STATE_CONN_TYPE_SOCKET:
            conn = self._socket_connection(XS_STATE_CONN_SOCKET.unpack(spec)[0])
        elif kind == XS_STATE_CONN_TYPE_RING:
            after = end + (-end & 7)
            unique_id = None
            if fields & XS_STATE_CONN_FIELDS_UNIQ_ID:
                unique_id = self._fields(XS_STATE_CONN_UNIQUE_ID, body[after:])[0]
            domid, target, evtchn = XS_STATE_CONN_RING.unpack(spec)
            conn = self._ring_connection(domid, target, Ring(evtchn, unique_id))
        else:
            raise self.fail("state-bad-connection", "unknown kind of connection", kind)
        unsent = body[start + in_len : end]
        self._validate_messages(unsent, resp_len)
        conn.unparsed = body[start : start + in_len]
        conn.restore_unsent(unsent, resp_len)
        conn.stalled = conn.ring is not None and bool(conn.unparsed)
        self.connections[number] = conn

    def _socket_connection(self, fd: int) -> Connection:
        if fd < 0 or fd in self.fds:
            raise self.fail("state-bad-fd", "a socket is missing, or has two connections", fd)
        self.fds.add(fd)
        conn = Connection(0)
        self.loaded.connections.append((conn, fd))
        return conn

    def _ring_connection(self, domid: int, target: int, ring: Ring) -> Connection:
        if any(other.domid == domid for other in self.loaded.rings):
            raise self.fail("state-bad-connection", "a domain has two rings", domid)
        conn = Connection(domid)
        conn.ring = ring
        self.store.domains[domid] = 0
        if target != DOMID_INVALID:
            conn.target = target
            self.store.domains[target] = 0
        self.loaded.rings.append(conn)
        return conn

    def _validate_messages(self, unsent: bytes, offset: int) -> None:
        """Pending output has whole messages, after the rest of the one that was begun."""
        while offset < len(unsent):
            if len(unsent) - offset < XSD_SOCKMSG.size:
                raise self.fail("state-bad-connection", "pending output ends within a header")
            length = XSD_SOCKMSG.unpack(unsent, offset)[3]
            offset += XSD_SOCKMSG.size + length
            if length > XENSTORE_PAYLOAD_MAX or offset > len(unsent):
                raise self.fail("state-bad-connection", "pending output ends within a message")

    def _read_watch(
        self, number: int, path_len: int, token_len: int, depth: int | None, strings: bytes
    ) -> None:
        conn = self.connections.get(number)
        if conn is None:
            raise self.fail("state-bad-watch", "a watch of an unknown connection", number)
        raw = strings[: path_len - 1] if path_len else b""
        token = strings[path_len : path_len + token_len - 1] if token_len else b""
        whole = raw + b"\0" + token + b"\0"
        if strings[: path_len + token_len] != whole or whole.count(b"\0") != 2:
            raise self.fail("state-bad-watch", "path and token are not two strings of that length")
        try:
            path = canonical(conn.home, raw, True, _PATH_LIMIT)
        except XenstoreError:
            raise self.fail("state-bad-watch", "not a path to watch", raw) from None
        if (path, token) in conn.watches:
            raise self.fail("state-bad-watch", "the same watch twice", path)
        self.watches.add(Watch(conn, path, token, depth, len(path) - len(raw)))

    def _read_quotas(self, body: bytes) -> None:
        per_domain, overall = self._fields(XS_STATE_GLB_QUOTA, body)
        count = per_domain + overall
        self.quotas.values |= self._quota_values(body[XS_STATE_GLB_QUOTA.size :], count)

    def _quota_values(self, body: bytes, count: int) -> dict[str, int]:
        """Values, then as many names."""
        names = body[4 * count :].split(b"\0")[:-1]
        if len(names) < count:
            raise self.fail("state-bad-quota", "fewer names than values", len(names))
        values = {}
        for index, name in enumerate(names[:count]):
            if not name or not name.isascii():
                raise self.fail("state-bad-quota", "not the name of a quota", name)
            values[name.decode()] = int.from_bytes(body[4 * index : 4 * index + 4], "little")
        own = {name: value for name, value in values.items() if name.startswith(kept.PREFIX)}
        if own:
            self.own |= own
            values = {name: value for name, value in values.items() if name not in own}
        return values

    def _set_up_accounts(self) -> None:
        """Domains have the global quotas, less what their own records say."""
        accounts = self.store.accounts
        accounts.quotas = self.quotas
        early = kept.early_domains(self.own)
        for domid, values, features in early:
            self.store.domains[domid] = 0
            accounts.open(domid).quotas |= values
            accounts.open(domid).features = features
        for domid, values, features in self.domains:
            if domid == 0:
                continue
            account = accounts.open(domid)
            account.quotas |= values
            if self.version > 1:
                account.features = features & XENSTORE_FEATURES

    def _read_nodes(self, offset: int) -> int:
        """Reads the node records from `offset` on; returns where the first other record is."""
        data = self.data
        end = len(data)
        nodes = self.store.nodes
        known: dict[bytes, bytes] = {}
        generation = self.store.generation
        while end - offset >= _NODE_FIXED:
            kind, length, tx_conn, path_len, data_len, perm_n = _NODE_RECORD(data, offset)
            if kind != XS_STATE_TYPE_NODE:
                return offset
            self.offset = offset
            perms_at = offset + _NODE_FIXED
            path_at = perms_at + 4 * perm_n
            value_at = path_at + path_len
            value_end = value_at + data_len
            body_end = offset + 8 + length
            offset = body_end + (-length & 7)
            if value_end > body_end or offset > end:
                raise self.fail("state-bad-node", "a node is longer than its record", length)
            if tx_conn:
                continue
            node_perms = known.get(data[perms_at:path_at])
            if node_perms is None:
                node_perms = self._read_perms(data[perms_at:path_at])
                known[node_perms] = node_perms
            path = data[path_at : value_at - 1]
            if data_len > XENSTORE_PAYLOAD_MAX or path_len < 2 or data[value_at - 1]:
                raise self.fail("state-bad-node", "path or value is not sound", path)
            node = Node(data[value_at:value_end], node_perms, generation)
            cut = path.rfind(b"/")
            if cut < 0 or cut + 2 == path_len:
                self._add_odd_node(path, node)
                continue
            parent = nodes.get(path[:cut] or b"/")
            if parent is None or path in nodes or path_len > _NODE_PATH_LIMIT:
                raise self.fail("state-bad-node", "no parent, too long, or there twice", path)
            directory = parent.directory
            if directory is None:
                parent.directory = Directory([path], path_len - cut - 1)
            else:
                directory.link(path, path_len - cut - 1)
            nodes[path] = node
        if end - offset >= 4 and data[offset : offset + 4] == _NODE_TYPE:
            self.offset = offset
            raise self.fail("state-truncated", "a node record ends with the stream")
        return offset

    def _read_perms(self, raw: bytes) -> bytes:
        if not perms.valid_stream_entry(raw):
            raise self.fail("state-bad-node", "permissions are not sound", raw)
        return perms.intern(raw)

    def _validate_names(self) -> None:
        """All paths at once: one by one it would be a tenth of the time a load takes."""
        for node in self.store.nodes.values():
            directory = node.directory
            if directory and b"".join(directory.paths).translate(None, PATH_BYTES):
                for path in directory.paths:
                    if path.translate(None, PATH_BYTES):
                        self.offset = self.data.find(path)
                        raise self.fail("state-bad-node", "a name that no path may have", path)

    def _add_odd_node(self, path: bytes, node: Node) -> None:
        """The root, which is there already, or a special node."""
        if path == b"/":
            root = self.store.nodes[path]
            if root.directory is not None or self.root_seen:
                raise self.fail("state-bad-node", "the root is not first, or comes twice")
            self.root_seen = True
            root.value = node.value
            root.perms = node.perms
        elif path[:1] == b"@" and valid_name(path) and path not in self.store.special:
            self.store.special[path] = node
        else:
            raise self.fail("state-bad-node", "not a path, or the same node twice", path)
