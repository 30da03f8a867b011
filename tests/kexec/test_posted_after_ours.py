"""Nothing we write is refused or misread by code that knows only the posted format.

Kernels of both kinds take turns on the same module: ours with all that it can do (delete, compact,
longer tables, grow, shrink, seals), and the C code, which goes on from there by its own rules.
After each operation of ours, and wherever a kernel dies in one, the C code accepts the module,
finds every record with its bytes, and what it then adds or allocates lies where nobody has
anything. It also sees the right owner of each page, with one exception, which is counted here: in a
growth or shrinking that was cut off, pages in use may seem to be another record's. They never look
free. A kernel that frees pages in that state may free another record's.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from random import Random

import pytest
from kexec.killpoints import recorded
from kexec.posted import posted_kernel
from kexec.posted.posted_kernel import PostedKernel

from xenlive.abi.kexec_module import MAX_MODULE_PAGES, PAGE_FREE
from xenlive.errors import OutOfSpace
from xenlive.kexec import KexecModule
from xenlive.kexec.sealed import MAX_PAYLOAD_SIZE, add_sealed, update_sealed
from xenlive.kexec.verify import verify
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, MemoryMap, MemoryRange

ROOM = 4040  # pages of RAM
END = ROOM * PAGE_SIZE
RAM = MemoryMap([MemoryRange(0, END, E820_RAM)])
SIZES = (1, 2, 5, 18, 24, 40)
CHAINS = 60
DEATHS = 150  # at most so many points of a change, evenly spread

Contents = dict[int, tuple[int, bytes]]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostedKernel]:
    """A kernel in C whose memory is the machine's."""
    program = posted_kernel.program(tmp_path_factory)
    with PostedKernel(program, tmp_path_factory.mktemp("ram") / "ram", END) as running:
        yield running


def make(kernel: PostedKernel, n_module_pages: int) -> KexecModule:
    """A fresh module at the end of RAM."""
    address = PhysAddr(END - n_module_pages * PAGE_SIZE)
    return KexecModule.create(kernel.memory, address, n_module_pages)


def contents(module: KexecModule) -> Contents:
    """Every record by our own reading."""
    return {r.index: (r.type, module.read_record(r.index)) for r in module.records()}


def owner_by_address(module: KexecModule) -> dict[int, int]:
    """Owner of each page in use, by the page's address, which stays when indices shift."""
    owners = enumerate(module.owners())
    return {module.page_address(page): owner for page, owner in owners if owner != PAGE_FREE}


def hand_to_c(kernel: PostedKernel, address: int, n_module_pages: int) -> Contents:
    """The C code attaches by its three checks; every record as it reads it."""
    kernel.place(address, n_module_pages)
    assert kernel.call("attach") == 0
    entries = [entry for entry in enumerate(kernel.show().entries) if entry[1][1]]
    answers = kernel.calls(f"read {index} {size}" for index, (_, _, size) in entries)
    assert [answer.result for answer in answers] == [0] * len(entries)
    pairs = zip(entries, answers, strict=True)
    return {index: (type_, answer.data) for (index, (_, type_, _)), answer in pairs}


