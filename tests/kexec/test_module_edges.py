"""A module at its edges: bytes that change while they are checked, read-only memory, wrong use."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from kexec.killpoints import recorded
from kexec.pages import opened

from xenlive.errors import ImageError, ModuleError, OutOfSpace
from xenlive.kexec import KexecModule
from xenlive.kexec import module as module_code
from xenlive.kexec.adminpage import AdminPage
from xenlive.kexec.resize import find_resize
from xenlive.kexec.sealed import add_sealed, read_sealed, update_sealed
from xenlive.kexec.verify import Problem, first_problem, verify
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

N = 18
ADDRESS = PhysAddr(0x40000)
RAM = MemoryMap([MemoryRange(0, 1 << 30, E820_RAM)])


def filled(below: int = 4) -> tuple[bytearray, GuestMemory, KexecModule]:
    """Two records, one with pages, in memory that begins `below` pages under the module."""
    ram = bytearray((below + N) * PAGE_SIZE)
    memory = GuestMemory([(ADDRESS - below * PAGE_SIZE, ram)])
    module = KexecModule.create(memory, ADDRESS, N)
    module.add_record(1, b"sixteen bytes...")
    module.add_record(9, b"x")
    module.alloc_pages(0, 3)
    add_sealed(module, 5, b"payload")
    return ram, memory, module


# What was checked is what counts.


def attach_while_it_changes(
    monkeypatch: pytest.MonkeyPatch, ram: bytearray, memory: GuestMemory, at: int, data: bytes
) -> KexecModule:
    """Attaches to a module of which `data` is stored at `at` of the page right after the check."""
    checked: list[bytes] = []

    def then_it_changes(page: bytes, size_bytes: int) -> Problem | None:
        found = first_problem(page, size_bytes)
        checked.append(page)
        start = len(ram) - PAGE_SIZE + at
        ram[start : start + len(data)] = data
        return found

    monkeypatch.setattr(module_code, "first_problem", then_it_changes)
    module = KexecModule.attach(memory, ADDRESS, N * PAGE_SIZE)
    assert [type(page) for page in checked] == [bytes]
    return module


@pytest.mark.parametrize("header", [(12, 16, 22), (17, 16, 4090), (17, 255, 4089), (65535,) * 3])
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_the_header_that_was_checked_counts(
    monkeypatch: pytest.MonkeyPatch, header: tuple[int, int, int], before: bool
) -> None:
    """Another header is there before the check is made (that is refused), or right after it."""
    ram, memory, module = filled()
    wanted = module.n_pages, module.n_records, module.recs_off, module.records(), module.owners()
    lie = struct.pack("<HHH", *header)
    if before:
        true = bytes(ram[-PAGE_SIZE + 8 : -PAGE_SIZE + 14])
        ram[-PAGE_SIZE + 8 : -PAGE_SIZE + 14] = lie
        with pytest.raises(ImageError):
            attach_while_it_changes(monkeypatch, ram, memory, 8, true)
        return
    found = attach_while_it_changes(monkeypatch, ram, memory, 8, lie)
    assert (
        found.n_pages,
        found.n_records,
        found.recs_off,
        found.records(),
        found.owners(),
    ) == wanted
    assert (found.size_bytes, found.admin_address) == (module.size_bytes, module.admin_address)
    assert found.page_address(16) == module.page_address(16)
    with pytest.raises(ModuleError):
        found.page_address(17)


def test_no_header_counts_but_the_one_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is there only for as long as the page's numbers are taken."""
    ram, memory, module = filled()
    at, true = len(ram) - PAGE_SIZE + 8, struct.pack("<HHH", 17, 16, module.recs_off)
    take = AdminPage.__init__

    def init(page: AdminPage, *arguments: Any) -> None:
        ram[at : at + 6] = struct.pack("<HHH", 12, 16, 4090)
        take(page, *arguments)
        ram[at : at + 6] = true

    monkeypatch.setattr(AdminPage, "__init__", init)
    found = KexecModule.attach(memory, ADDRESS, N * PAGE_SIZE)
    assert (found.n_pages, found.recs_off) == (17, module.recs_off)
    assert found.records() == module.records()


