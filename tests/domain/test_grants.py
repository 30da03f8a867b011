"""Grant tables: what a domain gives out, and what another domain gets to see of it."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.abi import grant_table as gt
from xenlive.domain.grants import GrantMapper, GrantTable
from xenlive.errors import HypercallError, OutOfSpace
from xenlive.memory.address import PAGE_SIZE, Frame
from xenlive.memory.guest import GuestMemory

N_FRAMES = 8


def new_table(pages: int = 4) -> tuple[GrantTable, bytearray]:
    frames = bytearray(pages * PAGE_SIZE)
    return GrantTable(memoryview(frames)), frames


def mapper_of(frames: bytearray, domid: int = 0) -> tuple[GrantMapper, bytearray]:
    ram = bytearray(N_FRAMES * PAGE_SIZE)
    return GrantMapper(memoryview(frames), GuestMemory([(0, ram)]), domid), ram


def entry_bytes(frames: bytearray, ref: int) -> tuple[int, int, int]:
    flags, domid, frame = struct.unpack_from("<HHI", frames, ref * 8)
    return flags, domid, frame


def test_references_go_down_from_the_highest() -> None:
    """As Mini-OS gives them out: 2047, then 2046 to 2031, in a table of four pages."""
    table, frames = new_table()
    refs = [table.grant_access(0, Frame(0x3FEE + n)) for n in range(17)]
    assert refs == list(range(2047, 2030, -1))
    assert entry_bytes(frames, 2047) == (gt.GTF_permit_access, 0, 0x3FEE)
    assert table.entry(2031) == (gt.GTF_permit_access, 0, 0x3FFE)
    assert entry_bytes(frames, 2030) == (0, 0, 0)


def test_reserved_references_are_never_given_out() -> None:
    table, frames = new_table(1)
    refs = [table.grant_access(3, Frame(n)) for n in range(512 - 8)]
    assert min(refs) == 8
    before = bytes(frames)
    with pytest.raises(OutOfSpace):
        table.grant_access(3, Frame(1))
    assert bytes(frames) == before
    assert table.free_refs == 0


def test_readonly_and_other_domains() -> None:
    table, frames = new_table()
    ref = table.grant_access(0x7FF0, Frame(2**32 - 1), readonly=True)
    assert entry_bytes(frames, ref) == (gt.GTF_permit_access | gt.GTF_readonly, 0x7FF0, 2**32 - 1)


@pytest.mark.parametrize(("domid", "frame"), [(-1, 0), (65536, 0), (0, -1), (0, 2**32)])
def test_numbers_that_do_not_fit(domid: int, frame: int) -> None:
    table, frames = new_table()
    with pytest.raises(ValueError, match="does not fit"):
        table.grant_access(domid, Frame(frame))
    assert not any(frames)


def test_active_entries_of_the_kernel_before_are_kept() -> None:
    table, frames = new_table()
    refs = [table.grant_access(0, Frame(n)) for n in range(3)]
    assert table.end_access(refs[1])
    after = GrantTable(memoryview(frames))
    assert after.free_refs == table.free_refs
    assert [after.grant_access(0, Frame(9)) for _ in range(2)] == [refs[1], refs[2] - 1]
    assert after.entry(refs[0])[2] == 0
    assert after.entry(refs[2])[2] == 2


def test_a_grant_in_use_is_not_taken_back() -> None:
    table, frames = new_table()
    mapper, _ = mapper_of(frames)
    ref = table.grant_access(0, Frame(1))
    mapper.map(ref)
    assert not table.end_access(ref)
    mapper.unmap(ref)
    assert table.end_access(ref)
    assert entry_bytes(frames, ref)[0] == 0
    assert table.end_access(ref)  # once more does nothing
    assert table.grant_access(0, Frame(2)) == ref
    assert table.grant_access(0, Frame(2)) != ref


@pytest.mark.parametrize("ref", [-1, 0, 7, 2048, 2**32])
def test_references_that_are_not_ours_to_take_back(ref: int) -> None:
    with pytest.raises(IndexError):
        new_table()[0].end_access(ref)


@pytest.mark.parametrize("ref", [-1, 2048, 2**32 - 1])
def test_entries_that_are_not_there(ref: int) -> None:
    with pytest.raises(IndexError):
        new_table()[0].entry(ref)


@pytest.mark.parametrize("size", [0, 8, PAGE_SIZE + 8])
def test_a_table_is_made_of_pages(size: int) -> None:
    with pytest.raises(ValueError, match="whole pages"):
        GrantTable(memoryview(bytearray(size)))


# -- the other domain's side ---------------------------------------------------------------------


def test_a_mapping_is_live_and_marked() -> None:
    table, frames = new_table()
    mapper, ram = mapper_of(frames)
    ref = table.grant_access(0, Frame(3))
    page = mapper.map(ref)
    page[7] = 42
    assert ram[3 * PAGE_SIZE + 7] == 42
    assert len(page) == PAGE_SIZE
    # Xen's marks, as recorded from Mini-OS: 25 = permit_access, reading, writing
    assert entry_bytes(frames, ref) == (25, 0, 3)
    reading = mapper.map(ref, writable=False)
    assert reading.readonly
    mapper.unmap(ref)
    assert entry_bytes(frames, ref)[0] == gt.GTF_permit_access | gt.GTF_reading
    mapper.unmap(ref, writable=False)
    assert entry_bytes(frames, ref)[0] == gt.GTF_permit_access
    for writable in (True, False):
        with pytest.raises(HypercallError, match="GNTST_bad_handle"):
            mapper.unmap(ref, writable)


REFUSED = [
    ("GNTST_bad_gntref", (0, 0, 1), 0),
    ("GNTST_bad_gntref", (gt.GTF_accept_transfer, 0, 1), 0),
    ("GNTST_bad_gntref", (gt.GTF_transitive, 0, 1), 0),
    ("GNTST_bad_gntref", (gt.GTF_permit_access | gt.GTF_sub_page, 0, 1), 0),
    ("GNTST_bad_gntref", (gt.GTF_permit_access, 5, 1), 0),
    ("GNTST_permission_denied", (gt.GTF_permit_access | gt.GTF_readonly, 0, 1), 0),
    ("GNTST_bad_page", (gt.GTF_permit_access, 0, N_FRAMES), 0),
    ("GNTST_bad_page", (gt.GTF_permit_access, 0, 2**32 - 1), 0),
]


@pytest.mark.parametrize(("status", "entry", "domid"), REFUSED)
def test_what_is_not_mapped(status: str, entry: tuple[int, int, int], domid: int) -> None:
    frames = bytearray(PAGE_SIZE)
    struct.pack_into("<HHI", frames, 100 * 8, *entry)
    struct.pack_into("<HHI", frames, 101 * 8, gt.GTF_permit_access, 0, 1)
    mapper, _ = mapper_of(frames, domid)
    before = bytes(frames)
    with pytest.raises(HypercallError, match=status) as caught:
        mapper.map(100)
    wanted = errno.EACCES if status == "GNTST_permission_denied" else errno.EINVAL
    assert caught.value.errno == wanted
    with pytest.raises(HypercallError, match=status):
        mapper.map_ring([101, 100])
    assert bytes(frames) == before


@pytest.mark.parametrize("ref", [-1, 512, 2**32 - 1])
def test_references_outside_of_the_table(ref: int) -> None:
    mapper, _ = mapper_of(bytearray(PAGE_SIZE))
    with pytest.raises(HypercallError, match="GNTST_bad_gntref"):
        mapper.map(ref)


def test_a_readonly_grant_can_be_read() -> None:
    table, frames = new_table()
    mapper, _ = mapper_of(frames)
    ref = table.grant_access(0, Frame(1), readonly=True)
    assert mapper.map(ref, writable=False).readonly
    assert not entry_bytes(frames, ref)[0] & gt.GTF_writing


def test_a_ring_comes_in_order_and_in_few_views() -> None:
    table, frames = new_table()
    mapper, ram = mapper_of(frames)
    refs = [table.grant_access(0, Frame(n)) for n in (4, 5, 2, 3)]
    views = mapper.map_ring(refs)
    assert [len(view) for view in views] == [2 * PAGE_SIZE, 2 * PAGE_SIZE]
    views[1][PAGE_SIZE] = 9
    assert ram[3 * PAGE_SIZE] == 9
    mapper.unmap_all()
    assert all(table.end_access(ref) for ref in refs)


@settings(deadline=None, max_examples=200)
@given(st.binary(min_size=64, max_size=64), st.lists(st.integers(0, 12), max_size=12))
def test_no_table_leads_out_of_memory(table: bytes, refs: list[int]) -> None:
    """Whatever a domain writes there: a page of its memory, or a HypercallError."""
    frames = bytearray(PAGE_SIZE)
    frames[: len(table)] = table
    mapper, _ = mapper_of(frames)
    for ref in refs:
        try:
            assert len(mapper.map(ref)) == PAGE_SIZE
        except HypercallError:
            continue
    mapper.unmap_all()
    for ref in range(8):
        flags, domid, frame = struct.unpack_from("<HHI", table, ref * 8)
        if flags & 3 == 1 and domid == 0 and frame < N_FRAMES:
            continue
        assert entry_bytes(frames, ref) == (flags, domid, frame)
