"""Requests and replies of the Xenstore wire protocol, as the demo's clients speak it.

A message is a header of four u32 (type, req_id, tx_id, len) and `len` bytes, at most 4096 (Xen
`public/io/xs_wire.h`).

**Invariants.** `Decoder.feed` takes any chunking; a header that no server may send is a PeerError.

Why not the client's codec: the load drives 70 connections from one loop and measures; it wants
bytes in and tuples out, and a checker is worth more when it shares no code with what it checks.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from xenlive.errors import PeerError

DIRECTORY = 1
READ = 2
GET_PERMS = 3
WATCH = 4
TRANSACTION_START = 6
TRANSACTION_END = 7
WRITE = 11
MKDIR = 12
RM = 13
SET_PERMS = 14
WATCH_EVENT = 15
ERROR = 16
DIRECTORY_PART = 22

NAMES = {
    DIRECTORY: "DIRECTORY",
    READ: "READ",
    GET_PERMS: "GET_PERMS",
    WATCH: "WATCH",
    TRANSACTION_START: "TRANSACTION_START",
    TRANSACTION_END: "TRANSACTION_END",
    WRITE: "WRITE",
    MKDIR: "MKDIR",
    RM: "RM",
    SET_PERMS: "SET_PERMS",
    WATCH_EVENT: "WATCH_EVENT",
    ERROR: "ERROR",
    DIRECTORY_PART: "DIRECTORY_PART",
}

PAYLOAD_MAX = 4096
OK = b"OK\0"

_HEADER = struct.Struct("<IIII")
HEADER_BYTES = _HEADER.size


class Request(NamedTuple):
    """One request; `payload` is what follows the header."""

    type: int
    payload: bytes
    tx_id: int = 0


class Reply(NamedTuple):
    """One message from the server."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes


def encode(request: Request, req_id: int) -> bytes:
    """The request's bytes."""
    kind, payload, tx_id = request
    return _HEADER.pack(kind, req_id, tx_id, len(payload)) + payload


class Decoder:
    """Takes the server's bytes in any chunks, gives whole messages."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[Reply]:
        """The messages that `data` completes, in order. PeerError for a header that can't be."""
        if self._pending:
            data = self._pending + data
        messages = []
        position = 0
        end = len(data)
        while end - position >= HEADER_BYTES:
            kind, req_id, tx_id, size = _HEADER.unpack_from(data, position)
            if size > PAYLOAD_MAX:
                raise PeerError("message longer than 4096 bytes", position + 12, size)
            if kind not in NAMES:
                raise PeerError("unknown message type", position, kind)
            start = position + HEADER_BYTES
            if end - start < size:
                break
            position = start + size
            messages.append(Reply(kind, req_id, tx_id, data[start:position]))
        self._pending = data[position:]
        return messages


def describe(request: Request) -> str:
    """The request in one line, for people: its name and path."""
    path = request.payload.split(b"\0", 1)[0].decode("ascii", "backslashreplace")
    return f"{NAMES.get(request.type, request.type)} {path}".rstrip()


def show(payload: bytes) -> str:
    """A payload for people, cut to a bearable length."""
    return repr(payload if len(payload) <= 40 else payload[:37] + b"...")
