"""Making hypercalls fail: which one does, how it is named, what a kernel sees of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels.building import build_kernel
from machine.emulated import small_guests

from xenlive.abi.hypercalls.xen import XEN_ENOMEM, XEN_ENOSPC
from xenlive.errors import ConfigError
from xenlive.machine.emulated.lens.faults import Fault, Faults, call_names, error_in, parse_fault
from xenlive.machine.emulated.world import World

VERSION = 17


@pytest.mark.parametrize(
    ("result", "name"),
    [(None, ""), (0, ""), (22, ""), (-1, "EPERM"), (-22, "EINVAL"), (-4095, "4095"), (-4096, "")],
)
def test_which_results_are_errors(result: int | None, name: str) -> None:
    assert error_in(result) == name


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("memory_op.populate_physmap:3", Fault("memory_op.populate_physmap", 3, XEN_ENOMEM)),
        ("memory_op.populate_physmap:3=EPERM", Fault("memory_op.populate_physmap", 3, 1)),
        ("MEMORY_OP.Populate_Physmap:1=eperm", Fault("memory_op.populate_physmap", 1, 1)),
        ("event_channel_op:2", Fault("event_channel_op", 2, XEN_ENOSPC)),
        ("set_timer_op:1=12", Fault("set_timer_op", 1, 12)),
        ("xen_version.version:1", Fault("xen_version.version", 1, 22)),
    ],
)
def test_a_fault_is_read(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault
    assert parse_fault(str(fault)) == fault


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not CALL"),
        ("memory_op", "not CALL"),
        ("memory_op:", "not CALL"),
        ("memory_op:0", "not CALL"),
        ("memory_op:-1", "not CALL"),
        ("memory_op:²", "not CALL"),
        ("memory_op:1.5", "not CALL"),
        ("memory_op.populate:1", "near it: memory_op.populate_physmap"),
        ("event_chanel_op:1", "near it: event_channel_op"),
        ("zzzzzzzzzz:1", "no hypercall 'zzzzzzzzzz'"),
        ("memory_op:1=", "no errno ''"),
        ("memory_op:1=ENOMEN", "near it: ENOMEM"),
        ("memory_op:1=0", "no errno '0'"),
        ("memory_op:1=4096", "no errno '4096'"),
    ],
)
def test_what_is_none_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_fault(text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@given(st.text(max_size=40))
def test_any_text_is_a_fault_or_refused(text: str) -> None:
    try:
        parse_fault(text)
    except ConfigError:
        return


def test_every_name_can_be_made_to_fail() -> None:
    names = call_names()
    assert {"memory_op.add_to_physmap", "grant_table_op.copy", "sched_op.shutdown"} <= set(names)
    assert [parse_fault(f"{name}:1").name for name in names] == names


def test_calls_are_counted_by_operation_and_in_all() -> None:
    faults = Faults([parse_fault("event_channel_op.send:2"), parse_fault("event_channel_op:4=1")])
    send, close = (4, 0, 0, 0, 0), (3, 0, 0, 0, 0)
    found = [faults(32, args) for args in (send, close, send, close, send)]
    assert found == [0, 0, XEN_ENOSPC, 1, 0]
    assert faults.waiting == []
    assert faults(VERSION, (0,) * 5) == 0


def test_the_guest_gets_the_errno_and_nothing_else_happens() -> None:
    with World() as world:
        guest = world.add_guest(memory_bytes=16 << 20)
        guest.boot(build_kernel(small_guests.CRASHES_DEEP).read_bytes())
        faults = Faults([parse_fault("xen_version.version:1=ENOSYS")])
        guest.domain.refuse = faults
        world.run()
        assert guest.vcpu.recent[0].result == -38
        assert [str(fault) for fault in faults.happened] == ["xen_version.version:1=ENOSYS"]
        assert guest.domain.last_refusal is not None
        assert guest.domain.last_refusal.why == "made to fail"
