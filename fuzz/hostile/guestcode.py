"""The code target: programs that no kernel is, on the real processor of the emulated machine.

    input: u8   mode: plain, 2-level, PAE, long, 16 bit protected, real; modulo 6
           u8   interrupts on (bit 0), user mode (bit 1), task gates (bit 2), no handlers (bit 3)
           u8   how many patches
           16 each   patches of the tables: address of 8 bytes in the first 128 KiB, and a value
           the rest  code

    0x1000 GDT   0x2000 IDT   0x3000 TSSs   0x4000 handlers   0x10000 page tables   0xF0000 code

**What must hold.** The guest ends, waits, or goes on for longer than it is watched; nothing is
raised; and the same program leaves the same registers, memory, time and end.
"""

from __future__ import annotations

import hashlib
import struct
from random import Random

from hostile import bytewise
from hostile.codepieces import PIECES, pieces
from hostile.target import Target, expect
from xenlive.machine.emulated.processor.exits import Segment
from xenlive.machine.emulated.world import WORLD_IDLE, Guest, World

PLAIN, TWO_LEVEL, PAE, LONG, SEGMENTED, REAL = range(6)
INTERRUPTS, USER, TASKS, NO_HANDLERS = 1, 2, 4, 8
MAX_BYTES = 1024
_PATCH = struct.Struct("<QQ")
_MEMORY_BYTES = 4 << 20
_SPIN_BLOCKS = 60_000
_EXITS_MAX = 250
_TIME_NS = 20_000_000

_GDT, _IDT, _TSS, _HANDLERS, _TABLES, _CODE, _STACK = (
    *(0x1000, 0x2000, 0x3000, 0x4000, 0x10000, 0xF0000, 0x9000),
)
_PATCHED = 0x20000
# What has a descriptor: null, code, data, code of 64 and 16 bits, user code and data, LDT, TSSs.
_CODE_32, _DATA, _CODE_64, _CODE_16, _USER_CODE, _USER_DATA = 8, 0x10, 0x18, 0x20, 0x2B, 0x33
_LDT_AT, _MAIN_TASK, _TASK = 0x38, 0x40, 0x50
_DESCRIPTORS = (
    *(0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF, 0x000F9B000000FFFF),
    *(0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x0000820031000FFF),
    *(0x00008B0030000067, 0, 0x0000890032000067, 0, 0x0000810033000067),
)
_USER_CODE_64 = 0x00AFFB000000FFFF


def check_code(data: bytes) -> str:
    """Runs the program twice, and says how it ended."""
    first, word = _run(data)
    again, _ = _run(data)
    expect(first == again, "the same program gives the same run")
    return word


def _run(data: bytes) -> tuple[str, str]:
    with World() as world:
        guest = world.add_guest("hostile", _MEMORY_BYTES, spin_limit=_SPIN_BLOCKS)
        _prepare(guest, data)
        vcpu, exits = guest.vcpu, [0]

        def count(_: object) -> None:
            exits[0] += 1
            if exits[0] >= _EXITS_MAX:
                vcpu.pause()

        vcpu.on_exit = count
        came_to = world.run(until=lambda: exits[0] >= _EXITS_MAX, until_ns=_TIME_NS)
        if came_to == WORLD_IDLE:
            world.give_up()
        seen = hashlib.blake2b(repr((guest.stop, vcpu.blocks, world.clock.now_ns)).encode())
        seen.update(repr(vcpu.save()).encode())
        for at, piece in guest.domain.space.pieces():
            seen.update(at.to_bytes(8, "little") + piece)
        if guest.stop is not None:
            expect(str(guest.stop).isprintable(), "an end is one line")
        word = guest.stop.kind if guest.stop is not None else came_to
        return seen.hexdigest(), word


# ---- the machine before the first instruction ----------------------------------------------------


def _prepare(guest: Guest, data: bytes) -> None:
    head = data[:3].ljust(3, b"\0")
    mode, flags = head[0] % 6, head[1]
    end = 3 + head[2] * _PATCH.size
    space = guest.domain.space
    space.write(0, b"\xf4" * (1 << 20))  # who goes astray halts
    for address, content in _memory(mode, flags):
        space.write(address, content)
    for at in range(3, min(end, len(data)), _PATCH.size):
        address, value = _PATCH.unpack(data[at : at + _PATCH.size].ljust(_PATCH.size, b"\0"))
        space.write(address % _PATCHED & ~7, value.to_bytes(8, "little"))
    space.write(_CODE, data[end:] + b"\xf4")
    _set_processor(guest, mode, flags)


