"""The next kernel from outside: what a toolstack could do for a guest that can't do it itself.

    guest: shutdown, reason reboot or soft reset ──▶ no end, if a next kernel is there, but:
        RAM put back wherever the kernel had mapped something else, or given pages up
        ports of its own (virtual interrupts, IPIs) closed, its mappings of others' pages ended,
        its queues of events, if it had some, given up for the bits in shared info
        the next kernel's segments and start info stored; module handed over where it lies
        ──▶ entry of the next kernel

Left as a kexec from inside leaves them: all other memory, grants, interdomain and unbound ports,
parameters, the rings' indices. What a guest of Xen gets for SHUTDOWN_soft_reset is less: its ports
are closed, too.

The module is the one that the last kernel was handed, if it is still sound, else the highest sound
kexec module in RAM with records in it, as a kernel that had made it would hand it over.

**Invariants.** The next kernel goes over nothing that is handed over and no page that somebody
else uses. One that can't be loaded leaves the guest as it ended, and `failure` says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xenlive.errors import ConfigError, ImageError, OutOfSpace
from xenlive.kexec.find import find_kexec_module, find_surviving_module
from xenlive.machine.emulated import stop as stops
from xenlive.machine.emulated.build import load_kernel
from xenlive.machine.emulated.hypervisor.evtchn import IPI, PIRQ, VIRQ
from xenlive.machine.emulated.lens.entries import Left
from xenlive.machine.emulated.lens.handover import read_start_info
from xenlive.machine.emulated.lens.pages import used_ram
from xenlive.machine.emulated.space import RAM
from xenlive.memory.address import PAGE_SHIFT, PAGE_SIZE
from xenlive.memory.e820 import MemoryMap, MemoryRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.lens.entries import Entries
    from xenlive.machine.emulated.stop import GuestStop
    from xenlive.machine.emulated.world import Guest

_REASONS = {stops.SHUTDOWN_REBOOT: "it rebooted", stops.SHUTDOWN_SOFT_RESET: "it asked for a reset"}
_OWN_PORTS = (VIRQ, IPI, PIRQ)


class NextKernel(NamedTuple):
    """A kernel that waits for the one before to end."""

    name: str
    elf: bytes
    cmdline: str = ""


class NextKernels:
    """Enters `kernels`, one after the other, whenever the guest reboots."""

    def __init__(self, guest: Guest, entries: Entries, kernels: Sequence[NextKernel]) -> None:
        self._guest = guest
        self._entries = entries
        #: Those that are still to come.
        self.waiting = list(kernels)
        #: Why one could not be entered; the guest ended then.
        self.failure: ConfigError | None = None
        for kernel in kernels:
            entries.know(kernel.elf, kernel.name)
        guest.on_stop = self._on_stop

    def _on_stop(self, stop: GuestStop) -> bool:
        if stop.kind != stops.SHUTDOWN or stop.code not in _REASONS or not self.waiting:
            return False
        kernel = self.waiting.pop(0)
        try:
            self._enter(kernel, _REASONS[stop.code])
        except (ImageError, ConfigError) as error:
            self.failure = ConfigError(kernel.name, 0, f"can't be entered: {error}")
            return False
        return True

    def _enter(self, kernel: NextKernel, why: str) -> None:
        guest, domain = self._guest, self._guest.domain
        module = self._module()
        handed = [] if module is None else [(*module, "")]
        restore_ram(domain)
        left = Left(guest.vcpu.clock.now_ns, 0, why)
        self._entries.leave_from_outside(kernel.elf, kernel.name, left)
        loaded = load_kernel(domain, kernel.elf, kernel.cmdline, (), handed, pages_in_use(domain))
        domain.forget_kernel()
        _use_bits(domain)
        for port, channel in list(domain.events.in_use()):
            if channel.state in _OWN_PORTS:
                domain.events.close(port)
        guest.loaded = loaded
        guest.vcpu.enter_pvh(loaded.entry, loaded.start_info)
        self._entries.arm()

    def _module(self) -> tuple[int, int] | None:
        """Address and size of the module to hand over."""
        guest, entries = self._guest, self._entries.entries
        memory = guest.domain.space.memory()
        start_info = entries[-1].start_info if entries else 0
        info, _ = read_start_info(guest, start_info)
        module = find_kexec_module(info, memory)[0] if info is not None else None
        if module is None:
            ranges = MemoryMap(MemoryRange(*part) for part in guest.domain.boot_map)
            used = [(address, len(piece)) for address, piece in used_ram(guest.domain.space)]
            try:
                module = find_surviving_module(memory, ranges, (), used)
            except OutOfSpace:
                return None  # too much that only looks like one
        return None if module is None else (int(module.address), module.size_bytes)


def _use_bits(domain: Domain) -> None:
    """Events are bits of shared info again, as a new kernel expects, if they had queues."""
    queues, events = domain.queues, domain.events
    if queues.is_on:
        pending = [port for port, _ in events.in_use() if queues.is_pending(port)]
        queues.stop()
        events.delivery = domain.shared
        for port in pending:
            domain.shared.set_pending(port, 0)


def pages_in_use(domain: Domain) -> list[tuple[int, int]]:
    """Address and size of the pages that somebody else has mapped, or that Xen writes to."""
    frames = [domain.space.gfn_of(use.frame) for use in domain.grants.active().values()]
    return [(gfn << PAGE_SHIFT, PAGE_SIZE) for gfn in sorted({f for f in frames if f is not None})]


def restore_ram(domain: Domain) -> None:
    """Makes memory what the memory map says: RAM where a kernel had something else, or nothing.

    As far as the domain may have that many pages.
    """
    space = domain.space
    for address, size, kind in domain.boot_map:
        if kind != 1:
            continue
        for gfn in range(address >> PAGE_SHIFT, address + size >> PAGE_SHIFT):
            mapping = space.lookup(gfn)
            if mapping is not None and mapping.kind == RAM:
                continue
            if mapping is not None:
                space.unhook(gfn)
            if not space.populate(gfn):
                return
