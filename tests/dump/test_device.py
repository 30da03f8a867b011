"""Devices in an image: which pages are theirs, and the messages that wait in their rings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dump.made import ADDRESS, RING_REF, device_with, grant_page, put, ram_with
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.dump import describe_image
from xenlive.dump.device import decode_device
from xenlive.dump.ninepmessages import MAX_SHOWN, in_words, pending, split
from xenlive.memory.address import PAGE_SIZE
from xenlive.ninep.codec import encode
from xenlive.ninep.messages import (
    RERROR,
    RSTAT,
    RWALK,
    TCLUNK,
    TREAD,
    TWALK,
    TWRITE,
    Qid,
    Stat,
)

READ = encode(TREAD, 7, fid=3, offset=0x100000000, count=8192)
WRITE = encode(TWRITE, 8, fid=4, offset=10, data=b"hello \x1b[31m" * 10)
WALK = encode(TWALK, 9, fid=1, newfid=2, wname=[b"state", b"\xff\x1b]0;x\x07"])
REQUESTS = READ + WRITE + WALK
HALF = 8 * PAGE_SIZE


def rings_of(path: Path, data: bytes | bytearray) -> dict[str, Any]:
    path.write_bytes(data)
    rings = describe_image(path)["records"][0]["decoded"]["rings"]
    assert isinstance(rings, dict)
    return rings


def test_requests_and_replies_that_wait(tmp_path: Path) -> None:
    replies = encode(RWALK, 1, wqid=[Qid(0x80, 2, 3)]) + encode(RERROR, 2, ename=b"no", errno=2)
    rings = rings_of(tmp_path / "image", device_with(REQUESTS, replies))
    assert (rings["ground"], rings["pages"]) == ("page-order", list(range(1, 17)))
    assert rings["out"] == {
        "size_bytes": HALF,
        "cons": 0,
        "prod": len(REQUESTS),
        "pending_bytes": len(REQUESTS),
        "messages": rings["out"]["messages"],
        "left_out": 0,
        "problem": None,
    }
    assert rings["out"]["messages"][0] == {
        "index": 0,
        "offset": 0,
        "size": 23,
        "present_bytes": 23,
        "type": 116,
        "type_name": "Tread",
        "tag": 7,
        "fields": {"fid": 3, "offset": 0x100000000, "count": 8192},
        "problem": None,
    }
    assert rings["out"]["messages"][1]["fields"]["data"] == {
        "size": 110,
        "start": (b"hello \x1b[31m" * 10)[:32].hex(),
    }
    assert rings["out"]["messages"][2]["fields"]["wname"] == ["state", "\\xff\\x1b]0;x\\x07"]
    assert [one["type_name"] for one in rings["in"]["messages"]] == ["Rwalk", "Rerror"]
    assert rings["in"]["messages"][0]["fields"] == {
        "wqid": [{"type": 128, "version": 2, "path": 3}]
    }


@pytest.mark.parametrize(
    "cons", [1, HALF - 1, HALF - 30, HALF - PAGE_SIZE - 7, 0xFFFFFFFF, 1 << 31]
)
def test_a_ring_is_round_and_its_indices_run_free(cons: int, tmp_path: Path) -> None:
    rings = rings_of(tmp_path / "image", device_with(REQUESTS, out_cons=cons))
    messages = rings["out"]["messages"]
    assert [one["tag"] for one in messages] == [7, 8, 9]
    assert [one["problem"] for one in messages] == [None] * 3
    starts = (cons, cons + len(READ), cons + len(READ + WRITE))
    assert [one["index"] for one in messages] == [start & 0xFFFFFFFF for start in starts]


def test_a_message_of_which_a_part_is_there() -> None:
    messages, more, problem = split(READ + WRITE[:50], HALF)
    assert (more, problem) == (0, None)
    assert (messages[1]["size"], messages[1]["present_bytes"]) == (len(WRITE), 50)
    assert messages[1]["fields"] is None
    assert in_words(messages[1]) == (
        f"Twrite tag 8, 133 bytes (only 50 of its {len(WRITE)} bytes are in the ring)"
    )


@pytest.mark.parametrize(
    ("tail", "problem"),
    [
        (b"\x07\0", "2 bytes at byte 23 are less than a 9P header"),
        (b"\x07\0\0\0\x78", "5 bytes at byte 23 are less than a 9P header"),
        (b"\x06\0\0\0\x78\0\0", "no 9P message at byte 23: a size of 6"),
        (b"\xff\xff\xff\xff\x78\0\0", "no 9P message at byte 23: a size of 4294967295"),
    ],
)
def test_nonsense_is_said_behind_what_made_sense(tail: bytes, problem: str) -> None:
    messages, _, said = split(READ + tail, HALF)
    assert ([one["tag"] for one in messages], said) == ([7], problem)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (b"\x07\0\0\0\x62\x05\0", "unknown 9P message at offset 4 (value 98)"),
        (b"\x08\0\0\0\x78\x05\0\0", "Tclunk ends early at offset 7 (value 8)"),
        (encode(TCLUNK, 5, fid=1)[:-4] + b"", None),
    ],
)
def test_a_message_that_cannot_be_read_does_not_end_the_list(
    message: bytes, problem: str | None
) -> None:
    if problem is None:
        message = b"\x07\0\0\0" + message[4:]
        problem = "Tclunk ends early at offset 7 (value 7)"
    messages, _, said = split(message + READ, HALF)
    assert said is None
    assert [one["problem"] for one in messages] == [problem, None]
    assert messages[0]["tag"] == 5


def test_a_stat_in_words() -> None:
    stat = Stat(b"\x1b[2Jname", Qid(0, 1, 2), 0o644, 40000)
    messages, _, _ = split(encode(RSTAT, 1, stat=stat), HALF)
    assert in_words(messages[0]).endswith("stat '\\\\x1b[2Jname', mode 644, 40000 bytes")


def test_more_messages_than_are_shown_are_counted() -> None:
    clunk = encode(TCLUNK, 1, fid=1)
    messages, more, problem = split(clunk * (MAX_SHOWN + 5), HALF)
    assert (len(messages), more, problem) == (MAX_SHOWN, 5, None)


def test_indices_that_cannot_be_right(tmp_path: Path) -> None:
    data = device_with()
    put(data, 64, (5).to_bytes(4, "little"))  # out_cons, ahead of out_prod
    out = rings_of(tmp_path / "image", data)["out"]
    assert (out["pending_bytes"], out["messages"]) == (None, [])
    assert out["problem"] == "the indices are 4294967291 bytes apart, the out ring has 32768"


def test_a_full_ring() -> None:
    clunk = encode(TCLUNK, 1, fid=1)  # 11 bytes
    size = 2 * PAGE_SIZE
    area = (clunk * size)[:size]
    found = pending("in", area, 0, size)
    assert found["pending_bytes"] == size
    assert len(found["messages"]) + found["left_out"] == -(-size // len(clunk))


def test_the_grant_table_says_more_than_the_order_of_the_pages(tmp_path: Path) -> None:
    """A kernel may have granted its pages in any order."""
    ring = [*range(16, 8, -1), *range(1, 9)]
    data = device_with(REQUESTS, interface=0, ring=ring)
    first = ADDRESS // PAGE_SIZE
    frames = {RING_REF: first} | {2046 - at: first + page for at, page in enumerate(ring)}
    path = ram_with(tmp_path / "ram", data, ADDRESS, (0x200000, grant_page(frames)))
    rings = describe_image(path, thorough=True)["records"][0]["decoded"]["rings"]
    assert (rings["ground"], rings["pages"]) == ("grant-table", ring)
    assert [one["tag"] for one in rings["out"]["messages"]] == [7, 8, 9]
    assert describe_image(path)["records"][0]["decoded"]["rings"]["ground"] == "page-order"


def test_references_of_two_pages_of_the_grant_table(tmp_path: Path) -> None:
    data = device_with(REQUESTS)
    put(data, 132 + 4 * 3, (1000).to_bytes(4, "little"))  # its page lies two before
    first = ADDRESS // PAGE_SIZE
    frames = {RING_REF: first} | {2046 - at: first + 1 + at for at in range(16) if at != 3}
    table = grant_page({1000: first + 4}), bytes(PAGE_SIZE), grant_page(frames)
    path = ram_with(tmp_path / "ram", data, ADDRESS, (0x200000, b"".join(table)))
    rings = describe_image(path, thorough=True)["records"][0]["decoded"]["rings"]
    assert (rings["ground"], rings["pages"]) == ("grant-table", list(range(1, 17)))


@pytest.mark.parametrize(
    "spoilt",
    [
        {RING_REF: 0x111},  # not a page of the record
        {2040: 0},  # nothing there
        {2040: ADDRESS // PAGE_SIZE + 1},  # twice
    ],
)
def test_a_page_that_is_no_grant_table_of_it_is_not_believed(
    spoilt: dict[int, int], tmp_path: Path
) -> None:
    data = device_with(REQUESTS)
    first = ADDRESS // PAGE_SIZE
    frames = {RING_REF: first} | {2046 - at: first + 1 + at for at in range(16)}
    right, wrong = grant_page(frames), bytearray(grant_page(frames | spoilt))
    if spoilt == {2040: 0}:
        put(wrong, 2040 % 512 * 8, bytes(8))
    only_wrong = ram_with(tmp_path / "wrong", data, ADDRESS, (0x200000, bytes(wrong)))
    both = ram_with(tmp_path / "both", data, ADDRESS, (0x200000, bytes(wrong)), (0x80000, right))
    grounds = [
        describe_image(path, thorough=True)["records"][0]["decoded"]["rings"]["ground"]
        for path in (only_wrong, both)
    ]
    assert grounds == ["page-order", "grant-table"]


def test_ring_pages_are_not_guessed_below_the_interface_page() -> None:
    """A device takes its interface page first, and no page below that was free then."""
    data = device_with(REQUESTS, interface=16, ring=range(16))
    pages = {page: bytes(data[page * PAGE_SIZE :][:PAGE_SIZE]) for page in range(17)}
    decoded = decode_device(bytes(data[-PAGE_SIZE:])[96:112], list(range(17)), pages.get)
    assert decoded
    assert decoded["interface"]["page"] == 16
    assert "rings" not in decoded


def test_ring_pages_that_the_image_lacks() -> None:
    data = device_with(REQUESTS)
    pages = {page: bytes(data[page * PAGE_SIZE :][:PAGE_SIZE]) for page in range(12)}
    decoded = decode_device(bytes(data[-PAGE_SIZE:])[96:112], list(range(17)), pages.get)
    assert decoded
    assert (decoded["rings"]["in"], decoded["rings"]["out"]) == (None, None)


@settings(deadline=None, max_examples=100)
@given(
    data=st.binary(max_size=300) | st.lists(st.sampled_from([READ, WALK, b"\0"])).map(b"".join),
    cons=st.integers(0, 0xFFFFFFFF),
    prod=st.integers(0, 0xFFFFFFFF) | st.integers(0, 8192),
)
def test_any_bytes_and_indices_are_described(data: bytes, cons: int, prod: int) -> None:
    area = data.ljust(8192, b"\0")
    found = pending("in", area, cons, (cons + prod) & 0xFFFFFFFF)
    assert json.loads(json.dumps(found)) == found
    assert (found["pending_bytes"] is None) == (prod > 8192)
    end = 0
    for message in found["messages"]:
        assert message["offset"] == end
        assert in_words(message).isprintable()
        end += message["present_bytes"]
    assert end <= 8192
    if not found["problem"] and not found["left_out"]:
        assert end == found["pending_bytes"]
