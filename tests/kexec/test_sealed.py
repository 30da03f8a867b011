"""Sealed records: every moment of an update reads as before or after, and damage is told."""

from __future__ import annotations

import struct
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexec.killpoints import recorded

from xenlive.abi.kexec_module import RECORD_SEALED
from xenlive.errors import ImageError, ModuleError, OutOfSpace
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
    """One wrong byte: the other slot counts. It says so, unless the newer one looks void or old."""
    _, module = fresh()
    index = add_sealed(module, 7, OLD)
    update_sealed(module, index, NEW)
    data = bytearray(module.read_record(index))
    data[at] ^= flip
    module.update_record(index, bytes(data))
    found = read_sealed(module, index)
    newest_is_hit = at >= 33
    assert found.payload == (OLD if newest_is_hit else NEW)
    highest = max(struct.unpack_from("<I", data, where)[0] for where in (8, 33))
    assert found.fell_back == (highest != found.generation)
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


def test_the_last_generation_is_an_answer() -> None:
    _, module = fresh()
    index = add_sealed(module, 7, OLD)
    last = sealed_by_hand(7, 0, [(0xFFFFFFFE, NEW), (0xFFFFFFFF, OLD)], b"")
    module.update_record(index, last)
    with pytest.raises(OutOfSpace):
        update_sealed(module, index, NEW)
    assert module.read_record(index) == last
