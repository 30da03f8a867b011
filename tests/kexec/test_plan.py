"""A kexec planned, staged, undone at every step, and done: what must be where, what must not."""

from __future__ import annotations

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from kexec.elves import Load, kernel
from kexec.planworld import CMDLINE, N_PAGES, RAM_BYTES, World, check_done, size_of
from kexec.test_elf import GRUB

from xenlive.errors import BadAddress, OutOfSpace, UpdateError
from xenlive.kexec import KexecModule
from xenlive.kexec.elf import analyse_kernel
from xenlive.kexec.find import find_kexec_module
from xenlive.kexec.plan import ACTION_COPY, ACTION_ZERO, Action, Move, plan_kexec
from xenlive.kexec.start_info import parse_start_info
from xenlive.memory.address import PAGE_SIZE, Frame, PhysAddr
from xenlive.memory.e820 import E820_RAM, E820_SOFT_RESERVED, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory


def test_what_is_planned() -> None:
    world = World()
    plan = world.plan()
    image = world.image()
    file, block = int(world.file_at), int(plan.block_from)
    assert plan.start_info == 0x19238
    assert (plan.entry, plan.limit) == (0x10000, 0x1A000)
    assert plan.actions == [
        Action(ACTION_COPY, 0x10000, 6000, file + image.segments[0].offset),
        Action(ACTION_COPY, 0x12000, 3600, file + image.segments[1].offset),
        Action(ACTION_ZERO, 0x12000 + 3600, 0x4567 - 3600),
        Action(ACTION_ZERO, 0x18000, 0x1234),
        Action(ACTION_COPY, 0x19238, len(plan.block), block),
    ]
    # From the top: two free pages are left above the module.
    assert block == 255 * PAGE_SIZE
    assert plan.moves == [
        Move(Frame(0), Frame(254), "page 0"),
        Move(Frame(0x10), Frame(245), "page 16"),
        Move(Frame(0x17), Frame(244), "page 23"),
        Move(Frame(0x19), Frame(243), "page 25"),
    ]
    assert plan.file_to == plan.file_from == world.file_at
    assert bytes(world.ram) == world.before


def test_the_same_input_gives_the_same_plan() -> None:
    one, other = World().plan(), World().plan()
    assert (one.actions, one.moves, one.block) == (other.actions, other.moves, other.block)


@pytest.mark.parametrize("file_at", [0x80000, 0x10000, 0x3000, 0x17FFF, 0x19FF8, 0x1A000, 0xF8123])
@pytest.mark.parametrize("bits", [32, 64])
def test_a_kexec(file_at: int, bits: int) -> None:
    """The file may lie anywhere, also where the image goes, and need not be aligned."""
    pages = set(range(file_at >> 12, (file_at + 12000 >> 12) + 1))
    used = sorted({0, 0x10, 0x17, 0x19, 0x1A, 0x40} - pages)
    world = World(file_at=file_at, used=used, bits=bits)
    world.used.append((Frame(file_at >> 12), "page 999"))
    world.where[999] = file_at >> 12
    plan = world.plan()
    assert (plan.file_to != plan.file_from) == (file_at < plan.limit)
    stages = plan.stages([world.callback("devices"), world.callback("timer")], world.moved)
    stages.run()
    assert world.said == ["devices", "timer"]
    del world.where[999]
    module = world.module_bytes()
    plan.apply(world.memory)
    check_done(world, plan, module)


def test_a_frame_that_only_begins_with_the_file_moves_with_what_else_is_in_it() -> None:
    world = World(file_at=0x10800, used=[0x10])
    plan = world.plan()
    assert [move.old for move in plan.moves] == [0x10]
    plan.stages((), world.moved).run()
    plan.apply(world.memory)
    check_done(world, plan, world.module_bytes())


def test_what_the_callbacks_write_is_handed_over() -> None:
    """Indices go into a record after the plan was made, and pages that moved live on."""
    world = World()
    plan = world.plan()

    def save(undo: bool) -> None:
        world.module.update_record(0, b"indices!", 8)
        world.memory.write(PhysAddr(world.where[0] * PAGE_SIZE), b"changed since it moved")

    plan.stages([("save", save)], world.moved).run()
    plan.apply(world.memory)
    parsed = parse_start_info(world.memory, plan.start_info)
    found, _ = find_kexec_module(parsed, world.memory)
    assert found is not None
    assert found.read_record(0)[8:] == b"indices!"


