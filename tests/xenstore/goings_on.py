"""Everything that can happen to a server, from a seed: requests of sockets and guests, domains that
come, shut down and go, connections that break, quotas, and updates.

**Invariants.** The same dice give the same happenings. What is asked is mostly sound, about few
paths, so that the askers meet; the rest is not.
"""

from __future__ import annotations

import random

from xenstore.talk import Client
from xenstore.test_xs_domains import FakeLink, FakeLinks

from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_INTRODUCE,
    XS_MKDIR,
    XS_READ,
    XS_RELEASE,
    XS_RESET_WATCHES,
    XS_RESUME,
    XS_RM,
    XS_SET_FEATURE,
    XS_SET_PERMS,
    XS_SET_QUOTA,
    XS_SET_TARGET,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.xenstore import domains
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.domains import DomainState
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import encode_state, load_state

GUESTS = (3, 5, 7)
TOKENS = (b"t", b"u", b"")


class Clock:
    """Seconds that go forward with each question."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 0.001
        return self.now_s


def saved(server: XenstoreServer) -> bytes:
    """The state stream; connections by socket get descriptors in their order."""
    fds = {conn: 10 + index for index, conn in enumerate(server.connections)}
    return b"".join(encode_state(server, listen_fd=-1, evtchn_fd=-1, fd_of=fds.__getitem__))


class GoingsOn:
    """A server and all who have to do with it; `step` lets one thing happen."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.clock = Clock()
        self.server = XenstoreServer(now=self.clock)
        self.links = FakeLinks(self.server)
        self.next_unique_id = 1

    def step(self) -> None:
        """One thing, mostly a request."""
        self.dice.choices(
            (
                self.ask,
                self.whole_transaction,
                self.domain_comes,
                self.domain_is_managed,
                self.domain_ends,
                self.socket_comes,
                self.socket_goes,
                self.setting,
            ),
            (60, 4, 5, 3, 1, 2, 1, 4),
        )[0]()
        for conn in self.server.connections:
            conn.take()

    def update(self) -> tuple[bytes, float]:
        """The next kernel takes over; returns the stream, and the time of its load."""
        self.server.drop_transactions()
        stream = saved(self.server)
        before, at_s = self.links, self.clock()
        self.server = XenstoreServer(now=lambda: at_s)
        loaded = load_state(self.server, stream)
        self.links = FakeLinks(self.server)
        self.links.there = before.there
        for conn in loaded.rings:
            conn.link = self.links.made[conn.domid] = FakeLink()
        self.server.on_print = None
        return stream, at_s

    def ask(self) -> None:
        """A request of somebody's."""
        conns = list(self.server.connections)
        if not conns:
            self.socket_comes()
            return
        conn = self.dice.choice(conns)
        kind, payload = self._request()
        if kind == XS_UNWATCH and conn.watches:
            path, token = self.dice.choice(list(conn.watches))
            payload = path + b"\0" + token + b"\0"
        ids = list(conn.transactions)
        tx_id = self.dice.choice(ids) if ids and self.dice.random() < 0.7 else 0
        if kind == XS_TRANSACTION_START and len(ids) < 3:
            tx_id = 0
        self._send(conn, kind, payload, tx_id)

    def whole_transaction(self) -> None:
        """Some requests that nobody comes between."""
        conn = self.dice.choice(list(self.server.connections) or [self.server.connect()])
        before = set(conn.transactions)
        self._send(conn, XS_TRANSACTION_START, b"\0", 0)
        for number in set(conn.transactions) - before:
            for _ in range(self.dice.randrange(6)):
                kind, payload = self._request()
                if kind not in (XS_TRANSACTION_END, XS_RESET_WATCHES):
                    self._send(conn, kind, payload, number)
            self._send(conn, XS_TRANSACTION_END, b"T\0", number)

    def domain_comes(self) -> None:
        """A domain is made, and mostly introduced, perhaps once more."""
        domid = self.dice.choice(GUESTS)
        if domid not in self.links.there:
            self.links.there[domid] = DomainState(self.next_unique_id, False)
            self.next_unique_id += 1
        home = b"/local/domain/%d\0" % domid
        self.dom0(XS_WRITE, home)
        self.dom0(XS_SET_PERMS, home + b"n%d\0r%d\0" % (domid, self.dice.choice(GUESTS)))
        if self.dice.random() < 0.4:
            self.dom0(XS_SET_FEATURE, b"%d\0%d\0" % (domid, self.dice.randrange(4)))
        if self.dice.random() < 0.8:
            self.dom0(XS_INTRODUCE, b"%d\x000\x001\0" % domid)

    def domain_is_managed(self) -> None:
        """What the toolstack says of one."""
        one, other = self.dice.choice(GUESTS), self.dice.choice((0, *GUESTS))
        kind = self.dice.choice((XS_RESUME, XS_SET_TARGET, XS_SET_TARGET, XS_RELEASE))
        self.dom0(kind, b"%d\0" % one + (b"%d\0" % other if kind == XS_SET_TARGET else b""))

    def domain_ends(self) -> None:
        """One shuts down or goes, perhaps with another in its place; who looks finds it."""
        domid = self.dice.choice(GUESTS)
        what = self.dice.randrange(3)
        if domid in self.links.there and what < 2:
            self.links.there[domid] = DomainState(self.links.there[domid].unique_id, True)
        if what:
            self.links.there.pop(domid, None)
        if what == 2:
            self.links.there[domid] = DomainState(self.next_unique_id, False)
            self.next_unique_id += 1
        domains.check(self.server)

    def socket_comes(self) -> None:
        """A client connects."""
        if len(self.server.connections) < 6:
            self.server.connect()

    def socket_goes(self) -> None:
        """One that has transactions and watches, perhaps, closes its socket."""
        sockets = [conn for conn in self.server.connections if conn.ring is None]
        if sockets:
            self.server.disconnect(self.dice.choice(sockets))

    def setting(self) -> None:
        """A quota, small enough to be felt."""
        domid = b"%d\0" % self.dice.choice(GUESTS)
        name = self.dice.choice((b"nodes", b"watches", b"transactions", b"transaction-nodes"))
        value = b"%d\0" % self.dice.choice((0, 2, 4, 8))
        self.dom0(XS_SET_QUOTA, self.dice.choice((b"", domid, domid)) + name + b"\0" + value)

    def dom0(self, kind: int, payload: bytes) -> None:
        """A request by the first socket."""
        sockets = [conn for conn in self.server.connections if conn.ring is None]
        self._send(sockets[0] if sockets else self.server.connect(), kind, payload, 0)

    def _send(self, conn: Connection, kind: int, payload: bytes, tx_id: int) -> None:
        client = Client.__new__(Client)
        client.server, client.conn = self.server, conn
        client.send(kind, payload, tx_id)

    def _path(self) -> bytes:
        dice = self.dice
        if dice.random() < 0.05:
            return dice.choice(
                (b"/", b"/tool", b"@releaseDomain", b"@introduceDomain", b"/a//", b"")
            )
        home = b"/local/domain/%d/" % dice.choice(GUESTS)
        start = dice.choice((b"/", b"/", b"", home, home[:-1]))
        if start == home[:-1]:
            return start
        return start + b"/".join(
            dice.choice((b"a", b"b", b"c")) for _ in range(dice.choice((1, 2, 3)))
        )

    def _request(self) -> tuple[int, bytes]:
        dice = self.dice
        path = self._path() + b"\0"
        token = dice.choice(TOKENS) + b"\0"
        who = [dice.choice((0, 9, *GUESTS)) for _ in range(3)]
        return dice.choices(
            (
                (XS_WRITE, path + dice.choice((b"", b"1", b"some value"))),
                (XS_MKDIR, path),
                (XS_RM, path),
                (XS_READ, path),
                (XS_DIRECTORY, path),
                (XS_SET_PERMS, path + b"%c%d\0r%d\0b%d\0" % (dice.choice(b"nrwb"), *who)),
                (XS_SET_PERMS, path + b"n%d\0" % who[0]),
                (XS_WATCH, path + token + dice.choice((b"", b"", b"1\0"))),
                (XS_UNWATCH, path + token),
                (XS_TRANSACTION_START, b"\0"),
                (XS_TRANSACTION_END, dice.choice((b"T\0", b"T\0", b"F\0"))),
                (XS_RESET_WATCHES, b"\0"),
            ),
            (20, 7, 8, 10, 8, 6, 3, 8, 4, 7, 7, 1),
        )[0]
