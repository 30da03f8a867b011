"""Xenstore for emulated guests, served by a hosted stub domain in another process.

    guest ──ring page (one memory, mapped by both)── RingLink of the stub domain
          ──event──▶ RemoteRing ──doorbell──▶ its serve loop
          ◀──event── RemoteRing ◀─doorbell──
    toolstack, back ends ──RemoteClient, a socket of domain 0──▶ the same server

The guest is a domain of its own there: the host process chooses its id, is told which page it has
granted as its Xenstore ring and at which port it listens, and notices when this process ends. As a
toolstack does, this side writes the guest's nodes and sends INTRODUCE, at its end RELEASE.

**Invariants.** No byte of a ring passes through here. When the other side goes away nothing is
raised: the guests' stores fall silent, and `is_gone` says so. The same run is no longer the same:
when an answer comes is for the other process to say.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING

from xenlive.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from xenlive.abi.hypercalls.hvm import HVM_PARAM_STORE_EVTCHN, HVM_PARAM_STORE_PFN
from xenlive.errors import ConfigError, PeerError, XenliveError
from xenlive.machine.emulated.backends.store import GuestRing, Store, StoreClient
from xenlive.machine.hosted.joining import Membership
from xenlive.memory.address import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.hypervisor.domain import Domain


class RemoteClient(StoreClient):
    """A client by socket; who makes it knows how to speak to one."""

    def fileno(self) -> int:
        """Readable when there are events, or when the server is gone; -1 once closed."""
        raise NotImplementedError

    def dispatch(self) -> None:
        """Hands events that have come to whoever set their watch. PeerError if it is gone."""
        raise NotImplementedError

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """INTRODUCE."""
        raise NotImplementedError

    def release(self, domid: int) -> None:
        """RELEASE."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the connection."""
        raise NotImplementedError


class RemoteStore(Store):
    """The Xenstore of the hosted domain of `rundir`; `connect` makes a client for its socket.

    ConfigError if nobody answers there.
    """

    def __init__(self, host: Domain, rundir: str, connect: Callable[[str], RemoteClient]) -> None:
        self.is_gone = False
        self._host = host
        self._rundir = rundir
        self._connect = connect
        self._clients: list[RemoteClient] = []
        self._members: dict[int, Membership] = {}
        self._rings: dict[int, RemoteRing] = {}
        self._epoll = select.epoll()
        self._actions: dict[int, Callable[[], None]] = {}
        try:
            # Where the socket is, is known once a domain has been entered; the first one will be.
            self._next: Membership | None = self._join()
        except BaseException:
            self._epoll.close()
            raise

    def client(self) -> RemoteClient:
        """A new connection as domain 0."""
        member = self._next or next(iter(self._members.values()), None)
        if member is None:
            raise ConfigError(self._rundir, 0, "the hosted Xenstore is gone")
        client = self._connect(member.socket_path)
        self._clients.append(client)
        self._hear(client.fileno(), client.dispatch)
        return client

    def new_domid(self) -> int:
        """The id that the host process has given."""
        member, self._next = self._next or self._join(), None
        self._members[member.domid] = member
        return member.domid

    def know(self, domid: int) -> None:
        """The server asks its hypervisor, which knows since the domain was entered."""

    def introduce(self, domain: Domain) -> RemoteRing:
        """Shares the ring's page and port, and has the server serve them."""
        ring = RemoteRing(self._host, domain, self._members[domain.domid])
        self._rings[domain.domid] = ring
        self._hear(ring.hears, ring.rung)
        params = domain.params
        gfn, port = params.peek(HVM_PARAM_STORE_PFN), params.peek(HVM_PARAM_STORE_EVTCHN)
        self._clients[0].introduce(domain.domid, gfn, port)
        return ring

    def release(self, ring: RemoteRing) -> None:
        """RELEASE, and the end of the domain; the other side may have forgotten both."""
        self._rings.pop(ring.domid, None)
        self._forget(ring.hears)
        with contextlib.suppress(XenliveError):
            self._clients[0].release(ring.domid)
        ring.close()
        member = self._members.pop(ring.domid)
        self._forget(member.fileno())
        member.close()

    def domain_stopped(self, ring: RemoteRing) -> None:
        """The host process tells the stub domain."""
        with contextlib.suppress(XenliveError):
            self._members[ring.domid].shut_down()

    # ---- what comes from the other side --------------------------------------------------

    def fileno(self) -> int:
        """Readable when `ready` has something to do; -1 when nothing will come any more."""
        return -1 if self.is_gone else self._epoll.fileno()

    def ready(self) -> None:
        """Takes what has come: rings of doorbells, events for clients, the other side's end."""
        for fd, _ in self._epoll.poll(0):
            action = self._actions.get(fd)
            if action is None:
                continue
            try:
                action()
            except PeerError:
                self._lost()

    def close(self) -> None:
        """Gives everything back; domains that were not released are gone without a word."""
        self.is_gone = True
        for ring in self._rings.values():
            ring.close()
        for closing in (*self._clients, *self._members.values(), self._next):
            if closing is not None:
                closing.close()
        self._rings.clear()
        self._members.clear()
        self._actions.clear()
        self._epoll.close()

    def _join(self) -> Membership:
        member = Membership.join(self._rundir)
        self._hear(member.fileno(), self._lost)
        return member

    def _lost(self) -> None:
        self.is_gone = True

    def _hear(self, fd: int, action: Callable[[], None]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._actions[fd] = action

    def _forget(self, fd: int) -> None:
        if self._actions.pop(fd, None) is not None:
            self._epoll.unregister(fd)


class RemoteRing(GuestRing):
    """One guest's page and port, as they are shared: `hears` is the guest's doorbell."""

    def __init__(self, host: Domain, domain: Domain, member: Membership) -> None:
        self.domid = domain.domid
        self._host = host
        # Held as a back end of this process would hold it: it stays where it is until released.
        self._grants = domain.grants_for(host.domid)
        self._grants.map(GNTTAB_RESERVED_XENSTORE)
        mapping = domain.space.lookup(domain.params.peek(HVM_PARAM_STORE_PFN))
        if mapping is None:
            raise ConfigError("Xenstore", 0, "a guest without a page for its ring")
        remote = domain.params.peek(HVM_PARAM_STORE_EVTCHN)
        self.hears, self._rings = member.share(
            domain.space.fd, GNTTAB_RESERVED_XENSTORE, mapping.frame.index * PAGE_SIZE, remote
        )
        self._port = host.events.bind_interdomain(domain.events, remote)
        host.host_events.handle(self._port, self._on_event)

    def _on_event(self) -> None:
        """The guest has an event for the store."""
        _ring(self._rings)

    def rung(self) -> None:
        """The store has an event for the guest."""
        os.set_blocking(self.hears, False)  # a flag that the other side shares
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.hears)
        self._host.events.send(self._port)

    def close(self) -> None:
        """Gives page and doorbells back."""
        self._grants.unmap_all()
        for bell in (self.hears, self._rings):
            os.close(bell)


def _ring(bell: int) -> None:
    """Rings a doorbell; one that is full rings already."""
    os.set_blocking(bell, False)
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(bell, 1)
