"""The load's own codec: any chunking gives the same messages, and nothing odd gets through."""

from __future__ import annotations

import struct
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.abi import xs_wire
from xenlive.demo import wire
from xenlive.demo.wire import Decoder, Reply, Request, describe, encode, show
from xenlive.errors import PeerError

MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(sorted(wire.NAMES)),
        st.integers(0, 0xFFFFFFFF),
        st.integers(0, 0xFFFFFFFF),
        st.binary(max_size=60),
    ),
    max_size=6,
)


def raw(kind: int, req_id: int, tx_id: int, payload: bytes) -> bytes:
    return struct.pack("<IIII", kind, req_id, tx_id, len(payload)) + payload


@settings(deadline=None, max_examples=60)
@given(messages=MESSAGES, cuts=st.lists(st.integers(0, 400), max_size=8))
def test_any_chunking_gives_the_same(
    messages: list[tuple[int, int, int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(raw(*message) for message in messages)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    decoder = Decoder()
    found = []
    for start, end in pairwise(places):
        found += decoder.feed(data[start:end])
    assert found == [Reply(*message) for message in messages]


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_bytes_give_messages_or_the_one_error(data: bytes) -> None:
    with suppress(PeerError):
        Decoder().feed(data)


def test_limits() -> None:
    assert Decoder().feed(raw(wire.READ, 1, 0, bytes(4096)))[0].payload == bytes(4096)
    with pytest.raises(PeerError, match="4096"):
        Decoder().feed(raw(wire.READ, 1, 0, bytes(4097)))
    with pytest.raises(PeerError, match="unknown message type"):
        Decoder().feed(raw(99, 1, 0, b""))


def test_requests() -> None:
    request = Request(wire.WRITE, b"/a\0b", 7)
    assert encode(request, 5) == bytes.fromhex("0b000000 05000000 07000000 04000000") + b"/a\0b"
    assert describe(request) == "WRITE /a"
    assert describe(Request(wire.TRANSACTION_START, b"\0")) == "TRANSACTION_START"
    assert show(b"x" * 41) == repr(b"x" * 37 + b"...")


def test_numbers_are_those_of_the_abi() -> None:
    assert {number: xs_wire.TYPE_NAMES[number] for number in wire.NAMES} == wire.NAMES
    assert wire.PAYLOAD_MAX == xs_wire.XENSTORE_PAYLOAD_MAX
    assert xs_wire.XSD_SOCKMSG.size == wire.HEADER_BYTES
