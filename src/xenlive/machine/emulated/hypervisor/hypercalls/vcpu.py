"""Hypercall 24, vcpu_op.

Specification: Xen 4.17 `do_vcpu_op` of `xen/arch/x86/domain.c`, `common_vcpu_op` and
`map_vcpu_info` of `xen/common/domain.c`, and their forms for 32 bit guests in `xen/common/compat`
and `xen/arch/x86/x86_64/domain.c`.

**Invariants.** There is one vcpu, number 0: any other is -ENOENT.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from xenlive.abi.hypercalls import vcpu as abi
from xenlive.abi.hypercalls.sched import SHUTDOWN_poweroff
from xenlive.abi.hypercalls.xen import (
    VIRQ_TIMER,
    XEN_EEXIST,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSYS,
)
from xenlive.errors import HypercallError
from xenlive.machine.emulated.hypervisor.hypercalls.caller import FAULTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller

_PERIOD_MIN_NS = 1_000_000
# STIME_DELTA_MAX of xen/include/xen/time.h: about a hundred and fifty years.
_PERIOD_MAX_NS = (1 << 62) - 1


def vcpu_op(caller: Caller, cmd: int, vcpuid: int, arg: int) -> int:
    """One operation on a vcpu of the caller."""
    if vcpuid & 0xFFFFFFFF:
        raise HypercallError("vcpu_op", XEN_ENOENT, f"no vcpu {vcpuid}")
    handler = _OPERATIONS.get(cmd & 0xFFFFFFFF)
    if handler is None:
        raise HypercallError("vcpu_op", XEN_ENOSYS, f"no operation {cmd}")
    return handler(caller, arg) or 0


def _initialise(caller: Caller, arg: int) -> None:
    caller.read(arg, 8)
    raise HypercallError("VCPUOP_initialise", XEN_EEXIST, "the vcpu runs")


def _up(caller: Caller, arg: int) -> None:
    """It is up already."""


def _down(caller: Caller, arg: int) -> None:
    caller.domain.shut_down(SHUTDOWN_poweroff, "its last vcpu went down")


def _is_up(caller: Caller, arg: int) -> int:
    return 1


def _runstate(caller: Caller) -> bytes:
    state, since_ns, times = caller.domain.runstate()
    layout = caller.form(abi.VCPU_RUNSTATE_INFO, abi.VCPU_RUNSTATE_INFO_32)
    return layout.encode(state=state, state_entry_time=since_ns, time=struct.pack("<4Q", *times))


class RunstateArea:
    """A place in the guest's memory where the state of running is stored whenever it changes."""

    __slots__ = ("address", "caller")

    def __init__(self, caller: Caller, address: int) -> None:
        self.caller = caller
        self.address = address

    def __call__(self) -> None:
        try:
            self.caller.write(self.address, _runstate(self.caller))
        except FAULTS:
            return  # as Xen does: whoever gave a bad address gets nothing


class TimeArea:
    """A second place in the guest's memory where each new time is stored."""

    __slots__ = ("address", "caller")

    def __init__(self, caller: Caller, address: int) -> None:
        self.caller = caller
        self.address = address

    def __call__(self, clock: bytes) -> None:
        try:
            self.caller.write(self.address, clock)
        except FAULTS:
            return


def _get_runstate_info(caller: Caller, arg: int) -> None:
    caller.write(arg, _runstate(caller))


def _register_runstate(caller: Caller, arg: int) -> None:
    """Stores the state of running now, and whenever the vcpu goes on."""
    store = RunstateArea(caller, _registered(caller, arg))
    caller.domain.vcpu.runstate_changed = store
    store()


def _register_time(caller: Caller, arg: int) -> None:
    """Stores each new time at a second place too."""
    caller.domain.shared.copy_time_to(TimeArea(caller, _registered(caller, arg)))
    caller.domain.update_time()


def _registered(caller: Caller, arg: int) -> int:
    """The address in a structure that is one: a pointer, or a u64 of 32 bit guests."""
    size = abi.VCPU_REGISTER_TIME_MEMORY_AREA.size if caller.is_64bit else 4
    return int.from_bytes(caller.read(arg, size), "little")


def _set_periodic_timer(caller: Caller, arg: int) -> None:
    period_ns = caller.read_struct(abi.VCPU_SET_PERIODIC_TIMER, arg)["period_ns"]
    if not _PERIOD_MIN_NS <= period_ns <= _PERIOD_MAX_NS:
        raise HypercallError("VCPUOP_set_periodic_timer", XEN_EINVAL, f"{period_ns} ns")
    caller.domain.timers.set_period(period_ns, caller.domain.clock.now_ns)


def _stop_periodic_timer(caller: Caller, arg: int) -> None:
    caller.domain.timers.set_period(0, 0)


def _set_singleshot_timer(caller: Caller, arg: int) -> None:
    layout = caller.form(abi.VCPU_SET_SINGLESHOT_TIMER, abi.VCPU_SET_SINGLESHOT_TIMER_32)
    timeout_ns = caller.read_struct(layout, arg)["timeout_abs_ns"]
    timers = caller.domain.timers
    if timeout_ns < caller.domain.clock.now_ns:
        timers.singleshot_ns = None
        caller.domain.events.raise_virq(VIRQ_TIMER)
    else:
        timers.singleshot_ns = timeout_ns


def _stop_singleshot_timer(caller: Caller, arg: int) -> None:
    caller.domain.timers.singleshot_ns = None


def _register_vcpu_info(caller: Caller, arg: int) -> None:
    op = caller.read_struct(abi.VCPU_REGISTER_VCPU_INFO, arg)
    try:
        caller.domain.move_vcpu_info(op["mfn"], op["offset"])
    finally:
        caller.domain.update_time()


def _send_nmi(caller: Caller, arg: int) -> None:
    if arg:
        raise HypercallError("VCPUOP_send_nmi", XEN_EINVAL, "it takes no argument")
    caller.domain.vcpu.nmi_pending = True


def _get_physid(caller: Caller, arg: int) -> None:
    raise HypercallError("VCPUOP_get_physid", XEN_EINVAL, "the vcpu is not pinned")


_OPERATIONS: dict[int, Callable[[Caller, int], int | None]] = {
    abi.VCPUOP_initialise: _initialise,
    abi.VCPUOP_up: _up,
    abi.VCPUOP_down: _down,
    abi.VCPUOP_is_up: _is_up,
    abi.VCPUOP_get_runstate_info: _get_runstate_info,
    abi.VCPUOP_register_runstate_memory_area: _register_runstate,
    abi.VCPUOP_set_periodic_timer: _set_periodic_timer,
    abi.VCPUOP_stop_periodic_timer: _stop_periodic_timer,
    abi.VCPUOP_set_singleshot_timer: _set_singleshot_timer,
    abi.VCPUOP_stop_singleshot_timer: _stop_singleshot_timer,
    abi.VCPUOP_register_vcpu_info: _register_vcpu_info,
    abi.VCPUOP_send_nmi: _send_nmi,
    abi.VCPUOP_get_physid: _get_physid,
    abi.VCPUOP_register_vcpu_time_memory_area: _register_time,
}
