"""Where attacks are played: a server with domain 0, guests on shared pages, and one bystander.

**Invariants.** Nothing here depends on time or chance. `unharmed` holds whatever a guest did:
domain 0 and the bystander are answered, the tree is whole, accounts say what is really there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from differential.ours import CoreRing, CoreSocket, OurPeer
from xenstore.scene import OK, Reply, Scene
from xenstore.talk import encode

from xenlive.abi import xs_ring
from xenlive.abi.xs_wire import (
    XS_GET_DOMAIN_PATH,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlive.xenstore import usage
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.quota import MEMORY, NODES
from xenlive.xenstore.server import XenstoreServer

RING = xs_ring.XENSTORE_RING_SIZE
BYSTANDER = 9

Party = CoreRing | CoreSocket


class Stage:
    """One play; guests are made with `guest`, and are told nothing of each other."""

    def __init__(self) -> None:
        self.peer = OurPeer()
        self._lines: dict[int, CoreRing] = {}
        self.scene = Scene(self.peer)
        self.dom0 = self.peer.open_socket()
        self.bystander = self.guest(BYSTANDER)
        self._numbers = itertools.count(100_000)

    @property
    def server(self) -> XenstoreServer:
        """The server core: what it holds is looked at, never changed."""
        return self.peer.server

    def guest(self, domid: int) -> CoreRing:
        """A new domain, introduced, with a home that it owns."""
        line = self.scene.guest(domid)
        assert isinstance(line, CoreRing)
        self._lines[domid] = line
        return line

    def line(self, domid: int) -> CoreRing:
        """The guest of a domain id, the last one that was made."""
        return self._lines[domid]

    def conn(self, domid: int) -> Connection:
        """The server's end of a guest's connection."""
        return self.server.rings[domid]

    def ask(self, party: Party, kind: int, payload: bytes, tx_id: int = 0) -> Reply:
        """The reply's payload, or the error's name; events on the way are dropped."""
        return self.scene.ask(party, kind, payload, tx_id)

    def heard(self, party: Party) -> list[bytes]:
        """Paths of the events that came since the last question."""
        number = next(self._numbers)
        party.send(encode(XS_GET_DOMAIN_PATH, b"0\0", 0, number))
        return [
            message.payload.split(b"\0")[0]
            for message in party.until(number)
            if message.kind == XS_WATCH_EVENT
        ]

    def start(self, party: Party) -> int:
        """A new transaction's id."""
        reply = self.ask(party, XS_TRANSACTION_START, b"\0")
        assert isinstance(reply, bytes)
        return int(reply[:-1])

    def end(self, party: Party, tx_id: int, word: bytes = b"T\0") -> Reply:
        """Commits a transaction, or drops it with `F`."""
        return self.ask(party, XS_TRANSACTION_END, word, tx_id)

    def nodes_of(self, domid: int) -> int:
        """How many nodes a domain pays for."""
        return self.server.store.accounts.open(domid).used[NODES]

    def memory_of(self, domid: int) -> int:
        """How many bytes a domain pays for, less the answers that wait for it."""
        return self.server.store.accounts.open(domid).used[MEMORY]

    def fill(self, domid: int) -> None:
        """Has a guest make nodes, in directories that are not too large, until it has its quota."""
        line = self.line(domid)
        quota = self.server.store.accounts.open(domid).quotas["nodes"]
        number = 0
        while self.nodes_of(domid) < quota:
            path = b"d%d/%d\0" % (number // 90, number)
            assert self.ask(line, XS_MKDIR, path) in (OK, "ENOSPC")
            number += 1
        assert self.ask(line, XS_MKDIR, b"over\0") == "ENOSPC"

    def push(self, line: CoreRing, domid: int, data: bytes) -> bytes:
        """Puts requests into a ring without ever taking an answer out; what did not go in."""
        words, page = line.guest.words, line.guest.page
        while data:
            prod, cons = words[xs_ring.REQ_PROD], words[xs_ring.REQ_CONS]
            piece = data[: RING - (prod - cons & 0xFFFFFFFF)]
            for index, byte in enumerate(piece):
                page[(prod + index) % RING] = byte
            words[xs_ring.REQ_PROD] = prod + len(piece) & 0xFFFFFFFF
            data = data[len(piece) :]
            self.pump(domid)
            if words[xs_ring.REQ_CONS] == cons:
                break
        return data

    def pump(self, domid: int) -> None:
        """What the server does when a guest's event comes."""
        link = self.conn(domid).link
        assert link is not None
        link.pump()
        self.peer.settle()

    def unharmed(self) -> None:
        """Domain 0 and the bystander go on; what the server holds is sound."""
        for party, path in ((self.dom0, b"/tool/well"), (self.bystander, b"well")):
            assert self.ask(party, XS_WRITE, path + b"\0yes") == OK
            assert self.ask(party, XS_READ, path + b"\0") == b"yes"
            assert self.ask(party, XS_RM, path + b"\0") == OK
        self.sound()

    def sound(self) -> None:
        """The tree is whole, and what each domain pays for is what there is."""
        server = self.server
        assert server.store.check() == []
        assert server.store.accounts.wrong_counts(usage.all_nodes(server.store)) == {}
        for conn in server.connections:
            assert all(conn is watch.conn for watch in conn.watches.values())
        assert sum(len(at) for at in server.watches.by_path.values()) == server.watches.count
        assert sum(len(conn.watches) for conn in server.connections) == server.watches.count


@contextmanager
def attacked() -> Iterator[Stage]:
    """A stage whose server must be unharmed at the end."""
    stage = Stage()
    yield stage
    stage.unharmed()
    stage.peer.close()


def until_refused(do: Callable[[int], Reply], most: int = 3000) -> tuple[int, str]:
    """How often `do(0)`, `do(1)` … went well, and the error that then came."""
    for number in range(most):
        reply = do(number)
        if isinstance(reply, str):
            return number, reply
    raise AssertionError(f"{most} times and never refused")
