"""Grants by hypercall: mapping, copying, versions, sizes, as Xen 4.17 answers.

Each test names the function of `xen/common/grant_table.c` (or another file) it was read in.
"""

from __future__ import annotations

from typing import Any

import pytest
from machine.emulated.guests import ARG, BAD, Guest, World

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
    XEN_EAGAIN,
    XEN_EBUSY,
    XEN_EFAULT,
    XEN_EINVAL,
    XEN_ENOSYS,
    XEN_EPERM,
    XEN_ERANGE,
    XEN_ESRCH,
)
from xenlive.machine.emulated.grants import GrantError
from xenlive.machine.emulated.stop import GuestStop

GRANT = "grant_table_op"
# A hole of the guests in these tests, where foreign pages go.
HOLE = 0x2000_0000
PAGE_GFN = 0x100
REF = 8


@pytest.fixture
def world() -> World:
    return World(3)


@pytest.fixture
def ours(world: World) -> Guest:
    return world.guests[0]


@pytest.fixture
def theirs(world: World) -> Guest:
    return world.guests[1]


def words(guest: Guest, ref: int) -> memoryview:
    """An entry of version 1 as two words."""
    page = guest.domain.grants.shared_view()[ref * 8 // 4096].cast("I")
    return page[ref % 512 * 2 : ref % 512 * 2 + 2]


def grant(guest: Guest, domid: int, gfn: int = PAGE_GFN, ref: int = REF, flags: int = 0) -> int:
    """Grants a page with an entry of version 1."""
    entry = words(guest, ref)
    entry[1] = gfn
    entry[0] = GTF_permit_access | flags | domid << 16
    return ref


def flags_of(guest: Guest, ref: int) -> int:
    return words(guest, ref)[0] & 0xFFFF


def map_ref(guest: Guest, dom: int, ref: int, /, **fields: Any) -> dict[str, Any]:
    """One map operation's answer (`map_grant_ref`)."""
    known = {"host_addr": HOLE, "flags": abi.GNTMAP_host_map, "ref": ref, "dom": dom} | fields
    at = guest.put(abi.GNTTAB_MAP_GRANT_REF, **known)
    assert guest.call(GRANT, abi.GNTTABOP_map_grant_ref, at, 1) == 0
    return guest.get(abi.GNTTAB_MAP_GRANT_REF)


def unmap(guest: Guest, handle: int, host_addr: int = HOLE) -> int:
    at = guest.put(abi.GNTTAB_UNMAP_GRANT_REF, handle=handle, host_addr=host_addr)
    assert guest.call(GRANT, abi.GNTTABOP_unmap_grant_ref, at, 1) == 0
    return int(guest.get(abi.GNTTAB_UNMAP_GRANT_REF)["status"])


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


# ---- sizes and versions --------------------------------------------------------------------------


def query(guest: Guest, dom: int = DOMID_SELF) -> tuple[int, int, int]:
    at = guest.put(abi.GNTTAB_QUERY_SIZE, dom=dom)
    assert guest.call(GRANT, abi.GNTTABOP_query_size, at, 1) == 0
    answer = guest.get(abi.GNTTAB_QUERY_SIZE)
    return answer["status"], answer["nr_frames"], answer["max_nr_frames"]


def test_the_size_of_the_table(ours: Guest) -> None:
    # gnttab_query_size
    assert query(ours) == (abi.GNTST_okay, 1, 64)
    assert query(ours, 1) == (abi.GNTST_okay, 1, 64)
    assert query(ours, 2)[0] == abi.GNTST_permission_denied
    assert query(ours, 9)[0] == abi.GNTST_bad_domain
    assert ours.call(GRANT, abi.GNTTABOP_query_size, ARG, 2) == -XEN_EINVAL
    assert ours.call(GRANT, abi.GNTTABOP_query_size, BAD, 1) == -XEN_EFAULT


def setup(guest: Guest, n_frames: int, frame_list: int = 0x9000, dom: int = DOMID_SELF) -> int:
    layout = abi.GNTTAB_SETUP_TABLE if guest.is_64bit else abi.GNTTAB_SETUP_TABLE_32
    at = guest.put(layout, dom=dom, nr_frames=n_frames, frame_list=frame_list)
    result = guest.call(GRANT, abi.GNTTABOP_setup_table, at, 1)
    return int(guest.get(layout)["status"]) if result == 0 else result


@pytest.mark.parametrize("is_64bit", [True, False])
def test_setting_the_table_up(ours: Guest, is_64bit: bool) -> None:
    # gnttab_setup_table: frames that stand nowhere are all ones
    ours.is_64bit = is_64bit
    layout = memory_abi.XEN_ADD_TO_PHYSMAP if is_64bit else memory_abi.XEN_ADD_TO_PHYSMAP_32
    fields = {"domid": DOMID_SELF, "space": memory_abi.XENMAPSPACE_grant_table, "gpfn": 0x2001}
    assert ours.op("memory_op", memory_abi.XENMEM_add_to_physmap, layout, **fields) == 0
    assert setup(ours, 2) == abi.GNTST_okay
    size = 8 if is_64bit else 4
    expected = (0x2001).to_bytes(size, "little") + b"\xff" * size
    assert ours.read_virtual(0x9000, 2 * size) == expected
    assert query(ours)[1] == 2
    assert setup(ours, 65) == abi.GNTST_general_error
    assert setup(ours, 1, dom=2) == abi.GNTST_permission_denied
    assert setup(ours, 1, dom=9) == abi.GNTST_bad_domain
    assert query(ours)[1] == 2  # never shorter


def set_version(guest: Guest, version: int) -> tuple[int, int]:
    at = guest.put(abi.GNTTAB_SET_VERSION, version=version)
    result = guest.call(GRANT, abi.GNTTABOP_set_version, at, 1)
    return result, guest.get(abi.GNTTAB_SET_VERSION)["version"]


def get_version(guest: Guest, dom: int = DOMID_SELF) -> int:
    at = guest.put(abi.GNTTAB_GET_VERSION, dom=dom)
    result = guest.call(GRANT, abi.GNTTABOP_get_version, at, 1)
    return int(guest.get(abi.GNTTAB_GET_VERSION)["version"]) if result == 0 else result


def test_versions(ours: Guest) -> None:
    # gnttab_set_version: the answer is the version there is now
    assert get_version(ours) == 1
    assert set_version(ours, 3) == (-XEN_EINVAL, 1)
    assert set_version(ours, 1) == (0, 1)
    assert set_version(ours, 2) == (0, 2)
    assert get_version(ours) == 2
    assert get_version(ours, 2) == -XEN_EPERM
    assert get_version(ours, 9) == -XEN_ESRCH
    assert ours.call(GRANT, abi.GNTTABOP_set_version, BAD, 1) == -XEN_EFAULT


def test_a_new_version_keeps_the_toolstacks_entries(world: World) -> None:
    # gnttab_set_version: the first 8 entries stay, in use or not
    guest = world.guests[0]
    before = bytes(words(guest, 0)), bytes(words(guest, 1))
    console = guest.domain.grants_for(0)
    console.map(0)
    grant(guest, domid=0)
    assert set_version(guest, 2) == (0, 2)
    assert guest.domain.grants.header(REF) == (0, 0)
    assert guest.domain.grants.active()[0].writers == 1
    assert set_version(guest, 1) == (0, 1)
    assert flags_of(guest, 0) == GTF_permit_access | GTF_reading | GTF_writing
    console.unmap_all()
    assert (bytes(words(guest, 0)), bytes(words(guest, 1))) == before


def test_versions_and_grants_in_use(ours: Guest, theirs: Guest) -> None:
    handle = map_ref(ours, 2, grant(theirs, domid=1))["handle"]
    assert set_version(theirs, 2) == (-XEN_EBUSY, 1)
    assert unmap(ours, handle) == abi.GNTST_okay
    assert set_version(theirs, 2) == (0, 2)


def v2(guest: Guest, ref: int, layout: Any, **fields: int) -> None:
    """Fills an entry of version 2 in."""
    known = layout.decode(bytes(16)) | fields
    page = guest.domain.grants.shared_view()[ref // 256]
    page[ref % 256 * 16 : ref % 256 * 16 + 16] = layout.encode(**known)


def test_what_version_1_can_not_say(ours: Guest) -> None:
    set_version(ours, 2)
    v2(ours, 3, abi.GRANT_ENTRY_V2_FULL_PAGE, flags=GTF_permit_access, frame=1 << 32)
    assert set_version(ours, 1) == (-XEN_ERANGE, 2)
    v2(ours, 3, abi.GRANT_ENTRY_V2_FULL_PAGE, flags=GTF_transitive)
    assert set_version(ours, 1) == (-XEN_ERANGE, 2)
    v2(ours, 3, abi.GRANT_ENTRY_V2_FULL_PAGE)
    assert set_version(ours, 1) == (0, 1)


def test_mapping_by_version_2(ours: Guest, theirs: Guest) -> None:
    # _set_status_v2: the state stands in a table of its own
    set_version(theirs, 2)
    entry = {"flags": GTF_permit_access, "domid": 1, "frame": PAGE_GFN}
    v2(theirs, REF, abi.GRANT_ENTRY_V2_FULL_PAGE, **entry)
    frame = theirs.domain.grants.status_frame(0)
    assert frame is not None
    status = frame.view.cast("H")
    answer = map_ref(ours, 2, REF)
    assert answer["status"] == abi.GNTST_okay
    assert status[REF] == GTF_reading | GTF_writing
    assert theirs.domain.grants.header(REF)[0] == GTF_permit_access
    assert unmap(ours, answer["handle"]) == abi.GNTST_okay
    assert status[REF] == 0
    v2(theirs, REF, abi.GRANT_ENTRY_V2_FULL_PAGE, **(entry | {"flags": GTF_transitive}))
    assert map_ref(ours, 2, REF)["status"] == abi.GNTST_general_error


def test_status_frames_leave_with_version_2(ours: Guest) -> None:
    # gnttab_unpopulate_status_frames, gnttab_get_status_frame_mfn
    set_version(ours, 2)
    layout = memory_abi.XEN_ADD_TO_PHYSMAP
    fields = {"domid": DOMID_SELF, "space": memory_abi.XENMAPSPACE_grant_table}

    def place(idx: int, gfn: int) -> int:
        every = fields | {"idx": idx, "gpfn": gfn}
        return ours.op("memory_op", memory_abi.XENMEM_add_to_physmap, layout, **every)

    status = memory_abi.XENMAPIDX_grant_table_status
    assert place(status, 0x2000) == 0
    assert place(status | 8, 0x2001) == -XEN_EINVAL
    assert ours.domain.space.lookup(0x2000) is not None
    assert set_version(ours, 1) == (0, 1)
    assert ours.domain.space.lookup(0x2000) is None
    assert place(status, 0x2000) == -XEN_EINVAL


# ---- swapping and copying ------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_entries_change_places(ours: Guest, version: int) -> None:
    # swap_grant_ref
    set_version(ours, version)
    table, size = ours.domain.grants.shared_view()[0], 8 * version
    table[REF * size : REF * size + size] = bytes(range(1, 1 + size))

    def swap(a: int, b: int) -> int:
        at = ours.put(abi.GNTTAB_SWAP_GRANT_REF, ref_a=a, ref_b=b)
        assert ours.call(GRANT, abi.GNTTABOP_swap_grant_ref, at, 1) == 0
        return int(ours.get(abi.GNTTAB_SWAP_GRANT_REF)["status"])

    assert swap(REF, 20) == abi.GNTST_okay
    assert bytes(table[20 * size : 21 * size]) == bytes(range(1, 1 + size))
    assert bytes(table[REF * size : REF * size + size]) == bytes(size)
    assert swap(20, 20) == abi.GNTST_okay
    assert swap(20, 512) == abi.GNTST_bad_gntref


def test_entries_in_use_stay(ours: Guest, theirs: Guest) -> None:
    map_ref(ours, 2, grant(theirs, domid=1))
    at = theirs.put(abi.GNTTAB_SWAP_GRANT_REF, ref_a=REF, ref_b=20)
    assert theirs.call(GRANT, abi.GNTTABOP_swap_grant_ref, at, 1) == 0
    assert theirs.get(abi.GNTTAB_SWAP_GRANT_REF)["status"] == abi.GNTST_eagain


def copy(guest: Guest, **fields: int) -> int:
    """One copy's status (`gnttab_copy_one`)."""
    layout = abi.GNTTAB_COPY if guest.is_64bit else abi.GNTTAB_COPY_32
    at = guest.put(layout, **fields)
    assert guest.call(GRANT, abi.GNTTABOP_copy, at, 1) == 0
    return int(guest.get(layout)["status"])


INTO_REF = {
    "source_u": 0x20,
    "source_domid": DOMID_SELF,
    "dest_u": REF,
    "dest_domid": 2,
    "len": 6,
    "flags": abi.GNTCOPY_dest_gref,
}
FROM_REF = {
    "source_u": REF,
    "source_domid": 2,
    "dest_u": 0x20,
    "dest_domid": DOMID_SELF,
    "len": 6,
    "flags": abi.GNTCOPY_source_gref,
}


@pytest.mark.parametrize("is_64bit", [True, False])
def test_copying_from_a_grant_and_to_one(ours: Guest, theirs: Guest, is_64bit: bool) -> None:
    ours.is_64bit = is_64bit
    grant(theirs, domid=1)
    theirs.domain.space.write((PAGE_GFN << 12) + 100, b"copied")
    assert copy(ours, **FROM_REF, source_offset=100, dest_offset=8) == abi.GNTST_okay
    assert ours.read_virtual(0x20008, 6) == b"copied"
    assert copy(ours, **INTO_REF, dest_offset=4090, source_offset=8) == abi.GNTST_okay
    assert theirs.domain.space.read((PAGE_GFN << 12) + 4090, 6) == b"copied"
    assert theirs.domain.grants.active() == {}
    assert flags_of(theirs, REF) == GTF_permit_access


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"source_domid": 9}, abi.GNTST_bad_domain),
        ({"dest_domid": 2}, abi.GNTST_permission_denied),
        ({"flags": 0}, abi.GNTST_permission_denied),
        ({"source_u": 512}, abi.GNTST_bad_gntref),
        ({"source_u": 9}, abi.GNTST_general_error),
        ({"dest_u": 0x500}, abi.GNTST_bad_page),
        ({"len": 4096, "source_offset": 1}, abi.GNTST_bad_copy_arg),
        ({"len": 0xFFFF, "dest_offset": 0xFFFF}, abi.GNTST_bad_copy_arg),
    ],
)
def test_copies_that_can_not_be(
    ours: Guest, theirs: Guest, fields: dict[str, int], expected: int
) -> None:
    grant(theirs, domid=1)
    assert copy(ours, **(FROM_REF | fields)) == expected
    assert theirs.domain.grants.active() == {}
    assert flags_of(theirs, REF) == GTF_permit_access


