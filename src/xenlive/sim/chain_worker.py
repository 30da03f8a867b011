"""Performs a chain's operations on a module of ours, and checks each against model and posted twin.

    operation ──▶ module (in RAM)      same result, same bytes        Mismatch
              ├─▶ posted twin (copy) ◀──────── compared ────────▶ else
              └─▶ plain model        ◀── the witness reads RAM ──▶

`die` performs an operation in a kernel that dies in the middle of it, after a number of stores that
the seed chooses; the operation is rehearsed first to know how many there are.

**Invariants.** After each operation the module holds exactly what the model says, and after a
refusal the last page is what it was, byte for byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from xenlive.errors import OutOfSpace, XenliveError
from xenlive.kexec.adminpage import AdminPage
from xenlive.kexec.module import KexecModule
from xenlive.memory.address import PhysAddr
from xenlive.memory.guest import GuestMemory
from xenlive.sim import chain_choice, chain_ops
from xenlive.sim.chain_maps import Machine
from xenlive.sim.chain_ops import Operation
from xenlive.sim.client import Mismatch
from xenlive.sim.mortal import Died, MortalPage
from xenlive.sim.posted import PAGE, PostedModule
from xenlive.sim.witness import Expected, Seen, check, compare_tables, look, owners_by_address

_FOREVER = 1 << 30


class Worker:
    """A kernel of ours at work on its module. `expected` is what the module must hold now."""

    def __init__(
        self, machine: Machine, module: KexecModule, expected: Expected, random: Random
    ) -> None:
        self.machine = machine
        self.module = module
        self.expected = expected
        self.random = random
        self.figures: Counter[str] = Counter()
        #: After a death: states before and after the operation, and whether it is piecewise.
        self.torn: tuple[Expected, Expected, bool] | None = None

    def check(self) -> None:
        """Holds the module, in RAM and as its object says, against the model."""
        seen = check(self.machine.read, self.expected)
        self._compare_object(seen)

    def work(self, taken: list[tuple[int, int]]) -> None:
        """One operation of the seed's choice, or new content for some pages."""
        if self.random.random() < 0.25:
            self.stamp(self.random.choice((1, 2, 17)))
        elif self.random.random() < 0.1:
            self.resize(self.random.choice((-3, -1, 1, 2, 5)), taken)
        else:
            operation = chain_choice.choose(self.random, self.expected, self.machine.memory)
            if operation is not None:
                self.perform(operation)

    def stamp(self, n: int) -> None:
        """Writes a new pattern into some owned pages."""
        pages = sorted(self.expected.owners)
        for address in self.random.sample(pages, min(n, len(pages))):
            self._write_page(address)

    def stamp_new(self) -> None:
        """Writes a pattern into each page whose content nobody knows."""
        for address in sorted(self.expected.owners.keys() - self.expected.contents.keys()):
            self._write_page(address)

    def _write_page(self, address: int) -> None:
        content = chain_ops.pattern(self.random)
        self.machine.memory.write(PhysAddr(address), content)
        self.expected.contents[address] = content
        chain_ops.spoil_seals(self.expected, self.expected.owners[address])

    def resize(self, change: int, taken: list[tuple[int, int]]) -> bool:
        """Grows or shrinks the module by some pages, away from what is `taken`."""
        operation = self.resizing(change, taken)
        return operation is not None and self.perform(operation)

    def resizing(self, change: int, taken: list[tuple[int, int]]) -> Operation | None:
        """That operation; None if no module can have that many pages."""
        return chain_ops.resize(self.machine, self.expected, change, taken)

    def reach(self, name: str, taken: list[tuple[int, int]]) -> Operation | None:
        """An operation of that name, once what it needs is there; None if that can't be had."""
        random = self.random
        if name == "add":
            return chain_ops.add(2, random.randbytes(30))
        if name == "seal":
            return chain_ops.seal(9, random.randbytes(12), None)
        if name in ("grow", "shrink"):
            k = random.choice((1, 1, 2, 5))
            if name == "shrink":
                self.resize(k, taken)
            return self.resizing(k if name == "grow" else -k, taken)
        if name == "extend":
            return chain_ops.extend(min(255, self.expected.n_records + 3), surely=False)
        if name == "reseal":
            index = self._added(chain_ops.seal(9, random.randbytes(12), self.machine.memory))
            return self._on(index, lambda i: chain_ops.reseal(i, b"twelve bytes", self._memory))
        index = self._added(chain_ops.add(2, random.randbytes(30)))
        if name == "compact":
            # Something behind a gap: it has to move.
            self._added(chain_ops.add(3, random.randbytes(random.choice((10, 50)))))
            if index is not None:
                self.perform(chain_ops.delete(index))
            return chain_ops.compact()
        if name == "update":
            return self._on(index, lambda i: chain_ops.update(i, random.randbytes(30)))
        if name == "alloc":
            return self._on(index, lambda i: chain_ops.alloc(i, random.choice((1, 3))))
        if index is not None:
            self.perform(chain_ops.alloc(index, 2))
            self.stamp_new()
        if name == "delete":
            return self._on(index, chain_ops.delete)
        owned = sorted(self.expected.owners)
        first = (owned[0] - self.expected.address) // PAGE if owned else 0
        return chain_ops.free(first, 1) if owned else None

    @property
    def _memory(self) -> GuestMemory:
        return self.machine.memory

    def _added(self, operation: Operation) -> int | None:
        """Performs an addition; the new record's index, or None if there was no space."""
        before = self.expected.records.keys()
        if not self.perform(operation):
            return None
        return max(self.expected.records.keys() - before)

    @staticmethod
    def _on(index: int | None, make: Callable[[int], Operation]) -> Operation | None:
        return None if index is None else make(index)

    # -- performing ------------------------------------------------------------------------------

    def perform(self, operation: Operation) -> bool:
        """Does it and checks it; False if there was no space for it."""
        before = self._page()
        try:
            result = operation.do(self.module)
        except OutOfSpace as error:
            self._check_refusal(operation, before, error)
            return False
        except XenliveError as error:
            raise Mismatch(f"{operation.name} was refused: {error}") from error
        if operation.twin is not None:
            self._check_twin(operation, before, result)
        after = self.expected.copy()
        operation.expect(after, result if isinstance(result, int) else 0)
        self.expected = after
        self._check_step(operation)
        self.figures[operation.name] += 1
        return True

    def _check_step(self, operation: Operation) -> None:
        try:
            self.check()
        except Mismatch as mismatch:
            raise Mismatch(f"after {operation.name}: {mismatch}") from mismatch

    def _check_refusal(self, operation: Operation, before: bytes, error: OutOfSpace) -> None:
        self.figures["refused"] += 1
        if self._page() != before:
            raise Mismatch(f"{operation.name} changed the page and then said: {error}")
        if operation.twin is not None:
            full = self._twin_of(operation, before)[0] is None
        elif operation.may_run_out is not None:
            full = operation.may_run_out(look(self.machine.read, self.expected.admin_address))
        else:
            full = False
        if not full:
            raise Mismatch(f"{operation.name}, although there is space: {error}")
        self._check_step(operation)

    def _check_twin(self, operation: Operation, before: bytes, result: object) -> None:
        wanted, page = self._twin_of(operation, before)
        if wanted is None:
            raise Mismatch(f"{operation.name} gave {result}, the posted format has no space left")
        if result is not None and result != wanted:
            raise Mismatch(f"{operation.name} gave {result}, by the posted format it is {wanted}")
        if self._page() != page:
            raise Mismatch(f"{operation.name} left other bytes than the posted format's")

    def _twin_of(self, operation: Operation, before: bytes) -> tuple[int | None, bytes]:
        page = bytearray(before)
        admin = self.expected.admin_address
        twin = PostedModule(
            GuestMemory([(admin, page)]), self.expected.address, self.expected.n_pages
        )
        assert operation.twin is not None
        return operation.twin(twin), bytes(page)

    # -- dying -----------------------------------------------------------------------------------

    def die(self, operation: Operation, where: float) -> bool:
        """Dies in the operation, `where` (0 to 1) of its stores done; False if it has none."""
        before = self._page()
        rehearsal = MortalPage(self._view(), _FOREVER)
        try:
            result = operation.do(self._with_page(rehearsal))
        except OutOfSpace:
            return False
        self._restore(before)
        if not rehearsal.stored:
            return False
        after = self.expected.copy()
        operation.expect(after, result if isinstance(result, int) else 0)
        doomed = self._with_page(MortalPage(self._view(), int(where * (rehearsal.stored - 1))))
        try:
            operation.do(doomed)
        except Died:
            self.torn = (self.expected, after, operation.piecewise)
            self.figures["deaths"] += 1
            return True
        raise Mismatch(f"{operation.name} stores less when it is done again")

    def _with_page(self, page: AdminPage) -> KexecModule:
        """The module as this kernel knows it, over another view of its last page."""
        return KexecModule(page, PhysAddr(self.expected.address), self._memory)

    def _view(self) -> memoryview:
        return self.machine.memory.view(PhysAddr(self.expected.admin_address), PAGE)

    def _page(self) -> bytes:
        return self.machine.read(self.expected.admin_address, PAGE)

    def _restore(self, page: bytes) -> None:
        self.machine.memory.write(PhysAddr(self.expected.admin_address), page)

    # -- the object ------------------------------------------------------------------------------

    def _compare_object(self, seen: Seen) -> None:
        module = self.module
        told = Seen(
            int(module.address),
            module.n_pages,
            module.n_records,
            module.recs_off,
            {r.index: (r.type, module.read_record(r.index)) for r in module.records()},
            {},
            owners_by_address(module.address, module.owners()),
            b"",
        )
        compare_tables(told, self.expected)
        frees = self.expected.n_pages - len(self.expected.owners)
        numbers = (module.admin_address, module.size_bytes, module.recs_off)
        if numbers != (self.expected.admin_address, self.expected.size, seen.recs_off):
            raise Mismatch(f"the module says of itself {numbers}")
        if (module.free_page_count(), module.free_record_bytes()) != (
            frees,
            PAGE - seen.record_end,
        ):
            raise Mismatch("the module counts free pages or bytes differently")
