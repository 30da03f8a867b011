"""Hypercalls that are refused, many in one, and what all have in common.

Each test names the file and function of Xen 4.17 it was read in.
"""

from __future__ import annotations

import struct

import pytest
from machine.emulated.calls import (
    EVTCHN,
    MS,
    SCHED,
    bind_timer,
    form,
    guest,
    head,
    set_timer,
    vcpu_call,
    world,
)
from machine.emulated.guests import ARG, BAD, Guest, World
from machine.emulated.memorycalls import add, reserve

from xenlive.abi.hypercalls import event_channel as event_abi
from xenlive.abi.hypercalls import memory, sched, vcpu, version, xen
from xenlive.abi.hypercalls.shared_info import VCPU_INFO
from xenlive.abi.hypercalls.xen import (
    DOMID_SELF,
    XEN_E2BIG,
    XEN_EACCES,
    XEN_EFAULT,
    XEN_EINVAL,
    XEN_ENODATA,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
    XEN_ESRCH,
)
from xenlive.machine.emulated.hypervisor.domain import BOOT_S
from xenlive.machine.emulated.hypervisor.hypercalls import caller as hypercalls_caller
from xenlive.machine.emulated.hypervisor.hypercalls.table import operation_name
from xenlive.machine.emulated.stop import SPIN, GuestStop

__all__ = ["guest", "world"]  # the fixtures

# ---- control, and what is no hypercall of a PVH guest --------------------------------------------


@pytest.mark.parametrize(
    ("name", "interface"), [("sysctl", 0x15), ("domctl", 0x15), ("platform_op", 0x03000001)]
)
def test_control_is_refused(guest: Guest, name: str, interface: int) -> None:
    # do_sysctl, do_domctl of xen/common, do_platform_op of xen/arch/x86
    assert guest.call(name, head(guest, 2, interface, 1)) == -XEN_EPERM
    assert guest.call(name, head(guest, 2, interface + 1, 1)) == -XEN_EACCES
    assert guest.call(name, BAD) == -XEN_EFAULT


@pytest.mark.parametrize(
    ("command", "domid", "errno"),
    [
        (2, 9, XEN_ESRCH),
        (2, DOMID_SELF, XEN_ESRCH),  # by id
        (1, 9, XEN_EPERM),  # createdomain
        (5, 0, XEN_EPERM),  # getdomaininfo: the first from this id on
        (5, 3, XEN_ESRCH),
        (5, DOMID_SELF, XEN_EINVAL),
        (37, 0x7FF4, XEN_ESRCH),  # assign_device
        (37, 0x7FF1, XEN_EPERM),
        (45, 0x7FF4, XEN_EPERM),  # test_assign_device
    ],
)
def test_domains_of_domctl(guest: Guest, command: int, domid: int, errno: int) -> None:
    assert guest.call("domctl", head(guest, command, 0x15, domid)) == -errno


@pytest.mark.parametrize(
    ("domid", "errno"),
    [(DOMID_SELF, XEN_EINVAL), (1, XEN_ESRCH), (2, XEN_EINVAL), (0, XEN_EPERM), (9, XEN_ESRCH)],
)
def test_page_tables_of_pv_guests(guest: Guest, domid: int, errno: int) -> None:
    # do_mmuext_op, get_pg_owner of xen/arch/x86/mm.c
    assert guest.call("mmuext_op", ARG, 1, 0, domid) == -errno


def test_device_models(guest: Guest) -> None:
    # do_dm_op of xen/arch/x86/hvm/dm.c, dm_op
    for domid, count, errno in (
        (1, 0, XEN_ENODATA),
        (1, 3, XEN_E2BIG),
        (1, 1, XEN_EPERM),
        (2, 1, XEN_EPERM),
        (0, 1, XEN_EINVAL),
        (9, 1, XEN_ESRCH),
    ):
        assert guest.call("dm_op", domid, count, ARG) == -errno
    assert guest.call("dm_op", 1, 1, BAD) == -XEN_EFAULT


