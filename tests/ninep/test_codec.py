"""9P2000.u on the wire: bytes known from the manual, round trips, and bytes that mean nothing."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.errors import PeerError
from xenlive.ninep import messages as m
from xenlive.ninep.codec import (
    decode,
    decode_directory,
    encode,
    encode_read_reply,
    encode_stat,
    encode_write,
    frame_size,
)

qids = st.builds(m.Qid, st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
u32 = st.integers(0, 2**32 - 1)
stats = st.builds(m.Stat, st.binary(max_size=30), qids, u32, st.integers(0, 2**64 - 1), u32, u32)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "u8": st.integers(0, 255),
    "u16": st.integers(0, 65535),
    "u32": u32,
    "u64": st.integers(0, 2**64 - 1),
    "string": st.binary(max_size=60),
    "strings": st.lists(st.binary(max_size=20), max_size=m.MAX_WALK),
    "data": st.binary(max_size=200),
    "qid": qids,
    "qids": st.lists(qids, max_size=m.MAX_WALK),
    "stat": stats,
}


@st.composite
def any_message(draw: st.DrawFn) -> tuple[int, int, dict[str, Any]]:
    number = draw(st.sampled_from(sorted(m.MESSAGES)))
    fields = {name: draw(KINDS[kind]) for name, kind in m.MESSAGES[number][1]}
    return number, draw(st.integers(0, 0xFFFF)), fields


def comparable(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: bytes(v) if isinstance(v, memoryview) else v for k, v in fields.items()}


# Plan 9 manual section 5: "size[4] Tversion tag[2] msize[4] version[s]" and so on; 9P2000.u adds
# n_uname to Tattach, errno to Rerror and the extension to Tcreate.
VECTORS = [
    (
        m.TVERSION,
        0xFFFF,
        {"msize": 32768, "version": b"9P2000.u"},
        "15000000 64 ffff 00800000 0800 395032303030 2e75",
    ),
    (
        m.TATTACH,
        1,
        {"fid": 0, "afid": m.NOFID, "uname": b"root", "aname": b"", "n_uname": 0},
        "1b000000 68 0100 00000000 ffffffff 0400 726f6f74 0000 00000000",
    ),
    (m.RERROR, 2, {"ename": b"no", "errno": 2}, "0f000000 6b 0200 0200 6e6f 02000000"),
    (
        m.TWALK,
        3,
        {"fid": 0, "newfid": 1, "wname": [b"a", b"bc"]},
        "18000000 6e 0300 00000000 01000000 0200 0100 61 0200 6263",
    ),
    (m.TCLUNK, 4, {"fid": 7}, "0b000000 78 0400 07000000"),
    (m.RCLUNK, 4, {}, "07000000 79 0400"),
    (
        m.TCREATE,
        5,
        {"fid": 1, "name": b"s", "perm": 0o600, "mode": 1, "extension": b""},
        "15000000 72 0500 01000000 0100 73 80010000 01 0000",
    ),
    (
        m.TREAD,
        6,
        {"fid": 1, "offset": 2, "count": 3},
        "17000000 74 0600 01000000 0200000000000000 03000000",
    ),
    (
        m.TWRITE,
        7,
        {"fid": 1, "offset": 2, "data": b"hi"},
        "19000000 76 0700 01000000 0200000000000000 02000000 6869",
    ),
    (
        m.ROPEN,
        8,
        {"qid": m.Qid(0x80, 1, 2), "iounit": 0},
        "18000000 71 0800 80 01000000 0200000000000000 00000000",
    ),
]


@pytest.mark.parametrize(("number", "tag", "fields", "wire"), VECTORS)
def test_vectors(number: int, tag: int, fields: dict[str, Any], wire: str) -> None:
    frame = bytes.fromhex(wire)
    assert encode(number, tag, **fields) == frame
    message = decode(frame)
    assert (message.type, message.tag, comparable(message.fields)) == (number, tag, fields)


def test_a_reply_is_one_above_its_request() -> None:
    for number, (name, _) in m.MESSAGES.items():
        if name.startswith("T"):
            assert number % 2 == 0
            assert m.MESSAGES[number + 1][0] == "R" + name[1:]


def test_stat_layout() -> None:
    """size type dev qid mode atime mtime length name uid gid muid extension, three numbers."""
    stat = m.Stat(b"ab", m.Qid(1, 2, 3), 0o644, 5, 6, 7)
    data = encode_stat(stat)
    assert len(data) == 2 + 61 + 2
    assert struct.unpack("<HHIBIQIIIQH2s", data[: 41 + 4]) == (
        *(63, 0, 0, 1, 2, 3, 0o644, 6, 7, 5),
        *(2, b"ab"),
    )
    assert data[45:] == bytes(4 * 2 + 3 * 4)


def test_a_stat_as_xen_counts_it() -> None:
    """tools/9pfsd/io.c says 71 bytes and the name where there are 61: ten too many, twice over."""
    stat = m.Stat(b"state", m.Qid(0, 2, 3), 0o600, 40000)
    body = bytearray(encode_stat(stat))
    size = int.from_bytes(body[:2], "little") + 10
    body[:2] = size.to_bytes(2, "little")
    frame = struct.pack("<IBHH", 9 + len(body), m.RSTAT, 1, size + 2) + body
    assert decode(frame)["stat"] == stat


def test_directory_entries_follow_each_other() -> None:
    entries = [m.Stat(name, m.Qid(0, 0, 1), 0o600, 1) for name in (b"a", b"", b"ccc")]
    data = b"".join(map(encode_stat, entries))
    assert decode_directory(data) == entries
    assert decode_directory(b"") == []
    for cut in range(1, len(data)):
        if cut not in (64, 64 + 63):
            with pytest.raises(PeerError):
                decode_directory(data[:cut])


def test_the_short_ways_are_the_long_ones() -> None:
    write = encode(m.TWRITE, 9, fid=1, offset=2**40, data=b"xyz")
    assert encode_write(9, 1, 2**40, 3) + b"xyz" == write
    assert len(write) == m.TWRITE_BYTES + 3
    read = encode(m.RREAD, 9, data=b"xyz")
    assert encode_read_reply(9, 3) + b"xyz" == read
    assert len(read) == m.RREAD_BYTES + 3


@settings(deadline=None, max_examples=200)
@given(any_message())
def test_round_trip(message: tuple[int, int, dict[str, Any]]) -> None:
    number, tag, fields = message
    frame = encode(number, tag, **fields)
    assert frame_size(frame, 1 << 20) == len(frame)
    found = decode(frame)
    assert (found.type, found.tag, comparable(found.fields)) == message
    assert repr(found).startswith(m.MESSAGES[number][0])


@settings(deadline=None, max_examples=200)
@given(any_message(), st.data())
def test_a_message_cut_or_lengthened(
    message: tuple[int, int, dict[str, Any]], data: st.DataObject
) -> None:
    frame = encode(message[0], message[1], **message[2])
    cut = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(PeerError):
        decode(frame[:cut])
    if cut >= m.HEADER_BYTES:
        with pytest.raises(PeerError):
            decode(struct.pack("<I", cut) + frame[4:cut])
    with pytest.raises(PeerError):
        decode(struct.pack("<I", len(frame) + 1) + frame[4:] + b"\0")


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([*m.MESSAGES, 0, 102, 106, 108, 126, 255]),
    st.binary(max_size=120),
    st.booleans(),
)
def test_any_bytes_give_a_message_or_a_peer_error(number: int, body: bytes, right: bool) -> None:
    size = m.HEADER_BYTES + len(body) if right else int.from_bytes(body[:4], "big")
    frame = struct.pack("<IBH", size, number, 1) + body
    try:
        message = decode(frame)
    except PeerError:
        return
    again = encode(message.type, message.tag, **message.fields)
    if message.type != m.RSTAT:  # owners' names are dropped
        assert again == frame


@pytest.mark.parametrize("size", [0, 6, 101, 2**32 - 1])
def test_lengths_that_cannot_be(size: int) -> None:
    with pytest.raises(PeerError) as caught:
        frame_size(struct.pack("<I", size), 100)
    assert (caught.value.offset, caught.value.value) == (0, size)


def test_a_length_that_is_not_there_yet() -> None:
    assert [frame_size(b"\x07\0\0\0"[:count], 100) for count in range(5)] == [0, 0, 0, 0, 7]


def test_more_names_than_a_walk_has() -> None:
    frame = encode(m.TWALK, 1, fid=0, newfid=1, wname=[b"a"] * (m.MAX_WALK + 1))
    with pytest.raises(PeerError, match="more than 16"):
        decode(frame)


def test_unknown_fields_are_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        encode(m.TCLUNK, 1, fid=1, mode=2)
    with pytest.raises(KeyError):
        encode(m.TCLUNK, 1)
