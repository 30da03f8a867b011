"""A live domain's memory: found by every path to it, seen as of one moment, and left alone."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conformance.servers import XenliveServer
from dump.cores import write_sparse
from machine.hosts import status
from vectors import minios

from xenlive.dump import Image
from xenlive.errors import ImageError
from xenlive.memory.address import PAGE_SIZE

MIB = 1 << 20
MODULE = minios.module_image("p9-18-64", "boot1-boot")
PLACE = 60 * MIB


@pytest.fixture
def ram() -> Iterator[int]:
    """A memfd that is named as the domain's, 64 MiB of holes but for the module."""
    fd = os.memfd_create("xenlive-ram-7", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 64 * MIB)
    os.pwrite(fd, MODULE, PLACE)
    yield fd
    os.close(fd)


def folder_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/fd")


def test_looking_makes_no_pages(ram: int) -> None:
    before = os.fstat(ram).st_blocks
    with Image(folder_of(os.getpid()) / str(ram)) as image:
        assert image.find_module().address == PLACE
        assert len(image.find_modules()) == 1
        assert image.read_phys(0, 8 * MIB) == bytes(8 * MIB)
    assert os.fstat(ram).st_blocks == before == len(MODULE) // 512


def test_it_is_opened_for_reading_only(ram: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not locked: a lock of someone else's is no hindrance."""
    opened: list[int] = []
    os_open = os.open

    def note(path: Path, flags: int, *more: int) -> int:
        opened.append(flags)
        return os_open(path, flags, *more)

    fcntl.flock(ram, fcntl.LOCK_EX)
    fcntl.fcntl(ram, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    monkeypatch.setattr(os, "open", note)
    with Image(folder_of(os.getpid()) / str(ram)) as image:
        image.find_module()
    assert [flags & os.O_ACCMODE for flags in opened] == [os.O_RDONLY]


def test_the_domains_own_offset_stays(ram: int) -> None:
    os.lseek(ram, 12345, os.SEEK_SET)
    with Image(folder_of(os.getpid()) / str(ram)) as image:
        image.find_modules()
    assert os.lseek(ram, 0, os.SEEK_CUR) == 12345


def test_among_descriptors_the_one_named_as_ram(ram: int) -> None:
    """Not a larger one, nor one that is no memory; by /proc/PID as well."""
    larger = os.memfd_create("else")
    try:
        os.ftruncate(larger, 128 * MIB)
        for path in (folder_of(os.getpid()), Path(f"/proc/{os.getpid()}"), Path("/proc/self/fd")):
            with Image(path) as image:
                assert image.kind == "memory"
                assert image.path.name == str(ram)
                assert image.find_module().address == PLACE
    finally:
        os.close(larger)


def test_among_others_the_largest() -> None:
    """As an emulator has its guest's memory in a memfd, besides smaller ones.

    In a process of its own: this one may have guests that other tests keep.
    """
    fds = [os.memfd_create(f"memory-{number}") for number in range(3)]
    try:
        for fd, size in zip(fds, (1, 3, 2), strict=True):
            os.ftruncate(fd, size * MIB)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=fds) as emulator:
            with Image(folder_of(emulator.pid)) as image:
                assert image.path.name == str(fds[1])
            assert emulator.stdin is not None
            emulator.stdin.close()
    finally:
        for fd in fds:
            os.close(fd)


def test_a_process_without_a_domains_memory() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        with pytest.raises(ImageError) as raised:
            Image(folder_of(other.pid))
        assert raised.value.code == "no-memory"
        assert other.stdin is not None
        other.stdin.close()


def test_a_folder_named_fd_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "fd").mkdir()
    with pytest.raises(FileNotFoundError):
        Image(tmp_path / "fd")
    write_sparse(tmp_path / "fd" / "ram", MIB, [(0, MODULE)])
    with Image(tmp_path / "fd") as image:
        assert image.find_module().address == 0


def test_memory_that_starts_like_an_elf_file_is_memory(ram: int) -> None:
    """What lies at address 0 is the domain's business."""
    os.pwrite(ram, b"\x7fELF\x02\x01\x01", 0)
    with Image(folder_of(os.getpid()) / str(ram)) as image:
        assert image.find_module().address == PLACE


def torn_reads(count: int) -> tuple[Callable[[int, int, int], bytes], list[int]]:
    """An `os.pread` whose first `count` reads of an administration page each differ."""
    reads: list[int] = []
    pread = os.pread

    def torn(fd: int, size: int, offset: int) -> bytes:
        page = pread(fd, size, offset)
        if page.startswith(b"KexecMem"):
            reads.append(offset)
            if len(reads) <= count:
                return page[:100] + len(reads).to_bytes(2, "big") + page[102:]
        return page

    return torn, reads


def test_a_page_that_is_written_to_is_read_again(ram: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torn, reads = torn_reads(5)
    monkeypatch.setattr(os, "pread", torn)
    with Image(folder_of(os.getpid()) / str(ram), "memory") as image:
        found = image.find_module()
    assert found.settled
    assert found.admin_page == MODULE[-PAGE_SIZE:]
    assert len(reads) == 7


def test_a_page_that_never_settles_is_said_to_be_so(
    ram: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn, reads = torn_reads(1 << 30)
    monkeypatch.setattr(os, "pread", torn)
    with Image(folder_of(os.getpid()) / str(ram), "memory") as image:
        found = image.find_module()
    assert not found.settled
    assert found.address == PLACE
    assert len(reads) == 16


def test_a_module_that_goes_away_while_it_is_looked_for(
    ram: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def seen_last(fd: int, buffers: list[memoryview], offset: int) -> int:
        count = preadv(fd, buffers, offset)
        os.pwrite(ram, bytes(PAGE_SIZE), PLACE + len(MODULE) - PAGE_SIZE)
        return count

    monkeypatch.setattr(os, "preadv", seen_last)
    with Image(folder_of(os.getpid()) / str(ram)) as image, pytest.raises(ImageError) as raised:
        image.find_module()
    assert raised.value.code == "no-module"


def test_a_domain_that_runs(tmp_path: Path) -> None:
    """By its run directory, its host and its own process; and it serves on, not a page larger."""
    server = XenliveServer(tmp_path / "run")
    server.start()
    try:
        told = status(server)
        domain = int(told["domain"]["pid"])
        ram = server.rundir / "ram"
        before = ram.stat().st_blocks
        seen = set()
        for path in (server.rundir, ram, ram.readlink(), folder_of(server.pid), folder_of(domain)):
            with Image(path) as image:
                assert image.size_bytes == ram.stat().st_size
                found = image.find_module()
                seen.add((found.address, found.size_bytes, found.admin_page, found.settled))
                assert found.read_page(0) is not None
        assert ram.stat().st_blocks == before
        assert len(seen) == 1
        address, size_bytes, _, settled = seen.pop()
        assert settled
        assert told["module"]["address"] == address
        assert told["module"]["pages"] == size_bytes // PAGE_SIZE
        assert status(server)["domain"]["pid"] == domain
    finally:
        server.stop()
