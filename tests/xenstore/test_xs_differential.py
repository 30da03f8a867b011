"""The same requests to this server and to Debian's C daemon: every reply and event must be equal.

Random sequences from a seed, two clients with watches and overlapping transactions. After each
request both clients ask a harmless one, so that all events have come before the next. Left out is
what is known to differ from 4.17 (`docs/differences.md`): special nodes, depths of watches, UNWATCH
of what is no path, domain ids that are none. A transaction that removes a tree which others have
changed is in conflict already; there the C daemon answers EIO or EINVAL, ours
goes on, and both refuse the commit.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import pytest
from peer.c_daemon import CDaemon
from xenstore.talk import HEADER, Client, Message, decode, encode

from xenlive.abi.xs_wire import (
    TYPE_NAMES,
    XS_CONTROL,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_GET_DOMAIN_PATH,
    XS_GET_PERMS,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_RESET_WATCHES,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.xenstore.server import XenstoreServer

SYNC_ID = 0x5A5A5A5A
CLIENTS = 2
Request = tuple[int, int, bytes, int]  # which client, type, payload, transaction


class SocketClient:
    """A client of the real daemon."""

    def __init__(self, daemon: CDaemon) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(daemon.socket_path))  # blocks, not EAGAIN, if the backlog is full
        self._socket.settimeout(10)
        self._data = b""

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def heard(self) -> list[Message]:
        """All that comes before the answer to a harmless request."""
        self.send(encode(XS_GET_DOMAIN_PATH, b"0\0", 0, SYNC_ID))
        messages: list[Message] = []
        while True:
            message = self._message()
            if message.req_id == SYNC_ID:
                return messages
            messages.append(message)

    def close(self) -> None:
        self._socket.close()

    def _message(self) -> Message:
        while len(self._data) < 16 or len(self._data) < 16 + HEADER.unpack_from(self._data)[3]:
            more = self._socket.recv(65536)
            assert more, "the C daemon hung up"
            self._data += more
        size = 16 + HEADER.unpack_from(self._data)[3]
        (message,) = decode(self._data[:size])
        self._data = self._data[size:]
        return message


def random_requests(seed: int, count: int) -> list[Request]:
    """A sequence that keeps itself interesting: few paths, so that requests meet."""
    dice = random.Random(seed)
    open_ids: list[list[int]] = [[] for _ in range(CLIENTS)]
    next_id = [1] * CLIENTS

    def path(sound: bool = False) -> bytes:
        depth = dice.choice((1, 1, 2, 2, 2, 3, 3, 4))
        names = [dice.choice((b"a", b"b", b"c", b"long-name_9")) for _ in range(depth)]
        prefix = dice.choice((b"/", b"/", b"/", b"/", b""))
        odd = dice.random()
        if odd < 0.02 and not sound:
            return dice.choice((b"", b"//", b"/a//b", b"/a/", b"/a b", b"/", b"/tool"))
        return prefix + b"/".join(names)

    def perms() -> bytes:
        return b"".join(
            [b"%c0\0" % dice.choice(b"nrwbx" if dice.random() < 0.1 else b"nrwb")]
            * dice.choice((1, 1, 2))
        )

    def value() -> bytes:
        return bytes(dice.choices(b"\0abc\xff", k=dice.choice((0, 1, 5, 40))))

    makers: list[tuple[int, int, Callable[[], bytes]]] = [
        (20, XS_WRITE, lambda: path() + b"\0" + value()),
        (14, XS_READ, lambda: path() + b"\0"),
        (8, XS_MKDIR, lambda: path() + b"\0"),
        (9, XS_RM, lambda: path() + b"\0"),
        (9, XS_DIRECTORY, lambda: path() + b"\0"),
        (3, XS_DIRECTORY_PART, lambda: path() + b"\0%d\0" % dice.randrange(-1, 12)),
        (4, XS_GET_PERMS, lambda: path() + b"\0"),
        (6, XS_SET_PERMS, lambda: path() + b"\0" + perms()),
        (9, XS_WATCH, lambda: path() + b"\0" + dice.choice((b"t", b"u", b"")) + b"\0"),
        (3, XS_UNWATCH, lambda: path(sound=True) + b"\0" + dice.choice((b"t", b"u", b"")) + b"\0"),
        (1, XS_RESET_WATCHES, lambda: b"\0"),
        (1, XS_IS_DOMAIN_INTRODUCED, lambda: dice.choice((b"0\0", b"9\0"))),
        (1, XS_CONTROL, lambda: b"check\0"),
        (8, XS_TRANSACTION_START, lambda: b"\0"),
        (8, XS_TRANSACTION_END, lambda: dice.choice((b"T\0", b"T\0", b"T\0", b"F\0", b"X\0"))),
    ]
    weights = [weight for weight, _, _ in makers]
    requests: list[Request] = []
    for _ in range(count):
        who = dice.randrange(CLIENTS)
        _, kind, make = dice.choices(makers, weights)[0]
        payload = make()
        tx_id = 0
        if open_ids[who] and dice.random() < 0.6:
            tx_id = dice.choice(open_ids[who])
        elif dice.random() < 0.01:
            tx_id = 999
        if kind == XS_TRANSACTION_START:
            if len(open_ids[who]) >= 3:
                continue
            if tx_id == 0:
                open_ids[who].append(next_id[who])
                next_id[who] += 1
        elif kind == XS_TRANSACTION_END and payload != b"X\0" and tx_id in open_ids[who]:
            open_ids[who].remove(tx_id)
        elif kind == XS_RESET_WATCHES and tx_id != 999:
            open_ids[who].clear()
        requests.append((who, kind, payload, tx_id))
    return requests


def comparable(kind: int, message: Message) -> tuple[int, int, int, bytes]:
    """A message without the generation numbers, which are each server's own."""
    payload = message.payload
    if message.kind == kind == XS_DIRECTORY_PART:
        payload = payload.partition(b"\0")[2]
    return message.kind, message.req_id, message.tx_id, payload


