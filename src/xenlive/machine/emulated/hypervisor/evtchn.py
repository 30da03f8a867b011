"""The event channels of one domain, as the hypervisor keeps them.

    FREE ──alloc──▶ UNBOUND ◀──other end closes── INTERDOMAIN
      ▲                 └──────other end binds──────▶│
      └──────────────── close ───────────────────────┘     VIRQ, IPI and PIRQ: bind and close only

Specification: Xen 4.17 `xen/common/event_channel.c`; each method says which function it is.

**Invariants.** Both ends of an interdomain channel name each other. A port beyond the buckets that
were ever needed is not valid, one within them is, used or free: that is what Xen answers by. A
refused operation raises `HypercallError` and changes nothing.

How an event reaches its domain is a `Delivery`: bits in the shared page, FIFO queues, or a call
into a back end of this program. No processor and no memory is known here.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Protocol

from xenlive.abi.hypercalls.event_channel import (
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_pirq,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
)
from xenlive.abi.hypercalls.xen import (
    NR_VIRQS,
    VIRQ_DEBUG,
    VIRQ_TIMER,
    VIRQ_XENOPROF,
    VIRQ_XENPMU,
    XEN_EEXIST,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSPC,
    XEN_ENOSYS,
)
from xenlive.errors import HypercallError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# What a toolstack configures for a guest: ports up to this one.
MAX_PORT = 1023
# Channels are made by the page: 64 structures of 64 bytes.
PORTS_PER_BUCKET = 64
# Interrupt lines of a guest on a machine with one I/O APIC: 24 of it, and 32.
NR_PIRQS = 56

# Interrupts that each vcpu has for itself; all others are the domain's.
_PER_VCPU = {VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU}

RESERVED = -1  # port 0, which nobody gets
UNBOUND = EVTCHNSTAT_unbound
INTERDOMAIN = EVTCHNSTAT_interdomain
PIRQ = EVTCHNSTAT_pirq
VIRQ = EVTCHNSTAT_virq
IPI = EVTCHNSTAT_ipi


class Delivery(Protocol):
    """How the domain learns of events; the ports are bound ones."""

    def set_pending(self, port: int, vcpu: int) -> None:
        """An event came for `port`, which notifies `vcpu`."""

    def clear_pending(self, port: int) -> None:
        """The port was closed: what is pending there is nobody's."""

    def unmask(self, port: int, vcpu: int) -> None:
        """Clears the mask, and notifies if an event is pending."""

    def is_pending(self, port: int) -> bool:
        """Whether an event waits for the domain."""

    def bound(self, port: int) -> None:
        """The port was bound to something."""

    def max_ports(self) -> int:
        """How many ports can be told apart."""

    def set_priority(self, port: int, priority: int) -> None:
        """Which queue the port's events go to; HypercallError if there are no queues."""

    def is_busy(self, port: int) -> bool:
        """Whether the port is free, but must not be given out yet."""

    def stop(self) -> None:
        """Another way is used from now on."""


class Channel:
    """A port in use; `state` is one of this file's. Which other fields count depends on it."""

    __slots__ = ("number", "remote", "remote_domid", "remote_port", "state", "vcpu")

    def __init__(self, state: int, vcpu: int = 0) -> None:
        self.state = state
        self.vcpu = vcpu
        self.remote_domid = 0
        self.remote: EventChannels | None = None
        self.remote_port = 0
        self.number = 0  # of the virq or pirq


