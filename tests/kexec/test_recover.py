"""What attaching puts in order: reservations of every kind, and nothing that is in use."""

from __future__ import annotations

import struct

import pytest
from kexec.killpoints import recorded_page, records_of
from kexec.pages import keeps_all, opened, page_of

from xenlive.kexec import KexecModule
from xenlive.kexec.recover import settle
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.guest import GuestMemory

SIZE = 18 * PAGE_SIZE
TABLE, TABLE_END = 32, 96
USED = [(96, 1, b"0123456789abcdef"), (150, 2, b"xyz")]


def with_reservation(offset: int, size: int, junk: tuple[int, int] = (0, 0)) -> bytes:
    """Two records in use; entry 5 is unused but says whose bytes those are. `junk` is not zero."""
    page = bytearray(page_of(17, USED, owners=b"\0\1"))
    struct.pack_into("<HBB", page, TABLE + 20, offset, 0, size)
    start, end = junk
    page[start:end] = b"\xaa" * (end - start)
    return bytes(page)


@pytest.mark.parametrize(
    ("offset", "size", "junk", "zeroed"),
    [
        (200, 40, (200, 240), (200, 240)),
        (200, 40, (180, 250), (200, 240)),
        (112, 200, (112, 150), (112, 150)),
        (4090, 255, (4090, 4096), (4090, 4096)),
        (0, 255, (112, 150), (112, 150)),
        (5000, 40, (4000, 4096), (0, 0)),
        (65535, 255, (4000, 4096), (0, 0)),
        (97, 0, (200, 210), (0, 0)),
    ],
)
def test_a_reservation_goes_with_its_bytes(
    offset: int, size: int, junk: tuple[int, int], zeroed: tuple[int, int]
) -> None:
    """As far as they are behind the table and in nobody's use."""
    before = with_reservation(offset, size, junk)
    stores = recorded_page(before, lambda page: settle(page, SIZE))
    keeps_all(stores)
    expected = bytearray(before)
    expected[TABLE + 20 : TABLE + 24] = bytes(4)
    expected[zeroed[0] : zeroed[1]] = bytes(zeroed[1] - zeroed[0])
    assert stores.after == expected


def test_attaching_does_it() -> None:
    memory = GuestMemory([(0, bytearray(SIZE - PAGE_SIZE) + with_reservation(200, 9, (200, 205)))])
    module = KexecModule.attach(memory, PhysAddr(0), SIZE)
    assert memory.read(module.admin_address, PAGE_SIZE) == page_of(17, USED, owners=b"\0\1")
    assert module.records() == [module.record(0), module.record(1)]


def test_a_page_in_order_is_not_written() -> None:
    stores = recorded_page(page_of(17, USED, owners=b"\0\1"), lambda page: settle(page, SIZE))
    assert stores.stores == []


def test_a_record_that_was_being_added_is_there_or_not() -> None:
    """Also for a kernel that knows only the posted format: the entry's type comes last."""
    stores = recorded_page(page_of(17, USED), lambda page: page.add(9, b"new data"))
    seen = []
    for moment in stores.pages():
        raw = moment[TABLE + 8 : TABLE + 12]
        page = opened(moment)
        settle(page, SIZE)
        seen.append(2 in records_of(page))
        assert seen[-1] == (raw[2] == 9)
        if seen[-1]:
            assert records_of(page)[2] == (9, b"new data")
        else:
            assert page.whole() == stores.before
    assert seen == sorted(seen)
    assert set(seen) == {False, True}


def test_a_record_that_was_being_deleted_is_there_or_not() -> None:
    before = page_of(17, USED)
    stores = recorded_page(before, lambda page: page.drop(page.entry(1)))
    seen = []
    for moment in stores.pages():
        page = opened(moment)
        settle(page, SIZE)
        seen.append(records_of(page).get(1))
        assert page.whole() == (stores.after if seen[-1] is None else before)
    assert set(seen) == {None, (2, b"xyz")}
    assert stores.after == page_of(17, USED[:1])
