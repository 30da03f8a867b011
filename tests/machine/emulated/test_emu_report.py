"""What is said of a guest that ended: registers, names in the backtrace, last hypercalls."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels.building import build_kernel
from machine.emulated import small_guests

from xenlive.machine.emulated.build import Module
from xenlive.machine.emulated.lens import report
from xenlive.machine.emulated.lens.symbols import Symbols
from xenlive.machine.emulated.world import Guest, World

MEMORY_BYTES = 16 << 20


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


def run(world: World, assembly: str, base: int = 0x100000) -> Guest:
    guest = world.add_guest(memory_bytes=MEMORY_BYTES)
    guest.boot(build_kernel(assembly, base=base).read_bytes())
    world.run()
    return guest


def test_a_backtrace_has_names(world: World) -> None:
    said = report.describe(run(world, small_guests.CRASHES_DEEP))
    names = [frame.name.partition("+")[0] for frame in said.backtrace]
    assert names == ["inner", "outer", "start"]
    assert not said.is_64bit


def test_the_last_hypercalls_are_named_and_placed(world: World) -> None:
    said = report.describe(run(world, small_guests.CRASHES_DEEP))
    version, shutdown = said.calls
    assert "xen_version.version(0x0, " in version
    assert f"= {4 << 16 | 17}" in version
    assert "from inner+" in version
    assert "sched_op.shutdown" in shutdown
    assert "does not return" in shutdown


def test_hypercalls_by_a_page_are_their_callers(world: World) -> None:
    guest = run(world, small_guests.CRASHES_BY_A_PAGE)
    said = report.describe(guest)
    assert len(said.calls) == 2
    assert all("from inner+" in call for call in said.calls)
    assert [frame.name.partition("+")[0] for frame in said.backtrace][:3] == [
        "page",
        "inner",
        "start",
    ]
    # Without a stack, the place of the instruction is all that is known.
    body = "movl $0xdead0000, %esp\n movl $17, %eax\n jmp page\npage: vmmcall\n ret"
    jumped = run(world, small_guests.kernel(body))
    (call,) = report.describe(jumped).calls
    assert "from page+" in call


def test_guesses_are_in_code(world: World) -> None:
    # On the stack: the way to a function, and a place of data behind what looks like its call.
    body = """
        xorl %ebp, %ebp
        pushl $table + 8
        pushl $zeros + 8
        movl $0xe8, zeros + 3
        call inner
        nop
inner:  ud2
        .data
        .byte 0xe8
table:  .byte 0, 0, 0, 0xe8, 0, 0, 0, 0, 0, 0
        .bss
        .skip 16
zeros:  .skip 64
        .text
"""
    guest = run(world, small_guests.kernel(body))
    symbols = Symbols(guest.kernel)
    data = guest.vcpu.read_virtual(guest.vcpu.engine.reg("rsp"), 12)
    (back, zeros, table) = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4, 8))
    assert symbols.find(table) == ("table", 8)
    assert symbols.find(zeros) == ("zeros", 8)
    assert symbols.find(back, in_code=True) == symbols.find(back)
    assert symbols.find(table, in_code=True) is symbols.find(zeros, in_code=True) is None
    _, *guesses = report.describe(guest).backtrace
    assert [(frame.address, frame.is_guess) for frame in guesses] == [(back, True)]


def test_the_report_as_text(world: World) -> None:
    guest = run(world, small_guests.CRASHES_DEEP)
    text = report.lines(report.describe(guest))
    assert text[0] == "guest ended: crash: the guest asked for it"
    rip = guest.vcpu.engine.reg("rip")
    assert any(f"eip {rip:08x}" in line for line in text)
    assert "  backtrace" in text
    assert "  last hypercalls" in text
    assert all(len(line) <= 100 for line in text)


def test_the_report_for_programs(world: World) -> None:
    guest = run(world, small_guests.TRIPLE_FAULTS)
    said = json.loads(json.dumps(report.as_object(report.describe(guest))))
    assert (said["end"], said["exit"], said["bits"]) == ("triple fault", 20, 32)
    assert int(said["registers"]["rip"], 16) == guest.vcpu.engine.reg("rip")
    assert "#UD" in said["why"]
    assert said["hypercalls"] == []


def test_describing_changes_nothing(world: World) -> None:
    guest = run(world, small_guests.CRASHES_DEEP)
    before = guest.vcpu.engine.save(), guest.domain.space.read(0, MEMORY_BYTES)
    first = report.lines(report.describe(guest))
    assert report.lines(report.describe(guest)) == first
    assert (guest.vcpu.engine.save(), guest.domain.space.read(0, MEMORY_BYTES)) == before


@pytest.mark.parametrize(
    "frame", ["$0", "$4", "$0xfffffffc", "$0xffffffff", "$0xdead0000", "%esp", "$0x00fffffe"]
)
def test_frame_pointers_that_lead_nowhere(world: World, frame: str) -> None:
    body = f"pushl %esp\n pushl %esp\n movl {frame}, %ebp\n ud2"
    said = report.describe(run(world, small_guests.kernel(body)))
    assert said.backtrace[0].name.startswith("start+")
    assert len(said.backtrace) <= 32
    assert report.lines(said)


def test_a_chain_of_frames_that_never_ends(world: World) -> None:
    body = """
        movl $0x400000, %ebp
        movl $0x400000, %edi
