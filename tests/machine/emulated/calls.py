"""Hypercalls as a guest of the tests makes them: who makes them; time, vcpu, control."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from machine.emulated.guests import ARG, Guest, World

from xenlive.abi.hypercalls import xen
from xenlive.abi.layout import Layout

EVTCHN, SCHED, VCPU, HVM = "event_channel_op", "sched_op", "vcpu_op", "hvm_op"
MS = 1_000_000


@pytest.fixture
def world() -> Iterator[World]:
    """Two guests that know each other."""
    made = World(2)
    yield made
    made.close()


@pytest.fixture(params=[True, False], ids=["64", "32"])
def guest(request: pytest.FixtureRequest, world: World) -> Guest:
    """A guest that makes calls of 64 or of 32 bits."""
    made = world.guests[0]
    made.is_64bit = made.in_long_mode = request.param
    return made


def form(guest: Guest, wide: Layout, narrow: Layout) -> Layout:
    return wide if guest.is_64bit else narrow


def bind_timer(guest: Guest) -> int:
    return guest.domain.events.bind_virq(xen.VIRQ_TIMER, 0)


def pending(guest: Guest, port: int) -> bool:
    return guest.domain.events.poll(port)


def pass_time(guest: Guest, by_ns: int) -> None:
    """Time goes by while the guest waits."""
    guest.domain.clock.advance(by_ns)
    guest.domain.timer_fired(guest.domain.clock.now_ns)


def set_timer(guest: Guest, timeout_ns: int) -> int:
    if guest.is_64bit:
        return guest.call("set_timer_op", timeout_ns)
    return guest.call("set_timer_op", timeout_ns & 0xFFFFFFFF, timeout_ns >> 32)


def vcpu_call(guest: Guest, cmd: int, layout: Layout, **fields: int) -> int:
    return guest.call(VCPU, cmd, 0, guest.put(layout, **fields))


def head(guest: Guest, command: int, interface: int, domid: int = 0) -> int:
    guest.write_virtual(ARG, struct.pack("<IIH", command, interface, domid).ljust(144, b"\0"))
    return ARG
