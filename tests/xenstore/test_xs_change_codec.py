"""Changes as bytes: each kind there and back, and whatever may stand in their place."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xenstore.goings_on import GoingsOn, saved
from xenstore.picture import picture

from xenlive.errors import ImageError
from xenlive.xenstore import changes
from xenlive.xenstore.change_codec import decode, decode_at, encode
from xenlive.xenstore.replay import replay
from xenlive.xenstore.server import XenstoreServer

if TYPE_CHECKING:
    from xenlive.xenstore.changes import Change

names = st.sampled_from([b"a", b"b", b"Z-9_@"])
tree_paths = st.lists(names, max_size=4).map(lambda parts: b"/" + b"/".join(parts))
permissions = st.lists(
    st.tuples(st.sampled_from(b"nrwb"), st.integers(0, 1), st.integers(0, 0xFFFF)),
    min_size=1,
    max_size=4,
).map(lambda entries: b"".join(bytes((a, b, c & 255, c >> 8)) for a, b, c in entries))
few = st.one_of(st.integers(1, 5), st.integers(1, (1 << 32) - 1))

FIELDS: dict[int, st.SearchStrategy[Any]] = {
    changes.CONNECTION: few,
    changes.DOMID: st.one_of(st.integers(0, 5), st.integers(0, 0xFFFF)),
    changes.MAYBE_DOMID: st.integers(-1, 0xFFFF),
    changes.U64: st.integers(0, (1 << 64) - 1),
    changes.FLAG: st.integers(0, 1),
    changes.U32: st.integers(0, (1 << 32) - 1),
    changes.TX_ID: few,
    changes.NANOSECONDS: st.integers(0, (1 << 63) - 1),
    changes.MAYBE_U32: st.integers(-1, (1 << 32) - 1),
    changes.PATH: st.one_of(tree_paths, st.sampled_from([b"@releaseDomain", b"@x", b"/tool"])),
    changes.DATA: st.binary(max_size=20),
    changes.PERMISSIONS: permissions,
    changes.TOKEN: st.binary(max_size=5).map(lambda raw: raw.replace(b"\0", b"")),
    changes.NAME: st.sampled_from([b"nodes", b"from-the-future"]),
}


CODES = {
    *("change-truncated", "change-trailing", "change-bad-kind"),
    *("change-bad-number", "change-bad-bytes"),
}


def changes_of(kinds: list[int]) -> st.SearchStrategy[Change]:
    return st.one_of(
        [
            st.tuples(st.just(kind), *(FIELDS[field] for field in changes.FIELDS[kind]))
            for kind in kinds
        ]
    )


of_a_commit = changes_of([changes.VALUE, changes.PERMS, changes.CREATE, changes.REMOVE])
FIELDS[changes.CHANGES] = st.lists(of_a_commit, max_size=4).map(tuple)
any_change = changes_of(sorted(changes.FIELDS))


def lively(seed: int) -> tuple[XenstoreServer, list[Change]]:
    """A server where much has happened, without the machine around it, and its journal."""
    world = GoingsOn(random.Random(seed))
    heard: list[Change] = []
    world.server.journal = heard.append
    for _ in range(80):
        world.step()
    server = XenstoreServer()
    for change in heard:
        replay(server, change)
    return server, heard


def fits(server: XenstoreServer, change: Change) -> bool:
    """Whether a change could be done again; any other error than the one is not caught."""
    try:
        replay(server, change)
    except ImageError as error:
        if error.code != "change-does-not-fit":
            raise
        return False
    return True


def refused(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as raised:
        decode(data)
    return raised.value


@given(any_change)
@settings(deadline=None, max_examples=400)
def test_there_and_back(change: Change) -> None:
    data = encode(change)
    assert decode(data) == change
    assert decode_at(b"xx" + data + b"yy", 2) == (change, 2 + len(data))
    assert refused(data + b"\0").code == "change-trailing"
    for end in range(len(data)):
        assert refused(data[:end]).code == "change-truncated"


@given(any_change, st.integers(0, 1 << 16), st.integers(0, 255))
@settings(deadline=None, max_examples=400)
def test_a_changed_byte_is_found_or_another_change(change: Change, at: int, byte: int) -> None:
    data = bytearray(encode(change))
    data[at % len(data)] = byte
    decoded_or_refused(bytes(data))


@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=400)
def test_noise_is_an_image_error(data: bytes) -> None:
    decoded_or_refused(data)


def decoded_or_refused(data: bytes) -> None:
    error: ImageError | None = None
    try:
        change = decode(data)
    except ImageError as raised:
        error = raised
    if error is None:
        assert encode(change) == data
        return
    assert error.code in CODES
    assert error.offset is not None
    assert 0 <= error.offset <= len(data)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ((changes.VALUE, b"a", b""), "change-bad-bytes"),
        ((changes.VALUE, b"", b""), "change-bad-bytes"),
        ((changes.VALUE, b"/a//b", b""), "change-bad-bytes"),
        ((changes.VALUE, b"/a/", b""), "change-bad-bytes"),
        ((changes.VALUE, b"/a b", b""), "change-bad-bytes"),
        ((changes.VALUE, b"/" + b"a" * 3072, b""), "change-bad-bytes"),
        ((changes.VALUE, b"/a", b"v" * 4097), "change-bad-bytes"),
        ((changes.PERMS, b"/a", b""), "change-bad-bytes"),
        ((changes.PERMS, b"/a", b"n\0\0"), "change-bad-bytes"),
        ((changes.PERMS, b"/a", b"x\0\0\0"), "change-bad-bytes"),
        ((changes.WATCH, 1, -1, 0, b"/a", b"t\0"), "change-bad-bytes"),
        ((changes.QUOTA, -1, 1, b""), "change-bad-bytes"),
        ((changes.QUOTA, -1, 1, b"\xff"), "change-bad-bytes"),
        ((changes.CONNECT, 0, 0), "change-bad-number"),
        ((changes.CONNECT, 1 << 63, 0), "change-bad-number"),
        ((changes.SHUT_DOWN, 1, 2), "change-bad-number"),
        ((changes.START, 1, 0, 0), "change-bad-number"),
        ((changes.START, 1, 1, 1 << 63), "change-bad-number"),
        ((changes.COMMIT, 1, 1, ((changes.KNOWN, 3),)), "change-bad-kind"),
        ((changes.COMMIT, 1, 1, ((changes.COMMIT, 1, 1, ()),)), "change-bad-kind"),
    ],
)
def test_fields_out_of_their_bounds(change: Change, code: str) -> None:
    assert refused(encode(change)).code == code


def test_numbers_that_claim_much_take_nothing() -> None:
    """A count or a length is checked before anything is made of it."""
    for kind in (changes.COMMIT, changes.LOOK):
        head = encode((kind, 1, 1, b"/" if kind == changes.LOOK else ()))
        size = 5 if kind == changes.LOOK else 4
        error = refused(head[:-size] + b"\xff\xff\xff\xff" + bytes(40))
        assert error.code in ("change-truncated", "change-bad-bytes")
    assert refused(b"\x02").code == "change-truncated"
    assert refused(bytes(64)).code == "change-bad-bytes"  # memory that nobody has written
    assert refused(b"\xff" * 64).code == "change-bad-kind"


@pytest.mark.parametrize("seed", range(4))
def test_everything_that_is_heard_can_be_written_down(seed: int) -> None:
    _, heard = lively(seed)
    data = b"".join([encode(change) for change in heard])
    found: list[Change] = []
    offset = 0
    while offset < len(data):
        change, offset = decode_at(data, offset)
        found.append(change)
    assert found == heard


@pytest.mark.parametrize(
    "change",
    [
        (changes.CONNECT, 1000, 9),
        (changes.DISCONNECT, 2),
        (changes.RING, 2, 5, 1, 5),
        (changes.FEATURES, 9, 0),
        (changes.UNIQUE_ID, 9, 1),
        (changes.QUOTA, 9, 0, b"nodes"),
    ],
)
def test_what_no_server_would_have_written_does_not_fit(change: Change) -> None:
    """A connection of nobody's, or one that ends with watches; a second ring; an unknown domain."""
    server = XenstoreServer()
    for before in (
        *((changes.KNOWN, 3), (changes.CONNECT, 1, 3), (changes.RING, 1, 4, 1, 4)),
        *((changes.CONNECT, 2, 3), (changes.WATCH, 2, -1, 0, b"/a", b"t")),
    ):
        replay(server, before)
    now = picture(server)
    assert not fits(server, change)
    assert picture(server) == now


