"""Sealed records: every moment of an update reads as before or after, and damage is told."""

from __future__ import annotations

import struct
from zlib import crc32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kexec.killpoints import recorded

from xenlive.abi.kexec_module import RECORD_SEALED
from xenlive.errors import ImageError, ModuleError
from xenlive.kexec import KexecModule
from xenlive.kexec.sealed import (
    MAX_PAYLOAD_SIZE,
    add_sealed,
    decode_sealed,
    is_sealed,
    read_sealed,
    update_sealed,
)
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

ADDRESS = PhysAddr(0x100000)
OLD, NEW = b"the older payload", b"the newer payload"


def fresh() -> tuple[GuestMemory, KexecModule]:
    memory = GuestMemory([(ADDRESS, bytearray(18 * PAGE_SIZE))])
    return memory, KexecModule.create(memory, ADDRESS, 18)


def sealed_by_hand(kind: int, flags: int, slots: list[tuple[int, bytes]], pages: bytes) -> bytes:
    """The record as the format says it, put together without the code under test."""
    data = struct.pack("<4sHH", b"KexS", kind, flags)
    for generation, payload in slots:
        summed = struct.pack("<HHI", kind, flags, generation) + payload + pages
        data += struct.pack("<II", generation, crc32(summed) if generation else 0) + payload
    return data


def test_a_new_record_is_the_documented_bytes() -> None:
    _, module = fresh()
    index = add_sealed(module, 7, OLD)
    record = module.record(index)
    assert (record.type, record.size) == (RECORD_SEALED, 8 + 2 * (8 + len(OLD)))
    blank = bytes(len(OLD))
    assert module.read_record(index) == sealed_by_hand(7, 0, [(1, OLD), (0, blank)], b"")
    found = read_sealed(module, index)
    assert (found.kind, found.generation, found.payload) == (7, 1, OLD)
    assert (found.fell_back, found.covers_pages) == (False, False)


def test_updates_take_turns() -> None:
    _, module = fresh()
    index = add_sealed(module, 7, OLD)
    assert update_sealed(module, index, NEW) == 2
    assert module.read_record(index) == sealed_by_hand(7, 0, [(1, OLD), (2, NEW)], b"")
    assert update_sealed(module, index, OLD) == 3
    assert module.read_record(index) == sealed_by_hand(7, 0, [(3, OLD), (2, NEW)], b"")
    assert read_sealed(module, index).generation == 3


def test_every_moment_of_an_update_reads_as_before_or_after() -> None:
    _, module = fresh()
    index = add_sealed(module, 7, OLD)
    for payload, previous in ((NEW, OLD), (OLD, NEW), (OLD, OLD)):
        record = module.record(index)
        with recorded(module) as stores:
            generation = update_sealed(module, index, payload)
        seen = []
        for page in stores.pages():
            found = decode_sealed(page[record.offset : record.end])
            assert not found.fell_back
            assert (found.generation, found.payload) in (
                (generation - 1, previous),
                (generation, payload),
            )
            seen.append(found.generation)
        assert seen == sorted(seen)
        assert set(seen) == {generation - 1, generation}


def test_pages_are_sealed_with_it() -> None:
    memory, module = fresh()
    index = add_sealed(module, 9, OLD, memory)
    assert read_sealed(module, index, memory).covers_pages
    other = module.add_record(5, b"")
    first = module.alloc_pages(index, 1)
    module.alloc_pages(other, 1)
    module.alloc_pages(index, 1)
    memory.write(module.page_address(first), b"a" * PAGE_SIZE)
    memory.write(module.page_address(first + 2), b"c" * PAGE_SIZE)
    with pytest.raises(ImageError) as raised:
        read_sealed(module, index, memory)
    assert raised.value.code == "seal-broken"
    update_sealed(module, index, NEW, memory)
    pages = b"a" * PAGE_SIZE + b"c" * PAGE_SIZE
    expected = sealed_by_hand(9, 1, [(1, OLD), (2, NEW)], pages)
    assert module.read_record(index)[33:] == expected[33:]
    assert read_sealed(module, index, memory).payload == NEW
    memory.write(module.page_address(first + 1), b"not covered")
    assert read_sealed(module, index, memory).payload == NEW
    memory.write(PhysAddr(module.page_address(first + 2) + 4095), b"x")
    with pytest.raises(ImageError):
        read_sealed(module, index, memory)