@pytest.mark.parametrize(
    ("name", "errno"),
    [
        ("hypfs_op", XEN_EPERM),
        ("xenpmu_op", XEN_EOPNOTSUPP),
        ("xsm_op", XEN_ENOSYS),
        ("physdev_op", XEN_ENOSYS),
        ("set_trap_table", XEN_ENOSYS),
        ("callback_op", XEN_ENOSYS),
        ("kexec_op", XEN_ENOSYS),
        ("argo_op", XEN_ENOSYS),
        ("event_channel_op_compat", XEN_ENOSYS),
        ("physdev_op_compat", XEN_ENOSYS),
        ("arch_0", XEN_ENOSYS),  # machine checks
    ],
)
def test_hypercalls_that_say_no(guest: Guest, name: str, errno: int) -> None:
    # xen/include/hypercall-defs.c: columns hvm32 and hvm64
    assert guest.call(name, BAD, BAD, BAD) == -errno


@pytest.mark.parametrize("number", [38, 43, 55, 56, 63, 127, 1 << 31, (1 << 64) - 1])
def test_numbers_of_nothing(guest: Guest, number: int) -> None:
    assert guest.domain.hypercall(guest, number, (0,) * 5, guest.is_64bit) == -XEN_ENOSYS


# ---- multicall -----------------------------------------------------------------------------------


def entries(guest: Guest, calls: list[tuple[int, ...]]) -> int:
    layout = form(guest, xen.MULTICALL_ENTRY, xen.MULTICALL_ENTRY_32)
    for index, (op, *args) in enumerate(calls):
        padded = {f"arg{i}": arg for i, arg in enumerate((*args, *(0,) * (6 - len(args))))}
        place = 0xB000 + index * layout.size
        guest.write_virtual(place, layout.encode(op=op, result=99, **padded))
    return 0xB000


def results(guest: Guest, count: int) -> list[int]:
    layout = form(guest, xen.MULTICALL_ENTRY, xen.MULTICALL_ENTRY_32)
    return [guest.get(layout, 0xB000 + i * layout.size)["result"] for i in range(count)]


def test_many_calls_in_one(guest: Guest) -> None:
    # do_multicall of xen/common/multicall.c: a failure is its own
    calls = [
        (xen.HYPERVISOR_xen_version, version.XENVER_version),
        (xen.HYPERVISOR_event_channel_op, event_abi.EVTCHNOP_send, BAD),
        (99,),
        (xen.HYPERVISOR_xen_version, version.XENVER_pagesize),
        (xen.HYPERVISOR_multicall, 0xB000, 1),
    ]
    assert guest.call("multicall", entries(guest, calls), len(calls)) == 0
    expected = [4 << 16 | 17, -XEN_EFAULT, -XEN_ENOSYS, 4096, -XEN_EINVAL]
    assert results(guest, len(calls)) == expected


def test_a_list_that_ends_too_early(guest: Guest) -> None:
    size = 64 if guest.is_64bit else 32
    call = guest.read_virtual(entries(guest, [(xen.HYPERVISOR_xen_version, 0)]), size)
    guest.write_virtual((4 << 20) - size, call)
    assert guest.call("multicall", (4 << 20) - size, 2) == -XEN_EFAULT
    assert guest.call("multicall", BAD, 0) == 0


def test_a_guest_that_ends_within(guest: Guest) -> None:
    guest.put(sched.SCHED_SHUTDOWN, reason=1)
    calls = [
        (xen.HYPERVISOR_sched_op, sched.SCHEDOP_shutdown, ARG),
        (xen.HYPERVISOR_xen_version, version.XENVER_pagesize),
    ]
    with pytest.raises(GuestStop):
        guest.call("multicall", entries(guest, calls), 2)
    assert results(guest, 2) == [0, 99]


# ---- all together --------------------------------------------------------------------------------


def test_a_hypercall_without_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Page tables can make a list of any length; a memory that never faults stands for them.
    guest = world.guests[0]
    monkeypatch.setattr(hypercalls_caller, "MAX_WORK", 1000)
    guest.read_virtual = lambda address, size: bytes(size)  # type: ignore[method-assign]
    guest.write_virtual = lambda address, data: None  # type: ignore[method-assign]
    with pytest.raises(GuestStop) as stop:
        guest.call("grant_table_op", 1, ARG, 0x7FFFFFFF)
    assert stop.value.kind == SPIN


