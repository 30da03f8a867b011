"""The kexec module: reserved pages with a table of contents, handed from kernel to kernel.

Specification: `abi/kexec_module.py`, and docs/kexec-module.md for what is this project's own. What
is in a module is found by record type. A record is a few bytes in the administration page and, if
it wants, any number of the pages before that.

    address                                          admin_address
    | page 0 | page 1 |  ...          | page n_pages-1 | header, owners, records, data |
    ◀── grow, shrink

**Invariants.** An attached module is sound, as `verify` has it, and stays so after every single
store (`adminpage.py`): a kernel that dies between two stores leaves a sound module. Whatever fails
has changed nothing. The administration page never moves. The header's numbers are those of the copy
that was verified, whatever the page says later; offsets in the table are checked at each use. There
is one `KexecModule` for a module at a time: after `grow`, `shrink`, `extend_table` or `compact`
another one, attached before, is stale and must not be used.

The posted C code stores a size or type modulo 256, hands out page 0 whether it is owned or not,
and stops the machine when the table is full. Here these are `ModuleError` and `OutOfSpace`. What
the posted code does right, this does byte for byte.

Why the records are not kept as objects: the page is the truth, and the next kernel's only one.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import (
    FRESH_RECORDS,
    MAX_MODULE_PAGES,
    MAX_RECORD_SIZE,
    MAX_RECORD_TYPE,
    PAGE_FREE,
    RECORD_NONE,
    fresh_recs_off,
)
from xenlive.errors import BadAddress, ImageError, ModuleError, OutOfSpace
from xenlive.kexec import arrange
from xenlive.kexec.adminpage import AdminPage, Record
from xenlive.kexec.recover import settle
from xenlive.kexec.resize import resize
from xenlive.kexec.verify import first_problem
from xenlive.memory.address import PAGE_SIZE, Frame, PhysAddr, frame_of
from xenlive.memory.guest import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

    from xenlive.memory.e820 import MemoryMap

__all__ = ["KexecModule", "Record"]


class KexecModule:
    """A kexec module in guest memory; made by `create`, `attach` or `from_bytes`, never directly.

    Where the memory can't be written, all that would change the module is a `ModuleError`.
    """

    __slots__ = ("_memory", "_page", "address")

    def __init__(self, page: AdminPage, address: PhysAddr, memory: GuestMemory) -> None:
        self._page = page
        self._memory = memory
        self.address = address

    def __repr__(self) -> str:
        records = len(self.records())
        return (
            f"<KexecModule: {self.n_pages + 1} pages at {self.address:#x}, "
            f"{records} of {self.n_records} records>"
        )

    @classmethod
    def create(cls, memory: GuestMemory, address: PhysAddr, n_module_pages: int) -> KexecModule:
        """A fresh module of `n_module_pages` at `address`; only its last page is cleared.

        ModuleError for a number of pages no module has, or if the memory can't be written;
        BadAddress if they are not all there or not page aligned.
        """
        if not 1 <= n_module_pages <= MAX_MODULE_PAGES:
            what = f"a kexec module has 1 to {MAX_MODULE_PAGES} pages"
            raise ModuleError(what, n_module_pages)
        size_bytes = n_module_pages * PAGE_SIZE
        if address % PAGE_SIZE:
            raise BadAddress(address, size_bytes, "a kexec module starts at a page boundary")
        page = AdminPage(memory.view(address, size_bytes)[-PAGE_SIZE:])
        if page.is_readonly():
            raise ModuleError("no kexec module can be made in read-only memory, at", address)
        n_pages = n_module_pages - 1
        page.format(n_pages, FRESH_RECORDS, fresh_recs_off(n_pages))
        return cls(page, address, memory)

    @classmethod
    def attach(cls, memory: GuestMemory, address: PhysAddr, size_bytes: int) -> KexecModule:
        """The module of `size_bytes` that lies at `address`. ImageError unless it is sound.

        What a kernel left that died in the middle of a change is put in order (`recover.py`). In
        memory that can't be written that is done on a copy, and the module can only be read.
        """
        if address % PAGE_SIZE or size_bytes <= 0 or size_bytes % PAGE_SIZE:
            what = f"{size_bytes} bytes at {address:#x} are no whole pages"
            raise ImageError("bad-size", what)
        try:
            view = memory.view(address, size_bytes)[-PAGE_SIZE:]
        except BadAddress as error:
            raise ImageError("outside-memory", f"the module is not in memory: {error}") from None
        # Another kernel or its host may still be writing: what was checked is what counts.
        checked = bytes(view)
        problem = first_problem(checked, size_bytes)
        if problem is not None:
            raise ImageError(problem.code, problem.message, problem.offset)
        if view.readonly:
            page = AdminPage(memoryview(bytearray(checked)))
            settle(page, size_bytes)
            return cls(page.frozen(), address, memory)
        page = AdminPage(view, checked)
        settle(page, size_bytes)
        return cls(page, address, memory)

    @classmethod
    def from_bytes(cls, data: Buffer, address: int = 0) -> KexecModule:
        """The module that these bytes are, which lay at `address`; ImageError as `attach`.

        It is a copy, and can only be read. For notebooks, debuggers and scripts.
        """
        image = bytes(memoryview(data))
        try:
            memory = GuestMemory([(address, image)])
        except BadAddress as error:
            raise ImageError("outside-memory", f"the module is not in memory: {error}") from None
        return cls.attach(memory, PhysAddr(address), len(image))

    @property
    def n_pages(self) -> int:
        """Allocatable pages: all but the last."""
        return self._page.n_pages

    @property
    def n_records(self) -> int:
        """Entries of the record table, used or not."""
        return self._page.n_records

    @property
    def recs_off(self) -> int:
        """Offset of the record table in the administration page."""
        return self._page.recs_off

    @property
    def size_bytes(self) -> int:
        """Size of the whole module, with the administration page."""
        return (self.n_pages + 1) * PAGE_SIZE

    @property
    def admin_address(self) -> PhysAddr:
        """Address of the administration page, the module's last."""
        return PhysAddr(self.address + self.n_pages * PAGE_SIZE)

    def release(self) -> None:
        """Lets go of the memory behind it; no call after that."""
        self._page.release()
        self._memory = _NO_MEMORY

    # Records.

    def record(self, index: int) -> Record:
        """The record at `index`. ModuleError if there is none."""
        if 0 <= index < self.n_records:
            record = self._page.entry(index)
            if record.type != RECORD_NONE:
                return record
        raise ModuleError("no such record in the kexec module", index)

    def records(self) -> list[Record]:
        """All records in use, lowest index first."""
        return self._page.records()

    def find_record(self, type: int, start: int = 0) -> int | None:
        """Index of the first record of `type` at or above `start`; None if there is none."""
        _validate_type(type)
        if start < 0:
            raise ModuleError("a record's index can't be negative", start)
        index = self._page.types().find(type, start)
        return index if index >= 0 else None

    def read_record(self, index: int) -> bytes:
        """A record's data. ModuleError if there is no such record."""
        return self._page.data(self.record(index))

    def add_record(self, type: int, data: Buffer) -> int:
        """Stores a new record of `type`, 1 to 255, and gives its index.

        ModuleError for a type or size that the table can't hold (at most 255 bytes), OutOfSpace
        when all entries are in use or there are not that many bytes behind all other data:
        `extend_table` and `compact` may help then.
        """
        _validate_type(type)
        stored = bytes(memoryview(data))
        if len(stored) > MAX_RECORD_SIZE:
            raise ModuleError(f"a record has at most {MAX_RECORD_SIZE} bytes", len(stored))
        return self._writable().add(type, stored)

    def update_record(self, index: int, data: Buffer, offset: int = 0) -> None:
        """Overwrites a record's bytes from `offset` on. ModuleError if it has not that many.

        Many stores: see `sealed.py` for a record whose update is one.
        """
        record = self.record(index)
        stored = bytes(memoryview(data))
        if offset < 0 or offset + len(stored) > record.size:
            raise ModuleError(
                f"record {index} has {record.size} bytes, not those at {offset}", len(stored)
            )
        self._writable().copy(record.offset + offset, stored)

    def update_record_u32(self, index: int, value: int, offset: int = 0) -> None:
        """Overwrites four bytes of a record, little endian, with one store.

        ModuleError if it has not that many from `offset` on, or for a number that does not fit.
        """
        record = self.record(index)
        if offset < 0 or offset + 4 > record.size:
            raise ModuleError(f"record {index} has {record.size} bytes, not 4 from", offset)
        if not 0 <= value < 1 << 32:
            raise ModuleError("no number of four bytes", value)
        self._writable().store_u32(record.offset + offset, value)

    def delete_record(self, index: int, *, free_pages: bool = False) -> None:
        """Takes a record out of the table; its bytes are zeroed, and of use again if it was last.

        ModuleError if there is no such record, or if it owns pages and they are not to be freed.
        Those are freed first, one after the other.
        """
        page = self._writable()
        record = self.record(index)
        pages = self.pages_of(index)
        if pages and not free_pages:
            raise ModuleError(f"record {index} owns pages, so it can't be deleted", len(pages))
        for first, n in _runs(pages):
            self.free_pages(first, n)
        page.drop(record)

    def free_record_bytes(self) -> int:
        """Bytes left for the data of new records."""
        return PAGE_SIZE - self._page.data_end

    # Its own size and order.

    def compact(self) -> int:
        """Closes gaps between owners, table and records' data; bytes for new records after that.

        Records keep index, type and bytes. What can't be moved without a moment of risk stays.
        """
        arrange.compact(self._writable())
        return self.free_record_bytes()

    def extend_table(self, n_records: int) -> None:
        """Makes the record table `n_records` long; data of records that is in the way moves.

        ModuleError for fewer than now or more than 255, OutOfSpace if there is no room.
        """
        arrange.extend_table(self._writable(), n_records)

    def grow(
        self, n_pages: int, memmap: MemoryMap, reserved: Iterable[tuple[int, int]] = ()
    ) -> None:
        """Takes `n_pages` more pages in at the lower end: whole, free pages of RAM by `memmap`.

        `reserved` are pairs of address and size in bytes that are in use. Nothing in memory moves,
        but each page's index is higher by `n_pages` from then on; the new pages have the lowest,
        and keep what was in them. OutOfSpace if there are not so many below the module, by the map
        and in the memory it was made in, or no room in the administration page; ModuleError for a
        size that no module has.
        """
        page = self._writable()
        if n_pages < 1 or self.n_pages + 1 + n_pages > MAX_MODULE_PAGES:
            what = f"a kexec module of {self.n_pages + 1} pages grows to at most {MAX_MODULE_PAGES}"
            raise ModuleError(what, n_pages)
        room = min(memmap.room_below(self.address, reserved), self._memory_below())
        if room < n_pages:
            raise OutOfSpace("free pages below the kexec module", n_pages, room)
        resize(page, self.n_pages + n_pages)
        self.address = PhysAddr(self.address - n_pages * PAGE_SIZE)

    def shrink(self, n_pages: int) -> None:
        """Gives the lowest `n_pages` pages back, which must be free; all others' indices go down.

        ModuleError for a number of pages that it has not, OutOfSpace if one of them is in use.
        """
        page = self._writable()
        if not 1 <= n_pages <= self.n_pages:
            raise ModuleError(f"the module has {self.n_pages} pages to give back", n_pages)
        owners = self.owners()
        free = len(owners) - len(owners.lstrip(bytes([PAGE_FREE])))
        if free < n_pages:
            raise OutOfSpace("free pages at the lower end of the kexec module", n_pages, free)
        resize(page, self.n_pages - n_pages)
        self.address = PhysAddr(self.address + n_pages * PAGE_SIZE)

    # Pages.

    def owners(self) -> bytes:
        """The owner of each page: a record's index, or 255 for a free one."""
        return self._page.owners()

    def free_page_count(self) -> int:
        """How many pages belong to nobody."""
        return self.owners().count(PAGE_FREE)

    def pages_of(self, record: int) -> list[int]:
        """Indices of a record's pages, lowest first. ModuleError if there is no such record."""
        owner = self.record(record).index
        owners = self.owners()
        n = owners.count(owner)
        if n == 0:
            return []
        first, end = owners.find(owner), owners.rfind(owner) + 1
        if end - first == n:
            return list(range(first, end))
        return [page for page in range(first, end) if owners[page] == owner]

    def alloc_pages(self, record: int, n: int) -> int:
        """Gives `record` the lowest `n` free pages that lie side by side; index of the first.

        They keep what was in them. ModuleError for no such record or `n` below 1, OutOfSpace when
        no run is long enough.
        """
        page = self._writable()
        owner = self.record(record).index
        if n < 1:
            raise ModuleError("can't allocate that many pages", n)
        owners = self.owners()
        first = owners.find(bytes([PAGE_FREE]) * n)
        if first < 0:
            raise OutOfSpace("pages of the kexec module in a row", n, _longest_free_run(owners))
        page.set_owners(first, bytes([owner]) * n)
        return first

    def free_pages(self, first: int, n: int) -> None:
        """Takes `n` pages from `first` on from their owners. ModuleError unless all have one."""
        page = self._writable()
        if n < 1:
            raise ModuleError("can't free that many pages", n)
        if first < 0 or first + n > self.n_pages:
            raise ModuleError(f"the module has {self.n_pages} pages, not the {n} from", first)
        if PAGE_FREE in self.owners()[first : first + n]:
            raise ModuleError(f"not all of the {n} pages are owned from", first)
        page.set_owners(first, bytes([PAGE_FREE]) * n)

    def page_address(self, index: int) -> PhysAddr:
        """Address of an allocatable page. ModuleError if there is none of that index."""
        if not 0 <= index < self.n_pages:
            raise ModuleError("no such page in the kexec module", index)
        return PhysAddr(self.address + index * PAGE_SIZE)

    def page_frame(self, index: int) -> Frame:
        """Frame number of an allocatable page. ModuleError if there is none of that index."""
        return frame_of(self.page_address(index))

    def _writable(self) -> AdminPage:
        """The page, to be changed. ModuleError if it can't be."""
        if self._page.is_readonly():
            raise ModuleError("the kexec module was attached read-only, at", self.address)
        return self._page

    def _memory_below(self) -> int:
        """How many whole pages are below the module in the run of memory that it lies in."""
        for start, size in self._memory.regions():
            if start <= self.address < start + size:
                return (self.address - start) // PAGE_SIZE
        return 0


_NO_MEMORY = GuestMemory([])


def _validate_type(type_: int) -> None:
    if not isinstance(type_, int):
        raise TypeError("a record's type is an int")
    if not RECORD_NONE < type_ <= MAX_RECORD_TYPE:
        raise ModuleError(f"a record's type is 1 to {MAX_RECORD_TYPE}", type_)


def _runs(pages: list[int]) -> list[tuple[int, int]]:
    """First and number of each run of neighbours in a rising list."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and page == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((page, 1))
    return runs


def _longest_free_run(owners: bytes) -> int:
    owned = bytes(PAGE_FREE)
    free_or_zero = owners.translate(owned + bytes([PAGE_FREE]))
    return max(len(run) for run in free_or_zero.split(b"\0"))
