"""The small kernels themselves: events, exceptions, ends, and their console on the ring."""

from __future__ import annotations

import pytest
from kernels.handover.lab import Labs, labs
from kernels.handover.script_kernel import script_kernel

from xenlive.machine.emulated.build import Module
from xenlive.machine.emulated.world import WORLD_ENDED, World

__all__ = ["labs"]  # the fixture
pytestmark = [pytest.mark.peer, pytest.mark.parametrize("bits", [64, 32])]


def test_it_waits_for_its_timer_halted(labs: Labs, bits: int) -> None:
    lab = labs(script_kernel(bits))
    lab.boot("ticks 5")
    (told,) = lab.run_to_poweroff()
    assert [reply.result for reply in told.replies] == [0]
    (line,) = (line for line in told.others if line.startswith("ticks "))
    waited_ns = int(line.removeprefix("ticks "), 16)
    assert 5_000_000 <= waited_ns < 5_200_000


@pytest.mark.parametrize("reason", [0, 1, 3])
def test_it_ends_for_the_reason_it_says(labs: Labs, bits: int, reason: int) -> None:
    lab = labs(script_kernel(bits))
    lab.boot(f"shutdown {reason}")
    ended = lab.run()
    assert (ended.kind, ended.code) == ("shutdown", reason)


def test_an_exception_is_said_and_ends_it(labs: Labs, bits: int) -> None:
    lab = labs(script_kernel(bits))
    lab.boot("ticks 1; fault")
    assert lab.run().code == 3
    assert lab.console.splitlines()[-1].startswith("panic: exception 6 error 0 at ")


def test_a_start_info_that_is_none_ends_it(labs: Labs, bits: int) -> None:
    lab = labs(script_kernel(bits))
    loaded = lab.boot("")
    lab.is_watching = False
    lab.enter(loaded.entry, loaded.start_info + 8)
    assert lab.run().code == 3
    assert lab.console == f"panic: no start info at {loaded.start_info + 8:x}\n"


def test_a_chain_writes_to_the_console_ring(bits: int) -> None:
    """Xen takes no console_io of such a guest, so the ring has to do; it wraps more than once."""
    said = bytearray()
    world = World()
    guest = world.add_guest(sink=said.extend)
    many = "peek 0;" * 200
    kernel = script_kernel(bits)
    guest.boot(kernel, f"make 4; {many} ticks 1; kexec 0", [Module(kernel, f"make 1; {many}")])
    assert world.run() == WORLD_ENDED
    assert guest.stop is not None
    assert (guest.stop.kind, guest.stop.code) == ("shutdown", 0)
    lines = said.decode().splitlines()
    assert lines.count("kexec") == 1
    assert lines[-1] == "done"
    assert sum(line.startswith("> ") for line in lines) == 202 + 201
    assert len(said) > 2 * 2048
