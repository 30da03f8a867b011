"""Memory by hypercall: reservations, what stands behind guest frames, questions and refusals.

Each test names the function it was read in, of `xen/common/memory.c` (Xen 4.17) if no file is
named.
"""

from __future__ import annotations

import pytest
from machine.emulated.calls import form, guest, world
from machine.emulated.guests import ARG, BAD, MEMORY_BYTES, Guest, World
from machine.emulated.memorycalls import (
    DECREASE,
    EXTENT,
    INCREASE,
    LIST,
    MEMORY,
    OWNED,
    PAGES,
    POPULATE,
    ask,
    grant_and_map,
    put_frames,
    remove,
    reserve,
)

from xenlive.abi.hypercalls import memory as abi
from xenlive.abi.hypercalls.xen import (
    DOMID_SELF,
    XEN_EFAULT,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSYS,
    XEN_EPERM,
    XEN_ESRCH,
)
from xenlive.machine.emulated.build import memory_map
from xenlive.machine.emulated.stop import GuestStop

__all__ = ["guest", "world"]  # the fixtures

# ---- reservations --------------------------------------------------------------------------------

RESERVATIONS = (INCREASE, DECREASE, POPULATE)


def test_giving_memory_back_and_getting_it_again(guest: Guest) -> None:
    # decrease_reservation, populate_physmap
    guest.write_virtual(0x100000, b"secret")
    assert reserve(guest, DECREASE, [0x100, 0x101]) == 2
    assert ask(guest, abi.XENMEM_current_reservation) == OWNED - 2
    assert not guest.domain.space.is_backed(0x100000, 0x2000)
    assert reserve(guest, POPULATE, [0x2000, 0x100]) == 2
    assert guest.read_virtual(0x100000, 6) == bytes(6)
    assert guest.read_virtual(0x2000000, 6) == bytes(6)
    assert ask(guest, abi.XENMEM_current_reservation) == OWNED


def test_a_hole_has_nothing_to_give(guest: Guest) -> None:
    # guest_remove_page: -ENOENT, which decrease_reservation makes "none done"
    assert reserve(guest, DECREASE, [0x5000]) == 0
    assert reserve(guest, DECREASE, [0x100, 0x100]) == 1
    assert reserve(guest, DECREASE, [0x101, (1 << 32) - 1]) == 1


def test_extents_of_many_pages(guest: Guest) -> None:
    assert reserve(guest, DECREASE, [0x200], extent_order=9) == 1
    assert ask(guest, abi.XENMEM_current_reservation) == OWNED - 512
    assert reserve(guest, POPULATE, [0x800], extent_order=9) == 1
    assert guest.domain.space.is_backed(0x800000, 2 << 20)
    # max_order(): CONFIG_DOMU_MAX_ORDER is 9
    assert reserve(guest, DECREASE, [0], extent_order=10) == 0
    assert reserve(guest, DECREASE, [0], extent_order=0xFFFFFFFF) == 0


def test_an_extent_with_a_hole_is_not_done(guest: Guest) -> None:
    assert reserve(guest, DECREASE, [0x101]) == 1
    assert reserve(guest, DECREASE, [0x100], extent_order=1) == 0
    # What came before the hole is gone all the same.
    assert not guest.domain.space.is_backed(0x100000, 1)


def test_no_more_than_the_toolstack_allows(guest: Guest) -> None:
    # domain_adjust_tot_pages: max_pages is the memory and 1 MiB, special pages count
    assert ask(guest, abi.XENMEM_maximum_reservation) == PAGES + 256
    room = PAGES + 256 - OWNED
    assert reserve(guest, POPULATE, list(range(0x2000, 0x2000 + room + 1))) == room
    assert reserve(guest, INCREASE, [0]) == 0


