"""What must hold of a Xenstore server after whatever was done to it.

* the tree is whole, watches and transactions are their connections', accounts say what is there;
* nobody's unread output is more than its bound;
* what its journal heard, written down, read and done again, gives the same server;
* what it saves, loaded, gives the same server, less what an update ends; and saves the same again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenstore.picture import differences

from hostile.target import expect
from xenlive.abi.xs_wire import XENSTORE_ABS_PATH_MAX
from xenlive.xenstore import usage
from xenlive.xenstore.change_codec import decode, encode
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.paths import canonical
from xenlive.xenstore.perms import owner_of
from xenlive.xenstore.quota import ITEMS
from xenlive.xenstore.replay import replay
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.state import State
from xenlive.xenstore.stream import encode_state, load_state

if TYPE_CHECKING:
    from xenlive.xenstore.changes import Change

FIRST_FD = 10
_PATH_MAX = XENSTORE_ABS_PATH_MAX
_UNSAID = ("outstanding", "transactions")


def save(server: XenstoreServer) -> bytes:
    """The state stream; sockets get descriptors from `FIRST_FD` on, in their order."""
    fds = {conn: FIRST_FD + index for index, conn in enumerate(sockets_of(server))}
    return b"".join(encode_state(server, listen_fd=3, evtchn_fd=-1, fd_of=fds.__getitem__))


def sockets_of(server: State) -> list[Connection]:
    """The connections that are not by ring, in their order."""
    return [conn for conn in server.connections if conn.ring is None]


class Journal:
    """All that one server's journal heard, since it began or loaded `base`."""

    def __init__(self, server: XenstoreServer, base: bytes = b"", loaded_at_s: float = 0.0) -> None:
        self.changes: list[Change] = []
        self._server = server
        self._base = base
        self._loaded_at_s = loaded_at_s
        server.journal = self.changes.append

    def check(self) -> None:
        """Does it all again elsewhere."""
        again = XenstoreServer(now=lambda: self._loaded_at_s)
        if self._base:
            load_state(again, self._base)
        for change in self.changes:
            data = encode(change)
            expect(decode(data) == change, f"{change} is read as it was written")
            replay(again, change)
        wrong = differences(self._server, again)
        expect(not wrong, f"a journal done again gives the same: {wrong[:1]}")


def expect_sound(server: XenstoreServer, *, by_requests: bool = True) -> None:
    """Nothing in the server contradicts the rest of it.

    `by_requests` is False if its state came from strangers, who may give nodes to anybody.
    """
    store = server.store
    problems = store.check()
    expect(not problems, f"the tree is whole: {problems[:1]}")
    wrong = store.accounts.wrong_counts(usage.all_nodes(store))
    expect(not wrong, f"accounts say what there is: {wrong}")
    for path, _ in usage.all_nodes(store):
        expect(canonical(b"", path, True, _PATH_MAX) == path, f"{path!r} is a path")
    at_paths = sum(len(at) for at in server.watches.by_path.values())
    of_conns = sum(len(conn.watches) for conn in server.connections)
    expect(at_paths == of_conns == server.watches.count, "each watch is somebody's")
    expect(
        {conn.domid for conn in server.rings.values()} <= server.introduced, "rings are introduced"
    )
    for conn in server.connections:
        expect(server.by_number.get(conn.number) is conn, "connections are found by number")
        for item, used in enumerate(conn.account.used if conn.account is not None else ()):
            expect(used >= 0, f"nobody uses less than nothing: {ITEMS[item][0]} is {used}")
    unknown = {owner_of(node.perms) for _, node in usage.all_nodes(store)} - set(store.domains)
    expect(not (unknown and by_requests), f"nodes have owners that exist, not {unknown}")
    pins = {id(node) for conn in server.connections for t in conn.transactions.values()
            for node in [n.base for n in t.nodes.values()]}  # fmt: skip
    expect(all(id(node) in pins for node in store.pins), "nothing stays pinned")


def expect_saved(server: XenstoreServer, now_s: float) -> None:
    """Saving and loading gives the same; open transactions are ended by it."""
    server.drop_transactions()
    expect(not server.store.pins, "nothing is pinned without a transaction")
    again = _loaded(save(server), now_s)
    before, after = view(server), view(again)
    for name, value in before.items():
        expect(after[name] == value, f"{name} as saved: {value!r:.300}, not {after[name]!r:.300}")
    expect(view(_loaded(save(again), now_s)) == after, "what was loaded is saved as it was")


def _loaded(stream: bytes, now_s: float) -> XenstoreServer:
    server = XenstoreServer(now=lambda: now_s)
    load_state(server, stream)
    return server


def expect_values_saved(server: XenstoreServer, now_s: float) -> None:
    """Whatever else is in there, saving and loading keeps each value."""
    server.drop_transactions()
    again = _loaded(save(server), now_s)
    values = [{path: node.value for path, node in s.store.nodes.items()} for s in (server, again)]
    expect(values[0] == values[1], "values are saved and loaded")


def view(server: XenstoreServer) -> dict[str, object]:
    """All that a state stream can say, in an order that does not depend on its history."""
    store = server.store
    conns = [c for c in server.connections if c.ring is not None] + sockets_of(server)
    return {
        "nodes": {
            path: (node.value, store.fresh_perms(node), sorted(node.paths()))
            for path, node in usage.all_nodes(store)
        },
        "connections": [
            (conn.domid, conn.target, conn.ring and (conn.ring.evtchn, conn.ring.unique_id))
            for conn in conns
        ],
        "bytes on their way": [(conn.unparsed, conn.unsent()) for conn in conns],
        "watches": [
            [(w.path, w.token, w.depth, w.prefix) for w in conn.watches.values()] for conn in conns
        ],
        "introduced": sorted(server.introduced),
        "domains": sorted(store.domains),
        "quotas": server.quotas.values,
        "accounts": {
            domid: (
                account.features,
                account.quotas,
                {n: account.used[i] for i, (n, _) in enumerate(ITEMS) if n not in _UNSAID},
            )
            for domid, account in sorted(store.accounts.by_domid.items())
        },
    }
