"""One hosted domain as its hypervisor sees it: RAM, grant table, event channels, hypercalls.

    HostedDomain
    ├── ram memfd            guest physical 0 … ram_bytes
    ├── grant memfd          the grant table's pages: Xen's memory, shared with the domain
    ├── ports                port -> remote domid and two doorbells (eventfds)
    └── answer(packet)       serves one call of `hypercall.py`

What outlives a kernel lives here: a kexec changes none of it. Ports 1 and 2 are taken from the
start for the Xenstore and console rings, as a domain builder does; devices get the ports above.

**Invariants.** `answer` never raises for anything a domain sends; a call that is refused changes
nothing. A doorbell that a domain was given stays the same over kexec, so a backend that waits on
it never notices.

Source of the answers: Xen `public/event_channel.h`; -EINVAL for a port that is not there, -ENOSPC
when there are no more.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from xenlive.abi.grant_table import GRANT_ENTRY_V1, GRANTS_PER_PAGE
from xenlive.errors import ConfigError, HypercallError
from xenlive.kexec.start_info import build_start_info
from xenlive.machine.hosted import hypercall as hc
from xenlive.machine.hosted.image import LOAD_END
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, E820_RESERVED, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

GRANT_PAGES = 4
FIRST_FREE_PORT = 3
MAX_PORTS = 1024
RAM_MIN_BYTES = 1 << 20
RAM_MAX_BYTES = 0xF0000000

#: Xen's special pages of a PVH guest, below 4 GiB (Xen `xg_dom_x86.c`): not memory for anyone.
SPECIAL_PAGES = MemoryRange(0xFEFF8000, 0x8000, E820_RESERVED)


@dataclass
class Port:
    """An event channel: the domain rings `to_remote`, the host rings `from_remote`."""

    remote_domid: int
    to_remote: int
    from_remote: int


@dataclass
class HostedDomain:
    """A domain's resources. `close()` gives everything back."""

    domid: int
    ram_bytes: int
    ram_fd: int = -1
    grant_fd: int = -1
    ports: dict[int, Port] = field(default_factory=dict)
    listener_fd: int = -1
    on_console: Callable[[str], None] = lambda text: None
    on_milestone: Callable[[str, int], None] = lambda name, when_ns: None
    on_ninepfs_connect: Callable[[int, int], None] = lambda ring_ref, port: None

    def __post_init__(self) -> None:
        if not RAM_MIN_BYTES <= self.ram_bytes <= RAM_MAX_BYTES or self.ram_bytes % PAGE_SIZE:
            raise ConfigError(
                "memory",
                0,
                f"a domain has from 1 MiB to 3840 MiB in whole pages, not {self.ram_bytes} bytes",
            )
        self.ram_fd = os.memfd_create(f"xenlive-ram-{self.domid}", os.MFD_CLOEXEC)
        self.grant_fd = os.memfd_create(f"xenlive-grants-{self.domid}", os.MFD_CLOEXEC)
        os.ftruncate(self.ram_fd, self.ram_bytes)
        os.ftruncate(self.grant_fd, GRANT_PAGES * PAGE_SIZE)
        self._ram = mmap.mmap(self.ram_fd, self.ram_bytes)
        self._grants = mmap.mmap(self.grant_fd, GRANT_PAGES * PAGE_SIZE)
        self.memory = GuestMemory([(0, self._ram)])
        self.grant_frames = memoryview(self._grants)
        self.grant_entries = GRANT_PAGES * GRANTS_PER_PAGE

    def memory_map(self) -> MemoryMap:
        """The memory map that the first kernel is given."""
        return MemoryMap([MemoryRange(0, self.ram_bytes, E820_RAM), SPECIAL_PAGES])

    def load_start_info(self, cmdline: str) -> PhysAddr:
        """Writes the first kernel's start info into its RAM; returns the address for `ebx`."""
        block = build_start_info(LOAD_END, self.memory_map(), [], cmdline)
        self.memory.write(LOAD_END, block)
        return LOAD_END

    def active_grants(self) -> list[dict[str, int]]:
        """The grant table's entries in use: reference, flags, domid and frame of each."""
        found = []
        for ref in range(self.grant_entries):
            flags, domid, frame = GRANT_ENTRY_V1.unpack(
                self.grant_frames, ref * GRANT_ENTRY_V1.size
            )
            if flags:
                found.append({"ref": ref, "flags": flags, "domid": domid, "frame": frame})
        return found

    # -- event channels --------------------------------------------------------------------------

    def alloc_port(self, remote_domid: int) -> int:
        """A new event channel to `remote_domid`; HypercallError ENOSPC when all are taken."""
        if remote_domid != 0:
            raise HypercallError(
                "evtchn_alloc_unbound", errno.ESRCH, "only the host's end is served"
            )
        for port in range(FIRST_FREE_PORT, MAX_PORTS):
            if port not in self.ports:
                flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
                bells = os.eventfd(0, flags), os.eventfd(0, flags)
                self.ports[port] = Port(remote_domid, *bells)
                return port
        raise HypercallError("evtchn_alloc_unbound", errno.ENOSPC)

    def port(self, number: int) -> Port:
        """A port of the domain; HypercallError EINVAL if there is none of that number."""
        try:
            return self.ports[number]
        except KeyError:
            raise HypercallError("evtchn_bind", errno.EINVAL, f"no port {number}") from None

    def close_port(self, number: int) -> None:
        """Closes an event channel."""
        port = self.port(number)
        del self.ports[number]
        os.close(port.to_remote)
        os.close(port.from_remote)

    # -- hypercalls ------------------------------------------------------------------------------

    def answer(self, packet: bytes) -> tuple[bytes, list[int]] | None:
        """Serves one call: the answer and the descriptors beside it, or None for a one-way call."""
        if len(packet) < hc.CALL.size or len(packet) > hc.CALL.size + hc.PAYLOAD_MAX:
            return hc.ANSWER.pack(-errno.EINVAL, 0, 0, 0, 0), []
        op, a0, a1, _a2, _a3 = hc.CALL.unpack(packet)
        if op in hc.ONE_WAY:
            self._take_note(op, a0, packet[hc.CALL.size :])
            return None
        try:
            values, fds = self._serve(op, a0, a1)
        except HypercallError as error:
            return hc.ANSWER.pack(-error.errno, 0, 0, 0, 0), []
        return hc.ANSWER.pack(0, *values), fds

    def _serve(self, op: int, a0: int, a1: int) -> tuple[tuple[int, int, int, int], list[int]]:
        nothing = (0, 0, 0, 0)
        if op == hc.MEMORY_MAP:
            sizes = (self.ram_bytes, GRANT_PAGES * PAGE_SIZE, self.domid, 0)
            return sizes, [self.ram_fd, self.grant_fd]
        if op == hc.EVTCHN_ALLOC_UNBOUND:
            return (self.alloc_port(a0), 0, 0, 0), []
        if op == hc.EVTCHN_BIND:
            port = self.port(a0)
            return nothing, [port.to_remote, port.from_remote]
        if op == hc.EVTCHN_CLOSE:
            self.close_port(a0)
            return nothing, []
        if op == hc.NINEPFS_CONNECT:
            self.on_ninepfs_connect(a0, a1)
            return nothing, []
        if op == hc.LISTENER:
            if self.listener_fd < 0:
                raise HypercallError("listener", errno.ENOENT)
            return nothing, [self.listener_fd]
        raise HypercallError(f"operation {op}", errno.ENOSYS)

    def _take_note(self, op: int, a0: int, payload: bytes) -> None:
        text = payload.decode("utf-8", "replace")
        if op == hc.CONSOLE_WRITE:
            self.on_console("".join(c if c.isprintable() else "?" for c in text.rstrip("\n")))
        else:
            self.on_milestone(text[:64], a0)

    def close(self) -> None:
        """Gives RAM, grant table and event channels back; the domain must have ended."""
        for number in list(self.ports):
            self.close_port(number)
        self.memory.release()
        self.grant_frames.release()
        for mapping in (self._ram, self._grants):
            mapping.close()
        for fd in (self.ram_fd, self.grant_fd, self.listener_fd):
            if fd >= 0:
                os.close(fd)
