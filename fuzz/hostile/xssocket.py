"""The xenstore-socket target: clients who send what they like, in any pieces, and read or do not.

    step      what happens
    raw       bytes are sent
    ask       a request, many times, in a transaction that may be there
    take      some of the answers are read
    deaf      the client reads no more, or reads again
    close     it goes, with all that is on its way, and another one comes; or it sends no more
    turns     the loop turns, while nobody reads
    hold      an update is waited for, or not any more
    round     the neighbour asks for all it has
    update    the next kernel takes over

All of them are domain 0, who may do everything: but not to each other's connections, nor to nodes
that they do not name. Each request is answered once, in order, with its type or a known error.
"""

from __future__ import annotations

import socket
from random import Random

from hostile.target import Target
from hostile.xsscript import (
    MAX_BYTES,
    Step,
    Words,
    decode_script,
    encode_script,
    message,
    mutate_script,
)
from hostile.xssockets import CLIENTS, SocketWorld, small_limits
from xenlive.abi.xs_wire import (
    XENSTORE_PAYLOAD_MAX,
    XS_DIRECTORY,
    XS_READ,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WRITE,
)

RAW, ASK, TAKE, DEAF, CLOSE, TURNS, HOLD, ROUND, UPDATE = range(9)
KINDS = 9
_WEIGHTS = (12, 30, 4, 5, 3, 3, 3, 6, 3)
#: In a step's argument: which client, that the loop does not turn yet, how often, and in what.
UNSEEN = 128
_REPEAT_SHIFT, _TX_SHIFT = 2, 5

WORDS = Words(
    (b"/", b"/", b"/local/domain/0/", b"/dir/"),
    (b"/", b"/tool", b"/tool/xenstored", b"/local", b"/dir", b"a", b"/a", b"/big", b"/board"),
    (0, 3),
)


def check_socket(data: bytes) -> str:
    """Plays a script, and says who is left and which answers there were."""
    with small_limits():
        world = SocketWorld()
        try:
            for step in decode_script(data):
                _do(world, step)
                if not step.arg & UNSEEN:
                    world.settle()
            return world.finish()
        finally:
            world.close()


def _do(world: SocketWorld, step: Step) -> None:
    number, arg = (step.arg & 3) % CLIENTS, step.arg
    client, data = world.clients[number], step.data
    kind = step.kind % KINDS
    if kind == RAW:
        client.send(data)
    elif kind == ASK and data:
        tx_id = (0, 1, 2, 99)[arg >> _TX_SHIFT & 3]
        count = 1 << (arg >> _REPEAT_SHIFT & 7)
        for req_id in range(count):
            client.send(message(data[0], data[1 : 1 + XENSTORE_PAYLOAD_MAX], tx_id, req_id))
    elif kind == TAKE:
        client.take(1 + len(data) * 50)
    elif kind == DEAF:
        client.reads = not client.reads
    elif kind == CLOSE:
        if arg & 4 and client.is_open:
            client.may_be_closed = True
            client.ours.shutdown(socket.SHUT_WR)
            client.unsent = b""
        else:
            world.reopen(number, bool(arg & 8))
    elif kind == TURNS:
        world.turns(1 + len(data) % 8)
    elif kind == HOLD:
        if arg & 4:
            world.release()
        else:
            world.hold()
    elif kind == ROUND:
        world.round()
    elif kind == UPDATE:
        world.update()


def new_step(rng: Random) -> Step:
    """A step as a mutation adds it."""
    kind = rng.choices(range(KINDS), _WEIGHTS)[0]
    arg = rng.randrange(CLIENTS) | UNSEEN * (rng.random() < 0.25)
    data = b""
    if kind == RAW:
        data = WORDS.raw(rng)
    elif kind == ASK:
        what, payload = WORDS.request(rng)
        data = bytes([what & 0xFF]) + payload
        arg |= rng.choice((0, 0, 0, 1, 2, 5, 7)) << _REPEAT_SHIFT
        arg |= rng.choice((0, 0, 1, 2, 3)) << _TX_SHIFT
    elif kind in (TAKE, TURNS):
        data = b"x" * rng.choice((0, 1, 3, 20, 100))
    elif kind in (CLOSE, HOLD):
        arg |= rng.randrange(4) << 2
    return Step(kind, arg, data)


def _ask(who: int, kind: int, payload: bytes, times: int = 0, tx: int = 0) -> Step:
    return Step(ASK, who | times << _REPEAT_SHIFT | tx << _TX_SHIFT, bytes([kind]) + payload)


def socket_seeds() -> list[bytes]:
    """Conversations, ways not to listen, messages in pieces, and some of each step."""
    big = _ask(0, XS_WRITE, b"/big\0" + b"v" * 4000)
    told = [_ask(1, XS_WATCH, b"/\0%d" % n + b"k" * 900 + b"\0") for n in range(12)]
    many = [_ask(0, XS_WRITE, b"/dir/%d\0x" % n, 2) for n in range(20)]
    whole = message(XS_WRITE, b"/a\0value") * 3 + message(XS_READ, b"/a\0")
    start, end = _ask(0, XS_TRANSACTION_START, b"\0"), _ask(0, XS_TRANSACTION_END, b"T\0", 0, 1)
    write = _ask(0, XS_WRITE, b"/a\0one", 0, 1)
    scripts = [
        [start, write, Step(ROUND, 0), end, Step(ROUND, 0)],
        [start, write, _ask(1, XS_WRITE, b"/a\0other"), end],
        [big, Step(DEAF, 0), *[_ask(0, XS_READ, b"/big\0", 7)] * 8, Step(ROUND, 0)],
        [big, Step(DEAF, 1), *[_ask(1, XS_READ, b"/big\0", 7)] * 6, Step(CLOSE, 1)],
        [Step(DEAF, 1), *told, *many, Step(ROUND, 0)],
        [Step(RAW, UNSEEN, whole[at : at + 1]) for at in range(30)],
        [Step(RAW, 0, whole[:37]), Step(UPDATE, 0), Step(RAW, 0, whole[37:])],
        [Step(RAW, 0, message(XS_READ, b"x" * 5000)), Step(RAW, 0, whole), Step(ROUND, 0)],
        [Step(HOLD, 0), start, _ask(1, XS_READ, b"/tool\0"), Step(CLOSE, 4), Step(ROUND, 0)],
        [Step(HOLD, 0), start, Step(CLOSE, 0), Step(HOLD, 4), Step(ROUND, 0)],
        [Step(CLOSE, 4), _ask(0, XS_DIRECTORY, b"/\0"), Step(CLOSE, 4)],
        [Step(DEAF, 0), _ask(0, XS_READ, b"/tool\0", 5), Step(UPDATE, 0), Step(DEAF, 0)],
    ]
    rng = Random(6)
    scripts += [[new_step(rng) for _ in range(count)] for count in range(1, 30, 2)]
    return [encode_script(script) for script in scripts]


def mutate_socket(data: bytes, rng: Random) -> bytes:
    """Another script."""
    return mutate_script(data, rng, new_step)


TARGET = Target(
    name="xenstore-socket",
    about="clients on sockets, with what they send in which pieces, and whether they read",
    seeds=socket_seeds,
    mutate=mutate_socket,
    check=check_socket,
    max_bytes=MAX_BYTES,
)
