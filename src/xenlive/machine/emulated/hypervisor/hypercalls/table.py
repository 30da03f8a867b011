"""Which number is which hypercall, and what all of them have in common.

Specification: Xen 4.17 `xen/include/hypercall-defs.c`, columns hvm32 and hvm64, as Debian builds it
(without Argo); `hvm_hypercall` of `xen/arch/x86/hvm/hypercall.c`.

**Invariants.** A refusal becomes -errno here and nowhere else, a bad pointer -EFAULT. A number that
is no hypercall of a PVH guest is -ENOSYS, also if PV guests have it. Results are signed: whoever
stores one cuts it to the register.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.hypercalls import event_channel as event_channel_abi
from xenlive.abi.hypercalls import grant_table as grant_table_abi
from xenlive.abi.hypercalls import hvm as hvm_abi
from xenlive.abi.hypercalls import memory as memory_abi
from xenlive.abi.hypercalls import sched as sched_abi
from xenlive.abi.hypercalls import vcpu as vcpu_abi
from xenlive.abi.hypercalls import version as version_abi
from xenlive.abi.hypercalls import xen as abi
from xenlive.errors import HypercallError
from xenlive.machine.emulated.hypervisor.hypercalls import control, version
from xenlive.machine.emulated.hypervisor.hypercalls.caller import FAULTS
from xenlive.machine.emulated.hypervisor.hypercalls.event_channel import event_channel_op
from xenlive.machine.emulated.hypervisor.hypercalls.grant_table import grant_table_op
from xenlive.machine.emulated.hypervisor.hypercalls.hvm import hvm_op
from xenlive.machine.emulated.hypervisor.hypercalls.memory import memory_op
from xenlive.machine.emulated.hypervisor.hypercalls.multicall import multicall
from xenlive.machine.emulated.hypervisor.hypercalls.sched import sched_op, set_timer_op
from xenlive.machine.emulated.hypervisor.hypercalls.vcpu import vcpu_op

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller

# Number: handler, and how many arguments it takes.
_HANDLERS: dict[int, tuple[Callable[..., int], int]] = {
    abi.HYPERVISOR_platform_op: (control.platform_op, 1),
    abi.HYPERVISOR_memory_op: (memory_op, 2),
    abi.HYPERVISOR_set_timer_op: (set_timer_op, 2),
    abi.HYPERVISOR_xen_version: (version.xen_version, 2),
    abi.HYPERVISOR_console_io: (version.console_io, 3),
    abi.HYPERVISOR_grant_table_op: (grant_table_op, 3),
    abi.HYPERVISOR_vm_assist: (version.vm_assist, 2),
    abi.HYPERVISOR_vcpu_op: (vcpu_op, 3),
    abi.HYPERVISOR_mmuext_op: (control.mmuext_op, 4),
    abi.HYPERVISOR_xsm_op: (control.xsm_op, 0),
    abi.HYPERVISOR_sched_op: (sched_op, 2),
    abi.HYPERVISOR_event_channel_op: (event_channel_op, 2),
    abi.HYPERVISOR_physdev_op: (control.physdev_op, 2),
    abi.HYPERVISOR_hvm_op: (hvm_op, 2),
    abi.HYPERVISOR_sysctl: (control.sysctl, 1),
    abi.HYPERVISOR_domctl: (control.domctl, 1),
    abi.HYPERVISOR_xenpmu_op: (control.xenpmu_op, 0),
    abi.HYPERVISOR_dm_op: (control.dm_op, 3),
    abi.HYPERVISOR_hypfs_op: (control.hypfs_op, 0),
    abi.HYPERVISOR_arch_1: (control.paging_domctl_cont, 1),
}

# Number: where its operations are named, how their names begin, and which argument says which.
_OPERATIONS: dict[int, tuple[ModuleType, str, int]] = {
    abi.HYPERVISOR_memory_op: (memory_abi, "XENMEM_", memory_abi.MEMOP_CMD_MASK),
    abi.HYPERVISOR_xen_version: (version_abi, "XENVER_", 0xFFFFFFFF),
    abi.HYPERVISOR_console_io: (version_abi, "CONSOLEIO_", 0xFFFFFFFF),
    abi.HYPERVISOR_grant_table_op: (grant_table_abi, "GNTTABOP_", 0xFFFFFFFF),
    abi.HYPERVISOR_vm_assist: (version_abi, "VMASST_CMD_", 0xFFFFFFFF),
    abi.HYPERVISOR_vcpu_op: (vcpu_abi, "VCPUOP_", 0xFFFFFFFF),
    abi.HYPERVISOR_sched_op: (sched_abi, "SCHEDOP_", 0xFFFFFFFF),
    abi.HYPERVISOR_event_channel_op: (event_channel_abi, "EVTCHNOP_", 0xFFFFFFFF),
    abi.HYPERVISOR_hvm_op: (hvm_abi, "HVMOP_", 0xFFFFFFFF),
}


def serve(caller: Caller, number: int, args: tuple[int, ...]) -> int:
    """The result of hypercall `number`: 0 or more, or a negative errno."""
    try:
        return _serve(caller, number, args)
    except HypercallError as refusal:
        caller.domain.last_refusal = refusal
        return -refusal.errno
    except FAULTS as fault:
        name = operation_name(number, args)
        caller.domain.last_refusal = HypercallError(name, abi.XEN_EFAULT, str(fault))
        return -abi.XEN_EFAULT


def _serve(caller: Caller, number: int, args: tuple[int, ...]) -> int:
    number &= 0xFFFFFFFFFFFFFFFF if caller.is_64bit else 0xFFFFFFFF
    refuse = caller.domain.refuse
    if refuse is not None and (errno := refuse(number, args)):
        raise HypercallError(operation_name(number, args), errno, "made to fail")
    if number == abi.HYPERVISOR_multicall:
        return multicall(caller, args[0], args[1], serve)
    handler, n_args = _HANDLERS.get(number, (None, 0))
    if handler is None:
        raise HypercallError(f"hypercall {number}", abi.XEN_ENOSYS, "no hypercall of this guest")
    return handler(caller, *args[:n_args])


def _names(module: ModuleType, prefix: str) -> dict[int, str]:
    """Number: name without prefix; flags of the same prefix come after the operations."""
    names: dict[int, str] = {}
    for name, value in vars(module).items():
        if name.startswith(prefix) and type(value) is int:
            names.setdefault(value, name.removeprefix(prefix))
    return names


HYPERCALL_NAMES = _names(abi, "HYPERVISOR_")
#: Of those numbers that have operations: number of the operation, name.
OPERATION_NAMES = {
    number: _names(module, prefix) for number, (module, prefix, _) in _OPERATIONS.items()
}


def operation_name(number: int, args: tuple[int, ...]) -> str:
    """What a hypercall is called, with its operation: `event_channel_op.send`."""
    name = HYPERCALL_NAMES.get(number, f"hypercall_{number}")
    if number not in _OPERATIONS or not args:
        return name
    operation = args[0] & _OPERATIONS[number][2]
    return f"{name}.{OPERATION_NAMES[number].get(operation, operation)}"
