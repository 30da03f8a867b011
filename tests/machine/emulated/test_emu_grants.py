"""Grants by hypercall: mapping, copying, versions, sizes, as Xen 4.17 answers.

Each test names the function of `xen/common/grant_table.c` (or another file) it was read in.
"""

from __future__ import annotations

import pytest
from machine.emulated.grantcalls import (
    GRANT,
    HOLE,
    INTO_REF,
    PAGE_GFN,
    copy,
    flags_of,
    grant,
    map_ref,
    ours,
    theirs,
    unmap,
    words,
    world,
)
from machine.emulated.guests import ARG, Guest, World

from xenlive.abi.grant_table import (
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
    GTF_writing,
)
from xenlive.abi.hypercalls import grant_table as abi
from xenlive.abi.hypercalls import memory as memory_abi
from xenlive.abi.hypercalls.xen import (
    DOMID_SELF,
    XEN_EFAULT,
    XEN_EINVAL,
    XEN_ENOSYS,
)
from xenlive.machine.emulated.hypervisor.grants import GrantError
from xenlive.machine.emulated.stop import GuestStop

__all__ = ["ours", "theirs", "world"]


def test_a_page_is_shared(ours: Guest, theirs: Guest) -> None:
    ref = grant(theirs, domid=1)
    theirs.domain.space.write(PAGE_GFN << 12, b"from 2")
    answer = map_ref(ours, 2, ref)
    assert (answer["status"], answer["handle"]) == (abi.GNTST_okay, 0)
    assert ours.read_virtual(HOLE, 6) == b"from 2"
    ours.write_virtual(HOLE, b"from 1")
    assert theirs.domain.space.read(PAGE_GFN << 12, 6) == b"from 1"
    mapping = theirs.domain.space.lookup(PAGE_GFN)
    assert mapping is not None
    assert answer["dev_bus_addr"] == mapping.frame.mfn << 12
    assert flags_of(theirs, ref) == GTF_permit_access | GTF_reading | GTF_writing
    assert unmap(ours, answer["handle"]) == abi.GNTST_okay
    assert flags_of(theirs, ref) == GTF_permit_access
    assert ours.domain.space.lookup(HOLE >> 12) is None
    assert unmap(ours, answer["handle"]) == abi.GNTST_bad_handle


def test_a_readonly_mapping_swallows_stores(ours: Guest, theirs: Guest) -> None:
    # create_grant_p2m_mapping: p2m_grant_map_ro
    ref = grant(theirs, domid=1, flags=GTF_readonly)
    assert map_ref(ours, 2, ref)["status"] == abi.GNTST_general_error
    assert flags_of(theirs, ref) == GTF_permit_access | GTF_readonly
    answer = map_ref(ours, 2, ref, flags=abi.GNTMAP_host_map | abi.GNTMAP_readonly)
    assert answer["status"] == abi.GNTST_okay
    assert flags_of(theirs, ref) == GTF_permit_access | GTF_readonly | GTF_reading
    ours.write_virtual(HOLE, b"lost")
    assert theirs.domain.space.read(PAGE_GFN << 12, 4) == bytes(4)
    assert unmap(ours, answer["handle"]) == abi.GNTST_okay
    assert flags_of(theirs, ref) == GTF_permit_access | GTF_readonly


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"flags": 0}, abi.GNTST_bad_gntref),
        ({"flags": abi.GNTMAP_readonly}, abi.GNTST_bad_gntref),
        ({"flags": abi.GNTMAP_device_map}, abi.GNTST_general_error),
        ({"flags": abi.GNTMAP_host_map | abi.GNTMAP_contains_pte}, abi.GNTST_general_error),
        ({"flags": abi.GNTMAP_host_map | 1 << 16}, abi.GNTST_general_error),
        ({"dom": 9}, abi.GNTST_bad_domain),
        ({"dom": DOMID_SELF}, abi.GNTST_bad_domain),  # rcu_lock_domain_by_id
        ({"ref": 512}, abi.GNTST_bad_gntref),
        ({"ref": 0xFFFFFFFF}, abi.GNTST_bad_gntref),
        ({"ref": 9}, abi.GNTST_general_error),  # an entry nobody filled in
        ({"host_addr": 1 << 50}, abi.GNTST_general_error),
    ],
)
def test_what_is_not_to_be_mapped(
    ours: Guest, theirs: Guest, fields: dict[str, int], expected: int
) -> None:
    # map_grant_ref, in its order of checks; _set_status_v1 for the entry
    ref = grant(theirs, domid=1)
    assert map_ref(ours, 2, ref, **fields)["status"] == expected
    assert flags_of(theirs, ref) == GTF_permit_access
    assert theirs.domain.grants.active() == {}


