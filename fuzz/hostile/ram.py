"""Guest memory that knows which of its pages were touched.

It is a memfd without content, mapped as a whole: a page that nobody read or wrote through the
mapping is a hole of the file. So a module of 4,019 pages costs nothing, and the question whether
anything besides its last page was touched is two calls of lseek.

            RAM_START                         ADMIN_ADDRESS    end of RAM
    |         |  ... holes ... [ pages of a module ][ admin ][ hole ]|
"""

from __future__ import annotations

import errno
import mmap
import os

from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

ADMIN_ADDRESS = PhysAddr(0x4000_0000)
PAGES_BEFORE = 4200
RAM_START = ADMIN_ADDRESS - PAGES_BEFORE * PAGE_SIZE
RAM_BYTES = (PAGES_BEFORE + 2) * PAGE_SIZE
_ADMIN_OFFSET = PAGES_BEFORE * PAGE_SIZE


class HostileRam:
    """RAM around one administration page; `reset` makes all of it a hole but for that page."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("hostile", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, RAM_BYTES)
        self._map = mmap.mmap(self._fd, RAM_BYTES)
        self.memory = GuestMemory([(RAM_START, self._map)])
        self.readonly = GuestMemory([(RAM_START, memoryview(self._map).toreadonly())])
        #: Set by who reads other pages; `reset` takes it back.
        self.was_read = False
        self.map = MemoryMap([MemoryRange(RAM_START, RAM_BYTES, E820_RAM)])

    def reset(self, page: bytes) -> None:
        """Makes `page` the administration page, and all else untouched."""
        self.was_read = False
        if self.touched() != (_ADMIN_OFFSET, _ADMIN_OFFSET + PAGE_SIZE):
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, RAM_BYTES)
        self._map[_ADMIN_OFFSET : _ADMIN_OFFSET + PAGE_SIZE] = page

    def page(self) -> bytes:
        """The administration page as it is now."""
        return self._map[_ADMIN_OFFSET : _ADMIN_OFFSET + PAGE_SIZE]

    def only_the_page_was_touched(self) -> bool:
        """Whether everything else is as `reset` left it: unwritten, unread unless `was_read`."""
        if not self.was_read:
            return self.touched() == (_ADMIN_OFFSET, _ADMIN_OFFSET + PAGE_SIZE)
        start, _ = self.touched()
        before, behind = self._map[start:_ADMIN_OFFSET], self._map[_ADMIN_OFFSET + PAGE_SIZE :]
        return not before.strip(b"\0") and not behind.strip(b"\0")

    def touched(self) -> tuple[int, int]:
        """Offset of the first touched page, and of the first untouched one behind it."""
        try:
            first = os.lseek(self._fd, 0, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return 0, 0
        return first, os.lseek(self._fd, first, os.SEEK_HOLE)
