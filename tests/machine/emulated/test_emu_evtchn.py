"""Event channels by hypercall: what Xen 4.17 grants and refuses.

Each test names the function of `xen/common/event_channel.c` (or another file) it was read in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from machine.emulated.guests import ARG, BAD, Guest, World

from xenlive.abi.hypercalls import event_channel as abi
from xenlive.abi.hypercalls.shared_info import VCPU_INFO, VCPU_INFO_32
from xenlive.abi.hypercalls.xen import (
    DOMID_SELF,
    VIRQ_DEBUG,
    VIRQ_TIMER,
    XEN_EBUSY,
    XEN_EEXIST,
    XEN_EFAULT,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSPC,
    XEN_ENOSYS,
    XEN_EPERM,
    XEN_ESRCH,
)
from xenlive.errors import HypercallError
from xenlive.machine.emulated.hypervisor.evtchn import MAX_PORT, EventChannels, HandlerDelivery

EVTCHN = "event_channel_op"
PENDING, MASK_64, MASK_32 = 2048, 2560, 2176


@pytest.fixture
def world() -> Iterator[World]:
    made = World(2)
    yield made
    made.close()


@pytest.fixture
def guest(world: World) -> Guest:
    return world.guests[0]


def alloc(guest: Guest, remote: int = DOMID_SELF, dom: int = DOMID_SELF) -> int:
    """A new unbound port, or a negative errno (`evtchn_alloc_unbound`)."""
    op = abi.EVTCHN_ALLOC_UNBOUND
    fields = {"dom": dom, "remote_dom": remote}
    result = guest.op(EVTCHN, abi.EVTCHNOP_alloc_unbound, op, **fields)
    return int(guest.get(op)["port"]) if result == 0 else result


def bind(guest: Guest, remote: int, port: int) -> int:
    op = abi.EVTCHN_BIND_INTERDOMAIN
    fields = {"remote_dom": remote, "remote_port": port}
    result = guest.op(EVTCHN, abi.EVTCHNOP_bind_interdomain, op, **fields)
    return int(guest.get(op)["local_port"]) if result == 0 else result


def bind_virq(guest: Guest, virq: int, vcpu: int = 0) -> int:
    op = abi.EVTCHN_BIND_VIRQ
    result = guest.op(EVTCHN, abi.EVTCHNOP_bind_virq, op, virq=virq, vcpu=vcpu)
    return int(guest.get(op)["port"]) if result == 0 else result


def bind_ipi(guest: Guest, vcpu: int = 0) -> int:
    op = abi.EVTCHN_BIND_IPI
    result = guest.op(EVTCHN, abi.EVTCHNOP_bind_ipi, op, vcpu=vcpu)
    return int(guest.get(op)["port"]) if result == 0 else result


def send(guest: Guest, port: int) -> int:
    return guest.op(EVTCHN, abi.EVTCHNOP_send, abi.EVTCHN_SEND, port=port)


def close(guest: Guest, port: int) -> int:
    return guest.op(EVTCHN, abi.EVTCHNOP_close, abi.EVTCHN_CLOSE, port=port)


def status(guest: Guest, port: int, dom: int = DOMID_SELF) -> tuple[int, bytes] | int:
    result = guest.op(EVTCHN, abi.EVTCHNOP_status, abi.EVTCHN_STATUS, dom=dom, port=port)
    answer = guest.get(abi.EVTCHN_STATUS)
    return (answer["status"], answer["u"]) if result == 0 else result


def pending(guest: Guest, port: int) -> bool:
    page = guest.domain.space.xen_frame(0).view
    return bool(page[PENDING + port // 8] >> port % 8 & 1)


def selector(guest: Guest) -> int:
    page = guest.domain.space.xen_frame(0).view
    layout = VCPU_INFO_32 if guest.domain.shared.is_32bit else VCPU_INFO
    return int(layout.decode(page)["evtchn_pending_sel"])


def test_the_toolstack_has_ports_1_and_2_and_the_guest_goes_on(guest: Guest) -> None:
    # libxl__build_pre: Xenstore's port is made first, then the console's.
    assert [port for port, _ in guest.domain.events.in_use()] == [1, 2]
    assert [alloc(guest), bind_virq(guest, VIRQ_TIMER), bind_ipi(guest)] == [3, 4, 5]


def test_the_lowest_free_port_is_next(guest: Guest) -> None:
    # get_free_port
    ports = [alloc(guest) for _ in range(4)]
    assert close(guest, ports[1]) == 0
    assert alloc(guest) == ports[1]


@pytest.mark.parametrize(
    ("dom", "errno"), [(0, XEN_EPERM), (2, XEN_EPERM), (9, XEN_ESRCH), (0x7FF1, XEN_ESRCH)]
)
def test_ports_of_other_domains_are_not_to_be_made(guest: Guest, dom: int, errno: int) -> None:
    # evtchn_alloc_unbound: rcu_lock_domain_by_any_id, then XSM_TARGET
    assert alloc(guest, dom=dom) == -errno


def test_ones_own_id_is_as_good_as_self(guest: Guest) -> None:
    assert alloc(guest, dom=1) == 3


def test_no_port_beyond_what_the_toolstack_allows(world: World) -> None:
    # evtchn_allocate_port: port > d->max_evtchn_port, which libxl makes 1023
    guest = world.guests[0]
    got = [guest.domain.events.bind_ipi(0) for _ in range(3, MAX_PORT + 1)]
    assert got[-1] == MAX_PORT
    assert alloc(guest) == -XEN_ENOSPC
    # Whose ports they are is asked only when there is one.
    assert alloc(world.guests[1], dom=1) == -XEN_ENOSPC


def test_two_domains_meet(world: World) -> None:
    # evtchn_bind_interdomain: the new end is pending at once, "we may have lost notifications"
    ours, theirs = world.guests
    offered = alloc(theirs, remote=1)
    port = bind(ours, 2, offered)
    assert pending(ours, port)
    assert not pending(theirs, offered)
    assert status(ours, port) == (abi.EVTCHNSTAT_interdomain, struct.pack("<HHI", 2, 0, offered))
    assert status(theirs, offered) == (abi.EVTCHNSTAT_interdomain, struct.pack("<HHI", 1, 0, port))
    assert send(ours, port) == 0
    assert pending(theirs, offered)


def test_a_domain_meets_itself(guest: Guest) -> None:
    offered = alloc(guest)
    port = bind(guest, DOMID_SELF, offered)
    assert send(guest, offered) == 0
    assert pending(guest, port)
    assert close(guest, port) == 0
    assert status(guest, offered) == (abi.EVTCHNSTAT_unbound, struct.pack("<H6x", 1))


@pytest.mark.parametrize("port", [0, 1, 3, 63, 64, 5000, 0xFFFFFFFF])
def test_a_port_that_is_not_for_us(world: World, port: int) -> None:
    # evtchn_bind_interdomain: no such port, not unbound, or for another domain
    assert bind(world.guests[0], 2, port) == -XEN_EINVAL


def test_a_domain_that_is_not_there(guest: Guest) -> None:
    assert bind(guest, 9, 3) == -XEN_ESRCH


def test_closing_leaves_the_other_end_unbound(world: World) -> None:
    # evtchn_close: chn2->state = ECS_UNBOUND for d1
    ours, theirs = world.guests
    offered = alloc(theirs, remote=1)
    port = bind(ours, 2, offered)
    assert close(ours, port) == 0
    assert not pending(ours, port)
    assert status(theirs, offered) == (abi.EVTCHNSTAT_unbound, struct.pack("<H6x", 1))
    assert send(theirs, offered) == 0  # silently dropped, as to any unbound port
    assert bind(ours, 2, offered) == port


@pytest.mark.parametrize("port", [0, 5, 64, 0xFFFFFFFF])
def test_closing_or_sending_where_nothing_is(guest: Guest, port: int) -> None:
    # evtchn_close, evtchn_send: ECS_FREE, ECS_RESERVED or no such port
    assert close(guest, port) == -XEN_EINVAL
    assert send(guest, port) == -XEN_EINVAL


def test_a_virq_is_not_for_sending(guest: Guest) -> None:
    # evtchn_send: default
    assert send(guest, bind_virq(guest, VIRQ_TIMER)) == -XEN_EINVAL


def test_an_ipi_comes_back(guest: Guest) -> None:
    port = bind_ipi(guest)
    assert send(guest, port) == 0
    assert pending(guest, port)
    assert selector(guest) == 1
    assert guest.domain.pending_upcall()


@pytest.mark.parametrize(
    ("virq", "vcpu", "errno"),
    [
        (24, 0, XEN_EINVAL),
        (0xFFFFFFFF, 0, XEN_EINVAL),
        (2, 1, XEN_EINVAL),  # a global one belongs to vcpu 0
        (VIRQ_DEBUG, 1, XEN_ENOENT),
        (VIRQ_TIMER, 7, XEN_ENOENT),
    ],
)
def test_a_virq_that_is_not_there(guest: Guest, virq: int, vcpu: int, errno: int) -> None:
    # evtchn_bind_virq
    assert bind_virq(guest, virq, vcpu) == -errno


def test_a_virq_is_bound_once(guest: Guest) -> None:
    # evtchn_bind_virq: virq_to_evtchn is not 0
    port = bind_virq(guest, VIRQ_TIMER)
    assert bind_virq(guest, VIRQ_TIMER) == -XEN_EEXIST
    assert status(guest, port) == (abi.EVTCHNSTAT_virq, struct.pack("<I4x", VIRQ_TIMER))
    assert close(guest, port) == 0
    assert bind_virq(guest, VIRQ_TIMER) == port


def test_an_ipi_of_a_vcpu_that_is_not_there(guest: Guest) -> None:
    assert bind_ipi(guest, 1) == -XEN_ENOENT


def test_interrupt_lines_can_be_bound_although_nothing_rings(guest: Guest) -> None:
    # evtchn_bind_pirq: for HVM guests without a check of permission
    op = abi.EVTCHN_BIND_PIRQ
    assert guest.op(EVTCHN, abi.EVTCHNOP_bind_pirq, op, pirq=9) == 0
    port = guest.get(op)["port"]
    assert status(guest, port) == (abi.EVTCHNSTAT_pirq, struct.pack("<I4x", 9))
    assert guest.op(EVTCHN, abi.EVTCHNOP_bind_pirq, op, pirq=9) == -XEN_EEXIST
    assert guest.op(EVTCHN, abi.EVTCHNOP_bind_pirq, op, pirq=1000) == -XEN_EINVAL
    assert send(guest, port) == -XEN_EINVAL
    assert close(guest, port) == 0
    assert guest.op(EVTCHN, abi.EVTCHNOP_bind_pirq, op, pirq=9) == 0


def test_status_of_ports_free_reserved_and_absent(guest: Guest) -> None:
    # evtchn_status: 64 channels come at once, a free one of them is closed, the next is no port
    for port in (0, 5, 63):
        assert status(guest, port) == (abi.EVTCHNSTAT_closed, bytes(8))
    for port in (64, 4096, 0xFFFFFFFF):
        assert status(guest, port) == -XEN_EINVAL
    for _ in range(3, 65):
        alloc(guest)
    assert status(guest, 127) == (abi.EVTCHNSTAT_closed, bytes(8))


@pytest.mark.parametrize(
    ("dom", "port", "errno"), [(2, 1, XEN_EPERM), (2, 64, XEN_EINVAL), (9, 1, XEN_ESRCH)]
)
def test_status_of_others_is_not_told(guest: Guest, dom: int, port: int, errno: int) -> None:
    # evtchn_status: the port is looked for before XSM_TARGET
    assert status(guest, port, dom) == -errno


def test_status_leaves_what_it_does_not_say(guest: Guest) -> None:
    # The union is the caller's but for what the state has in it.
    fields = {"dom": DOMID_SELF, "port": alloc(guest), "u": b"\xff" * 8}
    assert guest.op(EVTCHN, abi.EVTCHNOP_status, abi.EVTCHN_STATUS, **fields) == 0
    assert guest.get(abi.EVTCHN_STATUS)["u"] == struct.pack("<H", 1) + b"\xff" * 6


def test_binding_to_a_vcpu(guest: Guest) -> None:
    # evtchn_bind_vcpu: not IPIs, not virqs that each vcpu has
    op = abi.EVTCHN_BIND_VCPU

    def move(port: int, vcpu: int) -> int:
        return guest.op(EVTCHN, abi.EVTCHNOP_bind_vcpu, op, port=port, vcpu=vcpu)

    assert move(alloc(guest), 0) == 0
    assert move(bind_virq(guest, 2), 0) == 0
    assert move(bind_virq(guest, VIRQ_TIMER), 0) == -XEN_EINVAL
    assert move(bind_ipi(guest), 0) == -XEN_EINVAL
    assert move(0, 0) == -XEN_EINVAL
    assert move(200, 0) == -XEN_EINVAL
    assert move(200, 1) == -XEN_ENOENT  # the vcpu is looked for first


def test_unmask_tells_of_what_waits(guest: Guest) -> None:
    # evtchn_2l_unmask
    port = bind_ipi(guest)
    page = guest.domain.space.xen_frame(0).view
    page[MASK_64 + port // 8] = 1 << port % 8
    assert send(guest, port) == 0
    assert pending(guest, port)
    assert not guest.domain.pending_upcall()
    op = abi.EVTCHN_UNMASK
    assert guest.op(EVTCHN, abi.EVTCHNOP_unmask, op, port=port) == 0
    assert page[MASK_64 + port // 8] == 0
    assert guest.domain.pending_upcall()
    # A free port's bit is cleared too; a port that is none is refused.
    assert guest.op(EVTCHN, abi.EVTCHNOP_unmask, op, port=40) == 0
    assert guest.op(EVTCHN, abi.EVTCHNOP_unmask, op, port=64) == -XEN_EINVAL


def test_a_pending_event_is_announced_once(guest: Guest) -> None:
    # evtchn_2l_set_pending: test_and_set of the pending bit, then of the selector
    port = bind_ipi(guest)
    page = guest.domain.space.xen_frame(0).view
    send(guest, port)
    page[0] = 0  # evtchn_upcall_pending
    send(guest, port)
    assert not guest.domain.pending_upcall()
    page[PENDING] = 0
    send(guest, port)
    assert not guest.domain.pending_upcall()  # the selector still says so
    page[8:16] = bytes(8)
    page[PENDING] = 0
    send(guest, port)
    assert guest.domain.pending_upcall()


def test_the_32_bit_page_has_other_places(guest: Guest) -> None:
    guest.domain.latch(is_64bit=False)
    ports = [bind_ipi(guest) for _ in range(40)]
    page = guest.domain.space.xen_frame(0).view
    page[MASK_32 + ports[39] // 8] = 1 << ports[39] % 8
    send(guest, ports[39])
    assert not guest.domain.pending_upcall()
    send(guest, ports[35])
    assert selector(guest) == 1 << ports[35] // 32 == 2
    page[MASK_32 + ports[39] // 8] = 0


def test_reset_closes_everything(world: World) -> None:
    # evtchn_reset: the console's and Xenstore's ports too
    ours, theirs = world.guests
    offered = alloc(theirs, remote=1)
    bind(ours, 2, offered)
    bind_virq(ours, VIRQ_TIMER)
    op = abi.EVTCHN_RESET
    assert ours.op(EVTCHN, abi.EVTCHNOP_reset, op, dom=DOMID_SELF) == 0
    assert list(ours.domain.events.in_use()) == []
    assert status(theirs, offered) == (abi.EVTCHNSTAT_unbound, struct.pack("<H6x", 1))
    assert bind_virq(ours, VIRQ_TIMER) == 1
    assert ours.op(EVTCHN, abi.EVTCHNOP_reset, op, dom=2) == -XEN_EPERM
    assert ours.op(EVTCHN, abi.EVTCHNOP_reset, op, dom=9) == -XEN_ESRCH
    assert ours.op(EVTCHN, abi.EVTCHNOP_reset_cont, op, dom=DOMID_SELF) == -XEN_EBUSY


def test_bits_have_no_priorities(guest: Guest) -> None:
    # evtchn_port_set_priority: the 2-level ABI has no such operation
    priority = abi.EVTCHN_SET_PRIORITY
    for port, errno in ((3, XEN_ENOSYS), (64, XEN_EINVAL)):
        assert guest.op(EVTCHN, abi.EVTCHNOP_set_priority, priority, port=port) == -errno


@pytest.mark.parametrize("cmd", range(15))
def test_arguments_that_are_not_there(guest: Guest, cmd: int) -> None:
    # do_event_channel_op: copy_from_guest
    assert guest.call(EVTCHN, cmd, BAD) == -XEN_EFAULT


@pytest.mark.parametrize("cmd", [15, 0xFFFFFFFF])
def test_operations_that_are_not_there(guest: Guest, cmd: int) -> None:
    assert guest.call(EVTCHN, cmd, ARG) == -XEN_ENOSYS


def test_a_command_is_32_bits_wide(guest: Guest) -> None:
    # do_event_channel_op(int cmd, …)
    op = abi.EVTCHN_BIND_IPI
    assert guest.call(EVTCHN, 1 << 32 | abi.EVTCHNOP_bind_ipi, guest.put(op)) == 0


def test_a_back_end_hears_what_a_guest_sends(world: World) -> None:
    heard: list[str] = []
    guest = world.guests[0]
    port = world.host.events.bind_interdomain(guest.domain.events, 1)
    assert not pending(guest, 1)
    world.host.host_events.handle(port, lambda: heard.append("event"))
    assert heard == ["event"]  # the one that stands for what was lost
    assert send(guest, 1) == 0
    assert heard == ["event", "event"]
    world.host.events.send(port)
    assert pending(guest, 1)
    assert close(guest, 1) == 0
    world.host.events.close(port)
    with pytest.raises(HypercallError):
        world.host.events.send(port)


def test_handlers_need_no_queues() -> None:
    delivery = HandlerDelivery()
    events = EventChannels(0, delivery)
    port = events.bind_ipi(0)
    events.send(port)
    assert events.poll(port)
    events.unmask(port)
    with pytest.raises(HypercallError) as refused:
        events.set_priority(port, 3)
    assert refused.value.errno == XEN_ENOSYS
    with pytest.raises(HypercallError):
        events.poll(port + 1)
