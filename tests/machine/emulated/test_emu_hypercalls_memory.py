"""Memory by hypercall: reservations, what stands behind guest frames, questions and refusals.

Each test names the function it was read in, of `xen/common/memory.c` (Xen 4.17) if no file is
named.
"""

from __future__ import annotations

import struct

import pytest
from machine.emulated.guests import ARG, BAD, MEMORY_BYTES, Guest, World

from xenlive.abi.hypercalls import memory as abi
from xenlive.abi.hypercalls.grant_table import GNTMAP_host_map
from xenlive.abi.hypercalls.xen import (
    DOMID_SELF,
    XEN_EACCES,
    XEN_EDOM,
    XEN_EFAULT,
    XEN_EILSEQ,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_EOVERFLOW,
    XEN_EPERM,
    XEN_ESRCH,
    XEN_EXDEV,
)
from xenlive.abi.layout import Layout
from xenlive.machine.emulated.build import memory_map
from xenlive.machine.emulated.stop import GuestStop

MEMORY = "memory_op"
LIST = 0x9000
PAGES = MEMORY_BYTES >> 12
OWNED = PAGES + 8 + 9  # RAM, special pages, ACPI
EXTENT = 1 << abi.MEMOP_EXTENT_SHIFT


@pytest.fixture
def world() -> World:
    return World(2)


@pytest.fixture(params=[True, False], ids=["64", "32"])
def guest(request: pytest.FixtureRequest, world: World) -> Guest:
    """A guest that makes calls of 64 or of 32 bits."""
    made = world.guests[0]
    made.is_64bit = request.param
    return made


def form(guest: Guest, wide: Layout, narrow: Layout) -> Layout:
    return wide if guest.is_64bit else narrow


def put_frames(guest: Guest, frames: list[int], at: int = LIST) -> int:
    size = "Q" if guest.is_64bit else "I"
    guest.write_virtual(at, struct.pack(f"<{len(frames)}{size}", *frames))
    return at


def reserve(guest: Guest, cmd: int, frames: list[int], **fields: int) -> int:
    layout = form(guest, abi.XEN_MEMORY_RESERVATION, abi.XEN_MEMORY_RESERVATION_32)
    known = {"extent_start": put_frames(guest, frames), "nr_extents": len(frames)}
    return guest.op(MEMORY, cmd, layout, **(known | {"domid": DOMID_SELF} | fields))


def add(guest: Guest, space: int, idx: int, gpfn: int, **fields: int) -> int:
    layout = form(guest, abi.XEN_ADD_TO_PHYSMAP, abi.XEN_ADD_TO_PHYSMAP_32)
    known = {"domid": DOMID_SELF, "space": space, "idx": idx, "gpfn": gpfn} | fields
    return guest.op(MEMORY, abi.XENMEM_add_to_physmap, layout, **known)


def remove(guest: Guest, gpfn: int, domid: int = DOMID_SELF) -> int:
    layout = form(guest, abi.XEN_REMOVE_FROM_PHYSMAP, abi.XEN_REMOVE_FROM_PHYSMAP_32)
    return guest.op(MEMORY, abi.XENMEM_remove_from_physmap, layout, domid=domid, gpfn=gpfn)


def ask(guest: Guest, cmd: int, domid: int = DOMID_SELF) -> int:
    return guest.op(MEMORY, cmd, abi.XEN_MEMORY_DOMAIN, domid=domid)


def grant_and_map(world: World, gfn: int) -> None:
    """Has guest 1 map a page of guest 2 at `gfn`."""
    ours, theirs = world.guests
    theirs.domain.grants.seed(8, 1, 0x10)
    ours.domain.mappings.map(2, 8, GNTMAP_host_map, gfn << 12)


# ---- reservations --------------------------------------------------------------------------------

DECREASE, POPULATE = abi.XENMEM_decrease_reservation, abi.XENMEM_populate_physmap
INCREASE = abi.XENMEM_increase_reservation
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


# ---- what stands behind guest frames -------------------------------------------------------------


def test_the_shared_page_is_where_it_was_put_last(guest: Guest) -> None:
    # xenmem_add_to_physmap_one of xen/arch/x86/mm/p2m.c: XENMAPSPACE_shared_info
    guest.write_virtual(0x100000, b"RAM")
    before = ask(guest, abi.XENMEM_current_reservation)
    assert add(guest, abi.XENMAPSPACE_shared_info, 0, 0x100) == 0
    # What stood there was freed; the page that shows now is Xen's, with the clock in it.
    assert ask(guest, abi.XENMEM_current_reservation) == before - 1
    assert guest.read_virtual(0x100020, 4) == (2).to_bytes(4, "little")
    assert add(guest, abi.XENMAPSPACE_shared_info, 0, 0x3000) == 0
    assert not guest.domain.space.is_backed(0x100000, 1)
    assert guest.read_virtual(0x3000020, 4) == (2).to_bytes(4, "little")
    assert add(guest, abi.XENMAPSPACE_shared_info, 1, 0x3001) == -XEN_EINVAL