def test_increase_gives_pages_that_stand_nowhere(guest: Guest) -> None:
    # increase_reservation: a translated guest is not told where
    assert reserve(guest, INCREASE, [7, 7], extent_start=0) == 2
    assert ask(guest, abi.XENMEM_current_reservation) == OWNED + 2
    assert reserve(guest, INCREASE, [0], extent_order=9) == 0
    assert ask(guest, abi.XENMEM_current_reservation) == OWNED + 2


def test_populating_over_what_is_there(guest: Guest) -> None:
    # p2m_add_page: the old page is owned still, and stands nowhere
    guest.write_virtual(0x100000, b"old")
    assert reserve(guest, POPULATE, [0x100]) == 1
    assert guest.read_virtual(0x100000, 3) == bytes(3)
    assert ask(guest, abi.XENMEM_current_reservation) == OWNED + 1


@pytest.mark.parametrize("cmd", RESERVATIONS)
@pytest.mark.parametrize(
    "fields",
    [
        {"domid": 2},
        {"domid": 9},
        {"domid": 0},
        {"mem_flags": 12},  # construct_memop_from_reservation: addresses of 12 bits
        {"mem_flags": 1 << 8 | abi.XENMEMF_exact_node_request},  # propagate_node
        {"nr_extents": 1 << 26},
    ],
)
def test_reservations_answer_refusals_with_what_was_done(
    guest: Guest, cmd: int, fields: dict[str, int]
) -> None:
    # do_memory_op: `return start_extent`
    assert reserve(guest, cmd, [0x100], **fields) == 0
    assert reserve(guest, cmd | 5 * EXTENT, [0x100] * 9, **fields) == 5


@pytest.mark.parametrize("cmd", RESERVATIONS)
def test_reservations_go_on_where_the_command_says(guest: Guest, cmd: int) -> None:
    before = ask(guest, abi.XENMEM_current_reservation)
    assert reserve(guest, cmd | 2 * EXTENT, [0x100, 0x101, 0x102]) == 3
    assert abs(ask(guest, abi.XENMEM_current_reservation) - before) == 1
    assert reserve(guest, cmd | 3 * EXTENT, [0x100, 0x101, 0x102]) == 3


@pytest.mark.parametrize("cmd", RESERVATIONS)
def test_reservations_that_can_not_be_read(guest: Guest, cmd: int) -> None:
    assert guest.call(MEMORY, cmd, BAD) == 0
    assert guest.call(MEMORY, cmd | 3 * EXTENT, BAD) == 3


def test_lists_that_can_not_be_read(guest: Guest) -> None:
    size = 8 if guest.is_64bit else 4
    end = MEMORY_BYTES
    put_frames(guest, [0x100, 0x101], end - 2 * size)
    fields = {"extent_start": end - 2 * size, "nr_extents": 5}
    assert reserve(guest, DECREASE, [], **fields) == 2


@pytest.mark.parametrize("flags", [abi.XENMEMF_vnode, 30, 64, 1 << 8])
def test_flags_that_ask_for_nothing_special(guest: Guest, flags: int) -> None:
    assert reserve(guest, POPULATE, [0x2000], mem_flags=flags) == 1


def test_populating_on_demand_is_not_for_oneself(guest: Guest) -> None:
    # populate_physmap
    assert reserve(guest, POPULATE, [0x2000], mem_flags=abi.XENMEMF_populate_on_demand) == 0


def test_frames_beyond_all_addresses(world: World) -> None:
    guest = world.guests[0]
    assert reserve(guest, POPULATE, [1 << 40]) == 0
    assert reserve(guest, DECREASE, [(1 << 64) - 1]) == 0


def test_populating_over_a_grant_kills(world: World) -> None:
    # p2m_add_page: domain_crash
    grant_and_map(world, 0x2000)
    with pytest.raises(GuestStop):
        reserve(world.guests[0], POPULATE, [0x2000])


def test_a_grant_is_not_given_back(world: World) -> None:
    # guest_remove_page: the page is not the guest's, -ENXIO
    grant_and_map(world, 0x2000)
    assert reserve(world.guests[0], DECREASE, [0x2000]) == 0
    assert remove(world.guests[0], 0x2000) == -XEN_ENOENT


