"""A connection: what the server knows of one client.

Output is two things: `out`, the messages since the owner last took them, and `head`, bytes the
owner took and could not write at once, of which the first `head_sent` have gone:

    server appends ──▶ out [message, message, …] ──take()──▶ head |sent····|unsent······|──▶ peer

Whoever moves the bytes calls `take()` when `head` is empty, tries to write what it returns, and
says with `sent` how much went. Unparsed input is `unparsed`. All of it is part of the state that a
live update carries.

**Invariants.** `head` starts `head_partial` bytes before a message (0, except after a live update
in the middle of one), and from there on has whole messages. `events` holds the watch events that
are in `out`: one that already waits is not sent twice, so a peer that does not read costs at most
one message for each different event. Once `noted`, `out` is emptied by `take` alone, and only
appended to before: what is known of it stays true. `unparsed` holds no whole message, unless the
connection is held.

Why the bytes in `out` are not counted as they are appended: nearly all of them are gone at once,
and who waits is counted by what came since the last time.
"""

from __future__ import annotations

from xenlive.abi.xs_wire import XS_WATCH_EVENT, XSD_SOCKMSG
from xenlive.xenstore.paths import home_of
from xenlive.xenstore.quota import OUTSTANDING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.xenstore.accounts import Account
    from xenlive.xenstore.domains import Link
    from xenlive.xenstore.transaction import Transaction
    from xenlive.xenstore.watches import Watch

_EVENT_TYPE = XS_WATCH_EVENT.to_bytes(4, "little")


class Ring:
    """What is known of a connection by shared ring: our port, its domain's unique id, if it ended.

    Port and unique id are in the state stream.
    """

    __slots__ = ("evtchn", "is_shut_down", "unique_id")

    def __init__(self, evtchn: int, unique_id: int | None) -> None:
        self.evtchn = evtchn
        self.unique_id = unique_id
        self.is_shut_down = False