def _memory(mode: int, flags: int) -> list[tuple[int, bytes]]:
    descriptors = list(_DESCRIPTORS)
    if mode == LONG:
        descriptors[5] = _USER_CODE_64
    parts = [
        (_GDT, struct.pack(f"<{len(descriptors)}Q", *descriptors)),
        (_IDT, b"".join(_gate(mode, flags, vector) for vector in range(256))),
        (_TSS, _task(_STACK, _HANDLERS)),
        (_TSS + 0x200, _task(_STACK - 0x800, _HANDLERS)),
        # Handlers take the error code off if they were given one by chance, or come back.
        (_HANDLERS, b"\x83\xc4\x04\xcf" if mode != LONG else b"\x48\x83\xc4\x08\x48\xcf"),
        (_HANDLERS + 0x10, b"\xcf" if mode != LONG else b"\x48\xcf"),
    ]
    if mode == REAL:
        parts.append((0, struct.pack("<HH", _HANDLERS + 0x10, 0) * 256))
    if mode == TWO_LEVEL:
        large = [n << 22 | 0xE7 for n in range(1024)]
        parts.append((_TABLES, struct.pack("<1024I", _TABLES + 0x1007, *large[1:])))
        parts.append((_TABLES + 0x1000, struct.pack("<1024I", *(n << 12 | 7 for n in range(1024)))))
    elif mode in (PAE, LONG):
        top = 1 if mode == PAE else 7
        low = _TABLES + (0x1000 if mode == LONG else 0)
        parts.append((_TABLES, struct.pack("<512Q", *[_TABLES + 0x1007] * 256, *[0] * 256)))
        tables = [(low + 0x1000) | top, (low + 0x2000) | top, 0, 0]
        parts.append((low, struct.pack("<4Q", *tables)))
        small = [n << 12 | 7 for n in range(512)]
        big = [n << 21 | 0xE7 for n in range(512)]
        parts.append((low + 0x1000, struct.pack("<512Q", (low + 0x3000) | 7, *big[1:])))
        parts.append((low + 0x2000, struct.pack("<512Q", *big)))
        parts.append((low + 0x3000, struct.pack("<512Q", *small)))
    return parts


def _gate(mode: int, flags: int, vector: int) -> bytes:
    if flags & NO_HANDLERS:
        return bytes(16 if mode == LONG else 8)
    has_error = vector in (8, 10, 11, 12, 13, 14, 17)
    handler = _HANDLERS + 0x10 * (not has_error)
    if mode == LONG:
        return struct.pack("<HHHHQ", handler, _CODE_64, 0xEE00, 0, 0)
    if flags & TASKS and vector % 2:
        return struct.pack("<HHHH", 0, _TASK, 0xE500, 0)
    return struct.pack("<HHHH", handler, _CODE_32, 0xEE00, 0)


def _task(stack: int, entry: int) -> bytes:
    words = [0, stack, 0x10, stack, 0x10, stack, 0x10, _TABLES, entry, 2, *[0] * 4, stack]
    words += [stack, 0, 0, _DATA, _CODE_32, _DATA, _DATA, 0, 0, _LDT_AT, 0x680000]
    return struct.pack("<26I", *words)


