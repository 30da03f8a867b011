"""Memory that Python prepared is entered by C, and what C hands over is taken over by Python.

The Python kernel of these chains has no code on the processor: it is what `xenlive.kexec` does with
the memory of the domain, from the start info that it was entered with to the next kernel's entry.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import pytest
from kernels.handover.lab import MEMORY_BYTES, Entered, Lab, Labs, labs
from kernels.handover.script_kernel import script_kernel

from xenlive.kexec.elf import analyse_kernel
from xenlive.kexec.find import find_kexec_module
from xenlive.kexec.module import KexecModule
from xenlive.kexec.plan import plan_kexec
from xenlive.kexec.start_info import build_start_info
from xenlive.kexec.verify import verify
from xenlive.memory.address import PAGE_SIZE, PhysAddr, frame_of, round_up
from xenlive.memory.e820 import E820_SOFT_RESERVED, MemoryMap, MemoryRange

__all__ = ["labs"]  # the fixture
pytestmark = pytest.mark.peer

SIZES = [1, 4, 18]
BOTH = [64, 32]
DEVICE = bytes(range(16))


def signed(crc: int) -> int:
    """A CRC as a kernel prints its results."""
    return crc - (1 << 32) if crc >> 31 else crc


def put_in_place(
    lab: Lab,
    script: str,
    modules: list[tuple[int, int, int]],
    ranges: Iterable[tuple[int, int, int]] = (),
) -> tuple[int, int]:
    """The first kernel in memory with a start info behind it; where to enter, with what.

    `ranges` are those of the memory map beside the domain's own.
    """
    kernel = lab.kernels[0]
    image = analyse_kernel(kernel)
    for segment in image.segments:
        data = kernel[segment.offset : segment.offset + segment.file_size]
        lab.space.load(segment.address, data.ljust(segment.memory_size, b"\0"))
    block_at = PhysAddr(round_up(image.end, 8))
    memmap = MemoryMap(MemoryRange(*entry) for entry in [*lab.domain.e820, *ranges])
    lab.space.load(block_at, build_start_info(block_at, memmap, modules, script))
    return image.entry, block_at


@pytest.mark.parametrize("n_module_pages", SIZES)
@pytest.mark.parametrize("bits", BOTH)
def test_c_enters_memory_that_python_prepared(labs: Labs, bits: int, n_module_pages: int) -> None:
    lab = labs(script_kernel(bits))
    n_pages = n_module_pages - 1
    # Not where the C code would make one: it has to look for it.
    at = PhysAddr(MEMORY_BYTES - (n_module_pages + 100) * PAGE_SIZE)
    module = KexecModule.create(lab.memory, at, n_module_pages)
    first = module.add_record(1, DEVICE)
    second = module.add_record(200, b"\xff" * 255)
    owned = n_pages // 2
    if owned:
        module.alloc_pages(second, owned)
        lab.memory.fill(module.page_address(0), owned * PAGE_SIZE, 0x5A)
    before = zlib.crc32(lab.space.read(module.admin_address, PAGE_SIZE))

    script = [
        *("make 2", f"find 0 1; read {first} 16", f"find 0 200; read {second} 255"),
        *(f"crc 0 {owned}", "update 0 1 00112233445566778899aabbccddeeff", "add 9 c0ffee"),
        *("alloc 2 1", f"fill {owned} 1 195"),
    ]
    lab.enter(*put_in_place(lab, ";".join(script), [(at, module.size_bytes, 0)]))
    (told,) = lab.run_to_poweroff()
    assert told.others[0] == f"module {at:x} {module.size_bytes:x} handed"
    content = zlib.crc32(b"\x5a" * (owned * PAGE_SIZE))
    results = [reply.result for reply in told.replies]
    page = owned if n_pages else -28
    assert results == [0, first, 0, second, 0, signed(content), 0, 2, page, 0 if n_pages else -22]
    assert [told.replies[2].data, told.replies[4].data] == [DEVICE, b"\xff" * 255]
    assert {reply.crc for reply in told.replies[:6]} == {before}

    again = KexecModule.attach(lab.memory, at, module.size_bytes)
    assert again.read_record(first) == bytes(range(0, 256, 0x11))
    assert again.read_record(2) == b"\xc0\xff\xee"
    assert again.pages_of(2) == ([owned] if n_pages else [])
    if n_pages:
        page_at = again.page_address(owned)
        assert lab.space.read(page_at, PAGE_SIZE) == b"\xc3" * PAGE_SIZE


def test_soft_reservations_are_not_handed_on(labs: Labs) -> None:
    """What a kernel mapped for itself, as Mini-OS marks it, is left out of the next one's map."""
    lab = labs(script_kernel(64), script_kernel(32))
    next_at = PhysAddr(0x800000)
    lab.space.load(next_at, lab.kernels[1])
    soft = MemoryRange(0x10_0000_0000, 16 * PAGE_SIZE, E820_SOFT_RESERVED)
    lab.enter(
        *put_in_place(
            lab,
            "make 4; kexec 0",
            [(next_at, len(lab.kernels[1]), 0)],
            [(soft.addr, soft.size, soft.type)],
        )
    )
    lab.run_to_poweroff()
    assert soft in lab.entered[0].info.memmap.ranges()
    assert [(r.addr, r.size, r.type) for r in lab.entered[1].info.memmap.ranges()] == sorted(
        lab.domain.e820
    )