def test_covered_pages_need_memory() -> None:
    memory, module = fresh()
    index = add_sealed(module, 9, OLD, memory)
    with pytest.raises(ModuleError):
        read_sealed(module, index)
    with pytest.raises(ModuleError):
        update_sealed(module, index, NEW)


@settings(deadline=None, max_examples=200)
@given(st.integers(8, 8 + 2 * (8 + len(OLD)) - 1), st.integers(1, 255))
def test_a_damaged_byte_is_told(at: int, flip: int) -> None:
    """One wrong byte: the other slot counts. Told, unless the damaged one is void or older."""
    _, module = fresh()
    index = add_sealed(module, 7, OLD)
    update_sealed(module, index, NEW)
    data = bytearray(module.read_record(index))
    data[at] ^= flip
    module.update_record(index, bytes(data))
    found = read_sealed(module, index)
    newest_is_hit = at >= 33
    assert found.payload == (OLD if newest_is_hit else NEW)
    damaged = struct.unpack_from("<I", data, 33 if newest_is_hit else 8)[0]
    assert found.fell_back == (damaged >= found.generation)
    assert update_sealed(module, index, OLD) == found.generation + 1
    after = read_sealed(module, index)
    assert (after.payload, after.fell_back) == (OLD, False)


def test_when_nothing_matches_the_record_is_left_alone() -> None:
    _, module = fresh()
    index = add_sealed(module, 7, OLD)
    update_sealed(module, index, NEW)
    data = bytearray(module.read_record(index))
    data[20] ^= 1
    data[45] ^= 1
    module.update_record(index, bytes(data))
    for attempt in (
        lambda: read_sealed(module, index),
        lambda: update_sealed(module, index, OLD),
    ):
        with pytest.raises(ImageError) as raised:
            attempt()
        assert raised.value.code == "seal-broken"
    assert module.read_record(index) == data
    assert module.add_record(1, b"the module is of use") == 1


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_are_a_payload_or_one_error(data: bytes, with_magic: bool) -> None:
    record = b"KexS" + data if with_magic else data
    with pytest.raises(ImageError) as raised:
        decode_sealed(record)
    assert raised.value.code == "seal-broken"
    assert is_sealed(RECORD_SEALED, record) == (record[:4] == b"KexS")


def test_limits() -> None:
    memory, module = fresh()
    for kind in (-1, 65536):
        with pytest.raises(ModuleError):
            add_sealed(module, kind, b"")
    with pytest.raises(ModuleError):
        add_sealed(module, 1, bytes(MAX_PAYLOAD_SIZE + 1))
    index = add_sealed(module, 65535, bytes(MAX_PAYLOAD_SIZE))
    assert module.record(index).size == 254
    with pytest.raises(ModuleError):
        update_sealed(module, index, b"short")
    empty = add_sealed(module, 0, b"")
    assert update_sealed(module, empty, b"") == 2
    plain = module.add_record(1, b"KexS")
    with pytest.raises(ModuleError):
        read_sealed(module, plain)
    with pytest.raises(ModuleError):
        read_sealed(module, 15, memory)


