"""Traces: what is said of each call, page, grant and event; nothing that a guest gives raises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels.building import build_kernel
from kernels.handover.script_kernel import script_kernel
from machine.emulated import small_guests

from xenlive.abi.hypercalls import event_channel, grant_table, memory, xen
from xenlive.machine.emulated.build import Module
from xenlive.machine.emulated.lens.arguments import arguments
from xenlive.machine.emulated.lens.trace import Trace
from xenlive.machine.emulated.world import World

MEMORY_BYTES = 16 << 20
AT = 0x1000


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


def reader(data: bytes, at: int = AT) -> Any:
    """Memory with `data` at one place and nothing elsewhere."""

    def read(address: int, size: int) -> bytes | None:
        start = address - at
        return data[start : start + size] if 0 <= start <= len(data) - size else None

    return read


def traced(world: World, kernel: bytes, cmdline: str = "", **how: Any) -> list[str]:
    said: list[str] = []
    guest = world.add_guest(memory_bytes=MEMORY_BYTES)
    guest.boot(kernel, cmdline)
    Trace(guest, said.append, **how)
    world.run()
    return said


# ---- arguments ----------------------------------------------------------------------------------


def test_arguments_by_name() -> None:
    bind = event_channel.EVTCHN_BIND_INTERDOMAIN.encode(
        remote_dom=0x7FF0, remote_port=3, local_port=4
    )
    args = (event_channel.EVTCHNOP_bind_interdomain, AT, 0, 0, 0)
    said = arguments(xen.HYPERVISOR_event_channel_op, args, True, reader(bind))
    assert said == "remote_dom=self remote_port=3 local_port=4"


def test_arguments_that_are_flags_states_and_arrays() -> None:
    one = {"host_addr": 0x200000, "flags": 6, "ref": 8, "dom": 2, "status": -3, "handle": 5}
    data = grant_table.GNTTAB_MAP_GRANT_REF.encode(**one, dev_bus_addr=0) * 6
    args = (grant_table.GNTTABOP_map_grant_ref, AT, 6, 0, 0)
    said = arguments(xen.HYPERVISOR_grant_table_op, args, False, reader(data))
    assert said.startswith(
        "[host_addr=0x200000 flags=host_map|readonly ref=8 dom=2 status=bad_gntref"
    )
    assert said.endswith("and 2 more")


@pytest.mark.parametrize("is_64bit", [True, False])
def test_frames_that_a_list_names(is_64bit: bool) -> None:
    layout = memory.XEN_MEMORY_RESERVATION if is_64bit else memory.XEN_MEMORY_RESERVATION_32
    head = layout.encode(
        extent_start=AT + layout.size, nr_extents=6, extent_order=0, mem_flags=0, domid=1
    )
    size = 8 if is_64bit else 4
    frames = b"".join(n.to_bytes(size, "little") for n in range(0x100, 0x106))
    args = (memory.XENMEM_populate_physmap, AT, 0, 0, 0)
    said = arguments(xen.HYPERVISOR_memory_op, args, is_64bit, reader(head + frames))
    assert said.startswith("extent_start=(0x100,0x101,0x102,0x103,… 2 more) nr_extents=6")


def test_a_multicall_is_what_is_in_it() -> None:
    send = event_channel.EVTCHN_SEND.encode(port=9)
    entry = xen.MULTICALL_ENTRY.encode(
        op=32, result=-22, arg0=4, arg1=AT + 64, arg2=0, arg3=0, arg4=0, arg5=0
    )
    said = arguments(xen.HYPERVISOR_multicall, (AT, 1, 0, 0, 0), True, reader(entry + send))
    assert said == "event_channel_op.send(port=9) = -22"


def test_arguments_that_are_not_there() -> None:
    said = arguments(xen.HYPERVISOR_event_channel_op, (4, 0xDEAD0000, 0, 0, 0), True, reader(b""))
    assert said == "0xdead0000 (not in memory)"


@given(
    st.integers(0, 63) | st.integers(0, (1 << 64) - 1),
    st.tuples(*[st.integers(0, 40) | st.just(AT) | st.integers(0, (1 << 64) - 1)] * 5),
    st.booleans(),
    st.binary(max_size=200),
)
def test_arguments_of_any_call(
    number: int, args: tuple[int, ...], is_64bit: bool, data: bytes
) -> None:
    said = arguments(number, args, is_64bit, reader(data))
    assert "\n" not in said
    assert len(said) < 4000


# ---- traces -------------------------------------------------------------------------------------


def test_a_call_and_what_came_of_it(world: World) -> None:
    said = traced(world, build_kernel(small_guests.SLEEPS).read_bytes())
    call = next(n for n, line in enumerate(said) if "add_to_physmap" in line)
    assert "space=shared_info" in said[call]
    assert "gpfn=0x200" in said[call]
    assert "= 0  from start+" in said[call]
    pages = [line.strip() for line in said[call + 1 : call + 3]]
    assert pages == ["page 0x200: ram -> hole", "page 0x200: hole -> xen"]
    assert all("ms  " in line or line.startswith(" " * 21) for line in said)


def test_a_refusal_says_why(world: World) -> None:
    body = "pushl $77\n hypercall 32, $4, %esp\n shutdown 0"
    said = traced(world, build_kernel(small_guests.kernel(body)).read_bytes())
    assert "port=77 = -22 EINVAL (no port 77)" in said[0]
    assert "sched_op.shutdown reason=poweroff does not return" in said[1]


def test_exceptions_if_they_are_asked_for(world: World) -> None:
    kernel = build_kernel(small_guests.TRIPLE_FAULTS).read_bytes()
    assert traced(world, kernel) == []
    (said,) = traced(world, kernel, exceptions=True)
    assert "exception #UD  in start+" in said


@pytest.mark.peer
def test_lines_of_json(world: World) -> None:
    said = traced(world, script_kernel(64), "ticks 1", as_json=True, exceptions=True)
    found = [json.loads(line) for line in said]
    assert {one["kind"] for one in found} == {"hypercall", "page", "event", "interrupt"}
    assert all(one["guest"] == "guest" for one in found)
    times = [one["time_ns"] for one in found]
    assert times == sorted(times)
    bind = next(one for one in found if one.get("name") == "event_channel_op.bind_virq")
    assert bind["result"] == 0
    assert bind["arguments"].startswith("virq=TIMER")
    assert bind["from"].startswith("xen_start+")


@pytest.mark.peer
def test_a_guest_does_not_notice(world: World) -> None:
    runs = []
    for is_traced in (False, True):
        guest = world.add_guest(memory_bytes=MEMORY_BYTES)
        guest.boot(script_kernel(64), "make 4; ticks 3; kexec 0", [Module(script_kernel(32), "")])
        began = world.clock.now_ns
        if is_traced:
            Trace(guest, str, exceptions=True)
        world.run()
        assert guest.stop is not None
        runs.append((guest.stop.code, guest.vcpu.blocks, world.clock.now_ns - began))
        world.remove_guest(guest)
    assert runs[0][:2] == runs[1][:2]


def test_grants_in_use(world: World) -> None:
    said: list[str] = []
    guest = world.add_guest(memory_bytes=MEMORY_BYTES)
    guest.boot(build_kernel(small_guests.SPINS).read_bytes())
    Trace(guest, said.append)
    guest.domain.grants.seed(8, 0, 0x300)
    pages = guest.domain.grants_for(0)
    pages.map(8)
    pages.unmap(8)
    assert [line.split("ms  ")[1] for line in said] == [
        "grant 8 (page 0x300): in use by domain 0",
        "grant 8 (page 0x300): let go by domain 0",
    ]
