"""Running, waiting, timers and the vcpu, by hypercall.

Each test names the file and function of Xen 4.17 it was read in.
"""

from __future__ import annotations

import struct

import pytest
from machine.emulated.calls import (
    MS,
    SCHED,
    VCPU,
    bind_timer,
    form,
    guest,
    pass_time,
    pending,
    set_timer,
    vcpu_call,
    world,
)
from machine.emulated.guests import ARG, BAD, Guest

from xenlive.abi.hypercalls import sched, vcpu
from xenlive.abi.hypercalls.shared_info import VCPU_TIME_INFO
from xenlive.abi.hypercalls.xen import (
    DOMID_SELF,
    XEN_EEXIST,
    XEN_EFAULT,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSPC,
    XEN_ENOSYS,
    XEN_ENXIO,
    XEN_EPERM,
    XEN_ESRCH,
)
from xenlive.machine.emulated.stop import GuestStop

__all__ = ["guest", "world"]  # the fixtures

# ---- scheduling ----------------------------------------------------------------------------------


def test_yield_and_block(guest: Guest) -> None:
    # xen/common/sched/core.c do_sched_op
    assert guest.call(SCHED, sched.SCHEDOP_yield, BAD) == 0
    assert guest.blocked == 0
    assert guest.call(SCHED, sched.SCHEDOP_block, BAD) == 0
    assert guest.blocked == 1


@pytest.mark.parametrize("reason", [0, 1, 2, 3, 5, 0x1FE])
def test_shutdown(guest: Guest, reason: int) -> None:
    # domain_shutdown of xen/common/domain.c: the reason is a byte
    with pytest.raises(GuestStop) as stop:
        guest.op(SCHED, sched.SCHEDOP_shutdown, sched.SCHED_SHUTDOWN, reason=reason)
    assert stop.value.code == reason & 0xFF
    assert guest.domain.shutdown_reason == reason & 0xFF


def test_the_first_reason_counts(guest: Guest) -> None:
    # SCHEDOP_shutdown_code
    layout = sched.SCHED_SHUTDOWN
    assert guest.op(SCHED, sched.SCHEDOP_shutdown_code, layout, reason=1) == 0
    assert guest.domain.shutdown_reason is None
    with pytest.raises(GuestStop) as stop:
        guest.op(SCHED, sched.SCHEDOP_shutdown, layout, reason=0)
    assert stop.value.code == 1


def test_shutting_down_others(guest: Guest) -> None:
    # SCHEDOP_remote_shutdown: by id, XSM_DM_PRIV
    layout = sched.SCHED_REMOTE_SHUTDOWN
    for domid, errno in ((1, XEN_EPERM), (2, XEN_EPERM), (9, XEN_ESRCH), (DOMID_SELF, XEN_ESRCH)):
        result = guest.op(SCHED, sched.SCHEDOP_remote_shutdown, layout, domain_id=domid)
        assert result == -errno


@pytest.mark.parametrize("cmd", [2, 3, 4, 5, 6])
def test_scheduling_arguments_that_are_not_there(guest: Guest, cmd: int) -> None:
    assert guest.call(SCHED, cmd, BAD) == -XEN_EFAULT


def test_scheduling_operations_that_are_not_there(guest: Guest) -> None:
    assert guest.call(SCHED, sched.SCHEDOP_pin_override, ARG) == -XEN_EPERM
    assert guest.call(SCHED, 8, ARG) == -XEN_ENOSYS


def test_watchdogs(guest: Guest) -> None:
    # domain_watchdog: two of them, numbers from 1
    def watchdog(number: int, timeout: int) -> int:
        layout = sched.SCHED_WATCHDOG
        return guest.op(SCHED, sched.SCHEDOP_watchdog, layout, id=number, timeout=timeout)

    # running out is a number of 32 bits without a sign, as a real Xen was seen to answer
    no_space = -XEN_ENOSPC & 0xFFFFFFFF
    assert [watchdog(0, 10), watchdog(0, 5), watchdog(0, 1)] == [1, 2, no_space]
    assert watchdog(3, 1) == -XEN_EINVAL
    assert watchdog(2, 0) == 0
    assert watchdog(2, 1) == -XEN_EINVAL
    assert guest.domain.timer_deadline_ns() == 10_000 * MS
    pass_time(guest, 9_000 * MS)
    assert watchdog(1, 10) == 0
    pass_time(guest, 9_999 * MS)
    with pytest.raises(GuestStop) as stop:
        pass_time(guest, 1 * MS)
    assert stop.value.code == sched.SHUTDOWN_watchdog


