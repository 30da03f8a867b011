"""The client's half of the Xenstore wire, without I/O (Xen `public/io/xs_wire.h`).

Every message is a header of four little-endian u32 and a payload of at most 4096 bytes:

    | type | req_id | tx_id | len |  payload ... |

`ClientCodec` numbers requests, cuts what the server sends into messages in any chunking, and
matches answers to requests. Watch events come between answers at any time.

**Invariants.** Whatever the server sends is an `Answer` to a request that is outstanding, a
`WatchEvent`, or `PeerError`. After `PeerError` the codec must not be used again: where the next
message starts is unknown. Nothing here blocks, sleeps or knows a socket, so that a blocking and
an asynchronous client can share it.
"""

from __future__ import annotations

from dataclasses import dataclass

from xenlive.abi.xs_wire import (
    XENSTORE_PAYLOAD_MAX,
    XS_ERROR,
    XS_WATCH_EVENT,
    XSD_SOCKMSG,
)
from xenlive.errors import PeerError, XenstoreError

HEADER_BYTES = XSD_SOCKMSG.size


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """Something changed at `path`; `token` is the one the watch was set with."""

    path: str
    token: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer to request `request_id`, its error not yet looked at."""

    request_id: int
    type: int
    payload: bytes
    offset: int  # of the payload, in bytes from the first the server ever sent


class ClientCodec:
    """One connection's messages: requests out, answers and events in."""

    __slots__ = ("_buffer", "_consumed", "_next_id", "_outstanding")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._consumed = 0
        self._next_id = 1
        self._outstanding: dict[int, tuple[int, int]] = {}  # request id: its type and transaction

    def encode(self, type: int, payload: bytes, transaction: int = 0) -> tuple[int, bytes]:
        """The request's id and its bytes; XenstoreError E2BIG if the payload is over 4096 bytes."""
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            raise XenstoreError("E2BIG", f"request of {len(payload)} bytes")
        request_id = self._next_id
        self._next_id = request_id % 0xFFFFFFFF + 1  # never 0, which is what events carry
        self._outstanding[request_id] = (type, transaction)
        return request_id, XSD_SOCKMSG.pack(type, request_id, transaction, len(payload)) + payload

    def receive(self, data: bytes) -> list[Answer | WatchEvent]:
        """The messages that are complete with `data`. PeerError if they are not Xenstore's."""
        buffer = self._buffer
        buffer += data
        messages: list[Answer | WatchEvent] = []
        start = 0
        while len(buffer) - start >= HEADER_BYTES:
            type, request_id, transaction, length = XSD_SOCKMSG.unpack(buffer, start)
            offset = self._consumed + start
            if length > XENSTORE_PAYLOAD_MAX:
                raise PeerError("an answer longer than Xenstore allows", offset + 12, length)
            end = start + HEADER_BYTES + length
            if end > len(buffer):
                break
            payload = bytes(buffer[start + HEADER_BYTES : end])
            if type == XS_WATCH_EVENT:
                messages.append(_decode_event(payload, offset + HEADER_BYTES))
            else:
                self._match(type, request_id, transaction, offset)
                messages.append(Answer(request_id, type, payload, offset + HEADER_BYTES))
            start = end
        del buffer[:start]
        self._consumed += start
        return messages

    def _match(self, type: int, request_id: int, transaction: int, offset: int) -> None:
        asked = self._outstanding.pop(request_id, None)
        if asked is None:
            raise PeerError("an answer to no request", offset + 4, request_id)
        if type not in (asked[0], XS_ERROR):
            raise PeerError(
                f"an answer of another type than the request's {asked[0]}", offset, type
            )
        if transaction != asked[1]:
            raise PeerError("an answer from another transaction", offset + 8, transaction)


def decode_strings(payload: bytes, offset: int) -> list[str]:
    """The NUL-terminated strings of a payload. PeerError if the last one has no end."""
    if not payload:
        return []
    if payload[-1]:
        raise PeerError("a string without its NUL", offset + len(payload) - 1, payload[-1])
    return [decode_text(part) for part in payload[:-1].split(b"\0")]


def decode_text(data: bytes) -> str:
    """Text from the server. Bytes that are not UTF-8 survive, and `encode_text` gives them back."""
    return data.decode("utf-8", "surrogateescape")


def encode_text(text: str) -> bytes:
    """Text for the server. ValueError for a NUL, which would split it in two."""
    data = text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError(f"a NUL in {text!r}")
    return data


def _decode_event(payload: bytes, offset: int) -> WatchEvent:
    strings = decode_strings(payload, offset)
    if len(strings) < 2:
        raise PeerError("a watch event without path and token", offset, len(strings))
    return WatchEvent(strings[0], strings[1])
