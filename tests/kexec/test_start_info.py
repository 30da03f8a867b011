"""Start info blocks: a real Mini-OS' own, built again byte for byte, and hostile ones."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import minios

from xenlive.abi.start_info import HVM_MEMMAP_TABLE_ENTRY, HVM_START_INFO
from xenlive.errors import BadAddress, ConfigError, ImageError, ModuleError
from xenlive.kexec.find import find_kexec_module
from xenlive.kexec.start_info import (
    MAX_CMDLINE_BYTES,
    MAX_MEMMAP_ENTRIES,
    MAX_MODULES,
    build_start_info,
    parse_start_info,
)
from xenlive.memory.address import PhysAddr
from xenlive.memory.e820 import E820_RAM, E820_SOFT_RESERVED, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

BLOCKS = minios.entries("start_info")
PLACE = PhysAddr(0x1000)
RAM = MemoryMap([MemoryRange(0, 1 << 20, E820_RAM)])
# Fields of hvm_start_info, by their offset.
MAGIC, VERSION, NR_MODULES, MODLIST, CMDLINE, MEMMAP, MEMMAP_ENTRIES = 0, 4, 12, 16, 24, 40, 48


def memory_of(block: bytes | bytearray, place: int = PLACE) -> GuestMemory:
    return GuestMemory([(place, bytearray(block))])


def without_junk(block: bytes) -> bytes:
    """The block with `reserved` of the memory map's entries zero, as the header demands."""
    head = HVM_START_INFO.decode(block)
    clean = bytearray(block)
    for index in range(head["memmap_entries"]):
        end = HVM_START_INFO.size + (index + 1) * HVM_MEMMAP_TABLE_ENTRY.size
        clean[end - 4 : end] = bytes(4)
    return bytes(clean)


def test_the_junk_of_the_real_kernel_is_where_the_readme_says() -> None:
    names = [e["file"] for e in BLOCKS]
    with_junk = [n for n in names if without_junk(minios.files()[n]) != minios.files()[n]]
    assert [name[:-15] for name in with_junk] == ["mix-18-64.07.entry2", "e820-hole.07.entry2"]


@pytest.mark.parametrize("entry", BLOCKS, ids=lambda entry: entry["file"])
def test_blocks_are_read_and_built_as_the_real_ones(entry: dict[str, object]) -> None:
    block = minios.files()[str(entry["file"])]
    expected, place = entry["start_info"], entry["address"]
    assert isinstance(expected, dict)
    assert isinstance(place, int)
    parsed = parse_start_info(memory_of(block, place), PhysAddr(place))
    assert (parsed.version, parsed.flags, parsed.rsdp_paddr) == (1, 0, 0)
    assert parsed.cmdline == expected["cmdline"]
    keys = ("paddr", "size", "cmdline_paddr")
    assert parsed.modules == [tuple(m[key] for key in keys) for m in expected["modules"]]
    assert parsed.memmap.ranges() == [MemoryRange(*range_) for range_ in expected["memmap"]]
    built = build_start_info(PhysAddr(place), parsed.memmap, parsed.modules, parsed.cmdline)
    assert built == without_junk(block)


@pytest.mark.parametrize("entry", [e for e in BLOCKS if e["boot"]], ids=lambda e: e["file"])
def test_the_next_kernel_sees_the_map_without_soft_reservations(entry: dict[str, object]) -> None:
    """From the map that the guest itself had, to the block it built for its successor."""
    assert isinstance(entry["boot"], int)
    before = minios.entry(str(entry["run"]), f"boot{entry['boot'] - 1}-prekexec", "module")
    known = MemoryMap(MemoryRange(*range_) for range_ in before["guest_e820"])
    assert E820_SOFT_RESERVED in [range_.type for range_ in known.ranges()]
    block = minios.files()[str(entry["file"])]
    assert isinstance(entry["address"], int)
    place = PhysAddr(entry["address"])
    cmdline = parse_start_info(memory_of(block, place), place).cmdline
    modules = [(before["address"], before["size"])]
    built = build_start_info(place, known.for_next_kernel(), modules, cmdline)
    assert built == without_junk(block)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 50), max_size=10),
    st.lists(st.tuples(st.integers(0, 1 << 63), st.integers(0, 1 << 63), st.just(0)), max_size=5),
    st.binary(max_size=100).filter(lambda line: b"\0" not in line),
    st.integers(1, 1000),
)
def test_what_was_built_is_read_back(
    sizes: list[int], modules: list[tuple[int, int, int]], line: bytes, at: int
) -> None:
    ranges = [MemoryRange(i * 64, size, i) for i, size in enumerate(sizes) if size]
    place = PhysAddr(8 * at)
    block = build_start_info(place, MemoryMap(ranges), modules, line, rsdp_paddr=77)
    parsed = parse_start_info(memory_of(block, place), place)
    assert parsed.memmap.ranges() == ranges
    assert parsed.modules == modules
    assert parsed.cmdline.encode("utf-8", "surrogateescape") == line
    assert parsed.rsdp_paddr == 77
    again = build_start_info(place, parsed.memmap, modules, parsed.cmdline, rsdp_paddr=77)
    assert again == block
    ends = [address + size for address, size in parsed.reserved()[: -len(modules) or None]]
    assert max(ends) == place + len(block)


