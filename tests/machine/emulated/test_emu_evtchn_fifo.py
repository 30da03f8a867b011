"""FIFO event channels: xen/common/event_fifo.c of Xen 4.17, and a guest's side as Linux has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine.emulated.guests import Guest, World

from xenlive.abi.hypercalls import event_channel as abi
from xenlive.abi.hypercalls.xen import (
    DOMID_SELF,
    VIRQ_TIMER,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSPC,
    XEN_EOPNOTSUPP,
)
from xenlive.memory.address import PAGE_SIZE

EVTCHN = "event_channel_op"
CONTROL, ARRAY = 0x100, 0x101
OFFSET = 0x80
PENDING, MASKED, LINKED = 1 << 31, 1 << 30, 1 << 29
LINK = (1 << 17) - 1
DEFAULT = 7


@pytest.fixture
def guest() -> Iterator[Guest]:
    world = World()
    yield world.guests[0]
    world.close()


class Queues:
    """The guest's side: its words and its control block."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._block = guest.domain.space.frame_view(self._index(CONTROL))[OFFSET:].cast("I")
        self._words = guest.domain.space.frame_view(self._index(ARRAY)).cast("I")

    def _index(self, gfn: int) -> int:
        mapping = self.guest.domain.space.lookup(gfn)
        assert mapping is not None
        return mapping.frame.index

    @property
    def ready(self) -> int:
        """Queues that were announced."""
        return self._block[0]

    def word(self, port: int) -> int:
        return self._words[port]

    def set_word(self, port: int, value: int) -> None:
        self._words[port] = value

    def take(self, queue: int = DEFAULT) -> list[int]:
        """All ports with an event in a queue, in order: consume_one_event of Linux."""
        self._block[0] &= ~(1 << queue)
        found, port = [], self._block[2 + queue]
        while port:
            word = self._words[port]
            self._words[port] = word & ~(LINKED | LINK)
            if word & PENDING and not word & MASKED:
                self._words[port] &= ~PENDING
                found.append(port)
            port = word & LINK
        self._block[2 + queue] = 0
        self.guest.domain.shared._info[0] = 0
        return found


def init(guest: Guest, **fields: int) -> int:
    asked = {"control_gfn": CONTROL, "offset": OFFSET, **fields}
    return guest.op(EVTCHN, abi.EVTCHNOP_init_control, abi.EVTCHN_INIT_CONTROL, **asked)


def expand(guest: Guest, gfn: int = ARRAY) -> int:
    return guest.op(EVTCHN, abi.EVTCHNOP_expand_array, abi.EVTCHN_EXPAND_ARRAY, array_gfn=gfn)


def turn_on(guest: Guest) -> Queues:
    assert init(guest) == 0
    assert guest.get(abi.EVTCHN_INIT_CONTROL)["link_bits"] == 17
    assert expand(guest) == 0
    return Queues(guest)


def send(guest: Guest, port: int) -> None:
    assert guest.op(EVTCHN, abi.EVTCHNOP_send, abi.EVTCHN_SEND, port=port) == 0


def ports(guest: Guest, count: int) -> list[int]:
    """New ports that the guest notifies itself by."""
    return [guest.domain.events.bind_ipi(0) for _ in range(count)]


def priority(guest: Guest, port: int, value: int) -> int:
    layout = abi.EVTCHN_SET_PRIORITY
    return guest.op(EVTCHN, abi.EVTCHNOP_set_priority, layout, port=port, priority=value)


# ---- setting up ---------------------------------------------------------------------------------


def test_what_is_refused(guest: Guest) -> None:
    # evtchn_fifo_init_control, map_guest_page, evtchn_fifo_expand_array
    assert expand(guest) == -XEN_EOPNOTSUPP
    assert init(guest, control_gfn=0x5000) == -XEN_EINVAL
    assert init(guest, vcpu=1) == -XEN_ENOENT
    assert init(guest, offset=4) == -XEN_EINVAL
    assert init(guest, offset=4096 - 64) == -XEN_EINVAL
    assert expand(guest) == -XEN_EOPNOTSUPP
    assert init(guest, offset=4096 - 72) == 0
    assert init(guest) == -XEN_EINVAL  # map_control_block: there is one
    assert expand(guest, 0x5000) == -XEN_EINVAL
    assert [expand(guest, ARRAY + page) for page in range(128)] == [0] * 128
    assert expand(guest, ARRAY) == -XEN_ENOSPC  # add_page_to_event_array


