"""Domains of other machines beside a hosted one, as its hypervisor knows them.

Another machine (the emulated one, in a process of its own) enters a domain, shares one page of it
and a port, says when it has shut down, and leaves when it ends. The stub domain can map that page,
bind that port and ask how the domain is; nothing else of it is within reach.

    entered ──▶ shares pages, ports ──▶ shut down ──▶ left
       └──── each change rings VIRQ_DOM_EXC of the stub domain ────┘

Source of the answers: Xen `public/grant_table.h`, `public/event_channel.h`; -ESRCH for a domain
that is not there, -EINVAL for a page or port that it has not shared.

**Invariants.** A domain id is not given out again before all others were; a unique id never.
Memory that is shared can't be made shorter, by nobody, so that no process that maps it is ended by
that. No I/O here but to close descriptors.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from xenlive.errors import HypercallError, PeerError
from xenlive.memory.address import PAGE_SIZE

#: Each costs a descriptor of the host's, and each of its shares three.
OTHERS_MAX = 32
SHARES_MAX = 2

_FIRST_RESERVED = 0x7FF0
_U32 = 0xFFFFFFFF


@dataclass
class Other:
    """A domain of another machine; `close()` gives its descriptors back.

    `pages` is the memory and the place in it of each granted page, `bells` for each of its ports
    the doorbell that it hears and the one that it rings.
    """

    domid: int
    unique_id: int
    is_shut_down: bool = False
    pages: dict[int, tuple[int, int]] = field(default_factory=dict)
    bells: dict[int, tuple[int, int]] = field(default_factory=dict)

    def share_page(self, ref: int, memory_fd: int, offset: int) -> None:
        """Takes over `memory_fd`, a memfd with the granted page. PeerError if it can't be that."""
        if not 0 <= ref <= _U32 or ref in self.pages or len(self.pages) >= SHARES_MAX:
            raise PeerError("a grant reference that is wild, or shared already", value=ref)
        try:
            seals = fcntl.fcntl(memory_fd, fcntl.F_GET_SEALS)
        except OSError:
            seals = 0
        found = os.fstat(memory_fd)
        if not stat.S_ISREG(found.st_mode) or not seals & fcntl.F_SEAL_SHRINK:
            raise PeerError("memory that is no memfd, or may become shorter")
        if offset % PAGE_SIZE or not 0 <= offset <= found.st_size - PAGE_SIZE:
            raise PeerError("no whole page lies there", value=offset)
        self.pages[ref] = (memory_fd, offset)

    def share_port(self, port: int) -> tuple[int, int]:
        """Makes the doorbells of a port: the one it hears, the one it rings. PeerError, OSError."""
        if not 0 < port <= _U32 or port in self.bells or len(self.bells) >= SHARES_MAX:
            raise PeerError("a port that is wild, or shared already", value=port)
        hears = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            rings = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            os.close(hears)
            raise
        self.bells[port] = (hears, rings)
        return hears, rings

    def close(self) -> None:
        """Gives all descriptors back; who has mapped or bound something keeps that."""
        for memory_fd, _ in self.pages.values():
            os.close(memory_fd)
        for pair in self.bells.values():
            for bell in pair:
                os.close(bell)
        self.pages.clear()
        self.bells.clear()


class OtherDomains:
    """All domains beside the hosted one `own_domid`; `on_change` rings for each end of one."""

    def __init__(self, own_domid: int) -> None:
        self.on_change: Callable[[], None] = _nobody
        self._domains: dict[int, Other] = {}
        self._own_domid = own_domid
        self._next_domid = own_domid + 1
        self._entered = 0

    def enter(self) -> Other:
        """A new domain. PeerError if there are too many."""
        if len(self._domains) >= OTHERS_MAX:
            raise PeerError("too many domains beside this one", value=len(self._domains))
        domid = self._next_domid
        while domid in self._domains or domid in (0, self._own_domid):
            domid = (domid + 1) % _FIRST_RESERVED
        self._next_domid = (domid + 1) % _FIRST_RESERVED
        self._entered += 1
        self._domains[domid] = found = Other(domid, self._entered)
        return found

    def shut_down(self, other: Other) -> None:
        """A domain has stopped, and is still there."""
        if not other.is_shut_down:
            other.is_shut_down = True
            self.on_change()

    def leave(self, other: Other) -> None:
        """A domain is gone."""
        del self._domains[other.domid]
        other.close()
        self.on_change()

    def close(self) -> None:
        """All are gone, and nobody is told."""
        for other in self._domains.values():
            other.close()
        self._domains.clear()

    def page(self, domid: int, ref: int) -> tuple[int, int]:
        """Memory and place of a page that a domain has granted; HypercallError."""
        try:
            return self._find("gnttab_map", domid).pages[ref]
        except KeyError:
            raise HypercallError("gnttab_map", errno.EINVAL, f"no grant {ref}") from None

    def bells(self, domid: int, port: int) -> tuple[int, int]:
        """Doorbells of a domain's port: the one it hears, the one it rings; HypercallError."""
        try:
            return self._find("evtchn_bind_interdomain", domid).bells[port]
        except KeyError:
            raise HypercallError(
                "evtchn_bind_interdomain", errno.EINVAL, f"no port {port}"
            ) from None

    def state(self, domid: int) -> Other:
        """A domain as it is; HypercallError ESRCH."""
        return self._find("domain_state", domid)

    def domids(self) -> list[int]:
        """Those that are there."""
        return sorted(self._domains)

    def _find(self, call: str, domid: int) -> Other:
        found = self._domains.get(domid)
        if found is None:
            raise HypercallError(call, errno.ESRCH, f"no domain {domid}")
        return found


def _nobody() -> None:
    pass
