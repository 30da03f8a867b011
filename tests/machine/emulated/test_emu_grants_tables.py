"""Grant tables by hypercall: sizes, versions, entries that change places, copies.

Each test names the function of `xen/common/grant_table.c` (Xen 4.17) it was read in.
"""

from __future__ import annotations

import pytest
from machine.emulated.grantcalls import (
    FROM_REF,
    GRANT,
    INTO_REF,
    PAGE_GFN,
    REF,
    copy,
    flags_of,
    grant,
    map_ref,
    ours,
    set_version,
    theirs,
    unmap,
    v2,
    words,
    world,
)
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
    XEN_EPERM,
    XEN_ERANGE,
    XEN_ESRCH,
)

__all__ = ["ours", "theirs", "world"]

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