@pytest.mark.parametrize(
    ("offset", "code"), [(4095, "record-outside"), (0, "record-over-table"), (95, "record-over")]
)
def test_an_entry_that_changes_later_is_an_image_error(offset: int, code: str) -> None:
    """Neither is anything read from outside of the page, nor written over header and table."""
    ram, memory, _ = filled()
    found = KexecModule.attach(memory, ADDRESS, N * PAGE_SIZE)
    entry = len(ram) - PAGE_SIZE + found.recs_off
    ram[entry : entry + 4] = struct.pack("<HBB", offset, 1, 9)
    before = bytes(ram)
    for use in (
        lambda: found.record(0),
        lambda: found.records(),
        lambda: found.read_record(0),
        lambda: found.update_record(0, b"123456789"),
        lambda: found.add_record(3, b"new"),
        lambda: found.delete_record(0, free_pages=True),
        lambda: found.grow(1, RAM),
        lambda: found.compact(),
    ):
        with pytest.raises(ImageError, match=code):
            use()
    assert bytes(ram) == before


@pytest.mark.parametrize(
    ("at", "number"), [(4, 40), (6, 9), (6, 4090), (8, 4090), (8, 0x8000 | 99)]
)
def test_a_journal_that_changes_after_the_check_is_an_image_error(
    monkeypatch: pytest.MonkeyPatch, at: int, number: int
) -> None:
    ram, memory, module = filled()
    with recorded(module) as stores:
        module.grow(3, RAM)
    half_done = next(
        page
        for page in stores.pages()
        if verify(page, N * PAGE_SIZE) == [] and find_resize(opened(page)) is not None
    )
    ram[-PAGE_SIZE:] = half_done
    where = half_done.index(b"KexR") + at
    with pytest.raises(ImageError, match="bad-resize"):
        attach_while_it_changes(monkeypatch, ram, memory, where, struct.pack("<H", number))
    # Nothing but the journal's own bytes is other than it was.
    left = bytearray(ram[-PAGE_SIZE:])
    left[where : where + 2] = half_done[where : where + 2]
    assert left == half_done


# Growing into memory that is not there.


def test_growing_ends_where_the_memory_does() -> None:
    """The map may promise more than this kernel can reach: such a module could not be attached."""
    ram, memory, module = filled(below=4)
    before = bytes(ram)
    with pytest.raises(OutOfSpace) as raised:
        module.grow(5, RAM)
    assert (raised.value.wanted, raised.value.available) == (5, 4)
    assert (bytes(ram), module.address, module.n_pages) == (before, ADDRESS, N - 1)
    module.grow(4, RAM)
    again = KexecModule.attach(memory, module.address, module.size_bytes)
    assert again.records() == module.records()


def test_growing_does_not_reach_over_into_another_run_of_memory() -> None:
    """Two regions that touch are not one run: no access reaches over from one to the other."""
    low, high = bytearray(4 * PAGE_SIZE), bytearray((N + 1) * PAGE_SIZE)
    memory = GuestMemory([(ADDRESS - 5 * PAGE_SIZE, low), (ADDRESS - PAGE_SIZE, high)])
    module = KexecModule.create(memory, ADDRESS, N)
    with pytest.raises(OutOfSpace) as raised:
        module.grow(2, RAM)
    assert raised.value.available == 1
    module.grow(1, RAM)
    assert KexecModule.attach(memory, module.address, module.size_bytes).n_pages == N


# Memory that can only be read.

