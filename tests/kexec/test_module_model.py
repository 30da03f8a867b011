"""All operations in any order against plain dicts and lists, and a death at any moment of each.

After each operation the page is sound and says what the model says, a second module attached to the
same memory agrees, and what failed has changed nothing. Of each operation, moments at which the
kernel could have died are looked at: the next kernel finds all that is there before and after, with
the same bytes, types and owners, and for the others the state before or after.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kexec.killpoints import Stores, next_kernel, recorded, records_of

from xenlive.abi.kexec_module import fresh_recs_off
from xenlive.errors import ModuleError, OutOfSpace
from xenlive.kexec import KexecModule
from xenlive.kexec.adminpage import AdminPage
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

BASE = PhysAddr(0x10000000)
MODULE_END = 0x14000000
FREE = None

Records = dict[int, tuple[int, bytes]]
Owners = list[int | None]

data_of_records = st.one_of(
    st.binary(max_size=24),
    st.integers(0, 255).map(lambda size: bytes(range(1, size + 1))),
    st.just(b"\xee" * 255),
)


class EveryOperation(RuleBasedStateMachine):
    """The module, and the model: records by index, owners by position, entries of the table."""

    @initialize(n_module_pages=st.sampled_from([1, 2, 18, 24, 4003, 4004, 4019]))
    def start(self, n_module_pages: int) -> None:
        self.ram = mmap.mmap(-1, MODULE_END - BASE)
        self.memory = GuestMemory([(BASE, self.ram)])
        self.memmap = MemoryMap([MemoryRange(BASE, MODULE_END - BASE, E820_RAM)])
        address = PhysAddr(MODULE_END - n_module_pages * PAGE_SIZE)
        self.module = KexecModule.create(self.memory, address, n_module_pages)
        self.records: Records = {}
        self.owners: Owners = [FREE] * (n_module_pages - 1)
        self.n_records = 16

    def teardown(self) -> None:
        if hasattr(self, "module"):
            self.module.release()
            self.memory.release()
            self.ram.close()

    # What the model knows of the page.

    def data_end(self) -> int:
        """The end of all data, by the entries themselves: the model does not say where it lies."""
        table_end = self.module.recs_off + 4 * self.n_records
        return max([table_end, *(r.offset + r.size for r in self.module.records())])

    def has_room_below(self, floor: int, more: int) -> bool:
        """Whether all data below `floor`, and `more` bytes, certainly fit behind the rest."""
        table_end = self.module.recs_off + 4 * self.n_records
        floor = max(floor, table_end)
        return PAGE_SIZE - max(self.data_end(), floor) >= floor - table_end + 255 + more

    def done(
        self, operation: Callable[[], object], records: Records, owners: Owners, n_records: int = 0
    ) -> object:
        """Does it, holds each moment of it against both states, and takes the new one over."""
        before = (self.records, self.owners)
        with recorded(self.module) as stores:
            result = operation()
        check_deaths(stores, before, (records, owners))
        self.records, self.owners = records, owners
        self.n_records = n_records or self.n_records
        return result

    def fails(self, operation: Callable[[], object], error: type[Exception]) -> None:
        with recorded(self.module) as stores, pytest.raises(error):
            operation()
        assert len(stores) == 0

    def may_run_out(
        self,
        operation: Callable[[], object],
        certain: bool,
        records: Records,
        owners: Owners,
        n_records: int = 0,
    ) -> None:
        """As `done`, but running out is an answer too unless there certainly is room."""
        before = self.module._page.whole()
        try:
            self.done(operation, records, owners, n_records)
        except OutOfSpace:
            assert not certain
            assert self.module._page.whole() == before

    # Operations on records.

    @rule(type_=st.integers(1, 255), data=data_of_records)
    def add(self, type_: int, data: bytes) -> None:
        unused = [index for index in range(self.n_records) if index not in self.records]
        if not unused or self.data_end() + len(data) > PAGE_SIZE:
            self.fails(lambda: self.module.add_record(type_, data), OutOfSpace)
            return
        records = {**self.records, unused[0]: (type_, data)}
        index = self.done(lambda: self.module.add_record(type_, data), records, self.owners)
        assert index == unused[0]

    @rule(n=st.integers(2, 40), size=st.integers(0, 40))
    def add_many(self, n: int, size: int) -> None:
        for number in range(n):
            self.add(1 + number, bytes([number + 1]) * size)

    @precondition(lambda self: self.records)
    @rule(choice=st.data(), free_pages=st.booleans())
    def delete(self, choice: st.DataObject, free_pages: bool) -> None:
        index = choice.draw(st.sampled_from(sorted(self.records)))
        if index in self.owners and not free_pages:
            self.fails(lambda: self.module.delete_record(index), ModuleError)
            return
        records = {other: found for other, found in self.records.items() if other != index}
        owners = [FREE if owner == index else owner for owner in self.owners]
        self.done(lambda: self.module.delete_record(index, free_pages=free_pages), records, owners)

    @precondition(lambda self: self.records)
    @rule(choice=st.data())
    def update(self, choice: st.DataObject) -> None:
        index = choice.draw(st.sampled_from(sorted(self.records)))
        type_, old = self.records[index]
        offset = choice.draw(st.integers(0, len(old)))
        new = choice.draw(st.binary(max_size=len(old) - offset))
        self.module.update_record(index, new, offset)
        changed = old[:offset] + new + old[offset + len(new) :]
        self.records = {**self.records, index: (type_, changed)}

    # Operations on pages.

    @precondition(lambda self: self.records)
    @rule(choice=st.data(), n=st.one_of(st.integers(1, 8), st.sampled_from([1000, 4000])))
    def alloc(self, choice: st.DataObject, n: int) -> None:
        record = choice.draw(st.sampled_from(sorted(self.records)))
        first = first_fit(self.owners, n)
        if first is None:
            self.fails(lambda: self.module.alloc_pages(record, n), OutOfSpace)
            return
        owners = [*self.owners[:first], *[record] * n, *self.owners[first + n :]]
        found = self.done(lambda: self.module.alloc_pages(record, n), self.records, owners)
        assert found == first

    @rule(first=st.one_of(st.integers(0, 40), st.integers(3900, 4020)), n=st.integers(1, 5))
    def free(self, first: int, n: int) -> None:
        owned = self.owners[first : first + n]
        if len(owned) < n or FREE in owned:
            self.fails(lambda: self.module.free_pages(first, n), ModuleError)
            return
        owners = [*self.owners[:first], *[FREE] * n, *self.owners[first + n :]]
        self.done(lambda: self.module.free_pages(first, n), self.records, owners)

    # Operations on the module.

    @rule()
    def compact(self) -> None:
        before = self.module.free_record_bytes()
        after = self.done(self.module.compact, self.records, self.owners)
        assert after == self.module.free_record_bytes() >= before

    @rule(more=st.one_of(st.integers(-1, 4), st.sampled_from([16, 100, 239])))
    def extend_table(self, more: int) -> None:
        n_records = self.n_records + more
        if more < 0 or n_records > 255:
            self.fails(lambda: self.module.extend_table(n_records), ModuleError)
            return
        certain = self.has_room_below(self.module.recs_off + 4 * n_records, 0)
        self.may_run_out(
            lambda: self.module.extend_table(n_records),
            certain,
            self.records,
            self.owners,
            n_records,
        )

    @rule(n=st.one_of(st.integers(1, 6), st.sampled_from([0, 64, 500, 3000])))
    def grow(self, n: int) -> None:
        admin_address = self.module.admin_address
        if n < 1 or len(self.owners) + 1 + n > 4019:
            self.fails(lambda: self.module.grow(n, self.memmap), ModuleError)
            return
        floor = fresh_recs_off(len(self.owners) + n) + 2 * 4 * self.n_records + 4
        certain = self.has_room_below(floor, 14) and self.n_records < 255
        self.may_run_out(
            lambda: self.module.grow(n, self.memmap),
            certain,
            self.records,
            [*[FREE] * n, *self.owners],
        )
        assert self.module.admin_address == admin_address

    @rule(n=st.one_of(st.integers(0, 6), st.sampled_from([64, 500, 3000])))
    def shrink(self, n: int) -> None:
        admin_address = self.module.admin_address
        if not 1 <= n <= len(self.owners):
            self.fails(lambda: self.module.shrink(n), ModuleError)
        elif self.owners[:n] != [FREE] * n:
            self.fails(lambda: self.module.shrink(n), OutOfSpace)
        else:
            certain = self.module.free_record_bytes() >= 14 + 255 and self.n_records < 255
            self.may_run_out(lambda: self.module.shrink(n), certain, self.records, self.owners[n:])
        assert self.module.admin_address == admin_address

    @invariant()
    def agrees(self) -> None:
        size_bytes = (len(self.owners) + 1) * PAGE_SIZE
        address = PhysAddr(MODULE_END - size_bytes)
        assert (self.module.address, self.module.size_bytes) == (address, size_bytes)
        page = self.module._page.whole()
        for module in (self.module, KexecModule.attach(self.memory, address, size_bytes)):
            assert state(module._page) == (self.records, self.owners)
            assert module.n_records == self.n_records
        assert self.module._page.whole() == page


def state(page: AdminPage) -> tuple[Records, Owners]:
    return records_of(page), [FREE if owner == 255 else owner for owner in page.owners()]


def first_fit(owners: Owners, n: int) -> int | None:
    run = 0
    for page, owner in enumerate(owners):
        run = run + 1 if owner is FREE else 0
        if run == n:
            return page + 1 - n
    return None


def check_deaths(
    stores: Stores, before: tuple[Records, Owners], after: tuple[Records, Owners]
) -> None:
    """Some moments of an operation, spread over it: what the next kernel has then."""
    size_before, size_after = len(before[1]), len(after[1])
    resized = size_before != size_after
    for page in stores.pages(some=6 if size_before > 1000 else 25):
        seen = 0
        for n_pages in {size_before, size_after}:
            found = next_kernel(page, n_pages)
            if found is None:
                continue
            seen += 1
            records, owners = state(found)
            kept = before[0].items() & after[0].items()
            assert kept <= records.items() <= before[0].items() | after[0].items()
            if resized:
                assert owners == (before[1] if n_pages == size_before else after[1])
            else:
                both = zip(owners, before[1], after[1], strict=True)
                assert all(owner in (old, new) for owner, old, new in both)
        assert seen


EveryOperation.TestCase.settings = settings(
    deadline=None,
    max_examples=40,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow],
)
TestEveryOperation = EveryOperation.TestCase
