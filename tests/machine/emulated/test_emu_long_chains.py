"""Chains of kernels that have gone on for long: what a handover costs, and what can be saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kernels.building import build_kernel
from machine.emulated import small_guests

from xenlive.machine.emulated.lens.snapshot import restore_world, save_world
from xenlive.machine.emulated.lens.symbols import CHAIN_FILES_MAX, name_in_chain
from xenlive.machine.emulated.world import World

pytestmark = pytest.mark.peer


class Counting(list[tuple[int, bytes]]):
    """A chain that counts how many of its kernels are looked at."""

    looked_at = 0

    def __getitem__(self, at: Any) -> Any:
        self.looked_at += 1
        return super().__getitem__(at)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        for kernel in super().__iter__():
            self.looked_at += 1
            yield kernel

    def __reversed__(self) -> Iterator[tuple[int, bytes]]:
        for kernel in super().__reversed__():
            self.looked_at += 1
            yield kernel


def test_a_name_is_looked_up_in_the_last_kernels_alone() -> None:
    chain = Counting((n, b"") for n in range(100_000))
    assert name_in_chain(chain, [], 0x100000, 100_000, lambda _at, _size: None) == ""
    assert chain.looked_at < 2 * CHAIN_FILES_MAX + 64


def test_a_world_whose_chain_is_long_is_saved_and_restored() -> None:
    with World() as world, World() as elsewhere:
        guest = world.add_guest(memory_bytes=16 << 20)
        guest.boot(build_kernel(small_guests.SPINS).read_bytes())
        guest.chain[1:] = [*((n, b"") for n in range(5000)), (5000, guest.kernel)]
        restore_world(elsewhere, save_world(world))
        assert elsewhere.guests[0].chain == guest.chain