@pytest.mark.parametrize("first", [0, 1], ids=["first slot", "second slot"])
def test_after_the_last_generation_it_starts_over(first: int) -> None:
    _, module = fresh()
    index = add_sealed(module, 7, OLD)
    last = [(0xFFFFFFFF, OLD), (0xFFFFFFFE, NEW)]
    module.update_record(index, sealed_by_hand(7, 0, last[first:] + last[:first], b""))
    record = module.record(index)
    with recorded(module) as stores:
        assert update_sealed(module, index, NEW) == 1
    seen = []
    for page in stores.pages():
        found = decode_sealed(page[record.offset : record.end])
        assert not found.fell_back
        assert (found.generation, found.payload) in ((0xFFFFFFFF, OLD), (1, NEW))
        seen.append(found.generation)
    assert seen == sorted(seen, reverse=True)
    assert (seen[0], seen[-1]) == (0xFFFFFFFF, 1)
    assert update_sealed(module, index, OLD) == 2
    both = [(2, OLD), (1, NEW)]
    expected = sealed_by_hand(7, 0, both[first:] + both[:first], b"")
    assert module.read_record(index) == expected


def test_dying_while_it_starts_over_keeps_it_of_use() -> None:
    """At every store of it: what was kept can be updated again, and reads."""
    _, module = fresh()
    index = add_sealed(module, 7, OLD)
    last = sealed_by_hand(7, 0, [(0xFFFFFFFE, NEW), (0xFFFFFFFF, OLD)], b"")
    module.update_record(index, last)
    record = module.record(index)
    with recorded(module) as stores:
        update_sealed(module, index, NEW)
    for page in list(stores.pages()):
        module.update_record(index, bytes(page[record.offset : record.end]))
        before = read_sealed(module, index).generation
        again = update_sealed(module, index, b"another payload..")
        assert again == (1 if before == 0xFFFFFFFF else 2)
        found = read_sealed(module, index)
        assert (found.payload, found.fell_back) == (b"another payload..", False)


def covering(n_updates: int) -> tuple[GuestMemory, KexecModule, int]:
    """A sealed record with two pages, updated so many times after they were filled."""
    memory, module = fresh()
    index = add_sealed(module, 9, OLD, memory)
    for page in range(module.alloc_pages(index, 2), 2):
        memory.write(module.page_address(page), bytes([page + 1]) * PAGE_SIZE)
    for n in range(n_updates):
        update_sealed(module, index, b"payload number %d." % n, memory)
    return memory, module, index


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([33, 8]), st.integers(0, 24), st.integers(1, 255), st.integers(2, 3))
def test_the_slot_that_counts_is_never_written(start: int, at: int, flip: int, n: int) -> None:
    """Any byte of either slot is damaged; its pages are covered, and as they were."""
    memory, module, index = covering(n)
    record = module.record(index)
    data = bytearray(module.read_record(index))
    data[start + at] ^= flip
    module.update_record(index, bytes(data))
    before = read_sealed(module, index, memory)
    with recorded(module) as stores:
        generation = update_sealed(module, index, NEW, memory)
    pages = [memory.read(module.page_address(page), PAGE_SIZE) for page in (0, 1)]
    for moment in stores.pages():
        found = decode_sealed(moment[record.offset : record.end], pages)
        assert (found.generation, found.payload) in (
            (before.generation, before.payload),
            (generation, NEW),
        )
    after = read_sealed(module, index, memory)
    assert (after.payload, after.fell_back) == (NEW, False)
    assert update_sealed(module, index, OLD, memory) == generation + 1


@pytest.mark.parametrize("start", [8, 33])
@pytest.mark.parametrize("n_updates", [0, 1, 2])
@pytest.mark.parametrize("changed", [False, True], ids=["pages kept", "pages changed"])
def test_a_damaged_generation_is_no_last_one(start: int, n_updates: int, changed: bool) -> None:
    """The highest number there is: the update after it, and all that follow, go on."""
    memory, module, index = covering(n_updates)
    module.update_record_u32(index, 0xFFFFFFFF, start)
    if changed:
        memory.write(module.page_address(1), b"changed")
    first = update_sealed(module, index, NEW, memory)
    assert first < 0xFFFFFFFF
    assert (read_sealed(module, index, memory).payload) == NEW
    assert update_sealed(module, index, OLD, memory) == first + 1
    found = read_sealed(module, index, memory)
    assert (found.payload, found.generation, found.fell_back) == (OLD, first + 1, False)


