"""One input of the module target: an administration page, the size claimed for it, operations.

     0 size_bytes    i64, what a start info or a file says of the module
     8 n_operations  u8
     9 operation     4 bytes each: code, a, b, c
       page          up to 4096 bytes
       contents      any number of bytes: what is read where the module's pages are

**Invariants.** Any bytes are a case; encoding a decoded case gives the same bytes unless they were
too short for their own operations.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from xenlive.memory.address import PAGE_SIZE

_HEAD = struct.Struct("<qB")
OPERATION_BYTES = 4
MAX_OPERATIONS = 24
MAX_BYTES = _HEAD.size + MAX_OPERATIONS * OPERATION_BYTES + 3 * PAGE_SIZE


@dataclass
class ModuleCase:
    """`page` is mutable and may be short; `operations` are tuples of four bytes."""

    size_bytes: int
    page: bytearray
    operations: list[tuple[int, int, int, int]] = field(default_factory=list)
    contents: bytes = b""

    def encode(self) -> bytes:
        """The input's bytes."""
        operations = self.operations[:MAX_OPERATIONS]
        head = _HEAD.pack(self.size_bytes, len(operations))
        return b"".join([head, *map(bytes, operations), self.page, self.contents])

    def page_contents(self, index: int) -> bytes:
        """What lies in the allocatable page `index`: the contents, over and over."""
        n_pages = max(len(self.contents) // PAGE_SIZE, 1)
        start = index % n_pages * PAGE_SIZE
        return self.contents[start : start + PAGE_SIZE].ljust(PAGE_SIZE, b"\0")


def decode_case(data: bytes) -> ModuleCase:
    """The case that an input is."""
    size_bytes, n_operations = _HEAD.unpack_from(data.ljust(_HEAD.size, b"\0"))
    count = min(n_operations, MAX_OPERATIONS)
    page_at = _HEAD.size + count * OPERATION_BYTES
    words = data[_HEAD.size : page_at]
    operations = [
        (words[at], words[at + 1], words[at + 2], words[at + 3])
        for at in range(0, len(words) - 3, OPERATION_BYTES)
    ]
    page = bytearray(data[page_at : page_at + PAGE_SIZE])
    return ModuleCase(size_bytes, page, operations, data[page_at + PAGE_SIZE :])