def test_another_domains_grant(world: World) -> None:
    ref = grant(world.guests[1], domid=1)
    assert map_ref(world.guests[2], 2, ref)["status"] == abi.GNTST_general_error


@pytest.mark.parametrize("flags", [GTF_sub_page, GTF_transitive - GTF_permit_access])
def test_entries_that_can_only_be_copied(ours: Guest, theirs: Guest, flags: int) -> None:
    # _set_status_v1: mapping takes whole pages of permit_access
    ref = grant(theirs, domid=1, flags=flags)
    assert map_ref(ours, 2, ref)["status"] == abi.GNTST_general_error


@pytest.mark.parametrize("gfn", [0x500, 0xFEE00, 0xFFFFFFFF])
def test_a_grant_of_a_hole(ours: Guest, theirs: Guest, gfn: int) -> None:
    # get_paged_frame
    ref = grant(theirs, domid=1, gfn=gfn)
    assert map_ref(ours, 2, ref)["status"] == abi.GNTST_bad_page
    assert flags_of(theirs, ref) == GTF_permit_access


def test_a_mapped_page_is_not_granted_on(world: World) -> None:
    # get_paged_frame: p2m_is_foreign, and grants are no RAM
    ref = grant(world.guests[1], domid=1)
    assert map_ref(world.guests[0], 2, ref)["status"] == abi.GNTST_okay
    again = grant(world.guests[0], domid=3, gfn=HOLE >> 12)
    assert map_ref(world.guests[2], 1, again)["status"] == abi.GNTST_bad_page


def test_a_grant_mapped_twice_counts(ours: Guest, theirs: Guest) -> None:
    # map_grant_ref: what is pinned is not read again; reduce_status_for_pin
    ref = grant(theirs, domid=1)
    readonly = abi.GNTMAP_host_map | abi.GNTMAP_readonly
    first = map_ref(ours, 2, ref, flags=readonly)
    words(theirs, ref)[1] = PAGE_GFN + 1  # too late
    second = map_ref(ours, 2, ref, host_addr=HOLE + 4096)
    assert second["status"] == abi.GNTST_okay
    assert second["dev_bus_addr"] == first["dev_bus_addr"]
    # A copy does read it again, and is refused.
    assert copy(ours, **INTO_REF) == abi.GNTST_okay
    assert unmap(ours, second["handle"], HOLE + 4096) == abi.GNTST_okay
    assert copy(ours, **INTO_REF) == abi.GNTST_general_error
    assert flags_of(theirs, ref) == GTF_permit_access | GTF_reading
    assert unmap(ours, first["handle"]) == abi.GNTST_okay
    assert copy(ours, **INTO_REF) == abi.GNTST_okay


def test_writer_and_reader(ours: Guest, theirs: Guest) -> None:
    ref = grant(theirs, domid=1)
    writer = map_ref(ours, 2, ref)
    readonly = abi.GNTMAP_host_map | abi.GNTMAP_readonly
    reader = map_ref(ours, 2, ref, host_addr=HOLE + 4096, flags=readonly)
    assert unmap(ours, writer["handle"]) == abi.GNTST_okay
    assert flags_of(theirs, ref) == GTF_permit_access | GTF_reading
    assert unmap(ours, reader["handle"], HOLE + 4096) == abi.GNTST_okay
    assert flags_of(theirs, ref) == GTF_permit_access


def test_pins_are_counted_in_half_a_byte_of_range(ours: Guest, theirs: Guest) -> None:
    # GNTPIN_incr2oflow_mask
    ref = grant(theirs, domid=1)
    for i in range(128):
        assert map_ref(ours, 2, ref, host_addr=HOLE + i * 4096)["status"] == abi.GNTST_okay
    refused = map_ref(ours, 2, ref, host_addr=HOLE + 200 * 4096)
    assert refused["status"] == abi.GNTST_general_error


def test_the_owner_can_not_free_what_is_mapped(ours: Guest, theirs: Guest) -> None:
    ref = grant(theirs, domid=1)
    theirs.domain.space.write(PAGE_GFN << 12, b"kept")
    answer = map_ref(ours, 2, ref)
    before = theirs.domain.space.total_pages
    theirs.write_virtual(0x9000, PAGE_GFN.to_bytes(8, "little"))
    layout = memory_abi.XEN_MEMORY_RESERVATION
    fields = {"extent_start": 0x9000, "nr_extents": 1, "domid": DOMID_SELF}
    assert theirs.op("memory_op", memory_abi.XENMEM_decrease_reservation, layout, **fields) == 1
    assert theirs.domain.space.lookup(PAGE_GFN) is None
    assert ours.read_virtual(HOLE, 4) == b"kept"
    assert theirs.domain.space.total_pages == before
    assert unmap(ours, answer["handle"]) == abi.GNTST_okay
    assert theirs.domain.space.total_pages == before - 1