def be_the_kernel(lab: Lab, entered: Entered, n_module_pages: int) -> bytes:
    """What Python does as the second kernel of three: take over, change, hand on. The last page."""
    info = entered.info
    module, reason = find_kexec_module(info, lab.memory)
    assert module is not None, reason
    assert module.n_pages == n_module_pages - 1
    found = module.find_record(7)
    assert found is not None
    assert module.read_record(found) == b"from C"
    pages = module.pages_of(found)
    for page in pages:
        content = lab.space.read(module.page_address(page), PAGE_SIZE)
        assert content == b"\xaa" * PAGE_SIZE
    mine = module.add_record(8, b"from Python")
    if module.free_page_count():
        page = module.alloc_pages(mine, 1)
        lab.memory.fill(module.page_address(page), PAGE_SIZE, 0x11)
    admin = lab.space.read(module.admin_address, PAGE_SIZE)
    assert verify(admin, module.size_bytes) == []

    # The next kernel's file came along as a further module; its command line is here.
    file_at, file_size, line_at = info.modules[1]
    line, _, _ = lab.space.read(line_at, PAGE_SIZE).partition(b"\0")
    image = analyse_kernel(lab.space.read(file_at, file_size))
    used = [(frame_of(PhysAddr(0x104000)), "a page of the Python kernel's")]
    plan = plan_kexec(
        *(image, lab.memory, info.memmap, module, line, used),
        file_at=PhysAddr(file_at),
        rsdp_paddr=info.rsdp_paddr,
    )
    assert [move.old for move in plan.moves] == [used[0][0]]
    plan.stages().run()
    plan.apply(lab.memory)
    lab.enter(plan.entry, plan.start_info)
    return admin


@pytest.mark.parametrize("n_module_pages", SIZES)
@pytest.mark.parametrize(("first", "last"), [(64, 64), (32, 32), (64, 32), (32, 64)])
def test_python_between_two_kernels_in_c(
    labs: Labs, first: int, last: int, n_module_pages: int
) -> None:
    lab = labs(script_kernel(first), script_kernel(64), script_kernel(last))
    owned = n_module_pages // 2
    lab.boot(
        f"make {n_module_pages}; add 7 {b'from C'.hex()}; alloc 0 {owned}; fill 0 {owned} 170;"
        "kexec 0",
        "Python's",
        f"make 1; find 0 8; read 1 11; find 0 7; read 0 6; crc 0 {owned}; crc {owned} 1; ticks 1",
    )
    admin = be_the_kernel(lab, lab.run_to_entry(1), n_module_pages)
    told = lab.run_to_poweroff()

    assert lab.entered[1].info.cmdline == "Python's"
    assert lab.entered[2].module is not None
    assert lab.entered[2].module[2] == admin
    assert len(lab.entered[2].info.modules) == 1
    assert [len(kernel.replies) for kernel in told] == [4, 8]
    replies = told[1].replies
    crcs = [
        signed(zlib.crc32(b"\xaa" * (owned * PAGE_SIZE))),
        signed(zlib.crc32(b"\x11" * PAGE_SIZE)),
    ]
    if n_module_pages == 1:
        crcs = [0, -22]  # of no page at all; the module has none
    assert [reply.result for reply in replies] == [0, 1, 0, 0, 0, *crcs, 0]
    assert (replies[2].data, replies[4].data) == (b"from Python", b"from C")
    assert {reply.crc for reply in replies} == {zlib.crc32(admin)}


def test_python_sees_what_a_kernel_with_the_posted_defects_left(labs: Labs) -> None:
    """A single page is given out whether it is owned or not; the next kernel finds it sound."""
    lab = labs(script_kernel(64), script_kernel(32))
    lab.boot(
        "make 18; defects 1; add 7 01; add 8 02; alloc 0 1; alloc 1 1; kexec 0",
        "make 1; alloc 0 1; free 0 1",
    )
    told = lab.run_to_poweroff()
    assert [reply.result for reply in told[0].replies] == [0, 1, 0, 1, 0, 0]
    entered = lab.entered[1].module
    assert entered is not None
    assert entered[2][14:18] == b"\x01\xff\xff\xff"
    # As meant it is given out once.
    assert [reply.result for reply in told[1].replies] == [0, 1, 0]
    assert lab.module().pages_of(0) == [1]
