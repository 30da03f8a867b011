"""The xenstore-ring target: guests who do what they like with their pages and ask what they like.

    domain 0 (a socket, quiet) ─┐               ┌─ domain 3, domain 5: the script's
                                ├─ the server ──┤
    a neighbour by socket ──────┘               └─ domain 7: a neighbour by ring

    step      what happens
    raw       bytes go into a guest's ring, as it has room; the rest later
    ask       a request, in the newest of its transactions, one that has ended, or none
    poke      a word of the page: an index, or what it says of itself; strikes now or in the middle
    scribble  bytes anywhere in the page, now or in the middle
    take      answers are read: some bytes, or all
    habits    its events are masked (it reads nothing), or it is never done asking
    domain    domain 0 introduces, releases or ends one, starts it anew, gives it a target, a quota
    round     the neighbours ask for all they have
    update    the next kernel takes over

Of what is not theirs to know, which stands in the store under names and values that no script has,
no byte may be in a page, nor, for a domain that came later, of what was said to the one before it.
"""

from __future__ import annotations

from random import Random

from hostile import bytewise
from hostile.target import Target
from hostile.xsguests import WORDS, Habit
from hostile.xsringworld import RingWorld
from hostile.xsscript import (
    MAX_BYTES,
    Step,
    decode_script,
    encode_script,
    message,
    mutate_script,
)
from xenlive.abi import xs_ring
from xenlive.abi.xs_wire import (
    XS_CONTROL,
    XS_DIRECTORY,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WRITE,
)

RAW, ASK, POKE, SCRIBBLE, TAKE, HABITS, DOMAIN, ROUND, UPDATE = range(9)
KINDS = 9
#: Bits of a step's argument: whose it is, and that the server does not look yet.
SECOND, UNSEEN = 1, 128
_IN_MIDDLE, _LOOKS = 64, 7
_REPEAT = 7

_INDICES = (xs_ring.REQ_CONS, xs_ring.REQ_PROD, xs_ring.RSP_CONS, xs_ring.RSP_PROD)
_WORDS = (*_INDICES, xs_ring.SERVER_FEATURES, xs_ring.CONNECTION, xs_ring.ERROR)
_DISTANCES = (-1025, -1024, -1, 0, 1, 15, 16, 1023, 1024, 1025, 1 << 31)


def check_ring(data: bytes) -> str:
    """Plays a script, and says what became of the guests and which answers they got."""
    world = RingWorld()
    with world.middle.in_rings():
        for step in decode_script(data):
            _do(world, step)
            if not step.arg & UNSEEN:
                world.settle()
        return world.finish()


def _do(world: RingWorld, step: Step) -> None:
    guest = world.guests[step.arg & SECOND]
    arg, data = step.arg >> 1, step.data
    kind = step.kind % KINDS
    if kind == RAW:
        guest.put(data)
    elif kind == ASK and data:
        tx_id = world.transaction_of(guest, arg >> 3 & 3)
        request = message(data[0], data[1:], tx_id)
        guest.put(request * (1 << (arg & _REPEAT)))
    elif kind == POKE:
        place = _WORDS[(data[0] if data else 0) % len(_WORDS)]
        beside = _INDICES[(data[1] if len(data) > 1 else 0) % len(_INDICES)]
        number = int.from_bytes(data[2:6], "little")
        is_near = bool(len(data) > 6 and data[6] & 1)
        world.strike(
            arg & _IN_MIDDLE >> 1, arg & _LOOKS, lambda: guest.poke(place, number, beside, is_near)
        )
    elif kind == SCRIBBLE:
        at = int.from_bytes(data[:2], "little")
        world.strike(arg & _IN_MIDDLE >> 1, arg & _LOOKS, lambda: guest.scribble(at, data[2:]))
    elif kind == TAKE:
        guest.take(len(data) or 1 << 16)
    elif kind == HABITS:
        guest.habit = Habit(masked=bool(arg & 1), greedy=data if arg & 2 else b"")
    elif kind == DOMAIN:
        world.settle()
        world.manage(guest, arg & 31, data)
    elif kind == ROUND:
        world.round()
    elif kind == UPDATE:
        world.update()


def new_step(rng: Random) -> Step:
    """A step as a mutation adds it."""
    arg = rng.randrange(2) | UNSEEN * (rng.random() < 0.2)
    kind = rng.choices(range(KINDS), (10, 30, 6, 4, 4, 3, 9, 5, 3))[0]
    data = b""
    if kind == RAW:
        data = WORDS.raw(rng)
    elif kind == ASK:
        what, payload = WORDS.request(rng)
        data = bytes([what & 0xFF]) + payload
        arg |= rng.choice((0, 0, 0, 0, 1, 2, 5, 7)) << 1 | rng.choice((0, 0, 1, 1, 2, 3)) << 4
    elif kind == POKE:
        near = rng.random() < 0.7
        number = rng.choice(_DISTANCES) if near else rng.choice(bytewise.EDGES_32)
        data = bytes([rng.randrange(7), rng.randrange(4)])
        data += (number & 0xFFFFFFFF).to_bytes(4, "little") + bytes([near])
        arg |= rng.choice((0, _IN_MIDDLE)) | rng.randrange(8) << 1
    elif kind == SCRIBBLE:
        at = rng.choice((0, 1000, 1024, 2040, 2048, 2064, 2068, 2072, 4090))
        data = at.to_bytes(2, "little") + rng.randbytes(rng.choice((1, 4, 16, 64)))
        arg |= rng.choice((0, _IN_MIDDLE)) | rng.randrange(8) << 1
    elif kind == TAKE:
        data = b"x" * rng.choice((0, 0, 1, 16, 100, 1024))
    elif kind == HABITS:
        arg |= rng.randrange(4) << 1
        data = WORDS.raw(rng) if arg & 4 else b""
    elif kind == DOMAIN:
        arg |= rng.randrange(32) << 1
        data = rng.choice((b"", b"\1", b"\2", b"\x10")) + WORDS.path(rng)
    return Step(kind, arg, data)


