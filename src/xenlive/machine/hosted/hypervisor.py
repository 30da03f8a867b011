"""One hosted domain as its hypervisor sees it: RAM, grant table, event channels, hypercalls.

    HostedDomain
    ├── ram memfd            guest physical 0 … ram_bytes
    ├── grant memfd          the grant table's pages: Xen's memory, shared with the domain
    ├── ports                port -> remote domid and two doorbells (eventfds)
    └── answer(packet)       serves one call of `hypercall.py`

What outlives a kernel lives here: a kexec changes none of it. Ports 1 and 2 are taken from the
start for the Xenstore and console rings, as a domain builder does; devices get the ports above.

**Invariants.** `answer` never raises for anything a domain sends; a call that is refused changes
nothing, but that a device which is to be connected lets go of its old rings first. A doorbell that
a domain was given stays the same over kexec, so a backend that waits on it never notices; whoever
serves a port hears of its end (`on_port_close`) while its doorbells are still open. RAM and grant
table keep their sizes whatever the domain does with their descriptors (seals): shorter ones would
end every process that has them mapped.

Source of the answers: Xen `public/event_channel.h`; -EINVAL for a port that is not there, -ENOSPC
when there are no more, and when the host has no descriptors for one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from xenlive.abi.grant_table import GRANT_ENTRY_V1, GRANTS_PER_PAGE
from xenlive.abi.hypercalls.xen import VIRQ_DOM_EXC
from xenlive.domain.events import FIRST_FREE_PORT, MAX_PORTS
from xenlive.errors import ConfigError, HypercallError
from xenlive.kexec.start_info import build_start_info
from xenlive.machine.hosted import hypercall as hc
from xenlive.machine.hosted.image import LOAD_END
from xenlive.machine.hosted.others import OtherDomains
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, E820_RESERVED, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

GRANT_PAGES = 4
#: What a domain needs to boot: room for its image and start infos, and a module of 18 pages.
RAM_MIN_BYTES = LOAD_END + (64 << 10) + 18 * PAGE_SIZE
RAM_MAX_BYTES = 0xF0000000
CONSOLE_LINE_MAX = 4096
MILESTONE_MAX = 600

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
    #: Fewer where the host may not have the descriptors: two a port, and it needs some itself.
    ports_max: int = MAX_PORTS - FIRST_FREE_PORT
    on_console: Callable[[str], None] = lambda text: None
    on_milestone: Callable[[str, int], None] = lambda name, when_ns: None
    on_ninepfs_connect: Callable[[int, int], None] = lambda ring_ref, port: None
    on_port_close: Callable[[int], None] = lambda port: None

    def __post_init__(self) -> None:
        if not RAM_MIN_BYTES <= self.ram_bytes <= RAM_MAX_BYTES or self.ram_bytes % PAGE_SIZE:
            raise ConfigError(
                "memory",
                0,
                f"a domain has from {RAM_MIN_BYTES >> 10}K to {RAM_MAX_BYTES >> 20}M "
                f"in whole pages, not {self.ram_bytes} bytes",
            )
        self.others = OtherDomains(self.domid)
        self.others.on_change = self._ring_dom_exc
        self._virq_ports: dict[int, int] = {}
        self.grant_entries = GRANT_PAGES * GRANTS_PER_PAGE
        with contextlib.ExitStack() as undo:
            self.ram_fd = _sealed_memory(f"xenlive-ram-{self.domid}", self.ram_bytes)
            undo.callback(os.close, self.ram_fd)
            self.grant_fd = _sealed_memory(f"xenlive-grants-{self.domid}", GRANT_PAGES * PAGE_SIZE)
            undo.callback(os.close, self.grant_fd)
            self._ram = undo.enter_context(mmap.mmap(self.ram_fd, self.ram_bytes))
            self._grants = mmap.mmap(self.grant_fd, GRANT_PAGES * PAGE_SIZE)
            undo.pop_all()
        self.memory = GuestMemory([(0, self._ram)])
        self.grant_frames = memoryview(self._grants)

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
        return self._new_port("evtchn_alloc_unbound", remote_domid, _new_bell, _new_bell)

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> int:
        """A new event channel to a port of another machine's domain; ESRCH, EINVAL or ENOSPC."""
        to_remote, from_remote = self.others.bells(remote_domid, remote_port)
        return self._new_port(
            "evtchn_bind_interdomain",
            remote_domid,
            lambda: os.dup(to_remote),
            lambda: os.dup(from_remote),
        )

    def bind_virq(self, virq: int) -> int:
        """The port of a virtual interrupt; EINVAL for one that is not raised here."""
        if virq != VIRQ_DOM_EXC:
            raise HypercallError("evtchn_bind_virq", errno.EINVAL, f"no interrupt {virq}")
        port = self._virq_ports.get(virq)
        if port is None:
            port = self._new_port("evtchn_bind_virq", self.domid, _new_bell, _new_bell)
            self._virq_ports[virq] = port
        return port

    def _ring_dom_exc(self) -> None:
        port = self._virq_ports.get(VIRQ_DOM_EXC)
        if port is not None:
            bell = self.ports[port].from_remote
            os.set_blocking(bell, False)  # a flag that the domain shares, so it is not believed
            with contextlib.suppress(BlockingIOError):  # it rings already
                os.eventfd_write(bell, 1)

    def _new_port(
        self,
        call: str,
        remote_domid: int,
        make_to: Callable[[], int],
        make_from: Callable[[], int],
    ) -> int:
        free = (port for port in range(FIRST_FREE_PORT, MAX_PORTS) if port not in self.ports)
        port = next(free, None)
        if port is None or len(self.ports) >= self.ports_max:
            raise HypercallError(call, errno.ENOSPC)
        try:
            to_remote = make_to()
            try:
                from_remote = make_from()
            except OSError:
                os.close(to_remote)
                raise
        except OSError:
            raise HypercallError(call, errno.ENOSPC) from None
        self.ports[port] = Port(remote_domid, to_remote, from_remote)
        return port

    def port(self, number: int) -> Port:
        """A port of the domain; HypercallError EINVAL if there is none of that number."""
        try:
            return self.ports[number]
        except KeyError:
            raise HypercallError("evtchn_bind", errno.EINVAL, f"no port {number}") from None

    def close_port(self, number: int) -> None:
        """Closes an event channel."""
        port = self.port(number)
        self.on_port_close(number)
        del self.ports[number]
        for virq, bound in list(self._virq_ports.items()):
            if bound == number:
                del self._virq_ports[virq]
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
        except OSError as error:
            return hc.ANSWER.pack(-(error.errno or errno.EIO), 0, 0, 0, 0), []
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
        if op == hc.GNTTAB_MAP:
            memory_fd, offset = self.others.page(a0, a1)
            return (offset, 0, 0, 0), [memory_fd]
        if op == hc.EVTCHN_BIND_INTERDOMAIN:
            return (self.bind_interdomain(a0, a1), 0, 0, 0), []
        if op == hc.EVTCHN_BIND_VIRQ:
            return (self.bind_virq(a0), 0, 0, 0), []
        if op == hc.DOMAIN_STATE:
            other = self.others.state(a0)
            return (int(other.is_shut_down), other.unique_id, 0, 0), []
        raise HypercallError(f"operation {op}", errno.ENOSYS)

    def _take_note(self, op: int, a0: int, payload: bytes) -> None:
        text = payload.decode("utf-8", "replace").rstrip("\n")
        plain = "".join(c if c.isprintable() else "?" for c in text)
        if op == hc.CONSOLE_WRITE:
            self.on_console(plain[:CONSOLE_LINE_MAX])
        else:
            self.on_milestone(plain[:MILESTONE_MAX], a0)

    def close(self) -> None:
        """Gives RAM, grant table and event channels back; the domain must have ended."""
        for number in list(self.ports):
            self.close_port(number)
        self.others.close()
        self.memory.release()
        self.grant_frames.release()
        for mapping in (self._ram, self._grants):
            with contextlib.suppress(BufferError):  # goes with the last view of it
                mapping.close()
        for fd in (self.ram_fd, self.grant_fd, self.listener_fd):
            if fd >= 0:
                os.close(fd)


def _new_bell() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def _sealed_memory(name: str, size_bytes: int) -> int:
    """A memfd that nobody can make longer or shorter."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
    except BaseException:
        os.close(fd)
        raise
    return fd
