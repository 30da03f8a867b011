"""A directory of this machine as a guest's 9pfs device, served on pages that the guest grants.

    guest ── rings on granted pages, an event channel each ──▶ NinePBack ─┐
          ── (up to four rings, one session)               ──▶ NinePBack ─┴▶ ExportTree ─▶ DiskTree
          ── Xenstore: states, references, ports ──▶ XenbusBackEnd

Specification: Xen `docs/misc/9pfs.pandoc`, `public/io/9pfs.h`; the limits on rings and what is
checked of the front end's offer are those of `tools/9pfsd/xen-9pfsd.c` (`connect_device`).

**Invariants.** A page is used only while it is granted to this end, for writing, and mapped; all is
given back when the device closes, and a front end that breaks the protocol closes its device and
nothing else. Everything a guest asked for is done when its event returns: no thread, no clock of
the host. What the guest does to its kernels is not seen from here: grants, port and indices stay
over a kexec, and so does the session, until the front end disconnects.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xenlive.abi.xen9pfs import MAX_RING_ORDER
from xenlive.domain.ninepback import NinePBack
from xenlive.errors import HypercallError, PeerError
from xenlive.machine.disktree import DiskTree
from xenlive.machine.emulated.backends.exporttree import ExportTree
from xenlive.machine.emulated.backends.toolstack import add_ninepfs, remove_device
from xenlive.machine.emulated.backends.xenbus import DevicePlace, XenbusBackEnd
from xenlive.machine.emulated.interface import SECOND_NS
from xenlive.memory.address import PAGE_SIZE
from xenlive.ninep.server import Session

if TYPE_CHECKING:
    from xenlive.machine.emulated.backends.store import StoreClient
    from xenlive.machine.emulated.backends.xenbus import FrontEnd
    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.hypervisor.grantmap import BackEndGrants

#: What the back end offers, as Xen's daemon does.
VERSION = "1"
MAX_RINGS = 4
KIND = "9pfs"


@dataclass(frozen=True, slots=True)
class Share:
    """A directory for a guest, and what it may do there; `tag` is its name for the guest.

    `max_bytes` and `max_files` are for all that is in the directory, not only the guest's.
    """

    directory: str
    tag: str
    is_read_only: bool = False
    max_bytes: int = 1 << 30
    max_files: int = 10_000
    max_fids: int = 1024
    max_open_files: int = 64


class NinePDevice:
    """Device `number` of `domain`: nodes, handshake and rings. OSError if it is no directory."""

    def __init__(
        self, host: Domain, domain: Domain, store: StoreClient, number: int, share: Share
    ) -> None:
        self.share = share
        self.place = DevicePlace(KIND, domain.domid, number)
        self._host = host
        self._domain = domain
        self._store = store
        self._disk = DiskTree(share.directory, share.max_bytes, share.max_files)
        self._tree = ExportTree(self._disk, self._now_s, domain.boot_s, share.is_read_only)
        self._session = Session()
        self._grants: BackEndGrants = domain.grants_for(host.domid)
        self.rings: list[Ring] = []
        #: How often a front end was connected to.
        self.connections = 0
        add_ninepfs(store, self.place, share)
        self._xenbus = XenbusBackEnd(store, self.place, self)

    @property
    def state(self) -> int:
        """The back end's XenbusState."""
        return self._xenbus.state

    @property
    def is_connected(self) -> bool:
        """Whether the front end's rings are served."""
        return self._xenbus.is_connected

    def close(self) -> None:
        """Gives back all of the guest's, closes files and directory, removes the nodes."""
        self._xenbus.close()
        self._disk.close()
        remove_device(self._store, self.place)

    def _now_s(self) -> int:
        return self._domain.boot_s + self._domain.clock.now_ns // SECOND_NS

    # ---- the handshake's driver ----------------------------------------------------------

    def features(self) -> dict[str, str]:
        """The nodes that tell a front end what it may ask for."""
        return {
            "versions": VERSION,
            "max-rings": str(MAX_RINGS),
            "max-ring-page-order": str(MAX_RING_ORDER),
        }

    def connect(self, front: FrontEnd) -> None:
        """Attaches to all rings that are offered. PeerError or HypercallError, and to none."""
        if front.text("version") != VERSION:
            raise PeerError("no version of the protocol that is known")
        n_rings = front.number("num-rings") or 0
        if not 1 <= n_rings <= MAX_RINGS:
            raise PeerError("not so many rings", value=n_rings)
        self._session = Session(self.share.max_fids, self.share.max_open_files)
        try:
            for index in range(n_rings):
                port = front.number(f"event-channel-{index}")
                ref = front.number(f"ring-ref{index}")
                if not port or not ref:
                    raise PeerError(f"ring {index} has no event channel or no page")
                self.rings.append(Ring(self, port, ref))
        except (HypercallError, PeerError):
            self.disconnect()
            raise
        self.connections += 1

    def serve(self) -> None:
        """Serves events of all rings from now on; binding was one."""
        for ring in self.rings[:]:
            if not ring.back.is_dead:
                self._host.host_events.handle(ring.port, ring.serve)

    def disconnect(self) -> None:
        """Lets go of rings, ports and open files."""
        for ring in self.rings:
            ring.close()
        self.rings.clear()
        with contextlib.suppress(OSError):  # a disk that fails at close(2)
            self._session.close()

    # ---- for the rings -------------------------------------------------------------------

    def bind(self, remote_port: int) -> int:
        """This end's port of an event channel that the guest offers. HypercallError."""
        return self._host.events.bind_interdomain(self._domain.events, remote_port)

    def attach(self, port: int, ref: int) -> NinePBack:
        """A server on the ring behind a granted interface page. HypercallError, PeerError."""
        return NinePBack(
            self._grants,
            ref,
            port,
            self._tree,
            notify=lambda: self._host.events.send(port),
            session=self._session,
        )

    def unbind(self, port: int) -> None:
        """Closes this end's port."""
        self._host.events.close(port)

    def lost(self, error: PeerError) -> None:
        """The front end broke the protocol on one of the rings."""
        self._xenbus.fail(str(error))


class Ring:
    """One pair of rings and its event channel."""

    def __init__(self, device: NinePDevice, remote_port: int, ref: int) -> None:
        self._device = device
        self.remote_port = remote_port
        self.ref = ref
        self.port = device.bind(remote_port)
        try:
            self.back = device.attach(self.port, ref)
        except (HypercallError, PeerError):
            device.unbind(self.port)
            raise

    def serve(self) -> None:
        """Does all that is asked for in the ring, as far as there is room for the answers."""
        # The guest stands still, so no more than a ring's worth can come, unless answers are made
        # to lie over the indices: that could go on for ever.
        end = self.back.bytes_read + (PAGE_SIZE << self.back.order)
        try:
            self.back.kick()
            while self.back.wants_kick:
                if self.back.bytes_read > end:
                    self.back.close()
                    raise PeerError("the ring fills itself")
                self.back.kick()
        except PeerError as error:
            self._device.lost(error)

    def close(self) -> None:
        """Gives pages and port back."""
        self.back.close()
        self._device.unbind(self.port)
