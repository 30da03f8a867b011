"""The world of the xenstore-ring target: a server, two attackers, two neighbours, domain 0."""

from __future__ import annotations

from collections.abc import Callable

from differential.daemons import split
from xenstore.goings_on import Clock
from xenstore.talk import Message

from hostile.target import expect
from hostile.xsguests import ATTACKERS, BESIDE, FORMER, QUOTAS, SECRETS, Attacker, Habit, RingLine
from hostile.xsmachine import VIRQ_PORT, Machine, Middle, StruckServer, Turns
from hostile.xsneighbour import BOARD, Neighbour
from hostile.xspromises import (
    FIRST_FD,
    Journal,
    expect_saved,
    expect_sound,
    save,
    sockets_of,
)
from hostile.xsscript import message
from xenlive.abi import xs_ring
from xenlive.abi.xs_wire import (
    XS_CONTROL,
    XS_ERROR,
    XS_INTRODUCE,
    XS_RELEASE,
    XS_RESUME,
    XS_RM,
    XS_SET_FEATURE,
    XS_SET_PERMS,
    XS_SET_QUOTA,
    XS_SET_TARGET,
    XS_WRITE,
    XSD_SOCKMSG,
)
from xenlive.stubdom.rings import RingLinks
from xenlive.xenstore.quota import TRANSACTIONS, WATCHES
from xenlive.xenstore.stream import load_state

#: Turns after which a server has nothing left to do, unless somebody goes on asking; and how many
#: more for each request that still waits to be sent: the largest answer is five rings full.
IDLE_TURNS = 300
TURNS_PER_REQUEST = 6
GREEDY_TURNS = 40
# What an account does not stop: small answers up to their quota, and one message more of each kind.
_UNREAD_MAX = QUOTAS["memory"] + 2 * 4112 + (QUOTAS["outstanding"] + 2) * 32


class CoreLine:
    """A client that the server core knows as a socket."""

    def __init__(self, world: RingWorld) -> None:
        self._world = world
        self.conn = world.server.connect()

    def send(self, data: bytes) -> None:
        self._world.server.receive(self.conn, data)

    def take(self) -> list[Message]:
        found, rest = split(self.conn.take())
        expect(not rest, "messages are whole")
        return found


