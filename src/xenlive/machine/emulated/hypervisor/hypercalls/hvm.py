"""Hypercall 34, hvm_op.

Specification: Xen 4.17 `do_hvm_op` and what it calls in `xen/arch/x86/hvm/hvm.c`, on a machine
without alternate views of memory (AMD) and with hardware-assisted paging.

**Invariants.** A parameter that says how the guest wants its events latches the form of the shared
page, as on Xen: the mode the guest is in counts, not that of the call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.hypercalls import hvm as abi
from xenlive.abi.hypercalls.xen import XEN_EINVAL, XEN_ENOENT, XEN_ENOSYS, XEN_EOPNOTSUPP
from xenlive.errors import HypercallError
from xenlive.machine.emulated.space import GRANT_READONLY

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller

# Vectors below are the processor's.
_VECTOR_MIN = 0x10
_TRACE_EVENT_MASK = (1 << 12) - 1
_HVMMEM_ram_ro = 1


def hvm_op(caller: Caller, op: int, arg: int) -> int:
    """Parameters, memory types and time of an HVM or PVH guest."""
    handler = _OPERATIONS.get(op)
    if handler is None:
        raise HypercallError("hvm_op", XEN_ENOSYS, f"no operation {op}")
    handler(caller, arg)
    return 0


def _set_param(caller: Caller, arg: int) -> None:
    op, target = _param(caller, "HVMOP_set_param", arg)
    if target is not caller.domain:
        caller.domain.validate_target("HVMOP_set_param", target)
    target.params.set(op["index"], op["value"])
    if op["index"] == abi.HVM_PARAM_CALLBACK_IRQ:
        target.set_callback_via(op["value"])
        target.latch(caller.processor.in_long_mode)


def _get_param(caller: Caller, arg: int) -> None:
    op, target = _param(caller, "HVMOP_get_param", arg)
    caller.domain.validate_target("HVMOP_get_param", target)
    op["value"] = target.params.get(op["index"])
    caller.write(arg, abi.XEN_HVM_PARAM.encode(**op))


def _param(caller: Caller, call: str, arg: int) -> tuple[dict[str, int], Domain]:
    op = caller.read_struct(abi.XEN_HVM_PARAM, arg)
    if op["index"] >= abi.HVM_NR_PARAMS:
        raise HypercallError(call, XEN_EINVAL, f"no parameter {op['index']}")
    target = caller.domain.find(call, op["domid"])
    if target.is_pv:
        raise HypercallError(call, XEN_EINVAL, f"domain {target.domid} has no parameters")
    return op, target


def _flush_tlbs(caller: Caller, arg: int) -> None:
    """Nothing to do: there is no other vcpu whose buffers would be flushed."""
    if arg:
        raise HypercallError("HVMOP_flush_tlbs", XEN_EINVAL, "it takes no argument")


def _pagetable_dying(caller: Caller, arg: int) -> None:
    call = "HVMOP_pagetable_dying"
    op = caller.read_struct(abi.XEN_HVM_PAGETABLE_DYING, arg)
    if caller.domain.find(call, op["domid"]) is not caller.domain:
        raise HypercallError(call, XEN_EOPNOTSUPP, "for the caller only")
    raise HypercallError(call, XEN_EINVAL, "page tables are not shadowed")


def _get_time(caller: Caller, arg: int) -> None:
    caller.write(arg, abi.XEN_HVM_GET_TIME.encode(now=caller.domain.clock.now_ns))


def _xentrace(caller: Caller, arg: int) -> None:
    op = caller.read_struct(abi.XEN_HVM_XENTRACE, arg)
    if op["extra_bytes"] > len(op["extra"]) or op["event"] & ~_TRACE_EVENT_MASK:
        raise HypercallError("HVMOP_xentrace", XEN_EINVAL, f"event {op['event']:#x}")


def _get_mem_type(caller: Caller, arg: int) -> None:
    call = "HVMOP_get_mem_type"
    op = caller.read_struct(abi.XEN_HVM_GET_MEM_TYPE, arg)
    domain = caller.domain.find(call, op["domid"])
    caller.domain.validate_target(call, domain)
    mapping = domain.space.lookup(op["pfn"])
    if mapping is None:
        op["mem_type"] = abi.HVMMEM_mmio_dm
    elif mapping.kind == GRANT_READONLY:
        op["mem_type"] = _HVMMEM_ram_ro
    else:
        op["mem_type"] = abi.HVMMEM_ram_rw
    caller.write(arg, abi.XEN_HVM_GET_MEM_TYPE.encode(**op))


def _set_evtchn_upcall_vector(caller: Caller, arg: int) -> None:
    call = "HVMOP_set_evtchn_upcall_vector"
    op = caller.read_struct(abi.XEN_HVM_EVTCHN_UPCALL_VECTOR, arg)
    if op["vector"] < _VECTOR_MIN:
        raise HypercallError(call, XEN_EINVAL, f"vector {op['vector']}")
    if op["vcpu"]:
        raise HypercallError(call, XEN_ENOENT, f"no vcpu {op['vcpu']}")
    caller.domain.set_upcall_vector(op["vector"])


def _guest_request_vm_event(caller: Caller, arg: int) -> None:
    """Nobody monitors the guest."""
    if arg:
        raise HypercallError("HVMOP_guest_request_vm_event", XEN_EINVAL, "it takes no argument")


def _altp2m(caller: Caller, arg: int) -> None:
    raise HypercallError("HVMOP_altp2m", XEN_EOPNOTSUPP, "there is one view of memory")


_OPERATIONS: dict[int, Callable[[Caller, int], None]] = {
    abi.HVMOP_set_param: _set_param,
    abi.HVMOP_get_param: _get_param,
    abi.HVMOP_flush_tlbs: _flush_tlbs,
    abi.HVMOP_pagetable_dying: _pagetable_dying,
    abi.HVMOP_get_time: _get_time,
    abi.HVMOP_xentrace: _xentrace,
    abi.HVMOP_get_mem_type: _get_mem_type,
    abi.HVMOP_set_evtchn_upcall_vector: _set_evtchn_upcall_vector,
    abi.HVMOP_guest_request_vm_event: _guest_request_vm_event,
    abi.HVMOP_altp2m: _altp2m,
}
