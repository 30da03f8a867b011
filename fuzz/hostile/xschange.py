"""The xenstore-change target: a journal that some kernel is said to have written.

    input: seed u8 · moment u8 · changes, one after the other

The server that they meet is one where much has happened, by the seed, up to the moment. What is no
change is refused with a documented code; what is one has no other bytes. A change that does not fit
is refused, and changes nothing; one that does is heard by the next journal as it was, and leaves a
server that is sound, serves, and keeps its values when it is saved.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import TYPE_CHECKING

from xenstore.goings_on import GoingsOn
from xenstore.picture import picture

from hostile import bytewise
from hostile.target import Target, expect
from hostile.xspromises import expect_sound, expect_values_saved
from hostile.xsscript import message
from xenlive.abi.xs_wire import XS_READ
from xenlive.errors import ImageError
from xenlive.xenstore import changes
from xenlive.xenstore.change_codec import decode_at, encode
from xenlive.xenstore.replay import replay
from xenlive.xenstore.server import XenstoreServer

if TYPE_CHECKING:
    from xenlive.xenstore.changes import Change

MAX_BYTES = 8 << 10
MAX_CHANGES = 40
WORLDS = 8
NOW_S = 1000.0
CODES = {"change-truncated", "change-bad-kind", "change-bad-number", "change-bad-bytes"}


@cache
def heard_in(seed: int) -> tuple[Change, ...]:
    """What the journal of a lively server heard."""
    world = GoingsOn(Random(seed))
    heard: list[Change] = []
    world.server.journal = heard.append
    for _ in range(70):
        world.step()
    return tuple(heard)


def check_changes(data: bytes) -> str:
    """Does all the changes that there are; says what ended it, and how many fitted."""
    server = XenstoreServer(now=lambda: NOW_S)
    for change in _before(data):
        replay(server, change)
    echo: list[Change] = []
    server.journal = echo.append
    at, fitted, refused, word = 2, 0, 0, "all"
    while at < len(data) and fitted + refused < MAX_CHANGES:
        try:
            change, end = decode_at(data, at)
        except ImageError as error:
            expect(error.code in CODES, f"{error.code} is documented")
            expect(str(error).isprintable(), f"{error.code} has one line of text")
            word = error.code
            break
        expect(encode(change) == data[at:end], "a change has one encoding")
        at = end
        before = picture(server)
        try:
            replay(server, change)
        except ImageError as error:
            expect(error.code == "change-does-not-fit", f"{error.code} is documented")
            expect(picture(server) == before, f"what does not fit changes nothing: {change}")
            expect(not echo, "what does not fit is not heard")
            refused += 1
        else:
            fitted += 1
            expect(echo in ([change], []), f"{change} is heard as it was, not as {echo}")
            expect(bool(echo) or picture(server) == before, "what changes something is heard")
            echo.clear()
    server.journal = None
    _look(server)
    return f"{word}: {min(fitted, 3)} fitted, {min(refused, 3)} refused"


def _before(data: bytes) -> tuple[Change, ...]:
    seed, moment = data[:2].ljust(2, b"\0")
    heard = heard_in(seed % WORLDS)
    return heard[: len(heard) * moment // 255]


def _look(server: XenstoreServer) -> None:
    client = server.connect()
    server.receive(client, message(XS_READ, b"/\0"))
    expect(client.take().endswith(server.store.nodes[b"/"].value), "a new client is served")
    server.disconnect(client)
    expect_sound(server, by_requests=False)
    expect_values_saved(server, NOW_S)


def change_seeds() -> list[bytes]:
    """What went on, from some moment on, and each kind of change."""
    seeds: list[bytes] = []
    kinds: dict[int, tuple[int, Change]] = {}
    for seed in range(WORLDS):
        heard = heard_in(seed)
        for change in heard:
            kinds.setdefault(change[0], (seed, change))
        for moment in (0, 100, 180, 240, 255):
            start = len(heard) * moment // 255
            seeds.append(bytes([seed, moment]) + b"".join(map(encode, heard[start : start + 12])))
    seeds += [bytes([seed, 255]) + encode(change) for seed, change in kinds.values()]
    return [seed for seed in seeds if len(seed) <= MAX_BYTES]


def _split(data: bytes) -> list[bytes]:
    parts: list[bytes] = []
    at = 2
    while at < len(data) and len(parts) < MAX_CHANGES:
        try:
            _, end = decode_at(data, at)
        except ImageError:
            break
        parts.append(data[at:end])
        at = end
    return [*parts, data[at:]]


def mutate_changes(data: bytes, rng: Random) -> bytes:
    """Changes more, less, in another order, with other numbers or bytes; or another server."""
    parts, first = _split(data), data[:2].ljust(2, b"\0")
    at, how = rng.randrange(len(parts)), rng.randrange(12)
    part = bytearray(parts[at])
    if how == 0:
        first = bytes([rng.randrange(WORLDS), rng.randrange(256)])
    elif how == 1:
        del parts[at]
    elif how < 4:
        other = heard_in(rng.randrange(WORLDS))
        parts.insert(at, encode(rng.choice(other)))
    elif how == 4:
        other = heard_in(first[0] % WORLDS)
        parts.insert(at, encode(rng.choice(other[-25:])))
    elif how == 5:
        parts.insert(at, rng.choice((_commit(rng), _in_transaction(first, rng))))
    elif how < 9 and part:
        bytewise.put_number(part, rng, 1 + rng.randrange(8) * 2, rng.choice((1, 2, 4, 8)))
        parts[at] = bytes(part)
    else:
        bytewise.change(part, rng, MAX_BYTES, resize=how == 11)
        parts[at] = bytes(part)
    return (first + b"".join(parts))[:MAX_BYTES]


def _commit(rng: Random) -> bytes:
    """A transaction's start and its end, with changes of anybody's."""
    seed = rng.randrange(WORLDS)
    nodes = [change for change in heard_in(seed) if change[0] <= changes.REMOVE]
    listed = tuple(rng.sample(nodes, min(rng.randrange(5), len(nodes))))
    conn, tx_id = rng.randrange(1, 6), rng.randrange(1, 5)
    return encode((changes.START, conn, tx_id, 1)) + encode((changes.COMMIT, conn, tx_id, listed))


def _in_transaction(first: bytes, rng: Random) -> bytes:
    """Something in a transaction that is open, of any path."""
    before = _before(first)
    open_now = {change[1:3]: None for change in before if change[0] == changes.START}
    for change in before:
        if change[0] in (changes.END, changes.COMMIT):
            open_now.pop(change[1:3], None)
    conn, tx_id = rng.choice([*open_now, (1, 1)])
    path = rng.choice([change[1] for change in before if change[0] <= changes.REMOVE] or [b"/"])
    kind, *more = rng.choice(
        (
            (changes.LOOK, path),
            (changes.TX_VALUE, path, b"v"),
            (changes.TX_PERMS, path, b"n\0\0\0"),
            (changes.TX_CREATE, path, b"", b"n\0\0\0"),
            (changes.TX_CREATE, path + b"/new", b"", b"n\0\0\0"),
            (changes.TX_REMOVE, path),
            (changes.TX_EVENT, 1, path),
            (changes.FAIL,),
        )
    )
    return encode((kind, conn, tx_id, *more))


TARGET = Target(
    name="xenstore-change",
    about="a journal of changes: each as bytes, and done again where much has happened",
    seeds=change_seeds,
    mutate=mutate_changes,
    check=check_changes,
    max_bytes=MAX_BYTES,
)
