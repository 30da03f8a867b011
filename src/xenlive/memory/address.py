"""Addresses and frames: numbers of guest physical memory that must not be mixed up.

`PhysAddr` is a byte address in guest physical memory, `Frame` a page frame number (an address
shifted right by `PAGE_SHIFT`). Both are plain `int` at run time: the difference is the type
checker's, and costs a domain process nothing.
"""

from __future__ import annotations

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NewType

    PhysAddr = NewType("PhysAddr", int)
    Frame = NewType("Frame", int)
else:
    PhysAddr = int
    Frame = int


def frame_of(address: PhysAddr) -> Frame:
    """The frame that holds `address`."""
    return Frame(address >> PAGE_SHIFT)


def address_of(frame: Frame) -> PhysAddr:
    """The address of the first byte of `frame`."""
    return PhysAddr(frame << PAGE_SHIFT)


def round_up(value: int, align: int) -> int:
    """`value` rounded up to a multiple of `align`, which is a power of two."""
    return (value + align - 1) & ~(align - 1)


def round_down(value: int, align: int) -> int:
    """`value` rounded down to a multiple of `align`, which is a power of two."""
    return value & ~(align - 1)