def test_an_event_is_linked_and_announced(guest: Guest) -> None:
    # evtchn_fifo_set_pending
    queues = turn_on(guest)
    first, second = ports(guest, 2)
    send(guest, first)
    assert queues.ready == 1 << DEFAULT
    assert guest.domain.pending_upcall()
    assert queues.word(first) == PENDING | LINKED
    send(guest, second)
    assert queues.word(first) == PENDING | LINKED | second
    send(guest, first)  # it is in the queue already
    assert queues.take() == [first, second]
    assert queues.take() == []
    send(guest, second)
    assert queues.take() == [second]


def test_events_before_the_queues_are_not_lost(guest: Guest) -> None:
    # setup_ports, add_page_to_event_array
    early, quiet, late = ports(guest, 3)
    send(guest, early)
    assert init(guest) == 0
    send(guest, late)
    assert expand(guest) == 0
    assert Queues(guest).take() == [early, late]
    assert not Queues(guest).word(quiet)


def test_a_masked_event_waits_outside_of_the_queue(guest: Guest) -> None:
    # evtchn_fifo_set_pending, evtchn_fifo_unmask
    queues = turn_on(guest)
    (port,) = ports(guest, 1)
    queues.set_word(port, MASKED)
    send(guest, port)
    assert queues.word(port) == PENDING | MASKED
    assert (queues.ready, guest.domain.pending_upcall()) == (0, False)
    op = abi.EVTCHN_UNMASK
    assert guest.op(EVTCHN, abi.EVTCHNOP_unmask, op, port=port) == 0
    assert queues.take() == [port]
    assert guest.op(EVTCHN, abi.EVTCHNOP_unmask, op, port=port) == 0
    assert not queues.ready


def test_queues_by_priority(guest: Guest) -> None:
    # evtchn_fifo_set_priority; an event that is in its old queue stays there
    queues = turn_on(guest)
    low, high = ports(guest, 2)
    assert priority(guest, high, 0) == 0
    assert priority(guest, low, 15) == 0
    assert priority(guest, low, 16) == -XEN_EINVAL
    send(guest, low)
    send(guest, high)
    assert queues.ready == 1 << 15 | 1 << 0
    assert priority(guest, low, 3) == 0
    assert (queues.take(0), queues.take(15)) == ([high], [low])
    send(guest, low)
    assert queues.take(3) == [low]


def test_a_tail_that_moved_to_another_queue_links_nothing(guest: Guest) -> None:
    # evtchn_fifo_set_pending: "its tail must be invalidated"
    queues = turn_on(guest)
    moved, stays = ports(guest, 2)
    send(guest, moved)
    assert queues.take() == [moved]
    assert priority(guest, moved, 2) == 0
    send(guest, moved)
    send(guest, stays)
    assert (queues.take(2), queues.take()) == ([moved], [stays])


def test_a_closed_port_is_not_given_out_while_it_is_linked(guest: Guest) -> None:
    # evtchn_port_clear_pending, evtchn_is_busy in evtchn_allocate_port
    queues = turn_on(guest)
    (port,) = ports(guest, 1)
    send(guest, port)
    guest.domain.events.close(port)
    assert queues.word(port) == LINKED
    assert ports(guest, 1) == [port + 1]
    assert queues.take() == []
    assert ports(guest, 1) == [port]


def test_a_reset_goes_back_to_bits(guest: Guest) -> None:
    # evtchn_reset: switching back to the 2-level ABI
    turn_on(guest)
    assert guest.op(EVTCHN, abi.EVTCHNOP_reset, abi.EVTCHN_RESET, dom=DOMID_SELF) == 0
    (port,) = ports(guest, 1)
    send(guest, port)
    assert guest.domain.shared.is_pending(port)
    assert turn_on(guest).take() == [port]


