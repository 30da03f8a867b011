"""ELF cores of Xen and QEMU: real ones, all that their formats allow, and what they must not."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
from dump.cores import (
    INVALID,
    MAGIC_PV,
    Segment,
    XenCore,
    write_elf_core,
    write_sparse,
    xen_note,
)
from vectors import minios

from xenlive.dump import Image, space
from xenlive.errors import ImageError
from xenlive.memory.address import PAGE_SIZE

MIB = 1 << 20
MODULE = minios.module_image("p9-18-64", "boot1-boot")
N_PAGES = len(MODULE) // PAGE_SIZE
REAL_PLACE = 0x1EE000
CORES = Path(minios.FOLDER) / "cores"


def regions(image: Image) -> list[tuple[int | None, int]]:
    return [(region.address, region.size_bytes) for region in image.regions()]


def refused(path: Path, kind: str = "auto") -> str:
    """The code of the one error that an image gives."""
    with pytest.raises(ImageError) as raised, Image(path, kind) as image:
        image.find_module()
    assert "\n" not in str(raised.value)
    return raised.value.code


def assert_module_at(path: Path, kind: str, address: int) -> None:
    with Image(path) as image:
        assert image.kind == kind
        found = image.find_module()
        assert (found.address, found.size_bytes) == (address, len(MODULE))
        assert found.admin_page == MODULE[-PAGE_SIZE:]
        pages = [found.read_page(index) for index in range(N_PAGES)]
        assert b"".join(page or b"" for page in pages) == MODULE
        assert found.read_page(N_PAGES) is None
        assert found.read_page(-1) is None
        assert image.read_phys(address, len(MODULE)) == MODULE
        assert image.has(address, len(MODULE))
        assert [one.address for one in image.find_modules()] == [address]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("qemu.elf", "elf-core"), ("xen-hvm.core", "xen-core"), ("xen-pv.core", "xen-core")],
)
def test_cores_that_others_wrote(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.decompress((CORES / f"{name}.gz").read_bytes()))
    assert_module_at(path, kind, REAL_PLACE)
    with Image(path) as image:
        hole = [] if kind == "elf-core" else [(0, 0xA0000), (0xC0000, 2 * MIB - 0xC0000)]
        assert regions(image) == (hole or [(0, 2 * MIB), (0xFFFF0000, 0x10000)])


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("many", [False, True])
def test_segments_at_any_offset_of_the_file(bits: int, many: bool, tmp_path: Path) -> None:
    segments = [
        Segment(0, 0xA0000),
        Segment(0xC0000, 0x1000),
        Segment(MIB, MIB, [(MIB - len(MODULE), MODULE)]),
        Segment(0xFFFC0000, 0x40000),
    ]
    path = write_elf_core(tmp_path / "core", segments, bits=bits, many=many, note=b"\1" * 37)
    assert_module_at(path, "elf-core", 2 * MIB - len(MODULE))
    with Image(path) as image:
        expected = [(0, 0xA0000), (0xC0000, 0x1000), (MIB, MIB), (0xFFFC0000, 0x40000)]
        assert regions(image) == expected


def test_more_segments_than_the_header_can_count(tmp_path: Path) -> None:
    """70,000 of a page each, the highest first, so that none goes on from the one before."""
    count = 70_000
    segments = [Segment(index * 2 * PAGE_SIZE, PAGE_SIZE) for index in reversed(range(count))]
    for index in range(N_PAGES):
        data = MODULE[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
        segments.append(Segment((count * 2 + index) * PAGE_SIZE, PAGE_SIZE, [(0, data)]))
    path = write_elf_core(tmp_path / "core", segments, many=True)
    assert_module_at(path, "elf-core", count * 2 * PAGE_SIZE)


def test_memory_above_4_gib(tmp_path: Path) -> None:
    """The module is below, whatever is above; but if there is none below, one above is found."""
    stray = Segment(6 << 30, MIB, [(0, MODULE)])
    both = [Segment(0, MIB, [(0, MODULE)]), stray]
    assert_first(write_elf_core(tmp_path / "both", both), [0, 6 << 30])
    assert_module_at(write_elf_core(tmp_path / "above", [stray]), "elf-core", 6 << 30)


def assert_first(path: Path, addresses: list[int]) -> None:
    with Image(path) as image:
        assert image.find_module().address == addresses[0]
        assert [found.address for found in image.find_modules()] == addresses


def test_what_was_not_dumped_is_not_there(tmp_path: Path) -> None:
    segment = Segment(MIB, PAGE_SIZE, [(0, b"x" * PAGE_SIZE)], memory_size=MIB)
    absent = Segment(4 * MIB, 0, memory_size=MIB)
    with Image(write_elf_core(tmp_path / "core", [segment, absent])) as image:
        assert regions(image) == [(MIB, PAGE_SIZE)]
        assert image.has(MIB, PAGE_SIZE)
        assert not image.has(MIB, PAGE_SIZE + 1)
        assert not image.has(4 * MIB, 1)
        assert image.read_phys(MIB + 10, PAGE_SIZE) == b"x" * (PAGE_SIZE - 10)
        assert image.read_phys(MIB - 1, 2) == image.read_phys(4 * MIB, 1) == b""


def test_a_module_of_which_a_page_was_not_dumped(tmp_path: Path) -> None:
    missing = 4
    split = missing * PAGE_SIZE
    rest = MODULE[split + PAGE_SIZE :]
    segments = [
        Segment(MIB, split, [(0, MODULE[:split])]),
        Segment(MIB + split + PAGE_SIZE, len(rest), [(0, rest)]),
    ]
    with Image(write_elf_core(tmp_path / "core", segments)) as image:
        found = image.find_module()
        assert (found.address, found.size_bytes) == (MIB, len(MODULE))
        there = [index for index in range(N_PAGES) if found.read_page(index) is not None]
        assert there == [index for index in range(N_PAGES) if index != missing]


def test_memory_that_starts_in_the_middle_of_a_page(tmp_path: Path) -> None:
    """As QEMU writes when it is asked for a range."""
    start = MIB + 1728
    data = b"KexecMem" * 100 + bytes(MIB)
    place = (2 * MIB) - start
    data = data[:place] + MODULE
    path = write_elf_core(tmp_path / "core", [Segment(start, len(data), [(0, data)])])
    assert_module_at(path, "elf-core", 2 * MIB)


def test_segments_that_say_the_same_twice(tmp_path: Path) -> None:
    """With paging QEMU writes a header for each mapping of the same memory."""
    path = write_elf_core(tmp_path / "core", [Segment(MIB, MIB, [(0, MODULE)]), Segment(0, 0)])
    whole = path.read_bytes()
    # The second segment becomes a part of the first: same memory, same bytes of the file.
    first, second = 64 + 56, 64 + 112
    offset = struct.unpack_from("<Q", whole, first + 8)[0]
    header = struct.pack("<IIQQQQQQ", 1, 0, offset + 4096, 7, MIB + 4096, 8192, 8192, 0)
    path.write_bytes(whole[:second] + header + whole[second + 56 :])
    assert_module_at(path, "elf-core", MIB)
    # And now it contradicts it.
    header = struct.pack("<IIQQQQQQ", 1, 0, offset + 4097, 7, MIB + 4096, 8192, 8192, 0)
    path.write_bytes(whole[:second] + header + whole[second + 56 :])
    assert refused(path) == "memory-overlap"


@pytest.mark.parametrize("magic", [MAGIC_PV, XenCore([], {}).magic])
def test_frames_in_any_order_and_invalid_ones(magic: int, tmp_path: Path) -> None:
    """The module's frames count down and lie between others; invalid ones end the table."""
    place = 0x3000
    frames, pages = [], {}
    for index in reversed(range(N_PAGES)):
        frames += [0x9000 + index * 2, place + index]
        pages[len(frames) - 1] = MODULE[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
    pages[len(frames)] = MODULE[-PAGE_SIZE:]
    core = XenCore([*frames, INVALID, INVALID, 7, INVALID], pages, magic=magic)
    path = core.write(tmp_path / "core")
    assert_module_at(path, "xen-core", place * PAGE_SIZE)
    with Image(path) as image:
        assert image.has(7 * PAGE_SIZE, PAGE_SIZE)
        known = [(place * PAGE_SIZE, len(MODULE))]
        known += [((0x9000 + index * 2) * PAGE_SIZE, PAGE_SIZE) for index in range(N_PAGES)]
        assert regions(image) == [(7 * PAGE_SIZE, PAGE_SIZE), *known]


def test_more_pages_than_16_bits_count(tmp_path: Path) -> None:
    """300 MiB with a hole, over many reads of the table."""
    frames = [*range(40_000), *range(50_000, 80_000), 1 << 30, (1 << 30) + 1]
    first = frames.index(60_000)
    pages = {first + index: MODULE[index * PAGE_SIZE :][:PAGE_SIZE] for index in range(N_PAGES)}
    path = XenCore(frames, pages).write(tmp_path / "core")
    assert_module_at(path, "xen-core", 60_000 * PAGE_SIZE)
    with Image(path) as image:
        assert regions(image) == [
            (0, 40_000 * PAGE_SIZE),
            (50_000 * PAGE_SIZE, 30_000 * PAGE_SIZE),
            ((1 << 30) * PAGE_SIZE, 2 * PAGE_SIZE),
        ]


def test_pages_of_another_size(tmp_path: Path) -> None:
    data = MODULE.ljust(5 * 16384, b"\0")
    pages = {index: data[index * 16384 :][:16384] for index in range(5)}
    core = XenCore([8, 9, 10, 11, 12], pages, page_size=16384)
    assert_module_at(core.write(tmp_path / "core"), "xen-core", 8 * 16384)


PLAIN = {index: MODULE[index * PAGE_SIZE :][:PAGE_SIZE] for index in range(N_PAGES)}


def plain(**lies: object) -> XenCore:
    return XenCore(list(range(N_PAGES)), PLAIN, **lies)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("core", "code"),
    [
        (plain(magic=0xF00FEBEF), "xen-core-header"),
        (plain(page_size=0), "xen-core-header"),
        (plain(page_size=3000), "xen-core-header"),
        (plain(n_pages=N_PAGES + 1), "xen-core-size"),
        (plain(n_pages=INVALID), "xen-core-size"),
        (plain(n_pages=0), "no-module"),
        (plain(header_note=False), "xen-core-header"),
        (plain(format_version=1 << 32), "xen-core-version"),
        (plain(names=(".shstrtab", ".note.Xen", ".xen_pages")), "xen-core-section"),
        (plain(names=(".shstrtab", ".note.Xen", "")), "xen-core-section"),
        (plain(names=(".shstrtab", ".xen_pages", "")), "xen-core-section"),
        (plain(extra_names=(".xen_pages",)), "xen-core-section"),
        (plain(extra_names=tuple(f"s{i}" for i in range(2000))), "elf-broken"),
        (plain(names=(".shstrtab",)), "no-memory"),
        (XenCore([5, 6, 5], {}), "memory-overlap"),
        (XenCore([INVALID - 1], {}), "memory-wraps"),
        (XenCore([1 << 52], {}), "memory-wraps"),
    ],
)
def test_xen_cores_that_lie(core: XenCore, code: str, tmp_path: Path) -> None:
    assert refused(core.write(tmp_path / "core")) == code


