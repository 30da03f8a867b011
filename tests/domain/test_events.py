"""Event channels without processes."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from xenlive.domain.events import FIRST_FREE_PORT, MAX_PORTS, EventChannels, LocalEvents
from xenlive.errors import HypercallError


def test_a_ring_is_kept_until_somebody_waits() -> None:
    events = LocalEvents()
    port = events.alloc_unbound(0)
    assert port == FIRST_FREE_PORT
    assert not events.wait(port, 1000.0)  # without time, and without anyone to ring
    events.ring(port)
    events.ring(port)
    assert events.wait(port, 0)
    assert not events.wait(port, 0)


def test_notify_reaches_the_other_end_only() -> None:
    events = LocalEvents()
    port, other = events.alloc_unbound(0), events.alloc_unbound(0)
    heard: list[int] = []
    events.listen(port, lambda: heard.append(port))
    events.notify(port)
    events.notify(other)
    assert heard == [port]
    assert not events.wait(port, 0)
    events.listen(port, None)
    events.notify(port)
    assert heard == [port]


def test_waiting_runs_the_rest_of_the_world() -> None:
    events = LocalEvents()
    port = events.alloc_unbound(0)
    steps = [lambda: None, lambda: None, lambda: events.ring(port), lambda: None]

    def idle() -> bool:
        if not steps:
            return False
        steps.pop(0)()
        return True

    events.idle = idle
    assert events.wait(port, 1)
    assert len(steps) == 1
    assert not events.wait(port, 1)


def test_ports_outlive_a_kernel() -> None:
    events = LocalEvents()
    port = events.alloc_unbound(7)
    events.ring(port)
    events.forget_kernel()
    with pytest.raises(HypercallError):
        events.notify(port)
    with pytest.raises(HypercallError):
        events.wait(port, 0)
    events.bind(port)
    assert events.wait(port, 0)
    assert events.ports() == {port: 7}


@pytest.mark.parametrize("call", ["bind", "close", "notify"])
@pytest.mark.parametrize("port", [0, 99, 2**32 - 1, -1])
def test_wild_ports(call: str, port: int) -> None:
    method: Callable[[int], None] = getattr(LocalEvents(), call)
    with pytest.raises(HypercallError) as caught:
        method(port)
    assert caught.value.errno == errno.EINVAL


def test_closed_ports_are_given_out_again() -> None:
    events = LocalEvents()
    port = events.alloc_unbound(0)
    events.listen(port, lambda: None)
    events.ring(port)
    events.close(port)
    events.ring(port)
    with pytest.raises(HypercallError):
        events.bind(port)
    assert events.alloc_unbound(0) == port
    assert not events.wait(port, 0)


def test_ports_run_out() -> None:
    events = LocalEvents()
    for _ in range(FIRST_FREE_PORT, MAX_PORTS):
        events.alloc_unbound(0)
    with pytest.raises(HypercallError) as caught:
        events.alloc_unbound(0)
    assert caught.value.errno == errno.ENOSPC


def test_the_interface_alone_does_nothing() -> None:
    events = EventChannels()
    calls: list[Callable[[], object]] = [
        lambda: events.alloc_unbound(0),
        lambda: events.bind(1),
        lambda: events.close(1),
        lambda: events.notify(1),
        lambda: events.wait(1, 0),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError):
            call()
