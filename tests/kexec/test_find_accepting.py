"""Searching memory in which others may have written what looks like a kexec module."""

from __future__ import annotations

import pytest

from xenlive.abi.kexec_module import EYE_CATCHER, HEADER, PG2REC_OFFSET, RECORD
from xenlive.errors import ModuleError, OutOfSpace
from xenlive.kexec import KexecModule, find
from xenlive.kexec.find import (
    MAX_SHOWN,
    MAX_VERIFIED,
    find_surviving_module,
    has_records,
    surviving_modules,
)
from xenlive.kexec.verify import Problem, first_problem
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

RAM_BYTES = 64 * PAGE_SIZE


class TestAccepting:
    """Any page may look like a module: who searches says what it accepts."""

    MAP = MemoryMap([MemoryRange(0, RAM_BYTES, E820_RAM)])

    def memory(self, n_pages: int = 64) -> GuestMemory:
        return GuestMemory([(0, bytearray(n_pages * PAGE_SIZE))])

    def decoy(self, memory: GuestMemory, page: int, n_pages: int = 0, n_records: int = 0) -> None:
        """A header, and nothing that makes it unsound; `n_records` are used, with no data."""
        table = PG2REC_OFFSET + n_pages
        head = HEADER.pack(EYE_CATCHER, n_pages, n_records, table) + b"\xff" * n_pages
        end = table + n_records * RECORD.size
        entries = RECORD.pack(end, 0x77, 0) * n_records
        data = (head + entries).ljust(PAGE_SIZE, b"A")
        memory.write(PhysAddr(page * PAGE_SIZE), data)

    def real(self, memory: GuestMemory) -> KexecModule:
        made = KexecModule.create(memory, PhysAddr(4 * PAGE_SIZE), 3)
        made.add_record(0x77, b"what it holds")
        return made

    def test_empty_ones_are_passed_over_if_nobody_says_more(self) -> None:
        memory = self.memory()
        real = self.real(memory)
        self.decoy(memory, 63)
        self.decoy(memory, 60, 40)
        self.decoy(memory, 5)
        found = find_surviving_module(memory, self.MAP)
        assert found is not None
        assert (found.address, found.size_bytes) == (real.address, real.size_bytes)

    def test_candidates_are_shown_highest_first_until_one_is_accepted(self) -> None:
        memory = self.memory()
        self.real(memory)
        for page in (1, 63, 40):
            self.decoy(memory, page)
        shown: list[int] = []

        def accept(module: KexecModule) -> bool:
            shown.append(module.address // PAGE_SIZE)
            return has_records(module)

        assert find_surviving_module(memory, self.MAP, accept=accept) is not None
        assert shown == [63, 40, 4]
        shown.clear()
        assert find_surviving_module(memory, self.MAP, accept=lambda module: False) is None
        assert len(list(surviving_modules(memory, self.MAP))) == 4

    def test_nothing_is_written_to_what_is_not_accepted(self) -> None:
        """Neither by looking, nor by whoever is shown it; what is accepted is put in order."""
        memory = self.memory()
        left = bytearray(HEADER.pack(EYE_CATCHER, 0, 2, 14).ljust(PAGE_SIZE, b"A"))
        left[14:22] = RECORD.pack(100, 0, 50) + RECORD.pack(200, 0x77, 3)
        memory.write(PhysAddr(63 * PAGE_SIZE), left)
        before = memory.read(PhysAddr(0), RAM_BYTES)
        for candidate in surviving_modules(memory, self.MAP):
            assert candidate.read_record(1) == b"AAA"
            with pytest.raises((ModuleError, TypeError)):
                candidate.update_record(1, b"BBB")
        assert find_surviving_module(memory, self.MAP, accept=lambda module: False) is None
        assert memory.read(PhysAddr(0), RAM_BYTES) == before
        assert find_surviving_module(memory, self.MAP) is not None
        assert memory.read(PhysAddr(63 * PAGE_SIZE + 100), 50) == bytes(50)

    def test_one_that_changes_while_it_is_looked_at_is_passed_over(self) -> None:
        memory = self.memory()
        real = self.real(memory)
        self.decoy(memory, 63, 0, 1)

        def accept(module: KexecModule) -> bool:
            memory.write(PhysAddr(63 * PAGE_SIZE), b"gone")
            return True

        found = find_surviving_module(memory, self.MAP, accept=accept)
        assert found is not None
        assert found.address == real.address

    def searched(self, monkeypatch: pytest.MonkeyPatch, memory: GuestMemory) -> tuple[bool, int]:
        """Whether the real one is found among decoys, and how many pages were verified for it.

        If not, the search must say that it was cut short.
        """
        verified: list[int] = []

        def counting(page: memoryview, size_bytes: int) -> Problem | None:
            verified.append(size_bytes)
            return first_problem(page, size_bytes)

        monkeypatch.setattr(find, "first_problem", counting)
        memmap = MemoryMap([MemoryRange(0, 1 << 30, E820_RAM)])
        try:
            assert find_surviving_module(memory, memmap) is not None
        except OutOfSpace:
            return False, len(verified)
        return True, len(verified)

    @pytest.mark.parametrize("too_many", [0, 1])
    def test_so_many_unsound_pages_are_verified(
        self, monkeypatch: pytest.MonkeyPatch, too_many: int
    ) -> None:
        memory = self.memory(600)
        self.real(memory)
        for page in range(20, 20 + MAX_VERIFIED - 1 + too_many):
            self.decoy(memory, page, 0, 1)
            memory.write(PhysAddr(page * PAGE_SIZE + 14), b"\0\0")  # its data lies in the header
        assert self.searched(monkeypatch, memory) == (not too_many, MAX_VERIFIED)

    @pytest.mark.parametrize("too_many", [0, 1])
    def test_so_many_sound_ones_are_shown(
        self, monkeypatch: pytest.MonkeyPatch, too_many: int
    ) -> None:
        memory = self.memory(100)
        self.real(memory)
        for page in range(20, 20 + MAX_SHOWN - 1 + too_many):
            self.decoy(memory, page)
        assert self.searched(monkeypatch, memory) == (not too_many, MAX_SHOWN)

    @pytest.mark.parametrize("too_many", [0, 1])
    def test_a_search_that_is_cut_short_says_so(self, too_many: int) -> None:
        """Only then: as many as the bound and no more are all that there are."""
        memory = self.memory()
        for page in range(20, 20 + MAX_SHOWN + too_many):
            self.decoy(memory, page)
        shown: list[int] = []

        def looking() -> None:
            for module in surviving_modules(memory, self.MAP):
                shown.append(module.address // PAGE_SIZE)

        if too_many:
            with pytest.raises(OutOfSpace, match="begin like a module: 33 wanted, 32 available"):
                looking()
        else:
            looking()
        assert shown == list(range(19 + MAX_SHOWN + too_many, 19 + too_many, -1))

    def test_nothing_behind_the_bound_but_what_is_in_use(self) -> None:
        """What could not be a module is no reason to say that there was more."""
        memory = self.memory()
        for page in range(19, 20 + MAX_SHOWN):
            self.decoy(memory, page)
        reserved = [(19 * PAGE_SIZE, 1)]
        assert len(list(surviving_modules(memory, self.MAP, reserved))) == MAX_SHOWN

    def test_a_header_that_can_not_be_is_not_verified(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Any number of these: each costs as little as a page that is none."""
        memory = self.memory(4100)
        self.real(memory)
        numbers = [(0, 0, 13), (4, 0, 17), (0, 256, 14), (0, 2, 4089), (9999, 0, 0xFFFF)]
        for page in range(20, 4100):
            head = HEADER.pack(EYE_CATCHER, *numbers[page % len(numbers)])
            memory.write(PhysAddr(page * PAGE_SIZE), head)
        assert self.searched(monkeypatch, memory) == (True, 1)
