"""A counter of executed blocks that stops the engine when it runs out, in a few host instructions.

A guest that only runs (`jmp .`) has to end somewhere, at the same place each time, and a timer has
to come due in a loop that makes no exit. Unicorn calls a hook before each block of translated code;
a hook in Python there makes everything some 40 times slower, so this one is machine code, written
to a page of its own. There is a form for x86-64 hosts; on others, or where the host allows no
memory that can be written and executed, `native` is None and the engine counts in Python.

    f(uc, address, size, counter):   dec qword [counter]; js stop; ret
    stop:                            mov rax, uc_emu_stop; jmp rax        (with uc, as it came)

**Invariants.** The block that finds the counter at zero does not run, and leaves it at -1. The
counts are those of a hook in Python, block for block.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct

# System V calling convention: uc in rdi, counter in rcx.
_CODE = b"\x48\xff\x09\x78\x01\xc3\x48\xb8%b\xff\xe0"


class BlockCounter:
    """Counts down from `left`; `stop` is the address of the C function that ends a run."""

    def __init__(self, stop: int) -> None:
        self._left = ctypes.c_int64(0)
        self._page = native_page(_CODE % struct.pack("<Q", stop))
        #: Address of the hook and of its last argument; None where only Python can count.
        self.native: tuple[int, int] | None = None
        if self._page is not None:
            self.native = address_of(self._page), ctypes.addressof(self._left)

    @property
    def left(self) -> int:
        """How many blocks may still run; -1 if one more was about to."""
        return self._left.value

    @left.setter
    def left(self, blocks: int) -> None:
        self._left.value = blocks


def native_page(code: bytes) -> mmap.mmap | None:
    """A page with machine code of x86-64 in it; None where that can't be executed."""
    page = _executable_page() if platform.machine() in ("x86_64", "AMD64") else None
    if page is not None:
        page[: len(code)] = code
    return page


def address_of(buffer: mmap.mmap) -> int:
    """Where a mapping is in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _executable_page() -> mmap.mmap | None:
    rights = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    try:
        return mmap.mmap(-1, mmap.PAGESIZE, prot=rights)
    except OSError:
        return None