def step_names() -> list[str]:
    world = World(file_at=0x11000)
    return world.plan().stages([world.callback("devices"), world.callback("timer")]).names()


def test_the_steps_and_their_order() -> None:
    assert step_names() == [
        "guard",
        *("move 0x0 page 0", "move 0x10 page 16", "move 0x17 page 23", "move 0x19 page 25"),
        *("file", "block", "callback devices", "callback timer"),
    ]


@pytest.mark.parametrize("failing", step_names())
def test_a_failure_at_any_step_leaves_every_byte_as_it_was(failing: str) -> None:
    world = World(file_at=0x11000)
    plan = world.plan()
    stages = plan.stages([world.callback("devices"), world.callback("timer")], world.moved)
    stages.fail_at = failing
    with pytest.raises(UpdateError) as raised:
        stages.run()
    assert raised.value.step == failing
    assert raised.value.why == "made to fail"
    assert bytes(world.ram) == world.before
    assert all(page == now for page, now in world.where.items())
    called = ["devices"] if failing == "callback timer" else []
    assert world.said == called + [f"undo {name}" for name in reversed(called)]
    with pytest.raises(UpdateError, match="not done"):
        plan.apply(world.memory)
    assert bytes(world.ram) == world.before
    # The old kernel carries on, and may try again.
    stages.fail_at = None
    world.said.clear()
    stages.run()
    plan.apply(world.memory)
    check_done(world, plan, world.module_bytes())


def test_callbacks_are_undone_in_reverse_after_all_were_called() -> None:
    world = World()
    stages = world.plan().stages([world.callback(name) for name in "abc"], world.moved)
    stages.run()
    assert stages.undo() == []
    assert world.said == ["a", "b", "c", "undo c", "undo b", "undo a"]
    assert bytes(world.ram) == world.before


@pytest.mark.parametrize("page", [0, 0x10, 0x19])
def test_a_page_that_refuses_to_move(page: int) -> None:
    world = World()

    def moved(old: Frame, new: Frame, what: str) -> None:
        if old == page:
            raise OutOfSpace("page table entries", 1, 0)
        world.moved(old, new, what)

    with pytest.raises(UpdateError, match=f"move {page:#x} page {page}: out of page table entries"):
        world.plan().stages((), moved).run()
    assert bytes(world.ram) == world.before
    assert all(page == now for page, now in world.where.items())


def test_a_page_that_changed_at_its_new_place_comes_back_with_the_change() -> None:
    world = World()
    stages = world.plan().stages((), world.moved)
    stages.run()
    world.memory.write(PhysAddr(world.where[0x10] * PAGE_SIZE + 5), b"lived on")
    assert stages.undo() == []
    expected = bytearray(world.before)
    expected[0x10005:0x1000D] = b"lived on"
    assert world.ram == expected


def test_nothing_is_done_before_the_stages_are() -> None:
    world = World()
    plan = world.plan()
    for _ in range(2):
        with pytest.raises(UpdateError, match="not done"):
            plan.apply(world.memory)
        plan.stages()
    assert bytes(world.ram) == world.before
    plan.stages().run()
    with pytest.raises(UpdateError, match="done already"):
        plan.stages()


def test_other_modules_come_behind_ours_and_stay_untouched() -> None:
    world = World(used=[0x10])
    disk = (0xE0000, 3 * PAGE_SIZE + 7)
    plan = world.plan(others=[disk], reserved=[(0xFE000, 0x2000)])
    assert not {move.new for move in plan.moves} & {0xE0, 0xE1, 0xE2, 0xE3, 0xFE, 0xFF}
    plan.stages((), world.moved).run()
    plan.apply(world.memory)
    parsed = parse_start_info(world.memory, plan.start_info)
    assert parsed.modules == [(world.module.address, 8 * PAGE_SIZE, 0), (*disk, 0)]
    assert world.ram[disk[0] : disk[0] + disk[1]] == world.before[disk[0] : disk[0] + disk[1]]
    assert world.ram[0xFE000:] == world.before[0xFE000:]