def test_what_build_refuses() -> None:
    with pytest.raises(BadAddress):
        build_start_info(PhysAddr(4), RAM)
    with pytest.raises(BadAddress):
        build_start_info(PhysAddr(0), RAM)
    with pytest.raises(ConfigError, match="NUL"):
        build_start_info(PLACE, RAM, cmdline="a\0b")
    build_start_info(PLACE, RAM, cmdline="a" * (MAX_CMDLINE_BYTES - 1))
    with pytest.raises(ConfigError, match="at most 4095"):
        build_start_info(PLACE, RAM, cmdline="a" * MAX_CMDLINE_BYTES)
    with pytest.raises(ModuleError):
        build_start_info(PLACE, RAM, [(0, 0)] * (MAX_MODULES + 1))
    many = MemoryMap(MemoryRange(i * 2, 1, 2) for i in range(MAX_MEMMAP_ENTRIES + 1))
    with pytest.raises(ImageError):
        build_start_info(PLACE, many)


HOSTILE: list[tuple[str, int, str, int, str]] = [
    ("magic", MAGIC, "<I", 0x336EC577, "start-info-magic"),
    ("too many modules", NR_MODULES, "<I", 0xFFFFFFFF, "modlist-entries"),
    ("more modules than memory", NR_MODULES, "<I", MAX_MODULES, "modlist-outside"),
    ("module list at 0", MODLIST, "<Q", 0, "modlist-outside"),
    ("module list far away", MODLIST, "<Q", (1 << 64) - 1, "modlist-outside"),
    ("command line far away", CMDLINE, "<Q", (1 << 64) - 1, "cmdline-outside"),
    ("command line at the end", CMDLINE, "<Q", PLACE + 4096, "cmdline-outside"),
    ("command line without an end", CMDLINE, "<Q", PLACE + 4000, "cmdline-endless"),
    ("too many ranges", MEMMAP_ENTRIES, "<I", 0xFFFFFFFF, "memmap-entries"),
    ("more ranges than memory", MEMMAP_ENTRIES, "<I", MAX_MEMMAP_ENTRIES, "memmap-outside"),
    ("memory map at 0", MEMMAP, "<Q", 0, "memmap-outside"),
    ("memory map far away", MEMMAP, "<Q", 1 << 63, "memmap-outside"),
    ("memory map at its end", MEMMAP, "<Q", PLACE + 4096 - 23, "memmap-outside"),
]


@pytest.mark.parametrize(
    ("offset", "code", "value", "problem"), [c[1:] for c in HOSTILE], ids=[c[0] for c in HOSTILE]
)
def test_hostile_blocks(offset: int, code: str, value: int, problem: str) -> None:
    block = bytearray(build_start_info(PLACE, RAM, [(0x5000, 4096)], "quiet"))
    struct.pack_into(code, block, offset, value)
    block = block.ljust(4000, b"\0").ljust(4096 - 1, b"x") + b"y"
    if problem in ("modlist-outside", "memmap-outside") and value in (64, 128):
        del block[1000:]
    with pytest.raises(ImageError) as raised:
        parse_start_info(memory_of(block), PLACE)
    assert raised.value.code == problem


@pytest.mark.parametrize("address", [0, 0x2000, PLACE - 1, PLACE + 100, 1 << 64])
def test_a_start_info_that_is_not_there(address: int) -> None:
    memory = memory_of(build_start_info(PLACE, RAM))
    with pytest.raises(ImageError) as raised:
        parse_start_info(memory, PhysAddr(address))
    assert raised.value.code in ("start-info-outside", "start-info-magic")


def test_address_0_names_nothing() -> None:
    """The header says so, even where there is memory at 0."""
    block = bytearray(build_start_info(PLACE, RAM, [(0x5000, 4096)]))
    for field, code in ((MODLIST, "modlist-outside"), (MEMMAP, "memmap-outside")):
        changed = bytearray(block)
        struct.pack_into("<Q", changed, field, 0)
        memory = GuestMemory([(0, bytearray(PLACE) + changed)])
        with pytest.raises(ImageError) as raised:
            parse_start_info(memory, PLACE)
        assert raised.value.code == code


def test_version_0_has_no_memory_map() -> None:
    """40 bytes at the very end of memory, as the header describes the first version."""
    block = bytearray(build_start_info(PLACE, RAM, cmdline="x")[:40])
    struct.pack_into("<I", block, VERSION, 0)
    struct.pack_into("<Q", block, CMDLINE, 0)
    parsed = parse_start_info(memory_of(block), PLACE)
    assert (parsed.version, parsed.memmap.ranges(), parsed.cmdline) == (0, [], "")


def test_reserved_is_the_block_and_its_modules() -> None:
    block = build_start_info(PLACE, RAM, [(0x5000, 4096), (0x9000, 1)], "quiet")
    found = parse_start_info(memory_of(block), PLACE).reserved()
    assert found == [
        (0x1000, 56),
        (0x1050, 64),
        (0x1038, 24),
        (0x1090, 6),
        (0x5000, 4096),
        (0x9000, 1),
    ]


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([entry["file"] for entry in BLOCKS]),
    st.lists(
        st.tuples(
            st.sampled_from([4, 8, 12, 16, 20, 24, 28, 40, 44, 48, 56, 64, 68, 80, 88]),
            st.one_of(st.integers(0, 200), st.integers(0, 0xFFFFFFFF)),
        ),
        max_size=4,
    ),
    st.integers(0, 250),
)
def test_any_block_is_read_or_refused(
    name: str, changes: list[tuple[int, int]], length: int
) -> None:
    block = bytearray(minios.files()[name])
    for at, value in changes:
        struct.pack_into("<I", block, at, value)
    for data in (block, block[:length]):
        memory = memory_of(bytes(data))
        try:
            parsed = parse_start_info(memory, PLACE)
        except ImageError:
            continue
        assert find_kexec_module(parsed, memory) == (None, "")