def _set_processor(guest: Guest, mode: int, flags: int) -> None:
    vcpu = guest.vcpu
    vcpu.enter_pvh(_CODE, 0x8000)
    cpu = vcpu.engine
    cpu.set_reg("rsp", _STACK)
    is_user = flags & USER and mode != REAL
    cpl = 3 if is_user else 0
    if mode in (TWO_LEVEL, PAE, LONG):
        cpu.set_reg("cr4", 0x10 if mode == TWO_LEVEL else 0x20)
        cpu.set_reg("cr3", _TABLES)
        if mode == LONG:
            cpu.set_reg("efer", 0x900)
        cpu.set_reg("cr0", 0x80000011)
    cpu.set_segment("gdt", Segment(0, _GDT, len(_DESCRIPTORS) * 8 - 1, 0))
    cpu.set_segment("idt", Segment(0, 0 if mode == REAL else _IDT, 0xFFF, 0))
    cpu.set_segment("tr", Segment(_MAIN_TASK, _TSS, 0x67, 0x8B00))
    code = _USER_CODE if is_user else _CODE_32
    data = _USER_DATA if is_user else _DATA
    high = cpl << 13
    if mode == REAL:
        cpu.set_reg("cr0", 0x10)
        cpu.set_segment("cs", Segment(_CODE >> 4, _CODE, 0xFFFF, 0x9B00))
        for name in ("ss", "ds", "es"):
            cpu.set_segment(name, Segment(0, 0, 0xFFFF, 0x9300))
        cpu.set_reg("rip", 0)
    else:
        width = {LONG: 0x00A09B00, SEGMENTED: 0x00809B00}.get(mode, 0x00C09B00)
        selector = {LONG: _CODE_64, SEGMENTED: _CODE_16}.get(mode, _CODE_32)
        cpu.set_segment("cs", Segment(code if is_user else selector, 0, 0xFFFFFFFF, width | high))
        for name in ("ss", "ds", "es"):
            cpu.set_segment(name, Segment(data, 0, 0xFFFFFFFF, 0x00C09300 | high))
    cpu.set_reg("eflags", 0x202 if flags & INTERRUPTS else 2)
    cpu.set_privilege(cpl)


# ---- inputs --------------------------------------------------------------------------------------


def random_patch(rng: Random) -> bytes:
    """Eight bytes of one of the tables: the tables' own addresses, a border, anything."""
    table = rng.choice(
        (_GDT, _IDT, _TSS, _TSS + 0x200, _HANDLERS, *[_TABLES + 0x1000 * n for n in range(5)])
    )
    kind = rng.randrange(4)
    if kind == 0:
        value = rng.choice((_TABLES, _TABLES + 0x1000, _TABLES + 0x2000)) | rng.randrange(4096)
    elif kind == 1:
        value = rng.choice(bytewise.EDGES_64)
    elif kind == 2:  # a descriptor of any type
        value = rng.getrandbits(64) & ~(0xFF << 40) | (rng.randrange(256) | 0x80) << 40
    else:
        value = rng.getrandbits(64)
    return _PATCH.pack(table + 8 * rng.choice((*range(14), rng.randrange(512))), value)


def random_program(rng: Random) -> bytes:
    """Some patches, and code of pieces that mean harm, of random bytes, or of both."""
    mode, flags = rng.randrange(6), rng.randrange(16) if rng.random() < 0.5 else rng.randrange(2)
    patches = [random_patch(rng) for _ in range(rng.choice((0, 0, 0, 1, 2, 4)))]
    bits = {LONG: 64, SEGMENTED: 16, REAL: 16}.get(mode, 32)
    code = b"".join(pieces(rng, bits) for _ in range(rng.randrange(1, 12)))
    head = bytes([mode, flags, len(patches)])
    return (head + b"".join(patches) + code)[:MAX_BYTES]


def code_seeds() -> list[bytes]:
    """Each piece alone in each mode, and some programs."""
    rng = Random(5)
    seeds = [random_program(rng) for _ in range(30)]
    modes = ((PLAIN, 32), (LONG, 64), (REAL, 16))
    for mode, bits in modes:
        seeds += [bytes([mode, INTERRUPTS, 0]) + piece(rng, bits) for piece in PIECES]
    return list(dict.fromkeys(seeds))


def mutate_code(data: bytes, rng: Random) -> bytes:
    """Another program, or one with other bytes or other tables."""
    kind = rng.randrange(4)
    if kind < 2 or len(data) < 4:
        return random_program(rng)
    changed = bytearray(data)
    if kind == 2:
        bytewise.change(changed, rng, MAX_BYTES)
    else:
        changed[2] = min(changed[2] + 1, 255)
        changed[3:3] = random_patch(rng)
    return bytes(changed[:MAX_BYTES])


TARGET = Target(
    name="code",
    about="programs that attack the emulated processor, and the tables it works with",
    seeds=code_seeds,
    mutate=mutate_code,
    check=check_code,
    max_bytes=MAX_BYTES,
)
