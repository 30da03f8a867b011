"""The page that QEMU's SVM looks at while a guest runs: which MSRs are free, where a fault was.

    VMCB + 0x48    physical address of the MSR permission map, two bits an MSR: a set bit is an exit
         + 0x80    EXITINFO2: the address of the last page fault, written by QEMU
    page behind    the map, for MSRs from 0, from C0000000 and from C0010000

Specification: AMD64 APM volume 2, appendix B and section 15.11. It lies above the 40 bits of
physical address that QEMU's page walks allow, so that no guest reaches it. Which instructions are
intercepted is not in here but in the processor's state (`cpustate.py`), where VMRUN puts it.

**Invariants.** Only QEMU writes here after `__init__`.
"""

from __future__ import annotations

import mmap
import struct

from xenlive.machine.emulated.processor import capi
from xenlive.machine.emulated.processor.counter import address_of
from xenlive.machine.emulated.processor.mappings import Mappings
from xenlive.machine.emulated.processor.paging import PAGE_SIZE

VMCB_ADDRESS = 1 << 44
_MSR_MAP, _EXIT_INFO_2 = 0x48, 0x80
_MSR_MAP_SIZE = 3 * PAGE_SIZE
#: MSRs that the guest reads and writes without an exit: Linux does so at each switch of a task.
_FREE_MSRS = (0xC0000100, 0xC0000101, 0xC0000102)


class Vmcb:
    """The page, and the map behind it, put into the physical memory of `mappings`."""

    def __init__(self, mappings: Mappings) -> None:
        map_address = VMCB_ADDRESS + PAGE_SIZE
        self._memory = mmap.mmap(-1, PAGE_SIZE + _MSR_MAP_SIZE)
        self._memory[_MSR_MAP : _MSR_MAP + 8] = struct.pack("<Q", map_address)
        bitmap = bytearray(b"\xff" * _MSR_MAP_SIZE)
        for number in _FREE_MSRS:
            bit = (8192 + number - 0xC0000000) * 2
            bitmap[bit // 8] &= ~(3 << bit % 8)
        self._memory[PAGE_SIZE:] = bytes(bitmap)
        at = address_of(self._memory)
        mappings.map_raw(VMCB_ADDRESS, PAGE_SIZE, at, capi.PROT_READ_WRITE)
        mappings.map_raw(map_address, _MSR_MAP_SIZE, at + PAGE_SIZE, capi.PROT_READ)

    @property
    def fault_address(self) -> int:
        """Where the last page fault was."""
        return int.from_bytes(self._memory[_EXIT_INFO_2 : _EXIT_INFO_2 + 8], "little")