@given(st.integers(0, 3), st.lists(any_change, min_size=1, max_size=12))
@settings(deadline=None, max_examples=150)
def test_a_change_that_does_not_fit_changes_nothing(seed: int, listed: list[Change]) -> None:
    server, _ = lively(seed)
    for change in listed:
        before = picture(server)
        assert fits(server, change) or picture(server) == before
        assert server.store.check() == []
    saved(server)


@given(st.integers(0, 3), st.integers(0, 1 << 30))
@settings(deadline=None, max_examples=40)
def test_a_journal_that_was_tampered_with_does_no_harm(seed: int, dice_seed: int) -> None:
    """Changes left out, doubled, swapped: what still fits is done, and the store stays sound."""
    _, heard = lively(seed)
    dice = random.Random(dice_seed)
    tampered = list(heard)
    for _ in range(6):
        at = dice.randrange(len(tampered))
        what = dice.randrange(3)
        if what == 0:
            del tampered[at]
        elif what == 1:
            tampered.insert(dice.randrange(len(tampered)), tampered[at])
        else:
            other = dice.randrange(len(tampered))
            tampered[at], tampered[other] = tampered[other], tampered[at]
    server = XenstoreServer()
    for change in tampered:
        fits(server, change)
    assert server.store.check() == []
    assert (
        server.store.accounts.wrong_counts(
            [*server.store.nodes.items(), *server.store.special.items()]
        )
        == {}
    )
    saved(server)
