"""Versions, assists, consoles and HVM parameters, by hypercall.

Each test names the file and function of Xen 4.17 it was read in.
"""

from __future__ import annotations

import pytest
from machine.emulated.calls import (
    HVM,
    MS,
    guest,
    pass_time,
    world,
)
from machine.emulated.guests import ARG, BAD, Guest

from xenlive.abi.hypercalls import hvm, sched, version
from xenlive.abi.hypercalls.xen import (
    DOMID_SELF,
    XEN_EFAULT,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
    XEN_ESRCH,
)
from xenlive.machine.emulated.hypervisor.hypercalls.version import FEATURES
from xenlive.machine.emulated.stop import GuestStop

__all__ = ["guest", "world"]  # the fixtures

# ---- versions, assists, console ------------------------------------------------------------------


def test_versions(guest: Guest) -> None:
    # do_xen_version of xen/common/kernel.c
    assert guest.call("xen_version", version.XENVER_version, BAD) == 4 << 16 | 17
    assert guest.call("xen_version", version.XENVER_extraversion, ARG) == 0
    assert guest.read_virtual(ARG, 16) == b".7".ljust(16, b"\0")
    assert guest.call("xen_version", version.XENVER_capabilities, ARG) == 0
    assert guest.read_virtual(ARG, 15) == b"xen-3.0-x86_64 "
    assert guest.call("xen_version", version.XENVER_compile_info, ARG) == 0
    assert guest.get(version.XEN_COMPILE_INFO)["compile_by"].rstrip(b"\0") == b"pkg-xen-devel"
    assert guest.call("xen_version", version.XENVER_changeset, ARG) == 0
    assert guest.call("xen_version", version.XENVER_guest_handle, ARG) == 0
    assert guest.read_virtual(ARG, 16) == bytes(16)


def test_where_the_hypervisor_would_be(guest: Guest) -> None:
    guest.write_virtual(ARG, b"\xee" * 8)
    assert guest.call("xen_version", version.XENVER_platform_parameters, ARG) == 0
    start = 0xFFFF800000000000 if guest.is_64bit else 0xEEEEEEEE << 32
    assert guest.read_virtual(ARG, 8) == start.to_bytes(8, "little")


def test_features(guest: Guest) -> None:
    layout = version.XEN_FEATURE_INFO
    cmd = version.XENVER_get_features
    assert guest.op("xen_version", cmd, layout, submap_idx=0) == 0
    assert guest.get(layout)["submap"] == FEATURES == 0x12305
    assert guest.op("xen_version", cmd, layout, submap_idx=1) == -XEN_EINVAL


def test_what_guests_are_not_told(guest: Guest) -> None:
    # xsm_xen_version of xen/include/xsm/dummy.h
    guest.write_virtual(ARG, b"\xee" * 16)
    assert guest.call("xen_version", version.XENVER_commandline, ARG) == 0
    assert guest.read_virtual(ARG, 16) == b"<denied>\0".ljust(16, b"\xee")
    assert guest.call("xen_version", version.XENVER_build_id, 0) == -XEN_EPERM


def test_page_size(guest: Guest) -> None:
    assert guest.call("xen_version", version.XENVER_pagesize, 0) == 4096
    assert guest.call("xen_version", version.XENVER_pagesize, ARG) == -XEN_EINVAL


@pytest.mark.parametrize("cmd", [1, 2, 3, 4, 5, 6, 8, 9])
def test_version_arguments_that_are_not_there(guest: Guest, cmd: int) -> None:
    assert guest.call("xen_version", cmd, BAD) == -XEN_EFAULT


def test_a_version_that_is_not_there(guest: Guest) -> None:
    assert guest.call("xen_version", 11, ARG) == -XEN_ENOSYS


def test_assists(guest: Guest) -> None:
    # do_vm_assist of xen/common/domain.c: HVM guests have one
    one = version.VMASST_TYPE_runstate_update_flag
    assert guest.call("vm_assist", version.VMASST_CMD_enable, one) == 0
    assert guest.domain.vm_assist == 1 << one
    assert guest.call("vm_assist", version.VMASST_CMD_disable, one) == 0
    assert guest.domain.vm_assist == 0
    assert guest.call("vm_assist", 2, one) == -XEN_ENOSYS
    for other in (0, 3, 64, 0xFFFFFFFF):
        assert guest.call("vm_assist", 0, other) == -XEN_EINVAL


