"""Finding the module: module images, memory images with holes, live memory, and what is neither."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import minios

from xenlive.dump import Image
from xenlive.errors import ImageError
from xenlive.kexec import KexecModule
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.guest import GuestMemory

MIB = 1 << 20
REAL = minios.module_image("p9-18-64", "entry1")
N_PAGES, RECS_OFF = 8, 12  # fields of the administration page


def fresh_module(n_module_pages: int, recs_off: int | None = None) -> bytes:
    buffer = bytearray(n_module_pages * PAGE_SIZE)
    KexecModule.create(GuestMemory([(0, buffer)]), PhysAddr(0), n_module_pages)
    if recs_off is not None:
        at = len(buffer) - PAGE_SIZE + RECS_OFF
        buffer[at : at + 2] = recs_off.to_bytes(2, "little")
    return bytes(buffer)


def memory_file(path: Path, size: int, *parts: tuple[int, bytes]) -> Path:
    """A sparse file with `parts` at their offsets."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in parts:
            file.seek(offset)
            file.write(data)
    return path


def find(path: Path, kind: str = "auto") -> tuple[int, int, int | None]:
    with Image(path, kind) as image:
        found = image.find_module()
    assert len(found.admin_page) == PAGE_SIZE
    return found.offset, found.size_bytes, found.address


@pytest.mark.parametrize("entry", minios.entries("module"), ids=lambda entry: entry["file"])
def test_module_images(entry: dict[str, object], tmp_path: Path) -> None:
    data = minios.files()[str(entry["file"])]
    path = tmp_path / "module"
    path.write_bytes(data)
    assert find(path) == find(path, "module") == (0, len(data), None)


@pytest.mark.parametrize("entry", minios.entries("module"), ids=lambda entry: entry["file"])
def test_memory_images(entry: dict[str, object], tmp_path: Path) -> None:
    data = minios.files()[str(entry["file"])]
    address, ram_mib = entry["address"], entry["ram_mib"]
    assert isinstance(address, int)
    assert isinstance(ram_mib, int)
    path = memory_file(tmp_path / "ram", ram_mib * MIB, (address, data))
    assert find(path) == (address, len(data), address)


def test_a_memory_image_smaller_than_a_module_could_be(tmp_path: Path) -> None:
    """2 MiB could be a module of 512 pages; that the last page speaks of 18 tells."""
    path = memory_file(tmp_path / "ram", 2 * MIB, (2 * MIB - len(REAL), REAL))
    place = 2 * MIB - len(REAL)
    assert find(path) == find(path, "memory") == (place, len(REAL), place)
    assert find(path, "module") == (0, 2 * MIB, None)


def test_a_module_image_read_as_memory_has_an_address(tmp_path: Path) -> None:
    path = tmp_path / "module"
    path.write_bytes(REAL)
    assert find(path, "memory") == (0, len(REAL), 0)


def test_holes_are_not_read(tmp_path: Path) -> None:
    """A terabyte of hole would take minutes to read."""
    place = 1 << 39
    path = memory_file(tmp_path / "ram", 1 << 40, (place, REAL))
    assert find(path) == (place, len(REAL), place)


def test_a_file_that_is_one_hole(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as raised:
        find(memory_file(tmp_path / "ram", 1 << 40))
    assert raised.value.code == "no-module"


def test_without_support_for_holes_all_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, whence: int) -> int:
        raise OSError(22, "Invalid argument")

    path = memory_file(tmp_path / "ram", 20 * MIB, (MIB, REAL))
    monkeypatch.setattr(os, "lseek", refuse)
    assert find(path) == (MIB, len(REAL), MIB)


def test_of_two_sound_modules_the_higher_counts(tmp_path: Path) -> None:
    parts = [(MIB, REAL), (5 * MIB, fresh_module(4))]
    path = memory_file(tmp_path / "ram", 20 * MIB, *parts)
    assert find(path)[0] == 5 * MIB


def test_a_sound_module_counts_more_than_a_higher_unsound_one(tmp_path: Path) -> None:
    unsound = fresh_module(4, recs_off=0)
    stray = b"KexecMem".ljust(PAGE_SIZE, b"\xff")
    parts = [(MIB, REAL), (5 * MIB, unsound), (9 * MIB, stray)]
    path = memory_file(tmp_path / "ram", 20 * MIB, *parts)
    assert find(path)[0] == MIB


def test_an_unsound_module_is_found_if_there_is_no_other(tmp_path: Path) -> None:
    unsound = fresh_module(4, recs_off=0)
    path = memory_file(tmp_path / "ram", 20 * MIB, (5 * MIB, unsound))
    assert find(path) == (5 * MIB, len(unsound), 5 * MIB)


def test_an_eye_catcher_inside_of_a_page_is_none(tmp_path: Path) -> None:
    parts = [(MIB + at, b"KexecMem") for at in (8, 4088, 4096 - 4, 8192 + 2048)]
    with pytest.raises(ImageError):
        find(memory_file(tmp_path / "ram", 20 * MIB, *parts))


def test_a_page_at_the_very_start_of_memory(tmp_path: Path) -> None:
    path = memory_file(tmp_path / "ram", 20 * MIB, (0, fresh_module(1)))
    assert find(path) == (0, PAGE_SIZE, 0)


def test_a_module_that_would_start_below_zero_is_cut_off(tmp_path: Path) -> None:
    path = memory_file(tmp_path / "ram", 20 * MIB, (0, REAL[-PAGE_SIZE:]))
    assert find(path) == (0, PAGE_SIZE, 0)


