"""What the log's switches ask for, line by line.

Specification: the C daemon's switches (Xen `tools/xenstored/core.c`, `trace_switches`), its words
where it has them; its addresses of objects are the numbers of connections here.

    io    io: IN #3 (d5) READ (/a )            each request and its answer
    obj   obj: CREATE watch #3 (/a t)          connections, watches, transactions
    tdb   tdb: store /a size 23                what of the store is read, stored, deleted;
          tdb: store 3.17/a size 23            in transaction 17 of connection 3
    acc   acc: domain 5: nodes 3 add 1         what a domain uses, after each request
    wrl   nothing: writes are not slowed down

**Invariants.** Nothing is changed. While the log is off, or its switches are, none of this exists
(`XenstoreServer.trace` is None) and costs nothing: what changes is heard of as a journal does, and
requests that are traced take no fast path.
"""

from __future__ import annotations

from xenlive.abi.xs_wire import TYPE_NAMES, XSD_SOCKMSG
from xenlive.xenstore import changes
from xenlive.xenstore.accounts import node_size
from xenlive.xenstore.log import ACC, IO, OBJ, TDB
from xenlive.xenstore.quota import ITEMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.xenstore.changes import Change
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.requests import Request
    from xenlive.xenstore.server import XenstoreServer
    from xenlive.xenstore.store import Node

#: Switches that need each request to be served the long way, and those that hear of changes.
NO_FAST_PATHS = IO | TDB | ACC
CHANGES = OBJ | TDB

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)}

_STORED = {
    changes.VALUE: "store",
    changes.PERMS: "store",
    changes.CREATE: "store",
    changes.REMOVE: "delete",
    changes.TX_VALUE: "store",
    changes.TX_PERMS: "store",
    changes.TX_CREATE: "store",
    changes.TX_REMOVE: "delete",
}


class Trace:
    """Writes the lines for the switches `flags` to the log of `server`."""

    __slots__ = ("_seen", "_server", "flags")

    def __init__(self, server: XenstoreServer, flags: int) -> None:
        self._server = server
        self.flags = flags
        self._seen: dict[int, list[int]] = {}
        if flags & ACC:
            accounts = server.store.accounts.by_domid
            self._seen = {domid: list(each.used) for domid, each in accounts.items()}

    # -- requests ----------------------------------------------------------------------------------

    def asked(self, conn: Connection, request: Request) -> None:
        """A request is going to be served."""
        if self.flags & IO:
            self._message(conn, "IN", request.kind, request.payload)

    def served(self, conn: Connection) -> None:
        """One has been served."""
        if self.flags & IO and conn.out:
            kind, _, _, _ = XSD_SOCKMSG.unpack(conn.out[-1])
            self._message(conn, "OUT", kind, conn.out[-1][XSD_SOCKMSG.size :])
        if self.flags & ACC:
            self._tell_accounts()

    def looked(self, path: bytes, node: Node | None) -> None:
        """A request looks at a node; None if there is none."""
        if self.flags & TDB and node is not None:
            self._write(f"tdb: read {_text(path)} size {_size_of(path, node)}")

    def _message(self, conn: Connection, way: str, kind: int, payload: bytes) -> None:
        name = TYPE_NAMES.get(kind, "**UNKNOWN**")
        self._write(f"io: {way} #{conn.number} (d{conn.domid}) {name} ({_text(payload)})")

    def _tell_accounts(self) -> None:
        accounts, seen = self._server.store.accounts.by_domid, self._seen
        for domid in [domid for domid in seen if domid not in accounts]:
            del seen[domid]
        for domid, account in accounts.items():
            before = seen.get(domid)
            if account.used == before:
                continue
            for item, (name, _) in enumerate(ITEMS):
                was = 0 if before is None else before[item]
                more = account.used[item] - was
                if more:
                    self._write(f"acc: domain {domid}: {name} {was} add {more}")
            seen[domid] = list(account.used)

    # -- changes -----------------------------------------------------------------------------------

    def hear(self, change: Change) -> None:
        """A change was done: this is a journal's callable."""
        kind = change[0]
        if kind == changes.COMMIT:
            if self.flags & TDB:
                for each in change[3]:
                    self._changed(each)
            self._object("DESTROY transaction", change[1], change[2])
        elif kind in _STORED:
            if self.flags & TDB:
                self._changed(change)
        elif kind == changes.CONNECT:
            self._object("CREATE connection", change[1], f"d{change[2]}")
        elif kind == changes.DISCONNECT:
            self._object("DESTROY connection", change[1])
        elif kind == changes.WATCH:
            self._object("CREATE watch", change[1], f"{_text(change[4])} {_text(change[5])}")
        elif kind == changes.UNWATCH:
            self._object("DESTROY watch", change[1], f"{_text(change[2])} {_text(change[3])}")
        elif kind == changes.UNWATCH_ALL:
            self._object("DESTROY all watches", change[1])
        elif kind == changes.START:
            self._object("CREATE transaction", change[1], change[2])
        elif kind == changes.END:
            self._object("DESTROY transaction", change[1], change[2])

    def _object(self, what: str, number: int, more: object = "") -> None:
        if self.flags & OBJ:
            self._write(f"obj: {what} #{number}" + (f" ({more})" if more != "" else ""))

    def _changed(self, change: Change) -> None:
        kind = change[0]
        node: Node | None
        if kind >= changes.TX_VALUE:
            number, tx_id, path = change[1:4]
            where = f"{number}.{tx_id}{_text(path)}"
            node = self._server.by_number[number].transactions[tx_id].nodes.get(path)
        else:
            path = change[1]
            where = _text(path)
            node = self._server.store.find(path)
        text = f"tdb: {_STORED[kind]} {where}"
        if _STORED[kind] == "store" and node is not None:
            text += f" size {_size_of(path, node)}"
        self._write(text)

    def _write(self, text: str) -> None:
        self._server.log.write(text)


def _size_of(path: bytes, node: Node) -> int:
    return len(path) + node_size(node.perms, len(node.value), node.children_bytes)


def _text(raw: bytes) -> str:
    """Bytes of a guest's as one line, which nobody can take for more than one."""
    return raw.replace(b"\0", b" ").decode("ascii", "backslashreplace").translate(_ESCAPED)
