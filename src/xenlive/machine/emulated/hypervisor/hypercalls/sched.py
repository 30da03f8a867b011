"""Hypercalls 29 and 15, sched_op and set_timer_op.

Specification: Xen 4.17 `do_sched_op`, `do_poll`, `domain_watchdog` and `do_set_timer_op` of
`xen/common/sched/core.c`.

**Invariants.** A guest that waits is woken by an event, a timer or nothing: these two say so to the
domain and return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.hypercalls import sched as abi
from xenlive.abi.hypercalls.xen import XEN_EINVAL, XEN_ENOSPC, XEN_ENOSYS, XEN_EPERM
from xenlive.errors import HypercallError
from xenlive.machine.emulated.interface import SECOND_NS

if TYPE_CHECKING:
    from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller

_MAX_POLLED = 128

# A timer of 2^50 ns and more from now is taken for a mistake: it rings soon.
_FAR_SHIFT = 50
_SOON_NS = 100_000_000


def set_timer_op(caller: Caller, *args: int) -> int:
    """Sets the one-shot timer to an absolute time, 0 for never."""
    if caller.is_64bit:
        timeout_ns = args[0] & 0xFFFFFFFFFFFFFFFF
    else:
        timeout_ns = args[0] & 0xFFFFFFFF | (args[1] & 0xFFFFFFFF) << 32
    now_ns = caller.domain.clock.now_ns
    timers = caller.domain.timers
    if timeout_ns == 0:
        timers.singleshot_ns = None
    elif timeout_ns >> 63 or (
        timeout_ns > now_ns and (timeout_ns - now_ns) >> _FAR_SHIFT & 0xFFFFFFFF
    ):
        timers.singleshot_ns = now_ns + _SOON_NS
    else:
        timers.singleshot_ns = timeout_ns
    return 0


def sched_op(caller: Caller, cmd: int, arg: int) -> int:
    """Yields, blocks, polls, ends: what concerns running at all."""
    cmd &= 0xFFFFFFFF
    domain = caller.domain
    if cmd == abi.SCHEDOP_yield:
        return 0
    if cmd == abi.SCHEDOP_block:
        domain.block(caller.processor)
    elif cmd == abi.SCHEDOP_shutdown:
        reason = caller.read_struct(abi.SCHED_SHUTDOWN, arg)["reason"]
        domain.shut_down(reason & 0xFF, "the guest asked for it")
    elif cmd == abi.SCHEDOP_shutdown_code:
        reason = caller.read_struct(abi.SCHED_SHUTDOWN, arg)["reason"]
        domain.set_shutdown_code(reason & 0xFF)
    elif cmd == abi.SCHEDOP_poll:
        _poll(caller, arg)
    elif cmd == abi.SCHEDOP_remote_shutdown:
        _remote_shutdown(caller, arg)
    elif cmd == abi.SCHEDOP_watchdog:
        return _watchdog(caller, arg)
    elif cmd == abi.SCHEDOP_pin_override:
        raise HypercallError("SCHEDOP_pin_override", XEN_EPERM, "for the hardware domain only")
    else:
        raise HypercallError("sched_op", XEN_ENOSYS, f"no operation {cmd}")
    return 0


def _poll(caller: Caller, arg: int) -> None:
    op = caller.read_struct(caller.form(abi.SCHED_POLL, abi.SCHED_POLL_32), arg)
    n_ports = op["nr_ports"]
    if n_ports > _MAX_POLLED:
        raise HypercallError("SCHEDOP_poll", XEN_EINVAL, f"{n_ports} ports")
    port = 0
    for index in range(n_ports):
        port = caller.read_u32(op["ports"] + 4 * index)
        if caller.domain.events.poll(port):
            return
    caller.domain.block(caller.processor, polled=port if n_ports == 1 else 0)
    if op["timeout"]:
        caller.domain.timers.poll_ns = op["timeout"]


def _remote_shutdown(caller: Caller, arg: int) -> None:
    call = "SCHEDOP_remote_shutdown"
    op = caller.read_struct(abi.SCHED_REMOTE_SHUTDOWN, arg)
    domain = caller.domain.find_by_id(call, op["domain_id"])
    if not caller.domain.is_privileged:
        raise HypercallError(call, XEN_EPERM, "for a device model only")
    domain.shut_down(op["reason"] & 0xFF, "it was told to")


def _watchdog(caller: Caller, arg: int) -> int:
    call = "SCHEDOP_watchdog"
    op = caller.read_struct(abi.SCHED_WATCHDOG, arg)
    number, timers = op["id"], caller.domain.timers
    when_ns = caller.domain.clock.now_ns + op["timeout"] * SECOND_NS
    if number == 0:
        new = timers.new_watchdog(when_ns)
        if new is None:
            # `domain_watchdog` gives -ENOSPC as a number of 32 bits without a sign.
            caller.domain.last_refusal = HypercallError(call, XEN_ENOSPC, "all are in use")
            return -XEN_ENOSPC & 0xFFFFFFFF
        return new
    if not timers.has_watchdog(number):
        raise HypercallError(call, XEN_EINVAL, f"no watchdog {number}")
    timers.set_watchdog(number, when_ns if op["timeout"] else None)
    return 0