@pytest.mark.parametrize("n_pages", [0, 5, 16, 18, 4000, 0xFFFF])
def test_a_module_image_with_a_wrong_n_pages_is_still_one(n_pages: int, tmp_path: Path) -> None:
    """So that it is found to be wrong, and not taken for memory with a smaller module in it."""
    at = 17 * PAGE_SIZE + N_PAGES
    data = bytearray(REAL)
    data[at : at + 2] = n_pages.to_bytes(2, "little")
    path = tmp_path / "module"
    path.write_bytes(data)
    assert find(path) == (0, len(REAL), None)


def test_a_module_image_with_its_table_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "module"
    path.write_bytes(fresh_module(18, recs_off=64))
    assert find(path) == (0, 18 * PAGE_SIZE, None)


def test_memory_too_large_for_a_module_is_memory_whatever_its_end_says(tmp_path: Path) -> None:
    end = bytearray(fresh_module(1))
    end[N_PAGES : N_PAGES + 2] = b"\xff\xff"
    path = memory_file(tmp_path / "ram", 20 * MIB, (20 * MIB - PAGE_SIZE, bytes(end)))
    assert find(path) == (0, 20 * MIB, 0)


def test_live_memory_that_is_all_module_has_an_address() -> None:
    fd = os.memfd_create("ram")
    try:
        os.write(fd, REAL)
        assert find(Path(f"/proc/{os.getpid()}/fd/{fd}")) == (0, len(REAL), 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize("more", [1, 100, 4095])
def test_a_module_image_that_lost_its_end(more: int, tmp_path: Path) -> None:
    path = tmp_path / "module"
    path.write_bytes(REAL[: 17 * PAGE_SIZE + more])
    if more >= 14:
        assert find(path) == (0, 17 * PAGE_SIZE + more, None)
    else:
        with pytest.raises(ImageError):
            find(path)


@pytest.mark.parametrize("more", [1, 100, 4095])
def test_a_module_image_with_more_behind_it_is_one_of_a_wrong_size(
    more: int, tmp_path: Path
) -> None:
    path = tmp_path / "module"
    path.write_bytes(REAL + bytes(more))
    size = len(REAL) + more
    assert find(path) == find(path, "module") == (0, size, None)
    assert find(path, "memory") == (0, len(REAL), 0)


def test_a_memory_image_of_an_odd_size_is_searched(tmp_path: Path) -> None:
    path = memory_file(tmp_path / "ram", 2 * MIB + 1, (2 * MIB - len(REAL), REAL))
    place = 2 * MIB - len(REAL)
    assert find(path) == (place, len(REAL), place)


def test_live_memory(tmp_path: Path) -> None:
    """By /proc/PID/fd/N, and by a run directory whose `ram` links there; it is not changed."""
    fd = os.memfd_create("ram")
    try:
        os.ftruncate(fd, 4 * MIB)
        with mmap.mmap(fd, 4 * MIB) as ram:
            place = PhysAddr(4 * MIB - 18 * PAGE_SIZE)
            memory = GuestMemory([(0, ram)])
            module = KexecModule.create(memory, place, 18)
            module.add_record(1, bytes(16))
            before = ram[:]
            live = Path(f"/proc/{os.getpid()}/fd/{fd}")
            (tmp_path / "ram").symlink_to(live)
            for path in (live, tmp_path, tmp_path / "ram"):
                assert find(path) == (place, 18 * PAGE_SIZE, place)
            assert ram[:] == before
            module.release()
            memory.release()
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "no-module"),
        (b"KexecMem", "no-module"),
        (b"x" * 8192, "no-module"),
        (b"\x7fELF" + REAL[4:], "elf-broken"),
    ],
)
def test_files_without_a_module(content: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(ImageError) as raised:
        find(path)
    assert raised.value.code == code


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(ImageError) as raised:
            Image(path)
        assert raised.value.code == "not-an-image"
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError):
            Image(path)
    with pytest.raises(ValueError, match="kind"):
        Image(tmp_path, "elf")


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\x7fELF")
    (tmp_path / "module").write_bytes(REAL)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ImageError):
        Image(tmp_path / "image")
    with Image(tmp_path / "module") as image:
        image.find_module()
    image.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_shrinks_gives_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "module"
    path.write_bytes(REAL)
    with Image(path) as image:
        os.truncate(path, 5000)
        assert len(image.read(4096, 4096)) == 904
        with pytest.raises(ImageError):
            image.find_module()


@settings(deadline=None, max_examples=60)
@given(
    n_file_pages=st.integers(1, 12),
    pages=st.lists(
        st.tuples(st.integers(0, 11), st.integers(0, 12), st.integers(0, 40)), max_size=4
    ),
    cut=st.sampled_from([0, 0, 1, 4080, 4090]),
    kind=st.sampled_from(["auto", "memory", "module"]),
)
def test_any_file_has_a_module_or_not(
    n_file_pages: int,
    pages: list[tuple[int, int, int]],
    cut: int,
    kind: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Never anything but a found module, inside of the file, or one ImageError."""
    content = bytearray(n_file_pages * PAGE_SIZE)
    for page, n_pages, recs_off in pages:
        at = page * PAGE_SIZE
        header = b"KexecMem" + b"".join(n.to_bytes(2, "little") for n in (n_pages, 16, recs_off))
        content[at : at + len(header)] = header
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content[: len(content) - cut])
    found = None
    with Image(path, kind) as image, suppress(ImageError):
        found = image.find_module()
    if found is None:
        return
    assert 0 <= found.offset <= found.offset + found.size_bytes <= path.stat().st_size
    assert found.admin_page.startswith(b"KexecMem")
