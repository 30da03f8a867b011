"""Two mappings of one page, unmapped crosswise: none outlives what holds the page."""

from __future__ import annotations

import pytest
from machine.emulated.guests import World

from xenlive.abi.hypercalls.grant_table import GNTMAP_host_map, GNTMAP_readonly

PAGE, FIRST, SECOND = 0x10, 0x300, 0x301


@pytest.mark.parametrize("flags", [GNTMAP_host_map, GNTMAP_host_map | GNTMAP_readonly])
def test_mappings_unmapped_crosswise_are_released(flags: int) -> None:
    world = World(2)
    owner, peer = (guest.domain for guest in world.guests)
    owner.grants.seed(8, peer.domid, PAGE)
    one, _ = peer.mappings.map(owner.domid, 8, flags, FIRST << 12)
    other, _ = peer.mappings.map(owner.domid, 8, flags, SECOND << 12)
    saved = peer.mappings.save()
    peer.mappings.unmap(one, SECOND << 12)
    assert peer.mappings.mapped()[other].gfn == FIRST
    assert saved[0][other].gfn == SECOND
    peer.forget_kernel()  # as for a next kernel, or a soft reset
    for gfn in (FIRST, SECOND):
        there = peer.space.lookup(gfn)
        assert there is None or not there.is_foreign
    assert not owner.grants.active()
    world.close()
