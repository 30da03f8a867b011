"""The physical space of a domain: what stands where, holes, pages that others hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenlive.errors import BadAddress, OutOfSpace
from xenlive.machine.emulated.space import GRANT, GRANT_READONLY, RAM, MachineFrame, Space
from xenlive.memory.address import PAGE_SIZE, Frame, PhysAddr

LOW = 16
SPECIAL = 0xFEFF8


class Recorder:
    """A mapper: which page of which memory stands at each guest frame."""

    def __init__(self) -> None:
        self.pages: dict[int, tuple[int, bool]] = {}
        self.written: list[tuple[int, int]] = []

    def map(self, address: int, size: int, buffer_address: int, writable: bool) -> None:
        for offset in range(0, size, PAGE_SIZE):
            gfn = (address + offset) // PAGE_SIZE
            assert gfn not in self.pages
            self.pages[gfn] = (buffer_address + offset, writable)

    def unmap(self, address: int, size: int) -> None:
        for offset in range(0, size, PAGE_SIZE):
            del self.pages[(address + offset) // PAGE_SIZE]

    def wrote(self, address: int, size: int) -> None:
        self.written.append((address, size))


def new_space(domid: int = 1, extra: int = 4) -> Space:
    return Space(domid, [(0, LOW), (SPECIAL, 2)], LOW + 2 + extra)


def test_ram_is_where_the_runs_say_and_the_rest_is_holes() -> None:
    space = new_space()
    space.write(0x3FFE, b"across")
    assert space.read(0x3FFE, 6) == b"across"
    assert space.read(LOW * PAGE_SIZE - 2, 4) == b"\0\0\xff\xff"
    space.write(LOW * PAGE_SIZE - 2, b"abcd")
    assert space.read(LOW * PAGE_SIZE - 2, 4) == b"ab\xff\xff"
    assert space.is_backed(SPECIAL * PAGE_SIZE, 2 * PAGE_SIZE)
    assert not space.is_backed(SPECIAL * PAGE_SIZE, 2 * PAGE_SIZE + 1)


def test_runs_that_want_more_than_the_domain_may_have() -> None:
    with pytest.raises(OutOfSpace):
        Space(1, [(0, 4)], 3)


def test_memory_is_strict_where_a_processor_is_not() -> None:
    space = new_space()
    memory = space.memory()
    memory.write(PhysAddr(0x1000), b"x" * 8192)
    assert memory.read(PhysAddr(0x1000), 8192) == b"x" * 8192
    assert memory.regions() == [(0, LOW * PAGE_SIZE), (SPECIAL * PAGE_SIZE, 2 * PAGE_SIZE)]
    for address, size in ((LOW * PAGE_SIZE - 1, 2), (-1, 1), (0, -1), (1 << 70, 1)):
        with pytest.raises(BadAddress):
            memory.read(PhysAddr(address), size)
        assert not memory.contains(PhysAddr(address), size)


def test_memory_follows_pages_that_move() -> None:
    space = new_space()
    memory = space.memory()
    memory.write(PhysAddr(2 * PAGE_SIZE), b"second")
    mapping = space.lookup(2)
    assert mapping is not None
    space.place(LOW + 1, mapping.frame, RAM)
    assert bytes(memory.page(Frame(LOW + 1))[:6]) == b"second"
    assert not memory.contains(PhysAddr(2 * PAGE_SIZE), 1)
    assert memory.regions()[:2] == [(0, 2 * PAGE_SIZE), (3 * PAGE_SIZE, (LOW - 3) * PAGE_SIZE)]


def test_a_freed_page_comes_back_zeroed() -> None:
    space = new_space(extra=0)
    space.write(0x5000, b"secret")
    mapping = space.lookup(5)
    assert mapping is not None
    space.unhook(5)
    space.give_up(mapping.frame)
    assert space.total_pages == LOW + 1
    assert space.populate(0x30)
    assert space.read(0x30000, 6) == bytes(6)
    assert space.total_pages == LOW + 2
    assert not space.populate(0x31)


def test_a_page_that_somebody_holds_is_not_given_out() -> None:
    space = new_space(extra=0)
    mapping = space.lookup(5)
    assert mapping is not None
    space.hold(mapping.frame)
    space.hold(mapping.frame)
    space.unhook(5)
    space.give_up(mapping.frame)
    space.let_go(mapping.frame)
    assert not space.populate(5)
    space.let_go(mapping.frame)
    assert space.populate(5)


def test_a_foreign_page_is_seen_and_a_readonly_one_swallows_stores() -> None:
    ours, theirs = new_space(1), new_space(2)
    page = theirs.lookup(3)
    assert page is not None
    theirs.write(0x3000, b"theirs")
    ours.place(0x40, page.frame, GRANT_READONLY)
    ours.write(0x40000, b"ours..")
    assert ours.read(0x40000, 6) == b"theirs"
    ours.unhook(0x40)
    ours.place(0x40, page.frame, GRANT)
    ours.write(0x40000, b"ours..")
    assert theirs.read(0x3000, 6) == b"ours.."
    assert not ours.memory().contains(PhysAddr(0x40000), 1)
    # The owner's own idea of where its page is has not changed.
    assert theirs.gfn_of(page.frame) == 3


def test_a_frame_beyond_all_addresses() -> None:
    space = new_space()
    frame = space.allocate()
    assert frame is not None
    with pytest.raises(BadAddress):
        space.place(1 << 36, frame, RAM)


def test_each_page_has_a_number_of_its_own() -> None:
    pages = [MachineFrame(space, i) for space in (new_space(1), new_space(2)) for i in range(9)]
    assert len({page.mfn for page in pages}) == 18


def test_writes_of_the_machine_are_told() -> None:
    space, recorder = new_space(), Recorder()
    space.attach(recorder)
    space.load(0x2FFF, b"code")
    frame = space.lookup(4)
    assert frame is not None
    space.tell_wrote(frame.frame)
    assert recorder.written == [(0x2FFF, 4), (0x4000, PAGE_SIZE)]


GFNS = st.one_of(st.integers(0, LOW + 3), st.integers(SPECIAL - 1, SPECIAL + 2))


@given(st.lists(st.tuples(st.sampled_from(["unhook", "populate", "move", "grant"]), GFNS, GFNS)))
def test_the_mapper_sees_what_the_space_says(steps: list[tuple[str, int, int]]) -> None:
    space, other, recorder = new_space(), new_space(2), Recorder()
    space.attach(recorder)
    for what, gfn, to in steps:
        mapping = space.lookup(gfn)
        if what == "unhook":
            space.unhook(gfn)
        elif what == "populate":
            space.populate(gfn)
        elif what == "move" and mapping is not None and not mapping.is_foreign:
            space.place(to, mapping.frame, RAM)
        elif what == "grant":
            space.place(to, MachineFrame(other, gfn % LOW), GRANT_READONLY)
    late = Recorder()
    for gfn, count, address, writable in space.runs():
        late.map(gfn * PAGE_SIZE, count * PAGE_SIZE, address, writable)
    assert late.pages == recorder.pages
    for gfn in [*range(LOW + 4), *range(SPECIAL - 1, SPECIAL + 3)]:
        mapping = space.lookup(gfn)
        assert (mapping is not None) == (gfn in recorder.pages)
        if mapping is not None:
            address = mapping.frame.home.base_address + mapping.frame.index * PAGE_SIZE
            assert recorder.pages[gfn] == (address, mapping.writable)
            if not mapping.is_foreign:
                assert space.gfn_of(mapping.frame) == gfn