def test_the_grant_table_grows_to_the_page_asked_for(guest: Guest) -> None:
    # gnttab_map_frame_begin of xen/common/grant_table.c
    assert add(guest, abi.XENMAPSPACE_grant_table, 3, 0x3000) == 0
    assert guest.domain.grants.n_frames == 4
    assert add(guest, abi.XENMAPSPACE_grant_table, 63, 0x3001) == 0
    assert add(guest, abi.XENMAPSPACE_grant_table, 64, 0x3002) == -XEN_EINVAL
    assert add(guest, abi.XENMAPSPACE_grant_table, 0x80000000, 0x3002) == -XEN_EINVAL
    # One of Xen's pages over another: the first is simply unhooked.
    assert add(guest, abi.XENMAPSPACE_shared_info, 0, 0x3000) == 0
    frame = guest.domain.grants.shared_frame(3)
    assert frame is not None
    assert guest.domain.space.gfn_of(frame) is None


def test_moving_a_page(guest: Guest) -> None:
    # XENMAPSPACE_gmfn
    guest.write_virtual(0x100000, b"moved")
    assert add(guest, abi.XENMAPSPACE_gmfn, 0x100, 0x3000) == 0
    assert guest.read_virtual(0x3000000, 5) == b"moved"
    assert not guest.domain.space.is_backed(0x100000, 1)
    assert add(guest, abi.XENMAPSPACE_gmfn, 0x100, 0x3001) == -XEN_EINVAL
    assert add(guest, abi.XENMAPSPACE_gmfn, 0x3000, 0x3000) == 0  # where it is
    assert guest.read_virtual(0x3000000, 5) == b"moved"


def test_moving_a_range(guest: Guest) -> None:
    # xenmem_add_to_physmap: XENMAPSPACE_gmfn_range
    for i in range(3):
        guest.write_virtual(0x100000 + i * 4096, bytes([i + 1]))
    assert add(guest, abi.XENMAPSPACE_gmfn_range, 0x100, 0x3000, size=3) == 0
    assert [guest.read_virtual(0x3000000 + i * 4096, 1)[0] for i in range(3)] == [1, 2, 3]
    assert add(guest, abi.XENMAPSPACE_gmfn_range, 0x103, 0x3003, size=0) == 0


def test_going_on_with_a_range(guest: Guest) -> None:
    layout = form(guest, abi.XEN_ADD_TO_PHYSMAP, abi.XEN_ADD_TO_PHYSMAP_32)
    known = {"domid": DOMID_SELF, "space": abi.XENMAPSPACE_gmfn_range, "idx": 0x100, "size": 2}

    def go_on(start: int) -> int:
        cmd = abi.XENMEM_add_to_physmap | start * EXTENT
        return guest.op(MEMORY, cmd, layout, **known, gpfn=0x3000)

    assert go_on(3) == -XEN_EILSEQ
    assert go_on(1) == 0
    assert guest.domain.space.is_backed(0x100000, 1)
    assert guest.domain.space.is_backed(0x3001000, 1)
    assert go_on(0x10000) == -XEN_EDOM


def test_ranges_beyond_64_bits(world: World) -> None:
    guest = world.guests[0]
    top = (1 << 64) - 2
    assert add(guest, abi.XENMAPSPACE_gmfn_range, 0x100, top, size=3) == -XEN_EOVERFLOW
    assert add(guest, abi.XENMAPSPACE_gmfn, 0x100, top + 1) == -XEN_EINVAL
    assert add(guest, abi.XENMAPSPACE_gmfn, 0x100, 1 << 40) == -XEN_EINVAL


@pytest.mark.parametrize(
    ("space", "domid", "errno"),
    [
        (abi.XENMAPSPACE_gmfn_foreign, 2, XEN_ENOSYS),
        (abi.XENMAPSPACE_dev_mmio, DOMID_SELF, XEN_EACCES),
        (abi.XENMAPSPACE_shared_info, 2, XEN_EPERM),
        (abi.XENMAPSPACE_shared_info, 9, XEN_ESRCH),
        (6, DOMID_SELF, XEN_EINVAL),
        (0xFFFFFFFF, DOMID_SELF, XEN_EINVAL),
    ],
)
def test_spaces_that_are_not_for_the_guest(
    guest: Guest, space: int, domid: int, errno: int
) -> None:
    # do_memory_op, xatp_permission_check
    assert add(guest, space, 0, 0x3000, domid=domid) == -errno


