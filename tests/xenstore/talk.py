"""Speaking to a server core in tests: messages, and clients that keep what they hear."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from xenlive.abi.xs_wire import XS_ERROR, XS_WATCH_EVENT
from xenlive.xenstore.server import XenstoreServer

HEADER = struct.Struct("<IIII")


@dataclass(frozen=True)
class Message:
    """One message; `error` is the name in an ERROR reply."""

    kind: int
    req_id: int
    tx_id: int
    payload: bytes

    @property
    def error(self) -> str | None:
        return self.payload[:-1].decode() if self.kind == XS_ERROR else None


def encode(kind: int, payload: bytes, tx_id: int = 0, req_id: int = 0) -> bytes:
    return HEADER.pack(kind, req_id, tx_id, len(payload)) + payload


def decode(data: bytes) -> list[Message]:
    """All messages of `data`, which must be whole."""
    messages = []
    while data:
        kind, req_id, tx_id, length = HEADER.unpack_from(data)
        assert len(data) >= 16 + length, "a message was cut off"
        messages.append(Message(kind, req_id, tx_id, data[16 : 16 + length]))
        data = data[16 + length :]
    return messages


class Client:
    """One connection to a server core."""

    def __init__(self, server: XenstoreServer, domid: int = 0) -> None:
        self.server = server
        self.conn = server.connect(domid)

    def heard(self) -> list[Message]:
        """What came since the last time."""
        return decode(self.conn.take())

    def send(self, kind: int, payload: bytes, tx_id: int = 0) -> list[Message]:
        """Everything that comes back at once: events, reply, events."""
        self.server.receive(self.conn, encode(kind, payload, tx_id, req_id=7))
        return self.heard()

    def ask(self, kind: int, payload: bytes, tx_id: int = 0) -> bytes | str:
        """The reply's payload, or the error's name; events are left out."""
        (reply,) = [m for m in self.send(kind, payload, tx_id) if m.kind != XS_WATCH_EVENT]
        assert (reply.req_id, reply.tx_id) == (7, tx_id)
        if reply.error is not None:
            return reply.error
        assert reply.kind == kind
        return reply.payload

    def events(self) -> list[bytes]:
        """The payloads of the events that came since the last time."""
        heard = self.heard()
        assert all((m.kind, m.req_id, m.tx_id) == (XS_WATCH_EVENT, 0, 0) for m in heard)
        return [m.payload for m in heard]
