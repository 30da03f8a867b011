"""What a server knows, and the one narrow place through which it changes.

    requests, domains, loops ──▶ State ─┬─▶ Store        nodes, known domains
                                  │     ├─▶ Watches
                                  │     ├─▶ Transaction  what each has looked at and will do
                                  │     └─▶ its own: connections, rings, targets, quotas, features
                                  └──▶ journal((KIND, …))   if there is one

Each change is one method: of this class, of `Store`, of `Watches` or of `Transaction`. It does the
change and says so to the journal (`changes` has the kinds); nobody else assigns a field of these
classes. `tests/xenstore/test_xs_narrow.py` holds the code to it.

**Invariants.** A method is called after all checks: it does what it is named for, entirely. The
journal hears of a change once, in the order of the changes, and never of one that did not happen.
Doing the same changes again on a server that was the same gives the same server: nothing in here
asks a clock or anything else outside. No two connections ever have the same number.
"""

from __future__ import annotations

from xenlive.xenstore import changes
from xenlive.xenstore.connection import Connection, Ring
from xenlive.xenstore.store import Store
from xenlive.xenstore.transaction import Transaction
from xenlive.xenstore.watches import Watches, pay_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.xenstore.changes import Journal
    from xenlive.xenstore.quota import Quotas
    from xenlive.xenstore.transaction import Event, LogEntry

_DOM0 = 0