def poll(guest: Guest, ports: list[int], timeout: int = 0, n_ports: int | None = None) -> int:
    guest.write_virtual(0x9000, struct.pack(f"<{len(ports)}I", *ports))
    layout = form(guest, sched.SCHED_POLL, sched.SCHED_POLL_32)
    count = len(ports) if n_ports is None else n_ports
    known = {"ports": 0x9000, "nr_ports": count, "timeout": timeout}
    return guest.op(SCHED, sched.SCHEDOP_poll, layout, **known)


def test_polling_a_port_that_rang(guest: Guest) -> None:
    # do_poll: no waiting
    quiet, rang = (guest.domain.events.bind_ipi(0) for _ in range(2))
    guest.domain.events.send(rang)
    assert poll(guest, [quiet, rang]) == 0
    assert guest.blocked == 0


def test_polling_until_a_port_rings(guest: Guest) -> None:
    # do_poll, evtchn_check_pollers: the port polled, masked or not
    guest.domain.latch(guest.in_long_mode)
    quiet, rings = (guest.domain.events.bind_ipi(0) for _ in range(2))
    mask = 2560 if guest.is_64bit else 2176
    page = guest.domain.space.xen_frame(0).view
    page[mask : mask + 8] = b"\xff" * 8
    assert poll(guest, [rings]) == 0
    assert (guest.blocked, guest.woken) == (1, 0)
    guest.domain.events.send(quiet)
    assert guest.woken == 0
    guest.domain.events.send(rings)
    assert guest.woken == 1
    guest.domain.shared.clear_pending(quiet)
    guest.domain.shared.clear_pending(rings)
    # Whoever polls more than one wakes for any.
    third = guest.domain.events.bind_ipi(0)
    assert poll(guest, [quiet, rings]) == 0
    guest.domain.events.send(third)
    assert guest.woken == 2


def test_polling_until_it_is_late(guest: Guest) -> None:
    port = guest.domain.events.bind_ipi(0)
    assert poll(guest, [port], timeout=5 * MS) == 0
    assert guest.domain.timer_deadline_ns() == 5 * MS
    pass_time(guest, 5 * MS)
    assert guest.woken == 1
    assert guest.domain.timer_deadline_ns() is None
    # An event that ends the waiting ends the timer too.
    assert poll(guest, [port], timeout=9 * MS) == 0
    guest.domain.events.send(port)
    assert guest.domain.timer_deadline_ns() is None


def test_polls_that_can_not_be(guest: Guest) -> None:
    assert poll(guest, [0] * 129) == -XEN_EINVAL
    assert poll(guest, [0]) == -XEN_EINVAL  # evtchn_port_poll: port 0 is not usable
    assert poll(guest, [50]) == -XEN_EINVAL
    assert poll(guest, [4096]) == -XEN_EINVAL
    layout = form(guest, sched.SCHED_POLL, sched.SCHED_POLL_32)
    assert guest.op(SCHED, sched.SCHEDOP_poll, layout, ports=BAD, nr_ports=1) == -XEN_EFAULT
    assert guest.blocked == 0


# ---- timers --------------------------------------------------------------------------------------


def test_the_timer(guest: Guest) -> None:
    # do_set_timer_op; compat_set_timer_op of xen/common/sched/compat.c
    port = bind_timer(guest)
    assert set_timer(guest, 5_000 * MS) == 0
    assert guest.domain.timer_deadline_ns() == 5_000 * MS
    pass_time(guest, 4_999 * MS)
    assert not pending(guest, port)
    pass_time(guest, 1 * MS)
    assert pending(guest, port)
    assert guest.domain.timer_deadline_ns() is None


def test_a_timer_of_the_past_rings_at_once(guest: Guest) -> None:
    port = bind_timer(guest)
    pass_time(guest, 10 * MS)
    assert set_timer(guest, 1) == 0
    assert pending(guest, port)


