"""The client core: what it sends, how it takes replies, and replies that can't be."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.errors import NinePError, PeerError
from xenlive.ninep import messages as m
from xenlive.ninep.client import MAX_CALLS, NinePClient
from xenlive.ninep.codec import decode, encode


def connected(msize: int = 8192) -> NinePClient:
    client = NinePClient(msize)
    call = client.version()
    client.receive(encode(m.RVERSION, m.NOTAG, msize=msize, version=b"9P2000.u"))
    call.result()
    client.output.clear()
    return client


def test_version_sets_the_message_size() -> None:
    client = NinePClient(8192)
    call = client.version()
    sent = decode(b"".join(client.output))
    assert (sent.type, sent.tag, sent["msize"], sent["version"]) == (
        *(m.TVERSION, m.NOTAG, 8192),
        b"9P2000.u",
    )
    assert not client.can_call
    client.receive(encode(m.RVERSION, m.NOTAG, msize=4096, version=b"9P2000.u"))
    assert call.done
    assert (client.msize, client.can_call) == (4096, True)
    assert client.write_limit == 4096 - 23
    assert client.read_limit == 4096 - 11


@pytest.mark.parametrize(
    ("msize", "version"),
    [(8193, b"9P2000.u"), (2047, b"9P2000.u"), (4096, b"9P2000"), (4096, b"unknown")],
)
def test_a_version_that_will_not_do(msize: int, version: bytes) -> None:
    client = NinePClient(8192)
    client.version()
    with pytest.raises(PeerError):
        client.receive(encode(m.RVERSION, m.NOTAG, msize=msize, version=version))


def test_replies_in_any_order() -> None:
    client = connected()
    calls = [client.call(m.TREAD, fid=1, offset=n, count=10) for n in range(3)]
    assert client.in_flight == 3
    for n in (2, 0, 1):
        client.receive(encode(m.RREAD, calls[n].tag, data=b"%d" % n))
    assert [bytes(call.result()["data"]) for call in calls] == [b"0", b"1", b"2"]
    assert client.in_flight == 0


def test_tags_are_used_again_only_after_their_reply() -> None:
    client = connected()
    calls = [client.call(m.TCLUNK, fid=n) for n in range(MAX_CALLS)]
    assert len({call.tag for call in calls}) == MAX_CALLS == 64
    assert not client.can_call
    with pytest.raises(RuntimeError):
        client.call(m.TCLUNK, fid=1)
    client.receive(encode(m.RCLUNK, calls[5].tag))
    assert client.call(m.TCLUNK, fid=1).tag == calls[5].tag


def test_a_refusal_is_a_ninep_error() -> None:
    client = connected()
    call = client.call(m.TCLUNK, fid=1)
    with pytest.raises(RuntimeError):
        call.result()
    client.receive(encode(m.RERROR, call.tag, ename=b"nothing \xff there", errno=errno.ENOENT))
    with pytest.raises(NinePError, match="nothing") as caught:
        call.result()
    assert caught.value.errno == errno.ENOENT


def test_replies_that_cannot_be() -> None:
    asked = {
        "tag": encode(m.RREAD, 99, data=b""),
        "kind": encode(m.RCLUNK, 0),
        "request": encode(m.TREAD, 0, fid=1, offset=0, count=1),
        "more than asked": encode(m.RREAD, 0, data=b"12345"),
        "length": b"\x06\0\0\0" + bytes(20),
        "cut": b"\x08\0\0\0" + bytes([m.RREAD]) + b"\0\0\0",
        "longer than msize": b"\0\0\1\0" + bytes(10),
        "version": encode(m.RVERSION, m.NOTAG, msize=4096, version=b"9P2000.u"),
    }
    for why, reply in asked.items():
        client = connected()
        call = client.call(m.TREAD, fid=1, offset=0, count=4)
        assert call.tag == 0
        with pytest.raises(PeerError):
            client.receive(reply)
        assert not call.done, why


def test_more_written_or_walked_than_asked() -> None:
    client = connected()
    call = client.write(1, 0, b"abc")
    with pytest.raises(PeerError):
        client.receive(encode(m.RWRITE, call.tag, count=4))
    client = connected()
    call = client.call(m.TWALK, fid=0, newfid=1, wname=[b"a"])
    with pytest.raises(PeerError):
        client.receive(encode(m.RWALK, call.tag, wqid=[m.Qid(0, 0, 0)] * 2))


def test_what_an_earlier_kernel_asked_is_dropped_until_rversion() -> None:
    client = NinePClient(8192)
    call = client.version()
    client.receive(encode(m.RREAD, 3, data=b"late") + encode(m.RCLUNK, 9))
    assert not call.done
    client.receive(encode(m.RVERSION, m.NOTAG, msize=8192, version=b"9P2000.u"))
    assert call.done
    with pytest.raises(PeerError):
        client.receive(encode(m.RREAD, 3, data=b"late"))


def test_written_data_is_sent_without_a_copy() -> None:
    client = connected()
    data = bytearray(b"abc")
    client.write(1, 5, data)
    data[0] = ord("x")
    assert decode(b"".join(client.output))["data"] == b"xbc"
    with pytest.raises(ValueError, match="don't fit"):
        client.write(1, 0, bytes(client.write_limit + 1))
    client.output.clear()
    client.write(1, 0, b"")
    assert decode(b"".join(client.output))["data"] == b""


def test_fids_are_used_again() -> None:
    client = NinePClient(4096)
    assert [client.new_fid() for _ in range(3)] == [0, 1, 2]
    client.free_fid(1)
    assert [client.new_fid(), client.new_fid()] == [1, 3]


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=6), st.data())
def test_any_chunking_settles_the_same_calls(sizes: list[int], data: st.DataObject) -> None:
    client = connected()
    calls = [client.call(m.TREAD, fid=1, offset=0, count=4000) for _ in sizes]
    client.output.clear()
    payloads = [bytes([n]) * size for n, size in enumerate(sizes)]
    stream = b"".join(
        encode(m.RREAD, call.tag, data=payload)
        for call, payload in zip(calls, payloads, strict=True)
    )
    while stream:
        count = data.draw(st.one_of(st.integers(1, 40), st.integers(1, len(stream))))
        client.receive(stream[:count])
        stream = stream[count:]
        assert client.is_idle == (not stream)
    assert [bytes(call.result()["data"]) for call in calls] == payloads


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_any_bytes_are_taken_or_a_peer_error(chunks: list[bytes]) -> None:
    client = connected(2048)
    client.call(m.TREAD, fid=1, offset=0, count=100)
    try:
        for chunk in chunks:
            client.receive(chunk)
    except PeerError:
        pass