def test_copying_to_a_readonly_grant(ours: Guest, theirs: Guest) -> None:
    grant(theirs, domid=1, flags=GTF_readonly)
    assert copy(ours, **FROM_REF) == abi.GNTST_okay
    assert copy(ours, **INTO_REF) == abi.GNTST_general_error


def test_part_of_a_page(ours: Guest, theirs: Guest) -> None:
    # acquire_grant_for_copy: GTF_sub_page
    set_version(theirs, 2)
    flags = GTF_permit_access | GTF_sub_page
    entry = {"flags": flags, "domid": 1, "page_off": 16, "length": 32, "frame": PAGE_GFN}
    v2(theirs, REF, abi.GRANT_ENTRY_V2_SUB_PAGE, **entry)
    assert copy(ours, **FROM_REF, source_offset=16) == abi.GNTST_okay
    assert copy(ours, **FROM_REF, source_offset=42) == abi.GNTST_okay
    assert copy(ours, **FROM_REF, source_offset=43) == abi.GNTST_general_error
    assert copy(ours, **FROM_REF, source_offset=15) == abi.GNTST_general_error


def test_a_grant_handed_on(world: World) -> None:
    # acquire_grant_for_copy: GTF_transitive, one level deep
    first, middle, owner = world.guests
    ref = grant(owner, domid=2)
    owner.domain.space.write(PAGE_GFN << 12, b"onward")
    set_version(middle, 2)
    entry = {"flags": GTF_transitive, "domid": 1, "trans_domid": 3, "gref": ref}
    v2(middle, REF, abi.GRANT_ENTRY_V2_TRANSITIVE, **entry)
    assert copy(first, **FROM_REF) == abi.GNTST_okay
    assert first.read_virtual(0x20000, 6) == b"onward"
    assert owner.domain.grants.active() == {} == middle.domain.grants.active()
    assert flags_of(owner, ref) == GTF_permit_access
    # Not two levels, not in a circle, not to nobody.
    for trans_domid, gref in ((2, REF), (9, ref), (3, 99)):
        changed = entry | {"trans_domid": trans_domid, "gref": gref}
        v2(middle, REF, abi.GRANT_ENTRY_V2_TRANSITIVE, **changed)
        assert copy(first, **FROM_REF) == abi.GNTST_general_error
    assert middle.domain.grants.active() == {}


def test_a_version_change_waits_for_copies(ours: Guest, theirs: Guest) -> None:
    # gnttab_set_version: nr_v2_ops. Copies end within their hypercall, so a pin stands for one.
    set_version(theirs, 2)
    flags = GTF_permit_access | GTF_sub_page
    entry = {"flags": flags, "domid": 1, "page_off": 0, "length": 8, "frame": PAGE_GFN}
    v2(theirs, 5, abi.GRANT_ENTRY_V2_SUB_PAGE, **entry)
    theirs.domain.grants.pin("test", 5, 1, readonly=True, mapping=False)
    assert set_version(theirs, 1) == (-XEN_EAGAIN, 2)
    theirs.domain.grants.unpin(5, readonly=True)
    assert set_version(theirs, 1) == (0, 1)


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