def ring_seeds() -> list[bytes]:
    """Conversations as they should be, attacks that are known, and some of each step."""
    start = Step(ASK, 0, bytes([XS_TRANSACTION_START]) + b"\0")
    end = Step(ASK, 16, bytes([XS_TRANSACTION_END]) + b"T\0")
    write = Step(ASK, 16, bytes([XS_WRITE]) + b"data/a\0one")
    watch = Step(ASK, 0, bytes([XS_WATCH]) + b"data\0t\0")
    masked = Step(HABITS, 2, b"")
    board = [Step(ASK, 15, bytes([XS_WRITE]) + b"/board\0" + b"%d" % n) for n in range(6)]
    scripts = [
        [start, write, Step(ROUND, 0), end, Step(ROUND, 0)],
        [watch, Step(ASK, 1, bytes([XS_WRITE]) + b"data/b\0two"), write, Step(ROUND, 0)],
        [
            Step(ASK, who, bytes([kind]) + path + b"\0" + more)
            for who in (0, 1)
            for kind, more in (
                (XS_READ, b""),
                (XS_DIRECTORY, b""),
                (XS_WATCH, b"t\0"),
                (XS_RM, b""),
            )
            for path in (b"/vault/door", b"/vault/door/key")
        ],
        [masked, watch, *[Step(ASK, 14, bytes([XS_READ]) + b"data\0")] * 6, Step(ROUND, 0)],
        [masked, Step(ASK, 0, bytes([XS_WATCH]) + b"/board\0t\0"), *board, Step(ROUND, 0)],
        [Step(ROUND, 0), *board[:2], Step(ROUND, 0), *board[2:], Step(ROUND, 0)],
        [Step(HABITS, 4, message(XS_READ, b"data\0")), Step(ROUND, 0), Step(ROUND, 0)],
        [Step(ASK, 8, bytes([XS_MKDIR]) + b"data/many\0"), Step(UPDATE, 0), Step(ROUND, 0)],
        [Step(RAW, 0, message(XS_READ, b"data\0")[:20]), Step(UPDATE, 0), Step(ROUND, 0)],
        [Step(RAW, 0, message(XS_READ, b"x" * 5000)), Step(ROUND, 0)],
        [Step(ASK, 0, bytes([XS_SET_PERMS]) + b"data\0n3\0r5\0"), Step(ASK, 1, b"\2data\0")],
        [Step(ASK, 0, bytes([XS_WATCH]) + b"/vault\0t\0"), Step(DOMAIN, 16 << 1), Step(ROUND, 0)],
        [
            masked,
            Step(ASK, 0, bytes([XS_WRITE]) + b"data\0" + b"v" * 1900),
            *[Step(ASK, 14, bytes([XS_READ]) + b"data\0")] * 8,
        ],
        *[
            [Step(DOMAIN, n << 1, b"\1"), Step(ASK, 0, bytes([XS_READ]) + b"/former\0")]
            for n in (2, 5, 6, 7)
        ],
        [Step(ASK, 0, bytes([XS_MKDIR]) + b"data\0"), Step(ASK, 0, bytes([XS_RM]) + b"data\0")],
        [Step(ASK, 0, bytes([XS_WATCH]) + b"data\0t\x001\0"), Step(UPDATE, 0), Step(ROUND, 0)],
        *[
            [
                Step(POKE, _IN_MIDDLE | looks << 1, bytes([place, 0, 208, 7, 0, 0, 1])),
                Step(RAW, 0, message(XS_READ, b"data\0") * 3),
                Step(ROUND, 0),
            ]
            for place in range(4)
            for looks in range(4)
        ],
        [Step(ASK, 0, bytes([XS_CONTROL]) + b"quota\0"), Step(ROUND, 0), Step(ROUND, 0)],
    ]
    scripts += [[start, Step(DOMAIN, n << 1, b"\1a"), write, Step(ROUND, 0)] for n in range(16)]
    rng = Random(5)
    scripts += [[new_step(rng) for _ in range(count)] for count in range(1, 30, 2)]
    return [encode_script(script) for script in scripts]


def mutate_ring(data: bytes, rng: Random) -> bytes:
    """Another script."""
    return mutate_script(data, rng, new_step)


TARGET = Target(
    name="xenstore-ring",
    about="guests on rings, with what they do to their pages and what they ask",
    seeds=ring_seeds,
    mutate=mutate_ring,
    check=check_ring,
    max_bytes=MAX_BYTES,
)
