"""Gaps closed, the table made longer and moved: cases by hand, and every moment of each."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexec.killpoints import Stores, next_kernel, recorded_page, records_of
from kexec.pages import Entry, keeps_all, opened, page_of

from xenlive.errors import ModuleError, OutOfSpace
from xenlive.kexec.adminpage import AdminPage
from xenlive.kexec.arrange import clear_below, compact, extend_table, raise_table
from xenlive.memory.address import PAGE_SIZE

# With 17 pages the table lies at 32; 16 entries end at 96.
TABLE_END = 96


def data(letter: str, size: int) -> bytes:
    return letter.encode() * size


def filled(start: int, end: int) -> list[Entry | None]:
    """Records of 255 bytes, and a last smaller one, that fill a page from `start` to `end`."""
    entries: list[Entry | None] = []
    while start < end:
        size = min(255, end - start)
        entries.append((start, 9, bytes([len(entries) + 1]) * size))
        start += size
    return entries


COMPACTIONS: list[tuple[str, list[Entry | None], list[int]]] = [
    ("nothing there", [], []),
    ("already packed", [(96, 1, b"abcd"), (100, 1, b"ef")], [96, 100]),
    ("a gap before", [(100, 1, b"abcd")], [96]),
    ("a gap between, wide", [(96, 1, b"abcd"), (200, 1, b"efgh")], [96, 100]),
    ("a gap of one byte", [(97, 1, data("a", 200))], [96]),
    ("index order is not order of place", [(300, 1, b"abcd"), (200, 1, b"ef")], [98, 96]),
    ("several gaps", [(99, 1, b"abc"), (110, 2, b"defg"), (4000, 3, data("h", 96))], [96, 99, 103]),
    ("an empty record far off", [(4096, 1, b""), (96, 1, b"x")], [97, 96]),
    ("an empty record inside another", [(98, 1, b""), (96, 1, b"wxyz")], [100, 96]),
    ("unused entries between", [None, (120, 1, b"ab"), None, (130, 1, b"cd")], [96, 98]),
]


@pytest.mark.parametrize(
    ("entries", "offsets"),
    [case[1:] for case in COMPACTIONS],
    ids=[case[0] for case in COMPACTIONS],
)
def test_compact(entries: list[Entry | None], offsets: list[int]) -> None:
    stores = recorded_page(page_of(17, entries), compact)
    keeps_all(stores)
    after = opened(stores.after)
    assert [record.offset for record in after.records()] == offsets
    assert after.whole()[after.data_end :] == bytes(PAGE_SIZE - after.data_end)
    assert recorded_page(stores.after, compact).stores == []


def test_a_full_page_is_compacted_through_the_gap_it_has() -> None:
    """No free byte at the end: a record of 50 bytes jumps into the gap of 125."""
    entries = [*filled(221, 4046), (4046, 9, data("z", 50))]
    before = page_of(17, entries)
    assert opened(before).data_end == PAGE_SIZE
    stores = recorded_page(before, compact)
    keeps_all(stores)
    after = opened(stores.after)
    moved = after.records()[-1]
    assert (moved.offset, moved.size) == (96, 50)
    # The freed end is smaller than any other record, so none of those can move without a risk.
    assert after.data_end == 4046
    assert recorded_page(stores.after, compact).stores == []


LOWERED: list[tuple[str, int, list[Entry | None], int, tuple[int, int]]] = [
    # What, where the table lies, entries, of how many; where table and data's end are then.
    ("by one", 33, [(97, 1, b"0123456789abcdef")], 16, (32, 112)),
    ("by half its size", 64, [(128, 1, b"abcd"), None, (132, 2, b"")], 16, (32, 100)),
    ("by its size", 96, [(160, 1, b"abcd")], 16, (32, 100)),
    ("far", 3900, [(3964, 1, data("a", 132))], 16, (32, 228)),
    ("from the very end", 4032, [(4096, 1, b"")], 16, (32, 96)),
    ("a long one", 500, [(1520, 1, b"abcd")], 255, (32, 1056)),
    ("one of no entries", 500, [], 0, (32, 32)),
    ("no room for it twice", 40, filled(104, 4096), 16, (40, 4096)),
    ("room once the data is packed", 40, [(300, 1, data("a", 255))], 16, (32, 351)),
]


@pytest.mark.parametrize(
    ("recs_off", "entries", "n_records", "places"),
    [case[1:] for case in LOWERED],
    ids=[case[0] for case in LOWERED],
)
def test_compact_brings_the_table_down(
    recs_off: int, entries: list[Entry | None], n_records: int, places: tuple[int, int]
) -> None:
    stores = recorded_page(page_of(17, entries, recs_off, n_records), compact)
    keeps_all(stores)
    after = opened(stores.after)
    assert (after.recs_off, after.data_end, after.n_records) == (*places, n_records)
    assert after.whole()[after.data_end :] == bytes(PAGE_SIZE - after.data_end)
    assert recorded_page(stores.after, compact).stores == []


def test_what_can_not_move_stays() -> None:
    before = page_of(17, filled(100, 4096))
    assert recorded_page(before, compact).stores == []


def test_a_gap_further_up_serves_as_the_third_place() -> None:
    entries: list[Entry | None] = [(97, 1, data("a", 100)), *filled(400, 4096)]
    stores = recorded_page(page_of(17, entries), compact)
    keeps_all(stores)
    assert opened(stores.after).records()[0].offset == 96


def test_extending_the_table_moves_what_is_in_the_way() -> None:
    entries: list[Entry | None] = [
        (96, 1, b"0123456789abcdef"),
        (112, 2, data("b", 255)),
        (367, 3, b""),
    ]
    before = page_of(17, entries, owners=b"\0\1\1")
    stores = recorded_page(before, lambda page: extend_table(page, 40))
    keeps_all(stores)
    after = opened(stores.after)
    assert (after.n_records, after.recs_off) == (40, 32)
    assert after.data_end == 32 + 40 * 4 + 16 + 255
    assert after.types()[3:] == bytes(37)


def test_new_entries_are_unused_whatever_lay_there() -> None:
    """A kernel that died while it moved data leaves parts of copies in free bytes."""
    junk = bytearray(page_of(17, [(96, 1, b"abcd")]))
    junk[100:400] = b"\x07" * 300
    stores = recorded_page(bytes(junk), lambda page: extend_table(page, 40))
    keeps_all(stores)
    assert opened(stores.after).types() == b"\1" + bytes(39)
    assert stores.after[36:192] == bytes(156)
    stores = recorded_page(bytes(junk), raise_table(40)[0])
    keeps_all(stores)
    assert opened(stores.after).types() == b"\1" + bytes(15)


@pytest.mark.parametrize("recs_off", [32, 33, 47, 1001])
def test_the_longest_table(recs_off: int) -> None:
    """Also where no kernel of ours puts it."""
    entries: list[Entry | None] = [(recs_off + 64, 1, b"0123456789abcdef")]
    stores = recorded_page(page_of(17, entries, recs_off), lambda page: extend_table(page, 255))
    keeps_all(stores)
    page = opened(stores.after)
    assert page.table_end == recs_off + 1020
    for index in range(1, 255):
        assert page.add(7, bytes([index])) == index
    assert records_of(opened(page.whole()))[254] == (7, b"\xfe")
    with pytest.raises(OutOfSpace):
        page.add(7, b"")


@pytest.mark.parametrize("n_records", [-1, 15, 256, 70000])
def test_tables_that_can_not_be(n_records: int) -> None:
    page = opened(page_of(17, []))
    with pytest.raises(ModuleError):
        extend_table(page, n_records)
    assert page.whole() == page_of(17, [])


def test_no_room_for_a_longer_table() -> None:
    """One entry more is in the way of a record of 255 bytes: that needs another place."""
    for end in (PAGE_SIZE, PAGE_SIZE - 254):
        page = opened(page_of(17, filled(96, end)))
        before = page.whole()
        with pytest.raises(OutOfSpace):
            extend_table(page, 17)
        assert page.whole() == before
    roomy = page_of(17, filled(96, PAGE_SIZE - 255))
    assert keeps_all(recorded_page(roomy, lambda page: extend_table(page, 17))) > 255


def test_a_longer_table_than_the_page_has() -> None:
    page = opened(page_of(3986, []))
    with pytest.raises(OutOfSpace) as raised:
        extend_table(page, 25)
    assert (raised.value.wanted, raised.value.available) == (36, 32)
    extend_table(page, 24)
    assert page.table_end == PAGE_SIZE


def raised_by_the_first_way(page: AdminPage, recs_off: int) -> int:
    """Moves the table; which of the ways it went, the first being 0."""
    for number, way in enumerate(raise_table(recs_off)):
        try:
            way(page.scratch())
        except OutOfSpace:
            continue
        way(page)
        return number
    raise AssertionError("no way to move the table")


SMALL: list[Entry | None] = [(96, 1, b"0123456789abcdef"), None, (112, 2, b"xyz")]
RAISED: list[tuple[str, list[Entry | None], int, int, tuple[int, int]]] = [
    # What, entries, new place; the way, and where table and data lie then.
    ("by two", SMALL, 34, 0, (34, 98)),
    ("by less than its size", SMALL, 90, 0, (90, 154)),
    ("by its size", SMALL, 96, 0, (96, 160)),
    ("far", SMALL, 1000, 0, (1000, 1064)),
    ("as far as it goes", SMALL, 4012, 0, (4012, 4076)),
    ("one further", SMALL, 4013, 0, (4013, 4077)),
    ("no room for it twice", filled(160, 4096), 34, 2, (96, 160)),
    ("hardly room", [(96, 1, data("a", 255)), (351, 1, data("b", 255))], 3500, 0, (3500, 3564)),
    ("nothing in it", [], 40, 0, (40, 104)),
]


@pytest.mark.parametrize(
    ("entries", "recs_off", "way", "places"),
    [case[1:] for case in RAISED],
    ids=[case[0] for case in RAISED],
)
def test_the_table_moves_up(
    entries: list[Entry | None], recs_off: int, way: int, places: tuple[int, int]
) -> None:
    gone: list[int] = []
    stores = recorded_page(
        page_of(17, entries, owners=b"\0" if entries else b""),
        lambda page: gone.append(raised_by_the_first_way(page, recs_off)),
    )
    keeps_all(stores)
    after = opened(stores.after)
    assert (gone, after.recs_off, after.n_records) == ([way], places[0], 16)
    assert after.table_end == places[1]
    assert stores.after[31:recs_off] == bytes(recs_off - 31)


def test_entries_that_nobody_uses_need_no_room_on_the_way() -> None:
    """A table of 255 entries, of which 12 are in use, in a page that is full: only those move."""
    before = page_of(17, filled(1054, 4096), n_records=255)
    gone: list[int] = []
    stores = recorded_page(before, lambda page: gone.append(raised_by_the_first_way(page, 34)))
    keeps_all(stores)
    after = opened(stores.after)
    assert (gone, after.recs_off, after.n_records, after.table_end) == ([1], 34, 255, 1054)


def test_a_table_that_is_high_enough_stays() -> None:
    before = page_of(17, SMALL)
    for way in raise_table(32):
        assert recorded_page(before, way).stores == []


@st.composite
def sound_pages(draw: st.DrawFn) -> bytes:
    """Records of any size at any place, in any order, behind a table at any place."""
    n_pages = draw(st.sampled_from([0, 1, 17, 300]))
    recs_off = 14 + n_pages + draw(st.sampled_from([0, 0, 1, 2, 51]))
    n_records = draw(st.sampled_from([1, 3, 16, 60]))
    cursor = recs_off + 4 * n_records
    entries: list[Entry | None] = []
    for number in range(draw(st.integers(0, n_records))):
        cursor += draw(st.sampled_from([0, 0, 0, 1, 3, 30, 500]))
        size = draw(st.one_of(st.integers(0, 255), st.just(255)))
        if cursor + size <= PAGE_SIZE:
            entries.append((cursor, 1 + number, bytes([number + 1]) * size))
            cursor += size
    entries += [None] * (n_records - len(entries))
    owners = draw(st.lists(st.sampled_from([0, 1, 2, 255]), max_size=n_pages))
    used = [255 if o != 255 and entries[o : o + 1] in ([], [None]) else o for o in owners]
    order = draw(st.permutations(range(n_records)))
    back = {old: new for new, old in enumerate(order)}
    moved = bytes(255 if owner == 255 else back[owner] for owner in used)
    return page_of(n_pages, [entries[old] for old in order], recs_off, n_records, moved)


@settings(deadline=None, max_examples=30)
@given(sound_pages())
def test_compact_any_page(before: bytes) -> None:
    stores = recorded_page(before, compact)
    keeps_some(stores)
    old, new = opened(before), opened(stores.after)
    assert new.data_end <= old.data_end
    free = PAGE_SIZE - new.data_end
    if free >= 255:
        assert new.data_end == new.table_end + sum(record.size for record in new.records())


@settings(deadline=None, max_examples=30)
@given(sound_pages(), st.integers(0, 4000))
def test_clear_any_page(before: bytes, more: int) -> None:
    page = opened(before)
    floor = page.table_end + more
    free_behind = PAGE_SIZE - max(floor, page.data_end)
    low = sum(record.size for record in page.records() if record.offset < floor)
    try:
        clear_below(page, floor)
    except OutOfSpace:
        assert free_behind < low or floor > PAGE_SIZE
        return
    assert all(record.offset >= floor for record in page.records())
    keeps_some(recorded_page(before, lambda page: clear_below(page, floor)))


@settings(deadline=None, max_examples=30)
@given(sound_pages(), st.integers(1, 600))
def test_raise_any_page(before: bytes, more: int) -> None:
    page = opened(before)
    recs_off, n_records = page.recs_off + more, page.n_records
    try:
        way = raise_table(recs_off)[raised_by_the_first_way(page, recs_off)]
    except AssertionError:
        return
    stores = recorded_page(before, way)
    keeps_some(stores)
    assert stores.after == page.whole()
    assert page.recs_off >= recs_off
    assert page.n_records == n_records


def keeps_some(stores: Stores) -> None:
    """As `keeps_all`, at some moments of a change that has many."""
    before = records_of(opened(stores.before))
    owners = opened(stores.before).owners()
    assert records_of(opened(stores.after)) == before
    for moment in stores.pages(some=20):
        found = next_kernel(moment, len(owners))
        assert found is not None
        assert (records_of(found), found.owners()) == (before, owners)
