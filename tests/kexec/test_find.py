"""Finding the module: ours among strangers, and one that survived a kernel that knew nothing."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import minios

from xenlive.abi.kexec_module import HEADER, RECORD
from xenlive.kexec import KexecModule
from xenlive.kexec.find import (
    find_kexec_module,
    find_surviving_module,
)
from xenlive.kexec.start_info import StartInfo, build_start_info, parse_start_info
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, E820_RESERVED, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

PLACE = PhysAddr(0x1000)
RAM = MemoryMap([MemoryRange(0, 1 << 20, E820_RAM)])
EYE = b"KexecMem"


class TestStartInfo:
    """What Mini-OS accepts and ignores, seen by running it; and more than one module."""

    ADDRESS = PhysAddr(0x10000)
    SECOND = PhysAddr(0x40000)
    STRANGER = PhysAddr(0x8000)

    def image(self) -> bytearray:
        return bytearray(minios.module_image("mix-18-64", "entry1"))

    def handed(
        self,
        image: bytes | bytearray,
        modules: list[tuple[int, int, int]],
        second: bytes | bytearray = b"",
    ) -> tuple[KexecModule | None, str]:
        block = build_start_info(PLACE, RAM, modules, "a command line")
        regions = [
            (int(PLACE), bytearray(block)),
            (int(self.STRANGER), bytearray(b"070701 a RAM disk".ljust(2 * PAGE_SIZE, b"."))),
            (int(self.ADDRESS), bytearray(image)),
            (int(self.SECOND), bytearray(second)),
        ]
        memory = GuestMemory(regions)
        return find_kexec_module(parse_start_info(memory, PLACE), memory)

    def test_the_first_module(self) -> None:
        image = self.image()
        module, why = self.handed(image, [(self.ADDRESS, len(image), 0)])
        assert why == ""
        assert module is not None
        assert (module.address, module.n_pages) == (self.ADDRESS, 17)

    def test_one_with_a_command_line(self) -> None:
        image = self.image()
        module, why = self.handed(image, [(self.ADDRESS, len(image), PLACE)])
        assert (module is not None, why) == (True, "")

    def test_none(self) -> None:
        assert self.handed(bytes(PAGE_SIZE), []) == (None, "")

    @pytest.mark.parametrize(
        "stranger",
        [
            (STRANGER, PAGE_SIZE, 0),
            (STRANGER, 2 * PAGE_SIZE, PLACE),
            (STRANGER, 100, 0),
            (STRANGER + 3, 777, 0),
            (STRANGER, 0, 0),
            (0x90000, PAGE_SIZE, 0),
            ((1 << 64) - 1, (1 << 64) - 1, 0),
            (ADDRESS, PAGE_SIZE, 0),
        ],
    )
    @pytest.mark.parametrize("place", [0, 1])
    def test_among_strangers(self, stranger: tuple[int, int, int], place: int) -> None:
        image = self.image()
        modules = [(int(self.ADDRESS), len(image), 0)]
        modules.insert(place, stranger)
        module, why = self.handed(image, modules)
        assert module is not None
        assert (module.address, why) == (self.ADDRESS, "")

    def test_only_strangers(self) -> None:
        modules = [(int(self.STRANGER), 2 * PAGE_SIZE, 0), (int(self.STRANGER), 5, 0)]
        assert self.handed(self.image(), modules) == (None, "")

    def test_an_unsound_one_is_told_of_and_the_next_sound_one_wins(self) -> None:
        broken, sound = self.image(), self.image()
        broken[-PAGE_SIZE + 8] ^= 1
        size = len(sound)
        modules = [(int(self.ADDRESS), size, 0), (int(self.SECOND), size, 0)]
        module, why = self.handed(broken, modules, sound)
        assert module is not None
        assert module.address == self.SECOND
        assert why.startswith("module at 0x10000: bad-n-pages")

    def test_the_first_of_two_sound_ones_wins(self) -> None:
        sound, size = self.image(), len(self.image())
        modules = [(int(self.SECOND), size, 0), (int(self.ADDRESS), size, 0)]
        module, why = self.handed(sound, modules, sound)
        assert module is not None
        assert (module.address, why) == (self.SECOND, "")

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_one_with_records_is_preferred_to_one_without(self, order: tuple[int, int]) -> None:
        """Fourteen bytes are enough for a sound module; nobody hands over an empty one for long."""
        sound, empty = self.image(), HEADER.pack(EYE, 0, 0, 14).ljust(PAGE_SIZE, b"A")
        modules = [(int(self.ADDRESS), PAGE_SIZE, 0), (int(self.SECOND), len(sound), 0)]
        module, why = self.handed(empty, [modules[place] for place in order], sound)
        assert module is not None
        assert (module.address, why) == (self.SECOND, "")

    def test_the_first_of_two_empty_ones_wins(self) -> None:
        empty = HEADER.pack(EYE, 0, 0, 14).ljust(PAGE_SIZE, b"A")
        modules = [(int(self.SECOND), PAGE_SIZE, 0), (int(self.ADDRESS), PAGE_SIZE, 0)]
        module, why = self.handed(empty, modules, empty)
        assert module is not None
        assert (module.address, why) == (self.SECOND, "")

    def test_one_that_is_passed_over_is_left_alone(self) -> None:
        """What an unfinished change left in a module is put in order by whoever uses it only."""
        left = bytearray(HEADER.pack(EYE, 0, 1, 14).ljust(PAGE_SIZE, b"A"))
        left[14:18] = RECORD.pack(100, 0, 50)
        memory = GuestMemory([(0x10000, left), (0x40000, self.image())])
        modules = [(0x10000, PAGE_SIZE, 0), (0x40000, len(self.image()), 0)]
        before = bytes(left)
        module, _ = find_kexec_module(StartInfo(RAM, modules), memory)
        assert module is not None
        assert (module.address, bytes(left)) == (0x40000, before)
        module, _ = find_kexec_module(StartInfo(RAM, modules[:1]), memory)
        assert module is not None
        assert bytes(left[100:150]) == bytes(50)

    @pytest.mark.parametrize(
        ("reserved", "block", "used"),
        [
            ([], [], True),
            ([(0, 0x10000), (0x22000, 1), (0x11000, 0)], [(0xFFFF, 1)], True),
            ([(0, 0x10001)], [], False),
            ([(0x21FFF, 1 << 62)], [], False),
            ([(0x18000, 1)], [], False),
            ([], [(0x21FFF, 56)], False),
            ([], [(0x1000, 8), (0x10000, 8)], False),
        ],
    )
    def test_none_that_reaches_into_what_is_in_use(
        self, reserved: list[tuple[int, int]], block: list[tuple[int, int]], used: bool
    ) -> None:
        """The running kernel's image, or the start info's own block: of that it says so itself."""
        image = self.image()
        memory = GuestMemory([(0x10000, image), (0x40000, self.image())])
        modules = [(0x10000, len(image), 0), (0x40000, len(image), 0)]
        module, why = find_kexec_module(StartInfo(RAM, modules, block=block), memory, reserved)
        assert module is not None or reserved == [(0x21FFF, 1 << 62)]
        if module is not None:
            assert module.address == (0x10000 if used else 0x40000)
        assert why.startswith("" if used else "module at 0x10000: module-in-use: it reaches into")
        assert bool(why) != used

    def test_memory_that_is_no_ram_by_the_map_is_as_good(self) -> None:
        """As for the posted code: who hands a module over knows where it lies."""
        memory = GuestMemory([(1 << 32, self.image())])
        modules = [(1 << 32, len(self.image()), 0)]
        module, why = find_kexec_module(StartInfo(RAM, modules), memory)
        assert (module is not None, why) == (True, "")

    def test_all_of_ours_unsound(self) -> None:
        broken = self.image()
        broken[-PAGE_SIZE + 8] ^= 1
        size = len(broken)
        modules = [(int(self.ADDRESS), size, 0), (int(self.SECOND), size, 0)]
        module, why = self.handed(broken, modules, broken)
        assert module is None
        assert why.count("bad-n-pages") == 2
        assert "; module at 0x40000: " in why

    @pytest.mark.parametrize(
        ("at", "data", "size_off", "code"),
        [
            (0, b"kexecMem", 0, ""),
            (8, b"\x10", 0, "bad-n-pages"),
            (0, EYE, -1, "bad-size"),
            (0, EYE, -PAGE_SIZE, ""),
            (0, EYE, PAGE_SIZE, ""),
            (0, EYE, 1 << 62, ""),
            (32, b"\x88\x13", 0, "record-outside"),
        ],
    )
    def test_one_that_is_ignored(self, at: int, data: bytes, size_off: int, code: str) -> None:
        image = self.image()
        start = len(image) - PAGE_SIZE + at
        image[start : start + len(data)] = data
        module, why = self.handed(image, [(self.ADDRESS, len(image) + size_off, 0)])
        assert module is None
        assert code in why
        assert why.startswith("module at 0x10000") if code else why == ""


RAM_BYTES = 64 * PAGE_SIZE


def search(
    memory: GuestMemory,
    memmap: MemoryMap,
    reserved: Iterable[tuple[int, int]] = (),
    populated: Iterable[tuple[int, int]] | None = None,
) -> KexecModule | None:
    """The highest sound one, whatever is in it."""
    return find_surviving_module(memory, memmap, reserved, populated, lambda module: True)


class TestSurvivors:
    """One module or more in 64 pages of RAM that nobody names."""

    def memory(self) -> GuestMemory:
        return GuestMemory([(0, bytearray(RAM_BYTES))])

    def ram(self, end: int = RAM_BYTES) -> MemoryMap:
        return MemoryMap([MemoryRange(0, end, E820_RAM)])

    def test_none(self) -> None:
        assert search(self.memory(), self.ram()) is None

    @pytest.mark.parametrize(("first", "n_pages"), [(46, 18), (0, 18), (63, 1), (0, 64), (7, 2)])
    def test_wherever_it_lies(self, first: int, n_pages: int) -> None:
        memory = self.memory()
        made = KexecModule.create(memory, PhysAddr(first * PAGE_SIZE), n_pages)
        made.add_record(1, b"what it holds")
        before = memory.read(PhysAddr(0), RAM_BYTES)
        found = search(memory, self.ram())
        assert found is not None
        assert (found.address, found.size_bytes) == (made.address, made.size_bytes)
        assert found.read_record(0) == b"what it holds"
        assert memory.read(PhysAddr(0), RAM_BYTES) == before

    def test_the_highest_one_wins(self) -> None:
        memory = self.memory()
        KexecModule.create(memory, PhysAddr(10 * PAGE_SIZE), 4)
        upper = KexecModule.create(memory, PhysAddr(20 * PAGE_SIZE), 4)
        found = search(memory, self.ram())
        assert found is not None
        assert found.address == upper.address

    def test_an_unsound_one_is_passed_over(self) -> None:
        memory = self.memory()
        lower = KexecModule.create(memory, PhysAddr(10 * PAGE_SIZE), 4)
        upper = KexecModule.create(memory, PhysAddr(20 * PAGE_SIZE), 4)
        memory.write(PhysAddr(upper.admin_address + 10), b"\xff\xff")
        # Pages that only begin like one: bits of a kernel's own data, or n_pages beyond address 0.
        memory.write(PhysAddr(40 * PAGE_SIZE), EYE)
        memory.write(PhysAddr(41 * PAGE_SIZE), EYE + b"\xff\xff")
        memory.write(PhysAddr(63 * PAGE_SIZE + 8), EYE)
        found = search(memory, self.ram())
        assert found is not None
        assert found.address == lower.address

    @pytest.mark.parametrize(
        ("reserved", "survives"),
        [
            ((20 * PAGE_SIZE - 1, 1), True),
            ((24 * PAGE_SIZE, 1), True),
            ((20 * PAGE_SIZE, 0), True),
            ((20 * PAGE_SIZE, 1), False),
            ((24 * PAGE_SIZE - 1, 1), False),
            ((0, RAM_BYTES), False),
            ((21 * PAGE_SIZE, 5), False),
        ],
    )
    def test_what_is_in_use_since_did_not_survive(
        self, reserved: tuple[int, int], survives: bool
    ) -> None:
        memory = self.memory()
        KexecModule.create(memory, PhysAddr(20 * PAGE_SIZE), 4)
        found = search(memory, self.ram(), [reserved])
        assert (found is not None) == survives

    @pytest.mark.parametrize(
        ("ranges", "survives"),
        [
            ([(0, 24 * PAGE_SIZE, E820_RAM)], True),
            ([(20 * PAGE_SIZE, 4 * PAGE_SIZE, E820_RAM)], True),
            # the range ends inside of the administration page, or the module begins outside of it
            ([(0, 24 * PAGE_SIZE - 1, E820_RAM)], False),
            ([(20 * PAGE_SIZE + 1, RAM_BYTES, E820_RAM)], False),
            ([(0, RAM_BYTES, E820_RESERVED)], False),
            ([(0, 22 * PAGE_SIZE, E820_RAM), (22 * PAGE_SIZE, PAGE_SIZE, E820_RESERVED)], False),
            # two ranges of RAM that touch are one
            ([(0, 22 * PAGE_SIZE, E820_RAM), (22 * PAGE_SIZE, PAGE_SIZE * 9, E820_RAM)], True),
        ],
    )
    def test_only_in_ram(self, ranges: list[tuple[int, int, int]], survives: bool) -> None:
        memory = self.memory()
        KexecModule.create(memory, PhysAddr(20 * PAGE_SIZE), 4)
        found = search(memory, MemoryMap(MemoryRange(*each) for each in ranges))
        assert (found is not None) == survives

    def test_a_map_of_more_than_the_memory_there_is(self) -> None:
        memory = self.memory()
        KexecModule.create(memory, PhysAddr(60 * PAGE_SIZE), 4)
        assert search(memory, self.ram(1 << 40)) is not None

    @pytest.mark.parametrize(
        ("base", "survives"),
        [((4 << 30) - 4 * PAGE_SIZE, True), ((4 << 30) - 3 * PAGE_SIZE, False)],
    )
    def test_only_below_4_gib(self, base: int, survives: bool) -> None:
        memory = GuestMemory([(base, bytearray(4 * PAGE_SIZE))])
        KexecModule.create(memory, PhysAddr(base), 4)
        found = search(memory, self.ram(5 << 30))
        assert (found is not None) == survives

    def test_pages_that_were_never_written_are_not_looked_at(self) -> None:
        memory = self.memory()
        KexecModule.create(memory, PhysAddr(20 * PAGE_SIZE), 4)
        upper = KexecModule.create(memory, PhysAddr(40 * PAGE_SIZE), 4)
        everywhere = search(memory, self.ram())
        assert everywhere is not None
        assert everywhere.address == upper.address
        low = search(memory, self.ram(), populated=[(23 * PAGE_SIZE + 5, 1)])
        assert low is not None
        assert low.address == 20 * PAGE_SIZE
        assert search(memory, self.ram(), populated=[]) is None

    def test_among_more_pages_than_are_read_at_a_time(self) -> None:
        memory = GuestMemory([(0, bytearray(3000 * PAGE_SIZE))])
        for first in (0, 1023, 1976, 2999):
            made = KexecModule.create(memory, PhysAddr(first * PAGE_SIZE), 1)
            found = search(memory, self.ram(3000 * PAGE_SIZE))
            assert found is not None
            assert found.address == made.address


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=5),
    st.lists(st.tuples(st.integers(0, RAM_BYTES), st.integers(0, 9000)), max_size=3),
    st.lists(st.tuples(st.integers(0, RAM_BYTES - 1), st.binary(max_size=9)), max_size=4),
)
def test_whatever_is_in_memory_the_highest_sound_module_is_found(
    modules: list[tuple[int, int]],
    reserved: list[tuple[int, int]],
    scribbles: list[tuple[int, bytes]],
) -> None:
    """Against a search that tries to attach at every page with every size."""
    memory = GuestMemory([(0, bytearray(RAM_BYTES))])
    for first, n_pages in modules:
        if first + n_pages <= 64:
            KexecModule.create(memory, PhysAddr(first * PAGE_SIZE), n_pages)
    for at, data in scribbles:
        memory.write(PhysAddr(at), data[: RAM_BYTES - at])
    taken = {
        page
        for at, size in reserved
        for page in range(at // PAGE_SIZE, -(-(at + size) // PAGE_SIZE) if size else 0)
    }
    expected = None
    for last in range(63, -1, -1):
        for first in range(last, -1, -1):
            size = (last - first + 1) * PAGE_SIZE
            page = memory.read(PhysAddr(last * PAGE_SIZE), PAGE_SIZE)
            if page[:8] != EYE or int.from_bytes(page[8:10], "little") != last - first:
                continue
            if taken.isdisjoint(range(first, last + 1)) and is_sound(page, size):
                expected = expected or (first * PAGE_SIZE, size)
    found = search(memory, MemoryMap([MemoryRange(0, RAM_BYTES, 1)]), reserved)
    assert (None if found is None else (found.address, found.size_bytes)) == expected


def is_sound(page: bytes, size: int) -> bool:
    """Whether a module of `size` bytes with this administration page attaches, by itself."""
    alone = GuestMemory([(0, bytes(size - PAGE_SIZE) + page)])
    return find_kexec_module(StartInfo(RAM, [(0, size, 0)]), alone)[0] is not None
