"""The Xenstore server core: bytes of clients in, bytes for clients out.

Specification: Xen `docs/misc/xenstore.txt`, `public/io/xs_wire.h`. It does no input or output, has
no clock but the one it is given, and no state but its own: the same core is run by a socket loop,
by rings and by the simulator.

    owner: receive(conn, bytes) ──▶ parse ──▶ fast path or requests.TABLE ──▶ conn.out
                                                    └─ events ──▶ out of others, `touched`

**Invariants.** Replies come in the order of the requests. Events of a change come before the
reply to the request that made it. Any way to cut the input into pieces gives the same output. A
message that can't be (a payload over 4096 bytes) sets `closing` and nothing after it is looked at;
no other connection notices.

Why the fast paths: three quarters of all requests are READ, WRITE and DIRECTORY of an existing
path, without a transaction, by domain 0. For these there is nothing to check that the lookup of
the path does not already prove.
"""

from __future__ import annotations

import struct
import time

from xenlive.abi.xs_wire import (
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_REL_PATH_MAX,
    XS_DIRECTORY,
    XS_ERROR,
    XS_READ,
    XS_TRANSACTION_START,
    XS_TYPE_COUNT,
    XS_WRITE,
    XSD_ERRORS,
    XSD_SOCKMSG,
)
from xenlive.errors import XenstoreError
from xenlive.xenstore import control, requests
from xenlive.xenstore.limits import SMALL_ANSWER
from xenlive.xenstore.log import Log
from xenlive.xenstore.paths import canonical, counted_length
from xenlive.xenstore.quota import PATH_MAX
from xenlive.xenstore.requests import Request
from xenlive.xenstore.state import State
from xenlive.xenstore.trace import CHANGES, NO_FAST_PATHS, Trace
from xenlive.xenstore.transaction import Transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.xenstore.changes import Change, Journal
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.domains import Links
    from xenlive.xenstore.quota import Quotas
    from xenlive.xenstore.requests import View
    from xenlive.xenstore.store import Store
    from xenlive.xenstore.watches import Watches

    ControlHandler = Callable[[Connection, Request, list[bytes]], bytes | None]

_HEADER = struct.Struct("<I4xII").unpack_from  # without req_id
_U32 = struct.Struct("<I").pack
_ERROR_TYPE = _U32(XS_ERROR)
_LENGTHS = [_U32(length) for length in range(256)]
_OK_TAIL = _U32(3) + b"OK\0"


