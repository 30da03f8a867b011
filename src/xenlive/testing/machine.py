"""The machine below a test's Xenstore server: other domains, their pages and doorbells, no more.

There is no guest memory, no device and no kexec: what asks for these is not in such a server.
Domains come in by the same door as beside a hosted stub domain (`machine/hosted/neighbours.py`).

**Invariants.** A page stays mapped and a doorbell open for as long as the server uses them,
whatever becomes of their domain. No two ports have the same number.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sys
import time

from xenlive.errors import HypercallError
from xenlive.machine.guest import GuestMachine
from xenlive.machine.hosted.others import OtherDomains
from xenlive.memory.address import PAGE_SIZE

FIRST_PORT = 1


class BareMachine(GuestMachine):
    """Domain 0's view of `others`."""

    __slots__ = ("_ports", "_virq_port", "others")

    def __init__(self) -> None:
        self.domid = 0
        self.others = OtherDomains(self.domid)
        self.others.on_change = self._ring_virq
        self._ports: dict[int, tuple[int, int]] = {}  # the bell a port rings, the one it hears
        self._virq_port = 0

    def now_s(self) -> float:
        """The monotonic clock."""
        return time.monotonic()

    def console(self, text: str) -> None:
        """A line on stderr, which is the server's log."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def domain_state(self, domid: int) -> tuple[int, bool] | None:
        """What is known of a domain."""
        try:
            other = self.others.state(domid)
        except HypercallError:
            return None
        return other.unique_id, other.is_shut_down

    def map_foreign(self, domid: int, ref: int) -> memoryview:
        """Maps one page that a domain has shared."""
        memory_fd, offset = self.others.page(domid, ref)
        try:
            return memoryview(mmap.mmap(memory_fd, PAGE_SIZE, offset=offset))
        except (OSError, ValueError) as error:
            raise HypercallError("gnttab_map", errno.EINVAL, str(error)) from None

    def bind_interdomain(self, domid: int, port: int) -> int:
        """A port with the doorbells of a domain's own, the other way round."""
        hears, rings = self.others.bells(domid, port)
        return self._new_port((os.dup(hears), os.dup(rings)))

    def bind_virq(self, virq: int) -> int:
        """The port that rings when a domain has ended; there is no other virtual interrupt."""
        if not self._virq_port:
            bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._virq_port = self._new_port((bell, bell))
        return self._virq_port

    def bell(self, port: int) -> int:
        """The doorbell that the other end rings."""
        return self._bells("evtchn_bind", port)[1]

    def take_ring(self, port: int) -> bool:
        """Whether the other end has rung; silent again then."""
        try:
            os.eventfd_read(self.bell(port))
        except BlockingIOError:
            return False
        return True

    def ring_again(self, port: int) -> None:
        """Rings the own doorbell."""
        _ring(self.bell(port))

    def notify(self, port: int) -> None:
        """Rings the other end."""
        _ring(self._bells("evtchn_send", port)[0])

    def close(self, port: int) -> None:
        """Gives a port back."""
        for bell in self._bells("evtchn_close", port):
            os.close(bell)
        del self._ports[port]

    def _new_port(self, bells: tuple[int, int]) -> int:
        port = max(self._ports, default=FIRST_PORT - 1) + 1
        self._ports[port] = bells
        return port

    def _bells(self, call: str, port: int) -> tuple[int, int]:
        try:
            return self._ports[port]
        except KeyError:
            raise HypercallError(call, errno.EINVAL, f"no port {port}") from None

    def _ring_virq(self) -> None:
        if self._virq_port:
            self.ring_again(self._virq_port)


def _ring(bell: int) -> None:
    with contextlib.suppress(BlockingIOError):  # it rings already, 2**64 - 2 times
        os.eventfd_write(bell, 1)