class State:
    """All that a server knows, less the bytes on their way."""

    __slots__ = (
        "by_number",
        "connections",
        "introduced",
        "next_number",
        "rings",
        "store",
        "unique_ids",
        "watches",
    )

    def __init__(self) -> None:
        self.store = Store()
        self.store.populate()
        self.watches = Watches()
        self.store.accounts.touch = self.watches.touch
        self.connections: dict[Connection, None] = {}
        self.by_number: dict[int, Connection] = {}
        self.next_number = 1
        self.introduced: set[int] = {_DOM0}
        # The connections by ring, by domain.
        self.rings: dict[int, Connection] = {}
        # Of domains that are known, but have no ring, the one that was known first.
        self.unique_ids: dict[int, int] = {}

    @property
    def quotas(self) -> Quotas:
        """The global quotas; those of domains are in `Store.accounts`."""
        return self.store.accounts.quotas

    @property
    def journal(self) -> Journal | None:
        """What hears of each change, as it is done; see `changes`."""
        return self.store.journal

    @journal.setter
    def journal(self, journal: Journal | None) -> None:
        self.store.journal = self.watches.journal = journal

    def adopt(
        self,
        store: Store,
        watches: Watches,
        connections: list[Connection],
        introduced: set[int],
        quotas: Quotas | None = None,
    ) -> None:
        """Begins anew with a state from elsewhere; connections without a number get one.

        ValueError if there is a journal: it could not be told, and begins after this.
        """
        if self.journal is not None:
            raise ValueError("a journal begins after a state was loaded")
        old = self.store.accounts
        self.store = store
        self.watches = watches
        store.accounts.quotas = quotas or old.quotas
        store.accounts.say, store.accounts.now = old.say, old.now
        store.accounts.touch = watches.touch
        self.connections = dict.fromkeys(connections)
        for conn in connections:
            if not conn.number:
                conn.number = self.next_number
                self.next_number += 1
            for number, transaction in conn.transactions.items():
                transaction.belong_to(conn.number, number)
        self.by_number = {conn.number: conn for conn in connections}
        self.rings = {conn.domid: conn for conn in connections if conn.ring is not None}
        self.introduced = introduced
        self.unique_ids = {}
        self._count_anew()

    def _count_anew(self) -> None:
        """Finds out what each domain uses."""
        store, accounts = self.store, self.store.accounts
        for domid in store.domains:
            if domid:
                accounts.open(domid)
        accounts.count_all(store.nodes.items())
        accounts.count_all(store.special.items())
        for conn in self.connections:
            if conn.privileged:
                continue
            conn.use(accounts.open(conn.domid))
            for watch in conn.watches.values():
                pay_for(watch, 1)
            for transaction in conn.transactions.values():
                transaction.use(accounts.open(conn.domid))

    # -- connections -------------------------------------------------------------------------------

    def connect(self, domid: int = _DOM0) -> Connection:
        """A new connection; domain 0, that is every socket, is privileged."""
        return self.connect_as(self.next_number, domid)

    def connect_as(self, number: int, domid: int) -> Connection:
        """The same with a number, not smaller than `next_number`."""
        self.store.add_domain(domid)
        conn = Connection(domid, number)
        if domid:
            conn.use(self.store.accounts.open(domid))
        self.next_number = number + 1
        self.connections[conn] = None
        self.by_number[number] = conn
        journal = self.store.journal
        if journal is not None:
            journal((changes.CONNECT, number, domid))
        return conn

    def disconnect(self, conn: Connection) -> None:
        """Forgets a connection, its watches and its transactions."""
        self.watches.remove_all(conn)
        self.end_transactions(conn)
        if conn in self.connections:
            del self.connections[conn]
            del self.by_number[conn.number]
            journal = self.store.journal
            if journal is not None:
                journal((changes.DISCONNECT, conn.number))
        conn.forget_replies()
        conn.out.clear()
        conn.events.clear()
        conn.closing = True

    def set_ring(self, conn: Connection, evtchn: int, unique_id: int | None) -> None:
        """Says by which of our ports a connection is served, and its domain's unique id."""
        if conn.ring is None:
            conn.ring = Ring(evtchn, unique_id)
        else:
            conn.ring.evtchn = evtchn
            conn.ring.unique_id = unique_id
        journal = self.store.journal
        if journal is not None:
            journal((changes.RING, conn.number, evtchn, int(unique_id is not None), unique_id or 0))

    def set_target(self, conn: Connection, target: int) -> None:
        """Lets a connection do what the domain `target` may; -1 for none."""
        conn.target = target
        journal = self.store.journal
        if journal is not None:
            journal((changes.TARGET, conn.number, target))

    def set_shut_down(self, conn: Connection, is_shut_down: bool) -> None:
        """Notes that the domain of a connection by ring has shut down, or runs again."""
        if conn.ring is None:
            return
        conn.ring.is_shut_down = is_shut_down
        journal = self.store.journal
        if journal is not None:
            journal((changes.SHUT_DOWN, conn.number, int(is_shut_down)))

    # -- domains -----------------------------------------------------------------------------------

    def identify(self, domid: int, unique_id: int) -> None:
        """Says which domain a known one without a ring is: its id may be another's one day."""
        self.unique_ids[domid] = unique_id
        journal = self.store.journal
        if journal is not None:
            journal((changes.UNIQUE_ID, domid, unique_id))

    def introduce(self, conn: Connection) -> None:
        """Says that a domain has been introduced, and by which connection it is served."""
        if conn.ring is not None:
            self.rings[conn.domid] = conn
            self.unique_ids.pop(conn.domid, None)  # from now on the ring has it
        self.introduced.add(conn.domid)
        journal = self.store.journal
        if journal is not None:
            journal((changes.INTRODUCED, conn.domid, conn.number))

    def release(self, domid: int) -> None:
        """Takes that back; domain 0 stays introduced."""
        self.rings.pop(domid, None)
        if domid != _DOM0:
            self.introduced.discard(domid)
        journal = self.store.journal
        if journal is not None:
            journal((changes.RELEASED, domid))

    def forget_domain(self, domid: int) -> None:
        """Says that a domain has gone: its rights, quotas, features; its nodes go before this."""
        self.store.purge_domain(domid)
        self.unique_ids.pop(domid, None)
        journal = self.store.journal
        if journal is not None:
            journal((changes.GONE, domid))

    def set_features(self, domid: int, features: int) -> None:
        """Sets what a domain is told that this server can do (SET_FEATURE)."""
        if domid:
            self.store.accounts.open(domid).features = features
        journal = self.store.journal
        if journal is not None:
            journal((changes.FEATURES, domid, features))

    # -- quotas ------------------------------------------------------------------------------------

    def set_quota(self, name: str, value: int, domid: int = changes.ALL_DOMAINS) -> None:
        """Sets a quota, of one domain or for all that become known from now on."""
        if domid == changes.ALL_DOMAINS:
            self.quotas.values[name] = value
        else:
            self.store.accounts.open(domid).quotas[name] = value
        journal = self.store.journal
        if journal is not None:
            journal((changes.QUOTA, domid, value, name.encode()))

    # -- transactions ------------------------------------------------------------------------------

    def begin_transaction(self, conn: Connection, number: int, now_ns: int) -> Transaction:
        """Opens a transaction with an id that the connection does not use."""
        if not conn.transactions:
            conn.started_s = now_ns / 1e9
        conn.next_transaction = (number + 1) & 0xFFFFFFFF
        made = conn.transactions[number] = Transaction(
            self.store, conn.number, number, conn.account
        )
        journal = self.store.journal
        if journal is not None:
            journal((changes.START, conn.number, number, now_ns))
        return made

    def end_transaction(self, conn: Connection, number: int) -> None:
        """Ends one without an effect."""
        conn.transactions.pop(number).end()
        journal = self.store.journal
        if journal is not None:
            journal((changes.END, conn.number, number))

    def fail_transaction(self, conn: Connection, number: int) -> None:
        """Says that one can't be committed any more."""
        conn.transactions[number].fail()

    def end_transactions(self, conn: Connection) -> None:
        """Ends a connection's transactions without an effect."""
        for number in list(conn.transactions):
            self.end_transaction(conn, number)

    def commit(
        self, conn: Connection, number: int, log: list[LogEntry] | None = None
    ) -> list[Event]:
        """Does what a transaction has in its log, or `log`; only if it is not in conflict.

        Returns its events in order.
        """
        transaction = conn.transactions.pop(number)
        if log is not None:
            transaction.log = log
        store = self.store
        journal = store.journal
        if journal is None:
            return transaction.commit()
        store.journal = None  # it is told of all at once
        try:
            events = transaction.commit()
        finally:
            store.journal = journal
        journal((changes.COMMIT, conn.number, number, tuple([e.change() for e in transaction.log])))
        return events