def test_a_timer_taken_back(guest: Guest) -> None:
    set_timer(guest, 5 * MS)
    assert set_timer(guest, 0) == 0
    assert guest.domain.timer_deadline_ns() is None


@pytest.mark.parametrize("timeout", [1 << 63, (1 << 64) - 1, (1 << 50) + 2 * MS])
def test_a_timer_far_away_rings_soon(guest: Guest, timeout: int) -> None:
    # do_set_timer_op: "Linux workaround", in 100 ms
    guest.domain.clock.advance(2 * MS)
    assert set_timer(guest, timeout) == 0
    assert guest.domain.timer_deadline_ns() == 102 * MS


# ---- vcpu ----------------------------------------------------------------------------------------


def test_there_is_one_vcpu(guest: Guest) -> None:
    # xen/arch/x86/domain.c do_vcpu_op: domain_vcpu() first, whatever the operation
    assert guest.call(VCPU, vcpu.VCPUOP_is_up, 0, BAD) == 1
    assert guest.call(VCPU, vcpu.VCPUOP_is_up, 1, BAD) == -XEN_ENOENT
    assert guest.call(VCPU, 99, 1, BAD) == -XEN_ENOENT
    assert guest.call(VCPU, 99, 0, BAD) == -XEN_ENOSYS
    assert guest.call(VCPU, vcpu.VCPUOP_up, 0, BAD) == 0
    assert guest.call(VCPU, vcpu.VCPUOP_initialise, 0, ARG) == -XEN_EEXIST
    assert guest.call(VCPU, vcpu.VCPUOP_initialise, 0, BAD) == -XEN_EFAULT
    assert guest.call(VCPU, vcpu.VCPUOP_get_physid, 0, ARG) == -XEN_EINVAL


def test_the_last_vcpu_down(guest: Guest) -> None:
    # common_vcpu_op of xen/common/domain.c: SHUTDOWN_poweroff
    with pytest.raises(GuestStop) as stop:
        guest.call(VCPU, vcpu.VCPUOP_down, 0, 0)
    assert stop.value.code == sched.SHUTDOWN_poweroff


def test_nmis(guest: Guest) -> None:
    assert guest.call(VCPU, vcpu.VCPUOP_send_nmi, 0, ARG) == -XEN_EINVAL
    assert not guest.domain.vcpu.nmi_pending
    assert guest.call(VCPU, vcpu.VCPUOP_send_nmi, 0, 0) == 0
    assert guest.domain.vcpu.nmi_pending


def test_a_timer_of_the_vcpu(guest: Guest) -> None:
    port = bind_timer(guest)
    layout = form(guest, vcpu.VCPU_SET_SINGLESHOT_TIMER, vcpu.VCPU_SET_SINGLESHOT_TIMER_32)
    cmd = vcpu.VCPUOP_set_singleshot_timer
    assert vcpu_call(guest, cmd, layout, timeout_abs_ns=7 * MS) == 0
    assert guest.domain.timer_deadline_ns() == 7 * MS
    assert guest.call(VCPU, vcpu.VCPUOP_stop_singleshot_timer, 0, BAD) == 0
    assert guest.domain.timer_deadline_ns() is None
    pass_time(guest, 1 * MS)
    # One of the past is an event at once, with or without VCPU_SSHOTTMR_future.
    assert vcpu_call(guest, cmd, layout, timeout_abs_ns=1, flags=1) == 0
    assert pending(guest, port)
    assert guest.call(VCPU, cmd, 0, BAD) == -XEN_EFAULT


def test_a_timer_that_rings_again(guest: Guest) -> None:
    port = bind_timer(guest)
    cmd, layout = vcpu.VCPUOP_set_periodic_timer, vcpu.VCPU_SET_PERIODIC_TIMER
    assert vcpu_call(guest, cmd, layout, period_ns=1 * MS - 1) == -XEN_EINVAL
    assert vcpu_call(guest, cmd, layout, period_ns=1 << 62) == -XEN_EINVAL
    assert vcpu_call(guest, cmd, layout, period_ns=10 * MS) == 0
    for _ in range(3):
        pass_time(guest, 9 * MS)
        assert not pending(guest, port)
        pass_time(guest, 1 * MS)
        assert pending(guest, port)
        guest.domain.shared.clear_pending(port)
    pass_time(guest, 35 * MS)
    assert guest.domain.timer_deadline_ns() == 70 * MS
    assert guest.call(VCPU, vcpu.VCPUOP_stop_periodic_timer, 0, BAD) == 0
    assert guest.domain.timer_deadline_ns() is None