def test_the_next_kernel_does_not_see_soft_reservations() -> None:
    soft = (0xF0000, 0x2000, E820_SOFT_RESERVED)
    ram = [(0, 0xF0000, E820_RAM), soft, (0xF2000, RAM_BYTES - 0xF2000, E820_RAM)]
    world = World(ranges=ram, module_page=0x40, used=[0x10, 0x11, 0x12])
    plan = world.plan()
    assert not {move.new for move in plan.moves} & {0xF0, 0xF1}
    plan.stages((), world.moved).run()
    plan.apply(world.memory)
    check_done(world, plan, world.module_bytes())


gaps = st.sampled_from([0, 1, 8, 0x7F8, 0xFFF, 0x1000, 0x5001])
sizes = st.sampled_from([1, 7, 0xFFF, 0x1000, 0x2345])


@st.composite
def kernels(draw: st.DrawFn) -> list[Load]:
    """One to four segments, with gaps of any kind before, some with a bss, some only bss."""
    loads: list[Load] = []
    at = draw(st.integers(0, 0x30)) * PAGE_SIZE
    for number in range(draw(st.integers(1, 4))):
        at += draw(gaps)
        size, bss = draw(sizes), draw(st.just(0) | sizes)
        is_bss_only: bool = draw(st.booleans())
        data = b"" if loads and is_bss_only else bytes([0xE0 + number]) * size
        loads.append(Load(at, data, size + bss))
        at += size + bss
    return loads


@settings(deadline=None, max_examples=200)
@given(
    kernels(),
    st.integers(0, N_PAGES - 8),
    st.integers(0, RAM_BYTES - 0xB000),
    st.sets(st.integers(0, N_PAGES - 1), max_size=60),
    st.integers(0, 12),
)
def test_whatever_lies_where_it_is_done_right_or_refused_and_nothing_changed(
    loads: list[Load], module_page: int, file_at: int, used: set[int], failing: int
) -> None:
    module_pages = set(range(module_page, module_page + 8))
    file_pages = set(range(file_at >> 12, (file_at + len(kernel(loads)) >> 12) + 1))
    assume(file_pages.isdisjoint(module_pages))
    used -= file_pages | module_pages
    world = World(loads, module_page=module_page, file_at=file_at, used=sorted(used))
    start = world.image_end + 7 & ~7
    wanted = [(load.paddr, load.paddr + size_of(load)) for load in loads]
    wanted.append((start, start + 56 + 24 + 32 + len(CMDLINE) + 1))
    touched = {page for low, high in wanted for page in range(low >> 12, (high - 1 >> 12) + 1)}
    event("in the module" if touched & module_pages else "clear")
    if touched & module_pages:
        with pytest.raises(BadAddress, match="would overwrite"):
            world.plan()
        assert bytes(world.ram) == world.before
        return
    plan = world.plan()
    module = world.module_bytes()
    stages = plan.stages([world.callback("one"), world.callback("two")], world.moved)
    stages.fail_at = dict(enumerate(stages.names())).get(failing)
    if stages.fail_at is not None:
        with pytest.raises(UpdateError, match="made to fail"):
            stages.run()
        assert bytes(world.ram) == world.before
        stages.fail_at = None
    stages.run()
    plan.apply(world.memory)
    check_done(world, plan, module)


@pytest.mark.skipif(not GRUB.exists(), reason="grub-xen-bin is not installed")
@pytest.mark.parametrize("file_at", [0x80000, 0x500000])
def test_grubs_own_image_over_its_own_file(file_at: int) -> None:
    elf, size = GRUB.read_bytes(), 16 << 20
    ram = bytearray(b"\xa5" * size)
    memory = GuestMemory([(0, ram)])
    memory.write(PhysAddr(file_at), elf)
    memmap = MemoryMap([MemoryRange(0, size, E820_RAM)])
    module = KexecModule.create(memory, memmap.place_module(18), 18)
    image = analyse_kernel(elf)
    plan = plan_kexec(image, memory, memmap, module, "", [], file_at=PhysAddr(file_at))
    plan.stages().run()
    plan.apply(memory)
    for segment in image.segments:
        data = elf[segment.offset : segment.offset + segment.file_size]
        expected = data.ljust(segment.memory_size, b"\0")
        assert memory.read(segment.address, segment.memory_size) == expected
    handed, _ = find_kexec_module(parse_start_info(memory, plan.start_info), memory)
    assert handed is not None
    assert handed.address == module.address
