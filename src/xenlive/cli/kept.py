"""What is kept of output that may have no end: its beginning and its end.

**Invariants.** No more than three times `PART_BYTES` are held, and `left_out` says how many bytes
of the middle were let go.
"""

from __future__ import annotations

from typing import Any

PART_BYTES = 8 << 20


class Kept:
    """Bytes as they come, by `add`."""

    def __init__(self, part_bytes: int = PART_BYTES) -> None:
        self._part_bytes = part_bytes
        self._first = bytearray()
        self._last = bytearray()
        #: Bytes of the middle that are not here any more.
        self.left_out = 0

    def add(self, data: bytes) -> None:
        """More was written."""
        room = self._part_bytes - len(self._first)
        self._first += data[:room]
        self._last += data[room:]
        if len(self._last) >= 2 * self._part_bytes:
            self._cut()

    def _cut(self) -> None:
        surplus = len(self._last) - self._part_bytes
        if surplus > 0:
            del self._last[:surplus]
            self.left_out += surplus

    def as_object(self) -> dict[str, Any]:
        """`console`, the text; `console_left_out`, if it is not all: bytes between its halves."""
        self._cut()
        said: dict[str, Any] = {"console": _text(self._first + self._last)}
        if self.left_out:
            said["console"] = _text(self._first) + _text(self._last)
            said["console_left_out"] = self.left_out
        return said


def _text(data: bytearray) -> str:
    return data.decode("utf-8", "backslashreplace")