CHANGES: dict[str, Callable[[KexecModule], object]] = {
    "add": lambda m: m.add_record(5, b"abc"),
    "update": lambda m: m.update_record(0, b"1"),
    "update u32": lambda m: m.update_record_u32(0, 1),
    "delete": lambda m: m.delete_record(1),
    "delete with pages": lambda m: m.delete_record(0, free_pages=True),
    "alloc": lambda m: m.alloc_pages(0, 1),
    "free": lambda m: m.free_pages(0, 1),
    "compact": lambda m: m.compact(),
    "extend": lambda m: m.extend_table(20),
    "extend by none": lambda m: m.extend_table(16),
    "grow": lambda m: m.grow(1, RAM),
    "shrink": lambda m: m.shrink(1),
    "seal": lambda m: add_sealed(m, 1, b""),
    "reseal": lambda m: update_sealed(m, 2, b"PAYLOAD"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_module_in_read_only_memory_says_so(name: str) -> None:
    ram, _, _ = filled(below=4)
    memory = GuestMemory([(ADDRESS - 4 * PAGE_SIZE, bytes(ram))])
    module = KexecModule.attach(memory, ADDRESS, N * PAGE_SIZE)
    before = module.records(), module.owners()
    with pytest.raises(ModuleError, match="read-only"):
        CHANGES[name](module)
    assert (module.records(), module.owners()) == before
    assert read_sealed(module, 2).payload == b"payload"


def test_no_module_is_made_in_read_only_memory() -> None:
    memory = GuestMemory([(ADDRESS, bytes(N * PAGE_SIZE))])
    with pytest.raises(ModuleError, match="read-only"):
        KexecModule.create(memory, ADDRESS, N)


def test_from_bytes_is_a_copy_to_look_at() -> None:
    ram, _, module = filled(below=0)
    image = bytearray(ram)
    found = KexecModule.from_bytes(image, ADDRESS)
    image[:] = bytes(len(image))
    assert found.records() == module.records()
    assert found.pages_of(0) == [0, 1, 2]
    assert found.page_address(1) == ADDRESS + PAGE_SIZE
    assert KexecModule.from_bytes(memoryview(bytes(ram)).cast("I")).address == 0
    with pytest.raises(ModuleError, match="read-only"):
        found.add_record(1, b"")
    for data, address, code in (
        (b"", 0, "bad-size"),
        (bytes(ram[:-1]), 0, "bad-size"),
        (bytes(ram), 8, "bad-size"),
        (bytes(ram), -PAGE_SIZE, "outside-memory"),
        (bytes(N * PAGE_SIZE), 0, "bad-eye-catcher"),
    ):
        with pytest.raises(ImageError) as raised:
            KexecModule.from_bytes(data, address)
        assert raised.value.code == code


def test_it_says_what_it_is() -> None:
    _, _, module = filled()
    assert repr(module) == "<KexecModule: 18 pages at 0x40000, 3 of 16 records>"


# Wrong use.


def test_any_buffer_is_data() -> None:
    _, _, module = filled()
    numbers = array("I", [1, 2, 3])
    index = module.add_record(7, memoryview(numbers))
    assert module.read_record(index) == numbers.tobytes()
    module.update_record(index, memoryview(array("I", [9, 8])), 4)
    assert module.read_record(index) == array("I", [1, 9, 8]).tobytes()
    assert module.read_record(module.add_record(7, memoryview(b"abcdef")[::2])) == b"ace"
    with pytest.raises(ModuleError, match="at most 255 bytes"):
        module.add_record(7, array("I", range(64)))
    with pytest.raises(ModuleError):
        module.update_record(index, array("I", range(4)))
    sealed = add_sealed(module, 1, memoryview(numbers))
    update_sealed(module, sealed, array("I", [4, 5, 6]))
    assert read_sealed(module, sealed).payload == array("I", [4, 5, 6]).tobytes()


WRONG: dict[str, Callable[[KexecModule], object]] = {
    "text": lambda m: m.add_record(5, "abc"),  # type: ignore[arg-type]
    "a number": lambda m: m.add_record(5, 5),  # type: ignore[arg-type]
    "a list": lambda m: m.add_record(5, [1, 2]),  # type: ignore[arg-type]
    "a type": lambda m: m.add_record(5.0, b"abc"),  # type: ignore[arg-type]
    "update": lambda m: m.update_record(0, "abc"),  # type: ignore[arg-type]
    "offset": lambda m: m.update_record(0, b"abc", 1.0),  # type: ignore[arg-type]
    "u32": lambda m: m.update_record_u32(0, 1.5),  # type: ignore[arg-type]
    "alloc": lambda m: m.alloc_pages(0, 1.0),  # type: ignore[arg-type]
    "free": lambda m: m.free_pages(0, 1.0),  # type: ignore[arg-type]
    "extend": lambda m: m.extend_table(20.0),  # type: ignore[arg-type]
    "grow": lambda m: m.grow(1.0, RAM),  # type: ignore[arg-type]
    "seal": lambda m: add_sealed(m, 5, "abc"),  # type: ignore[arg-type]
    "reseal": lambda m: update_sealed(m, 2, "payload"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_number_or_no_bytes_changes_nothing(name: str) -> None:
    ram, _, module = filled()
    before = bytes(ram)
    with pytest.raises(TypeError):
        WRONG[name](module)
    assert bytes(ram) == before
    assert module.n_records == 16
    assert module.alloc_pages(0, True) == 3