class EventChannels:
    """Ports of domain `domid`, which has `n_vcpus` processors."""

    def __init__(
        self, domid: int, delivery: Delivery, n_vcpus: int = 1, max_port: int = MAX_PORT
    ) -> None:
        self.domid = domid
        self.delivery = delivery
        self._delivery_at_first = delivery
        #: Told of each event that comes for a port.
        self.watch: Callable[[int], object] | None = None
        self._n_vcpus = n_vcpus
        self._max_port = max_port
        self._ports: dict[int, Channel] = {0: Channel(RESERVED)}
        self._valid = PORTS_PER_BUCKET
        self._virqs: dict[tuple[int, int], int] = {}
        self._pirqs: dict[int, int] = {}

    # ---- what there is -------------------------------------------------------------------

    def is_valid(self, port: int) -> bool:
        """Whether Xen has a structure for this port, in use or not (`port_is_valid`)."""
        return 0 <= port < self._valid

    def get(self, port: int) -> Channel | None:
        """The channel at `port`; None for a free one."""
        return self._ports.get(port)

    def in_use(self) -> Iterator[tuple[int, Channel]]:
        """All ports in use with what is there, lowest first."""
        return ((port, self._ports[port]) for port in sorted(self._ports) if port)

    def _bound(self, call: str, port: int) -> Channel | None:
        """The channel at a port, None if it is free; refused if there is no such port."""
        if not self.is_valid(port):
            raise HypercallError(call, XEN_EINVAL, f"no port {port}")
        return self._ports.get(port)

    def free_port(self, call: str) -> int:
        """The lowest free port (`getfree_port`)."""
        port = 1
        while port in self._ports or self.delivery.is_busy(port):
            port += 1
        if port > self._max_port or port >= self.delivery.max_ports():
            raise HypercallError(call, XEN_ENOSPC, f"all ports to {port - 1} are in use")
        return port

    def _take(self, port: int, channel: Channel) -> int:
        while port >= self._valid:
            self._valid += PORTS_PER_BUCKET
        self._ports[port] = channel
        self.delivery.bound(port)
        return port

    def _validate_vcpu(self, call: str, vcpu: int) -> None:
        if not 0 <= vcpu < self._n_vcpus:
            raise HypercallError(call, XEN_ENOENT, f"no vcpu {vcpu}")

    # ---- binding -------------------------------------------------------------------------

    def alloc_unbound(self, remote_domid: int) -> int:
        """A port that `remote_domid` may bind to (`evtchn_alloc_unbound`)."""
        port = self.free_port("EVTCHNOP_alloc_unbound")
        channel = Channel(UNBOUND)
        channel.remote_domid = remote_domid
        return self._take(port, channel)

    def bind_interdomain(self, remote: EventChannels, remote_port: int) -> int:
        """A port bound to another's unbound one, pending at once (`evtchn_bind_interdomain`)."""
        call = "EVTCHNOP_bind_interdomain"
        port = self.free_port(call)
        other = remote._bound(call, remote_port)
        if other is None or other.state != UNBOUND or other.remote_domid != self.domid:
            why = f"port {remote_port} of domain {remote.domid} is not for domain {self.domid}"
            raise HypercallError(call, XEN_EINVAL, why)
        channel = Channel(INTERDOMAIN)
        channel.remote, channel.remote_port = remote, remote_port
        other.state = INTERDOMAIN
        other.remote, other.remote_port = self, port
        self._take(port, channel)
        # Notifications to the unbound port were lost: this one stands for them.
        self._notify(port, channel.vcpu)
        return port

    def bind_virq(self, virq: int, vcpu: int) -> int:
        """A port for a virtual interrupt (`evtchn_bind_virq`)."""
        call = "EVTCHNOP_bind_virq"
        if not 0 <= virq < NR_VIRQS or (virq not in _PER_VCPU and vcpu):
            raise HypercallError(call, XEN_EINVAL, f"no virq {virq} for vcpu {vcpu}")
        self._validate_vcpu(call, vcpu)
        if (virq, vcpu) in self._virqs:
            raise HypercallError(call, XEN_EEXIST, f"virq {virq} is bound")
        port = self.free_port(call)
        channel = Channel(VIRQ, vcpu)
        channel.number = virq
        self._virqs[virq, vcpu] = port
        return self._take(port, channel)

    def bind_ipi(self, vcpu: int) -> int:
        """A port by which the domain notifies its own `vcpu` (`evtchn_bind_ipi`)."""
        self._validate_vcpu("EVTCHNOP_bind_ipi", vcpu)
        return self._take(self.free_port("EVTCHNOP_bind_ipi"), Channel(IPI, vcpu))

    def bind_pirq(self, pirq: int) -> int:
        """A port for an interrupt line, which never rings here (`evtchn_bind_pirq`)."""
        call = "EVTCHNOP_bind_pirq"
        if not 0 <= pirq < NR_PIRQS:
            raise HypercallError(call, XEN_EINVAL, f"no pirq {pirq}")
        if pirq in self._pirqs:
            raise HypercallError(call, XEN_EEXIST, f"pirq {pirq} is bound")
        channel = Channel(PIRQ)
        channel.number = pirq
        self._pirqs[pirq] = self.free_port(call)
        return self._take(self._pirqs[pirq], channel)

    def bind_vcpu(self, port: int, vcpu: int) -> None:
        """Events of `port` notify `vcpu` from now on (`evtchn_bind_vcpu`)."""
        call = "EVTCHNOP_bind_vcpu"
        self._validate_vcpu(call, vcpu)
        channel = self._bound(call, port)
        if channel is None or channel.state in (RESERVED, IPI):
            raise HypercallError(call, XEN_EINVAL, f"port {port} can't be moved")
        if channel.state == VIRQ and channel.number in _PER_VCPU:
            raise HypercallError(call, XEN_EINVAL, f"virq {channel.number} is one of each vcpu")
        channel.vcpu = vcpu

    # ---- closing -------------------------------------------------------------------------

    def close(self, port: int) -> None:
        """Frees a port; the other end of an interdomain one is unbound then (`evtchn_close`)."""
        channel = self._bound("EVTCHNOP_close", port)
        if channel is None or channel.state == RESERVED:
            raise HypercallError("EVTCHNOP_close", XEN_EINVAL, f"port {port} is free")
        if channel.state == VIRQ:
            del self._virqs[channel.number, 0 if channel.number not in _PER_VCPU else channel.vcpu]
        elif channel.state == PIRQ:
            del self._pirqs[channel.number]
        self.delivery.clear_pending(port)
        del self._ports[port]
        if channel.state == INTERDOMAIN and channel.remote is not None:
            other = channel.remote._ports.get(channel.remote_port)
            if other is not None and other.remote is self:
                other.state = UNBOUND
                other.remote = None
                other.remote_domid = self.domid

    def reset(self) -> None:
        """Closes all ports, the console's and Xenstore's too (`evtchn_reset`).

        Afterwards events are bits in the shared page, as at first.
        """
        for port in sorted(self._ports):
            if port in self._ports and port:
                self.close(port)
        if self.delivery is not self._delivery_at_first:
            self.delivery.stop()
            self.delivery = self._delivery_at_first

    # ---- events --------------------------------------------------------------------------

    def send(self, port: int) -> None:
        """Notifies the other end (`evtchn_send`); nobody hears it at an unbound port."""
        channel = self._bound("EVTCHNOP_send", port)
        if channel is not None and channel.state == INTERDOMAIN and channel.remote is not None:
            other = channel.remote._ports[channel.remote_port]
            channel.remote._notify(channel.remote_port, other.vcpu)
        elif channel is not None and channel.state == IPI:
            self._notify(port, channel.vcpu)
        elif channel is None or channel.state != UNBOUND:
            raise HypercallError("EVTCHNOP_send", XEN_EINVAL, f"port {port} is not for sending")

    def raise_virq(self, virq: int, vcpu: int = 0) -> bool:
        """A virtual interrupt happens (`send_guest_vcpu_virq`); False if it is not bound."""
        port = self._virqs.get((virq, vcpu if virq in _PER_VCPU else 0))
        if port is None:
            return False
        self._notify(port, self._ports[port].vcpu)
        return True

    def _notify(self, port: int, vcpu: int) -> None:
        if self.watch is not None:
            self.watch(port)
        self.delivery.set_pending(port, vcpu)

    def unmask(self, port: int) -> None:
        """Takes events of `port` again (`evtchn_unmask`); a free port's bit is cleared as well."""
        channel = self._bound("EVTCHNOP_unmask", port)
        self.delivery.unmask(port, channel.vcpu if channel else 0)

    def poll(self, port: int) -> bool:
        """Whether an event is pending at a port in use (`evtchn_port_poll`)."""
        channel = self._bound("SCHEDOP_poll", port)
        if channel is None or channel.state == RESERVED:
            raise HypercallError("SCHEDOP_poll", XEN_EINVAL, f"port {port} is free")
        return self.delivery.is_pending(port)

    def status(self, port: int) -> tuple[int, int, int, int]:
        """State, vcpu and two numbers of a port (`evtchn_status`).

        The numbers are domain and port of the other end, or the number of the virq or pirq and 0.
        """
        channel = self._bound("EVTCHNOP_status", port)
        if channel is None or channel.state == RESERVED:
            return EVTCHNSTAT_closed, 0, 0, 0
        if channel.state == UNBOUND:
            return UNBOUND, channel.vcpu, channel.remote_domid, 0
        if channel.state == INTERDOMAIN and channel.remote is not None:
            return INTERDOMAIN, channel.vcpu, channel.remote.domid, channel.remote_port
        return channel.state, channel.vcpu, channel.number, 0

    def set_priority(self, port: int, priority: int) -> None:
        """Which queue events of `port` go to (`evtchn_set_priority`)."""
        self._bound("EVTCHNOP_set_priority", port)
        self.delivery.set_priority(port, priority)

    # ---- snapshots -----------------------------------------------------------------------

    def save(self) -> EventState:
        """All there is, for `restore`."""
        ports = {port: copy(channel) for port, channel in self._ports.items()}
        return ports, self._valid, dict(self._virqs), dict(self._pirqs)

    def restore(self, state: EventState) -> None:
        """Goes back to what `save` gave; the other ends' domains must go back with it."""
        ports, self._valid, virqs, pirqs = state
        self._ports = {port: copy(channel) for port, channel in ports.items()}
        self._virqs, self._pirqs = dict(virqs), dict(pirqs)


