"""Domains as clients of the serve loop: a page that each has granted, and an event channel.

    domain's event ──bell──▶ loop ──▶ RingLink.rung ──▶ RingPage.pump ──▶ server core
                   ◀─────────────────── notify ◀──────────┘
    hypervisor ──VIRQ_DOM_EXC──▶ loop ──▶ domains.check: who has shut down, who is gone?

Specification: Xen `docs/misc/xenstore-ring.txt`, `docs/designs/xenstore-migration.md`
(CONNECTION_DATA); `tools/xenstore/xenstored_domain.c` for what becomes of a domain that can't be
connected again after a live update.

Over a live update nothing of a ring moves: the page stays the domain's, the indices stand in it,
the hypervisor keeps the doorbells. The next kernel is told domain, port and unique id by the state
stream, maps the page and binds the port again, and looks once into each ring, as a ring before its
time may have gone to the kernel before it.

**Invariants.** While the loop is frozen no ring is touched; what is rung meanwhile is heard after
it. Whatever a domain does to its page or its event channel, nothing but its own connection ends.
A domain that ended during an update is noticed right after it.
"""

from __future__ import annotations

from xenlive.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from xenlive.abi.hypercalls.xen import VIRQ_DOM_EXC
from xenlive.abi.xs_ring import EVTCHN_PORT, XENSTORE_ERROR_COMM
from xenlive.errors import HypercallError, XenstoreError
from xenlive.xenstore import domains
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.domains import DomainState, Link, Links
from xenlive.xenstore.ringpage import RingPage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.machine.guest import GuestMachine
    from xenlive.stubdom.clients import ClientLoop
    from xenlive.xenstore.server import XenstoreServer

_NO_PORT = -1


class RingLinks(Links):
    """All connections by ring of one kernel; `server.links` of the server it makes them for."""

    __slots__ = ("_virq_port", "loop", "machine", "server")

    def __init__(self, machine: GuestMachine, loop: ClientLoop, server: XenstoreServer) -> None:
        self.machine = machine
        self.loop = loop
        self.server = server
        self._virq_port = _NO_PORT
        server.links = self

    def state(self, domid: int) -> DomainState | None:
        """What the hypervisor says; from the first domain on its changes are heard of."""
        found = self.machine.domain_state(domid)
        if found is None:
            return None
        if self._virq_port == _NO_PORT:
            self._hear_of_ends()
        unique_id, is_shut_down = found
        return DomainState(unique_id, is_shut_down)

    def connect(self, domid: int, port: int) -> Connection:
        """Maps the domain's page and binds its port. XenstoreError EINVAL if either can't be.

        A port that the page names comes before `port`, as with the C daemon: Xen has written it,
        for a domain that no toolstack has made. Who writes another one there only harms itself.
        """
        state = self.state(domid)
        if state is None:
            raise XenstoreError("EINVAL")
        machine = self.machine
        try:
            page = machine.map_foreign(domid, GNTTAB_RESERVED_XENSTORE)
            own = machine.bind_interdomain(domid, page.cast("I")[EVTCHN_PORT] or port)
        except HypercallError as error:
            machine.console(f"domain {domid} can't be introduced: {error}")
            raise XenstoreError("EINVAL") from None
        connection = self.server.connect(domid)
        self.server.set_ring(connection, own, state.unique_id)
        link = RingLink(self, connection, page)
        link.page.start()
        link.listen(own)
        return connection

    def restore(self, connection: Connection) -> None:
        """Connects a domain again that an earlier kernel served.

        One that can't be is ignored until the hypervisor says that it is gone.
        """
        ring = connection.ring
        if ring is None:
            raise ValueError("no connection by ring")
        machine = self.machine
        try:
            page = machine.map_foreign(connection.domid, GNTTAB_RESERVED_XENSTORE)
        except HypercallError as error:
            machine.console(f"domain {connection.domid} is ignored: {error}")
            self.server.reset(connection)
            return
        link = RingLink(self, connection, page)
        try:
            machine.bind(ring.evtchn)
        except HypercallError as error:
            machine.console(f"domain {connection.domid} is ignored: {error}")
            link.page.ignore(XENSTORE_ERROR_COMM)
        else:
            link.listen(ring.evtchn)
        self.loop.flush(connection)

    def restore_all(self, connections: list[Connection]) -> None:
        """The same for all there are; who has ended meanwhile is seen when the loop runs.

        That may be a domain that is only known by a permission, too.
        """
        for connection in connections:
            self.restore(connection)
        if connections or self.server.store.domains.keys() - {0}:
            self._hear_of_ends()
            self.loop.call_at(self.machine.now_s(), self._check)

    def _hear_of_ends(self) -> None:
        machine = self.machine
        try:
            self._virq_port = machine.bind_virq(VIRQ_DOM_EXC)
        except HypercallError as error:
            machine.console(f"ends of domains will not be noticed: {error}")
            return
        self.loop.watch_client_fd(machine.bell(self._virq_port), self._on_virq)

    def _on_virq(self) -> None:
        self.machine.take_ring(self._virq_port)
        self._check()

    def _check(self) -> None:
        domains.check(self.server)


class RingLink(Link):
    """One domain's rings; `page` are they, over the page that it has granted."""

    __slots__ = ("_connection", "_links", "_port", "page")

    def __init__(self, links: RingLinks, connection: Connection, page: memoryview) -> None:
        self._links = links
        self._connection = connection
        self._port = _NO_PORT
        self.page = RingPage(links.server, connection, page)
        connection.link = self

    def listen(self, port: int) -> None:
        """Hears the bell of `port`, which is bound, from now on."""
        self._port = port
        self._links.loop.watch_client_fd(self._links.machine.bell(port), self._rung)

    def _rung(self) -> None:
        self._links.machine.take_ring(self._port)
        self.pump()

    def pump(self) -> None:
        """Moves one ring full each way at most; more is come back for."""
        if self._port == _NO_PORT:
            return
        machine = self._links.machine
        if self.page.pump():
            machine.notify(self._port)
        if self.page.has_work():
            machine.ring_again(self._port)

    def rebind(self, port: int) -> None:
        """As the C daemon: the old port is closed first, whatever becomes of the new one."""
        self._unbind()
        ring, machine = self._connection.ring, self._links.machine
        try:
            own = machine.bind_interdomain(self._connection.domid, port)
        except HypercallError as error:
            machine.console(f"domain {self._connection.domid} has no port {port}: {error}")
            return
        if ring is not None:
            self._links.server.set_ring(self._connection, own, ring.unique_id)
        self.listen(own)

    def reset(self) -> None:
        """Empties both rings."""
        self.page.reset()
        if self.page.end_reconnect() and self._port != _NO_PORT:
            self._links.machine.notify(self._port)

    def close(self) -> None:
        """Gives the port back; the page is unmapped with the last reference to this."""
        self._unbind()

    def _unbind(self) -> None:
        port, self._port = self._port, _NO_PORT
        if port == _NO_PORT:
            return
        machine = self._links.machine
        self._links.loop.unwatch_fd(machine.bell(port))
        try:
            machine.close(port)
        except HypercallError as error:
            machine.console(f"port {port} was not closed: {error}")
