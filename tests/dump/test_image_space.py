"""Memory in pieces against plain dictionaries, and the search against looking at every page."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from dump.cores import write_sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import minios

from xenlive.dump import Image, scan
from xenlive.dump.scan import eye_catchers
from xenlive.dump.source import Source
from xenlive.dump.space import Extent, Space
from xenlive.errors import ImageError
from xenlive.memory.address import PAGE_SIZE

EYE = b"KexecMem"
FILE_BYTES = 200
MIB = 1 << 20
SMALL = minios.host_image("empty4")

extents_strategy = st.lists(
    st.builds(Extent, st.integers(0, 60), st.integers(0, 30), st.integers(0, FILE_BYTES + 10)),
    max_size=6,
)


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose bytes are their offsets."""
    path = tmp_path_factory.mktemp("space") / "counting"
    path.write_bytes(bytes(range(FILE_BYTES)))
    return path


@settings(deadline=None, max_examples=300)
@given(extents=extents_strategy, address=st.integers(-5, 100), size=st.integers(-1, 60))
def test_pieces_are_read_as_a_dictionary_would(
    counting: Path, extents: list[Extent], address: int, size: int
) -> None:
    known: dict[int, int] = {}  # offset in the file by address
    contradicts = False
    for extent in extents:
        for byte in range(extent.size):
            offset = known.setdefault(extent.address + byte, extent.offset + byte)
            contradicts |= offset != extent.offset + byte
    source = Source(counting)
    try:
        if contradicts:
            with pytest.raises(ImageError, match="memory-overlap"):
                Space(source, extents)
            return
        space = Space(source, extents)
        assert space.has(address, size) == (
            size >= 0 and all(address + byte in known for byte in range(size))
        )
        expected = bytearray()
        while len(expected) < size and known.get(address + len(expected), 1 << 30) < FILE_BYTES:
            expected.append(known[address + len(expected)])
        assert space.read(address, size) == bytes(expected)
        covered = [at for start, count in space.regions() for at in range(start, start + count)]
        assert covered == sorted(known)
        ends = {start + count for start, count in space.regions()}
        assert not ends & {start for start, _ in space.regions()}
    finally:
        source.close()


pages = st.integers(0, 700)  # chunks of the search are 256 pages


