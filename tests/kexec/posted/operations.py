"""Random operations on a module, each done in Python and told to the kernel in C.

An operation's result is the C code's: a number from 0 on, or a negative errno. What of ours stands
for which errno is `errno_of`.

**Invariants.** Operations follow from the random numbers and the module alone: the same numbers
give the same sequence.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from xenlive.abi.kexec_module import PAGE_FREE, RECORD_NONE
from xenlive.errors import ModuleError, OutOfSpace
from xenlive.kexec import KexecModule
from xenlive.memory.address import PAGE_SIZE
from xenlive.memory.guest import GuestMemory

TYPES = (1, 1, 2, 7, 200, 255)
BAD_TYPES = (0, 256, 257, 65536)
SIZES = (0, 1, 4, 16, 16, 33, 255)
BAD_SIZES = (256, 272, 300, 511)
ANY_RESULT = 1 << 30


class Done(NamedTuple):
    """An operation that was done in Python: how the C code is told, and what came of it."""

    command: str
    result: int
    crc: int
    #: Whether the code as it was posted does something else, by the state before.
    bites: bool


def crc_of(memory: GuestMemory, module: KexecModule) -> int:
    """CRC-32 of the administration page."""
    return zlib.crc32(memory.view(module.admin_address, PAGE_SIZE))


def result_of(call: Callable[[], int | None], none: int = -errno.ENOENT) -> int:
    """What a call gave, in the C code's terms, `none` for None.

    ModuleError stands for ENOENT and EINVAL alike.
    """
    try:
        result = call()
    except ModuleError:
        return -errno.EINVAL
    except OutOfSpace:
        return -errno.ENOSPC
    return none if result is None else result


def as_ours(result: int) -> int:
    """A result of the C code, with ENOENT for an index as ours has it."""
    return -errno.EINVAL if result == -errno.ENOENT else result


class Player:
    """Does random operations on a module and keeps what the C code is to be told."""

    def __init__(self, random: Random, memory: GuestMemory, module: KexecModule) -> None:
        self.random = random
        self.memory = memory
        self.module = module
        self.done: list[Done] = []

    def play(self, n: int) -> None:
        """Does `n` operations."""
        kinds = (self.add, self.add, self.update, self.alloc, self.alloc, self.free, self.free)
        odd = (self.read, self.find, self.kexec)
        for _ in range(n):
            self.random.choice(kinds if self.random.random() < 0.75 else odd)()

    def keep(self, command: str, result: int, bites: bool = False) -> None:
        """Notes an operation that was just done."""
        self.done.append(Done(command, result, crc_of(self.memory, self.module), bites))

    def index(self) -> int:
        """Mostly a record's index; now and then none."""
        records = self.module.records()
        if records and self.random.random() < 0.9:
            return self.random.choice(records).index
        return self.random.randrange(self.module.n_records + 2)

    def add(self) -> None:
        """A record, in one of ten cases of a type or size that no entry can hold."""
        type_, size = self.random.choice(TYPES), self.random.choice(SIZES)
        odd = self.random.random()
        if odd < 0.05:
            type_ = self.random.choice(BAD_TYPES)
        elif odd < 0.1:
            size = self.random.choice(BAD_SIZES)
        data = self.random.randbytes(size)
        result = result_of(lambda: self.module.add_record(type_, data))
        self.keep(f"add {type_} {data.hex()}", result, bites=odd < 0.1)

    def update(self) -> None:
        """All of a record's bytes; now and then more than it has."""
        index = self.index()
        type_, size = RECORD_NONE, 1
        for record in self.module.records():
            if record.index == index:
                type_, size = record.type, record.size
        data = self.random.randbytes(size + (self.random.random() < 0.1))
        result = result_of(lambda: self.module.update_record(index, data), 0)
        self.keep(f"update {index} {type_} {data.hex()}", result)

    def alloc(self) -> None:
        """Pages, as many as a run of free ones has, or one more, or few, or none."""
        index, owners = self.index(), self.module.owners()
        few = self.random.choice((0, 1, 1, 2, 3, 5, 17, 4018))
        n = self.random.choice((few, few, owners.count(PAGE_FREE), min(len(owners) + 1, 4018)))
        result = result_of(lambda: self.module.alloc_pages(index, n))
        bites = result != -errno.EINVAL and last_page_goes_unchecked(owners, n)
        self.keep(f"alloc {index} {n}", result, bites)

    def free(self) -> None:
        """Some of a record's pages; now and then pages that nobody has, or that are not there."""
        owners = self.module.owners()
        owned = [page for page, owner in enumerate(owners) if owner != PAGE_FREE]
        first = self.random.choice(owned) if owned else self.random.randrange(len(owners) + 1)
        n = self.random.choice((0, 1, 1, 2, 3, 16, len(owners)))
        result = result_of(lambda: self.module.free_pages(first, n), 0)
        self.keep(f"free {first} {n}", result)

    def read(self) -> None:
        """A record's bytes. The C code reads no byte of an unused entry without an error."""
        index = self.index()
        try:
            data = self.module.read_record(index)
        except ModuleError:
            self.keep(f"read {index} 0", ANY_RESULT)
        else:
            self.keep(f"read {index} {len(data)}", 0)

    def find(self) -> None:
        """The first record of a type."""
        start, type_ = self.random.randrange(self.module.n_records + 2), self.random.choice(TYPES)
        result = result_of(lambda: self.module.find_record(type_, start))
        self.keep(f"find {start} {type_}", as_ours(result))

    def kexec(self) -> None:
        """The next kernel: nothing is left but memory."""
        address, size_bytes = self.module.address, self.module.size_bytes
        self.module = KexecModule.attach(self.memory, address, size_bytes)
        self.keep("attach", 0)


def last_page_goes_unchecked(owners: bytes, n: int) -> bool:
    """Whether the first run of pages that are free but for the last has an owned last page."""
    if n < 1 or n > len(owners):
        return False
    for first in range(len(owners) - n + 1):
        if owners.startswith(bytes([PAGE_FREE]) * (n - 1), first):
            return owners[first + n - 1] != PAGE_FREE
    return False
