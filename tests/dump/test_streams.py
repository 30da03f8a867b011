"""State streams in an image: recognised, summed up, and never trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dump.made import ADDRESS, REAL, module_with, put, ram_with
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import minios

from xenlive.abi.xs_state import (
    XS_STATE_NODE,
    XS_STATE_PREAMBLE,
    XS_STATE_RECORD_HEADER,
    XS_STATE_TYPE_NODE,
)
from xenlive.cli.root import run
from xenlive.dump import describe_image
from xenlive.dump.statestream import Read, in_words, starts_stream, summarize
from xenlive.memory.address import PAGE_SIZE

C_STREAM = (minios.FOLDER / "xs_state" / "c_daemon_4_17_7.bin").read_bytes()
PREAMBLE = XS_STATE_PREAMBLE.pack(b"xenstore", 2, 0)


def reading(data: bytes) -> Read:
    return lambda offset, size: data[offset : offset + size]


def record(kind: int, body: bytes) -> bytes:
    return XS_STATE_RECORD_HEADER.pack(kind, len(body)) + body


def stream_of_nodes(n_nodes: int) -> bytes:
    """A stream with that many nodes, as a kernel writes it to memory."""
    nodes = []
    for index in range(n_nodes):
        path, value = b"/n%d\0" % index, b"value"
        body = XS_STATE_NODE.pack(0, 0, len(path), len(value), 0, 1) + bytes(4) + path + value
        nodes.append(record(XS_STATE_TYPE_NODE, body + bytes(-len(body) % 8)))
    return PREAMBLE + b"".join(nodes) + record(0, b"")


def test_the_c_daemons_stream() -> None:
    found = summarize(reading(C_STREAM))
    assert found == {
        "version": 1,
        "records": 24,
        "size_bytes": len(C_STREAM),
        "complete": True,
        "ring_connections": 1,
        "socket_connections": 3,
        "watches": 4,
        "transactions": 0,
        "nodes": 14,
        "transaction_nodes": 0,
        "domains": 0,
        "quotas": 0,
        "globals": 1,
        "unknown": 0,
        "value_bytes": found["value_bytes"],
        "problem": None,
    }
    assert in_words(found) == (
        "version 1, 992 bytes: ring connections 1, socket connections 3, watches 4, nodes 14, "
        "globals 1"
    )


def test_each_byte_less_is_one_that_is_not_whole() -> None:
    for size in range(len(C_STREAM)):
        found = summarize(reading(C_STREAM[:size]))
        assert not found["complete"]
        assert found["problem"]
        assert found["size_bytes"] <= size


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (record(XS_STATE_TYPE_NODE, bytes(8)), "the record at 16 is too short for a node"),
        (
            record(XS_STATE_TYPE_NODE, bytes(8) + b"\xff\xff" + bytes(6)),
            "the record at 16 is too short for its node's path and value",
        ),
        (record(2, bytes(16)), "the record at 16 is too short for a connection"),
        (record(99, bytes(16)) + b"\x01", "it ends at 40 without an END record"),
        (
            XS_STATE_RECORD_HEADER.pack(1, 0xFFFFFFF0),
            "the record at 16 of 4294967280 bytes ends behind the data",
        ),
    ],
)
def test_what_ends_a_stream_too_early(body: bytes, problem: str) -> None:
    assert summarize(reading(PREAMBLE + body))["problem"] == problem


def test_a_stream_without_end_is_given_up() -> None:
    endless = record(99, b"")
    found = summarize(lambda at, size: PREAMBLE if at == 0 else endless * (size // 8 + 1), 1000)
    assert (found["records"], found["problem"]) == (1000, "more than 1000 records")


@pytest.mark.parametrize(
    "head",
    [
        b"xenstore\0\0\0\x03\0\0\0\0",
        b"xenstore\0\0\0\0\0\0\0\0",
        b"xenstore\0\0\0\x01\0\0\0\x02",
        b"xenstorf\0\0\0\x01\0\0\0\0",
        b"xenstore\0\0\0\x01\0\0\0",
    ],
)
def test_what_is_no_stream(head: bytes) -> None:
    assert not starts_stream(head)
    assert summarize(reading(head))["problem"] == "no header of a Xenstore state stream"


def test_big_endian_is_said() -> None:
    problem = summarize(reading(b"xenstore\0\0\0\x01\0\0\0\x01"))["problem"]
    assert problem == "the stream is big endian, which is not read here"


def test_in_the_pages_of_a_record(tmp_path: Path) -> None:
    """Over pages that are no neighbours, in the order of their indices."""
    stream = stream_of_nodes(400)
    assert 2 * PAGE_SIZE < len(stream) < 6 * PAGE_SIZE
    data = module_with((7, b"", 2), (8, b"", 1), (7, b"", 0))
    owners = bytes([0, 0, 1, 0, 0, 0, 0])
    put(data, 14 - PAGE_SIZE, owners)
    for at, page in enumerate((0, 1, 3, 4, 5, 6)):
        put(data, page * PAGE_SIZE, stream[at * PAGE_SIZE : (at + 1) * PAGE_SIZE])
    path = tmp_path / "image"
    path.write_bytes(data)
    (found,) = describe_image(path)["streams"]
    assert (found["address"], found["page"], found["record"]) == (None, 0, 0)
    assert (found["complete"], found["size_bytes"]) == (True, len(stream))
    assert (found["nodes"], found["value_bytes"]) == (400, 2000)


def test_in_memory_outside_of_the_module(tmp_path: Path) -> None:
    parts = [(0x123008, C_STREAM), (0x200004, C_STREAM), (0x3FFFFF8, b"xenstore")]
    path = ram_with(tmp_path / "ram", REAL, ADDRESS - 0x100000, *parts)
    found = describe_image(path, thorough=True)["streams"]
    assert [(one["address"], one["page"], one["complete"]) for one in found] == [
        (0x123008, None, True)  # a stream lies at a multiple of 8
    ]
    assert describe_image(path)["streams"] == []


def test_a_module_full_of_streams_is_described_in_time(tmp_path: Path) -> None:
    page = PREAMBLE + record(99, b"") * 510
    data = module_with(n_module_pages=200)
    for index in range(199):
        put(data, index * PAGE_SIZE, page)
    path = tmp_path / "image"
    path.write_bytes(data)
    found = describe_image(path)["streams"]
    assert len(found) == 16
    assert not any(one["complete"] for one in found)


def test_a_file_that_is_a_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "state"
    path.write_bytes(C_STREAM)
    assert run(["inspect", str(path)]) == 0
    said = "Xenstore state stream by itself: version 1, 992 bytes: "
    assert capsys.readouterr().out.startswith(said)
    assert run(["inspect", "--json", str(path)]) == 0
    (found,) = json.loads(capsys.readouterr().out)["streams"]
    assert (found["nodes"], found["complete"]) == (14, True)
    assert run(["verify", str(path)]) == 2  # it has no module


@settings(deadline=None, max_examples=200)
@given(
    at=st.integers(0, len(C_STREAM) - 1),
    bytes_=st.binary(min_size=1, max_size=8),
    cut=st.integers(0, len(C_STREAM)),
)
def test_any_bytes_are_summed_up(at: int, bytes_: bytes, cut: int) -> None:
    data = bytearray(C_STREAM)
    put(data, at, bytes_)
    found = summarize(reading(bytes(data[:cut])))
    assert found["complete"] == (found["problem"] is None)
    assert in_words(found).isprintable()