def test_xens_console(guest: Guest) -> None:
    # do_console_io of xen/drivers/char/console.c, xsm_console_io
    guest.write_virtual(ARG, b"hello " * 50)
    assert guest.call("console_io", version.CONSOLEIO_write, 300, ARG) == -XEN_EPERM
    assert guest.call("console_io", 9, 0, ARG) == -XEN_EPERM
    guest.domain.has_console_io = True
    assert guest.call("console_io", version.CONSOLEIO_write, 300, ARG) == 0
    assert guest.domain.console_io == b"hello " * 50
    assert guest.call("console_io", version.CONSOLEIO_write, 5, BAD) == -XEN_EFAULT
    assert guest.call("console_io", version.CONSOLEIO_read, 5, ARG) == 0
    assert guest.call("console_io", 9, 0, ARG) == -XEN_ENOSYS


# ---- HVM -----------------------------------------------------------------------------------------


def set_param(guest: Guest, index: int, value: int, domid: int = DOMID_SELF) -> int:
    fields = {"domid": domid, "index": index, "value": value}
    return guest.op(HVM, hvm.HVMOP_set_param, hvm.XEN_HVM_PARAM, **fields)


def get_param(guest: Guest, index: int, domid: int = DOMID_SELF) -> int:
    layout = hvm.XEN_HVM_PARAM
    result = guest.op(HVM, hvm.HVMOP_get_param, layout, domid=domid, index=index)
    return int(guest.get(layout)["value"]) if result == 0 else result


def test_parameters_that_the_toolstack_gave(guest: Guest) -> None:
    # alloc_magic_pages_hvm of tools/libs/guest/xg_dom_x86.c
    assert get_param(guest, hvm.HVM_PARAM_STORE_PFN) == 0xFEFFC
    assert get_param(guest, hvm.HVM_PARAM_CONSOLE_PFN) == 0xFEFFF
    assert get_param(guest, hvm.HVM_PARAM_STORE_EVTCHN) == 1
    assert get_param(guest, hvm.HVM_PARAM_CONSOLE_EVTCHN) == 2


# hvm_allow_get_param and hvm_allow_set_param of xen/arch/x86/hvm/hvm.c
DEPRECATED = {4, 13, 20, 21, 22, 23, 24, 25, 26, 30}
GETS = {0, 1, 2, 15, 17, 18, 19, 34, 35, 36, 37}
SETS = GETS - {1, 17, 35}


@pytest.mark.parametrize("index", range(41))
def test_who_may_read_a_parameter(guest: Guest, index: int) -> None:
    result = get_param(guest, index)
    if index in DEPRECATED or index >= hvm.HVM_NR_PARAMS:
        assert result == -XEN_EINVAL
    elif index not in GETS:
        assert result == -XEN_EPERM
    else:
        assert result >= 0


@pytest.mark.parametrize("index", range(41))
def test_who_may_set_a_parameter(guest: Guest, index: int) -> None:
    value = 104 << 32 if index == hvm.HVM_PARAM_VM86_TSS_SIZED else 0
    result = set_param(guest, index, value)
    if index in DEPRECATED or index >= hvm.HVM_NR_PARAMS:
        assert result == -XEN_EINVAL
    elif index not in SETS:
        assert result == -XEN_EPERM
    elif index == hvm.HVM_PARAM_ACPI_IOPORTS_LOCATION:
        assert result == -19  # pmtimer_change_ioport: no such device
    else:
        assert result == 0


def test_parameters_of_others(guest: Guest) -> None:
    for call in (get_param(guest, 1, domid=2), set_param(guest, 0, 0, domid=2)):
        assert call == -XEN_EPERM
    for call in (get_param(guest, 1, domid=9), set_param(guest, 0, 0, domid=9)):
        assert call == -XEN_ESRCH
    assert get_param(guest, 41, domid=9) == -XEN_EINVAL  # the index is looked at first
    assert guest.call(HVM, hvm.HVMOP_set_param, BAD) == -XEN_EFAULT
    assert guest.call(HVM, hvm.HVMOP_get_param, BAD) == -XEN_EFAULT


def test_values_of_parameters(guest: Guest) -> None:
    # hvm_set_param
    assert set_param(guest, hvm.HVM_PARAM_X87_FIP_WIDTH, 4) == 0
    assert set_param(guest, hvm.HVM_PARAM_X87_FIP_WIDTH, 5) == -XEN_EINVAL
    assert get_param(guest, hvm.HVM_PARAM_X87_FIP_WIDTH) == 4
    assert set_param(guest, hvm.HVM_PARAM_VM86_TSS, 0x5000) == 0
    assert get_param(guest, hvm.HVM_PARAM_VM86_TSS) == 0x5000
    assert get_param(guest, hvm.HVM_PARAM_VM86_TSS_SIZED) == 128 << 32 | 0x5000
    assert set_param(guest, hvm.HVM_PARAM_VM86_TSS_SIZED, 0xFFFF << 32 | 0x6000) == 0
    assert get_param(guest, hvm.HVM_PARAM_VM86_TSS_SIZED) == 8329 << 32 | 0x6000


