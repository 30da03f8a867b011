"""Watches: who wants to know of which changes, and the events they get.

Specification: Xen `docs/misc/xenstore.txt`, "Watches". A change of a path matches the watches set
on it and on each path above it (as far as a watch's depth reaches), so these are looked up one by
one in a dict: what it costs does not grow with the number of watches elsewhere.

     change of /a/b/c ──▶ /a/b/c, /a/b, /a, /     removal of /a, with /a/b below it:
                                                  /a/b only on itself; then /a, /

**Invariants.** A connection's events for one change come in the order its watches were set. An
event that waits unread is not sent again. Who may read neither the node nor its parent, nor could
before the change, gets none.
"""

from __future__ import annotations

from xenlive.abi.xs_wire import XENSTORE_PAYLOAD_MAX, XS_WATCH_EVENT, XSD_SOCKMSG
from xenlive.xenstore import changes, perms
from xenlive.xenstore.paths import parent_of
from xenlive.xenstore.quota import MEMORY, WATCHES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.xenstore.changes import Journal
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.store import Store


class Watch:
    """One watch; `path` is absolute, `prefix` what a relative one leaves out in its events."""

    __slots__ = ("conn", "depth", "order", "path", "prefix", "token")

    def __init__(
        self, conn: Connection, path: bytes, token: bytes, depth: int | None, prefix: int
    ) -> None:
        self.conn = conn
        self.path = path
        self.token = token
        self.depth = depth
        self.prefix = prefix
        self.order = 0


class Watches:
    """All watches of a server, by path; `touched` lists connections that got events.

    `n_set` is how many were set so far, and so the `order` of the last one. `journal`, if there is
    one, hears of each that comes or goes (`state`).
    """

    __slots__ = ("by_path", "count", "journal", "n_set", "touched")

    def __init__(self) -> None:
        self.journal: Journal | None = None
        self.by_path: dict[bytes, dict[Watch, None]] = {}
        self.count = 0
        self.touched: list[Connection] = []
        self.n_set = 0

    def add(self, watch: Watch, order: int | None = None) -> None:
        """Sets a watch that its connection doesn't have yet; `order` is a restored one's place."""
        self.n_set += 1
        watch.order = self.n_set if order is None else order
        self.count += 1
        pay_for(watch, 1)
        self.by_path.setdefault(watch.path, {})[watch] = None
        watch.conn.watches[watch.path, watch.token] = watch
        if self.journal is not None:
            depth = changes.NONE if watch.depth is None else watch.depth
            number = watch.conn.number
            self.journal((changes.WATCH, number, depth, watch.prefix, watch.path, watch.token))

    def remove(self, watch: Watch) -> None:
        """Takes a watch away."""
        self._remove(watch)
        if self.journal is not None:
            self.journal((changes.UNWATCH, watch.conn.number, watch.path, watch.token))

    def remove_all(self, conn: Connection) -> None:
        """Takes all watches of a connection away."""
        if not conn.watches:
            return
        for watch in list(conn.watches.values()):
            self._remove(watch)
        if self.journal is not None:
            self.journal((changes.UNWATCH_ALL, conn.number))

    def _remove(self, watch: Watch) -> None:
        at = self.by_path[watch.path]
        del at[watch]
        if not at:
            del self.by_path[watch.path]
        del watch.conn.watches[watch.path, watch.token]
        self.count -= 1
        pay_for(watch, -1)

    def fire(
        self,
        store: Store,
        path: bytes,
        origin: Connection | None,
        *,
        exact: bool = False,
        old_perms: bytes | None = None,
    ) -> None:
        """Sends the events of a change at `path`; `origin` is whose request is being served.

        `exact` leaves out watches above it. `old_perms` are what the node had before. A removed
        node's events are fired while it is still there.
        """
        found: list[Watch] = []
        above = path
        levels = 0
        while True:
            at = self.by_path.get(above)
            if at is not None:
                for watch in at:
                    if watch.depth is None or watch.depth >= levels:
                        found.append(watch)
            cut = above.rfind(b"/")
            if exact or cut < 0 or above == b"/":
                break
            above = above[:cut] or b"/"
            levels += 1
        if len(found) > 1:
            found.sort(key=_order)
        looked = None  # a guest may have many watches here, and knows all of it or nothing
        may_know = False
        for watch in found:
            conn = watch.conn
            if not conn.privileged and conn is not looked:
                looked = conn
                may_know = _may_know(store, path, conn, old_perms)
            if conn.privileged or may_know:
                self.send(watch, path, origin)

    def fire_special(self, store: Store, name: bytes, domid: int | None) -> None:
        """Sends the events of `@introduceDomain` or `@releaseDomain`.

        With a domain, these are for who watches `name/<domid>`, or `name` with a depth of 1 and
        more; without one, for who watches `name` as such, which says no domain.
        """
        found = list(self.by_path.get(name, ()))
        path = name
        if domid is None:
            found = [watch for watch in found if watch.depth is None]
        else:
            path = b"%s/%d" % (name, domid)
            found = [watch for watch in found if watch.depth] + list(self.by_path.get(path, ()))
        found.sort(key=_order)
        for watch in found:
            conn = watch.conn
            if conn.privileged or _may_know(store, name, conn, None):
                self.send(watch, path, None)

    def send(self, watch: Watch, path: bytes, origin: Connection | None) -> None:
        """Sends one event, unless it is too long or already waits."""
        payload = path[watch.prefix :] + b"\0" + watch.token + b"\0"
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            return
        conn = watch.conn
        if payload[:1] != b"@" and payload in conn.events:
            return
        account = conn.account
        if account is not None and account.over_memory(conn, len(payload) + XSD_SOCKMSG.size):
            return
        if payload[:1] != b"@":
            conn.events.add(payload)
        conn.noted = True
        conn.out.append(XSD_SOCKMSG.pack(XS_WATCH_EVENT, 0, 0, len(payload)) + payload)
        if conn is not origin:
            self.touch(conn)

    def touch(self, conn: Connection) -> None:
        """Notes that a connection got output it did not ask for just now."""
        if not conn.touched:
            conn.touched = True
            self.touched.append(conn)


def pay_for(watch: Watch, sign: int) -> None:
    """Accounts for a watch that comes (1) or goes (-1)."""
    account = watch.conn.account
    if account is not None:
        account.add(WATCHES, sign)
        account.add(MEMORY, sign * (len(watch.path) + len(watch.token)))


def _order(watch: Watch) -> int:
    return watch.order


def _may_know(store: Store, path: bytes, conn: Connection, old_perms: bytes | None) -> bool:
    if old_perms is not None and perms.allowed(old_perms, conn.domid, conn.target) & perms.READ:
        return True
    node = store.find(path)
    if node is None:
        return False
    if store.allowed(node, conn.domid, conn.target) & perms.READ:
        return True
    parent = store.find(parent_of(path))
    return parent is not None and bool(store.allowed(parent, conn.domid, conn.target) & perms.READ)