def test_grants_are_not_moved_or_covered(world: World) -> None:
    # xenmem_add_to_physmap_one: the page's own frame is another
    grant_and_map(world, 0x2000)
    guest = world.guests[0]
    assert add(guest, abi.XENMAPSPACE_gmfn, 0x2000, 0x3000) == -XEN_EINVAL
    assert add(guest, abi.XENMAPSPACE_gmfn, 0x100, 0x2000) < 0
    guest.domain.grants.seed(9, 1, 0x30)
    guest.domain.mappings.map(1, 9, GNTMAP_host_map, 0x2001 << 12)
    assert add(guest, abi.XENMAPSPACE_gmfn, 0x2001, 0x3000) == -XEN_EXDEV


def test_a_batch(guest: Guest) -> None:
    # xenmem_add_to_physmap_batch: an error for each, the call succeeds
    layout = form(guest, abi.XEN_ADD_TO_PHYSMAP_BATCH, abi.XEN_ADD_TO_PHYSMAP_BATCH_32)
    idxs = put_frames(guest, [0x100, 0x5000, 0x101])
    gpfns = put_frames(guest, [0x3000, 0x3001, 0x3002], LIST + 64)
    known = {"domid": DOMID_SELF, "size": 3, "idxs": idxs, "gpfns": gpfns, "errs": LIST + 128}

    def batch(cmd: int = abi.XENMEM_add_to_physmap_batch, **fields: int) -> int:
        return guest.op(MEMORY, cmd, layout, **(known | {"space": abi.XENMAPSPACE_gmfn} | fields))

    assert batch() == 0
    assert struct.unpack("<3i", guest.read_virtual(LIST + 128, 12)) == (0, -XEN_EINVAL, 0)
    foreign = {"space": abi.XENMAPSPACE_gmfn_foreign, "u": 2, "size": 1}
    assert batch(**foreign) == 0
    # p2m_add_foreign: only for the hardware domain
    assert struct.unpack("<i", guest.read_virtual(LIST + 128, 4)) == (-XEN_EPERM,)
    assert batch(space=abi.XENMAPSPACE_gmfn_range) == -XEN_EOPNOTSUPP
    assert batch(space=abi.XENMAPSPACE_dev_mmio) == -XEN_EACCES
    assert batch(domid=2) == -XEN_EPERM
    assert batch(idxs=BAD) == -XEN_EFAULT
    assert batch(size=0) == 0
    assert batch(abi.XENMEM_add_to_physmap_batch | 3 * EXTENT) == -XEN_EILSEQ
    assert batch(abi.XENMEM_add_to_physmap_batch | 0x10000 * EXTENT) == -XEN_EDOM


def test_taking_a_page_out_keeps_it_owned(guest: Guest) -> None:
    # XENMEM_remove_from_physmap
    before = ask(guest, abi.XENMEM_current_reservation)
    assert remove(guest, 0x100) == 0
    assert not guest.domain.space.is_backed(0x100000, 1)
    assert ask(guest, abi.XENMEM_current_reservation) == before
    assert remove(guest, 0x100) == -XEN_ENOENT
    assert remove(guest, 0x101, domid=2) == -XEN_EPERM
    assert remove(guest, 0x101, domid=9) == -XEN_ESRCH


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


# ---- refusals ------------------------------------------------------------------------------------


def test_exchange_is_refused_once_there_is_a_page(guest: Guest) -> None:
    # memory_exchange; steal_page of xen/arch/x86/mm.c: -EOPNOTSUPP for external paging
    layout = form(guest, abi.XEN_MEMORY_EXCHANGE, abi.XEN_MEMORY_EXCHANGE_32)
    part = form(guest, abi.XEN_MEMORY_RESERVATION, abi.XEN_MEMORY_RESERVATION_32)

    def exchange(gfn: int = 0x100, done: int = 0, **fields: int) -> int:
        known = {"extent_start": put_frames(guest, [gfn]), "nr_extents": 1, "domid": DOMID_SELF}
        blank = part.decode(bytes(part.size))
        given, wanted = part.encode(**(blank | known | fields)), part.encode(**(blank | known))
        at = guest.put(layout, **{"in": given, "out": wanted, "nr_exchanged": done})
        return guest.call(MEMORY, abi.XENMEM_exchange, at)

    assert exchange() == -XEN_EOPNOTSUPP
    assert exchange(0x5000) == -XEN_EINVAL
    assert exchange(done=1) == 0
    assert exchange(done=2) == -XEN_EINVAL
    assert exchange(nr_extents=2) == -XEN_EINVAL
    assert exchange(extent_order=10) == -XEN_EPERM
    assert exchange(domid=2) == -XEN_EINVAL
    assert guest.call(MEMORY, abi.XENMEM_exchange, BAD) == -XEN_EFAULT
    assert guest.call(MEMORY, abi.XENMEM_exchange | EXTENT, ARG) == -XEN_EINVAL