def test_a_table_of_endless_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """512 GiB of memory in a file that is one hole: all its pages would be the frame 0."""
    monkeypatch.setattr(space, "MAX_EXTENTS", 20_000)
    core = XenCore([0], {}, n_pages=1 << 27)
    path = core.write(tmp_path / "core")
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<QQ", 8192, 4096))  # where .xen_pages is, and its size
    table = at + 64
    data[at : at + 16] = struct.pack("<QQ", 1 << 30, 1 << 39)
    data[table : table + 16] = struct.pack("<QQ", 1 << 40, 1 << 30)
    write_sparse(path, (1 << 40) + (1 << 30), [(0, bytes(data))])
    assert refused(path) == "memory-pieces"


@pytest.mark.parametrize("keep", [16, 40, 63, 64, 100, 511, 520, 2000, -8, -80, -5000])
def test_xen_cores_cut_off(keep: int, tmp_path: Path) -> None:
    path = plain().write(tmp_path / "core")
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    assert refused(path) in ("truncated", "elf-broken", "xen-core-section", "no-memory")


@pytest.mark.parametrize("keep", [4, 16, 63, 64, 119, 120, 200, 5000, -1])
def test_elf_cores_cut_off(keep: int, tmp_path: Path) -> None:
    segment = Segment(0, MIB, [(0, MODULE)])
    path = write_elf_core(tmp_path / "core", [segment])
    path.write_bytes(path.read_bytes()[:keep])
    assert refused(path) in ("truncated", "elf-broken")