@pytest.mark.parametrize(
    ("command", "first"),
    [
        (memory.XENMEM_increase_reservation, 0),
        (memory.XENMEM_populate_physmap, 0x3000),
        (memory.XENMEM_decrease_reservation, 0x100),
    ],
)
def test_each_page_is_an_operation(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, command: int, first: int
) -> None:
    monkeypatch.setattr(hypercalls_caller, "MAX_WORK", 40)
    assert reserve(guest, command, [first], extent_order=5) == 1
    with pytest.raises(GuestStop) as stop:
        reserve(guest, command, [first + 0x40], extent_order=6)
    assert stop.value.kind == SPIN


def test_each_page_of_a_range_is_an_operation(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypercalls_caller, "MAX_WORK", 40)
    space = memory.XENMAPSPACE_gmfn_range
    assert add(guest, space, 0x100, 0x3000, size=40) == 0
    with pytest.raises(GuestStop) as stop:
        add(guest, space, 0x200, 0x4000, size=41)
    assert stop.value.kind == SPIN
    guest.domain.is_shut_down = False
    layout = form(guest, memory.XEN_ADD_TO_PHYSMAP_BATCH, memory.XEN_ADD_TO_PHYSMAP_BATCH_32)
    lists = {"idxs": 0x9000, "gpfns": 0xA000, "errs": 0xB000, "domid": DOMID_SELF, "size": 41}
    with pytest.raises(GuestStop) as stop:
        guest.op("memory_op", memory.XENMEM_add_to_physmap_batch, layout, **lists)
    assert stop.value.kind == SPIN


def test_a_hypercall_page(guest: Guest) -> None:
    # guest_wrmsr_xen of xen/arch/x86/hypercall.c: the form of the shared page is latched
    assert guest.domain.write_hypercall_page(guest, 0x100, b"\xcc" * 4096)
    assert guest.read_virtual(0x100000, 2) == b"\xcc\xcc"
    assert guest.domain.shared.is_32bit == (not guest.in_long_mode)
    assert not guest.domain.write_hypercall_page(guest, 0x5000, bytes(4096))
    with pytest.raises(GuestStop) as stop:
        guest.domain.vcpu_down()
    assert stop.value.code == sched.SHUTDOWN_poweroff


def test_the_wall_clock(guest: Guest) -> None:
    # update_domain_wallclock_time of xen/common/time.c
    guest.domain.latch(guest.in_long_mode)
    place = 3072 if guest.is_64bit else 2304
    page = guest.domain.space.xen_frame(0).view
    assert struct.unpack_from("<III", page, place) == (2, BOOT_S, 0)


def test_why_a_call_was_refused_is_known(guest: Guest) -> None:
    guest.call("domctl", head(guest, 2, 0x15, 9))
    refusal = guest.domain.last_refusal
    assert refusal is not None
    assert (refusal.call, refusal.errno, refusal.why) == ("domctl", XEN_ESRCH, "no domain 9")
    guest.call(EVTCHN, event_abi.EVTCHNOP_send, BAD)
    assert guest.domain.last_refusal is not None
    assert guest.domain.last_refusal.call == "event_channel_op.send"


@pytest.mark.parametrize(
    ("number", "args", "name"),
    [
        (32, (4, 0), "event_channel_op.send"),
        (12, (7 | 64, 0), "memory_op.add_to_physmap"),
        (12, (1, 0), "memory_op.decrease_reservation"),
        (29, (99,), "sched_op.99"),
        (15, (5,), "set_timer_op"),
        (77, (1,), "hypercall_77"),
    ],
)
def test_names(number: int, args: tuple[int, ...], name: str) -> None:
    assert operation_name(number, args) == name


def test_a_soft_reset_begins_anew(world: World) -> None:
    guest = world.guests[0]
    bind_timer(guest)
    layout = vcpu.VCPU_REGISTER_VCPU_INFO
    assert vcpu_call(guest, vcpu.VCPUOP_register_vcpu_info, layout, mfn=0x100) == 0
    set_timer(guest, 5 * MS)
    with pytest.raises(GuestStop):
        guest.op(SCHED, sched.SCHEDOP_shutdown, sched.SCHED_SHUTDOWN, reason=5)
    guest.domain.soft_reset()
    assert guest.domain.shutdown_reason is None
    assert guest.domain.timer_deadline_ns() is None
    assert list(guest.domain.events.in_use()) == []
    assert vcpu_call(guest, vcpu.VCPUOP_register_vcpu_info, layout, mfn=0x100) == 0
    assert VCPU_INFO.size == 64