def test_unmapping_what_is_not_there(ours: Guest, theirs: Guest) -> None:
    # unmap_common, replace_grant_p2m_mapping
    handle = map_ref(ours, 2, grant(theirs, domid=1))["handle"]
    assert unmap(ours, handle, HOLE + 4096) == abi.GNTST_general_error
    assert unmap(ours, handle, 0x1000) == abi.GNTST_general_error
    assert unmap(ours, handle, 0) == abi.GNTST_okay  # nothing was asked for
    assert unmap(ours, 999) == abi.GNTST_bad_handle
    assert unmap(ours, handle) == abi.GNTST_okay


def test_handles_are_given_out_as_xen_does(ours: Guest, theirs: Guest) -> None:
    # get_maptrack_handle: 256 at a time, a freed one goes to the end of the list
    ref = grant(theirs, domid=1)
    handles = [map_ref(ours, 2, ref, host_addr=HOLE + i * 4096)["handle"] for i in range(3)]
    assert handles == [0, 1, 2]
    assert unmap(ours, 1, HOLE + 4096) == abi.GNTST_okay
    assert map_ref(ours, 2, ref, host_addr=HOLE + 4096)["handle"] == 3
    # A refused map takes a handle and gives it back; a domain that is not there takes none.
    assert map_ref(ours, 2, 9)["status"] == abi.GNTST_general_error
    assert map_ref(ours, 2, ref, host_addr=HOLE + 9 * 4096)["handle"] == 5


def test_mapping_over_a_mapping_kills(ours: Guest, theirs: Guest) -> None:
    # p2m_add_page: "Don't permit unmapping grant/foreign this way", domain_crash
    ref = grant(theirs, domid=1)
    map_ref(ours, 2, ref)
    with pytest.raises(GuestStop):
        map_ref(ours, 2, ref)
    assert ours.domain.shutdown_reason == 3


def test_a_list_stops_at_what_can_not_be_read(ours: Guest, theirs: Guest) -> None:
    # gnttab_map_grant_ref: what was done is done
    ref = grant(theirs, domid=1)
    layout = abi.GNTTAB_MAP_GRANT_REF
    at = (4 << 20) - layout.size
    fields = {"host_addr": HOLE, "flags": abi.GNTMAP_host_map, "ref": ref, "dom": 2}
    ours.put(layout, at, **fields)
    assert ours.call(GRANT, abi.GNTTABOP_map_grant_ref, at, 2) == -XEN_EFAULT
    assert ours.get(layout, at)["status"] == abi.GNTST_okay
    assert len(ours.domain.mappings.mapped()) == 1


def test_a_domain_that_goes_gives_back(ours: Guest, theirs: Guest) -> None:
    # gnttab_release_mappings
    ref = grant(theirs, domid=1)
    map_ref(ours, 2, ref)
    ours.domain.destroy()
    assert flags_of(theirs, ref) == GTF_permit_access
    assert ours.domain.domid not in ours.domain.peers


@pytest.mark.parametrize("cmd", [3, 4, 7, 9, 12, 13, 0xFFFFFFFF, 1 << 12])
def test_operations_that_hvm_guests_do_not_have(ours: Guest, cmd: int) -> None:
    # hvm_grant_table_op: dump_table, transfer, unmap_and_replace, status frames, cache_flush
    assert ours.call(GRANT, cmd, ARG, 1) == -XEN_ENOSYS


def test_a_negative_count(ours: Guest) -> None:
    # do_grant_table_op
    assert ours.call(GRANT, abi.GNTTABOP_query_size, ARG, 0x80000000) == -XEN_EINVAL


# ---- back ends -----------------------------------------------------------------------------------


def test_a_back_end_maps_a_ring(world: World) -> None:
    guest = world.guests[0]
    refs = [grant(guest, domid=0, gfn=PAGE_GFN + i, ref=10 + i) for i in range(3)]
    back_end = guest.domain.grants_for(0)
    views = back_end.map_ring(refs)
    views[2][:4] = b"ring"
    assert guest.domain.space.read((PAGE_GFN + 2) << 12, 4) == b"ring"
    assert sorted(guest.domain.grants.active()) == refs
    with pytest.raises(GrantError) as refused:
        back_end.map_ring([10, 99])
    assert refused.value.status == abi.GNTST_general_error
    assert guest.domain.grants.active()[10].writers == 1
    back_end.unmap_all()
    assert guest.domain.grants.active() == {}
    with pytest.raises(GrantError):
        back_end.unmap(10)
