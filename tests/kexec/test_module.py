"""The module's operations: what they refuse, that refusing changes nothing, and a model of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from xenlive.errors import BadAddress, ImageError, ModuleError, OutOfSpace, XenliveError
from xenlive.kexec import KexecModule, Record
from xenlive.kexec.verify import verify
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.guest import GuestMemory

ADDRESS = PhysAddr(0x3FEE000)


def fresh(n_module_pages: int = 18) -> tuple[bytearray, KexecModule]:
    buffer = bytearray(b"\xa5" * (n_module_pages * PAGE_SIZE))
    memory = GuestMemory([(ADDRESS, buffer)])
    return buffer, KexecModule.create(memory, ADDRESS, n_module_pages)


def test_addresses() -> None:
    _, module = fresh(18)
    assert (module.size_bytes, module.n_pages) == (18 * PAGE_SIZE, 17)
    assert module.admin_address == 0x3FFF000
    assert module.page_address(16) == 0x3FFE000
    assert module.page_frame(0) == 0x3FEE
    for index in (-1, 17):
        with pytest.raises(ModuleError):
            module.page_address(index)


def test_a_record_and_its_pages() -> None:
    buffer, module = fresh(18)
    assert module.add_record(1, b"0123456789abcdef") == 0
    assert module.record(0) == Record(0, 1, 96, 16)
    assert module.read_record(0) == b"0123456789abcdef"
    assert module.alloc_pages(0, 3) == 0
    assert module.add_record(1, b"") == 1
    assert module.alloc_pages(1, 2) == 3
    assert module.alloc_pages(0, 1) == 5
    assert module.pages_of(0) == [0, 1, 2, 5]
    assert module.pages_of(1) == [3, 4]
    assert module.free_page_count() == 11
    module.free_pages(1, 3)
    assert module.owners()[:7] == b"\0\xff\xff\xff\1\0\xff"
    assert module.alloc_pages(1, 4) == 6
    assert module.alloc_pages(1, 3) == 1
    assert buffer[: 17 * PAGE_SIZE] == b"\xa5" * (17 * PAGE_SIZE)


def test_find_record() -> None:
    _, module = fresh()
    for type_ in (7, 1, 7):
        module.add_record(type_, b"x")
    assert [module.find_record(7, start) for start in (0, 1, 2, 3, 99)] == [0, 2, 2, None, None]
    assert module.find_record(2) is None


def test_update_stays_inside_of_the_record() -> None:
    _, module = fresh()
    module.add_record(1, b"abcd")
    module.add_record(1, b"next")
    module.update_record(0, b"XY", 1)
    module.update_record(0, b"", 4)
    assert (module.read_record(0), module.read_record(1)) == (b"aXYd", b"next")


Operation = Callable[[KexecModule], object]


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (lambda m: m.add_record(0, b""), ModuleError),
        (lambda m: m.add_record(256, b""), ModuleError),
        (lambda m: m.add_record(-1, b""), ModuleError),
        (lambda m: m.add_record(1, bytes(256)), ModuleError),
        (lambda m: m.find_record(0), ModuleError),
        (lambda m: m.find_record(256), ModuleError),
        (lambda m: m.find_record(1, -1), ModuleError),
        (lambda m: m.record(1), ModuleError),
        (lambda m: m.record(16), ModuleError),
        (lambda m: m.record(-1), ModuleError),
        (lambda m: m.read_record(1), ModuleError),
        (lambda m: m.update_record(0, b"12345"), ModuleError),
        (lambda m: m.update_record(0, b"1", 4), ModuleError),
        (lambda m: m.update_record(0, b"1", -1), ModuleError),
        (lambda m: m.update_record(1, b""), ModuleError),
        (lambda m: m.alloc_pages(1, 1), ModuleError),
        (lambda m: m.alloc_pages(255, 1), ModuleError),
        (lambda m: m.alloc_pages(0, 0), ModuleError),
        (lambda m: m.alloc_pages(0, -1), ModuleError),
        (lambda m: m.alloc_pages(0, 10), OutOfSpace),
        (lambda m: m.alloc_pages(0, 1 << 20), OutOfSpace),
        (lambda m: m.free_pages(8, 2), ModuleError),
        (lambda m: m.free_pages(-1, 1), ModuleError),
        (lambda m: m.free_pages(16, 2), ModuleError),
        (lambda m: m.free_pages(0, 0), ModuleError),
        (lambda m: m.pages_of(1), ModuleError),
    ],
)
def test_what_is_refused_changes_nothing(operation: Operation, error: type[XenliveError]) -> None:
    buffer, module = fresh()
    module.add_record(1, b"abcd")
    module.alloc_pages(0, 9)
    module.free_pages(0, 8)
    before = bytes(buffer)
    with pytest.raises(error):
        operation(module)
    assert bytes(buffer) == before


def test_running_out_says_how_much_there_is() -> None:
    _, module = fresh()
    module.add_record(1, b"")
    module.alloc_pages(0, 17)
    module.free_pages(2, 3)
    module.free_pages(9, 5)
    with pytest.raises(OutOfSpace) as raised:
        module.alloc_pages(0, 6)
    assert (raised.value.wanted, raised.value.available) == (6, 5)


def test_the_17th_record_finds_the_table_full() -> None:
    buffer, module = fresh()
    for index in range(16):
        assert module.add_record(index + 1, b"data") == index
    before = bytes(buffer)
    with pytest.raises(OutOfSpace):
        module.add_record(1, b"")
    assert bytes(buffer) == before


def test_the_page_can_be_filled_to_its_last_byte() -> None:
    buffer, module = fresh()
    for _ in range(15):
        module.add_record(1, bytes(255))
    assert module.free_record_bytes() == 4000 - 15 * 255
    before = bytes(buffer)
    with pytest.raises(OutOfSpace) as raised:
        module.add_record(1, bytes(176))
    assert (raised.value.wanted, raised.value.available) == (176, 175)
    assert bytes(buffer) == before
    module.add_record(1, bytes(175))
    assert module.free_record_bytes() == 0
    assert verify(buffer[-PAGE_SIZE:], len(buffer)) == []


@pytest.mark.parametrize(("n_module_pages", "free_bytes"), [(1, 4018), (4003, 16), (4019, 0)])
def test_the_smallest_and_the_largest(n_module_pages: int, free_bytes: int) -> None:
    _, module = fresh(n_module_pages)
    assert module.free_record_bytes() == free_bytes
    assert module.free_page_count() == n_module_pages - 1
    for _ in range(min(free_bytes // 255, 16)):
        module.add_record(1, bytes(255))
    with pytest.raises(OutOfSpace):
        module.add_record(1, bytes(255))


@pytest.mark.parametrize("n_module_pages", [0, -1, 4020, 1 << 16])
def test_modules_that_can_not_be_made(n_module_pages: int) -> None:
    memory = GuestMemory([(0, bytearray(16 * PAGE_SIZE))])
    with pytest.raises(ModuleError):
        KexecModule.create(memory, PhysAddr(0), n_module_pages)


@pytest.mark.parametrize("address", [1, 0x1000, 0x100000])
def test_places_a_module_can_not_have(address: int) -> None:
    buffer = bytearray(16 * PAGE_SIZE)
    with pytest.raises(BadAddress):
        KexecModule.create(GuestMemory([(0, buffer)]), PhysAddr(address), 16)
    assert buffer == bytes(16 * PAGE_SIZE)


@pytest.mark.parametrize("size", [0, -4096, 4097, 4095])
def test_attach_refuses_sizes_that_are_no_pages(size: int) -> None:
    buffer, _ = fresh(2)
    with pytest.raises(ImageError) as raised:
        KexecModule.attach(GuestMemory([(ADDRESS, buffer)]), ADDRESS, size)
    assert raised.value.code == "bad-size"


@pytest.mark.parametrize(
    ("address", "size"), [(ADDRESS, 3 * PAGE_SIZE), (0, 4096), (1 << 64, 4096)]
)
def test_attach_refuses_what_is_not_in_memory(address: int, size: int) -> None:
    buffer, _ = fresh(2)
    with pytest.raises(ImageError) as raised:
        KexecModule.attach(GuestMemory([(ADDRESS, buffer)]), PhysAddr(address), size)
    assert raised.value.code == "outside-memory"


def test_attach_refuses_an_address_that_is_no_page() -> None:
    memory = GuestMemory([(0, bytearray(4 * PAGE_SIZE))])
    with pytest.raises(ImageError) as raised:
        KexecModule.attach(memory, PhysAddr(16), PAGE_SIZE)
    assert raised.value.code == "bad-size"


def test_a_record_that_is_damaged_later_is_not_read_past_the_page() -> None:
    buffer, module = fresh()
    module.add_record(1, b"abcd")
    at = len(buffer) - PAGE_SIZE + module.recs_off
    buffer[at : at + 2] = (4095).to_bytes(2, "little")
    with pytest.raises(ImageError) as raised:
        module.read_record(0)
    assert raised.value.code == "record-outside"


def test_release_lets_the_memory_go() -> None:
    buffer = bytearray(2 * PAGE_SIZE)
    memory = GuestMemory([(ADDRESS, buffer)])
    module = KexecModule.create(memory, ADDRESS, 2)
    module.release()
    memory.release()
    buffer.append(0)


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=17, max_size=17), st.integers(1, 18))
def test_first_fit_takes_the_lowest_run(pattern: bytes, n: int) -> None:
    _, module = fresh()
    module.add_record(1, b"")
    module.alloc_pages(0, 17)
    free = [bool(byte & 1) for byte in pattern]
    for page, is_free in enumerate(free):
        if is_free:
            module.free_pages(page, 1)
    runs = [p for p in range(18 - n) if all(free[p : p + n])]
    if runs:
        assert module.alloc_pages(0, n) == runs[0]
    else:
        with pytest.raises(OutOfSpace):
            module.alloc_pages(0, n)


class ModuleMachine(RuleBasedStateMachine):
    """The module against lists and dicts; a second module attached to the same memory agrees."""

    @initialize(n_module_pages=st.sampled_from([1, 2, 5, 18, 40]))
    def start(self, n_module_pages: int) -> None:
        self.buffer, self.module = fresh(n_module_pages)
        self.records: list[tuple[int, bytes]] = []
        self.owners: list[int | None] = [None] * (n_module_pages - 1)

    def data_bytes(self) -> int:
        return sum(len(data) for _, data in self.records)

    @rule(type_=st.integers(1, 255), data=st.one_of(st.binary(max_size=40), st.just(bytes(255))))
    def add(self, type_: int, data: bytes) -> None:
        room = PAGE_SIZE - (self.module.recs_off + 64) - self.data_bytes()
        if len(self.records) == 16 or len(data) > room:
            with pytest.raises(OutOfSpace):
                self.module.add_record(type_, data)
        else:
            assert self.module.add_record(type_, data) == len(self.records)
            self.records.append((type_, data))

    @precondition(lambda self: self.records)
    @rule(choice=st.data())
    def update(self, choice: st.DataObject) -> None:
        index = choice.draw(st.integers(0, len(self.records) - 1))
        type_, old = self.records[index]
        offset = choice.draw(st.integers(0, len(old)))
        new = choice.draw(st.binary(max_size=len(old) - offset))
        self.module.update_record(index, new, offset)
        self.records[index] = (type_, old[:offset] + new + old[offset + len(new) :])

    @precondition(lambda self: self.records)
    @rule(choice=st.data(), n=st.integers(1, 8))
    def alloc(self, choice: st.DataObject, n: int) -> None:
        record = choice.draw(st.integers(0, len(self.records) - 1))
        fitting = [
            first
            for first in range(len(self.owners) - n + 1)
            if all(owner is None for owner in self.owners[first : first + n])
        ]
        if not fitting:
            with pytest.raises(OutOfSpace):
                self.module.alloc_pages(record, n)
            return
        assert self.module.alloc_pages(record, n) == fitting[0]
        self.owners[fitting[0] : fitting[0] + n] = [record] * n

    @rule(first=st.integers(0, 40), n=st.integers(1, 5))
    def free(self, first: int, n: int) -> None:
        owned = self.owners[first : first + n]
        if len(owned) < n or None in owned:
            with pytest.raises(ModuleError):
                self.module.free_pages(first, n)
        else:
            self.module.free_pages(first, n)
            self.owners[first : first + n] = [None] * n

    @invariant()
    def agrees(self) -> None:
        size = len(self.buffer)
        memory = GuestMemory([(ADDRESS, self.buffer)])
        for module in (self.module, KexecModule.attach(memory, ADDRESS, size)):
            found = [(r.type, module.read_record(r.index)) for r in module.records()]
            assert found == self.records
            owners = [None if owner == 255 else owner for owner in module.owners()]
            assert owners == self.owners
        assert self.buffer[:-PAGE_SIZE] == b"\xa5" * (size - PAGE_SIZE)


ModuleMachine.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=25)
TestModuleAgainstAModel = ModuleMachine.TestCase