def test_segments_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "core"
    two = [Segment(0, 2 * PAGE_SIZE), Segment(PAGE_SIZE, PAGE_SIZE)]
    assert refused(write_elf_core(path, two)) == "memory-overlap"
    assert refused(write_elf_core(path, [Segment(0, 9, memory_size=8)])) == "elf-broken"
    assert refused(write_elf_core(path, [Segment((1 << 64) - 9, 10)])) == "memory-wraps"
    assert refused(write_elf_core(path, [])) == "no-memory"
    assert refused(write_elf_core(path, [Segment(0, PAGE_SIZE)])) == "no-module"


@pytest.mark.parametrize("count", [0, 0xFFFFFFFF, 1 << 18])
def test_numbers_of_segments_that_lie(count: int, tmp_path: Path) -> None:
    path = write_elf_core(tmp_path / "core", [Segment(0, MIB, [(0, MODULE)])], many=True)
    data = bytearray(path.read_bytes())
    sections_at = struct.unpack_from("<Q", data, 40)[0]
    struct.pack_into("<I", data, sections_at + 44, count)
    path.write_bytes(data)
    expected = {0: "no-memory", 1 << 18: "truncated"}
    assert refused(path) == expected.get(count, "elf-broken")


def test_elf_files_that_are_no_cores(tmp_path: Path) -> None:
    segment = [Segment(0, MIB, [(0, MODULE)])]
    assert refused(write_elf_core(tmp_path / "kernel", segment, type_=2)) == "elf-image"
    assert refused(write_elf_core(tmp_path / "big", segment, order=">")) == "elf-image"
    assert refused(Path("/proc/self/exe")) == "elf-image"


