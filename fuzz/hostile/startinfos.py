"""The start info target: a block in memory, parsed, and what is done with what it says.

     0 page       u32, where in memory the block's part of memory begins
     4 offset     u16, of the start info in it
     6 block      up to 8192 bytes

Beside it lie two modules, a sound one and one that is not, for the block to name: rightly, with
another size, or one inside the other.
"""

from __future__ import annotations

import struct
from functools import cache
from random import Random

from vectors import minios

from hostile import bytewise
from hostile.soundness import is_sound
from hostile.target import Target, expect
from xenlive.abi.layout import Layout
from xenlive.abi.start_info import HVM_MEMMAP_TABLE_ENTRY, HVM_MODLIST_ENTRY, HVM_START_INFO
from xenlive.errors import ImageError, OutOfSpace
from xenlive.kexec import find, start_info
from xenlive.kexec.start_info import StartInfo
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, PLACEMENT_LIMIT, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

_HEAD = struct.Struct("<IH")
BLOCK_BYTES = 2 * PAGE_SIZE
SOUND_AT, BROKEN_AT = 0x5000_0000, 0x5001_0000
MODULE_BYTES = 4 * PAGE_SIZE
PLACED_PAGES = (1, 18, 4019)
# What MemoryMap says of ranges, besides what the block's own docstring speaks of.
CODES = {
    "start-info-outside",
    "start-info-magic",
    "modlist-entries",
    "modlist-outside",
    "memmap-entries",
    "memmap-outside",
    "memmap-overlap",
    "memmap-wrap",
    "cmdline-outside",
    "cmdline-endless",
}


