"""Hypercall 32, event_channel_op.

Specification: Xen 4.17 `do_event_channel_op` of `xen/common/event_channel.c`, with the dummy XSM
policy (`xen/include/xsm/dummy.h`): who may do what to whose ports.

**Invariants.** An operation that was done is done, also if its answer then can't be stored: Xen
says that cleaning up would be a mess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.hypercalls import event_channel as abi
from xenlive.abi.hypercalls.xen import DOMID_SELF, XEN_EBUSY, XEN_ENOSYS
from xenlive.errors import HypercallError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller


def event_channel_op(caller: Caller, cmd: int, arg: int) -> int:
    """One operation on the caller's ports, or those of a domain it names."""
    handler = _OPERATIONS.get(cmd & 0xFFFFFFFF)
    if handler is None:
        raise HypercallError("event_channel_op", XEN_ENOSYS, f"no operation {cmd}")
    handler(caller, arg)
    return 0


def _alloc_unbound(caller: Caller, arg: int) -> None:
    call = "EVTCHNOP_alloc_unbound"
    op = caller.read_struct(abi.EVTCHN_ALLOC_UNBOUND, arg)
    domain = caller.domain.find(call, op["dom"])
    # Xen looks for a free port first, so that running out is told before permission.
    domain.events.free_port(call)
    caller.domain.validate_target(call, domain)
    remote = caller.domain.domid if op["remote_dom"] == DOMID_SELF else op["remote_dom"]
    port = domain.events.alloc_unbound(remote)
    caller.write_field(abi.EVTCHN_ALLOC_UNBOUND, arg, "port", port)


def _bind_interdomain(caller: Caller, arg: int) -> None:
    op = caller.read_struct(abi.EVTCHN_BIND_INTERDOMAIN, arg)
    remote = caller.domain.find("EVTCHNOP_bind_interdomain", op["remote_dom"])
    port = caller.domain.events.bind_interdomain(remote.events, op["remote_port"])
    caller.write_field(abi.EVTCHN_BIND_INTERDOMAIN, arg, "local_port", port)


def _bind_virq(caller: Caller, arg: int) -> None:
    op = caller.read_struct(abi.EVTCHN_BIND_VIRQ, arg)
    port = caller.domain.events.bind_virq(op["virq"], op["vcpu"])
    caller.write_field(abi.EVTCHN_BIND_VIRQ, arg, "port", port)


def _bind_ipi(caller: Caller, arg: int) -> None:
    op = caller.read_struct(abi.EVTCHN_BIND_IPI, arg)
    port = caller.domain.events.bind_ipi(op["vcpu"])
    caller.write_field(abi.EVTCHN_BIND_IPI, arg, "port", port)


def _bind_pirq(caller: Caller, arg: int) -> None:
    op = caller.read_struct(abi.EVTCHN_BIND_PIRQ, arg)
    port = caller.domain.events.bind_pirq(op["pirq"])
    caller.write_field(abi.EVTCHN_BIND_PIRQ, arg, "port", port)


def _close(caller: Caller, arg: int) -> None:
    caller.domain.events.close(caller.read_struct(abi.EVTCHN_CLOSE, arg)["port"])


def _send(caller: Caller, arg: int) -> None:
    caller.domain.events.send(caller.read_struct(abi.EVTCHN_SEND, arg)["port"])


def _status(caller: Caller, arg: int) -> None:
    call = "EVTCHNOP_status"
    op = caller.read_struct(abi.EVTCHN_STATUS, arg)
    domain = caller.domain.find(call, op["dom"])
    state, vcpu, first, second = domain.events.status(op["port"])
    caller.domain.validate_target(call, domain)
    detail = bytearray(op["u"])
    if state == abi.EVTCHNSTAT_unbound:
        detail[:2] = first.to_bytes(2, "little")
    elif state == abi.EVTCHNSTAT_interdomain:
        detail[:2] = first.to_bytes(2, "little")
        detail[4:] = second.to_bytes(4, "little")
    elif state in (abi.EVTCHNSTAT_pirq, abi.EVTCHNSTAT_virq):
        detail[:4] = first.to_bytes(4, "little")
    op.update(status=state, vcpu=vcpu, u=bytes(detail))
    caller.write(arg, abi.EVTCHN_STATUS.encode(**op))


def _bind_vcpu(caller: Caller, arg: int) -> None:
    op = caller.read_struct(abi.EVTCHN_BIND_VCPU, arg)
    caller.domain.events.bind_vcpu(op["port"], op["vcpu"])


def _unmask(caller: Caller, arg: int) -> None:
    caller.domain.events.unmask(caller.read_struct(abi.EVTCHN_UNMASK, arg)["port"])


def _reset(caller: Caller, arg: int) -> None:
    call = "EVTCHNOP_reset"
    domain = caller.domain.find(call, caller.read_struct(abi.EVTCHN_RESET, arg)["dom"])
    caller.domain.validate_target(call, domain)
    domain.events.reset()


def _reset_cont(caller: Caller, arg: int) -> None:
    """Goes on with a reset: Xen does that itself, and never between two hypercalls here."""
    call = "EVTCHNOP_reset_cont"
    domain = caller.domain.find(call, caller.read_struct(abi.EVTCHN_RESET, arg)["dom"])
    caller.domain.validate_target(call, domain)
    raise HypercallError(call, XEN_EBUSY, "no reset is going on")


def _init_control(caller: Caller, arg: int) -> None:
    op = caller.read_struct(abi.EVTCHN_INIT_CONTROL, arg)
    caller.domain.init_event_queues(op["control_gfn"], op["offset"], op["vcpu"])
    caller.write_field(abi.EVTCHN_INIT_CONTROL, arg, "link_bits", abi.EVTCHN_FIFO_LINK_BITS)


def _expand_array(caller: Caller, arg: int) -> None:
    gfn = caller.read_struct(abi.EVTCHN_EXPAND_ARRAY, arg)["array_gfn"]
    caller.domain.expand_event_array(gfn)


def _set_priority(caller: Caller, arg: int) -> None:
    op = caller.read_struct(abi.EVTCHN_SET_PRIORITY, arg)
    caller.domain.events.set_priority(op["port"], op["priority"])


_OPERATIONS: dict[int, Callable[[Caller, int], None]] = {
    abi.EVTCHNOP_alloc_unbound: _alloc_unbound,
    abi.EVTCHNOP_bind_interdomain: _bind_interdomain,
    abi.EVTCHNOP_bind_virq: _bind_virq,
    abi.EVTCHNOP_bind_ipi: _bind_ipi,
    abi.EVTCHNOP_bind_pirq: _bind_pirq,
    abi.EVTCHNOP_close: _close,
    abi.EVTCHNOP_send: _send,
    abi.EVTCHNOP_status: _status,
    abi.EVTCHNOP_bind_vcpu: _bind_vcpu,
    abi.EVTCHNOP_unmask: _unmask,
    abi.EVTCHNOP_reset: _reset,
    abi.EVTCHNOP_reset_cont: _reset_cont,
    abi.EVTCHNOP_init_control: _init_control,
    abi.EVTCHNOP_expand_array: _expand_array,
    abi.EVTCHNOP_set_priority: _set_priority,
}