class RingWorld:
    """One server from its start, with its guests; `settle` lets it do what there is to do."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.middle = Middle()
        self.machine = Machine(self.clock)
        self.server = StruckServer(self.middle, self.clock)
        self.loop = Turns(self.machine, self.server)
        RingLinks(self.machine, self.loop, self.server)
        self.journal = Journal(self.server)
        self.toolstack = CoreLine(self)
        self.words: set[str] = set()
        self._set_up()

    def _set_up(self) -> None:
        for name, value in QUOTAS.items():
            self.say(XS_SET_QUOTA, b"%s\0%d\0" % (name.encode(), value))
        self.guests = [Attacker(self.machine, domid) for domid in ATTACKERS]
        beside = CoreLine(self)
        line = RingLine(self.machine, BESIDE)
        for guest in self.guests:
            self.introduce(guest.domid)
        for name in QUOTAS:
            self.say(XS_SET_QUOTA, b"%d\0%s\x000\0" % (BESIDE, name.encode()))
        self.introduce(BESIDE)
        self.make(b"/vault/door/key", SECRETS[0], b"n0\0")
        self.make(b"/vault/door/" + SECRETS[1], b"", b"n0\0")
        self.make(b"/vault/door", b"", b"n0\0")
        self.make(b"/former", FORMER, b"n0\0r3\0r5\0")
        self.make(BOARD, b"", b"b0\0")
        self.make(b"/beside", b"", b"n0\0")
        heard = self.journal.changes
        self.neighbours = [
            Neighbour(line, b"/local/domain/7", self.turn, heard),
            Neighbour(beside, b"/beside", self.turn, heard),
        ]
        self.make(b"/local/domain/7/private", SECRETS[0], b"n7\0")
        for neighbour in self.neighbours:
            neighbour.begin()

    # -- domain 0 ----------------------------------------------------------------------------------

    def say(self, kind: int, payload: bytes) -> None:
        """A request of domain 0's; what it is answered does not matter."""
        self.toolstack.send(message(kind, payload))
        self.toolstack.take()

    def make(self, path: bytes, value: bytes, texts: bytes) -> None:
        """A node with its permissions."""
        self.say(XS_WRITE, path + b"\0" + value)
        self.say(XS_SET_PERMS, path + b"\0" + texts)

    def introduce(self, domid: int, port: int = 1) -> None:
        """What a toolstack does for a domain that was made."""
        self.make(b"/local/domain/%d" % domid, b"", b"n%d\0" % domid)
        self.say(XS_INTRODUCE, b"%d\x001\x00%d\0" % (domid, port))

    def manage(self, guest: Attacker, what: int, data: bytes) -> None:
        """One of the things that domain 0, or the hypervisor, does with a domain."""
        domid, number = b"%d\0" % guest.domid, data[0] if data else 0
        domain = self.machine.domains.get(guest.domid)
        home = b"/local/domain/%d/" % guest.domid + data[1:]
        if what == 0:
            self.say(XS_INTRODUCE, domid + b"1\0%d\0" % (number % 4))
        elif what == 1:
            guest.words[xs_ring.CONNECTION] = xs_ring.XENSTORE_RECONNECT
            self.say(XS_INTRODUCE, domid + b"1\0%d\0" % (number % 3 or 1))
        elif what in (2, 3):
            self.say((XS_RELEASE, XS_RESUME)[what - 2], domid)
        elif what == 4 and domain is not None:
            domain.is_shut_down = True
            self.machine.ring(VIRQ_PORT)
        elif what in (5, 6, 7) and domain is not None:
            self._replace(guest, what)
        elif what in (5, 6, 7):
            guest.start()
            self.introduce(guest.domid)
        elif what == 8:
            other = ATTACKERS[guest.domid == ATTACKERS[0]]
            self.say(XS_SET_TARGET, domid + b"%d\0" % other)
        elif what == 9:
            verbs = (b"check\0", b"quota\0max\0-r\0", b"quota\0" + domid, b"help\0", b"print\0a\0")
            self.say(XS_CONTROL, verbs[number % len(verbs)])
        elif what == 10:
            name = list(QUOTAS)[number % len(QUOTAS)]
            value = 1 + len(data) * 97 % QUOTAS[name]
            self.say(XS_SET_QUOTA, domid + b"%s\0%d\0" % (name.encode(), value))
        elif what == 11:
            self.say(XS_SET_FEATURE, domid + b"%d\0" % (number % 16))
        elif what == 12:
            self.say(XS_WRITE, home + b"\0of domain 0")
        elif what == 13:
            texts = (b"n0\0", b"n0\0r3\0", b"r5\0b3\0", b"b3\0", b"n0\0b65535\0")
            self.say(XS_SET_PERMS, home + b"\0" + texts[number % len(texts)])
        elif what == 14:
            self.say(XS_RM, home.rstrip(b"/") + b"\0")
        elif what == 15 and domain is not None:
            domain.grants = not domain.grants
        elif what >= 16:
            self.say(XS_WRITE, b"/vault/door/" + SECRETS[1] + b"\0new")
            for neighbour in self.neighbours:
                self.say(XS_WRITE, neighbour.told() + b"\0")
                neighbour.wait_for_events()

    def _replace(self, guest: Attacker, what: int) -> None:
        """The domain ends; perhaps another one has its id before anybody has looked."""
        is_served = guest.domid in self.server.rings
        self.machine.destroy(guest.domid)
        if what == 7 and is_served:
            guest.start()
        self.settle()
        if what != 5:
            if guest.domid not in self.machine.domains:
                guest.start()
            self.introduce(guest.domid)

    # -- the server's doing ------------------------------------------------------------------------

    def strike(self, in_middle: int, looks: int, what: Callable[[], None]) -> None:
        """Has a guest do something to its page now, or after so many looks of the server's."""
        if in_middle:
            self.middle.arm(looks, what)
        else:
            what()

    def transaction_of(self, guest: Attacker, which: int) -> int:
        """0 for none; 1 for the newest of a guest's, 2 for its oldest, 3 for one that is not."""
        conn = self.server.rings.get(guest.domid)
        ids = list(conn.transactions) if conn is not None else []
        return (0, ids[-1] if ids else 1, ids[0] if ids else 1, 999)[which]

    def turn(self) -> bool:
        """One callback of the server's, and what guests do when they are rung."""
        did = self.loop.turn()
        heard = set(self.machine.heard)
        self.machine.heard.clear()
        for guest in self.guests:
            guest.be_greedy()
            if guest.domid in heard and not guest.habit.masked:
                guest.take(1 << 16)
                guest.push()
        return did

    def settle(self) -> None:
        """Turns until there is nothing to do, or some if there will always be something."""
        is_greedy = any(guest.habit.greedy for guest in self.guests)
        waiting = sum(len(guest.unsent) // XSD_SOCKMSG.size for guest in self.guests)
        most = IDLE_TURNS + waiting * TURNS_PER_REQUEST
        for _ in range(GREEDY_TURNS if is_greedy else most):
            if not self.turn():
                break
        else:
            expect(is_greedy, f"the server is done after {most} turns")
        for guest in self.guests:
            guest.expect_no_secret()
        self._expect_bounds()

    def _expect_bounds(self) -> None:
        for conn in self.server.connections:
            if conn.domid not in ATTACKERS or conn.account is None:
                continue
            waiting = conn.unsent_bytes()
            expect(waiting <= _UNREAD_MAX, f"what waits unread is bounded, not {waiting} bytes")
            expect(len(conn.unparsed) <= 4112 + 1024, "so is what waits to be served")
            for item, name in ((WATCHES, "watches"), (TRANSACTIONS, "transactions")):
                expect(conn.account.used[item] <= QUOTAS[name], f"no more {name} than the quota")

    def round(self) -> None:
        """All neighbours ask for all they have, while the others do what they do."""
        for neighbour in self.neighbours:
            neighbour.round()

    def update(self) -> None:
        """The next kernel takes over, from what this one saves."""
        self._check()
        for guest in self.guests:
            self._note_answers(guest)
        self.server.drop_transactions()
        stream, at_s = save(self.server), self.clock()
        lines = [self.toolstack, self.neighbours[1].line]
        before = sockets_of(self.server)
        self.server = StruckServer(self.middle, lambda: at_s)
        loaded = load_state(self.server, stream)
        self.server._now = self.clock
        self.server.store.accounts.now = self.clock
        by_fd = {fd: conn for conn, fd in loaded.connections}
        for line in lines:
            if isinstance(line, CoreLine):
                line.conn = by_fd[FIRST_FD + before.index(line.conn)]
        self.journal = Journal(self.server, stream, at_s)
        self.loop = Turns(self.machine, self.server)
        RingLinks(self.machine, self.loop, self.server).restore_all(loaded.rings)
        self.settle()
        for neighbour in self.neighbours:
            neighbour.update_over(self.journal.changes)

    def finish(self) -> str:
        """At the end: neighbours twice more, all promises, and a word for it."""
        for guest in self.guests:
            guest.habit = Habit()
            guest.unsent = b""
        self.settle()
        self.round()
        self.round()
        self._check()
        errors = [guest.words[xs_ring.ERROR] for guest in self.guests]
        for guest in self.guests:
            self._note_answers(guest)
        expect_saved(self.server, self.clock())
        shown = ["wild" if error > 3 else str(error) for error in errors]
        return f"errors {shown[0]} {shown[1]}: {' '.join(sorted(self.words))}"

    def _check(self) -> None:
        expect_sound(self.server)
        self.journal.check()

    def _note_answers(self, guest: Attacker) -> None:
        """Which answers a guest has read, as far as they are messages."""
        at, data = 0, bytes(guest.received)
        while at + XSD_SOCKMSG.size <= len(data):
            kind, _, _, length = XSD_SOCKMSG.unpack(data, at)
            at += XSD_SOCKMSG.size
            if kind > 32 or length > 4096:
                return
            if kind == XS_ERROR:
                self.words.add(data[at : at + length].rstrip(b"\0").decode("latin-1")[:12])
            elif len(self.words) < 12:
                self.words.add(str(kind))
            at += length
