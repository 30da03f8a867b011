"""A kernel that dies between two stores: an administration page that lets only so many happen.

Each store of one instruction counts one. A bulk copy is many instructions: it counts one a byte,
and a kernel that dies in it has stored the bytes before.

**Invariants.** What was stored before the death is in memory, and nothing after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.kexec.adminpage import AdminPage

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Died(BaseException):
    """The kernel is gone. Not an `Exception`: no handler of a dead kernel runs."""


class MortalPage(AdminPage):
    """The page of a kernel that has `left` stores to live; `stored` counts those it made."""

    __slots__ = ("left", "stored")

    def __init__(self, view: memoryview, left: int) -> None:
        super().__init__(view)
        self.left = left
        self.stored = 0

    def store_u8(self, offset: int, value: int) -> None:
        self._live(1)
        super().store_u8(offset, value)

    def store_u16(self, offset: int, value: int) -> None:
        self._live(1)
        super().store_u16(offset, value)

    def store_u32(self, offset: int, value: int) -> None:
        self._live(1)
        super().store_u32(offset, value)

    def store_u64(self, offset: int, value: int) -> None:
        self._live(1)
        super().store_u64(offset, value)

    def copy(self, offset: int, data: Buffer) -> None:
        raw = bytes(data)
        if len(raw) > self.left:
            super().copy(offset, raw[: self.left])
        self._live(len(raw))
        super().copy(offset, raw)

    def _live(self, stores: int) -> None:
        if stores > self.left:
            raise Died
        self.left -= stores
        self.stored += stores