def test_polling(guest: Guest) -> None:
    # evtchn_check_pollers
    queues = turn_on(guest)
    port = guest.domain.events.bind_virq(VIRQ_TIMER, 0)
    assert not guest.domain.events.poll(port)
    guest.domain.block(guest, port)
    queues.set_word(port, MASKED)
    guest.domain.events.raise_virq(VIRQ_TIMER)
    assert guest.woken == 1
    assert guest.domain.events.poll(port)


def test_pages_are_held(guest: Guest) -> None:
    queues = turn_on(guest)
    (port,) = ports(guest, 1)
    before = guest.domain.space.lookup(ARRAY)
    assert before is not None
    guest.domain.space.unhook(ARRAY)
    guest.domain.space.give_up(before.frame)
    send(guest, port)
    assert queues.word(port) == PENDING | LINKED
    assert guest.domain.space.allocate() != before.frame


def test_a_domain_goes_back_with_its_queues(guest: Guest) -> None:
    queues = turn_on(guest)
    one, other = ports(guest, 2)
    assert priority(guest, other, 1) == 0
    send(guest, one)
    state = guest.domain.save()
    send(guest, other)
    assert (queues.take(), queues.take(1)) == ([one], [other])
    guest.domain.restore(state)
    queues = Queues(guest)
    assert (queues.take(), queues.take(1)) == ([one], [])
    send(guest, other)
    assert queues.take(1) == [other]
    guest.domain.events.reset()
    off = guest.domain.save()
    turn_on(guest)
    guest.domain.restore(off)
    assert not guest.domain.queues.is_on
    assert turn_on(guest).ready == 0


# ---- against a model, and against a guest that lies ----------------------------------------------

N_PORTS = 6
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, N_PORTS - 1)),
        st.tuples(st.just("mask"), st.integers(0, N_PORTS - 1)),
        st.tuples(st.just("unmask"), st.integers(0, N_PORTS - 1)),
        st.tuples(st.just("priority"), st.integers(0, N_PORTS * 4 - 1)),
        st.tuples(st.just("take"), st.just(0)),
    ),
    max_size=40,
)
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(steps=STEPS)
def test_no_event_is_lost_or_doubled(steps: list[tuple[str, int]]) -> None:
    world = World()
    try:
        _play(world.guests[0], steps)
    finally:
        world.close()


def _play(guest: Guest, steps: list[tuple[str, int]]) -> None:
    """A guest that keeps to the rules gets each event once, as the model says."""
    queues = turn_on(guest)
    known = ports(guest, N_PORTS)
    sent: set[int] = set()
    masked: set[int] = set()
    for step, number in [*steps, ("take", 0)]:
        port = known[number % N_PORTS]
        if step == "send":
            send(guest, port)
            sent.add(port)
        elif step == "mask":
            queues.set_word(port, queues.word(port) | MASKED)
            masked.add(port)
        elif step == "unmask":
            assert guest.op(EVTCHN, abi.EVTCHNOP_unmask, abi.EVTCHN_UNMASK, port=port) == 0
            masked.discard(port)
        elif step == "priority":
            assert priority(guest, port, number // N_PORTS) == 0
        else:
            expected = sent - masked
            ready = [queue for queue in range(16) if queues.ready >> queue & 1]
            assert bool(expected) <= bool(ready)
            taken = [port for queue in ready for port in queues.take(queue)]
            assert sorted(taken) == sorted(expected)
            sent -= expected


@QUICK
@given(words=st.lists(st.integers(0, (1 << 32) - 1), min_size=16, max_size=16), block=st.binary())
def test_a_guest_that_spoils_its_words_hurts_only_itself(words: list[int], block: bytes) -> None:
    world = World()
    try:
        guest = world.guests[0]
        queues = turn_on(guest)
        known = ports(guest, 8)
        for port in known:
            send(guest, port)
            for spoiled, word in enumerate(words):
                queues.set_word(spoiled, word)
            guest.domain.space.write(CONTROL * PAGE_SIZE + OFFSET, block[:72])
        for port in known:
            result: Any = guest.op(EVTCHN, abi.EVTCHNOP_unmask, abi.EVTCHN_UNMASK, port=port)
            assert result == 0
            guest.domain.events.close(port)
        assert guest.op(EVTCHN, abi.EVTCHNOP_reset, abi.EVTCHN_RESET, dom=DOMID_SELF) == 0
    finally:
        world.close()