#: What `EventChannels.save` gives; only `restore` looks inside.
EventState = tuple[dict[int, Channel], int, dict[tuple[int, int], int], dict[int, int]]


class HandlerDelivery(Delivery):
    """Events of a domain that is this program: each port has a handler, called at once.

    An event without a handler is kept, and given to the handler when one comes.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[], None]] = {}
        self._waiting: set[int] = set()

    def handle(self, port: int, handler: Callable[[], None]) -> None:
        """Calls `handler` for each event of `port`, and now if one came already."""
        self._handlers[port] = handler
        if port in self._waiting:
            self._waiting.discard(port)
            handler()

    def save(self) -> tuple[int, ...]:
        """The ports with an event that no handler was there for."""
        return tuple(sorted(self._waiting))

    def restore(self, waiting: Iterable[int]) -> None:
        """Goes back to what `save` gave; each handler has to `put_back` itself."""
        self._handlers.clear()
        self._waiting = set(waiting)

    def put_back(self, port: int, handler: Callable[[], None]) -> None:
        """Has `handler` called again, as it was when `save` was; not for what waits already."""
        self._handlers[port] = handler

    def set_pending(self, port: int, vcpu: int) -> None:
        """Calls the port's handler; without one the event waits."""
        handler = self._handlers.get(port)
        if handler is None:
            self._waiting.add(port)
        else:
            handler()

    def clear_pending(self, port: int) -> None:
        """Forgets a waiting event and the handler of a port that is freed."""
        self._waiting.discard(port)
        self._handlers.pop(port, None)

    def unmask(self, port: int, vcpu: int) -> None:
        """Nothing is masked here."""

    def is_pending(self, port: int) -> bool:
        """Whether an event waits for a handler."""
        return port in self._waiting

    def bound(self, port: int) -> None:
        """Handlers are set by whoever binds."""

    def max_ports(self) -> int:
        """How many ports there can be."""
        return MAX_PORT + 1

    def set_priority(self, port: int, priority: int) -> None:
        """There are no queues with priorities here: ENOSYS."""
        raise HypercallError("EVTCHNOP_set_priority", XEN_ENOSYS, "no queues")

    def is_busy(self, port: int) -> bool:
        """A free port is free at once."""
        return False

    def stop(self) -> None:
        """There is no other way."""