def test_both_generations_damaged() -> None:
    memory, module, index = covering(2)
    for start in (8, 33):
        module.update_record_u32(index, 0xFFFFFFFF, start)
    generation = update_sealed(module, index, NEW, memory)
    assert read_sealed(module, index, memory).payload == NEW
    assert update_sealed(module, index, OLD, memory) == generation + 1
    found = read_sealed(module, index, memory)
    assert (found.payload, found.fell_back) == (OLD, False)


LAST = 0xFFFFFFFF
EDGES = st.sampled_from([0, 1, 2, 3, 4, 0x80000000, LAST - 2, LAST - 1, LAST])
GENERATIONS = st.one_of(EDGES, st.integers(0, LAST))


@settings(deadline=None, max_examples=300)
@given(GENERATIONS, GENERATIONS)
@example(LAST - 1, LAST)
@example(LAST, LAST - 1)
@example(LAST, LAST)
@example(0, LAST - 1)
@example(LAST - 2, 0)
@example(3, LAST - 2)
def test_no_generations_keep_a_record_with_pages_from_being_mended(a: int, b: int) -> None:
    """Whatever the two slots claim when none matches: one update, and any number after it."""
    memory, module, index = covering(0)
    module.update_record(index, sealed_by_hand(9, 1, [(a, OLD), (b, NEW)], b"other pages"))
    record = module.record(index)
    pages = [memory.read(module.page_address(page), PAGE_SIZE) for page in (0, 1)]
    with recorded(module) as stores:
        generation = update_sealed(module, index, NEW, memory)
    reads = []
    for moment in stores.pages():
        try:
            found = decode_sealed(moment[record.offset : record.end], pages)
        except ImageError:
            reads.append(False)
            continue
        assert (found.generation, found.payload, found.fell_back) == (generation, NEW, False)
        reads.append(True)
    assert reads == sorted(reads)
    assert reads[-1]
    follows = abs(a - b) == 1 or 0 in (a, b)
    assert generation == (max(a, b) % LAST + 1 if follows else 1)
    for step, payload in enumerate((OLD, NEW, OLD, NEW)):
        memory.write(module.page_address(1), b"step %d" % step)
        generation = generation % LAST + 1
        assert update_sealed(module, index, payload, memory) == generation
        found = read_sealed(module, index, memory)
        assert (found.payload, found.generation, found.fell_back) == (payload, generation, False)


@pytest.mark.parametrize("damaged", [0, 1])
def test_two_slots_of_one_generation(damaged: int) -> None:
    slots = [(2, OLD), (2, NEW)]
    data = bytearray(sealed_by_hand(7, 0, slots, b""))
    assert not decode_sealed(bytes(data)).fell_back
    data[8 + 25 * damaged + 8] ^= 1
    found = decode_sealed(bytes(data))
    assert (found.payload, found.fell_back) == (slots[1 - damaged][1], True)


def test_a_seal_over_pages_is_over_what_is_in_them_and_their_order() -> None:
    """Not over where they are: the indices change when the module grows, and the seal stays."""
    memory = GuestMemory([(ADDRESS - 4 * PAGE_SIZE, bytearray(22 * PAGE_SIZE))])
    module = KexecModule.create(memory, ADDRESS, 18)
    index = add_sealed(module, 9, OLD, memory)
    module.alloc_pages(index, 2)
    for page in (0, 1):
        memory.write(module.page_address(page), bytes([page + 1]) * PAGE_SIZE)
    update_sealed(module, index, NEW, memory)
    module.grow(4, MemoryMap([MemoryRange(0, 1 << 30, E820_RAM)]))
    assert module.pages_of(index) == [4, 5]
    assert read_sealed(module, index, memory).payload == NEW
    first, second = (memory.page(module.page_frame(page)) for page in (4, 5))
    first[:], second[:] = bytes(second), bytes(first)
    with pytest.raises(ImageError, match="seal-broken"):
        read_sealed(module, index, memory)
