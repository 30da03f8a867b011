"""A fake guest: an unprivileged domain with a real ring page and event channel, without Xen.

    guest.store.write("data/a", "1")        as the guest, by its ring
    guest.page, guest.notify(), guest.wait() the page itself, to be as good or bad a guest as wanted
    guest.memory_fd, guest.hears_fd, ...     for guest code in another process or language

**Invariants.** All of the page is the guest's to write; the server is a process of its own, and
what is done to the page can hurt only this guest's connection. After `close` the domain is gone, as
the server sees it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
from pathlib import Path

from xenlive.abi import xs_ring
from xenlive.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from xenlive.client import tree
from xenlive.client.answers import Permission
from xenlive.client.blocking import Xenstore
from xenlive.client.ring import RingTransport
from xenlive.client.tree import Node
from xenlive.machine.hosted.joining import Membership
from xenlive.memory.address import PAGE_SIZE

ANSWER_TIMEOUT_S = 30.0
PORT = 1
#: What INTRODUCE is told; a server goes by the grant.
GFN = 0xFEFFC

#: Below a guest's own: what it may only read, and what is its own (Xen's libxl, `libxl_create.c`).
READ_ONLY = ("cpu", "memory", "device", "control")
OWN = ("data", "drivers", "feature", "attr", "error", "control/shutdown", "control/sysrq")


class Guest:
    """A domain in the server of `rundir`; `toolstack` is a client of domain 0's.

    Made by `PrivateXenstore.new_guest`. `domid` is the server's to choose.
    """

    def __init__(self, rundir: Path, toolstack: Xenstore) -> None:
        self._toolstack = toolstack
        self._membership = Membership.join(str(rundir))
        self.domid = self._membership.domid
        self.home = f"/local/domain/{self.domid}"
        #: A memfd of one page: the ring's.
        self.memory_fd = os.memfd_create("xenlive-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memory_fd, PAGE_SIZE)
        fcntl.fcntl(self.memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._mapped = mmap.mmap(self.memory_fd, PAGE_SIZE)
        #: The page, shared with the server, and its 32-bit words (`abi/xs_ring.py` names them).
        self.page = memoryview(self._mapped)
        self.words = self.page.cast("I")
        #: The eventfds that the server rings, and that ring the server.
        self.hears_fd, self.rings_fd = self._membership.share(
            self.memory_fd, GNTTAB_RESERVED_XENSTORE, 0, PORT
        )
        self._store: Xenstore | None = None
        self._is_closed = False

    @property
    def store(self) -> Xenstore:
        """A client by the guest's ring, with the guest's rights; relative paths begin at `home`."""
        if self._store is None:
            raise RuntimeError("this guest is not introduced")
        return self._store

    def introduce(self, *, nodes: bool = True) -> None:
        """What a toolstack does for a new domain: its nodes, unless told not to, and INTRODUCE."""
        if nodes:
            self._toolstack.carry_out(tree.make(nodes_of_guest(self.domid)))
        self._toolstack.introduce(self.domid, GFN, PORT)
        self._connect()

    def reconnect(self) -> None:
        """Starts the connection over, as a crash kernel does; watches and transactions end.

        The toolstack's INTRODUCE empties the rings.
        """
        self.words[xs_ring.CONNECTION] = xs_ring.XENSTORE_RECONNECT
        self._toolstack.introduce(self.domid, GFN, PORT)
        self._connect()

    def shut_down(self) -> None:
        """The domain stops, and is still there: @releaseDomain fires."""
        self._membership.shut_down()

    def close(self) -> None:
        """The domain is gone, with all that was its own; its nodes are the toolstack's affair."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._store is not None:
            self._store.close()
        self._membership.close()
        for fd in (self.memory_fd, self.hears_fd, self.rings_fd):
            os.close(fd)

    def notify(self) -> None:
        """Rings the server."""
        os.eventfd_write(self.rings_fd, 1)

    def wait(self, timeout_s: float) -> bool:
        """Waits until the server rings; False if it did not in time."""
        poll = select.poll()
        poll.register(self.hears_fd, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return False
        os.eventfd_read(self.hears_fd)
        return True

    def _connect(self) -> None:
        ring = RingTransport(self.page, self.hears_fd, self.rings_fd)
        self._store = Xenstore(ring, timeout_s=ANSWER_TIMEOUT_S)


def nodes_of_guest(domid: int) -> list[Node]:
    """What a toolstack writes for a domain: what it may read, and what is its own."""
    home = f"/local/domain/{domid}"
    reads = (Permission(0, "n"), Permission(domid, "r"))
    own = (Permission(domid, "n"),)
    return [
        Node(home, b"", reads),
        Node(f"{home}/name", b"guest-%d" % domid, reads),
        Node(f"{home}/domid", b"%d" % domid, reads),
        *(Node(f"{home}/{name}", b"", reads) for name in READ_ONLY),
        *(Node(f"{home}/{name}", b"", own) for name in OWN),
    ]