@pytest.mark.parametrize("magic", [b"KDUMP   ", b"makedumpfile\0\0\0\0"])
def test_compressed_dumps_are_told_what_to_do(magic: bytes, tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "dump", MIB, [(0, magic)])
    assert refused(path) == "kdump-image"
    with pytest.raises(ImageError, match="dump the memory as ELF"):
        Image(path)


def test_a_packed_file_is_to_be_unpacked_first(tmp_path: Path) -> None:
    path = tmp_path / "core.gz"
    path.write_bytes((CORES / "qemu.elf.gz").read_bytes())
    with (
        pytest.raises(ImageError, match="is packed with gzip: unpack it first"),
        Image(path) as one,
    ):
        one.find_module()


def test_a_kind_that_was_said_is_taken_for_true(tmp_path: Path) -> None:
    elf = write_elf_core(tmp_path / "elf", [Segment(0, MIB, [(0, MODULE)])])
    xen = plain().write(tmp_path / "xen")
    assert refused(elf, "xen-core") == "xen-core-section"
    assert refused(xen, "elf-core") == "no-memory"
    assert refused(elf, "module") == "no-module"
    raw = write_sparse(tmp_path / "raw", MIB, [(0, b"\x7fELF"), (PAGE_SIZE, MODULE)])
    assert refused(raw) == "elf-broken"
    assert refused(raw, "elf-core") == "elf-broken"
    with Image(raw, "memory") as image:
        assert image.find_module().address == PAGE_SIZE


def test_notes_that_lie(tmp_path: Path) -> None:
    """Lengths that go past the section, an owner that is not Xen: only the header counts."""
    path = plain().write(tmp_path / "core")
    data = bytearray(path.read_bytes())
    at = data.index(xen_note(0x2000000, b""))
    for size in (1, 0xFFFFFFF0):
        data[at + 4 : at + 8] = struct.pack("<I", size)
        path.write_bytes(data)
        assert refused(path) == "xen-core-header"
    data[at + 4 : at + 8] = bytes(4)
    data[at + 16 + 12 : at + 16 + 16] = b"Xem\0"
    path.write_bytes(data)
    assert refused(path) == "xen-core-header"
