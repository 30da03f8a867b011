"""Sealed records, said a second time without the product's code, and operations on them.

    | KexS, kind u16, flags u16 | generation u32, checksum u32, payload | the same again |

The checksum is CRC-32 over kind, flags, generation and payload, then the record's pages if bit 0 of
the flags is set. The newest slot that matches counts.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hostile.soundness import PAGE, State
from hostile.target import expect
from xenlive.kexec.sealed import add_sealed, read_sealed, update_sealed

if TYPE_CHECKING:
    from hostile.operations import Player

TYPE = 0xE0
MAX_PAYLOAD = 115
MAX_GENERATION = 0xFFFFFFFF
# Sealing reads the pages: of records with more of them that takes longer than it tells.
_MAX_COVERED = 17


@dataclass(frozen=True)
class Slot:
    """One of the two copies: `start` is its offset in the record's data."""

    start: int
    generation: int
    matches: bool
    payload: bytes


def slots_of(data: bytes, pages: bytes) -> list[Slot]:
    """The written slots, newest first; none if the record has not the form."""
    return [slot for slot in all_slots(data, pages) if slot.generation]


def all_slots(data: bytes, pages: bytes) -> list[Slot]:
    """Void ones, too."""
    size = (len(data) - 8) // 2
    if data[:4] != b"KexS" or size < 8 or len(data) % 2:
        return []
    found = []
    for start in (8, 8 + size):
        generation, checksum = struct.unpack_from("<II", data, start)
        payload = data[start + 8 : start + size]
        found.append(
            Slot(start, generation, checksum == seal(data, generation, payload, pages), payload)
        )
    return sorted(found, key=lambda slot: -slot.generation)


def seal(data: bytes, generation: int, payload: bytes, pages: bytes) -> int:
    """The checksum that fits."""
    covered = pages if covers(data) else b""
    return zlib.crc32(data[4:8] + struct.pack("<I", generation) + payload + covered)


def covers(data: bytes) -> bool:
    """Whether the seal is over the record's pages too."""
    return len(data) >= 8 and bool(data[6] & 1)


def seal_new(player: Player, state: State, kind: int, size: int, flags: int) -> State:
    """A new sealed record, sometimes with a payload that is too large."""
    payload = bytes([kind ^ size]) * size
    memory = player.ram.memory if flags & 1 else None
    if size > MAX_PAYLOAD:
        player.refused(lambda: add_sealed(player.module, kind, payload, memory))
    index = add_sealed(player.module, kind, payload, memory)
    head = b"KexS" + struct.pack("<HH", kind, flags & 1)
    slot = struct.pack("<II", 1, seal(head, 1, payload, b"")) + payload
    expect(index not in state.records, "an unused entry is taken")
    record = TYPE, head + slot + bytes(len(slot))
    return replace(state, records={**state.records, index: record})


def seal_read(player: Player, state: State, index: int, *_: int) -> State:
    """What a sealed record says: the newest slot that matches."""
    pages = _pages(player, state, index)
    if pages is None:
        return state
    data = state.records[index][1]
    slots = slots_of(data, pages)
    good = [slot for slot in slots if slot.matches]
    if not good:
        player.refused(lambda: read_sealed(player.module, index, player.ram.memory))
    found = read_sealed(player.module, index, player.ram.memory)
    expect((found.generation, found.payload) == (good[0].generation, good[0].payload), "the newest")
    expect(found.kind == int.from_bytes(data[4:6], "little"), "its kind")
    bad = [slot.generation for slot in slots if not slot.matches]
    expect(found.fell_back == (max(bad, default=0) >= good[0].generation), "fell back or not")
    expect(found.covers_pages == covers(data), "covers pages or not")
    return state


def seal_update(player: Player, state: State, index: int, byte: int, less: int) -> State:
    """A new payload in the older slot, one generation on, or 1 and the other slot void."""
    pages = _pages(player, state, index)
    if pages is None:
        return state
    data = state.records[index][1]
    size = max((len(data) - 8) // 2 - 8, 0)
    payload = bytes([byte]) * (size + (less == 1))
    kept, expected = _kept(data, pages)
    if kept is None or len(payload) != size:
        player.refused(lambda: update_sealed(player.module, index, payload, player.ram.memory))
    generation = update_sealed(player.module, index, payload, player.ram.memory)
    expect(generation == expected, "a generation on, or started over")
    assert kept is not None
    start = 8 if kept.start != 8 else 8 + 8 + size
    slot = struct.pack("<II", generation, seal(data, generation, payload, pages)) + payload
    written = data[:start] + slot + data[start + len(slot) :]
    if expected <= kept.generation:
        written = written[: kept.start] + bytes(4) + written[kept.start + 4 :]
    return replace(state, records={**state.records, index: (TYPE, written)})


def _kept(data: bytes, pages: bytes) -> tuple[Slot | None, int]:
    """The slot that an update does not write to, and the generation that the other one gets."""
    slots = all_slots(data, pages)
    good = [slot for slot in slots if slot.generation and slot.matches]
    if good:
        return good[0], good[0].generation % MAX_GENERATION + 1
    if not slots or not covers(data):
        return None, 0
    newer, older = slots
    if newer.generation == older.generation:
        newer, older = older, newer
    if older.generation and newer.generation != older.generation + 1:
        return newer, 1
    return newer, newer.generation % MAX_GENERATION + 1


def _pages(player: Player, state: State, index: int) -> bytes | None:
    """The pages that a seal is over, which are all zero; None for a record that is no matter.

    Of no matter are records with too many pages. Of other types it is refused, tested once here.
    """
    if index not in state.records or state.records[index][0] != TYPE:
        player.refused(lambda: read_sealed(player.module, index, player.ram.memory))
    if not covers(state.records[index][1]):
        return b""
    count = state.owners.count(index)
    player.ram.was_read = True
    return bytes(PAGE) * count if count <= _MAX_COVERED else None