# ---- questions -----------------------------------------------------------------------------------


def memory_map_of(guest: Guest, n_entries: int) -> tuple[int, list[tuple[int, int, int]]]:
    layout = form(guest, abi.XEN_MEMORY_MAP, abi.XEN_MEMORY_MAP_32)
    known = {"nr_entries": n_entries, "buffer": LIST}
    result = guest.op(MEMORY, abi.XENMEM_memory_map, layout, **known)
    count = guest.get(layout)["nr_entries"]
    data = guest.read_virtual(LIST, count * 20)
    return result, [abi.E820_ENTRY.unpack(data, i * 20) for i in range(count)]


def test_the_memory_map(guest: Guest) -> None:
    # arch_memory_op of xen/arch/x86/mm.c; the ranges are the toolstack's
    assert memory_map_of(guest, 100) == (0, memory_map(MEMORY_BYTES))
    assert memory_map_of(guest, 2) == (0, memory_map(MEMORY_BYTES)[:2])
    assert memory_map_of(guest, 0) == (0, [])


def test_another_memory_map(guest: Guest) -> None:
    # XENMEM_set_memory_map: a guest may set its own, whatever it says
    wanted = [(0, 0x1000, 1), (0, 0x2000, 7)]
    guest.write_virtual(0xA000, b"".join(abi.E820_ENTRY.pack(*e) for e in wanted))
    part = form(guest, abi.XEN_MEMORY_MAP, abi.XEN_MEMORY_MAP_32)
    layout = form(guest, abi.XEN_FOREIGN_MEMORY_MAP, abi.XEN_FOREIGN_MEMORY_MAP_32)

    def set_map(n_entries: int, domid: int = DOMID_SELF, buffer: int = 0xA000) -> int:
        inner = part.encode(nr_entries=n_entries, buffer=buffer)
        at = guest.put(layout, domid=domid, map=inner)
        return guest.call(MEMORY, abi.XENMEM_set_memory_map, at)

    assert set_map(2) == 0
    assert memory_map_of(guest, 100) == (0, wanted)
    assert set_map(129) == -XEN_EINVAL
    assert set_map(2, domid=2) == -XEN_EPERM
    assert set_map(2, domid=9) == -XEN_ESRCH
    assert set_map(2, buffer=BAD) == -XEN_EFAULT
    assert set_map(0) == 0
    # "Backwards compatibility": without a map there is no such operation.
    assert memory_map_of(guest, 1)[0] == -XEN_ENOSYS


QUESTIONS = (
    abi.XENMEM_current_reservation,
    abi.XENMEM_maximum_reservation,
    abi.XENMEM_maximum_gpfn,
)


def test_answers(guest: Guest) -> None:
    assert ask(guest, abi.XENMEM_current_reservation) == OWNED
    assert ask(guest, abi.XENMEM_current_reservation, domid=1) == OWNED
    assert ask(guest, abi.XENMEM_maximum_reservation) == PAGES + 256
    assert ask(guest, abi.XENMEM_maximum_gpfn) == 0xFEFFF
    assert reserve(guest, POPULATE, [0x200000]) == 1
    assert ask(guest, abi.XENMEM_maximum_gpfn) == 0x200000
    assert guest.call(MEMORY, abi.XENMEM_maximum_ram_page, BAD) > PAGES


@pytest.mark.parametrize("cmd", QUESTIONS)
def test_questions_about_others(guest: Guest, cmd: int) -> None:
    assert ask(guest, cmd, domid=2) == -XEN_EPERM
    assert ask(guest, cmd, domid=9) == -XEN_ESRCH
    assert guest.call(MEMORY, cmd, BAD) == -XEN_EFAULT
    assert guest.call(MEMORY, cmd | EXTENT, ARG) == -XEN_EINVAL