@pytest.mark.parametrize("cmd", [abi.XENMEM_machine_memory_map, abi.XENMEM_machphys_mapping])
@pytest.mark.parametrize("arg", [ARG, BAD])
def test_the_machines_own_matters(guest: Guest, cmd: int, arg: int) -> None:
    # hvm_memory_op of xen/arch/x86/hvm/hypercall.c
    assert guest.call(MEMORY, cmd, arg) == -XEN_ENOSYS


@pytest.mark.parametrize("cmd", [8, 20, 22, 29, 63])
def test_operations_that_are_not_there(guest: Guest, cmd: int) -> None:
    assert guest.call(MEMORY, cmd, ARG) == -XEN_ENOSYS


@pytest.mark.parametrize("cmd", [abi.XENMEM_memory_map, abi.XENMEM_get_pod_target, 18, 19])
def test_operations_known_by_the_whole_command(guest: Guest, cmd: int) -> None:
    # arch_memory_op gets the command with its upper bits
    assert guest.call(MEMORY, cmd | EXTENT, ARG) == -XEN_ENOSYS


@pytest.mark.parametrize(("domid", "errno"), [(DOMID_SELF, XEN_EPERM), (9, XEN_ESRCH)])
def test_targets_of_populating_on_demand(guest: Guest, domid: int, errno: int) -> None:
    layout = form(guest, abi.XEN_POD_TARGET, abi.XEN_POD_TARGET_32)
    for cmd in (abi.XENMEM_set_pod_target, abi.XENMEM_get_pod_target):
        assert guest.op(MEMORY, cmd, layout, domid=domid) == -errno


def test_nodes(guest: Guest) -> None:
    layout = abi.XEN_VNUMA_TOPOLOGY_INFO

    def nodes(**fields: int) -> int:
        return guest.op(MEMORY, abi.XENMEM_get_vnumainfo, layout, **fields)

    assert nodes(domid=DOMID_SELF) == -XEN_EOPNOTSUPP
    assert nodes(domid=DOMID_SELF, pad=1) == -XEN_EINVAL
    assert nodes(domid=9) == -XEN_ESRCH
    assert nodes(domid=2) == -XEN_EPERM


def test_claims(world: World) -> None:
    # XENMEM_claim_pages: by id, and DOMID_SELF is none; 32 bit guests don't have it
    guest = world.guests[0]

    def claim(**fields: int) -> int:
        return guest.op(MEMORY, abi.XENMEM_claim_pages, abi.XEN_MEMORY_RESERVATION, **fields)

    assert claim(domid=DOMID_SELF) == -XEN_EINVAL
    assert claim(domid=1) == -XEN_EPERM
    assert claim(domid=1, extent_order=1) == -XEN_EINVAL
    guest.is_64bit = False
    assert claim(domid=1) == -XEN_ENOSYS


def test_resources_of_others(guest: Guest) -> None:
    # acquire_resource: rcu_lock_remote_domain_by_id
    layout = form(guest, abi.XEN_MEM_ACQUIRE_RESOURCE, abi.XEN_MEM_ACQUIRE_RESOURCE_32)

    def acquire(**fields: int) -> int:
        return guest.op(MEMORY, abi.XENMEM_acquire_resource, layout, **fields)

    assert acquire(domid=DOMID_SELF) == -XEN_ESRCH
    assert acquire(domid=1) == -XEN_EPERM
    assert acquire(domid=2) == -XEN_EPERM
    assert acquire(domid=2, pad=1) == -XEN_EINVAL
    assert acquire(domid=2, frame=1 << 32) == -XEN_EINVAL
    assert acquire(domid=2, frame=0xFFFFFFFF, nr_frames=1) == -XEN_EINVAL


def test_devices_reserve_nothing(guest: Guest) -> None:
    layout = form(guest, abi.XEN_RESERVED_DEVICE_MEMORY_MAP, abi.XEN_RESERVED_DEVICE_MEMORY_MAP_32)
    cmd = abi.XENMEM_reserved_device_memory_map
    assert guest.op(MEMORY, cmd, layout, flags=1, nr_entries=9) == 0
    assert guest.get(layout)["nr_entries"] == 0
    assert guest.op(MEMORY, cmd, layout, flags=2) == -XEN_EINVAL


def test_accesses(guest: Guest) -> None:
    # mem_access_memop of xen/common/mem_access.c: another live domain, on a machine that can
    for domid, errno in ((1, XEN_EPERM), (9, XEN_ESRCH), (2, XEN_EINVAL)):
        guest.write_virtual(ARG, struct.pack("<BBH20x", 0, 0, domid))
        assert guest.call(MEMORY, abi.XENMEM_access_op, ARG) == -errno