2:      leal 8(%edi), %eax
        movl %eax, (%edi)
        movl $start, 4(%edi)
        addl $8, %edi
        cmpl $0x410000, %edi
        jb 2b
        ud2
    """
    said = report.describe(run(world, small_guests.kernel(body)))
    assert len(said.backtrace) == 32
    assert said.backtrace[-1].name == "start+0x0"


def test_names_come_from_the_image_whose_code_is_there(world: World) -> None:
    # The module is a kernel for the same place, with other names; what runs is the first.
    other = build_kernel(small_guests.SAYS_HELLO).read_bytes()
    guest = world.add_guest(memory_bytes=MEMORY_BYTES)
    crashing = build_kernel(small_guests.CRASHES_DEEP).read_bytes()
    guest.boot(crashing, modules=[Module(other)])
    guest.kernel, guest.chain, guest.files = other, [(0, other)], [crashing]
    world.run()
    names = [frame.name.partition("+")[0] for frame in report.describe(guest).backtrace]
    assert names == ["inner", "outer", "start"]


def test_symbols_of_a_file() -> None:
    symbols = Symbols(build_kernel(small_guests.CRASHES_DEEP).read_bytes())
    assert len(symbols) > 3
    assert symbols.find(0x100000 - 1) is None
    assert symbols.find(1 << 40) is None
    found = symbols.find(0x100000)
    assert found is not None
    assert found[1] == 0


def test_a_file_without_names_has_none() -> None:
    for data in (b"", b"\x7fELF", b"no elf at all", bytes(4096)):
        symbols = Symbols(data)
        assert len(symbols) == 0
        assert symbols.find(0x100000) is None
        assert not symbols.is_at(0x100000, lambda at, size: bytes(size))


@given(st.data())
def test_a_damaged_file_raises_nothing(data: st.DataObject) -> None:
    elf = bytearray(build_kernel(small_guests.CRASHES_DEEP).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        elf[data.draw(st.integers(0, len(elf) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(elf)))
    symbols = Symbols(bytes(elf[: cut or len(elf)]))
    symbols.find(0x100000)
    symbols.is_at(0x100000, lambda at, size: None)


@pytest.mark.peer
def test_symbols_of_a_file_that_lies_about_them_are_bounded() -> None:
    """Fifty thousand symbols share a name of ten million letters: each is cut before it is kept."""
    elf = bytearray(build_kernel(small_guests.CRASHES_DEEP).read_bytes())
    names, entry = b"n" * 10_000_000, struct.Struct("<IBBHQQ")
    table = b"".join(entry.pack(0, 2, 0, 1, 0x100000 + n, 1) for n in range(50_000))
    headers_at, size, count = struct.unpack_from("<Q10xHH", elf, 40)
    for at in range(headers_at, headers_at + size * count, size):
        kind = struct.unpack_from("<I", elf, at + 4)[0]
        is_last = at == headers_at + size * (count - 1)
        if kind == 2 or (kind == 3 and not is_last):  # SHT_SYMTAB, SHT_STRTAB but not of sections
            data = table if kind == 2 else names
            struct.pack_into("<QQ", elf, at + 24, len(elf), len(data))
            elf += data
    tracemalloc.start()
    try:
        symbols = Symbols(bytes(elf))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(symbols) == 50_000
    assert symbols.find(0x100005) == ("n" * 80, 0)
    assert peak_bytes < 60_000_000
