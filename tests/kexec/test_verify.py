"""Every problem by name; and whatever the bytes, attach gives a sound module or one ImageError."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import minios

from xenlive.errors import ImageError, ModuleError, OutOfSpace
from xenlive.kexec import KexecModule
from xenlive.kexec.verify import Problem, verify
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.guest import GuestMemory

N_PAGES, N_RECORDS, RECS_OFF, PG2REC, TABLE = 8, 10, 12, 14, 32
SIZE = 18 * PAGE_SIZE


def sample() -> bytearray:
    """The page of a module of 18: record 0 at 96, 16 bytes, with pages 0 and 1; record 1 at 112."""
    memory = GuestMemory([(0, bytearray(SIZE))])
    module = KexecModule.create(memory, PhysAddr(0), 18)
    module.add_record(1, b"0123456789abcdef")
    module.add_record(7, b"abcd")
    module.alloc_pages(0, 2)
    return bytearray(memory.read(module.admin_address, PAGE_SIZE))


def changed(*changes: tuple[int, bytes]) -> bytearray:
    page = sample()
    for at, data in changes:
        page[at : at + len(data)] = data
    return page


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


def record(offset: int, type_: int, size: int) -> bytes:
    return struct.pack("<HBB", offset, type_, size)


def test_the_sample_is_sound() -> None:
    assert verify(sample(), SIZE) == []


PROBLEMS: list[tuple[str, list[tuple[int, bytes]], list[tuple[str, int]]]] = [
    ("eye catcher", [(0, b"kexecMem")], [("bad-eye-catcher", 0)]),
    ("n_pages too small", [(N_PAGES, u16(16))], [("bad-n-pages", N_PAGES)]),
    ("n_pages too large", [(N_PAGES, u16(0xFFFF))], [("bad-n-pages", N_PAGES)]),
    ("256 records", [(N_RECORDS, u16(256))], [("bad-n-records", N_RECORDS)]),
    (
        "both",
        [(N_PAGES, u16(0)), (N_RECORDS, u16(999))],
        [("bad-n-pages", N_PAGES), ("bad-n-records", N_RECORDS)],
    ),
    ("table in the owners", [(RECS_OFF, u16(30))], [("table-over-pg2rec", RECS_OFF)]),
    ("table in the header", [(RECS_OFF, u16(0))], [("table-over-pg2rec", RECS_OFF)]),
    ("table past the page", [(RECS_OFF, u16(4096 - 60))], [("table-outside", RECS_OFF)]),
    ("table far outside", [(RECS_OFF, u16(0xFFFF))], [("table-outside", RECS_OFF)]),
    ("record at 5000", [(TABLE, record(5000, 1, 16))], [("record-outside", TABLE)]),
    ("record ends at 4097", [(TABLE, record(4081, 1, 16))], [("record-outside", TABLE)]),
    ("record over the table", [(TABLE, record(95, 1, 1))], [("record-over-table", TABLE)]),
    ("record over the header", [(TABLE, record(0, 1, 14))], [("record-over-table", TABLE)]),
    ("overlap by a byte", [(TABLE + 4, record(111, 7, 4))], [("records-overlap", TABLE + 4)]),
    ("one inside the other", [(TABLE + 4, record(100, 7, 1))], [("records-overlap", TABLE + 4)]),
    (
        "overlap seen past a short record",
        [
            (TABLE, record(96, 1, 100)),
            (TABLE + 4, record(100, 7, 1)),
            (TABLE + 8, record(195, 7, 1)),
        ],
        [("records-overlap", TABLE + 4), ("records-overlap", TABLE + 8)],
    ),
    ("owner is no record", [(PG2REC + 5, b"\x02")], [("owner-without-record", PG2REC + 5)]),
    ("owner is past the table", [(PG2REC + 5, b"\x10")], [("owner-out-of-range", PG2REC + 5)]),
    ("owner is 254", [(PG2REC + 16, b"\xfe")], [("owner-out-of-range", PG2REC + 16)]),
    ("owner lost its type", [(TABLE, record(96, 0, 16))], [("owner-without-record", PG2REC)]),
    (
        "n_records 0 and owners",
        [(N_RECORDS, u16(0))],
        [("owner-out-of-range", PG2REC)],
    ),
]


@pytest.mark.parametrize(
    ("changes", "expected"), [case[1:] for case in PROBLEMS], ids=[case[0] for case in PROBLEMS]
)
def test_problems(changes: list[tuple[int, bytes]], expected: list[tuple[str, int]]) -> None:
    page = changed(*changes)
    found = verify(page, SIZE)
    assert [(problem.code, problem.offset) for problem in found] == expected
    assert all(problem.message and "\n" not in problem.message for problem in found)
    memory = GuestMemory([(0, bytearray(SIZE - PAGE_SIZE) + page)])
    with pytest.raises(ImageError) as raised:
        KexecModule.attach(memory, PhysAddr(0), SIZE)
    assert (raised.value.code, raised.value.offset) == expected[0]


@pytest.mark.parametrize(
    "changes",
    [
        [(TABLE + 4, record(4096, 7, 0))],
        [(TABLE + 4, record(3841, 7, 255))],
        [(TABLE + 4, record(100, 7, 0))],
        # What a type or size modulo 256 leaves behind: an unused entry, a record of size 0.
        [(TABLE + 8, record(116, 0, 40))],
        [(TABLE + 8, record(5000, 0, 40))],
        [(TABLE + 8, record(116, 9, 0)), (TABLE + 12, record(116, 9, 3))],
        [(RECS_OFF, u16(4032)), (4032, bytes(64)), (PG2REC, b"\xff\xff")],
        [(N_RECORDS, u16(255)), (TABLE, bytes(255 * 4)), (PG2REC, b"\xff\xff")],
        [(RECS_OFF, u16(33)), (TABLE, bytes(4064)), (PG2REC, b"\xff\xff")],
        [(N_RECORDS, u16(0)), (PG2REC, b"\xff\xff")],
    ],
)
def test_odd_but_sound(changes: list[tuple[int, bytes]]) -> None:
    assert verify(changed(*changes), SIZE) == []


def journal(n_small: int, n_large: int, boundary: int, size: int = 10) -> bytes:
    """The data of a journal of a resize, cut to `size`."""
    return (b"KexR" + struct.pack("<HHH", n_small, n_large, boundary)).ljust(size, b"\0")[:size]


def in_flight(data: bytes, *more: tuple[int, bytes]) -> bytearray:
    """The sample with room for the owners of 30 pages before its table, and a journal in it."""
    page = bytearray(PAGE_SIZE)
    page[:31] = sample()[:31]
    page[RECS_OFF : RECS_OFF + 2] = u16(44)
    entries = record(200, 1, 16) + record(216, 7, 4) + record(300, 0xE1, len(data))
    page[44 : 44 + 12] = entries
    page[300 : 300 + len(data)] = data
    for at, found in more:
        page[at : at + len(found)] = found
    return page


def pages(n: int) -> int:
    return (n + 1) * PAGE_SIZE


@pytest.mark.parametrize(("n_small", "n_large"), [(17, 20), (17, 30), (14, 17), (0, 17)])
def test_a_resize_in_flight_is_good_for_both_sizes(n_small: int, n_large: int) -> None:
    for boundary in (0, 1, n_large, 0x8000, 0x8000 + n_large):
        page = in_flight(journal(n_small, n_large, boundary))
        assert verify(page, pages(n_small)) == verify(page, pages(n_large)) == []
        (problem,) = verify(page, pages(n_large + 1))
        assert (problem.code, problem.offset) == ("bad-n-pages", N_PAGES)


RESIZES: list[tuple[str, bytes, list[tuple[int, bytes]], list[tuple[str, int]]]] = [
    ("too short", journal(17, 20, 0, 9), [], [("bad-resize", 52)]),
    ("too long", journal(17, 20, 0, 11), [], [("bad-resize", 52)]),
    ("its magic only", journal(17, 20, 0, 4), [], [("bad-resize", 52)]),
    ("sizes the wrong way", journal(20, 17, 0), [], [("bad-resize", 52)]),
    ("sizes the same", journal(17, 17, 0), [], [("bad-resize", 52)]),
    ("of another module", journal(18, 20, 0), [], [("bad-resize", 52)]),
    ("boundary too far", journal(17, 20, 21), [], [("bad-resize", 52)]),
    ("boundary too far, shrinking", journal(17, 20, 0x8000 + 21), [], [("bad-resize", 52)]),
    ("owners over the table", journal(17, 31, 0), [], [("bad-resize", 52)]),
    ("far too many pages", journal(17, 0xFFFF, 0), [], [("bad-resize", 52)]),
    (
        "two of them",
        journal(17, 20, 0),
        [(56, record(310, 0xE1, 10)), (310, journal(17, 20, 0))],
        [("type-twice", 56)],
    ),
    (
        "a wrong owner in the small form",
        journal(17, 20, 20),
        [(PG2REC + 16, b"\x09")],
        [("owner-without-record", PG2REC + 16)],
    ),
    (
        "a wrong owner in the large form",
        journal(17, 20, 0),
        [(PG2REC + 19, b"\x10")],
        [("owner-out-of-range", PG2REC + 19)],
    ),
    ("a wrong owner in neither form", journal(17, 20, 20), [(PG2REC + 19, b"\x10")], []),
]


@pytest.mark.parametrize(
    ("data", "more", "expected"), [case[1:] for case in RESIZES], ids=[case[0] for case in RESIZES]
)
def test_journals(
    data: bytes, more: list[tuple[int, bytes]], expected: list[tuple[str, int]]
) -> None:
    found = verify(in_flight(data, *more), SIZE)
    assert [(problem.code, problem.offset) for problem in found] == expected


@pytest.mark.parametrize("data", [b"", b"Kex", b"KexS" + bytes(6), bytes(10), b"\xff" * 10])
def test_a_record_of_the_journals_type_without_its_magic_is_somebody_elses(data: bytes) -> None:
    assert verify(in_flight(data, (56, record(320, 0xE1, 3))), SIZE) == []
    page = in_flight(data)
    memory = GuestMemory([(0, bytearray(SIZE - PAGE_SIZE) + page)])
    module = KexecModule.attach(memory, PhysAddr(0), SIZE)
    assert module.read_record(2) == data
    assert memory.read(module.admin_address, PAGE_SIZE) == page


@pytest.mark.parametrize(
    ("length", "size_bytes"),
    [(4096, 0), (4096, -4096), (4096, SIZE + 1), (4096, 4095), (4095, SIZE), (0, SIZE)],
)
def test_sizes_that_are_no_pages(length: int, size_bytes: int) -> None:
    (problem,) = verify(sample()[:length], size_bytes)
    assert problem.code == "bad-size"


def test_a_module_too_large_for_its_owners() -> None:
    n_pages = 4083
    page = changed((N_PAGES, u16(n_pages)))
    (problem,) = verify(page, (n_pages + 1) * PAGE_SIZE)
    assert problem.code == "pg2rec-outside"


def test_a_problem_is_a_value() -> None:
    assert Problem("a", "b", 1) == Problem("a", "b", 1) != Problem("a", "b", 2)
    assert len({Problem("a", "b", 1), Problem("a", "b", 1)}) == 1


def check_attach(page: bytes, size: int) -> None:
    """attach: sound and usable, or exactly one ImageError, and the memory as it was."""
    buffer = bytearray(size - PAGE_SIZE) + bytearray(page)
    before = bytes(buffer)
    memory = GuestMemory([(0, buffer)])
    expected = verify(page, size)
    if expected:
        with pytest.raises(ImageError) as raised:
            KexecModule.attach(memory, PhysAddr(0), size)
        assert raised.value.code == expected[0].code
        assert bytes(buffer) == before
        return
    module = KexecModule.attach(memory, PhysAddr(0), size)
    for found in module.records():
        assert len(module.read_record(found.index)) == found.size
        module.update_record(found.index, bytes(found.size))
        assert all(page < module.n_pages for page in module.pages_of(found.index))
    with suppress(OutOfSpace):
        module.alloc_pages(module.add_record(9, b"12345"), 1)
    with suppress(ModuleError):
        module.free_pages(0, 1)
    assert verify(buffer[-PAGE_SIZE:], size) == []
    assert buffer[:-PAGE_SIZE] == bytes(size - PAGE_SIZE)


small_or_any = st.one_of(st.integers(0, 40), st.integers(0, 0xFFFF))


@settings(deadline=None, max_examples=200)
@given(
    n_module_pages=st.integers(1, 6),
    n_pages_off=st.sampled_from([0, 0, 0, 0, 1]),
    n_records=small_or_any,
    recs_off=small_or_any,
    owners=st.lists(st.sampled_from([0, 1, 2, 254, 255]), min_size=5, max_size=5),
    table=st.lists(st.tuples(small_or_any, st.integers(0, 3), st.integers(0, 255)), max_size=8),
)
def test_attach_of_made_up_pages(
    n_module_pages: int,
    n_pages_off: int,
    n_records: int,
    recs_off: int,
    owners: list[int],
    table: list[tuple[int, int, int]],
) -> None:
    n_pages = n_module_pages - 1
    page = bytearray(PAGE_SIZE)
    struct.pack_into("<8sHHH", page, 0, b"KexecMem", n_pages + n_pages_off, n_records, recs_off)
    page[PG2REC : PG2REC + n_pages] = bytes(owners[:n_pages])
    for index, entry in enumerate(table):
        where = recs_off + 4 * index
        if where + 4 <= PAGE_SIZE:
            struct.pack_into("<HBB", page, where, *entry)
    check_attach(bytes(page), n_module_pages * PAGE_SIZE)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([entry["file"] for entry in minios.entries("module")]),
    st.lists(st.tuples(st.integers(0, 130), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_attach_of_real_pages_with_wrong_bytes(name: str, wrong: list[tuple[int, int]]) -> None:
    image = minios.files()[name]
    page = bytearray(image[-PAGE_SIZE:])
    for at, byte in wrong:
        page[at] = byte
    check_attach(bytes(page), len(image))


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200), st.integers(-1, 9000))
def test_any_bytes_give_a_list(data: bytes, size: int) -> None:
    assert all(isinstance(found, Problem) for found in verify(data, size))
    padded = (b"KexecMem" + data).ljust(PAGE_SIZE, b"\xff")
    assert all(isinstance(found, Problem) for found in verify(padded, size))
