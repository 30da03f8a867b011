"""The kexec module: reserved pages with a table of contents, handed from kernel to kernel.

Specification: `abi/kexec_module.py`. A module never moves and never changes its size while a
kernel lives; what is in it is found by record type. A record is a few bytes in the administration
page and, if it wants, any number of the pages before that.

    address                                          admin_address
    | page 0 | page 1 |  ...          | page n_pages-1 | header, owners, records, data |

**Invariants.** An attached module is sound, as `verify` has it, and stays so: every change is
checked first, then made, and the byte that makes it visible (a record's type, a page's owner) is
written last. So a kernel that dies between two stores leaves a sound module. Whatever fails has
changed nothing. The header is read once; offsets in the table are checked at each use.

The posted C code stores a size or type modulo 256, hands out page 0 whether it is owned or not,
and stops the machine when the table is full. Here these are `ModuleError` and `OutOfSpace`.

Why the records are not kept as objects: the page is the truth, and the next kernel's only one.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import (
    EYE_CATCHER,
    FRESH_RECORDS,
    HEADER,
    MAX_MODULE_PAGES,
    MAX_RECORD_SIZE,
    MAX_RECORD_TYPE,
    PAGE_FREE,
    PG2REC_OFFSET,
    RECORD,
    RECORD_NONE,
    fresh_recs_off,
)
from xenlive.errors import BadAddress, ImageError, ModuleError, OutOfSpace
from xenlive.kexec.verify import verify
from xenlive.memory.address import PAGE_SIZE, Frame, PhysAddr, frame_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.memory.guest import GuestMemory


class Record:
    """An entry of the record table: its data is `size` bytes at `offset` of the last page."""

    __slots__ = ("index", "offset", "size", "type")

    def __init__(self, index: int, type: int, offset: int, size: int) -> None:
        self.index = index
        self.type = type
        self.offset = offset
        self.size = size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return (self.index, self.type, self.offset, self.size) == (
            other.index,
            other.type,
            other.offset,
            other.size,
        )

    def __hash__(self) -> int:
        return hash((self.index, self.type, self.offset, self.size))

    def __repr__(self) -> str:
        return (
            f"Record(index={self.index}, type={self.type}, offset={self.offset}, size={self.size})"
        )


class KexecModule:
    """A kexec module in guest memory; made by `create` or `attach`, never directly."""

    __slots__ = ("_page", "address", "n_pages", "n_records", "recs_off", "size_bytes")

    def __init__(self, page: memoryview, address: PhysAddr) -> None:
        _, n_pages, n_records, recs_off = HEADER.unpack(page)
        self._page = page
        self.address = address
        self.n_pages: int = n_pages
        self.n_records: int = n_records
        self.recs_off: int = recs_off
        self.size_bytes = (self.n_pages + 1) * PAGE_SIZE

    @classmethod
    def create(cls, memory: GuestMemory, address: PhysAddr, n_module_pages: int) -> KexecModule:
        """A fresh module of `n_module_pages` at `address`; only its last page is cleared.

        ModuleError for a number of pages no module has, BadAddress if they are not all there or
        not page aligned.
        """
        if not 1 <= n_module_pages <= MAX_MODULE_PAGES:
            what = f"a kexec module has 1 to {MAX_MODULE_PAGES} pages"
            raise ModuleError(what, n_module_pages)
        size_bytes = n_module_pages * PAGE_SIZE
        if address % PAGE_SIZE:
            raise BadAddress(address, size_bytes, "a kexec module starts at a page boundary")
        page = memory.view(address, size_bytes)[-PAGE_SIZE:]
        n_pages = n_module_pages - 1
        fresh = bytearray(PAGE_SIZE)
        header = HEADER.pack(EYE_CATCHER, n_pages, FRESH_RECORDS, fresh_recs_off(n_pages))
        fresh[: HEADER.size] = header
        fresh[PG2REC_OFFSET : PG2REC_OFFSET + n_pages] = bytes([PAGE_FREE]) * n_pages
        page[: len(EYE_CATCHER)] = bytes(len(EYE_CATCHER))
        page[len(EYE_CATCHER) :] = fresh[len(EYE_CATCHER) :]
        page[: len(EYE_CATCHER)] = EYE_CATCHER
        return cls(page, address)

    @classmethod
    def attach(cls, memory: GuestMemory, address: PhysAddr, size_bytes: int) -> KexecModule:
        """The module of `size_bytes` that lies at `address`. ImageError unless it is sound."""
        if address % PAGE_SIZE or size_bytes <= 0 or size_bytes % PAGE_SIZE:
            what = f"{size_bytes} bytes at {address:#x} are no whole pages"
            raise ImageError("bad-size", what)
        try:
            page = memory.view(address, size_bytes)[-PAGE_SIZE:]
        except BadAddress as error:
            raise ImageError("outside-memory", f"the module is not in memory: {error}") from None
        problems = verify(page, size_bytes)
        if problems:
            first = problems[0]
            raise ImageError(first.code, first.message, first.offset)
        return cls(page, address)

    @property
    def admin_address(self) -> PhysAddr:
        """Address of the administration page, the module's last."""
        return PhysAddr(self.address + self.n_pages * PAGE_SIZE)

    def release(self) -> None:
        """Lets go of the memory behind it; no call after that."""
        self._page.release()

    # Records.

    def record(self, index: int) -> Record:
        """The record at `index`. ModuleError if there is none."""
        if 0 <= index < self.n_records:
            record = self._entry(index)
            if record.type != RECORD_NONE:
                return record
        raise ModuleError("no such record in the kexec module", index)

    def records(self) -> list[Record]:
        """All records in use, lowest index first."""
        entries = (self._entry(index) for index in range(self.n_records))
        return [record for record in entries if record.type != RECORD_NONE]

    def find_record(self, type: int, start: int = 0) -> int | None:
        """Index of the first record of `type` at or above `start`; None if there is none."""
        _validate_type(type)
        if start < 0:
            raise ModuleError("a record's index can't be negative", start)
        for index in range(start, self.n_records):
            if self._entry(index).type == type:
                return index
        return None

    def read_record(self, index: int) -> bytes:
        """A record's data. ModuleError if there is no such record."""
        record = self.record(index)
        return bytes(self._page[record.offset : record.offset + record.size])

    def add_record(self, type: int, data: bytes) -> int:
        """Stores a new record of `type`, 1 to 255, and gives its index.

        ModuleError for a type or size that the table can't hold (at most 255 bytes), OutOfSpace
        when all entries are in use or the page is full.
        """
        _validate_type(type)
        if len(data) > MAX_RECORD_SIZE:
            raise ModuleError(f"a record has at most {MAX_RECORD_SIZE} bytes", len(data))
        index = self._unused_entry()
        offset = PAGE_SIZE - self.free_record_bytes()
        if offset + len(data) > PAGE_SIZE:
            raise OutOfSpace("record bytes of the kexec module", len(data), PAGE_SIZE - offset)
        self._page[offset : offset + len(data)] = data
        self._write_entry(index, Record(index, type, offset, len(data)))
        return index

    def update_record(self, index: int, data: bytes, offset: int = 0) -> None:
        """Overwrites a record's bytes from `offset` on. ModuleError if it has not that many."""
        record = self.record(index)
        if offset < 0 or offset + len(data) > record.size:
            raise ModuleError(
                f"record {index} has {record.size} bytes, not those at {offset}", len(data)
            )
        start = record.offset + offset
        self._page[start : start + len(data)] = data

    def free_record_bytes(self) -> int:
        """Bytes left for the data of new records."""
        ends = [record.offset + record.size for record in self.records()]
        table_end = self.recs_off + self.n_records * RECORD.size
        return PAGE_SIZE - max([table_end, *ends])

    # Pages.

    def owners(self) -> bytes:
        """The owner of each page: a record's index, or 255 for a free one."""
        return bytes(self._page[PG2REC_OFFSET : PG2REC_OFFSET + self.n_pages])

    def free_page_count(self) -> int:
        """How many pages belong to nobody."""
        return self.owners().count(PAGE_FREE)

    def pages_of(self, record: int) -> list[int]:
        """Indices of a record's pages, lowest first. ModuleError if there is no such record."""
        owner = self.record(record).index
        return [page for page, found in enumerate(self.owners()) if found == owner]

    def alloc_pages(self, record: int, n: int) -> int:
        """Gives `record` the lowest `n` free pages that lie side by side; index of the first.

        They keep what was in them. ModuleError for no such record or `n` below 1, OutOfSpace when
        no run is long enough.
        """
        owner = self.record(record).index
        if n < 1:
            raise ModuleError("can't allocate that many pages", n)
        owners = self.owners()
        first = owners.find(bytes([PAGE_FREE]) * n)
        if first < 0:
            raise OutOfSpace("pages of the kexec module in a row", n, _longest_free_run(owners))
        self._set_owners(first, n, owner)
        return first

    def free_pages(self, first: int, n: int) -> None:
        """Takes `n` pages from `first` on from their owners. ModuleError unless all have one."""
        if n < 1:
            raise ModuleError("can't free that many pages", n)
        if first < 0 or first + n > self.n_pages:
            raise ModuleError(f"the module has {self.n_pages} pages, not the {n} from", first)
        if PAGE_FREE in self.owners()[first : first + n]:
            raise ModuleError(f"not all of the {n} pages are owned from", first)
        self._set_owners(first, n, PAGE_FREE)

    def page_address(self, index: int) -> PhysAddr:
        """Address of an allocatable page. ModuleError if there is none of that index."""
        if not 0 <= index < self.n_pages:
            raise ModuleError("no such page in the kexec module", index)
        return PhysAddr(self.address + index * PAGE_SIZE)

    def page_frame(self, index: int) -> Frame:
        """Frame number of an allocatable page. ModuleError if there is none of that index."""
        return frame_of(self.page_address(index))

    # The administration page itself.

    def _entry(self, index: int) -> Record:
        """An entry as it stands there. ImageError if it was damaged since the module was sound."""
        where = self.recs_off + index * RECORD.size
        offset, type_, size = RECORD.unpack(self._page, where)
        if type_ != RECORD_NONE and offset + size > PAGE_SIZE:
            raise ImageError("record-outside", f"record {index} is not in its page", where)
        return Record(index, type_, offset, size)

    def _write_entry(self, index: int, record: Record) -> None:
        where = self.recs_off + index * RECORD.size
        packed = RECORD.pack(record.offset, record.type, record.size)
        type_at = RECORD.offset_of("type")
        self._page[where : where + type_at] = packed[:type_at]
        self._page[where + type_at + 1 : where + RECORD.size] = packed[type_at + 1 :]
        self._page[where + type_at] = record.type

    def _unused_entry(self) -> int:
        for index in range(self.n_records):
            if self._entry(index).type == RECORD_NONE:
                return index
        raise OutOfSpace("records of the kexec module", 1, 0)

    def _set_owners(self, first: int, n: int, owner: int) -> None:
        start = PG2REC_OFFSET + first
        self._page[start : start + n] = bytes([owner]) * n


def _validate_type(type_: int) -> None:
    if not RECORD_NONE < type_ <= MAX_RECORD_TYPE:
        raise ModuleError(f"a record's type is 1 to {MAX_RECORD_TYPE}", type_)


def _longest_free_run(owners: bytes) -> int:
    owned = bytes(PAGE_FREE)
    free_or_zero = owners.translate(owned + bytes([PAGE_FREE]))
    return max(len(run) for run in free_or_zero.split(b"\0"))
