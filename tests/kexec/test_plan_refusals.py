"""What can't be planned is refused by one typed error, and nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kexec.elves import Load
from kexec.planworld import CMDLINE, LOADS, N_PAGES, RAM_BYTES, World, check_done

from xenlive.errors import BadAddress, ConfigError, OutOfSpace, UpdateError, XenliveError
from xenlive.kexec.plan import plan_kexec
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, E820_SOFT_RESERVED


def refused(world: World, error: type[XenliveError], what: str, **more: object) -> None:
    with pytest.raises(error, match=what):
        world.plan(**more)
    assert bytes(world.ram) == world.before


@pytest.mark.parametrize(
    ("module_page", "loads"),
    [
        (0x10, LOADS),
        (0x19, LOADS),  # the block only
        (0x18, LOADS),  # a bss
        (9, LOADS),  # its last page only
        (0x40, [*LOADS, Load(0x47FFF, b"x")]),
    ],
)
def test_the_guard(module_page: int, loads: Sequence[Load]) -> None:
    world = World(loads, module_page=module_page)
    refused(world, BadAddress, "would overwrite the 32768 handed-over bytes")


def test_a_module_between_the_segments_is_clear() -> None:
    world = World([*LOADS, Load(0x48000, b"x")], module_page=0x40, used=[0x10, 0x40, 0x47])
    plan = world.plan()
    assert [move.old for move in plan.moves] == [0x10]
    plan.stages((), world.moved).run()
    module = world.module_bytes()
    plan.apply(world.memory)
    check_done(world, plan, module)


def test_another_module_in_the_way() -> None:
    others = [(0x12000, 5)]
    refused(World(), BadAddress, "handed-over bytes at 0x12000", others=others)


@pytest.mark.parametrize(
    ("others", "what"),
    [
        ([(-PAGE_SIZE, PAGE_SIZE)], "no memory to hand over"),
        ([(0xE0000, -1)], "no memory to hand over"),
        ([((1 << 64) - PAGE_SIZE, 2 * PAGE_SIZE)], "no memory to hand over"),
        ([(1 << 64, 1)], "no memory to hand over"),
        ([((N_PAGES - 3) * PAGE_SIZE - 1, 1)], "handed over twice"),
        ([((N_PAGES - 11) * PAGE_SIZE, PAGE_SIZE + 1)], "handed over twice"),
        ([(0, 1 << 40)], "no memory to hand over"),
        ([(0xE0000, 0)], "no memory to hand over"),
        ([(0, 0)], "no memory to hand over"),
        ([(RAM_BYTES - 1, 2)], "no memory to hand over"),
        ([(RAM_BYTES, 1)], "no memory to hand over"),
        ([(1 << 40, PAGE_SIZE)], "no memory to hand over"),
        ([(0xE0000, 10), (0xE0009, 1)], "handed over twice"),
        ([(0xE0000, 10), (0xE0000, 10)], "handed over twice"),
    ],
)
def test_what_else_is_handed_over(others: list[tuple[int, int]], what: str) -> None:
    refused(World(), BadAddress, what, others=others)


def test_what_is_handed_over_may_touch() -> None:
    module = ((N_PAGES - 10) * PAGE_SIZE, 8 * PAGE_SIZE)
    around = [(module[0] - 5, 5), (module[0] + module[1], 7), (0xE0000, 1), (RAM_BYTES - 1, 1)]
    assert World().plan(others=around).moves


def test_the_actions_are_done_in_the_memory_they_were_planned_for() -> None:
    world, other = World(), World(module_page=0x12)
    plan = world.plan()
    plan.stages((), world.moved).run()
    with pytest.raises(UpdateError, match="another memory"):
        plan.apply(other.memory)
    assert bytes(other.ram) == other.before
    plan.apply(world.memory)


def test_an_image_outside_of_ram() -> None:
    ram = [(0, 0x14000, E820_RAM), (0x15000, RAM_BYTES - 0x15000, E820_RAM)]
    refused(World(ranges=ram), BadAddress, "outside of RAM")
    loads = [*LOADS, Load(RAM_BYTES - 1, b"xx")]
    refused(World(loads), BadAddress, "outside of RAM")


def test_an_image_over_foreign_pages() -> None:
    soft = (0x12000, 0x1000, E820_SOFT_RESERVED)
    ram = [(0, 0x12000, E820_RAM), soft, (0x13000, RAM_BYTES - 0x13000, E820_RAM)]
    refused(World(ranges=ram), BadAddress, "outside of RAM")


def test_a_map_that_promises_more_memory_than_there_is() -> None:
    loads = [*LOADS, Load(RAM_BYTES, b"x")]
    world = World(loads, ranges=[(0, RAM_BYTES * 2, E820_RAM)])
    refused(world, BadAddress, "outside of RAM")


def test_a_block_that_does_not_fit_below_4_gib() -> None:
    loads = [Load((1 << 32) - 64, b"\xf4", 64)]
    world = World(loads, ranges=[(0, 1 << 33, E820_RAM)])
    refused(world, BadAddress, "outside of RAM|below 4 GiB")


def test_seventeen_actions() -> None:
    many = [Load(0x10000 + i * 0x1000, b"\xf4", 2) for i in range(8)]
    refused(World(many), OutOfSpace, "kexec actions: 17 wanted, 16 available")
    many[7] = Load(0x17000, b"x")
    assert len(World(many).plan().actions) == 16


def test_no_page_to_move_one_to() -> None:
    used = [page for page in range(N_PAGES) if not 0x80 <= page < 0x83]
    world = World(used=used)
    refused(world, OutOfSpace, "free pages in a row above the next kernel: 1 wanted")
    for_the_block = [page for page in used if page != 0xFF]
    refused(World(used=for_the_block), OutOfSpace, "26 wanted, 0 available")


def test_no_run_for_the_file() -> None:
    used = [page for page in range(0x1A, N_PAGES) if page % 2]
    world = World(file_at=0x10000, used=used)
    refused(world, OutOfSpace, "free pages in a row above the next kernel: 3 wanted, 1")


@pytest.mark.parametrize("cmdline", ["a\0b", "x" * 4096, "a\ud800b", "\udcff\ud800"])
def test_a_command_line_that_can_not_be_handed_over(cmdline: str) -> None:
    world = World()
    with pytest.raises(ConfigError):
        plan_kexec(
            world.image(),
            world.memory,
            world.memmap,
            world.module,
            cmdline,
            [],
            file_at=world.file_at,
        )


def test_a_file_that_is_not_there() -> None:
    world = World()
    image, world.file_at = world.image(), PhysAddr(RAM_BYTES - 5)
    with pytest.raises(BadAddress, match="is not in memory"):
        plan_kexec(image, world.memory, world.memmap, world.module, "", [], file_at=world.file_at)


def test_a_module_that_grew_since() -> None:
    """The block names the old size: neither the stages nor the last step may go on."""
    world = World(used=[0x10])
    plan = world.plan()
    world.module.grow(2, world.memmap)
    before = bytes(world.ram)
    with pytest.raises(UpdateError, match=r"guard: .*(handed-over bytes|plan again)"):
        plan.stages().run()
    assert bytes(world.ram) == before
    plan = world.plan()
    plan.stages().run()
    world.module.shrink(1)
    before = bytes(world.ram)
    with pytest.raises(UpdateError, match="plan again"):
        plan.apply(world.memory)
    assert bytes(world.ram) == before


@settings(deadline=None, max_examples=150)
@given(st.integers(0, N_PAGES - 8), st.integers(0, 0x38), st.integers(1, 0x9000))
def test_an_image_and_a_module_never_share_a_byte(module_page: int, at: int, size: int) -> None:
    """Refused if and only if image, bss or block would reach into the module."""
    loads = [Load(at * PAGE_SIZE, b"\xf4" * 10, 10 + size)]
    assume(not 0x60 - 8 < module_page < 0x63)
    world = World(loads, module_page=module_page, file_at=0x60000, used=[])
    start, end = module_page * PAGE_SIZE, (module_page + 8) * PAGE_SIZE
    image_end = at * PAGE_SIZE + 10 + size
    block_end = image_end + 7 & ~7
    block_end += 56 + 24 + 32 + len(CMDLINE) + 1
    overlaps = at * PAGE_SIZE < end and start < image_end
    overlaps = overlaps or ((image_end + 7 & ~7) < end and start < block_end)
    if overlaps:
        with pytest.raises(BadAddress, match="would overwrite"):
            world.plan()
    else:
        world.plan()
