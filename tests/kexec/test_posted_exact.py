"""Byte for byte what the posted code does, wherever that is right; a typed error where it is not.

The witness is `posted/posted.c`, written from the format's description alone. It runs as a process
on the same memory, once as the code is meant and once with the defects it was posted with.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexec.posted import posted_kernel
from kexec.posted.operations import ANY_RESULT, Done, Player, as_ours
from kexec.posted.posted_kernel import Died, PostedKernel

from xenlive.abi import kexec_module, xen9pfs
from xenlive.abi.layout import Layout
from xenlive.errors import ModuleError, OutOfSpace
from xenlive.kexec import KexecModule
from xenlive.memory.address import PAGE_SIZE, PhysAddr

LARGEST = kexec_module.MAX_MODULE_PAGES
SIZES = (1, 2, 3, 4, 18, 18, 24, 33, 100, 40)
LARGE_SIZES = (4000, 4002, 4003, 4004, LARGEST)
SEQUENCES = 1200
OURS = PhysAddr((LARGEST + 1) * PAGE_SIZE)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostedKernel]:
    """A kernel in C with room for its own module at 0, and for one of ours at `OURS`."""
    program = posted_kernel.program(tmp_path_factory)
    file = tmp_path_factory.mktemp("ram") / "ram"
    with PostedKernel(program, file, 2 * (LARGEST + 1) * PAGE_SIZE) as running:
        yield running


def compare(kernel: PostedKernel, random: Random, n_module_pages: int, n: int) -> list[Done]:
    """Plays a random sequence in Python, the C code as meant, and as posted; compares each step."""
    size_bytes = n_module_pages * PAGE_SIZE
    if n_module_pages <= 100:
        fill = random.randbytes(64) * 64 * n_module_pages
        kernel.ram[0:size_bytes] = fill
        kernel.ram[OURS : OURS + size_bytes] = fill
    player = Player(random, kernel.memory, KexecModule.create(kernel.memory, OURS, n_module_pages))
    player.play(n)
    commands = [f"create {n_module_pages}", *(done.command for done in player.done)]

    kernel.place(0, n_module_pages)
    answers = kernel.calls(commands)[1:]
    for place, (done, answer) in enumerate(zip(player.done, answers, strict=True)):
        wanted = as_ours(answer.result) if done.result != ANY_RESULT else ANY_RESULT
        assert (done.result, done.crc) == (wanted, answer.crc), commands[: place + 2]
    at = OURS + size_bytes
    assert kernel.page() == kernel.ram[at - PAGE_SIZE : at]
    if n_module_pages <= 100:
        assert kernel.ram[0:size_bytes] == kernel.ram[OURS:at]

    # As posted: the same, up to the first operation that one of the defects changes.
    kernel.place(0, n_module_pages, posted_kernel.ALL_DEFECTS & ~posted_kernel.FULL)
    as_posted = kernel.calls(commands)[1:]
    differs = [place for place, answer in enumerate(as_posted) if answer != answers[place]]
    bites = [place for place, done in enumerate(player.done) if done.bites]
    assert differs[:1] == bites[:1], commands
    return player.done


def test_thousands_of_sequences_from_seeds(kernel: PostedKernel) -> None:
    results: dict[str, int] = {}
    bitten = whole = 0
    for seed in range(SEQUENCES):
        done = compare(kernel, Random(seed), SIZES[seed % len(SIZES)], (8, 16, 60)[seed % 3])
        bitten += any(step.bites for step in done)
        whole += not any(step.bites for step in done)
        for step in done:
            kind = f"{step.command.split()[0]} {min(step.result, 0)}"
            results[kind] = results.get(kind, 0) + 1
    # The sequences are worth something: each operation was done, and refused for each reason.
    assert {"add 0", "update 0", "alloc 0", "free 0", "attach 0", "read 0", "find 0"} <= set(
        results
    )
    for refused in ("add -22", "add -28", "update -22", "alloc -22", "alloc -28", "free -22"):
        assert results.get(refused, 0) >= 10, refused
    assert min(bitten, whole) > SEQUENCES // 8


@settings(deadline=None, max_examples=120)
@given(st.randoms(use_true_random=False), st.sampled_from(SIZES), st.integers(1, 40))
def test_sequences_that_shrink(
    kernel: PostedKernel, random: Random, n_module_pages: int, n: int
) -> None:
    compare(kernel, random, n_module_pages, n)


@pytest.mark.parametrize("n_module_pages", LARGE_SIZES)
def test_the_largest_sizes(kernel: PostedKernel, n_module_pages: int) -> None:
    for seed in range(6):
        compare(kernel, Random(f"{n_module_pages} {seed}"), n_module_pages, 20)


@pytest.mark.parametrize(("n_module_pages", "largest"), [(1, 4018), (4003, 16), (4004, 14)])
def test_both_limits(kernel: PostedKernel, n_module_pages: int, largest: int) -> None:
    """One page in all has the most room for records; one of 4003 has it for a device's record."""
    ours = KexecModule.create(kernel.memory, OURS, n_module_pages)
    kernel.place(0, n_module_pages)
    size = min(largest, 255)
    too_large, fits = f"add 1 {'aa' * (size + 1)}", f"add 1 {'aa' * size}"
    answers = kernel.calls([f"create {n_module_pages}", too_large, fits, "attach", "add 1 55"])
    refused = -errno.EINVAL if size == 255 else -errno.ENOSPC
    last = 1 if largest > size else -errno.ENOSPC
    assert [answer.result for answer in answers] == [0, refused, 0, 0, last]
    with pytest.raises(ModuleError if size == 255 else OutOfSpace):
        ours.add_record(1, b"\xaa" * (size + 1))
    assert ours.add_record(1, b"\xaa" * size) == 0
    if largest > size:
        assert ours.add_record(1, b"\x55") == 1
    else:
        with pytest.raises(OutOfSpace):
            ours.add_record(1, b"\x55")
    end = OURS + n_module_pages * PAGE_SIZE
    assert kernel.page() == kernel.ram[end - PAGE_SIZE : end]