def goes_on(kernel: PostedKernel, random: Random, steps: int) -> None:
    """The C code adds, updates, allocates and frees; checked against what it was handed."""
    for _ in range(steps):
        shown = kernel.show()
        used = [(index, *entry) for index, entry in enumerate(shown.entries) if entry[1]]
        before = kernel.page()
        kind = random.choice(("add", "add", "update", "alloc", "free"))
        if kind == "add" or not used:
            size = random.choice((0, 1, 16, 255))
            result = kernel.call(
                f"add {random.choice((1, 9, 224, 225))} {random.randbytes(size).hex()}"
            )
            if result >= 0:
                offset = kernel.show().entries[result][0]
                assert shown.entries[result][1] == 0
                assert all(offset + size <= o or offset >= o + s for _, o, _, s in used if s)
                assert offset >= shown.recs_off + 4 * shown.n_records
            else:
                assert result == -errno.ENOSPC
                assert kernel.page() == before
        elif kind == "update":
            index, _, type_, size = random.choice(used)
            if type_ < 0xE0:
                assert kernel.call(f"update {index} {type_} {random.randbytes(size).hex()}") == 0
        elif kind == "alloc":
            index, n = random.choice(used)[0], random.choice((1, 2, 3))
            first = kernel.call(f"alloc {index} {n}")
            if first >= 0:
                assert shown.owners[first : first + n] == bytes([PAGE_FREE]) * n
            else:
                assert bytes([PAGE_FREE]) * n not in shown.owners
        else:
            owned = [page for page, owner in enumerate(shown.owners) if owner != PAGE_FREE]
            if owned:
                assert kernel.call(f"free {random.choice(owned)} 1") == 0


