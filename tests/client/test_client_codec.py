"""The codec and the requests: bytes in any chunking, and bytes that no server should send."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.abi import xs_wire
from xenlive.client import plans, requests
from xenlive.client.codec import Answer, ClientCodec, WatchEvent, decode_strings
from xenlive.client.requests import Permission, Request
from xenlive.errors import PeerError, XenstoreError


def message(type: int, request_id: int, payload: bytes, transaction: int = 0) -> bytes:
    return xs_wire.XSD_SOCKMSG.pack(type, request_id, transaction, len(payload)) + payload


def answer(payload: bytes, type: int) -> Answer:
    return Answer(request_id=1, type=type, payload=payload, offset=16)


def test_a_request_on_the_wire() -> None:
    request = requests.write("/a", b"v\0w")
    number, data = ClientCodec().encode(request.type, request.payload, 7)
    # public/io/xs_wire.h: struct xsd_sockmsg { type, req_id, tx_id, len }, XS_WRITE is 11.
    assert number == 1
    assert data == b"\x0b\0\0\0\x01\0\0\0\x07\0\0\0\x06\0\0\0/a\0v\0w"


def test_request_ids_never_become_zero() -> None:
    codec = ClientCodec()
    codec._next_id = 0xFFFFFFFF
    assert [codec.encode(xs_wire.XS_READ, b"/\0")[0] for _ in range(2)] == [0xFFFFFFFF, 1]


def test_a_request_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(XenstoreError) as caught:
        ClientCodec().encode(xs_wire.XS_WRITE, bytes(4097))
    assert caught.value.name == "E2BIG"
    ClientCodec().encode(xs_wire.XS_WRITE, bytes(4096))


@given(st.lists(st.integers(min_value=1, max_value=40), max_size=30), st.binary(max_size=200))
@settings(deadline=None, max_examples=50)
def test_any_chunking_gives_the_same_messages(cuts: list[int], value: bytes) -> None:
    codec = ClientCodec()
    for _ in range(2):
        codec.encode(xs_wire.XS_READ, b"/a\0")
    stream = (
        message(xs_wire.XS_WATCH_EVENT, 0, b"/a\0t\0")
        + message(xs_wire.XS_READ, 1, value)
        + message(xs_wire.XS_WATCH_EVENT, 0, b"/b\0u\0")
        + message(xs_wire.XS_ERROR, 2, b"ENOENT\0")
    )
    found: list[Answer | WatchEvent] = []
    position = 0
    for size in [*cuts, len(stream)]:
        found += codec.receive(stream[position : position + size])
        position += size
    assert [m for m in found if isinstance(m, WatchEvent)] == [
        WatchEvent("/a", "t"),
        WatchEvent("/b", "u"),
    ]
    answers = [m for m in found if isinstance(m, Answer)]
    assert [(a.request_id, a.type, a.payload) for a in answers] == [
        (1, xs_wire.XS_READ, value),
        (2, xs_wire.XS_ERROR, b"ENOENT\0"),
    ]


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (message(xs_wire.XS_READ, 9, b""), 4),  # never asked
        (message(xs_wire.XS_WRITE, 1, b"OK\0"), 0),  # another type
        (message(xs_wire.XS_READ, 1, b"", transaction=3), 8),
        (xs_wire.XSD_SOCKMSG.pack(xs_wire.XS_READ, 1, 0, 4097), 12),
        (message(xs_wire.XS_WATCH_EVENT, 0, b"/a\0"), 16),
        (message(xs_wire.XS_WATCH_EVENT, 0, b"/a\0t"), 19),
    ],
)
def test_bytes_that_are_no_answer(data: bytes, offset: int) -> None:
    codec = ClientCodec()
    codec.encode(xs_wire.XS_READ, b"/a\0")
    with pytest.raises(PeerError) as caught:
        codec.receive(data)
    assert caught.value.offset == offset


def test_an_offset_counts_from_the_first_byte_ever() -> None:
    codec = ClientCodec()
    codec.encode(xs_wire.XS_READ, b"/a\0")
    first = message(xs_wire.XS_READ, 1, b"value")
    codec.receive(first)
    with pytest.raises(PeerError) as caught:
        codec.receive(message(xs_wire.XS_READ, 1, b""))
    assert caught.value.offset == len(first) + 4


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=150)
def test_any_bytes_are_messages_or_one_error(data: bytes) -> None:
    codec = ClientCodec()
    for _ in range(3):
        codec.encode(xs_wire.XS_DIRECTORY, b"/\0")
    try:
        codec.receive(data)
    except PeerError:
        return


ALL_REQUESTS: list[Request[object]] = [
    requests.read("/a"),
    requests.write("/a", b""),
    requests.directory("/a"),
    requests.directory_part("/a", 0),
    requests.get_perms("/a"),
    requests.watch("/a", "t"),
    requests.transaction_start(),
    requests.transaction_end(commit=True),
    requests.get_domain_path(0),
    requests.is_domain_introduced(0),
    requests.control("help"),
    requests.get_feature(),
    requests.quota_names(),
    requests.get_quota("nodes", 3),
    requests.reset_watches(),
]


@given(st.sampled_from(ALL_REQUESTS), st.binary(max_size=40), st.booleans())
@settings(deadline=None, max_examples=300)
def test_any_answer_has_a_meaning_or_one_error(
    request: Request[object], payload: bytes, refused: bool
) -> None:
    type = xs_wire.XS_ERROR if refused else request.type
    try:
        request.decode(answer(payload, type))
    except (PeerError, XenstoreError):
        return


@pytest.mark.parametrize("payload", [b"", b"\0", b"ENOENT", b"enoent\0", b"EN\x1bT\0", b"A\0B\0"])
def test_an_error_without_a_proper_name(payload: bytes) -> None:
    with pytest.raises(PeerError):
        requests.read("/a").decode(answer(payload, xs_wire.XS_ERROR))


def test_an_error_answer_names_the_request() -> None:
    with pytest.raises(XenstoreError, match="read /a: ENOENT") as caught:
        requests.read("/a").decode(answer(b"ENOENT\0", xs_wire.XS_ERROR))
    assert (caught.value.name, caught.value.request) == ("ENOENT", "read /a")


@pytest.mark.parametrize(
    ("request_", "payload", "meaning"),
    [
        (requests.read("/a"), b"x\0y", b"x\0y"),
        (requests.directory("/a"), b"", []),
        (requests.directory("/a"), b"b\0c\0", ["b", "c"]),
        (requests.get_perms("/a"), b"n0\0r5\0", [Permission(0, "n"), Permission(5, "r")]),
        (requests.transaction_start(), b"17\0", 17),
        (requests.get_domain_path(3), b"/local/domain/3\0", "/local/domain/3"),
        (requests.is_domain_introduced(3), b"F\0", False),
        (requests.control("check"), b"OK\0", "OK"),
        (requests.control("print"), b"", ""),
        (requests.get_feature(), b"7\0", 7),
        (requests.get_feature(1), b"0\0", 0),
        (requests.quota_names(), b"nodes watches\0", ["nodes", "watches"]),
        (requests.quota_names(), b"\0", []),
        (requests.get_quota("nodes"), b"4294967295\0", 0xFFFFFFFF),
    ],
)
def test_what_an_answer_means(request_: Request[object], payload: bytes, meaning: object) -> None:
    assert request_.decode(answer(payload, request_.type)) == meaning


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (requests.write("/a", b""), b"ok\0"),
        (requests.directory("/a"), b"b"),
        (requests.get_perms("/a"), b""),
        (requests.get_perms("/a"), b"x0\0"),
        (requests.get_perms("/a"), b"r65536\0"),
        (requests.transaction_start(), b"0\0"),
        (requests.transaction_start(), b"4294967296\0"),
        (requests.transaction_start(), b"-1\0"),
        (requests.is_domain_introduced(3), b"yes\0"),
        (requests.directory_part("/a", 0), b"5\0"),
        (requests.directory_part("/a", 0), b"5"),
    ],
)
def test_an_answer_that_makes_no_sense(request_: Request[object], payload: bytes) -> None:
    with pytest.raises(PeerError):
        request_.decode(answer(payload, request_.type))


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        # docs/misc/xenstore.txt, and what libxenstore of the newest Xen sends.
        (requests.watch("/a", "t"), b"/a\0t\0"),
        (requests.watch("/a", "t", 0), b"/a\0t\x000\0"),
        (requests.watch("@releaseDomain", "t", 1), b"@releaseDomain\0t\x001\0"),
        (requests.reset_watches(), b"\0"),
        (requests.resume(3), b"3\0"),
        (requests.set_target(3, 4), b"3\x004\0"),
        (requests.get_feature(), b""),
        (requests.get_feature(3), b"3\0"),
        (requests.set_feature(3, 5), b"3\x005\0"),
        (requests.quota_names(), b""),
        (requests.get_quota("nodes"), b"nodes\0"),
        (requests.get_quota("nodes", 3), b"3\0nodes\0"),
        (requests.set_quota("nodes", 9), b"nodes\x009\0"),
        (requests.set_quota("nodes", 9, 3), b"3\0nodes\x009\0"),
    ],
)
def test_payloads(request_: Request[object], payload: bytes) -> None:
    assert request_.payload == payload


def follow_parts(parts: list[bytes]) -> tuple[list[str], list[int]]:
    """Names that come out of answers to DIRECTORY_PART, and the offsets that were asked for."""
    conversation = plans.directory_in_parts("/a")
    (request,) = next(conversation)
    offsets = []
    for part in parts:
        offsets.append(int(decode_strings(request.payload, 0)[1]))
        try:
            (request,) = conversation.send([request.decode(answer(part, request.type))])
        except StopIteration as end:
            return end.value, offsets
    raise AssertionError("more parts were asked for")


@pytest.mark.parametrize(
    ("parts", "names", "offsets"),
    [
        ([b"5\0\0"], [], [0]),
        ([b"5\0b\0c\0\0"], ["b", "c"], [0]),
        ([b"5\0b\0", b"5\0c\0\0"], ["b", "c"], [0, 2]),
        ([b"5\0b\0", b"5\0\0"], ["b"], [0, 2]),
        # Changed between two parts: all of it is asked for again.
        ([b"5\0b\0", b"6\0x\0\0", b"6\0new\0", b"6\0x\0\0"], ["new", "x"], [0, 2, 0, 4]),
    ],
)
def test_children_in_parts(parts: list[bytes], names: list[str], offsets: list[int]) -> None:
    assert follow_parts(parts) == (names, offsets)


@pytest.mark.parametrize("text", ["", "r", "5", "x5", "r-1", "r65536", "r5 ", "rr5", "r٣"])
def test_texts_that_are_no_permission(text: str) -> None:
    with pytest.raises(ValueError, match=r"permission|domains"):
        Permission.parse(text)


@given(st.integers(min_value=0, max_value=65535), st.sampled_from("nrwb"))
@settings(deadline=None, max_examples=50)
def test_permissions_survive_their_text(domid: int, access: str) -> None:
    assert Permission.parse(str(Permission(domid, access))) == Permission(domid, access)


def test_a_nul_in_a_path_is_the_callers_bug() -> None:
    with pytest.raises(ValueError, match="NUL"):
        requests.read("/a\0b")