@pytest.mark.parametrize(
    ("index", "value"),
    [(hvm.HVM_PARAM_VM86_TSS, 1 << 32), (hvm.HVM_PARAM_VM86_TSS_SIZED, 103 << 32)],
)
def test_values_that_kill(guest: Guest, index: int, value: int) -> None:
    # hvm_set_param: domain_crash
    with pytest.raises(GuestStop) as stop:
        set_param(guest, index, value)
    assert stop.value.code == sched.SHUTDOWN_crash


def test_how_events_arrive(guest: Guest) -> None:
    # hvm_set_callback_via of xen/arch/x86/hvm/irq.c, hvm_latch_shinfo_size
    assert guest.domain.callback_vector() == 0
    assert set_param(guest, hvm.HVM_PARAM_CALLBACK_IRQ, 2 << 56 | 0xF3) == 0
    assert guest.domain.callback_vector() == 0xF3
    assert guest.domain.shared.is_32bit == (not guest.in_long_mode)
    # Without interrupt controllers, no other way can be set, and the old one stays.
    assert set_param(guest, hvm.HVM_PARAM_CALLBACK_IRQ, 9) == 0
    assert get_param(guest, hvm.HVM_PARAM_CALLBACK_IRQ) == 9
    assert guest.domain.callback_vector() == 0xF3
    port = guest.domain.events.bind_ipi(0)
    assert not guest.domain.pending_upcall()
    guest.domain.events.send(port)
    assert guest.domain.pending_upcall()


def test_a_vector_of_ones_own(guest: Guest) -> None:
    # hvmop_set_evtchn_upcall_vector
    cmd, layout = hvm.HVMOP_set_evtchn_upcall_vector, hvm.XEN_HVM_EVTCHN_UPCALL_VECTOR
    assert guest.op(HVM, cmd, layout, vector=0x0F) == -XEN_EINVAL
    assert guest.op(HVM, cmd, layout, vector=0x0F, vcpu=1) == -XEN_EINVAL
    assert guest.op(HVM, cmd, layout, vector=0x20, vcpu=1) == -XEN_ENOENT
    assert guest.op(HVM, cmd, layout, vector=0x20) == 0
    # It goes by the local APIC, which is told at once (hvm_assert_evtchn_irq).
    assert (guest.domain.upcall_vector(), guest.domain.callback_vector()) == (0x20, 0)
    assert guest.domain.take_upcall()
    assert not guest.domain.take_upcall()


def test_types_of_memory(guest: Guest) -> None:
    # hvmop_get_mem_type
    layout = hvm.XEN_HVM_GET_MEM_TYPE

    def kind(pfn: int, domid: int = DOMID_SELF) -> int:
        result = guest.op(HVM, hvm.HVMOP_get_mem_type, layout, domid=domid, pfn=pfn)
        return int(guest.get(layout)["mem_type"]) if result == 0 else result

    assert kind(0x100) == hvm.HVMMEM_ram_rw
    assert kind(0x5000) == hvm.HVMMEM_mmio_dm
    assert kind(0x100, domid=2) == -XEN_EPERM
    assert kind(0x100, domid=9) == -XEN_ESRCH


def test_the_time(guest: Guest) -> None:
    pass_time(guest, 7 * MS)
    assert guest.call(HVM, hvm.HVMOP_get_time, ARG) == 0
    assert guest.get(hvm.XEN_HVM_GET_TIME)["now"] == 7 * MS
    assert guest.call(HVM, hvm.HVMOP_get_time, BAD) == -XEN_EFAULT


def test_other_operations_of_hvm(guest: Guest) -> None:
    # do_hvm_op
    for cmd in (hvm.HVMOP_flush_tlbs, hvm.HVMOP_guest_request_vm_event):
        assert guest.call(HVM, cmd, 0) == 0
        assert guest.call(HVM, cmd, ARG) == -XEN_EINVAL
    assert guest.call(HVM, hvm.HVMOP_altp2m, BAD) == -XEN_EOPNOTSUPP
    dying = hvm.XEN_HVM_PAGETABLE_DYING
    assert guest.op(HVM, hvm.HVMOP_pagetable_dying, dying, domid=DOMID_SELF) == -XEN_EINVAL
    assert guest.op(HVM, hvm.HVMOP_pagetable_dying, dying, domid=2) == -XEN_EOPNOTSUPP
    trace = hvm.XEN_HVM_XENTRACE
    assert guest.op(HVM, hvm.HVMOP_xentrace, trace, event=0xFFF, extra_bytes=28) == 0
    assert guest.op(HVM, hvm.HVMOP_xentrace, trace, event=0x1000) == -XEN_EINVAL
    assert guest.op(HVM, hvm.HVMOP_xentrace, trace, extra_bytes=29) == -XEN_EINVAL
    for cmd in (2, 3, 4, 6, 99):
        assert guest.call(HVM, cmd, ARG) == -XEN_ENOSYS