@pytest.mark.parametrize("n_module_pages", [0, LARGEST + 1])
def test_sizes_that_no_module_has(kernel: PostedKernel, n_module_pages: int) -> None:
    """As posted it is a null pointer, or a table past the page; as meant, and here, an error."""
    kernel.place(0, max(n_module_pages, 1))
    before = kernel.page()
    assert kernel.call(f"create {n_module_pages}") == -errno.EINVAL
    with pytest.raises(ModuleError):
        KexecModule.create(kernel.memory, PhysAddr(0), n_module_pages)
    assert kernel.page() == before
    kernel.call("defects 16")
    with pytest.raises(Died) as raised:
        kernel.call(f"create {n_module_pages}")
    assert raised.value.code != 0


@pytest.mark.parametrize(("records", "size"), [(16, 0), (15, 255)], ids=["table", "page"])
def test_no_entry_or_no_room_left(kernel: PostedKernel, records: int, size: int) -> None:
    """As posted it stops the machine; as meant, and here, running out changes nothing."""
    ours = KexecModule.create(kernel.memory, OURS, 18)
    kernel.place(0, 18)
    commands = ["create 18", *(f"add 9 {'01' * size}" for _ in range(records))]
    one_too_many = f"add 9 {'02' * 176}"
    assert [answer.result for answer in kernel.calls(commands)] == [0, *range(records)]
    assert kernel.call(one_too_many) == -errno.ENOSPC
    for _ in range(records):
        ours.add_record(9, b"\x01" * size)
    with pytest.raises(OutOfSpace):
        ours.add_record(9, b"\x02" * 176)
    assert kernel.page() == kernel.ram[OURS + 17 * PAGE_SIZE : OURS + 18 * PAGE_SIZE]
    kernel.call("defects 8")
    with pytest.raises(Died) as raised:
        kernel.call(one_too_many)
    assert raised.value.code == -signal.SIGABRT


def test_type_0_finds_an_unused_entry_there(kernel: PostedKernel) -> None:
    """It is no record, and can't be asked for here."""
    kernel.place(0, 4)
    answers = kernel.calls(["create 4", "add 1 00", "find 0 0", "find 1 0", "find 16 0"])
    assert [answer.result for answer in answers[2:]] == [1, 1, -errno.ENOENT]
    with pytest.raises(ModuleError):
        KexecModule.attach(kernel.memory, PhysAddr(0), 4 * PAGE_SIZE).find_record(0)


@pytest.mark.parametrize(
    ("at", "data", "accepted"),
    [
        (0, b"kexecMem", False),
        (8, b"\x10\x00", False),
        (10, b"\0\0", True),
        (32, b"\x88\x13\x01\x10", True),  # a record at 5000
    ],
)
def test_the_three_checks(kernel: PostedKernel, at: int, data: bytes, accepted: bool) -> None:
    """What they let through is read there without another look, and refused by ours."""
    kernel.place(0, 18)
    kernel.call("create 18")
    kernel.ram[17 * PAGE_SIZE + at : 17 * PAGE_SIZE + at + len(data)] = data
    assert (kernel.call("attach") == 0) == accepted


LAYOUTS = (kexec_module.HEADER, kexec_module.RECORD, xen9pfs.RECORD_9PFS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.ctype)
def test_layouts_are_the_compilers(kernel: PostedKernel, layout: Layout) -> None:
    (said,) = kernel.ask(["layout"])
    names = dict(pair.split("=") for pair in said.replace("struct ", "").split())
    ctype = layout.ctype.removeprefix("struct ")
    assert int(names[ctype]) == layout.size
    for field in layout.fields:
        assert names[f"{ctype}.{field.name}"] == f"{field.offset}:{field.size}"
    assert int(names["pg2rec"]) == kexec_module.PG2REC_OFFSET