class Ours:
    """Our kernel: all operations, and what each leaves as it was."""

    def __init__(self, kernel: PostedKernel, random: Random, module: KexecModule) -> None:
        self.kernel = kernel
        self.random = random
        self.module = module
        self.done: set[str] = set()

    def step(self) -> None:
        """One operation, if it can be done; others' records and pages stay."""
        before, pages = contents(self.module), owner_by_address(self.module)
        pages_and_size = (self.alloc, self.grow, self.shrink, self.extend)
        records = (self.add, self.delete, self.delete, self.compact, self.seal, self.reseal)
        work = self.random.choice((*pages_and_size, *records))
        try:
            touched = work()
        except OutOfSpace:
            touched = set()
        else:
            self.done.add(work.__name__)
        after = contents(self.module)
        assert {i: r for i, r in before.items() if i not in touched} == {
            i: r for i, r in after.items() if i not in touched
        }
        kept = {at: owner for at, owner in pages.items() if owner not in touched}
        assert kept.items() <= owner_by_address(self.module).items()

    def some(self) -> int | None:
        records = self.module.records()
        return self.random.choice(records).index if records else None

    def add(self) -> set[int]:
        size = self.random.choice((0, 3, 16, 100, 255))
        return {self.module.add_record(self.random.randint(2, 200), self.random.randbytes(size))}

    def alloc(self) -> set[int]:
        index = self.some()
        if index is not None:
            self.module.alloc_pages(index, self.random.choice((1, 2, 5)))
        return set()

    def delete(self) -> set[int]:
        index = self.some()
        if index is None:
            return set()
        self.module.delete_record(index, free_pages=True)
        return {index}

    def compact(self) -> set[int]:
        self.module.compact()
        return set()

    def extend(self) -> set[int]:
        wanted = self.module.n_records + self.random.choice((0, 1, 9))
        self.module.extend_table(min(wanted, 255))
        return set()

    def grow(self) -> set[int]:
        most = MAX_MODULE_PAGES - self.module.n_pages - 1
        if most:
            self.module.grow(min(self.random.choice((1, 2, 7, 40)), most), RAM)
        return set()

    def shrink(self) -> set[int]:
        free = len(self.module.owners()) - len(self.module.owners().lstrip(b"\xff"))
        if free:
            self.module.shrink(self.random.randint(1, free))
        return set()

    def seal(self) -> set[int]:
        size = self.random.choice((0, 8, MAX_PAYLOAD_SIZE))
        return {add_sealed(self.module, 7, self.random.randbytes(size))}

    def reseal(self) -> set[int]:
        for index, (type_, data) in contents(self.module).items():
            if type_ == 0xE0 and data.startswith(b"KexS"):
                update_sealed(self.module, index, self.random.randbytes((len(data) - 24) // 2))
                return {index}
        return set()


def test_kernels_of_both_kinds_take_turns(kernel: PostedKernel) -> None:
    done: set[str] = set()
    for seed in range(CHAINS):
        random = Random(seed)
        ours = Ours(kernel, random, make(kernel, SIZES[seed % len(SIZES)]))
        for _ in range(4):
            for _ in range(6):
                ours.step()
                module = ours.module
                seen = hand_to_c(kernel, module.address, module.n_pages + 1)
                assert seen == contents(module), f"seed {seed}"
                assert kernel.show().owners == module.owners()
            goes_on(kernel, random, 6)
            page = kernel.page()
            assert verify(page, kernel.size_bytes) == []
            handed = hand_to_c(kernel, kernel.address, kernel.size_bytes // PAGE_SIZE)
            ours.module = KexecModule.attach(kernel.memory, kernel.address, kernel.size_bytes)
            assert contents(ours.module) == handed, f"seed {seed}"
            assert kernel.page() == page, "attaching changed a module that the C code left"
        done |= ours.done
    assert done >= {"add", "alloc", "delete", "compact", "extend", "grow", "shrink", "seal"}
    assert "reseal" in done


# A kernel of ours dies, and one that knows only the posted format finds the module.


def crowded(kernel: PostedKernel, n_module_pages: int, crowd: bool) -> KexecModule:
    """Records with gaps between them and pages of several owners; a full page if `crowd`."""
    module = make(kernel, n_module_pages)
    for place, size in enumerate((50, 16, 255, 3, 0, 90)):
        module.add_record(7 + place, bytes([place + 1]) * size)
    add_sealed(module, 3, b"0123456789")
    if n_module_pages > 10:
        for owner, n in ((0, 3), (1, 2), (2, 4), (5, 1)):
            module.alloc_pages(owner, n)
        module.free_pages(0, 3)
    module.delete_record(0)
    module.delete_record(3)
    if crowd:
        module.extend_table(25)
        while module.free_record_bytes() > 600:
            module.add_record(9, b"c" * 255)
    return module


CHANGES: dict[str, Callable[[KexecModule], object]] = {
    "add": lambda m: m.add_record(9, b"new data"),
    "delete": lambda m: m.delete_record(5, free_pages=True),
    "compact": lambda m: m.compact(),
    "extend": lambda m: m.extend_table(40),
    "grow by 1": lambda m: m.grow(1, RAM),
    "grow by 30": lambda m: m.grow(30, RAM),
    "shrink": lambda m: m.shrink(2),
    "seal": lambda m: update_sealed(m, 6, b"9876543210"),
}


@pytest.mark.parametrize("crowd", [False, True], ids=["roomy", "crowded"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_kernel_that_dies_leaves_what_the_posted_code_can_use(
    kernel: PostedKernel, name: str, crowd: bool
) -> None:
    module = crowded(kernel, 24, crowd)
    before, owners_before = contents(module), owner_by_address(module)
    with recorded(module) as stores:
        CHANGES[name](module)
    after = contents(module)
    stay = {index: record for index, record in before.items() if after.get(index) == record}
    assert len(stay) >= len(before) - 1
    owners_after = owner_by_address(module)
    in_use = set(owners_after)
    deaths = 0
    for page in stores.pages(every=1 + sum(1 for _ in stores.pages()) // DEATHS):
        deaths += 1
        kernel.ram[END - PAGE_SIZE : END] = page
        n_module_pages = int.from_bytes(page[8:10], "little") + 1
        start = END - n_module_pages * PAGE_SIZE
        seen = hand_to_c(kernel, start, n_module_pages)
        assert stay.items() <= seen.items()
        shown = kernel.show()
        if not resizing(seen):
            told = seen_owners(kernel, start)
            assert owners_after.items() <= told.items()
            freed = {at: told[at] for at in told.keys() - in_use}
            assert freed.items() <= owners_before.items()
        owner = min(stay)
        index, first = (a.result for a in kernel.calls(["add 9 aabbcc", f"alloc {owner} 2"]))
        taken = {}
        if first >= 0:
            assert shown.owners[first : first + 2] == b"\xff\xff"
            taken = {start + (first + n) * PAGE_SIZE: owner for n in (0, 1)}
            assert in_use.isdisjoint(taken)
        # And back to ours, which finds what the C code did beside all that was there.
        assert verify(kernel.page(), kernel.size_bytes) == []
        ours = KexecModule.attach(kernel.memory, PhysAddr(start), kernel.size_bytes)
        found = contents(ours)
        assert stay.items() <= found.items()
        if index >= 0:
            assert (index in seen, found[index]) == (False, (9, b"\xaa\xbb\xcc"))
        else:
            assert index == -errno.ENOSPC
        owners = owner_by_address(ours)
        assert set(owners) >= in_use
        assert owners.items() >= taken.items()
    assert deaths > 1


def resizing(records: Contents) -> bool:
    """Whether there is a journal of ours among the records that the C code reads."""
    return any(type_ == 0xE1 and data.startswith(b"KexR") for type_, data in records.values())


def seen_owners(kernel: PostedKernel, start: int) -> dict[int, int]:
    """Owner of each page in use as the C code sees it, by the page's address."""
    owners = enumerate(kernel.show().owners)
    return {start + page * PAGE_SIZE: owner for page, owner in owners if owner != PAGE_FREE}


def one_run(module: KexecModule) -> None:
    module.alloc_pages(1, 17)


def two_owners(module: KexecModule) -> None:
    for owner, n in ((1, 3), (2, 6), (1, 4)):
        module.alloc_pages(owner, n)


def at_the_end(module: KexecModule) -> None:
    two_owners(module)
    module.free_pages(0, 4)


@pytest.mark.parametrize(
    ("fill", "change", "some_misread"),
    [
        (one_run, 1, True),
        (two_owners, 1, True),
        (two_owners, 5, True),
        (at_the_end, 2, True),
        (at_the_end, -3, True),
        (lambda module: None, 3, False),
        (lambda module: None, -3, False),
    ],
)
def test_whose_a_page_is_can_be_misread_only_in_an_unfinished_resize(
    kernel: PostedKernel, fill: Callable[[KexecModule], object], change: int, some_misread: bool
) -> None:
    """At every moment: only while the journal is there, and then no page in use looks free."""
    module = make(kernel, 24)
    for place in range(4):
        module.add_record(7 + place, bytes([place]) * 8)
    fill(module)
    truth = owner_by_address(module)
    with recorded(module) as stores:
        if change > 0:
            module.grow(change, RAM)
        else:
            module.shrink(-change)
    assert owner_by_address(module) == truth
    misread: set[int] = set()
    moments = wrong = 0
    for page in stores.pages():
        kernel.ram[END - PAGE_SIZE : END] = page
        n_module_pages = int.from_bytes(page[8:10], "little") + 1
        start = END - n_module_pages * PAGE_SIZE
        seen = hand_to_c(kernel, start, n_module_pages)
        told = seen_owners(kernel, start)
        moments += 1
        assert truth.keys() <= told.keys(), "a page in use looks free"
        if not resizing(seen):
            assert told == truth
            continue
        now = {at for at, owner in truth.items() if told[at] != owner}
        wrong += bool(now)
        misread |= now
    assert (wrong > 0) == some_misread
    assert wrong < moments
    assert misread <= truth.keys()


@pytest.mark.parametrize("n_module_pages", [1, 2, 4002, 4003, 4018, 4019])
def test_the_smallest_and_the_largest(kernel: PostedKernel, n_module_pages: int) -> None:
    random = Random(n_module_pages)
    ours = Ours(kernel, random, make(kernel, n_module_pages))
    for _ in range(30):
        ours.step()
        module = ours.module
        assert hand_to_c(kernel, module.address, module.n_pages + 1) == contents(module)
        assert kernel.show().owners == module.owners()
