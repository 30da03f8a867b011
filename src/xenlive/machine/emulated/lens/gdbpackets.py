"""Packets of GDB's remote serial protocol: from a stream of bytes, and to it.

    $ payload # checksum      two hex digits, the sum of the payload's bytes; answered by + or -
    +  -                      the last packet arrived, or has to come again
    0x03                      Ctrl-C: the guest is to stop

In a payload `}` announces a byte that is XORed with 0x20: `$`, `#`, `}` and `*` would mean
something else. (`*`, run lengths, is only for answers, and none of ours has any.)

Specification: GDB's manual, appendix E, "Overview" and "Packet Acknowledgment".

**Invariants.** Any bytes give packets, Ctrl-C's and acknowledgements, or nothing; a packet is
bounded in size, and what is no packet is skipped. How the bytes were cut into pieces on the way
changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

#: The longest payload taken, and what is said of it in `qSupported`.
PAYLOAD_MAX = 0x4000

_ESCAPE = 0x7D
_TURN = 0x20
_SPECIAL = b"}#$*"  # the escape itself first
_DOLLAR, _HASH, _CTRL_C = 0x24, 0x23, 0x03
_PLUS, _MINUS = 0x2B, 0x2D

# What arrived.
PACKET = "packet"
BAD_PACKET = "bad-packet"  # its checksum is wrong, or it is too long
CTRL_C = "ctrl-c"
AGAIN = "again"  # the last packet did not arrive whole


class Arrived(NamedTuple):
    """One thing that arrived; `payload` is a packet's, unescaped."""

    kind: str
    payload: bytes = b""


class PacketReader:
    """Takes a stream apart."""

    def __init__(self) -> None:
        self._payload: bytearray | None = None
        self._checksum: bytearray | None = None

    def receive(self, data: bytes) -> list[Arrived]:
        """What has arrived whole with `data`."""
        found = []
        for byte in data:
            arrived = self._take(byte)
            if arrived is not None:
                found.append(arrived)
        return found

    def _take(self, byte: int) -> Arrived | None:
        if byte == _DOLLAR:  # also in the middle of a packet, the end of which was lost
            self._payload, self._checksum = bytearray(), None
        elif self._payload is None:
            return {_CTRL_C: Arrived(CTRL_C), _MINUS: Arrived(AGAIN)}.get(byte)
        elif self._checksum is not None:
            self._checksum.append(byte)
            if len(self._checksum) == 2:
                return self._finish(bytes(self._payload), bytes(self._checksum))
        elif byte == _HASH:
            self._checksum = bytearray()
        elif len(self._payload) <= PAYLOAD_MAX:  # one more than fits says that it is too long
            self._payload.append(byte)
        return None

    def _finish(self, payload: bytes, checksum: bytes) -> Arrived:
        self._payload = self._checksum = None
        if checksum.lower() != b"%02x" % (sum(payload) & 0xFF) or len(payload) > PAYLOAD_MAX:
            return Arrived(BAD_PACKET)
        return Arrived(PACKET, unescape(payload))


def unescape(data: bytes) -> bytes:
    """The bytes that a payload means; an escape at its end means nothing."""
    plain = bytearray()
    is_escaped = False
    for byte in data:
        if is_escaped:
            plain.append(byte ^ _TURN)
        elif byte != _ESCAPE:
            plain.append(byte)
        is_escaped = byte == _ESCAPE and not is_escaped
    return bytes(plain)


def encode_packet(payload: bytes) -> bytes:
    """A packet to send."""
    escaped = payload
    for byte in _SPECIAL:
        escaped = escaped.replace(bytes((byte,)), bytes((_ESCAPE, byte ^ _TURN)))
    return b"$%b#%02x" % (escaped, sum(escaped) & 0xFF)


def decode_hex(text: bytes) -> bytes | None:
    """Bytes from hex digits, two each; None if it is anything else."""
    try:
        return bytes.fromhex(text.decode("ascii")) if b" " not in text else None
    except ValueError:
        return None


def decode_number(text: bytes) -> int | None:
    """A number from 1 to 16 hex digits, without a sign; None if it is anything else."""
    if not 0 < len(text) <= 16 or not all(digit in b"0123456789abcdefABCDEF" for digit in text):
        return None
    return int(text, 16)