def test_moving_the_vcpu_info(guest: Guest) -> None:
    # map_vcpu_info of xen/common/domain.c: everything is pending afterwards
    guest.domain.latch(guest.in_long_mode)
    cmd, layout = vcpu.VCPUOP_register_vcpu_info, vcpu.VCPU_REGISTER_VCPU_INFO
    assert vcpu_call(guest, cmd, layout, mfn=0x100, offset=4096 - 63) == -XEN_ENXIO
    assert vcpu_call(guest, cmd, layout, mfn=0x100, offset=2) == -XEN_ENXIO
    assert vcpu_call(guest, cmd, layout, mfn=0x5000) == -XEN_EINVAL
    narrow = 0 if not guest.is_64bit else -XEN_ENXIO
    assert vcpu_call(guest, cmd, layout, mfn=0x100, offset=4) == narrow
    if guest.is_64bit:
        assert vcpu_call(guest, cmd, layout, mfn=0x100, offset=0x40) == 0
    place = 0x100040 if guest.is_64bit else 0x100004
    info = guest.read_virtual(place, 64)
    assert info[0] == 1
    assert info[8:16] == b"\xff" * 8 if guest.is_64bit else info[4:8] == b"\xff" * 4
    assert VCPU_TIME_INFO.decode(info, 32)["tsc_to_system_mul"] == 0x80000000
    assert vcpu_call(guest, cmd, layout, mfn=0x101) == -XEN_EINVAL
    assert guest.call(VCPU, cmd, 0, BAD) == -XEN_EFAULT
    # Events arrive there.
    guest.write_virtual(place, bytes(16))
    guest.domain.events.send(guest.domain.events.bind_ipi(0))
    assert guest.read_virtual(place, 1) == b"\1"
    assert guest.domain.pending_upcall()


def test_states_of_running(guest: Guest) -> None:
    # VCPUOP_get_runstate_info, VCPUOP_register_runstate_memory_area
    layout = form(guest, vcpu.VCPU_RUNSTATE_INFO, vcpu.VCPU_RUNSTATE_INFO_32)
    pass_time(guest, 3 * MS)
    assert guest.call(VCPU, vcpu.VCPUOP_get_runstate_info, 0, ARG) == 0
    state = guest.get(layout)
    assert state["state"] == vcpu.RUNSTATE_running
    assert struct.unpack("<4Q", state["time"]) == (3 * MS, 0, 0, 0)
    area = vcpu.VCPU_REGISTER_RUNSTATE_MEMORY_AREA
    cmd = vcpu.VCPUOP_register_runstate_memory_area
    assert vcpu_call(guest, cmd, area, addr=0xA000) == 0
    assert struct.unpack("<4Q", guest.get(layout, 0xA000)["time"]) == (3 * MS, 0, 0, 0)
    port = guest.domain.events.bind_ipi(0)
    guest.call(SCHED, sched.SCHEDOP_block, 0)
    guest.domain.clock.advance(2 * MS)
    guest.domain.events.send(port)
    assert struct.unpack("<4Q", guest.get(layout, 0xA000)["time"]) == (3 * MS, 0, 2 * MS, 0)
    # Xen does not look whether it could store there.
    assert vcpu_call(guest, cmd, area, addr=BAD) == 0
    assert guest.call(VCPU, cmd, 0, BAD) == -XEN_EFAULT


def test_a_second_clock(guest: Guest) -> None:
    # VCPUOP_register_vcpu_time_memory_area, update_secondary_system_time
    pass_time(guest, 4 * MS)
    area = vcpu.VCPU_REGISTER_TIME_MEMORY_AREA
    cmd = vcpu.VCPUOP_register_vcpu_time_memory_area
    assert vcpu_call(guest, cmd, area, addr=0xA000) == 0
    clock = guest.get(VCPU_TIME_INFO, 0xA000)
    assert (clock["system_time"], clock["tsc_timestamp"]) == (4 * MS, 4 * MS)
    assert clock["version"] % 2 == 0
