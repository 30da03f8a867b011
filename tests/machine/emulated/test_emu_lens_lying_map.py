"""A guest may set its own memory map, whatever it says; the lens goes by the toolstack's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kernels.handover.script_kernel import script_kernel

from xenlive.machine.emulated.build import Module
from xenlive.machine.emulated.lens.entries import Entries
from xenlive.machine.emulated.lens.handover import Handovers
from xenlive.machine.emulated.lens.outside import NextKernel, NextKernels, restore_ram
from xenlive.machine.emulated.lens.pages import write_image
from xenlive.machine.emulated.lens.poison import poison_all_but
from xenlive.machine.emulated.stop import SHUTDOWN_REBOOT
from xenlive.machine.emulated.world import Guest, World

pytestmark = pytest.mark.peer

MEMORY_BYTES = 16 << 20
LIES: dict[str, list[tuple[int, int, int]]] = {
    "all": [(0, (1 << 64) - 1, 1)],
    "beyond": [(1 << 62, 1 << 63, 1), ((1 << 64) - 1, (1 << 64) - 1, 1)],
    "overlapping": [(0, MEMORY_BYTES, 1), (0x1000, 0x2000, 1)],
    "none": [],
}


@pytest.fixture(params=list(LIES))
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A guest with such a map, before its first instruction."""
    with World() as world:
        made = world.add_guest(memory_bytes=MEMORY_BYTES)
        made.boot(script_kernel(64), "make 4; kexec 0", [Module(script_kernel(32), "make 1")])
        made.domain.e820 = list(LIES[request.param])
        yield made


def test_ram_is_poisoned(guest: Guest) -> None:
    assert poison_all_but(guest.domain, [(0, MEMORY_BYTES - 8)]) == 8


def test_the_image_is_that_of_ram(guest: Guest, tmp_path: Path) -> None:
    write_image(guest.domain, tmp_path / "image")
    assert (tmp_path / "image").stat().st_size == MEMORY_BYTES


def test_ram_is_restored(guest: Guest) -> None:
    space = guest.domain.space
    space.give_up(space.allocate() or pytest.fail("no page"))
    space.unhook(5)
    restore_ram(guest.domain)
    assert space.is_backed(0, MEMORY_BYTES)
    assert space.lookup(1 << 40) is None


def test_a_handover_is_described(guest: Guest) -> None:
    handovers = Handovers(guest, Entries(guest), poison=0xA5)
    guest._world.run()
    (said,) = handovers.found
    assert said["problems"] == []


def test_the_next_kernel_is_entered(guest: Guest) -> None:
    guest.boot(script_kernel(64), f"make 4; shutdown {SHUTDOWN_REBOOT}")
    nexts = NextKernels(guest, Entries(guest), [NextKernel("next", script_kernel(32), "make 1")])
    guest._world.run()
    assert nexts.failure is None
    assert guest.stop is not None
    assert guest.stop.code == 0