@settings(deadline=None, max_examples=60)
@given(
    places=st.lists(st.tuples(pages, st.sampled_from([0, 0, 0, 8, 4088])), max_size=8),
    pieces=st.lists(st.tuples(pages, pages, st.integers(0, 4095)), min_size=1, max_size=4),
    holes=st.booleans(),
)
def test_every_page_of_memory_is_looked_at(
    places: list[tuple[int, int]],
    pieces: list[tuple[int, int, int]],
    holes: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Pieces of memory one after the other, each at an odd place in a file, with holes and not."""
    path = tmp_path_factory.getbasetemp() / "searched"
    extents, offset, address = [], 0, 0
    for gap, count, odd in pieces:
        address += gap * PAGE_SIZE
        offset += odd
        extents.append(Extent(address, count * PAGE_SIZE, offset))
        address += count * PAGE_SIZE
        offset += count * PAGE_SIZE
    bodies = [(page * PAGE_SIZE + at, EYE) for page, at in places if page * PAGE_SIZE < offset]
    write_sparse(path, offset, bodies)
    if not holes:
        path.write_bytes(path.read_bytes())
    data = path.read_bytes()
    expected = [
        extent.address + at
        for extent in extents
        for at in range(0, extent.size, PAGE_SIZE)
        if data[extent.offset + at : extent.offset + at + 8] == EYE
    ]
    source = Source(path)
    try:
        assert list(eye_catchers(Space(source, extents))) == sorted(expected, reverse=True)
    finally:
        source.close()


def test_a_piece_that_starts_inside_of_a_page_has_its_page_boundaries(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "file", 3 * PAGE_SIZE, [(96, EYE), (4192, EYE), (4096, EYE)])
    source = Source(path)
    try:
        space = Space(source, [Extent(PAGE_SIZE - 96, 2 * PAGE_SIZE, 0)])
        assert list(eye_catchers(space)) == [2 * PAGE_SIZE, PAGE_SIZE]
    finally:
        source.close()


def test_below_4_gib_comes_first(tmp_path: Path) -> None:
    """Inside of one piece as well: the search does not begin at the end of 16 GiB."""
    border = 1 << 32
    places = [0, border - PAGE_SIZE, border, 3 * border]
    path = write_sparse(tmp_path / "ram", 4 * border, [(at, EYE) for at in places])
    source = Source(path)
    try:
        found = list(eye_catchers(Space(source, [Extent(0, 4 * border, 0)])))
    finally:
        source.close()
    assert found == [border - PAGE_SIZE, 0, 3 * border, border]


def test_the_search_ends_at_the_first_sound_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is below it is not read."""
    path = write_sparse(tmp_path / "ram", 64 * MIB, [(60 * MIB, SMALL), (0, b"x" * 32 * MIB)])
    lowest = [1 << 62]
    preadv = os.preadv

    def note(fd: int, buffers: list[memoryview], offset: int) -> int:
        lowest[0] = min(lowest[0], offset)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", note)
    with Image(path) as image:
        assert image.find_module().address == 60 * MIB
    assert lowest[0] >= 59 * MIB


def test_memory_full_of_eye_catchers_does_not_hold_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is found a bounded number is kept; a sound module above it all is found as ever."""
    most = 1000
    monkeypatch.setattr(scan, "MAX_CANDIDATES", most)
    count = 2 * most
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.write((EYE + bytes(24)).ljust(PAGE_SIZE, b"\xff") * count)
    source = Source(path)
    try:
        found = list(eye_catchers(Space(source, [Extent(0, count * PAGE_SIZE, 0)])))
    finally:
        source.close()
    assert found == [(count - 1 - index) * PAGE_SIZE for index in range(most)]
    with Image(path) as image:
        assert image.find_module().address == (count - 1) * PAGE_SIZE
        assert len(image.find_modules()) == 256
    with path.open("ab") as file:
        file.write(SMALL + bytes(PAGE_SIZE))
    with Image(path) as image:
        assert image.find_module().address == count * PAGE_SIZE
        assert image.find_modules()[0].address == count * PAGE_SIZE


def test_a_file_of_exbibytes_of_hole() -> None:
    """A memfd can be nearly 8 EiB large, and each address is looked at."""
    fd = os.memfd_create("vast")
    try:
        os.ftruncate(fd, (1 << 63) - PAGE_SIZE)
        os.pwrite(fd, SMALL, 1 << 60)
        with Image(f"/proc/{os.getpid()}/fd/{fd}") as image:
            assert image.find_module().address == 1 << 60
            os.pwrite(fd, SMALL, 1 << 31)
            assert [found.address for found in image.find_modules()] == [1 << 31, 1 << 60]
    finally:
        os.close(fd)


def test_several_modules_the_sound_ones_first(tmp_path: Path) -> None:
    broken = SMALL[:-PAGE_SIZE] + SMALL[-PAGE_SIZE:][:12] + bytes(2) + SMALL[-PAGE_SIZE:][14:]
    parts = [(MIB, SMALL), (3 * MIB, broken), (5 * MIB, SMALL), (7 * MIB, broken)]
    with Image(write_sparse(tmp_path / "ram", 20 * MIB, parts)) as image:
        found = [one.address for one in image.find_modules()]
        assert found == [5 * MIB, MIB, 7 * MIB, 3 * MIB]
        assert image.find_module().address == 5 * MIB


def test_a_module_image_has_no_addresses(tmp_path: Path) -> None:
    (tmp_path / "module").write_bytes(SMALL)
    with Image(tmp_path / "module") as image:
        assert image.kind == "module"
        assert [(one.address, one.size_bytes) for one in image.regions()] == [(None, len(SMALL))]
        assert not image.has(0, 1)
        assert image.read_phys(0, PAGE_SIZE) == b""
        assert image.read(PAGE_SIZE, PAGE_SIZE) == SMALL[PAGE_SIZE : 2 * PAGE_SIZE]
        (found,) = image.find_modules()
        assert found.read_page(0) == SMALL[:PAGE_SIZE]
        assert found.read_page(3) == SMALL[-PAGE_SIZE:]


def test_a_module_whose_start_is_missing_has_its_other_pages(tmp_path: Path) -> None:
    with Image(write_sparse(tmp_path / "ram", 20 * MIB, [(0, SMALL[PAGE_SIZE:])])) as image:
        found = image.find_module()
        assert (found.address, found.size_bytes) == (0, 3 * PAGE_SIZE)
        assert found.read_page(0) is None
        assert found.read_page(1) == SMALL[PAGE_SIZE : 2 * PAGE_SIZE]


@pytest.mark.parametrize("offset", [-1, FILE_BYTES, 1 << 63, 1 << 200])
def test_reads_outside_of_the_file_are_empty(offset: int, counting: Path) -> None:
    source = Source(counting)
    try:
        assert source.read(offset, 10) == b""
        assert source.read(0, 1 << 200) == bytes(range(FILE_BYTES))
        assert list(source.data_runs_from_end(0, 1 << 200)) == [(0, FILE_BYTES)]
    finally:
        source.close()


def test_a_read_that_comes_in_parts(counting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 7), at))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:7]], at))
    source = Source(counting)
    buffer = bytearray(FILE_BYTES + 50)
    try:
        assert source.read(3, 1000) == bytes(range(3, FILE_BYTES))
        assert source.read_into(5, memoryview(buffer)) == FILE_BYTES - 5
        assert buffer[: FILE_BYTES - 5] == bytes(range(5, FILE_BYTES))
    finally:
        source.close()


def test_data_that_go_away_while_they_are_listed(
    counting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole where there were data a moment ago: the list goes on and ends."""
    calls: list[int] = []

    def vanishing(fd: int, offset: int, whence: int) -> int:
        calls.append(offset)
        if whence == os.SEEK_HOLE or len(calls) < 20:
            return offset
        raise OSError(errno.ENXIO, "nothing more")

    source = Source(counting)
    monkeypatch.setattr(os, "lseek", vanishing)
    try:
        runs = list(source.data_runs_from_end(0, FILE_BYTES))
    finally:
        source.close()
    assert len(calls) < 50
    assert runs == sorted(runs, reverse=True)
