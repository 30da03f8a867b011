"""What each connection of the load says, and what it must hear.

A script is a generator: it yields an `Ask` (requests to send at once) and is sent the replies, or
a number of seconds to pause. `loop.py` drives it; the scripts know of neither sockets nor time.

    Client    reads, writes, lists and changes permissions; raises a counter in transactions
    Writer    changes what the watchers watch, in an order that it tells them first
    preload   makes the tree;  walk  reads a store back, node by node

**Invariants.** Every reply is compared with the plan. A client's own nodes have one writer, so the
plan is exact at any time; the counter has many, and is exact because every commit raises it by one.
A client ends only between two actions: then no transaction is open and no scratch node is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

from xenlive.demo import wire
from xenlive.demo.tally import Tally, Watch
from xenlive.demo.tree import PERMISSIONS, Node, Tree, make_value, preload
from xenlive.demo.wire import Reply, Request

TRANSACTION_TRIES = 50
BATCH = 64
SPLIT_S = 0.005


@dataclass
class Ask:
    """Requests to send in one go; with `split_s` the first arrives in two pieces, so far apart."""

    requests: list[Request]
    split_s: float = 0.0


Step = Ask | float
Script = Generator[Step, list[Reply], None]
Asking = Generator[Step, list[Reply], Reply]


class Client:
    """One client that keeps reading and writing until `stopping`."""

    def __init__(
        self, tree: Tree, number: int, tally: Tally, pace_s: float, seed: int, split: bool
    ) -> None:
        self.name = f"client {number}"
        self.stopping = False
        self._tree = tree
        self._slots = tree.slots[number]
        self._scratch = tree.scratch[number]
        self._counter = tree.counters[number % len(tree.counters)]
        self._groups = list(tree.groups)
        self._tally = tally
        self._pace_s = pace_s
        self._chance = random.Random(seed * 1000 + number)
        actions: list[tuple[Callable[[], Script], int]] = [
            (self._read_own, 25),
            (self._write_own, 25),
            (self._read_shared, 20),
            (self._list_group, 8),
            (self._read_perms, 8),
            (self._raise_counter, 4),
            (self._make_and_remove, 4),
            (self._set_perms, 3),
            (self._read_missing, 1),
            (self._write_in_pieces, 2 if split else 0),
        ]
        self._actions = [action for action, _ in actions]
        self._weights = [weight for _, weight in actions]

    def script(self) -> Script:
        """Actions with short pauses, chosen by chance."""
        while not self.stopping:
            action = self._chance.choices(self._actions, self._weights)[0]
            yield from action()
            yield self._pace_s * self._chance.uniform(0.5, 1.5)

    def _ask(self, kind: int, payload: bytes, tx_id: int = 0, split_s: float = 0.0) -> Asking:
        replies = yield Ask([Request(kind, payload, tx_id)], split_s)
        return replies[0]

    def _expect(
        self, kind: int, payload: bytes, expected: bytes, tx_id: int = 0, split_s: float = 0.0
    ) -> Generator[Step, list[Reply], bool]:
        reply = yield from self._ask(kind, payload, tx_id, split_s)
        request = Request(kind, payload, tx_id)
        return check(self._tally, self.name, request, reply, expected)

    def _read_own(self) -> Script:
        yield from self._read(self._chance.choice(self._slots))

    def _read_shared(self) -> Script:
        yield from self._read(self._chance.choice(self._tree.leaves))

    def _read(self, path: bytes) -> Script:
        yield from self._expect(wire.READ, path + b"\0", self._tree.nodes[path].value)

    def _write_own(self) -> Script:
        yield from self._write(0.0)

    def _write_in_pieces(self) -> Script:
        yield from self._write(SPLIT_S)

    def _write(self, split_s: float) -> Script:
        path = self._chance.choice(self._slots)
        value = make_value(self._chance)
        payload = path + b"\0" + value
        if (yield from self._expect(wire.WRITE, payload, wire.OK, split_s=split_s)):
            self._tree.nodes[path].value = value

    def _list_group(self) -> Script:
        group = self._chance.choice(self._groups)
        request = Request(wire.DIRECTORY, group + b"\0")
        reply = yield from self._ask(*request)
        found = reply.payload.split(b"\0")
        if reply.type != wire.DIRECTORY or found.pop() != b"" or len(found) != len(set(found)):
            self._tally.fail(f"{self.name}: {wire.describe(request)}: {wire.show(reply.payload)}")
        elif set(found) != self._tree.groups[group]:
            self._tally.fail(f"{self.name}: {wire.describe(request)}: not the children it has")

    def _read_perms(self) -> Script:
        path = self._chance.choice(self._tree.leaves)
        expected = join(self._tree.nodes[path].perms)
        yield from self._expect(wire.GET_PERMS, path + b"\0", expected)

    def _set_perms(self) -> Script:
        path = self._chance.choice(self._slots)
        perms = self._chance.choice(PERMISSIONS)
        if (yield from self._expect(wire.SET_PERMS, path + b"\0" + join(perms), wire.OK)):
            self._tree.nodes[path].perms = perms

    def _make_and_remove(self) -> Script:
        path = self._scratch + b"\0"
        yield from self._expect(wire.MKDIR, path, wire.OK)
        yield from self._expect(wire.READ, path, b"")
        yield from self._expect(wire.RM, path, wire.OK)

    def _read_missing(self) -> Script:
        request = Request(wire.READ, self._scratch + b"/none\0")
        reply = yield from self._ask(*request)
        if (reply.type, reply.payload) != (wire.ERROR, b"ENOENT\0"):
            self._tally.fail(f"{self.name}: {wire.describe(request)}: {wire.show(reply.payload)}")

    def _raise_counter(self) -> Script:
        for tries in range(TRANSACTION_TRIES):
            if (yield from self._try_transaction()):
                return
            self._tally.retried += 1
            # The more have tried in vain, the further apart they try again.
            yield self._chance.uniform(0.0, min(0.003 * 1.5**tries, 0.3))
        self._tally.fail(f"{self.name}: no commit in {TRANSACTION_TRIES} tries")

    def _try_transaction(self) -> Generator[Step, list[Reply], bool]:
        """One transaction; False if the server says EAGAIN. Any other failure is counted."""
        counter = self._counter
        reply = yield from self._ask(wire.TRANSACTION_START, b"\0")
        number = reply.payload.rstrip(b"\0")
        if reply.type != wire.TRANSACTION_START or not number.isdigit() or int(number) == 0:
            self._tally.fail(f"{self.name}: TRANSACTION_START: {wire.show(reply.payload)}")
            return True
        tx_id = int(number)
        reply = yield from self._ask(wire.READ, counter + b"\0", tx_id)
        if reply.type != wire.READ or not reply.payload.isdigit():
            self._tally.fail(f"{self.name}: READ in a transaction: {wire.show(reply.payload)}")
            yield from self._ask(wire.TRANSACTION_END, b"F\0", tx_id)
            return True
        raised = b"%d" % (int(reply.payload) + 1)
        yield from self._expect(wire.WRITE, counter + b"\0" + raised, wire.OK, tx_id)
        yield from self._expect(wire.READ, counter + b"\0", raised, tx_id)
        reply = yield from self._ask(wire.TRANSACTION_END, b"T\0", tx_id)
        if (reply.type, reply.payload) == (wire.ERROR, b"EAGAIN\0"):
            return False
        request = Request(wire.TRANSACTION_END, b"T\0", tx_id)
        if check(self._tally, self.name, request, reply, wire.OK):
            self._tally.committed += 1
            node = self._tree.nodes[counter]
            node.value = b"%d" % (int(node.value) + 1)
        return True


class Writer:
    """Changes watched nodes, `burst` at a time, and tells each watch beforehand what is due."""

    def __init__(
        self, tree: Tree, watches: list[Watch], tally: Tally, pace_s: float, seed: int
    ) -> None:
        self.stopping = False
        self._tree = tree
        self._watches = watches
        self._tally = tally
        self._pace_s = pace_s
        self._chance = random.Random(seed * 1000 + 999)
        self._changes = [tree.changes_of(number) for number in range(len(watches))]
        self._next = 0
        self._burst = min(4, len(watches))

    def script(self) -> Script:
        """Bursts of changes, one watch after the other, until `stopping`."""
        while self._watches and not self.stopping:
            turn = [(self._next + k) % len(self._watches) for k in range(self._burst)]
            self._next = (turn[-1] + 1) % len(self._watches)
            changes = [(number, self._chance.choice(self._changes[number])) for number in turn]
            yield from self._change(changes)
            yield self._pace_s

    def fire_each(self) -> Script:
        """Changes the watched node of every watch once."""
        everyone = [(number, changes[0]) for number, changes in enumerate(self._changes)]
        for start in range(0, len(everyone), BATCH):
            some = everyone[start : start + BATCH]
            yield from self._change(some)
            for number, _ in some:
                self._watches[number].fired_last = True

    def _change(self, changes: list[tuple[int, bytes]]) -> Script:
        requests = []
        for number, path in changes:
            self._watches[number].expect(path)
            if self._chance.random() < 0.1:
                perms = self._chance.choice(PERMISSIONS)
                self._tree.nodes[path].perms = perms
                requests.append(Request(wire.SET_PERMS, path + b"\0" + join(perms)))
            else:
                value = b"%d" % self._chance.getrandbits(30)
                self._tree.nodes[path].value = value
                requests.append(Request(wire.WRITE, path + b"\0" + value))
        replies = yield Ask(requests)
        for request, reply in zip(requests, replies, strict=True):
            check(self._tally, "writer", request, reply, wire.OK)


def set_watch(watch: Watch, tally: Tally) -> Script:
    """Sets a watch; its first event is due at once, as for any watch."""
    watch.expect(watch.path)
    request = Request(wire.WATCH, watch.path + b"\0" + watch.token + b"\0")
    replies = yield Ask([request])
    check(tally, "watcher", request, replies[0], wire.OK)


def barrier(watch: Watch, value: Callable[[], bytes], tally: Tally) -> Script:
    """Reads once on the watcher's own connection.

    A connection is answered in order, so with the answer all events of earlier changes are here,
    and those that still are due will never come.
    """
    request = Request(wire.READ, watch.path + b"\0")
    replies = yield Ask([request])
    check(tally, "watcher", request, replies[0], value())
    watch.close()


def make_nodes(tree: Tree, tally: Tally) -> Script:
    """Writes all nodes of the tree, and the permissions that they don't inherit."""
    requests: list[Request] = []
    for path, node in preload(tree):
        requests.append(Request(wire.WRITE, path + b"\0" + node.value))
        parent = tree.nodes.get(path.rsplit(b"/", 1)[0])
        if parent is None or node.perms != parent.perms:
            requests.append(Request(wire.SET_PERMS, path + b"\0" + join(node.perms)))
        if len(requests) >= BATCH:
            yield from _all_ok(requests, tally)
            requests = []
    yield from _all_ok(requests, tally)


