"""The rings of a connection: its shared page on one side, the server core on the other.

    guest ──req ring──▶ pump ──bytes──▶ XenstoreServer.receive
          ◀──rsp ring── pump ◀──bytes── Connection.out

Specification: Xen `docs/misc/xenstore-ring.txt`, `public/io/xs_wire.h`. What a broken ring gets is
what the C daemon does (`handle_input`, `readchn`, `writechn`, `ignore_connection`).

**Invariants.** All of the page is the guest's to write, this end's indices too: each is read once
and checked, and no index is kept, so that another kernel of this end goes on where one stopped.
After a pair that can't be, a message that is too long, or more waiting events than anybody reads,
the connection is ignored for good and the page's `error` field says why, if the guest was told of
it (`server_features`); no other connection notices. A guest that does not read its answers, or uses
more memory than its quota, is not served until that has changed. One `pump` moves at
most one ring full each way, however busy the guest is: the caller looks at `has_work` and comes
back when it has looked after others.

Whether a connection is ignored stands in the page alone (`error`), which a guest may write as it
likes: who ignores itself hurts nobody else. Only of a guest without that field it is kept here.
"""

from __future__ import annotations

from xenlive.abi import xs_ring
from xenlive.errors import PeerError
from xenlive.ring.area import RingArea
from xenlive.ring.stream import Consumer, Producer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.server import XenstoreServer

#: Domain 0, which has no quotas, is not served either with more than this unread.
UNSENT_MAX = 20 * 4112
#: And one whose watch events pile up beyond this is ignored: it will not come back.
WAITING_MAX = 4 << 20

_INDICES = (xs_ring.REQ_CONS, xs_ring.REQ_PROD, xs_ring.RSP_CONS, xs_ring.RSP_PROD)


class RingPage:
    """The rings of `connection`; `page` is a live view of the 4096 bytes that it shares."""

    __slots__ = ("_answers", "_connection", "_is_ignored", "_requests", "_server", "_words")

    def __init__(self, server: XenstoreServer, connection: Connection, page: memoryview) -> None:
        size = xs_ring.XENSTORE_RING_SIZE
        self._server = server
        self._connection = connection
        self._is_ignored = False
        self._words = page.cast("I")
        self._requests = RingArea([page[:size]])
        self._answers = RingArea([page[xs_ring.RSP_AT : xs_ring.RSP_AT + size]])

    @property
    def is_ignored(self) -> bool:
        """Whether nothing is moved any more."""
        if self._has_error_field():
            return bool(self._words[xs_ring.ERROR] != xs_ring.XENSTORE_ERROR_NONE)
        return self._is_ignored

    def start(self) -> None:
        """A connection begins: no error so far, and what this server can do beyond the rings."""
        self._words[xs_ring.SERVER_FEATURES] = self._features()
        if self._has_error_field():
            self._words[xs_ring.ERROR] = xs_ring.XENSTORE_ERROR_NONE

    def reset(self) -> None:
        """Empties both rings (`domain_conn_reset`)."""
        for word in _INDICES:
            self._words[word] = 0

    def end_reconnect(self) -> bool:
        """Says that the ring is connected, to a guest that waits for that; whether one did."""
        if self._words[xs_ring.CONNECTION] != xs_ring.XENSTORE_RECONNECT:
            return False
        self._words[xs_ring.CONNECTION] = xs_ring.XENSTORE_CONNECTED
        return True

    def pump(self) -> bool:
        """Moves what can be moved; whether anything was, so that the guest is to be told."""
        if self.is_ignored:
            return False
        moved = False
        connection = self._connection
        try:
            moved = self._write_answers()
            if self._read_requests():
                moved = True
                self._write_answers()
        except PeerError:
            self.ignore(xs_ring.XENSTORE_ERROR_RINGIDX)
            return True
        if connection.closing:
            self.ignore(xs_ring.XENSTORE_ERROR_PROTO)
        elif connection.unsent_bytes() > WAITING_MAX:
            self.ignore(xs_ring.XENSTORE_ERROR_COMM)
        return moved

    def has_work(self) -> bool:
        """Whether another `pump` would move anything by now."""
        if self.is_ignored:
            return False
        connection = self._connection
        try:
            if (connection.head or connection.out) and self._producer().free():
                return True
            if not self._may_read():
                return False
            return connection.stalled or self._consumer().available() > 0
        except PeerError:
            return True  # the next `pump` deals with it

    def ignore(self, error: int) -> None:
        """As the C daemon's `ignore_connection`: its state is dropped, the guest is told why."""
        if self._has_error_field():
            self._words[xs_ring.ERROR] = error
        self._is_ignored = True
        self._server.reset(self._connection)

    def _features(self) -> int:
        account = self._connection.account
        return xs_ring.XENSTORE_FEATURES if account is None else account.features

    def _has_error_field(self) -> bool:
        return bool(self._features() & xs_ring.XENSTORE_SERVER_FEATURE_ERROR)

    def _may_read(self) -> bool:
        connection = self._connection
        if connection.closing or connection.held:
            return False
        if connection.account is None:
            return connection.unsent_bytes() <= UNSENT_MAX
        return not connection.account.must_wait(connection)

    def _read_requests(self) -> bool:
        if not self._may_read():
            return False
        connection = self._connection
        if connection.stalled:
            # What it had sent before comes first. Its bytes have left the ring already.
            connection.stalled = False
            self._server.receive(connection, b"")
            if connection.stalled or not self._may_read():
                return False
        data = self._consumer().read()
        if data:
            self._server.receive(self._connection, data)
        return bool(data)

    def _write_answers(self) -> bool:
        connection = self._connection
        written = 0
        while written < xs_ring.XENSTORE_RING_SIZE:
            data = connection.head or connection.take_some(xs_ring.XENSTORE_RING_SIZE)
            if not data:
                break
            count = self._producer().write(memoryview(data)[connection.head_sent :])
            connection.sent(data, connection.head_sent + count)
            written += count
            if connection.head:
                break
        return bool(written)

    def _consumer(self) -> Consumer:
        words = self._words
        start: int = words[xs_ring.REQ_CONS]
        return Consumer(self._requests, words, xs_ring.REQ_PROD, xs_ring.REQ_CONS, start)

    def _producer(self) -> Producer:
        words = self._words
        start: int = words[xs_ring.RSP_PROD]
        return Producer(self._answers, words, xs_ring.RSP_PROD, xs_ring.RSP_CONS, start)
