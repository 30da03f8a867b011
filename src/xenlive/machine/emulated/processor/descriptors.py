"""Descriptors of segments, as they stand in the guest's GDT and LDT.

Specification: AMD64 Architecture Programmer's Manual, volume 2, sections 4.7 and 4.8.

**Invariants.** A table is never read beyond its limit. Nothing is changed here.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from xenlive.machine.emulated.processor.exits import Segment
from xenlive.machine.emulated.processor.faults import GENERAL_PROTECTION, Fault

if TYPE_CHECKING:
    from xenlive.machine.emulated.processor.cpustate import CpuState
    from xenlive.machine.emulated.processor.paging import Paging, Physical

# Of a descriptor's upper word, which is what `Segment.flags` are.
PRESENT, NO_SYSTEM, CODE, CONFORMING = 1 << 15, 1 << 12, 1 << 11, 1 << 10
READABLE = WRITABLE = 1 << 9
BIG = 1 << 22
_GRANULAR = 1 << 23


class Descriptors:
    """The descriptors of `cpu` in its memory as it is now; `external` is the EXT bit of faults."""

    def __init__(self, cpu: CpuState, physical: Physical, paging: Paging, external: int) -> None:
        self._cpu = cpu
        self._physical = physical
        self._paging = paging
        self._external = external

    def read(self, selector: int, vector: int = GENERAL_PROTECTION) -> Segment:
        """What a selector names, as a segment with its flags; Fault(vector) if it names nothing.

        PageFault or NonCanonical if its table is not there.
        """
        error = selector & ~3 | self._external
        table = self._cpu.segment("ldt" if selector & 4 else "gdt")
        if not selector & ~3 or (selector & ~7) + 7 > table.limit:
            raise Fault(vector, error)
        raw = self._paging.read(self._physical, table.base + (selector & ~7), 8)
        low, high = struct.unpack("<II", raw)
        limit = low & 0xFFFF | high & 0xF0000
        if high & _GRANULAR:
            limit = limit << 12 | 0xFFF
        base = low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000
        return Segment(selector, base, limit, high)
