"""The xenstore-stream target: a state stream that some daemon is said to have left.

It is refused with a documented code, and the server is as empty as it was; or what was loaded is
sound, is saved again, and then loads as the same. A new client is served beside what was loaded,
rings that are told of have their page attached, and hear of a change without harm.
"""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

from differential.ours import PageLink
from xenstore.goings_on import GoingsOn
from xenstore.picture import picture

from hostile import bytewise
from hostile.target import Target, expect
from hostile.xspromises import expect_saved, expect_sound, save, view
from hostile.xsscript import message
from xenlive.abi.xs_state import XS_STATE_PREAMBLE, XS_STATE_RECORD_HEADER, XS_STATE_TYPE_END
from xenlive.abi.xs_wire import XS_READ, XS_WRITE, XSD_SOCKMSG
from xenlive.errors import ImageError
from xenlive.memory.address import PAGE_SIZE
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import load_state

MAX_BYTES = 24 << 10
NOW_S = 1000.0
VECTOR = Path(__file__).parents[2] / "tests" / "vectors" / "xs_state" / "c_daemon_4_17_7.bin"
CODES = {
    *("state-truncated", "state-bad-ident", "state-bad-version", "state-bad-flags"),
    *("state-short-record", "state-bad-connection", "state-bad-fd", "state-bad-watch"),
    *("state-bad-quota", "state-bad-node"),
}
_PUMPS = 50


def check_stream(data: bytes) -> str:
    """Loads it; the code of its refusal, or what is in it."""
    server = XenstoreServer(now=lambda: NOW_S)
    empty = picture(server)
    try:
        loaded = load_state(server, data)
    except ImageError as error:
        expect(error.code in CODES, f"{error.code} is documented")
        expect(str(error).isprintable(), f"{error.code} has one line of text")
        expect(picture(server) == empty, "what is refused changes nothing")
        return error.code
    expect_sound(server, by_requests=False)
    again = XenstoreServer(now=lambda: NOW_S)
    stream = save(server)
    load_state(again, stream)
    expect(view(again) == view(server), "what was loaded is saved and loads as the same")
    for conn in loaded.rings:
        conn.link = PageLink(server, conn, memoryview(bytearray(PAGE_SIZE)))
    _serve(server)
    expect_sound(server, by_requests=False)
    expect_saved(server, NOW_S)
    return f"{len(loaded.rings) > 0:d} rings {len(loaded.connections) > 0:d} sockets loaded"


def _serve(server: XenstoreServer) -> None:
    """A client reads what it writes; all that hear of it, or had something to say, are served."""
    client = server.connect()
    path = b"/tool/new-here"
    request = message(XS_WRITE, path + b"\0yes") + message(XS_READ, path + b"\0")
    server.receive(client, request)
    answer = client.take()
    served = answer.endswith(XSD_SOCKMSG.pack(XS_READ, 1, 0, 3) + b"yes")
    longest = server.quotas.values["path-max"]  # it holds for all, docs/differences.md
    expect(served or 0 < longest < len(path), "a new client is served")
    for conn in list(server.connections):
        looks = b"".join([message(XS_READ, path + b"\0") for path in list(server.store.nodes)[-9:]])
        server.receive(conn, looks)
        for _ in range(_PUMPS if conn.link is not None else 0):
            conn.link.pump()  # type: ignore[union-attr]
    server.drain_touched()
    server.disconnect(client)


def stream_seeds() -> list[bytes]:
    """A C daemon's, an empty one, and ours after all kinds of goings on."""
    seeds = [VECTOR.read_bytes(), save(XenstoreServer(now=lambda: NOW_S))]
    for seed in range(12):
        world = GoingsOn(Random(seed))
        for _ in range(20 + 15 * seed):
            world.step()
        for conn in list(world.server.connections)[::2]:
            world.server.receive(conn, message(XS_READ, b"/tool\0")[: 10 + seed])
        for conn in list(world.server.connections)[1::2]:
            world.server.receive(conn, message(XS_READ, b"/tool\0") * 2)
        world.server.drop_transactions()
        seeds.append(save(world.server))
    return [seed for seed in seeds if len(seed) <= MAX_BYTES]


def _records(data: bytes) -> list[bytes]:
    """The stream's header, and its records as far as they are whole; the rest is one more."""
    parts, at = [data[: XS_STATE_PREAMBLE.size]], XS_STATE_PREAMBLE.size
    while at + XS_STATE_RECORD_HEADER.size <= len(data):
        kind, length = XS_STATE_RECORD_HEADER.unpack(data, at)
        end = at + XS_STATE_RECORD_HEADER.size + length + (-length & 7)
        if end > len(data) or kind == XS_STATE_TYPE_END:
            break
        parts.append(data[at:end])
        at = end
    return [*parts, data[at:]]


def mutate_stream(data: bytes, rng: Random) -> bytes:
    """A record less, twice, elsewhere, or with another field, length or bytes."""
    records = _records(data)
    # The head's records, of connections, have the most to say.
    at = rng.randrange(len(records) if rng.random() < 0.5 else min(len(records), 10))
    how = rng.randrange(10)
    record = bytearray(records[at])
    if how == 0 and len(records) > 2:
        del records[at]
    elif how == 1:
        records.insert(at, bytes(record))
    elif how == 2:
        other = rng.randrange(len(records))
        records[at], records[other] = records[other], records[at]
    elif how < 6 and record:
        field = rng.randrange(0, max(min(len(record), 48), 1), 2)
        bytewise.put_number(record, rng, field, rng.choice((1, 2, 2, 4)))
        records[at] = bytes(record)
    elif how < 8:
        bytewise.change(record, rng, MAX_BYTES, resize=False)
        records[at] = bytes(record)
    else:
        body = record[XS_STATE_RECORD_HEADER.size :]
        bytewise.change(body, rng, MAX_BYTES)
        body += bytes(-len(body) & 7)
        records[at] = bytes(record[:4]) + struct.pack("<I", len(body)) + bytes(body)
    return b"".join(records)[:MAX_BYTES]


TARGET = Target(
    name="xenstore-stream",
    about="state streams: nodes, watches, connections with bytes on their way, quotas, domains",
    seeds=stream_seeds,
    mutate=mutate_stream,
    check=check_stream,
    max_bytes=MAX_BYTES,
)
