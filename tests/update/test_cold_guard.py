"""The guard in a live update: a start info that would overwrite handed-over pages stops it."""

from __future__ import annotations

import pytest
from update.test_session import Operator

from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.sim.machine import Entered
from xenlive.sim.world import SimWorld


@pytest.fixture
def world() -> SimWorld:
    return SimWorld(1, clients=0, faults=False)


@pytest.mark.parametrize("into", [0, 5, 18 * PAGE_SIZE - 1, -1, -100, -300])
def test_blocks_never_reach_into_the_module(world: SimWorld, into: int) -> None:
    """Wherever the machine would have them: over its pages, or up to them from below.

    The last place is free for the first of the two blocks, and not for the second.
    """
    domain = world.kernel.domain
    assert domain.module is not None
    module = domain.module
    place = (module.address + into) & ~7
    domain.machine.load_end = PhysAddr(place)
    ram = bytes(world.hypervisor.ram)
    operator = Operator(world, 50)
    assert operator.live_update("-f", "B") == b"OK"
    assert operator.live_update("-s") is None
    operator.pass_time(1)
    answer = operator.answer()
    assert answer is not None
    assert b"handed-over bytes at 0x1ee000" in answer[1]
    assert answer[1].startswith(b"start-info: ")
    # Rings and their page of indices were used for the dump that was taken back; nothing else.
    device = 17 * PAGE_SIZE
    below, behind = ram[: module.address], ram[module.address + device :]
    assert world.hypervisor.ram[: module.address] == below
    assert world.hypervisor.ram[module.address + device :] == behind


def test_blocks_right_below_the_module_are_fine(world: SimWorld) -> None:
    domain = world.kernel.domain
    assert domain.module is not None
    domain.machine.load_end = PhysAddr(domain.module.address - 0x1000)
    operator = Operator(world, 50)
    operator.live_update("-f", "B")
    operator.live_update("-s")
    with pytest.raises(Entered):
        operator.pass_time(1)
