"""Sequences of requests that servers are compared by: made from a seed, the same on every server.

A step is one thing that one client or the machine does. What a server gives out and others need
not (ids of transactions) is named by its number of order, so a sequence is made before anybody
has answered.

**Invariants.** A sequence depends on its seed and length alone. Steps of a guest come only while
the sequence believes it connected; one that is not is skipped by whoever plays it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from xenlive.abi.xs_wire import (
    TYPE_NAMES,
    XS_CONTROL,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_GET_DOMAIN_PATH,
    XS_GET_PERMS,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_RELEASE,
    XS_RESET_WATCHES,
    XS_RESUME,
    XS_RM,
    XS_SET_PERMS,
    XS_SET_TARGET,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
)

# What the machine does; below zero, beside the types of messages.
CREATE, DESTROY, SHUTDOWN, RECONNECT = -1, -2, -3, -4
MACHINE = {
    CREATE: "the domain begins",
    DESTROY: "the domain ends",
    SHUTDOWN: "the domain has shut down",
    RECONNECT: "the socket is closed and opened again",
}

#: Sockets are clients below zero, guests have their domid.
SOCKETS = (-1, -2)
GUESTS = (1, 2, 3)
#: A domid that never exists, and a transaction that never does.
NOBODY = 9
NO_SUCH_TX = 999
TX_MOST = 3
GFN = 0xFEFFC
PORT = 5
#: Names that all C daemons know, and values that are soon reached.
QUOTAS = {
    b"nodes": (3, 6, 12),
    b"watches": (2, 4),
    b"transactions": (1, 2),
    b"node-size": (150, 200, 300),
    b"transaction-nodes": (3, 6, 9),
    b"path-max": (17, 20, 40),
}
WORDS = (b"t", b"u", b"")


@dataclass(frozen=True)
class Step:
    """One request of `who`, or (kind below zero) what the machine does to it.

    `tx` is 0 or the number of the client's transaction, counted from 1 in the order of starts.
    """

    who: int
    kind: int
    payload: bytes = b""
    tx: int = 0

    def __str__(self) -> str:
        name = MACHINE.get(self.kind) or TYPE_NAMES.get(self.kind, f"type {self.kind}")
        who = f"socket {-self.who}" if self.who < 0 else f"guest {self.who}"
        payload = self.payload
        shown = repr(payload) if len(payload) <= 80 else f"{payload[:60]!r}… ({len(payload)} bytes)"
        return f"{who}: {name} {shown}" + (f" in transaction {self.tx}" if self.tx else "")


class Maker:
    """Throws the dice of one sequence, and knows what it has made so far."""

    def __init__(self, seed: int, guests: bool = True, plain: bool = False) -> None:
        self.dice = random.Random(seed)
        self.plain = plain
        self.guests = guests
        self.steps: list[Step] = []
        self.open: dict[int, list[int]] = {}
        self.started: dict[int, int] = {}
        self.alive: set[int] = set()
        self.connected: set[int] = set()
        self.watched: list[tuple[int, bytes]] = []

    # -- parts of a request ------------------------------------------------------------------

    def path(self) -> bytes:
        """Few different ones, so that requests meet."""
        dice = self.dice
        odd = dice.random()
        if odd < 0.03:
            return dice.choice(
                (b"", b"//", b"/a//b", b"/a/", b"/a b", b"/", b"/tool", b"/local", b"/a/\xff")
            )
        if odd < 0.45:
            below = dice.choice((b"", b"/data", b"/data", b"/data/x", b"/data/y", b"/x"))
            return b"/local/domain/%d" % dice.choice(GUESTS) + below
        if odd < 0.6:
            return dice.choice((b"data", b"data/x", b"data/y/z", b"x"))
        depth = dice.choice((1, 1, 2, 2, 2, 3, 3, 4))
        return b"".join([b"/" + dice.choice((b"a", b"b", b"c")) for _ in range(depth)])

    def watched_path(self) -> bytes:
        if self.dice.random() < 0.2:
            return self.dice.choice((b"@releaseDomain", b"@introduceDomain"))
        return self.path()

    def value(self) -> bytes:
        return bytes(self.dice.choices(b"\0abc\xff", k=self.dice.choice((0, 1, 5, 40, 300))))

    def domid(self) -> int:
        if self.plain:
            return self.dice.choice((0, *sorted(self.connected)))
        return self.dice.choice((0, 1, 1, 2, 2, 3, NOBODY))

    def two_domids(self) -> bytes:
        return b"%d\0%d\0" % (self.domid(), self.domid())

    def entries(self, who: int) -> bytes:
        """Permissions; mostly the caller stays the owner."""
        dice = self.dice
        if dice.random() < 0.03:
            return dice.choice((b"", b"x0\0", b"n\0", b"n0x\0", b"n0", b"N0\0"))
        owner = max(who, 0) if dice.random() < 0.7 else self.domid()
        others = dice.choice((0, 0, 1, 1, 2, 3))
        domids = [owner, *(self.domid() for _ in range(others))]
        letters = b"nr" if self.plain else b"nrwb"
        return b"".join([b"%c%d\0" % (dice.choice(letters), domid) for domid in domids])

    # -- steps -------------------------------------------------------------------------------

    def add(self, who: int, kind: int, payload: bytes = b"", tx: int = 0) -> None:
        self.steps.append(Step(who, kind, payload, tx))

    def bring_up(self, domid: int) -> None:
        """What a toolstack does for a domain."""
        home = b"/local/domain/%d" % domid
        who = self.dice.choice(SOCKETS)
        self.add(domid, CREATE)
        self.alive.add(domid)
        self.add(who, XS_MKDIR, home + b"\0")
        self.add(who, XS_SET_PERMS, home + b"\0n0\0r%d\0" % domid)
        self.add(who, XS_MKDIR, home + b"/data\0")
        self.add(who, XS_SET_PERMS, home + b"/data\0n%d\0" % domid)
        self.introduce(domid, who)

    def introduce(self, domid: int, who: int) -> None:
        self.add(who, XS_INTRODUCE, b"%d\0%d\0%d\0" % (domid, GFN, PORT))
        if domid in self.alive:
            self.connected.add(domid)
            self.open.pop(domid, None)

    def gone(self, domid: int) -> None:
        """A domain goes, and then something else happens.

        The C daemon of 4.17 tells an id's next owner from the one before by the store's generation.
        """
        self.connected.discard(domid)
        self.open.pop(domid, None)
        self.add(self.dice.choice(SOCKETS), XS_WRITE, b"/then\0")

    def machine_step(self) -> None:
        """A domain comes, goes, shuts down, or changes its toolstack's mind."""
        dice = self.dice
        domid = dice.choice(GUESTS)
        who = dice.choice(SOCKETS)
        choice = dice.random()
        if domid not in self.alive:
            if choice < 0.9:
                self.bring_up(domid)
            else:
                self.introduce(domid, who)
        elif choice < 0.3:
            self.add(domid, DESTROY)
            self.alive.discard(domid)
            self.gone(domid)
        elif choice < 0.45:
            self.add(domid, SHUTDOWN)
        elif choice < 0.6:
            self.add(who, XS_RESUME, b"%d\0" % domid)
        elif choice < 0.75:
            self.add(who, XS_RELEASE, b"%d\0" % domid)
            self.gone(domid)
        elif choice < 0.95:
            if not (self.plain and domid in self.connected):
                self.introduce(domid, who)
        else:
            self.add(who, RECONNECT)
            self.open.pop(who, None)

    def set_quotas(self) -> None:
        """Makes some quotas so low that they are met."""
        for name, values in QUOTAS.items():
            if self.dice.random() < (0.5 if len(values) > 2 else 0.15):
                words = (b"quota", b"set", name, b"%d" % self.dice.choice(values))
                self.add(SOCKETS[0], XS_CONTROL, b"".join(word + b"\0" for word in words))

    def control(self) -> bytes:
        return self.dice.choice((b"check\0", b"no-such-command\0", b"check\0more\0"))

    def request(self) -> None:
        """One request of somebody connected."""
        dice = self.dice
        everybody = [*SOCKETS, *sorted(self.connected), *sorted(self.connected)]
        who = dice.choice(everybody)
        makers: list[tuple[int, int, Callable[[], bytes]]] = [
            (20, XS_WRITE, lambda: self.path() + b"\0" + self.value()),
            (14, XS_READ, lambda: self.path() + b"\0"),
            (8, XS_MKDIR, lambda: self.path() + b"\0"),
            (9, XS_RM, lambda: self.path() + b"\0"),
            (9, XS_DIRECTORY, lambda: self.path() + b"\0"),
            (2, XS_DIRECTORY_PART, lambda: self.path() + b"\0%d\0" % dice.randrange(-1, 12)),
            (6, XS_GET_PERMS, lambda: self.path() + b"\0"),
            (9, XS_SET_PERMS, lambda: self.path() + b"\0" + self.entries(who)),
            (1, XS_SET_PERMS, lambda: b"@releaseDomain\0" + self.entries(who)),
            (9, XS_WATCH, lambda: self.watched_path() + b"\0" + dice.choice(WORDS) + b"\0"),
            (4, XS_UNWATCH, self.unwatch_of(who)),
            (1, XS_RESET_WATCHES, lambda: b"\0"),
            (2, XS_IS_DOMAIN_INTRODUCED, lambda: b"%d\0" % self.domid()),
            (1, XS_GET_DOMAIN_PATH, lambda: b"%d\0" % self.domid()),
            (
                2 * (not self.plain),
                XS_SET_TARGET,
                lambda: b"%d\0%d\0" % (self.domid(), self.domid()),
            ),
            (1, XS_CONTROL, self.control),
            (8, XS_TRANSACTION_START, lambda: b"\0"),
            (8, XS_TRANSACTION_END, lambda: dice.choice((b"T\0", b"T\0", b"T\0", b"F\0", b"X\0"))),
        ]
        _, kind, make = dice.choices(makers, [weight for weight, _, _ in makers])[0]
        payload = make()
        running = self.open.setdefault(who, [])
        tx = 0
        if running and dice.random() < 0.6:
            tx = dice.choice(running)
        elif dice.random() < 0.01:
            tx = NO_SUCH_TX
        if kind == XS_TRANSACTION_START:
            if len(running) >= TX_MOST:
                return
            if tx == 0:
                self.started[who] = self.started.get(who, 0) + 1
                running.append(self.started[who])
        elif kind == XS_TRANSACTION_END and payload != b"X\0" and tx in running:
            running.remove(tx)
        elif kind == XS_RESET_WATCHES and tx != NO_SUCH_TX:
            running.clear()
        elif kind == XS_WATCH:
            self.watched.append((who, payload))
        self.add(who, kind, payload, tx)

    def unwatch_of(self, who: int) -> Callable[[], bytes]:
        """Mostly of one that was set."""

        def make() -> bytes:
            own = [payload for by, payload in self.watched if by == who]
            if own and self.dice.random() < 0.7:
                return self.dice.choice(own)
            return b"/a\0" + self.dice.choice(WORDS) + b"\0"

        return make


def sequence(seed: int, length: int, *, guests: bool = True, plain: bool = False) -> list[Step]:
    """At least `length` steps from a seed; without `guests` only sockets speak.

    A `plain` one is about domains that are there, each introduced once, that make nodes in their
    own places and act for nobody: the OCaml daemon goes its own way with others.
    """
    maker = Maker(seed, guests, plain)
    if guests and not plain and maker.dice.random() < 0.4:
        maker.set_quotas()
    if guests:
        for domid in GUESTS[: maker.dice.randrange(1, len(GUESTS) + 1)]:
            maker.bring_up(domid)
    while len(maker.steps) < length:
        if guests and maker.dice.random() < 0.05:
            maker.machine_step()
        else:
            maker.request()
    return maker.steps