class XenstoreServer(State):
    """One store and its clients: what it knows is the `State`, here is what it does.

    `now` gives seconds, for the age of transactions and as a number that each kernel has larger
    than all before it (`fresh_generation`): it must not go back from one kernel to the next, and
    must go forward by a nanosecond for each change, which no processor can undercut.
    """

    __slots__ = (
        "_journal",
        "_now",
        "control",
        "control_help",
        "hold_transactions",
        "links",
        "log",
        "trace",
    )

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        # Who has the pages and event channels of domains.
        self.links: Links | None = None
        # While set, a TRANSACTION_START of a connection without a transaction has to wait, and
        # all that follows it: so the open transactions run out before a live update.
        self.hold_transactions = False
        self.log = Log()
        # What the log's switches ask for; None while that is nothing.
        self.trace: Trace | None = None
        self._journal: Journal | None = None
        self.store.accounts.now = now
        self.store.accounts.say = self.log.say
        self.control: dict[bytes, ControlHandler] = {}
        self.control_help: dict[bytes, bytes] = {}
        control.install(self)

    @property
    def on_print(self) -> Callable[[bytes], None] | None:
        """What gets the words of CONTROL `print`, and what an operator is to see at once."""
        return self.log.on_print

    @on_print.setter
    def on_print(self, on_print: Callable[[bytes], None] | None) -> None:
        self.log.on_print = on_print

    @property
    def journal(self) -> Journal | None:
        """What hears of each change, as it is done; see `changes`. The log may hear as well."""
        return self._journal

    @journal.setter
    def journal(self, journal: Journal | None) -> None:
        self._journal = journal
        trace = self.trace
        if trace is not None and trace.flags & CHANGES:
            journal = trace.hear if journal is None else _both(journal, trace.hear)
        self.store.journal = self.watches.journal = journal

    def adopt(
        self,
        store: Store,
        watches: Watches,
        connections: list[Connection],
        introduced: set[int],
        quotas: Quotas | None = None,
    ) -> None:
        """As `State.adopt`; the log goes on."""
        super().adopt(store, watches, connections, introduced, quotas)
        self.follow_log()

    def connect_as(self, number: int, domid: int) -> Connection:
        """As `State.connect_as`; requests that are logged take no fast path."""
        conn = super().connect_as(number, domid)
        if self.trace is not None and self.trace.flags & NO_FAST_PATHS:
            conn.fast = False
        return conn

    def follow_log(self) -> None:
        """Traces what the log is set to by now; what is not traced costs nothing."""
        flags = self.log.flags if self.log.sink is not None else 0
        self.trace = Trace(self, flags) if flags else None
        for conn in self.connections:
            conn.fast = conn.privileged and not flags & NO_FAST_PATHS
        self.journal = self._journal

    @property
    def node_count(self) -> int:
        """Nodes of the tree, the root and the special ones included."""
        return len(self.store.nodes) + len(self.store.special)

    @property
    def watch_count(self) -> int:
        """Watches of all connections."""
        return self.watches.count

    @property
    def touched(self) -> list[Connection]:
        """Connections with output that is not of the request being served: `drain_touched`."""
        return self.watches.touched

    def drain_touched(self) -> list[Connection]:
        """Connections that got output since the last call, other than by their own requests."""
        touched = self.watches.touched
        self.watches.touched = []
        for conn in touched:
            conn.touched = False
        return touched

    def fresh_generation(self) -> int:
        """A generation larger than any that an earlier kernel gave to a node.

        The state stream has no place for generations. If a loaded store began at 1 again, a client
        that lists a directory in parts would see the same number before and after two updates,
        whatever happened between them.
        """
        return max(1, int(self._now() * 1e9))

    def reset(self, conn: Connection) -> None:
        """Drops a connection's watches, transactions and all its bytes on their way; it stays."""
        self.watches.remove_all(conn)
        self.end_transactions(conn)
        conn.drop_bytes()

    def receive(self, conn: Connection, data: bytes) -> bool:
        """Takes bytes a client sent, in any pieces; what there is to say goes to `out`.

        True if the owner has to look at the connection: it is `closing` or `held`.
        """
        if conn.unparsed:
            data = conn.unparsed + data
            conn.unparsed = b""
        if conn.closing:
            return True
        store = self.store
        nodes = store.nodes
        out = conn.out
        fast = conn.fast
        size = len(data)
        start = 0
        body = 16
        while body <= size:
            kind, tx_id, length = _HEADER(data, start)
            if length > XENSTORE_PAYLOAD_MAX:
                conn.closing = True
                return True
            end = body + length
            if end > size:
                break
            if fast and not tx_id:
                if kind == XS_READ:
                    node = nodes.get(data[body : end - 1])
                    if node is not None and not data[end - 1]:
                        value = node.value
                        length = len(value)
                        out.append(
                            data[start : start + 12]
                            + (_LENGTHS[length] if length < 256 else _U32(length))
                            + value
                        )
                        start = end
                        body = end + 16
                        continue
                elif kind == XS_WRITE:
                    path, nul, value = data[body:end].partition(b"\0")
                    node = nodes.get(path)
                    if node is not None and nul:
                        store.put_value(path, node, value)
                        if self.watches.by_path:
                            self.watches.fire(store, path, conn)
                        out.append(data[start : start + 12] + _OK_TAIL)
                        start = end
                        body = end + 16
                        continue
                elif kind == XS_DIRECTORY:
                    node = nodes.get(data[body : end - 1])
                    if node is not None and not data[end - 1]:
                        directory = node.directory
                        if directory is None or directory.names_bytes <= XENSTORE_PAYLOAD_MAX:
                            names = node.list_names()
                            out.append(data[start : start + 12] + _U32(len(names)) + names)
                            start = end
                            body = end + 16
                            continue
            elif fast:
                # The same in a transaction; domain 0 pays for nothing that it looks at.
                transaction = conn.transactions.get(tx_id)
                if transaction is not None:
                    if kind == XS_READ:
                        path = data[body : end - 1]
                        if path in nodes and not data[end - 1]:
                            node = transaction.find(path)
                            if node is not None:
                                value = node.value
                                out.append(data[start : start + 12] + _U32(len(value)) + value)
                                start = end
                                body = end + 16
                                continue
                    elif kind == XS_WRITE:
                        path, nul, value = data[body:end].partition(b"\0")
                        if path in nodes and nul:
                            node = transaction.find(path)
                            if node is not None:
                                transaction.put_value(path, node, value)
                                transaction.note_event(path, below=True)
                                out.append(data[start : start + 12] + _OK_TAIL)
                                start = end
                                body = end + 16
                                continue
            elif conn.account is not None and conn.account.must_wait(conn):
                conn.stalled = True
                break
            if kind == XS_TRANSACTION_START and self.hold_transactions and not conn.transactions:
                conn.held = True
                break
            self._serve(conn, Request(data[start : start + 12], kind, tx_id, data[body:end]))
            if conn.closing:
                return True
            start = end
            body = end + 16
        if start < size:
            conn.unparsed = data[start:] if start else data
        return conn.held

    def release_held(self) -> list[Connection]:
        """Ends `hold_transactions`: serves what waited, and returns the connections it was of."""
        self.hold_transactions = False
        released = [conn for conn in self.connections if conn.held]
        for conn in released:
            conn.held = False
            self.receive(conn, b"")
        return released

    def reply(self, conn: Connection, request: Request, payload: bytes) -> None:
        """Answers a request whose handler had put the answer off."""
        self.answer(conn, request, payload)
        self.watches.touch(conn)

    def refuse(self, conn: Connection, request: Request, name: str) -> None:
        """Answers such a request with an error, by name."""
        self.answer_error(conn, request, name)
        self.watches.touch(conn)

    def answer(self, conn: Connection, request: Request, payload: bytes) -> None:
        """Answers the request being served. E2BIG goes out if the payload is too long."""
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            self.answer_error(conn, request, "E2BIG")
            return
        account = conn.account
        if account is not None:
            size = len(payload)
            if size > SMALL_ANSWER and account.over_memory(conn, size + XSD_SOCKMSG.size):
                self.answer_error(conn, request, "ENOMEM")
                return
            conn.replied()
        conn.out.append(request.head + _U32(len(payload)) + payload)

    def answer_error(self, conn: Connection, request: Request, name: str) -> None:
        """The same with an error; what the protocol has no word for is EINVAL."""
        if name not in XSD_ERRORS:
            name = "EINVAL"
        payload = name.encode() + b"\0"
        if conn.account is not None:
            conn.replied()
        conn.out.append(_ERROR_TYPE + request.head[4:] + _U32(len(payload)) + payload)

    def open_transactions(self) -> list[tuple[int, float]]:
        """For each connection with open transactions: its domain, and since how many seconds."""
        now = self._now()
        return [
            (conn.domid, now - conn.started_s) for conn in self.connections if conn.transactions
        ]

    def drop_transactions(self) -> None:
        """Ends all open transactions without an effect, as a live update does."""
        for conn in self.connections:
            self.end_transactions(conn)

    def start_transaction(self, conn: Connection) -> int:
        """Opens a transaction and returns its id, which counts up on each connection.

        It counts from 1 on a new one; `load_state` has where one from an earlier kernel starts.
        """
        number = conn.next_transaction
        while number == 0 or number in conn.transactions:
            number = (number + 1) & 0xFFFFFFFF
        self.begin_transaction(conn, number, int(self._now() * 1e9))
        return number

    def canonical(self, conn: Connection, raw: bytes, *, special: bool = False) -> bytes:
        """The absolute path a connection means by `raw`; XenstoreError EINVAL if there is none."""
        if raw in self.store.nodes:
            return raw
        # Never more than the protocol's own limit: another daemon's stream may say 0 for none.
        account = conn.account
        quotas = self.quotas.values if account is None else account.quotas
        longest = min(quotas["path-max"] or XENSTORE_REL_PATH_MAX, XENSTORE_REL_PATH_MAX)
        path = canonical(conn.home, raw, special, longest)
        if account is not None:
            account.note(PATH_MAX, counted_length(path))
        return path

    def changed(
        self, conn: Connection, view: View, path: bytes, old_perms: bytes | None = None
    ) -> None:
        """Tells, or notes for the commit, that a request changed `path`."""
        if isinstance(view, Transaction):
            view.note_event(path, below=True)
        elif self.watches.by_path:
            self.watches.fire(view, path, conn, old_perms=old_perms)

    def remove_subtree(self, path: bytes, origin: Connection | None) -> None:
        """Removes a node, not `/`, and all below it, and tells who watches; not in transactions."""
        below = self.store.subtree(path)
        if self.watches.by_path:
            for each in below:
                self.watches.fire(self.store, each, origin, exact=each is not below[-1])
        self.store.remove(path, below)

    def _serve(self, conn: Connection, request: Request) -> None:
        if self.trace is not None:
            self.trace.asked(conn, request)
        handler, flags = None, 0
        if request.kind < XS_TYPE_COUNT:
            handler, flags = requests.TABLE[request.kind]
        try:
            if flags & requests.PRIVILEGED and not conn.privileged:
                raise XenstoreError("EACCES")
            if handler is None:
                raise XenstoreError("ENOSYS")
            view: View = self.store
            if request.tx_id and not flags & requests.NO_TRANSACTION:
                transaction = conn.transactions.get(request.tx_id)
                if transaction is None:
                    raise XenstoreError("ENOENT")
                view = transaction
            payload = handler(self, conn, request, view)
        except XenstoreError as error:
            self.answer_error(conn, request, error.name)
        else:
            if payload is not None:
                self.answer(conn, request, payload)
        if self.trace is not None:
            self.trace.served(conn)


def _both(first: Journal, second: Journal) -> Journal:
    def hear(change: Change) -> None:
        first(change)
        second(change)

    return hear
