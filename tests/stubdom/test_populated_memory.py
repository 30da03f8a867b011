"""What a machine knows of memory that was never written to, and that nobody needs to pay for it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from xenlive.kexec import KexecModule
from xenlive.kexec.find import find_surviving_module
from xenlive.machine.hosted.guest import _data_runs
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

SIZE = 64 << 20


@pytest.fixture
def ram() -> Iterator[int]:
    fd = os.memfd_create("test-ram", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def test_runs_of_data(ram: int) -> None:
    assert _data_runs(ram, SIZE) == []
    for page in (3, 4, 100, SIZE // PAGE_SIZE - 1):
        os.pwrite(ram, b"x", page * PAGE_SIZE)
    runs = _data_runs(ram, SIZE)
    assert runs is not None
    for page in (3, 4, 100, SIZE // PAGE_SIZE - 1):
        assert any(start <= page * PAGE_SIZE < start + size for start, size in runs)
    assert sum(size for _, size in runs) < SIZE // 4


def test_a_file_that_can_not_tell() -> None:
    reader, writer = os.pipe()
    try:
        assert _data_runs(reader, SIZE) is None
    finally:
        os.close(reader)
        os.close(writer)


def test_a_search_takes_no_memory_that_was_not_taken(ram: int) -> None:
    with mmap.mmap(ram, SIZE) as mapping:
        memory = GuestMemory([(0, mapping)])
        memmap = MemoryMap([MemoryRange(0, SIZE, E820_RAM)])
        memory.write(PhysAddr(0x100000), b"start info")
        made = KexecModule.create(memory, PhysAddr(0x200000), 4)
        made.add_record(0x77, b"there")
        made.release()
        taken = os.fstat(ram).st_blocks
        found = find_surviving_module(memory, memmap, [], _data_runs(ram, SIZE))
        assert found is not None
        assert found.address == 0x200000
        found.release()
        assert os.fstat(ram).st_blocks == taken
        memory.release()
