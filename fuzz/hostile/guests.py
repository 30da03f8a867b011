"""The guest target: hypercalls that nobody would make, by two domains that know each other.

    input: calls of 64 bytes each
      0 u8   who (bit 0), 32 bit (bit 1), memory is written first (bit 2)
      1 u8   number of the hypercall
      2      5 arguments of 8 bytes
     42      22 bytes of the structure that the second argument points to

Domains have no processor here: their addresses are physical ones. Whatever they ask, an answer of a
register's size comes back, or the domain's end, and the same calls give the same answers.
"""

from __future__ import annotations

import hashlib
import struct
from random import Random

from machine.emulated.guests import ARG, NUMBERS, World

from hostile import bytewise
from hostile.target import Target, expect
from xenlive.abi.hypercalls.event_channel import EVTCHN_FIFO_CONTROL_BLOCK
from xenlive.machine.emulated.stop import GuestStop
from xenlive.memory.address import PAGE_SIZE

_CALL = struct.Struct("<BB5Q22s")
MAX_CALLS = 64
_MS = 1_000_000
_TOP = (1 << 64) - 1
_SEEDED = 40

# Addresses at which a structure is sound, at the end of a page or of memory, Xen's, or nowhere.
_PLACES = (ARG, ARG + 8, ARG + PAGE_SIZE - 4, (4 << 20) - 4, 0, 0xFEFFF000, 0xFEFF8000)
_NOWHERE = (0xDEAD0000, 0xFFFFFFFC, 1 << 32, 1 << 40, (1 << 44) - 8, 1 << 47, _TOP - 7, _TOP)
_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 255, 256, 1023, 0x7FF0, 0x7FF1, 0x7FFF, 0xFFFF, 1 << 16)
_COUNTS = (0, 1, 2, 3, 7, 16)
_WIDE = (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, 1 << 36, (1 << 36) - 1, _TOP)


def check_guests(data: bytes) -> str:
    """Makes the calls in a world of two guests, twice, and says how far they came."""
    first, word = _run(data)
    again, _ = _run(data)
    expect(first == again, "the same calls give the same answers")
    return word


def _run(data: bytes) -> tuple[bytes, str]:
    world, seen, n_good = World(2), hashlib.blake2b(), 0
    try:
        for at in range(0, min(len(data), MAX_CALLS * _CALL.size), _CALL.size):
            result = _call(world, data[at : at + _CALL.size].ljust(_CALL.size, b"\0"))
            seen.update(repr(result).encode())
            n_good += isinstance(result, int) and result >= 0
        for guest in world.guests:
            seen.update(guest.domain.space.read(ARG, 2 * PAGE_SIZE))
            guest.domain.destroy()
    finally:
        world.close()
    return seen.digest(), f"{min(n_good, 16)} calls answered"


def _call(world: World, raw: bytes) -> int | str | None:
    how, number, *args, struct_bytes = _CALL.unpack(raw)
    result: int | None
    guest = world.guests[how & 1]
    guest.is_64bit = guest.in_long_mode = not how & 2
    domain = guest.domain
    if how & 4:
        domain.space.write(ARG, struct_bytes)
    if not guest.is_64bit:
        args = [arg & 0xFFFFFFFF for arg in args]
    try:
        result = domain.hypercall(guest, number, tuple(args), guest.is_64bit)
    except GuestStop as stop:
        domain.is_shut_down = False
        expect(str(stop).isprintable(), "an end is one line")
        return str(stop)
    world.clock.advance(_MS)
    for each in world.guests:
        deadline = each.domain.timer_deadline_ns()
        if deadline is not None and deadline <= world.clock.now_ns:
            each.domain.timer_fired(world.clock.now_ns)
        each.domain.pending_upcall()
    if result is not None:
        expect(-(1 << 63) <= result <= _TOP, "an answer fits into a register")
    return result


def random_call(rng: Random) -> bytes:
    """One call: an operation that exists, more often than not, and arguments from the borders."""
    known = [NUMBERS[name] for name in NUMBERS]
    number = rng.choice(known) if rng.random() < 0.95 else rng.randrange(256)
    first = rng.randrange(30) if rng.random() < 0.8 else _number(rng)
    if rng.random() < 0.1:  # goes on with extent so many
        first |= rng.randrange(70) << 6
    args = [first, *(_argument(rng) for _ in range(4))]
    many = {NUMBERS["multicall"]: 1, NUMBERS["grant_table_op"]: 2}
    if number in many and rng.random() < 0.999:  # counts of many are served, and take their time
        args[many[number]] = rng.choice(_COUNTS)
    if number == NUMBERS["multicall"]:
        args[0] = ARG
    words = [_number(rng) for _ in range(6)]
    size = rng.choice((2, 4, 8))
    body = b"".join((word & (1 << 8 * size) - 1).to_bytes(size, "little") for word in words)
    how = rng.randrange(8) | 4 * (rng.random() < 0.7)
    return _CALL.pack(how, number & 0xFF, *args, body[:22])


def _argument(rng: Random) -> int:
    kind = rng.randrange(10)
    if kind < 6:
        return ARG
    return rng.choice(_PLACES) if kind < 8 else _number(rng)


def _number(rng: Random) -> int:
    kind = rng.randrange(8)
    if kind < 5:
        return rng.choice(_NUMBERS)
    if kind == 5:
        return rng.choice(_WIDE)
    return rng.choice(_NOWHERE) if kind == 6 else rng.choice(_PLACES)


def guest_seeds() -> list[bytes]:
    """Some runs of calls, and a control block at each offset of a page's end."""
    rng = Random(4)
    seeds = [b"".join(random_call(rng) for _ in range(n)) for n in range(1, _SEEDED)]
    end = PAGE_SIZE - EVTCHN_FIFO_CONTROL_BLOCK.size
    for offset in (0, end, end + 8, 4095):
        body = struct.pack("<QIII", 5, offset, 0, 0).ljust(22, b"\0")
        event = NUMBERS["event_channel_op"]
        calls = [_CALL.pack(4, event, 11, ARG, 0, 0, 0, body)]
        body = struct.pack("<Q", 6).ljust(22, b"\0")
        calls.append(_CALL.pack(4, event, 12, ARG, 0, 0, 0, body))
        seeds.append(b"".join(calls))
    return seeds


def mutate_guests(data: bytes, rng: Random) -> bytes:
    """Other calls: one more, one less, one changed, or bytes of one."""
    calls = [bytearray(data[i : i + _CALL.size]) for i in range(0, len(data), _CALL.size)]
    for _ in range(rng.randrange(1, 12)):
        at, kind = rng.randrange(len(calls) + 1), rng.randrange(8)
        if kind < 5 or not calls:
            calls.insert(at, bytearray(random_call(rng)))
        elif kind == 5:
            del calls[at - 1]
        else:
            one = calls[at - 1].ljust(_CALL.size, b"\0")
            bytewise.put_number(one, rng, rng.choice((42, 46, 50, 54)), rng.choice((2, 4)))
            calls[at - 1] = one
    return b"".join(calls[-MAX_CALLS:])


TARGET = Target(
    name="guest",
    about="hypercalls of two emulated guests, with arguments that nobody would give",
    seeds=guest_seeds,
    mutate=mutate_guests,
    check=check_guests,
    max_bytes=MAX_CALLS * _CALL.size,
)
