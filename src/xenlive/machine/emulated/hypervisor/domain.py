"""A domain as the hypervisor knows it: everything but its processor.

    Processor ──hypercall(number, arguments)──▶ Domain ──▶ events, grants, space, parameters, timers
              ◀──pending_upcall, deadlines──────  │
                                                  └──▶ peers: the other domains, and the host's

Specification: Xen 4.17 `xen/common/domain.c` (shutdown, vcpu_info), `xen/common/sched/core.c`
(block, poll, timers), `xen/arch/x86/hvm/irq.c` (how an event becomes an interrupt).

**Invariants.** Whatever a guest asks, an answer comes back, or the domain's end as `GuestStop`, and
nothing else. There is one vcpu. Time is the clock's, which others move.

The host's domain has no processor and no memory: the back ends of this program own its ports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.hypercalls.event_channel import EVTCHN_FIFO_CONTROL_BLOCK
from xenlive.abi.hypercalls.hvm import HVM_PARAM_CALLBACK_TYPE_VECTOR
from xenlive.abi.hypercalls.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_watchdog
from xenlive.abi.hypercalls.vcpu import RUNSTATE_running
from xenlive.abi.hypercalls.xen import (
    DOMID_FIRST_RESERVED,
    DOMID_SELF,
    VIRQ_TIMER,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENXIO,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
    XEN_ESRCH,
)
from xenlive.errors import HypercallError
from xenlive.machine.emulated.hypervisor.evtchn import EventChannels, HandlerDelivery
from xenlive.machine.emulated.hypervisor.evtchn_fifo import EventQueues
from xenlive.machine.emulated.hypervisor.grantmap import BackEndGrants, DomainCrash, GrantMappings
from xenlive.machine.emulated.hypervisor.grants import GrantTable
from xenlive.machine.emulated.hypervisor.hvmparams import HvmParams
from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller, TooMuchWork
from xenlive.machine.emulated.hypervisor.hypercalls.table import serve
from xenlive.machine.emulated.hypervisor.sharedinfo import VCPU_INFO_SIZE, SharedInfo
from xenlive.machine.emulated.hypervisor.timers import PERIODIC, POLL, SINGLESHOT, Timers
from xenlive.machine.emulated.hypervisor.vcpurecord import VcpuRecord
from xenlive.machine.emulated.interface import Hypervisor
from xenlive.machine.emulated.space import Space
from xenlive.machine.emulated.stop import SHUTDOWN, SPIN, GuestStop
from xenlive.memory.address import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenlive.machine.emulated.interface import Clock, Processor
    from xenlive.machine.emulated.space import MachineFrame

HOST_DOMID = 0

# The wall clock at which each domain's time begins; the same run is the same.
BOOT_S = 1_700_000_000


# What of a domain is a value, and goes into a snapshot as it is.
_PLAIN = (
    *("has_console_io", "vm_assist", "last_refusal"),
    *("shutdown_code", "is_shut_down", "why"),
)
# What is an object of its own, and goes along as a copy.
_COPIED = ("vcpu", "timers", "params")


class Domain(Hypervisor):
    """Domain `domid` with the memory `space`, among `peers`, to which it adds itself."""

    def __init__(
        self,
        domid: int,
        space: Space,
        peers: dict[int, Domain],
        clock: Clock,
        e820: Iterable[tuple[int, int, int]] = (),
        handle: bytes = bytes(16),
    ) -> None:
        self.domid = domid
        self.space = space
        self.peers = peers
        self.clock = clock
        self.e820 = list(e820)
        #: The memory map as the toolstack made it.
        self.boot_map = tuple(self.e820)
        self.handle = handle
        self.boot_s = BOOT_S
        self.shared = SharedInfo(space.xen_frame(0).view, self._on_upcall, self._on_event)
        self.queues = EventQueues(space, self.shared.mark_events_pending, self._on_event)
        self.host_events = HandlerDelivery()
        delivery = self.host_events if domid == HOST_DOMID else self.shared
        self.events = EventChannels(domid, delivery)
        self.grants = GrantTable(domid, space, self._table_of)
        self.mappings = GrantMappings(domid, space, self._table_of)
        self.params = HvmParams()
        self.timers = Timers()
        self.has_console_io = False
        self.console_io = bytearray()
        self.vm_assist = 0
        self.last_refusal: HypercallError | None = None
        #: Asked before each hypercall: an errno to fail with (somebody tries the guest), or 0.
        self.refuse: Callable[[int, tuple[int, ...]], int] | None = None
        self.vcpu = VcpuRecord()
        #: What a shutdown will say, as a SHUTDOWN_ number, if that was set or it happened.
        self.shutdown_code: int | None = None
        self.is_shut_down = False
        self.why = ""
        peers[domid] = self
        if domid != HOST_DOMID:
            self.update_time()

    @classmethod
    def host(cls, peers: dict[int, Domain], clock: Clock) -> Domain:
        """The domain of this program's back ends."""
        return cls(HOST_DOMID, Space(HOST_DOMID, [], 0), peers, clock)

    # ---- other domains -------------------------------------------------------------------

    @property
    def is_privileged(self) -> bool:
        """Whether it may control others: the host's may, no guest."""
        return self.domid == HOST_DOMID

    @property
    def is_pv(self) -> bool:
        """Whether it is a PV guest, whose frames are the machine's: so is Debian's domain 0."""
        return self.domid == HOST_DOMID

    def find(self, call: str, domid: int) -> Domain:
        """A domain by its id or as DOMID_SELF (`rcu_lock_domain_by_any_id`), or ESRCH."""
        if domid == DOMID_SELF:
            return self
        return self.find_by_id(call, domid)

    def find_by_id(self, call: str, domid: int) -> Domain:
        """A domain by its id alone (`rcu_lock_domain_by_id`), or ESRCH."""
        found = self.peers.get(domid) if domid < DOMID_FIRST_RESERVED else None
        if found is None:
            raise HypercallError(call, XEN_ESRCH, f"no domain {domid}")
        return found

    def find_remote(self, call: str, domid: int) -> Domain:
        """Another domain by its id (`rcu_lock_remote_domain_by_id`): EPERM for itself."""
        found = self.find_by_id(call, domid)
        if found is self:
            raise HypercallError(call, XEN_EPERM, "a domain is not its own remote")
        return found

    def validate_target(self, call: str, other: Domain) -> None:
        """EPERM unless it may act on `other`: itself, or any if privileged (`XSM_TARGET`)."""
        if other is not self and not self.is_privileged:
            raise HypercallError(call, XEN_EPERM, f"domain {other.domid} is not its own")

    def _table_of(self, domid: int) -> GrantTable | None:
        found = self.peers.get(domid) if domid < DOMID_FIRST_RESERVED else None
        return found.grants if found is not None else None

    def grants_for(self, domid: int) -> BackEndGrants:
        """How a back end that runs as domain `domid` maps what this domain grants it."""
        return BackEndGrants(domid, self.grants)

    # ---- what the processor asks ---------------------------------------------------------

    def hypercall(
        self, processor: Processor, number: int, args: tuple[int, ...], is_64bit: bool
    ) -> int | None:
        self._unblocked()
        try:
            result = serve(Caller(self, processor, is_64bit), number, args)
        except DomainCrash as crash:
            self.crash(crash.why)
            result = 0
        except TooMuchWork:
            raise GuestStop(SPIN, "a hypercall of too many operations") from None
        self.timer_fired(self.clock.now_ns)
        return result

    def pending_upcall(self) -> bool:
        return self.shared.upcall_pending

    def callback_vector(self) -> int:
        return self.vcpu.vector

    def upcall_vector(self) -> int:
        return self.vcpu.own_vector

    def take_upcall(self) -> bool:
        is_new, self.vcpu.announced = self.vcpu.announced, False
        return is_new

    def take_nmi(self) -> bool:
        is_new, self.vcpu.nmi_pending = self.vcpu.nmi_pending, False
        return is_new

    def timer_deadline_ns(self) -> int | None:
        return self.timers.next_ns()

    def timer_fired(self, now_ns: int) -> None:
        for name in self.timers.due(now_ns):
            if name in (SINGLESHOT, PERIODIC):
                self.events.raise_virq(VIRQ_TIMER)
            elif name == POLL:
                self.wake()
            else:
                self.shut_down(SHUTDOWN_watchdog, "its watchdog was not fed")
        self._stop_if_shut_down()

    def write_hypercall_page(self, processor: Processor, gfn: int, page: bytes) -> bool:
        mapping = self.space.lookup(gfn)
        if mapping is None or mapping.is_foreign:
            return False
        mapping.frame.view[: len(page)] = page
        self.space.tell_wrote(mapping.frame)
        self.latch(processor.in_long_mode)
        return True

    def vcpu_down(self) -> None:
        self.shut_down(SHUTDOWN_poweroff, "halted without interrupts")
        self._stop_if_shut_down()

    def _stop_if_shut_down(self) -> None:
        if self.is_shut_down:
            raise GuestStop(SHUTDOWN, self.why, self.shutdown_code or 0)

    # ---- events and interrupts -----------------------------------------------------------

    def set_callback_via(self, via: int) -> None:
        """How events become interrupts (`hvm_set_callback_via`): by vector, or nothing changes."""
        if via >> 56 == HVM_PARAM_CALLBACK_TYPE_VECTOR:
            self.vcpu.vector = via & 0xFF
            self.vcpu.announced = True

    def set_upcall_vector(self, vector: int) -> None:
        """Events come as this vector, the vcpu's own (`hvmop_set_evtchn_upcall_vector`)."""
        self.vcpu.own_vector = vector
        self.vcpu.announced = True

    def _on_upcall(self) -> None:
        self.vcpu.announced = True
        if self.vcpu.polled is not None or self.vcpu.blocked_since_ns is not None:
            self.wake()

    def _on_event(self, port: int) -> None:
        # Whoever polls several ports wakes for any.
        if self.vcpu.polled is not None and self.vcpu.polled in (0, port):
            self.wake()

    # ---- waiting -------------------------------------------------------------------------

    def block(self, processor: Processor, polled: int | None = None) -> None:
        """The vcpu waits for an event (`vcpu_block`), or for port `polled` (0: for any port)."""
        self.vcpu.processor = processor
        self.vcpu.polled = polled
        self.vcpu.blocked_since_ns = self.clock.now_ns
        processor.block()

    def wake(self) -> None:
        """The vcpu goes on (`vcpu_unblock`)."""
        self._unblocked()
        if self.vcpu.processor is not None:
            self.vcpu.processor.wake()

    def _unblocked(self) -> None:
        """Whatever it waited for, the vcpu runs."""
        self.vcpu.polled = None
        self.timers.poll_ns = None
        if self.vcpu.blocked_since_ns is not None:
            self.vcpu.blocked_total_ns += self.clock.now_ns - self.vcpu.blocked_since_ns
            self.vcpu.blocked_since_ns = None
            if self.vcpu.runstate_changed is not None:
                self.vcpu.runstate_changed()

    def runstate(self) -> tuple[int, int, list[int]]:
        """State, since when, and nanoseconds spent in each of the four; HLT counts as running."""
        now = self.clock.now_ns
        blocked = self.vcpu.blocked_total_ns
        return RUNSTATE_running, now, [now - blocked, 0, blocked, 0]

    # ---- time ----------------------------------------------------------------------------

    def update_time(self) -> None:
        """Tells the guest what time it is."""
        self.shared.update_time(self.clock.now_ns)

    def latch(self, is_64bit: bool) -> None:
        """The shared page takes the form of the mode the guest is in (`hvm_latch_shinfo_size`).

        Happens when the guest has its hypercall page filled or says how it wants its events.
        """
        self.shared.latch(is_64bit)
        self.shared.update_wall_clock(self.boot_s)

    def move_vcpu_info(self, gfn: int, offset: int) -> None:
        """The guest wants its vcpu_info elsewhere (`map_vcpu_info`). HypercallError if refused."""
        call = "VCPUOP_register_vcpu_info"
        align = 4 if self.shared.is_32bit else 8
        if offset > PAGE_SIZE - VCPU_INFO_SIZE or offset % align:
            raise HypercallError(call, XEN_ENXIO, f"offset {offset:#x}")
        if self.vcpu.info_frame is not None:
            raise HypercallError(call, XEN_EINVAL, "it was moved before")
        mapping = self.space.lookup(gfn)
        if mapping is None or mapping.is_foreign:
            raise HypercallError(call, XEN_EINVAL, f"frame {gfn:#x}")
        self.space.hold(mapping.frame)
        self.vcpu.info_frame = mapping.frame
        self.shared.move_vcpu_info(mapping.frame.view[offset : offset + VCPU_INFO_SIZE])

    # ---- event queues --------------------------------------------------------------------

    def init_event_queues(self, gfn: int, offset: int, vcpu: int) -> None:
        """FIFO event channels from now on (`evtchn_fifo_init_control`); HypercallError if refused.

        Events that nobody took yet are announced there.
        """
        call = "EVTCHNOP_init_control"
        if vcpu:
            raise HypercallError(call, XEN_ENOENT, f"no vcpu {vcpu}")
        if offset > PAGE_SIZE - EVTCHN_FIFO_CONTROL_BLOCK.size or offset % 8:
            raise HypercallError(call, XEN_EINVAL, f"offset {offset:#x}")
        ports = range(1, self.shared.max_ports())
        pending = [p for p in ports if self.events.is_valid(p) and self.shared.is_pending(p)]
        self.queues.start(self._own_frame(call, gfn), offset, pending)
        self.events.delivery = self.queues

    def expand_event_array(self, gfn: int) -> None:
        """One more page of FIFO event words (`evtchn_fifo_expand_array`)."""
        call = "EVTCHNOP_expand_array"
        if not self.queues.is_on:
            raise HypercallError(call, XEN_EOPNOTSUPP, "there are no queues")
        self.queues.validate_room()
        self.queues.add_page(self._own_frame(call, gfn), self.events.is_valid)

    def _own_frame(self, call: str, gfn: int) -> MachineFrame:
        mapping = self.space.lookup(gfn)
        if mapping is None or mapping.is_foreign:
            raise HypercallError(call, XEN_EINVAL, f"frame {gfn:#x}")
        return mapping.frame

    # ---- Xen's console -------------------------------------------------------------------

    def write_console_io(self, data: bytes) -> None:
        """The guest wrote to Xen's console."""
        self.console_io += data

    # ---- the end -------------------------------------------------------------------------

    @property
    def shutdown_reason(self) -> int | None:
        """Why it stopped, as a SHUTDOWN_ number; None while it runs."""
        return self.shutdown_code if self.is_shut_down else None

    def set_shutdown_code(self, reason: int) -> None:
        """What a later shutdown will say, whatever it says itself (`SCHEDOP_shutdown_code`)."""
        if self.shutdown_code is None:
            self.shutdown_code = reason

    def shut_down(self, reason: int, why: str = "") -> None:
        """Stops the domain (`domain_shutdown`); the first reason counts."""
        self.set_shutdown_code(reason)
        if not self.is_shut_down:
            self.is_shut_down = True
            self.why = why

    def crash(self, why: str) -> None:
        """Stops the domain: it did what nobody may (`domain_crash`)."""
        self.shut_down(SHUTDOWN_crash, why)

    def soft_reset(self) -> None:
        """What the toolstack does for SHUTDOWN_soft_reset: events, vcpu and grants begin anew."""
        self.events.reset()
        self.forget_kernel()

    def forget_kernel(self) -> None:
        """The kernel is gone, and another one comes: mappings, timers and vcpu begin anew."""
        self.mappings.release_all()
        if self.vcpu.info_frame is not None:
            self.shared.reset_vcpu_info()
            self.space.let_go(self.vcpu.info_frame)
        self.timers = Timers()
        self.vcpu = VcpuRecord()
        self.shutdown_code = None
        self.is_shut_down = False

    def save(self, with_memory: bool = True) -> tuple[object, ...]:
        """All there is of the domain but its processor, for `restore`."""
        parts = (self.events, self.grants, self.mappings, self.shared, self.queues)
        values = {name: getattr(self, name) for name in _PLAIN}
        values.update(e820=list(self.e820), console_io=bytearray(self.console_io))
        values.update({name: getattr(self, name).copy() for name in _COPIED})
        return (self.space.save(with_memory), *(part.save() for part in parts), values)

    def restore(self, state: tuple[object, ...]) -> None:
        """Goes back to what `save` gave: it may be gone back to again.

        Domains that share grants or channels go back together, and the processor with them.
        """
        *saved, values = state
        parts = (
            *(self.space, self.events, self.grants, self.mappings, self.shared),
            self.queues,
        )
        for part, old in zip(parts, saved, strict=True):
            part.restore(old)  # type: ignore[attr-defined]
        if self.domid != HOST_DOMID:
            self.events.delivery = self.queues if self.queues.is_on else self.shared
        for name, value in values.items():  # type: ignore[attr-defined]
            setattr(self, name, value)
        self.e820, self.console_io = list(self.e820), bytearray(self.console_io)
        for name in _COPIED:
            setattr(self, name, getattr(self, name).copy())

    def destroy(self) -> None:
        """Takes the domain out of the world: its ports, its mappings, its name."""
        self.events.reset()
        self.mappings.release_all()
        self.peers.pop(self.domid, None)
