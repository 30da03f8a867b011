"""Growing and shrinking: what it gives, that it can end anywhere, and who may meet it half done."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexec.killpoints import next_kernel, recorded, recorded_page
from kexec.pages import keeps_all, opened, page_of

from xenlive.abi.kexec_module import RECORD_RESIZE
from xenlive.errors import ModuleError, OutOfSpace
from xenlive.kexec import KexecModule
from xenlive.kexec.adminpage import AdminPage
from xenlive.kexec.recover import settle
from xenlive.kexec.resize import find_resize, resize
from xenlive.kexec.verify import verify
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, E820_RESERVED, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

END = 0x4000000
RAM = MemoryMap([MemoryRange(0, END, E820_RAM)])


def module_of(n_module_pages: int) -> tuple[GuestMemory, KexecModule]:
    """A fresh module that ends at the end of RAM, and 64 pages of RAM below it."""
    base = PhysAddr(END - (n_module_pages + 64) * PAGE_SIZE)
    memory = GuestMemory([(base, bytearray(END - base))])
    address = PhysAddr(END - n_module_pages * PAGE_SIZE)
    return memory, KexecModule.create(memory, address, n_module_pages)


@pytest.mark.parametrize(("small", "large"), [(1, 2), (1, 40), (18, 19), (18, 24), (2, 64)])
def test_an_empty_module_grows_to_a_fresh_one(small: int, large: int) -> None:
    memory, module = module_of(small)
    module.grow(large - small, RAM)
    grown = memory.read(module.admin_address, PAGE_SIZE)
    other, fresh = module_of(large)
    assert grown == other.read(fresh.admin_address, PAGE_SIZE)
    assert (module.address, module.size_bytes) == (fresh.address, fresh.size_bytes)


def test_pages_keep_their_place_and_their_bytes() -> None:
    memory, module = module_of(18)
    first, second = module.add_record(1, b"0123456789abcdef"), module.add_record(2, b"xyz")
    module.alloc_pages(first, 3)
    module.alloc_pages(second, 1)
    module.free_pages(1, 1)
    where = {page: (module.page_address(page), owner) for page, owner in enumerate(module.owners())}
    for page, (address, _) in where.items():
        memory.write(address, bytes([page]) * PAGE_SIZE)
    before = memory.read(PhysAddr(END - 82 * PAGE_SIZE), 81 * PAGE_SIZE)
    module.grow(6, RAM)
    assert module.admin_address == END - PAGE_SIZE
    assert module.owners()[:6] == b"\xff" * 6
    for page, (address, owner) in where.items():
        assert (module.page_address(page + 6), module.owners()[page + 6]) == (address, owner)
    assert module.pages_of(first) == [6, 8]
    module.shrink(6)
    for page, (address, owner) in where.items():
        assert (module.page_address(page), module.owners()[page]) == (address, owner)
    assert (module.read_record(first), module.read_record(second)) == (b"0123456789abcdef", b"xyz")
    assert memory.read(PhysAddr(END - 82 * PAGE_SIZE), 81 * PAGE_SIZE) == before


def mixed(n_pages: int) -> bytes:
    """A page with three records, whose pages stand in no order."""
    owners = random.Random(n_pages).choices([0, 2, 3, 255], k=n_pages)
    return page_of(n_pages, placed(n_pages), owners=bytes(owners))


def placed(n_pages: int) -> list[tuple[int, int, bytes] | None]:
    start = 14 + n_pages + n_pages % 2 + 64
    return [(start, 1, b"a" * 20), None, (start + 20, 5, b""), (start + 22, 9, b"c" * 40)]


@pytest.mark.parametrize(
    ("n_pages", "k"),
    [(1, 1), (1, 50), (2, 1), (17, 1), (17, 2), (17, 6), (17, 7), (17, 100), (23, 22), (40, 3)],
)
def test_every_moment_of_growing_and_shrinking(n_pages: int, k: int) -> None:
    """Told the old size, the next kernel has the module as it was; told the new one, as it is."""
    grown = recorded_page(mixed(n_pages), lambda page: resize(page, n_pages + k))
    sizes = (n_pages, n_pages + k)
    assert keeps_all(grown, sizes) > 20
    assert opened(grown.after).owners() == b"\xff" * k + opened(grown.before).owners()
    shrunk = recorded_page(grown.after, lambda page: resize(page, n_pages))
    assert keeps_all(shrunk, sizes) > 4
    assert opened(shrunk.after).owners() == opened(grown.before).owners()
    assert find_resize(opened(shrunk.after)) is None


@pytest.mark.parametrize("k", [1, 100])
def test_near_4000_pages(k: int) -> None:
    """With owners that differ from page to page, so that no stretch can be skipped."""
    grown = recorded_page(mixed(3800), lambda page: resize(page, 3800 + k))
    assert len(grown) > 2 * 3800 // k
    shrunk = recorded_page(grown.after, lambda page: resize(page, 3800))
    for stores in (grown, shrunk):
        keeps_all(stores, (3800, 3800 + k), some=12)


@settings(deadline=None, max_examples=150)
@given(st.data(), st.integers(1, 30), st.integers(1, 12), st.booleans())
def test_kernels_that_die_one_after_the_other(
    data: st.DataObject, n_small: int, k: int, growing: bool
) -> None:
    """Each is told another size, turns round, and dies too; the last one lives."""
    n_large = n_small + k
    small = opened(mixed(n_small)).owners()
    owners = {n_small: small, n_large: b"\xff" * k + small}
    page = mixed(n_small)
    if growing:
        stores = recorded_page(page, lambda page: resize(page, n_large))
    else:
        page = recorded_page(page, lambda page: resize(page, n_large)).after
        stores = recorded_page(page, lambda page: resize(page, n_small))
    for _ in range(data.draw(st.integers(1, 6))):
        moments = list(stores.pages())
        page = moments[data.draw(st.integers(0, len(moments) - 1))]
        fitting = [n for n in (n_small, n_large) if not verify(page, (n + 1) * PAGE_SIZE)]
        told = data.draw(st.sampled_from(fitting))
        size_bytes = (told + 1) * PAGE_SIZE
        stores = recorded_page(page, lambda page, size=size_bytes: settle(page, size))  # type: ignore[misc]
        assert opened(stores.after).owners() == owners[told]
        assert find_resize(opened(stores.after)) is None


@pytest.mark.parametrize(("n_pages", "k"), [(5, 1), (17, 6), (17, 30)])
def test_a_kernel_that_knows_no_journal_takes_no_page_in_use(n_pages: int, k: int) -> None:
    """At each moment: what looks free to it is free, and stays with it when it takes it."""
    grown = recorded_page(mixed(n_pages), lambda page: resize(page, n_pages + k))
    shrunk = recorded_page(grown.after, lambda page: resize(page, n_pages))
    for stores in (grown, shrunk):
        for moment in stores.pages():
            told = struct.unpack_from("<H", moment, 8)[0]
            seen = moment[14 : 14 + told]
            for page in (i for i, owner in enumerate(seen) if owner == 255):
                taken = bytearray(moment)
                taken[14 + page] = 3
                kept = next_kernel(bytes(taken), told)
                free = next_kernel(moment, told)
                assert kept is not None
                assert free is not None
                assert free.owners()[page] == 255
                assert kept.owners()[page] == 3


def test_where_nothing_shifts_one_store_does_it() -> None:
    before = page_of(17, placed(17))
    grown = recorded_page(before, lambda page: resize(page, 18))
    keeps_all(grown, (17, 18))
    assert [data for _, data, _ in grown.stores] == [b"\xff", struct.pack("<H", 18)]
    shrunk = recorded_page(grown.after, lambda page: resize(page, 17))
    keeps_all(shrunk, (17, 18))
    assert shrunk.after == before
    assert [at for at, data, _ in shrunk.stores if data] == [8, 14 + 17]


def test_the_new_size_is_the_last_word() -> None:
    """Before the journal is deleted both sizes are good, after that only the new one."""
    stores = recorded_page(mixed(17), lambda page: resize(page, 18))
    both = [
        [n for n in (17, 18) if next_kernel(moment, n) is not None] for moment in stores.pages()
    ]
    assert both[0] == [17]
    assert both[-1] == [18]
    order = [fitting for index, fitting in enumerate(both) if fitting != both[index - 1]]
    assert order == [[17], [17, 18], [18]]


def full_table(n_pages: int, n_records: int, room: int) -> bytes:
    """All entries in use, each with no data but the last, which leaves `room` bytes at the end."""
    end = 14 + n_pages + n_pages % 2 + 4 * n_records
    entries: list[tuple[int, int, bytes] | None] = [(end, 1, b"")] * (n_records - 1)
    owners = b"\xff" * n_pages if n_pages < 2 else b"\xff\0" + b"\xff" * (n_pages - 2)
    return page_of(n_pages, [*entries, (PAGE_SIZE - room, 9, b"")], 0, n_records, owners=owners)


def test_a_full_table_gets_one_entry_more_meanwhile() -> None:
    before = full_table(17, 16, 0)
    stores = recorded_page(before, lambda page: resize(page, 18))
    keeps_all(stores, (17, 18))
    assert opened(stores.after).n_records == 16


def test_room_for_the_journal_is_not_made_over_the_new_owners() -> None:
    """The table was moved up for them; making it longer then may not bring it down again."""
    entries = [(80, 1, b"\xee" * 255), *((335 + 34 * i, 2 + i, b"%2d" % i * 17) for i in range(15))]
    before = page_of(1, entries, owners=b"\0")
    page = opened(before)
    with pytest.raises(OutOfSpace) as raised:
        resize(page, 3001)
    assert (raised.value.wanted, raised.value.available) == (255, 251)
    assert page.whole() == before


def test_a_table_of_255_records_in_use_has_no_journal() -> None:
    before = full_table(17, 255, 100)
    page = opened(before)
    with pytest.raises(OutOfSpace):
        resize(page, 18)
    assert page.whole() == before


def test_room_that_a_smaller_module_left_is_used() -> None:
    """The table stays high when a module shrinks; it comes down when the bytes are needed."""
    page = opened(page_of(4002, [(4080, 1, b"0123")], owners=b"\xff" * 600 + b"\0"))
    resize(page, 3502)
    page.add(2, b"456789")
    assert (page.recs_off, page.data_end) == (4016, 4090)
    stores = recorded_page(page.whole(), lambda page: resize(page, 3503))
    assert len(stores) < 100
    keeps_all(stores, (3502, 3503), some=30)
    grown = opened(stores.after)
    assert grown.owners() == b"\xff" + page.owners()
    assert (grown.recs_off, grown.data_end) == (14 + 3504, 3592)


@pytest.mark.parametrize(("before", "after"), [(3999, 3998), (3999, 3899), (3998, 3999)])
def test_unused_entries_make_room_for_the_journal(before: int, after: int) -> None:
    """4000 pages and a record of 16 bytes leave 2 bytes; the entries of 15 records are unused."""
    owners = b"\xff" * 100 + b"\0" * 17
    page = page_of(before, [(4078, 1, b"0123456789abcdef")], 4014, owners=owners)
    stores = recorded_page(page, lambda page: resize(page, after))
    keeps_all(stores, (before, after), some=60)
    assert opened(stores.after).n_records == 16
    lengths = [int.from_bytes(moment[10:12], "little") for moment in stores.pages()]
    assert set(lengths) == {16, 2}


def test_limits_of_growing() -> None:
    _, module = module_of(18)
    low = MemoryMap(
        [
            MemoryRange(0, module.address - 5 * PAGE_SIZE - 1, E820_RESERVED),
            MemoryRange(module.address - 5 * PAGE_SIZE - 1, END, E820_RAM),
        ]
    )
    before = module._page.whole()
    for n in (0, -1, 4019 - 17):
        with pytest.raises(ModuleError):
            module.grow(n, RAM)
    with pytest.raises(OutOfSpace) as raised:
        module.grow(6, low)
    assert (raised.value.wanted, raised.value.available) == (6, 5)
    with pytest.raises(OutOfSpace) as raised:
        module.grow(3, low, [(module.address - 2 * PAGE_SIZE - 100, 100)])
    assert raised.value.available == 2
    assert module._page.whole() == before
    module.grow(2, low, [(module.address - 2 * PAGE_SIZE - 100, 100)])
    module.grow(3, low)
    assert module.n_pages == 22


@pytest.mark.parametrize("n_module_pages", [3900, 4003, 4018])
def test_the_largest(n_module_pages: int) -> None:
    """Up to 4019 pages, of which the page without room for a journal is no hindrance if empty."""
    page = AdminPage(memoryview(bytearray(page_of(n_module_pages - 1, []))))
    resize(page, 4018)
    assert verify(page.whole(), 4019 * PAGE_SIZE) == []
    assert (page.table_end, page.owners()) == (PAGE_SIZE, b"\xff" * 4018)
    used = page_of(3990, [(4068, 1, b"abcd")], owners=b"\xff\0")
    stores = recorded_page(used, lambda page: resize(page, 3991))
    assert opened(stores.after).owners() == b"\xff" + opened(used).owners()
    page = opened(stores.after)
    with pytest.raises(OutOfSpace):
        resize(page, 4018)
    assert page.whole() == stores.after


def test_limits_of_shrinking() -> None:
    _, module = module_of(18)
    record = module.add_record(1, b"")
    module.alloc_pages(record, 4)
    module.free_pages(0, 3)
    before = module._page.whole()
    for n in (0, -1, 18):
        with pytest.raises(ModuleError):
            module.shrink(n)
    with pytest.raises(OutOfSpace) as raised:
        module.shrink(4)
    assert (raised.value.wanted, raised.value.available) == (4, 3)
    assert module._page.whole() == before
    module.shrink(3)
    assert module.pages_of(record) == [0]
    module.delete_record(record, free_pages=True)
    module.shrink(14)
    assert (module.n_pages, module.size_bytes) == (0, PAGE_SIZE)


def test_memory_that_can_not_be_written_is_read_as_it_would_be_put_in_order() -> None:
    stores = recorded_page(mixed(17), lambda page: resize(page, 20))
    for moment in stores.pages(some=10):
        for n_pages in (17, 20):
            expected = next_kernel(moment, n_pages)
            if expected is not None:
                image = bytes(n_pages * PAGE_SIZE) + moment
                memory = GuestMemory([(0, image)])
                module = KexecModule.attach(memory, PhysAddr(0), len(image))
                assert module.owners() == expected.owners()
                with pytest.raises(ModuleError, match="read-only"):
                    module.update_record(0, b"x")


def test_the_journal_is_the_documented_bytes() -> None:
    _, module = module_of(18)
    record = module.add_record(1, b"")
    module.alloc_pages(record, 2)
    module.grow(3, RAM)
    for growing, boundaries in (
        (True, [24, 20, 16, 12, 8, 4, 0]),
        (False, [0, *(0x8000 + b for b in (0, 4, 8, 12, 24))]),  # from 12 on all are free
    ):
        with recorded(module) as stores:
            if growing:
                module.grow(4, RAM)
            else:
                module.shrink(4)
        seen = []
        for moment in stores.pages():
            recs_off = struct.unpack_from("<H", moment, 12)[0]
            offset, type_, size = struct.unpack_from("<HBB", moment, recs_off + 4)
            if type_ == RECORD_RESIZE:
                fields = struct.unpack_from("<4sHHH", moment, offset)
                assert (size, fields[:3]) == (10, (b"KexR", 20, 24))
                seen.append(fields[3])
        assert [b for i, b in enumerate(seen) if i == 0 or b != seen[i - 1]] == boundaries