@pytest.mark.peer
@pytest.mark.parametrize("seed", range(8))
def test_same_answers_as_the_c_daemon(c_daemon: CDaemon, seed: int) -> None:
    server = XenstoreServer()
    ours = [Client(server) for _ in range(CLIENTS)]
    theirs = [SocketClient(c_daemon) for _ in range(CLIENTS)]
    apart: set[tuple[int, int]] = set()  # transactions in conflict that the daemons see differently
    try:
        for step, (who, kind, payload, tx_id) in enumerate(random_requests(seed, 600)):
            request = encode(kind, payload, tx_id, step)
            server.receive(ours[who].conn, request)
            theirs[who].send(request)
            # First the one that asked: what it makes happen is done when it has its answer.
            for client in sorted(range(CLIENTS), key=lambda client: client != who):
                ours_heard = ours[client].heard()
                theirs_heard = theirs[client].heard()
                mine = [comparable(kind, message) for message in ours_heard]
                other = [comparable(kind, message) for message in theirs_heard]
                if mine != other and client == who and tx_id:
                    if (who, tx_id) not in apart and kind == XS_RM:
                        assert theirs_heard[-1].error in ("EIO", "EINVAL")
                        assert ours[who].conn.transactions[tx_id].in_conflict()
                        apart.add((who, tx_id))
                    if (who, tx_id) in apart:
                        assert kind != XS_TRANSACTION_END or ours_heard[-1].error == "EAGAIN"
                        continue
                what = f"seed {seed} step {step}: client {who} {TYPE_NAMES[kind]} {payload!r}"
                assert mine == other, f"{what} tx {tx_id}, heard by client {client}"
        assert server.store.check() == []
    finally:
        for socket_client in theirs:
            socket_client.close()
