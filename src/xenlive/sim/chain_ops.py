"""What a kernel of ours does to its module in a chain, each operation with what it must lead to.

An `Operation` is the call, the change of the plain model, and, where the posted format knows the
operation too, the same call on the posted kernel's side: result and page must then be the same byte
for byte. Seeds choose operations here; `chain_worker.py` performs and checks them.

**Invariants.** No operation is chosen by looking at the module object: choices follow from the
model and the random numbers, so that a seed means the same whatever the product does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from xenlive.kexec.module import KexecModule
from xenlive.kexec.sealed import add_sealed, update_sealed
from xenlive.memory.e820 import MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory
from xenlive.sim.chain_maps import Machine
from xenlive.sim.posted import PAGE, PostedModule
from xenlive.sim.witness import SEAL_HEAD, SEALED, SLOT_HEAD, Expected, Seal, Seen

MOST_PAGES = 4018


@dataclass
class Operation:
    """One operation: `do` gives its result, `expect` makes the model what it must be after it.

    `twin` does the same by the posted format and gives None where that runs out of space.
    `piecewise`: a kernel that dies in the middle may leave it half done, page by page or byte by
    byte; all others are done or not done.
    """

    name: str
    do: Callable[[KexecModule], object]
    expect: Callable[[Expected, int], None]
    twin: Callable[[PostedModule], int | None] | None = None
    piecewise: bool = False
    #: Whether running out of space is a right answer, by the model's own reckoning.
    may_run_out: Callable[[Seen], bool] | None = None
    #: The record it is about, if that has to be there before it.
    index: int | None = None


def pattern(random: Random) -> bytes:
    """A page's content; some begin as if they were the last page of a module."""
    head = b"KexecMem" if random.random() < 0.1 else random.randbytes(8)
    return (head + random.randbytes(8)) * (PAGE // 16)


def spoil_seals(expected: Expected, index: int) -> None:
    """Notes that a record's pages are not those that its seal was made over."""
    seal = expected.seals.get(index)
    if seal is not None and seal.covers_pages:
        seal.stale = True


# -- the operations of the posted format ---------------------------------------------------------


def add(type_: int, data: bytes) -> Operation:
    """A new record."""

    def expect(expected: Expected, index: int) -> None:
        expected.records[index] = (type_, data)

    return Operation(
        "add",
        lambda module: module.add_record(type_, data),
        expect,
        lambda module: module.add(type_, data),
    )


def update(index: int, data: bytes) -> Operation:
    """New data for a record."""

    def expect(expected: Expected, _: int) -> None:
        expected.records[index] = (expected.records[index][0], data)

    def twin(module: PostedModule) -> int:
        module.update(index, data)
        return 0

    return Operation(
        "update", lambda module: module.update_record(index, data), expect, twin, piecewise=True
    )


def alloc(index: int, n: int) -> Operation:
    """Pages for a record; nobody knows yet what is in them."""

    def expect(expected: Expected, first: int) -> None:
        for page in range(first, first + n):
            expected.owners[expected.address + page * PAGE] = index
        spoil_seals(expected, index)

    return Operation(
        "alloc",
        lambda module: module.alloc_pages(index, n),
        expect,
        lambda module: module.alloc(index, n),
        piecewise=True,
        index=index,
    )


def free(first: int, n: int) -> Operation:
    """Takes pages, counted from the module's lower end, from whoever has them."""

    def expect(expected: Expected, _: int) -> None:
        for page in range(first, first + n):
            address = expected.address + page * PAGE
            spoil_seals(expected, expected.owners.pop(address))
            expected.contents.pop(address, None)

    def twin(module: PostedModule) -> int:
        module.free(first, n)
        return 0

    return Operation(
        "free", lambda module: module.free_pages(first, n), expect, twin, piecewise=True
    )


# -- those that only ours know -------------------------------------------------------------------


def delete(index: int) -> Operation:
    """A record goes, with its pages."""

    def expect(expected: Expected, _: int) -> None:
        del expected.records[index]
        expected.seals.pop(index, None)
        for page in expected.pages_of(index):
            del expected.owners[page]
            expected.contents.pop(page, None)

    return Operation(
        "delete",
        lambda module: module.delete_record(index, free_pages=True),
        expect,
        piecewise=True,
    )


def compact() -> Operation:
    """Records move together; nothing else is to be seen of it."""
    return Operation("compact", lambda module: module.compact(), lambda expected, _: None)


def extend(n_records: int, surely: bool) -> Operation:
    """A longer table, for which there is `surely` room, or perhaps."""

    def expect(expected: Expected, _: int) -> None:
        expected.n_records = n_records

    return Operation(
        "extend",
        lambda module: module.extend_table(n_records),
        expect,
        may_run_out=lambda _: not surely,
    )


def seal(kind: int, payload: bytes, memory: GuestMemory | None) -> Operation:
    """A new sealed record; with `memory`, its pages count too (it has none yet)."""

    size = SEAL_HEAD.size + 2 * (SLOT_HEAD.size + len(payload))

    def expect(expected: Expected, index: int) -> None:
        expected.records[index] = (SEALED, bytes(size))
        expected.seals[index] = Seal(kind, payload, memory is not None)

    def may_run_out(seen: Seen) -> bool:
        return len(seen.records) == seen.n_records or seen.record_end + size > PAGE

    return Operation(
        "seal",
        lambda module: add_sealed(module, kind, payload, memory),
        expect,
        may_run_out=may_run_out,
    )


def reseal(index: int, payload: bytes, memory: GuestMemory | None) -> Operation:
    """The next generation of a sealed record."""

    def expect(expected: Expected, _: int) -> None:
        seal = expected.seals[index]
        seal.older, seal.payload, seal.stale = seal.payload, payload, False

    return Operation(
        "reseal",
        lambda module: update_sealed(module, index, payload, memory),
        expect,
        index=index,
    )


# -- its size ------------------------------------------------------------------------------------


def has_room_for(expected: Expected, n_records: int, n_pages: int) -> bool:
    """Whether the last page can surely hold a table and owners of these sizes.

    Rough: with this much to spare, moving things out of each other's way is no question.
    """
    data = sum(len(data) for _, data in expected.records.values())
    used = max(expected.records, default=0) + 1
    return 14 + n_pages + 4 * n_records + data + 4 * used + 600 <= PAGE


def resize(
    machine: Machine, expected: Expected, change: int, taken: list[tuple[int, int]]
) -> Operation | None:
    """`change` pages more or, if negative, less at the lower end; None: no module has so many."""
    n_pages = expected.n_pages + change
    if not change or not 0 <= n_pages <= MOST_PAGES:
        return None
    address = expected.address

    def do(module: KexecModule) -> None:
        if change > 0:
            module.grow(change, memory_map(machine), taken)
        else:
            module.shrink(-change)

    def expect(after: Expected, _: int) -> None:
        after.address -= change * PAGE

    def may_run_out(seen: Seen) -> bool:
        if len(seen.records) == seen.n_records:
            return True
        if not has_room_for(expected, expected.n_records, max(n_pages, expected.n_pages)):
            return True
        if change < 0:
            return any(address + page * PAGE in expected.owners for page in range(-change))
        below = (address - (page + 1) * PAGE for page in range(change))
        return not all(machine.is_free_ram(page, taken) for page in below)

    return Operation("grow" if change > 0 else "shrink", do, expect, may_run_out=may_run_out)


def memory_map(machine: Machine) -> MemoryMap:
    """The machine's map as the product knows it."""
    return MemoryMap(MemoryRange(*range_) for range_ in machine.memmap)
