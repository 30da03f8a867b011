"""What stands behind guest frames, by hypercall; and the memory operations that are refused.

Each test names the function it was read in, of `xen/common/memory.c` (Xen 4.17) if no file is
named.
"""

from __future__ import annotations

import struct

import pytest
from machine.emulated.calls import form, guest, world
from machine.emulated.guests import ARG, BAD, Guest, World
from machine.emulated.memorycalls import (
    EXTENT,
    LIST,
    MEMORY,
    add,
    ask,
    grant_and_map,
    put_frames,
    remove,
)

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

__all__ = ["guest", "world"]  # the fixtures

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
    # p2m_pt_set_entry: four levels; the page was taken from its old place before
    assert add(guest, abi.XENMAPSPACE_gmfn, 0x100, 1 << 36) == -XEN_ENOENT
    assert guest.domain.space.lookup(0x100) is None
    assert add(guest, abi.XENMAPSPACE_gmfn, 0x101, (1 << 36) - 1) == 0


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
    # arch_acquire_resource_check: not for translated domains, whatever they ask
    layout = form(guest, abi.XEN_MEM_ACQUIRE_RESOURCE, abi.XEN_MEM_ACQUIRE_RESOURCE_32)

    def acquire(**fields: int) -> int:
        return guest.op(MEMORY, abi.XENMEM_acquire_resource, layout, **fields)

    assert {acquire(domid=domid) for domid in (DOMID_SELF, 0, 1, 2, 9)} == {-XEN_EACCES}
    assert acquire(domid=2, pad=1) == -XEN_EACCES
    # the form of 32 bits is read first: compat_memory_op
    errno = XEN_EACCES if guest.is_64bit else XEN_EFAULT
    assert guest.call(MEMORY, abi.XENMEM_acquire_resource, BAD) == -errno


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
