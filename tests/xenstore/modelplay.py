"""A server and the model of it, side by side: several clients, their transactions and watches.

* Outside of transactions each answer is the model's.
* A transaction that is committed is, answer by answer, what its requests do one after the other at
  that moment; one that is not has changed nothing, and EAGAIN is for those alone of which something
  that they looked at has been changed by somebody.
* Each request, and each commit, is heard of by whoever watches what it changed and may know of it,
  once, and by nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xenstore.talk import Client
from xenstore.test_xs_domains import World
from xenstore.treemodel import (
    OK,
    READ,
    Answer,
    Caller,
    Nodes,
    Request,
    Rights,
    Tree,
    above,
    is_below,
    rights_of,
)

from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_ERROR,
    XS_SET_PERMS,
    XS_SET_QUOTA,
    XS_SET_TARGET,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlive.xenstore import perms, usage
from xenlive.xenstore.quota import DEFAULTS

GUESTS = (3, 5, 7)
MOST_OPEN = 2


@dataclass
class Watch:
    """One that is set: how deep, and how its owner wrote the path."""

    depth: int | None
    raw: bytes


@dataclass
class Open:
    """One open transaction: what was asked, what was answered, what that depends on."""

    view: Tree
    history: list[tuple[Request, Answer]] = field(default_factory=list)
    seen: dict[bytes, int] = field(default_factory=dict)  # path: its version when first looked at


@dataclass
class Party:
    """A client: its end, its place in the model, and what it has set up."""

    client: Client
    caller: Caller
    open: dict[int, Open] = field(default_factory=dict)
    watches: dict[tuple[bytes, bytes], Watch] = field(default_factory=dict)


class Play:
    """All of it; each method is one request to the server, compared."""

    def __init__(self, *, has_target: bool = False) -> None:
        self.counts = {"committed": 0, "again": 0, "events": 0, "hidden": 0}
        world = self._world = World()
        nobody: Rights = (("n", 0),)
        self.tree = Tree(dict.fromkeys((b"/", b"/tool", b"/tool/xenstored"), (b"", nobody)))
        for name in DEFAULTS:
            assert world.dom0.ask(XS_SET_QUOTA, name.encode() + b"\x000\0") == OK
        self.parties = [Party(world.dom0, Caller(0)), Party(Client(world.server), Caller(0))]
        for domid in GUESTS:
            target = 5 if has_target and domid == 3 else -1
            self.parties.append(Party(world.guest(domid), Caller(domid, target)))
            home = b"/local/domain/%d" % domid
            self.tree.do(Caller(0), Request(XS_WRITE, home))
            self.tree.do(Caller(0), Request(XS_SET_PERMS, home, b"n%d\0" % domid))
        if has_target:
            assert world.dom0.ask(XS_SET_TARGET, b"3\x005\0") == OK
        self.compare_trees()

    # -- requests ----------------------------------------------------------------------------------

    def request(self, who: int, request: Request, in_transaction: bool = False) -> None:
        """One about nodes; in the newest transaction, if there is one and it is to be."""
        party = self.parties[who]
        if in_transaction and party.open:
            self._inside(party, list(party.open)[-1], request)
            return
        before = dict(self.tree.nodes)
        wanted = self.tree.do(party.caller, request)
        got = self._ask(party, request.kind, request.payload)
        assert shaped(request, got) == wanted, (party.caller, request)
        self._compare_events(before, self.tree.changed, at_once=True)
        self.compare_trees()

    def start(self, who: int) -> None:
        """Opens a transaction, if the client has not many."""
        party = self.parties[who]
        if len(party.open) >= MOST_OPEN:
            return
        answer = self._ask(party, XS_TRANSACTION_START, b"\0")
        assert isinstance(answer, bytes)
        number = int(answer[:-1])
        assert number not in party.open
        party.open[number] = Open(self.tree.copy())
        self._compare_events(self.tree.nodes, [])

    def end(self, who: int, commit: bool) -> None:
        """Ends the oldest transaction, if there is one."""
        party = self.parties[who]
        if not party.open:
            return
        number = next(iter(party.open))
        ended = party.open.pop(number)
        got = self._ask(party, XS_TRANSACTION_END, b"T\0" if commit else b"F\0", number)
        before, changed = dict(self.tree.nodes), []
        if not commit:
            assert got == OK
        elif got == "EAGAIN":
            self.counts["again"] += 1
            assert self._is_doomed(ended), "nothing that it looked at has changed"
        else:
            assert got == OK
            self.counts["committed"] += 1
            for request, answer in ended.history:
                again = self.tree.do(party.caller, request)
                assert again == answer, (party.caller, request, ended.history)
                changed += self.tree.changed
        self._compare_events(before, changed)
        self.compare_trees()
        assert self._ask(party, XS_WRITE, b"/none\0", number) == "ENOENT"

    def watch(self, who: int, raw: bytes, token: bytes, depth: int | None) -> None:
        """Sets a watch; its first event is for it alone."""
        party = self.parties[who]
        key = party.caller.path(raw), token
        words = [raw, token] + ([] if depth is None else [b"%d" % depth])
        got = self._ask(party, XS_WATCH, b"".join([word + b"\0" for word in words]))
        if key in party.watches:
            assert got == "EEXIST"
        else:
            assert got == OK
            party.watches[key] = Watch(depth, raw)
            assert self._events[party.client].pop() == raw + b"\0" + token + b"\0"
        self._compare_events(self.tree.nodes, [])

    def unwatch(self, who: int, raw: bytes, token: bytes) -> None:
        """Takes one away."""
        party = self.parties[who]
        known = party.watches.pop((party.caller.path(raw), token), None)
        got = self._ask(party, XS_UNWATCH, raw + b"\0" + token + b"\0")
        assert got == ("ENOENT" if known is None else OK)
        self._compare_events(self.tree.nodes, [])

    def _inside(self, party: Party, number: int, request: Request) -> None:
        """A request in a transaction: nothing changes outside, whatever it is."""
        opened = party.open[number]
        for tree in (opened.view, self.tree):
            for each in tree.footprint(party.caller, request):
                opened.seen.setdefault(each, self.tree.versions.get(each, 0))
        opened.view.do(party.caller, request)
        got = self._ask(party, request.kind, request.payload, number)
        opened.history.append((request, shaped(request, got, self._is_doomed(opened))))
        self._compare_events(self.tree.nodes, [])
        self.compare_trees()

    def _is_doomed(self, opened: Open) -> bool:
        """Whether somebody has changed something that a transaction looked at."""
        now = self.tree.versions
        return any(now.get(path, 0) != seen for path, seen in opened.seen.items())

    def _ask(self, party: Party, kind: int, payload: bytes, tx_id: int = 0) -> bytes | str:
        """Asks, and gathers the events that everybody got by it."""
        heard = party.client.send(kind, payload, tx_id)
        (reply,) = [message for message in heard if message.kind != XS_WATCH_EVENT]
        events = [message.payload for message in heard if message.kind == XS_WATCH_EVENT]
        self._events = {each.client: each.client.events() for each in self.parties}
        self._events[party.client] = events
        assert (reply.kind, reply.tx_id) in ((kind, tx_id), (XS_ERROR, tx_id))
        return reply.payload if reply.error is None else reply.error

    # -- comparisons -------------------------------------------------------------------------------

    def compare_trees(self) -> None:
        """Both have the same nodes."""
        store = self._world.server.store
        now = {
            path: (node.value, rights_of(perms.to_text(node.perms)))
            for path, node in store.nodes.items()
        }
        assert now == self.tree.nodes

    def _compare_events(
        self, before: Nodes, changed: list[tuple[bytes, bool]], *, at_once: bool = False
    ) -> None:
        """Everybody got what is due for these changes, and nothing that is not."""
        after = self.tree.nodes
        last = dict(changed)  # what was said of each path at the end
        paths = {path for path in last if path in before or path in after}
        widely = {path for path, is_exact in changed if not is_exact}
        for party in self.parties:
            due: set[bytes] = set()
            allowed: set[bytes] = set()
            for path in paths:
                sure, perhaps = self._may_know(party.caller, path, before, at_once=at_once)
                for (watched, token), watch in party.watches.items():
                    if not reaches(watched, watch.depth, path):
                        continue
                    shown = shown_as(party.caller, watch, path) + b"\0" + token + b"\0"
                    if sure and (path == watched or not last[path]):
                        due.add(shown)
                    if perhaps and (path == watched or path in widely):
                        allowed.add(shown)
                    self.counts["hidden"] += not perhaps
            got = self._events[party.client]
            self.counts["events"] += len(got)
            assert len(got) == len(set(got)), "an event comes once"
            assert due <= set(got), (party.caller, "is not told of", due - set(got))
            assert set(got) <= allowed, (party.caller, "is told of", set(got) - allowed)
        server = self._world.server
        assert server.store.check() == []
        assert server.store.accounts.wrong_counts(usage.all_nodes(server.store)) == {}

    def _may_know(
        self, caller: Caller, path: bytes, before: Nodes, *, at_once: bool
    ) -> tuple[bool, bool]:
        """Whether one is told of a change at `path` for sure, and whether it may be told.

        Who may read the node, before or after. Who may read the one above it, as long as the node
        is there when it is told: of what a transaction removes nothing is left by then.
        """

        def reads(nodes: Nodes, each: bytes) -> bool:
            return each in nodes and bool(caller.may(nodes[each][1]) & READ)

        after = self.tree.nodes
        by_node = reads(before, path) or reads(after, path)
        by_parent = reads(after, above(path)) if path in after else reads(before, above(path))
        sure = by_node or (by_parent and (at_once or path in after))
        return sure, by_node or reads(before, above(path)) or reads(after, above(path))

    def finish(self) -> None:
        """Ends everything: nothing is left of transactions."""
        for who, party in enumerate(self.parties):
            while party.open:
                self.end(who, commit=False)
        assert not self._world.server.store.pins


def reaches(watched: bytes, depth: int | None, path: bytes) -> bool:
    """Whether a watch is about a path."""
    if not is_below(path, watched):
        return False
    levels = path.rstrip(b"/").count(b"/") - watched.rstrip(b"/").count(b"/")
    return depth is None or levels <= depth


def shown_as(caller: Caller, watch: Watch, path: bytes) -> bytes:
    """A path as the watch's owner sees it: relative, if the watch is."""
    return path if watch.raw[:1] == b"/" else path.removeprefix(caller.path(b""))


def shaped(request: Request, got: bytes | str, is_doomed: bool = False) -> Answer:
    """An answer without what is not promised: the order of a directory.

    That no name comes twice is, but for a transaction that is in conflict already: a child that
    others removed can be made again in it, as with the C daemon.
    """
    if request.kind == XS_DIRECTORY and isinstance(got, bytes):
        names = got.split(b"\0")[:-1]
        assert len(names) == len(set(names)) or is_doomed
        return frozenset(names)
    return got