class Connection:
    """One client: a socket (always domain 0) or a domain's ring.

    `number` is no other connection's of its server, ever; 0 for one that has no server yet.
    """

    __slots__ = (
        "_counted",
        "_counted_bytes",
        "_head_replies",
        "_replies",
        "account",
        "closing",
        "domid",
        "events",
        "fast",
        "fd",
        "head",
        "head_partial",
        "head_sent",
        "held",
        "home",
        "link",
        "mask",
        "next_transaction",
        "noted",
        "number",
        "out",
        "privileged",
        "ring",
        "stalled",
        "started_s",
        "target",
        "touched",
        "transactions",
        "unparsed",
        "watches",
    )

    def __init__(self, domid: int, number: int = 0) -> None:
        self.number = number
        self.domid = domid
        self.privileged = domid == 0
        self.fast = self.privileged  # may use the fast paths
        self.account: Account | None = None  # its domain's; None for domain 0, which has no limits
        self._replies = self._head_replies = 0  # answers in `out` and in `head`, if it has limits
        self.home = home_of(domid)
        self.target = -1  # the domain this one acts for (SET_TARGET)
        self.ring: Ring | None = None
        self.link: Link | None = None  # who moves the bytes of a ring
        self.fd = self.mask = -1  # for the owner's use
        self.out: list[bytes] = []
        self.head = b""
        self.head_sent = 0
        self.head_partial = 0
        self.unparsed = b""
        self.closing = False  # the owner is to close the connection
        self.held = False  # its next request has to wait, see XenstoreServer.hold_transactions
        self.stalled = False  # the same, until its domain has read answers, or uses less memory
        self.touched = False
        self.events: set[bytes] = set()
        self.noted = False
        self._counted = 0  # how many messages of `out` are counted in
        self._counted_bytes = 0
        self.watches: dict[tuple[bytes, bytes], Watch] = {}
        self.transactions: dict[int, Transaction] = {}
        self.next_transaction = 1
        self.started_s = 0.0  # when the oldest of an unbroken run of transactions began

    def take(self) -> bytes:
        """Takes the waiting messages out, to be written; only while `head` is empty."""
        out = self.out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        if self.account is not None:
            self._head_replies, self._replies = self._replies, 0
        if self.noted:
            self.noted = False
            self._counted = self._counted_bytes = 0
            self.events.clear()
        return data

    def sent(self, data: bytes, count: int) -> None:
        """Says that of `data`, just taken or `head`, the first `count` bytes have gone in all."""
        if count == len(data):
            self.head = b""
            self.head_sent = 0
            self.head_partial = 0
            if self._head_replies:
                self._count_replies(self._replies, 0)
        else:
            self.head = data
            self.head_sent = count

    def unsent_bytes(self) -> int:
        """How many bytes wait to be written; costs as much as came since it was last asked."""
        if len(self.out) != self._counted:
            self._counted_bytes += sum([len(message) for message in self.out[self._counted :]])
            self._counted = len(self.out)
            self.noted = True
        return len(self.head) - self.head_sent + self._counted_bytes

    def take_some(self, size: int) -> bytes:
        """As `take`, but whole messages of `size` bytes at most, or one that is larger.

        For rings: what has not been taken can still be found to wait already, and what was taken
        is soon read, so that an answer counts as outstanding no longer than it is.
        """
        out = self.out
        total = count = 0
        replies = 0
        for message in out:
            total += len(message)
            if total > size and count:
                break
            count += 1
            replies += message[:4] != _EVENT_TYPE
        if count == len(out):
            return self.take()
        self.unsent_bytes()
        data = b"".join(out[:count])
        for message in out[:count]:
            self.events.discard(message[16:])
        del out[:count]
        self._counted -= count
        self._counted_bytes -= len(data)
        if self.account is not None:
            self._head_replies = replies
            self._replies -= replies
        return data

    def replied(self) -> None:
        """Says that an answer was put into `out`; only if there is an account."""
        self._count_replies(self._replies + 1, self._head_replies)

    def use(self, account: Account) -> None:
        """Says which account is its domain's, with what waits here already."""
        self.account = account
        self._replies = self._head_replies = 0
        self._recount_replies()

    def _count_replies(self, waiting: int, in_head: int) -> None:
        if self.account is not None:
            more = waiting + in_head - self._replies - self._head_replies
            if more:
                self.account.add(OUTSTANDING, more)
            self._replies, self._head_replies = waiting, in_head

    def _recount_replies(self) -> None:
        if self.account is None:
            return
        at = self.head_partial
        in_head = int(at > self.head_sent)
        while at < len(self.head):
            kind, _, _, length = XSD_SOCKMSG.unpack(self.head, at)
            at += XSD_SOCKMSG.size + length
            in_head += kind != XS_WATCH_EVENT and at > self.head_sent
        waiting = sum([message[:4] != _EVENT_TYPE for message in self.out])
        self._count_replies(waiting, in_head)

    def forget_replies(self) -> None:
        """Says that what waits will not be read: the connection has ended."""
        self._count_replies(0, 0)

    def drop_bytes(self) -> None:
        """Forgets all input and output that is on its way."""
        self.take()
        self.head = self.unparsed = b""
        self.head_sent = self.head_partial = 0
        self.held = self.stalled = False
        self.forget_replies()

    def unsent(self) -> tuple[bytes, int]:
        """All bytes not yet written, and how many of them are the rest of a message begun."""
        rest = self.head[self.head_sent :]
        boundary = self.head_partial
        while boundary < self.head_sent:
            boundary += XSD_SOCKMSG.size + XSD_SOCKMSG.unpack(self.head, boundary)[3]
        partial = boundary - self.head_sent if rest else 0
        return rest + b"".join(self.out), partial

    def restore_output(
        self, out: list[bytes], events: set[bytes], noted: bool, head: bytes, head_sent: int
    ) -> None:
        """Puts back all output message by message, as these attributes told of it."""
        self.out, self.events, self.noted = out, events, noted
        self.head, self.head_sent = head, head_sent
        self.head_partial = self._counted = self._counted_bytes = 0
        self.touched = False
        self._recount_replies()

    def restore_unsent(self, data: bytes, partial: int) -> None:
        """Puts back what `unsent` gave."""
        self.head = data
        self.head_sent = 0
        self.head_partial = partial
        self._recount_replies()
