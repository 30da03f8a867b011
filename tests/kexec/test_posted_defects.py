"""What the posted code's defects leave behind is named, and ours can go on from there.

The images are made by `posted/posted.c` with its defects. Whatever it left, attaching works or is
one typed error, no record in use changes a byte, and no page in use changes its owner.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from kexec.posted import posted_kernel
from kexec.posted.posted_kernel import ALL_DEFECTS, FULL, PostedKernel

from xenlive.abi.kexec_module import PAGE_FREE, PG2REC_OFFSET
from xenlive.abi.xen9pfs import REF0, RING_ORDER
from xenlive.errors import ImageError, ModuleError, OutOfSpace
from xenlive.kexec import KexecModule
from xenlive.kexec.suspect import suspect
from xenlive.kexec.verify import Problem, verify
from xenlive.memory.address import PAGE_SIZE

ROOM = 64
DEFECTS = ALL_DEFECTS & ~FULL
TABLE, DATA = 32, 96  # in a module of 18 pages
DEVICE = "ff070000" + "04000000" + "00" * 8


@pytest.fixture
def kernel(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[PostedKernel]:
    """A kernel in C with all defects, and a fresh module of 18 pages at address 0."""
    program = posted_kernel.program(tmp_path_factory)
    file = tmp_path_factory.mktemp("ram") / "ram"
    with PostedKernel(program, file, ROOM * PAGE_SIZE) as running:
        start(running, 18)
        yield running


def start(kernel: PostedKernel, n_module_pages: int) -> None:
    kernel.place(0, n_module_pages, DEFECTS)
    assert kernel.call(f"create {n_module_pages}") == 0


def run(kernel: PostedKernel, *commands: str) -> list[int]:
    return [answer.result for answer in kernel.calls(commands)]


def problems_of(kernel: PostedKernel) -> list[Problem]:
    """All that verify and suspect say of what the kernel left."""

    def read_page(index: int) -> bytes:
        at = kernel.address + index * PAGE_SIZE
        return kernel.ram[at : at + PAGE_SIZE]

    page, size = kernel.page(), kernel.size_bytes
    return verify(page, size) + suspect(page, size, read_page)


def named(kernel: PostedKernel) -> list[tuple[str, int]]:
    return [(problem.code, problem.offset) for problem in problems_of(kernel)]


def attach(kernel: PostedKernel) -> KexecModule:
    return KexecModule.attach(kernel.memory, kernel.address, kernel.size_bytes)


# Sizes and types modulo 256.


@pytest.mark.parametrize("size", [256, 257, 272, 300, 511])
def test_a_record_whose_size_was_stored_modulo_256(kernel: PostedKernel, size: int) -> None:
    """The rest of its bytes belongs to nobody; a record that is added later by us stays clear."""
    assert run(kernel, f"add 9 {'5a' * size}", "add 7 0102") == [0, 1]
    kept = size % 256
    assert kernel.show().entries[:2] == [(DATA, 9, kept), (DATA + size, 7, 2)]
    assert named(kernel) == [("bytes-outside-records", DATA + kept)]
    assert problems_of(kernel)[0].message.endswith(f"may have {size} bytes, not {kept}")
    module = attach(kernel)
    assert module.read_record(0) == b"\x5a" * kept
    assert module.read_record(1) == b"\x01\x02"
    assert module.record(module.add_record(5, b"new")).offset == DATA + size + 2


def test_the_next_record_lies_inside_it_after_kexec(kernel: PostedKernel) -> None:
    data = bytes(1 + place % 251 for place in range(300))
    assert run(kernel, f"add 9 {data.hex()}", "attach", "add 7 01020304") == [0, 0, 1]
    assert kernel.show().entries[:2] == [(DATA, 9, 44), (DATA + 44, 7, 4)]
    assert named(kernel) == [("bytes-outside-records", DATA + 48)]
    assert problems_of(kernel)[0].message == (
        "252 bytes belong to no record; record 0 may have 300 bytes, not 44, "
        "and record 1 lies inside it"
    )
    module = attach(kernel)
    assert module.read_record(0) == data[:44]
    assert module.read_record(1) == b"\x01\x02\x03\x04"
    # What is moved or added goes over bytes that no entry has a claim to.
    module.compact()
    module.add_record(5, b"new")
    assert module.read_record(1) == b"\x01\x02\x03\x04"


def test_a_type_that_was_stored_as_0_is_no_record(kernel: PostedKernel) -> None:
    """Its entry still says which bytes they were, so they are put in order on attaching."""
    assert run(kernel, "add 7 01", "add 256 aabbccdd", "find 0 256") == [0, 1, -2]
    assert kernel.show().entries[1] == (DATA + 1, 0, 4)
    assert named(kernel) == []
    module = attach(kernel)
    assert [record.index for record in module.records()] == [0]
    assert kernel.page()[DATA : DATA + 8] == b"\x01" + bytes(7)
    assert module.add_record(5, b"new") == 1


def test_an_entry_that_is_used_again_leaves_the_first_ones_bytes(kernel: PostedKernel) -> None:
    assert run(kernel, "add 256 aabbccdd", "add 7 010203") == [0, 0]
    assert kernel.show().entries[:2] == [(DATA + 4, 7, 3), (0, 0, 0)]
    assert named(kernel) == [("bytes-outside-records", DATA)]
    module = attach(kernel)
    assert module.read_record(0) == b"\x01\x02\x03"


def test_types_of_more_than_256_are_another_type(kernel: PostedKernel) -> None:
    """Nothing is left to see; the record is what its entry says."""
    assert run(kernel, "add 263 01", "find 0 7") == [0, 0]
    assert named(kernel) == []
    assert attach(kernel).find_record(7) == 0


# Pages with two users.


def set_up_device(kernel: PostedKernel, first_ref: int) -> None:
    """What a 9pfs front end writes to page 0, its interface."""
    with memoryview(kernel.ram)[:PAGE_SIZE].cast("I") as words:
        words[RING_ORDER] = 4
        for place in range(16):
            words[REF0 + place] = first_ref + place


def test_every_single_page_is_page_0(kernel: PostedKernel) -> None:
    assert run(kernel, f"add 1 {DEVICE}", "alloc 0 1", "alloc 0 16", "add 7 00") == [0, 0, 1, 1]
    set_up_device(kernel, 2031)
    assert named(kernel) == []
    assert run(kernel, "alloc 1 1") == [0]
    assert named(kernel) == [("page-two-users", PG2REC_OFFSET)]
    kernel.ram[0:PAGE_SIZE] = b"\xa5" * PAGE_SIZE  # and it is used
    assert named(kernel) == [("page-two-users", PG2REC_OFFSET)]
    module = attach(kernel)
    assert module.pages_of(1) == [0]
    assert module.free_page_count() == 0
    with pytest.raises(OutOfSpace):
        module.alloc_pages(1, 1)


def test_a_page_that_both_users_gave_back_is_still_in_use(kernel: PostedKernel) -> None:
    assert run(kernel, f"add 1 {DEVICE}", "alloc 0 1", "alloc 0 16", "add 7 00") == [0, 0, 1, 1]
    set_up_device(kernel, 2031)
    assert run(kernel, "alloc 1 1", "free 0 1") == [0, 0]
    assert named(kernel) == [("page-two-users", PG2REC_OFFSET)]
    assert attach(kernel).owners()[0] == 255


def test_a_second_device_takes_the_first_ones_interface(kernel: PostedKernel) -> None:
    start(kernel, 40)
    second = "ee070000" + "05000000" + "00" * 8
    commands = (f"add 1 {DEVICE}", "alloc 0 1", "alloc 0 16", f"add 1 {second}", "alloc 1 1")
    assert run(kernel, *commands, "alloc 1 16") == [0, 0, 1, 1, 0, 17]
    set_up_device(kernel, 2014)
    assert named(kernel) == [("page-two-users", PG2REC_OFFSET)]
    module = attach(kernel)
    assert module.pages_of(0) == list(range(1, 17))
    assert module.pages_of(1) == [0, *range(17, 33)]


def test_three_pages_of_which_the_last_is_a_ring_page(kernel: PostedKernel) -> None:
    start(kernel, 24)
    commands = (f"add 1 {DEVICE}", "alloc 0 1", "add 7 00", "alloc 1 3", "alloc 0 16", "free 1 2")
    assert run(kernel, *commands) == [0, 0, 1, 1, 4, 0]
    assert run(kernel, "free 3 1", "alloc 1 4") == [0, 1]
    assert kernel.show().owners[:6] == bytes([0, 1, 1, 1, 1, 0])
    set_up_device(kernel, 2031)
    assert named(kernel) == [("page-two-users", PG2REC_OFFSET + 4)]
    module = attach(kernel)
    assert module.pages_of(1) == [1, 2, 3, 4]
    assert module.alloc_pages(1, 1) == 20


# Anything that it does.


@pytest.mark.parametrize("seed", range(12))
def test_whatever_it_left_is_attached_to_or_one_error(kernel: PostedKernel, seed: int) -> None:
    """And what ours does then touches nothing that is in use."""
    random = Random(seed)
    suspected = 0
    for _ in range(25):
        start(kernel, random.choice((2, 18, 40)))
        run(kernel, *(command(random) for _ in range(random.randrange(1, 25))))
        before = kernel.page()
        problems = verify(before, kernel.size_bytes)
        suspected += len(named(kernel)) > len(problems)
        if problems:
            with pytest.raises(ImageError, match=problems[0].code):
                attach(kernel)
            assert kernel.page() == before
            continue
        module = attach(kernel)
        records = {record.index: module.read_record(record.index) for record in module.records()}
        assert records == {r.index: before[r.offset : r.end] for r in module.records()}
        owners = module.owners()
        ours_goes_on(module, random)
        assert all(module.read_record(index) == data for index, data in records.items())
        pairs = zip(owners, module.owners(), strict=True)
        assert all(new == old for old, new in pairs if old != PAGE_FREE)
    assert suspected > 5


def command(random: Random) -> str:
    """Mostly what the code does wrong."""
    kind = random.choice(("add", "add", "alloc", "alloc", "free", "attach"))
    if kind == "add":
        type_, size = (
            random.choice((1, 7, 224, 256, 512, 300)),
            random.choice((0, 16, 256, 300, 511)),
        )
        return f"add {type_} {random.randbytes(size).hex()}"
    if kind == "alloc":
        return f"alloc {random.randrange(6)} {random.choice((1, 1, 2, 3, 5))}"
    if kind == "free":
        return f"free {random.randrange(20)} 1"
    return kind


def ours_goes_on(module: KexecModule, random: Random) -> None:
    """Adds, allocates, compacts, extends: as far as there is room and a record."""
    for _ in range(6):
        try:
            random.choice(
                (
                    lambda: module.add_record(5, random.randbytes(40)),
                    lambda: module.alloc_pages(random.randrange(6), 2),
                    module.compact,
                    lambda: module.extend_table(module.n_records + 3),
                )
            )()
        except (OutOfSpace, ModuleError):
            continue