def _all_ok(requests: list[Request], tally: Tally) -> Script:
    replies = yield Ask(requests)
    for request, reply in zip(requests, replies, strict=True):
        check(tally, "loader", request, reply, wire.OK)


def walk(found: dict[bytes, Node], tally: Tally, top: bytes = b"/") -> Script:
    """Reads the whole store from `top` into `found`, listing directories to find out what is there.

    A node that is listed but can't be read is left out of `found`.
    """
    waiting = [top]
    while waiting:
        some, waiting = waiting[-BATCH // 2 :], waiting[: -BATCH // 2]
        requests = []
        for path in some:
            name = path + b"\0"
            requests += [Request(wire.READ, name), Request(wire.GET_PERMS, name)]
            requests.append(Request(wire.DIRECTORY, name))
        replies = yield Ask(requests)
        for k, path in enumerate(some):
            value, perms, listing = replies[3 * k : 3 * k + 3]
            if value.type != wire.READ or perms.type != wire.GET_PERMS:
                tally.fail(f"walk: {path!r}: {wire.show(value.payload)}")
                continue
            found[path] = Node(value.payload, tuple(perms.payload.rstrip(b"\0").split(b"\0")))
            names = listing.payload
            if listing.type == wire.ERROR and names == b"E2BIG\0":
                names = yield from _list_in_parts(path, tally)
            elif listing.type != wire.DIRECTORY:
                tally.fail(f"walk: DIRECTORY {path!r}: {wire.show(names)}")
                continue
            base = path.rstrip(b"/")
            waiting += [base + b"/" + name for name in names.split(b"\0") if name]


def _list_in_parts(path: bytes, tally: Tally) -> Generator[Step, list[Reply], bytes]:
    """A directory too long for one answer: parts until one ends with an empty name."""
    names = b""
    while True:
        request = Request(wire.DIRECTORY_PART, b"%s\0%d\0" % (path, len(names)))
        reply = (yield Ask([request]))[0]
        if reply.type != wire.DIRECTORY_PART:
            tally.fail(f"walk: {wire.describe(request)}: {wire.show(reply.payload)}")
            return names
        part = reply.payload.partition(b"\0")[2]
        if part.endswith(b"\0\0") or part in (b"\0", b""):
            return names + part
        names += part


def join(perms: Iterable[bytes]) -> bytes:
    """Permissions as they travel: each entry with its NUL."""
    return b"".join(entry + b"\0" for entry in perms)


def check(tally: Tally, who: str, request: Request, reply: Reply, expected: bytes) -> bool:
    """Whether `reply` is the answer that `request` must get; counted as failed if not."""
    if reply.type == request.type and reply.payload == expected:
        return True
    what = "" if reply.type == request.type else f"{wire.NAMES.get(reply.type, reply.type)} "
    tally.fail(
        f"{who}: {wire.describe(request)}: {what}{wire.show(reply.payload)}"
        f" instead of {wire.show(expected)}"
    )
    return False
