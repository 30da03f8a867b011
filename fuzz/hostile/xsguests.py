"""Guests of the xenstore-ring target: two who attack, what they know, and one who is good."""

from __future__ import annotations

from dataclasses import dataclass

from differential.daemons import split
from differential.ringguest import RingGuest
from xenstore.talk import Message

from hostile.target import expect
from hostile.xsmachine import RING_BYTES, Machine
from hostile.xsneighbour import BOARD
from hostile.xsscript import Words
from xenlive.abi import xs_ring
from xenlive.memory.address import PAGE_SIZE

ATTACKERS = (3, 5)
BESIDE = 7
QUOTAS = {
    "nodes": 24,
    "watches": 8,
    "transactions": 3,
    "outstanding": 6,
    "memory": 16384,
    "soft-memory": 8192,
    "transaction-nodes": 24,
    "node-size": 2048,
    "node-permissions": 4,
}
_UNSENT_MAX = 1 << 16

#: In values, in names, and in what only the first domain of an id might read.
SECRETS = (b"s3cr3t-of-0thers", b"h1dden-n4me")
_SECRET_MAX = 32
FORMER = b"f0r-the-f1rst"

WORDS = Words(
    (b"", b"", b"/local/domain/3/", b"/local/domain/5/"),
    (
        *(b"/vault/door/key", b"/vault/door", b"/vault", b"/former", BOARD, BOARD + b"/a"),
        *(b"/local/domain/7", b"/local/domain/7/data/hello", b"/local/domain/7/tx/a"),
        *(b"/local/domain/7/told/n", b"/tool", b"/tool/xenstored", b"/local/domain", b"data"),
    ),
    (*ATTACKERS, BESIDE),
)


@dataclass
class Habit:
    """How a guest behaves when it is not told what to do."""

    masked: bool = False  # it hears no event, and so reads nothing
    greedy: bytes = b""  # what it asks whenever it can


class Attacker:
    """One domain's end of its page; `received` is what it has read, wherever its indices were."""

    def __init__(self, machine: Machine, domid: int) -> None:
        self.machine = machine
        self.domid = domid
        self.habit = Habit()
        self.incarnation = -1
        self.start()

    def start(self) -> None:
        """A new domain of that id, with a page of its own."""
        self.page = self.machine.create(self.domid).page
        self.words = self.page.cast("I")
        self.unsent = b""
        self.received = bytearray()
        self._looked_at = 0
        self._said: set[bytes] = set()
        self._last_said = b""
        self.incarnation += 1

    def put(self, data: bytes) -> None:
        """Sends, as far as there is room by the indices, and rings."""
        self._say(data)
        self.unsent = (self.unsent + data)[:_UNSENT_MAX]
        self.push()
        self.machine.rung_by(self.domid)

    def push(self) -> bool:
        """Moves what was not sent yet."""
        prod, cons = self.words[xs_ring.REQ_PROD], self.words[xs_ring.REQ_CONS]
        piece = self.unsent[: max(1024 - (prod - cons & 0xFFFFFFFF), 0)]
        first = piece[: 1024 - prod % 1024]
        at = prod % 1024
        self.page[at : at + len(first)] = first
        self.page[: len(piece) - len(first)] = piece[len(first) :]
        self.words[xs_ring.REQ_PROD] = prod + len(piece) & 0xFFFFFFFF
        self.unsent = self.unsent[len(piece) :]
        return bool(piece)

    def take(self, most: int) -> bool:
        """Reads answers, and makes room for others."""
        prod, cons = self.words[xs_ring.RSP_PROD], self.words[xs_ring.RSP_CONS]
        count = min(prod - cons & 0xFFFFFFFF, 1024, most)
        area = bytes(self.page[1024:2048])
        at = cons % 1024
        self.received += (area[at:] + area[:at])[:count]
        self.words[xs_ring.RSP_CONS] = cons + count & 0xFFFFFFFF
        if count:
            self.machine.rung_by(self.domid)
        return count > 0

    def poke(self, place: int, number: int, beside: int, is_near: bool) -> None:
        """Sets a word of the page; near another one, or to a number."""
        near = self.words[beside] if is_near else 0
        self.words[place] = near + number & 0xFFFFFFFF
        self.machine.rung_by(self.domid)

    def scribble(self, at: int, data: bytes) -> None:
        """Writes over the page."""
        at %= PAGE_SIZE
        data = data[: PAGE_SIZE - at]
        self._say(data)
        self.page[at : at + len(data)] = data
        self.machine.rung_by(self.domid)

    def _say(self, data: bytes) -> None:
        """What it says itself is no secret, should it ever hit on one."""
        for secret in (*SECRETS, FORMER):
            if secret in self._last_said + data:
                self._said.add(secret)
        self._last_said = (self._last_said + data)[-_SECRET_MAX:]

    def be_greedy(self) -> None:
        """Asks for more, if that is its habit and there is room."""
        greedy = self.habit.greedy
        if greedy and self.domid in self.machine.domains:
            if len(self.unsent) < RING_BYTES:
                more = greedy * (1 + RING_BYTES // len(greedy))
                self._say(more)
                self.unsent += more
            self.push()
            self.machine.rung_by(self.domid)

    def expect_no_secret(self) -> None:
        """It has not been told what it may not know."""
        area = bytes(self.page[1024:2048])
        fresh = self.received[max(self._looked_at - _SECRET_MAX, 0) :]
        self._looked_at = len(self.received)
        seen = bytes(fresh) + b"|" + area + area[:_SECRET_MAX]
        for secret in (*SECRETS, *((FORMER,) if self.incarnation else ())):
            if secret not in self._said:
                expect(secret not in seen, f"domain {self.domid} is not told {secret!r}")


class RingLine:
    """A good guest's end of its page."""

    def __init__(self, machine: Machine, domid: int) -> None:
        self._machine = machine
        self._domid = domid
        self._guest = RingGuest(machine.create(domid).page)

    def send(self, data: bytes) -> None:
        self._guest.unsent += data
        self._move()

    def take(self) -> list[Message]:
        self._move()
        found, self._guest.received = split(self._guest.received)
        return found

    def _move(self) -> None:
        if self._guest.move():
            self._machine.rung_by(self._domid)