def check_start_info(data: bytes) -> str:
    """One block: the code of what is wrong with it, or what came of it."""
    page, offset = _HEAD.unpack_from(data.ljust(_HEAD.size, b"\0"))
    base = page % 0x40000 * PAGE_SIZE
    block = bytearray(data[_HEAD.size :][:BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0"))
    modules = bytearray(_modules())
    memory = GuestMemory([(base, block), (SOUND_AT, modules)])
    before = bytes(block), bytes(modules)
    address = PhysAddr(base + offset)
    try:
        found = start_info.parse_start_info(memory, address)
    except ImageError as error:
        expect(error.code in CODES, f"{error.code!r} is a known code")
        expect(str(error).isprintable(), f"{error.code} has one line of text")
        expect((bytes(block), bytes(modules)) == before, "parsing writes nothing")
        return error.code
    expect(_same(found, start_info.parse_start_info(memory, address)), "parsed alike twice")
    _check_reserved(found, memory)
    _check_rebuilt(found)
    _check_placing(found)
    word = _check_finding(found, memory)
    expect((bytes(block), bytes(modules)) == before, "sound modules are left as they are")
    return word


def _same(one: StartInfo, other: StartInfo) -> bool:
    names = ("version", "flags", "modules", "cmdline", "memmap", "rsdp_paddr")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _check_reserved(found: StartInfo, memory: GuestMemory) -> None:
    parts = found.reserved()[: -len(found.modules) or None]
    for address, size in parts:
        expect(memory.contains(PhysAddr(address), size), "the block's parts are in memory")


def _check_rebuilt(found: StartInfo) -> None:
    """What was parsed can be handed on as it is, and says the same."""
    at = PhysAddr(0x8000)
    line = found.cmdline.encode("utf-8", "surrogateescape")
    built = start_info.build_start_info(at, found.memmap, found.modules, line, found.rsdp_paddr)
    memory = GuestMemory([(at, bytearray(built))])
    again = start_info.parse_start_info(memory, at)
    again.version, again.flags = found.version, found.flags
    expect(_same(found, again), "what is built from a start info says what it said")


def _check_placing(found: StartInfo) -> None:
    taken = found.reserved()
    for n_pages in PLACED_PAGES:
        size = n_pages * PAGE_SIZE
        try:
            address = found.memmap.place_module(n_pages, taken)
        except OutOfSpace:
            continue
        expect(address % PAGE_SIZE == 0, "a module is placed at a page boundary")
        expect(address + size <= PLACEMENT_LIMIT, "below 4 GiB")
        expect(found.memmap.is_ram(address, size), "in RAM")
        clear = all(
            address >= at + length or at >= address + size for at, length in taken if length
        )
        expect(clear, "outside of all that is reserved")


def _check_finding(found: StartInfo, memory: GuestMemory) -> str:
    module, reason = find.find_kexec_module(found, memory)
    expect(not reason or reason.isprintable(), "the reason is one line")
    word = "start info"
    if module is not None:
        named = [(paddr, size) for paddr, size, _ in found.modules]
        expect((module.address, module.size_bytes) in named, "what is found was named")
        page = memory.read(module.admin_address, PAGE_SIZE)
        expect(is_sound(page, module.size_bytes), "what is found is sound")
        module.release()
        word = "start info, module found"
    taken = found.reserved()
    survivor = find.find_surviving_module(memory, found.memmap, taken, None, lambda module: True)
    if survivor is not None:
        page = memory.read(survivor.admin_address, PAGE_SIZE)
        expect(is_sound(page, survivor.size_bytes), "a survivor is sound")
        for at, size in taken:
            apart = survivor.address >= at + size or at >= survivor.address + survivor.size_bytes
            expect(apart or not size, "a survivor reaches into nothing that is reserved")
        survivor.release()
        word += ", survivor"
    return word + (", one of ours is not sound" if reason else "")


@cache
def _modules() -> bytes:
    """A sound module of four pages, a gap, and one that has lost a record that owns pages."""
    sound = minios.host_image("empty4")
    broken = bytearray(sound)
    broken[3 * PAGE_SIZE + 14] = 0
    gap = bytes(BROKEN_AT - SOUND_AT - len(sound))
    return b"".join([sound, gap, bytes(broken), bytes(PAGE_SIZE)])


def start_info_seeds() -> list[bytes]:
    """Blocks of a real kernel, and of ours that name the modules."""
    seeds = []
    for entry in minios.entries("start_info"):
        address = entry["address"]
        block = bytes(address % PAGE_SIZE) + minios.files()[str(entry["file"])]
        seeds.append(_HEAD.pack(address // PAGE_SIZE, address % PAGE_SIZE) + block)
    sound, broken = (SOUND_AT, MODULE_BYTES), (BROKEN_AT, MODULE_BYTES)
    lists = [[sound], [broken], [broken, sound], [(0x10000, 512), sound, broken], []]
    for number, modules in enumerate(lists):
        ranges = [(0, 0x9FC00, E820_RAM), (0x100000, 0x6000_0000, E820_RAM), (1 << 32, 1 << 31, 1)]
        memmap = MemoryMap(MemoryRange(*range_) for range_ in ranges)
        line = "console=hvc0 CONFIG_KEXEC=y" * number
        at = PhysAddr(0x7000 + 8 * number)
        block = start_info.build_start_info(at, memmap, modules, line)
        seeds.append(_HEAD.pack(at // PAGE_SIZE, at % PAGE_SIZE) + bytes(8 * number) + block)
    return seeds


def mutate_start_info(data: bytes, rng: Random) -> bytes:
    """Another block: a field of its head or of one of its entries is changed, or any byte."""
    changed = bytearray(data.ljust(_HEAD.size + HVM_START_INFO.size, b"\0"))
    page, offset = _HEAD.unpack_from(changed)
    head = _HEAD.size + offset
    kind = rng.randrange(10)
    if kind < 3:
        _change_field(changed, rng, head, HVM_START_INFO)
    elif kind < 6:
        _change_entry(changed, rng, head, page)
    elif kind == 6:
        bytewise.put_number(changed, rng, rng.choice((0, 4)), rng.choice((2, 4)))
    elif kind == 7:
        _name_a_module(changed, rng, head, page)
    else:
        bytewise.change(changed, rng, _HEAD.size + BLOCK_BYTES)
    return bytes(changed)


def _change_field(changed: bytearray, rng: Random, at: int, layout: Layout) -> None:
    field = rng.choice(layout.fields)
    bytewise.put_number(changed, rng, at + field.offset, field.size)


def _list_at(changed: bytearray, head: int, page: int, name: str) -> int:
    """Where in the input a list lies that the head points to; -1 if it is elsewhere."""
    at = head + HVM_START_INFO.offset_of(name)
    pointer = int.from_bytes(changed[at : at + 8], "little")
    return pointer - page % 0x40000 * PAGE_SIZE + _HEAD.size


def _change_entry(changed: bytearray, rng: Random, head: int, page: int) -> None:
    layout, name = rng.choice(
        ((HVM_MEMMAP_TABLE_ENTRY, "memmap_paddr"), (HVM_MODLIST_ENTRY, "modlist_paddr"))
    )
    at = _list_at(changed, head, page, name) + rng.randrange(4) * layout.size
    _change_field(changed, rng, at, layout)


def _name_a_module(changed: bytearray, rng: Random, head: int, page: int) -> None:
    at = _list_at(changed, head, page, "modlist_paddr") + rng.randrange(3) * HVM_MODLIST_ENTRY.size
    if _HEAD.size <= at <= len(changed) - 16:
        paddr = rng.choice((SOUND_AT, BROKEN_AT)) + rng.choice((0, 0, 0, PAGE_SIZE, 8))
        size = rng.choice((4, 4, 4, 3, 5, 0, 0x10000)) * PAGE_SIZE - rng.choice((0, 0, 0, 1))
        changed[at : at + 16] = struct.pack("<QQ", paddr, max(size, 0))


TARGET = Target(
    name="start-info",
    about="a start info block, parsed, and the modules it names or that survived",
    seeds=start_info_seeds,
    mutate=mutate_start_info,
    check=check_start_info,
    max_bytes=_HEAD.size + BLOCK_BYTES,
)
