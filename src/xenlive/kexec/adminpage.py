"""The administration page: the one door through which a kexec module is written.

A kernel can die between any two store instructions, and the next one finds the page as it was at
that moment. So it matters what one instruction stores:

    store_u8  store_u16  store_u32  store_u64     one instruction: happened or not
    copy  zero                                    many: any part of it may have happened

Every change of the module is: prepare where nobody looks, make it visible with one store, then
clean up. Layout: `abi/kexec_module.py`.

"Any part" is more than a plain loop does, which stores from front to back: a `memcpy` may start at
the end, or store both ends first, and where no rule is stated none is relied on.

**Invariants.** Nothing else writes to the page. The header's numbers are kept beside it and change
with it; they are never read a second time, and an entry whose data would lie outside of what they
say is an `ImageError`. Stores go through `memoryview.cast`, which is one instruction for each size,
aligned or not; `struct.pack_into` would store byte by byte.

Why a class of its own: a test that writes down every store can give the page as it was at each
moment a kernel could have died, and a rehearsal on a copy shows whether a longer change can be
carried through before the first byte of it is stored.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import (
    EYE_CATCHER,
    HEADER,
    PAGE_FREE,
    PG2REC_OFFSET,
    RECORD,
    RECORD_NONE,
)
from xenlive.errors import ImageError, OutOfSpace
from xenlive.memory.address import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Buffer

_N_PAGES = HEADER.offset_of("n_pages")
_N_RECORDS = HEADER.offset_of("n_records")
_RECS_OFF = HEADER.offset_of("recs_off")
_ENTRY_TYPE = RECORD.offset_of("type")


class Record:
    """An entry of the record table: its data is `size` bytes at `offset` of the last page."""

    __slots__ = ("index", "offset", "size", "type")

    def __init__(self, index: int, type: int, offset: int, size: int) -> None:
        self.index = index
        self.type = type
        self.offset = offset
        self.size = size

    @property
    def end(self) -> int:
        """The offset right after its data."""
        return self.offset + self.size

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


class AdminPage:
    """The administration page in live memory: `view` is all 4096 bytes of it.

    `checked` is the copy of it that was verified, whose header counts; without it the header is
    taken from the page as it is.
    """

    __slots__ = ("_view", "n_pages", "n_records", "recs_off")

    def __init__(self, view: memoryview, checked: bytes | None = None) -> None:
        self._view = view
        header = HEADER.unpack(view if checked is None else checked)
        self.n_pages: int = header[1]
        self.n_records: int = header[2]
        self.recs_off: int = header[3]

    # Stores of one instruction.

    def store_u8(self, offset: int, value: int) -> None:
        """Stores one byte."""
        self._view[offset] = value

    def store_u16(self, offset: int, value: int) -> None:
        """Stores two bytes, little endian, at once."""
        self._view[offset : offset + 2].cast("H")[0] = value

    def store_u32(self, offset: int, value: int) -> None:
        """Stores four bytes, little endian, at once."""
        self._view[offset : offset + 4].cast("I")[0] = value

    def store_u64(self, offset: int, value: int) -> None:
        """Stores eight bytes, little endian, at once."""
        self._view[offset : offset + 8].cast("Q")[0] = value

    # Stores of many instructions.

    def copy(self, offset: int, data: Buffer) -> None:
        """Stores `data`; a kernel that dies meanwhile may have stored any part of it."""
        self._view[offset : offset + len(memoryview(data))] = data

    def zero(self, offset: int, size: int) -> None:
        """Stores `size` zero bytes, none for a negative size; else as `copy`."""
        if size > 0:
            self.copy(offset, bytes(size))

    # Reading.

    def read(self, offset: int, size: int) -> bytes:
        """A copy of `size` bytes."""
        return bytes(self._view[offset : offset + size])

    def whole(self) -> bytes:
        """A copy of the page."""
        return bytes(self._view)

    def is_readonly(self) -> bool:
        """Whether the memory behind it can't be written, as that of a dump."""
        return self._view.readonly

    def scratch(self) -> AdminPage:
        """A copy of the page in memory of its own, to try things out on."""
        copy = memoryview(bytearray(self._view))
        return self._like(copy)

    def frozen(self) -> AdminPage:
        """The same page, read-only from now on."""
        return self._like(self._view.toreadonly())

    def _like(self, view: memoryview) -> AdminPage:
        """A page with the same header, whatever the bytes say."""
        page = AdminPage(view)
        page.n_pages, page.n_records, page.recs_off = self.n_pages, self.n_records, self.recs_off
        return page

    def release(self) -> None:
        """Lets go of the memory behind it; no call after that."""
        self._view.release()

    # The header.

    def reread_header(self) -> None:
        """Takes the header's numbers from the page, as they stand there."""
        _, self.n_pages, self.n_records, self.recs_off = HEADER.unpack(self._view)

    def format(self, n_pages: int, n_records: int, recs_off: int) -> None:
        """Makes the page that of a fresh module; the eye catcher comes last, at once."""
        self.store_u64(0, 0)
        fresh = bytearray(PAGE_SIZE)
        fresh[: HEADER.size] = HEADER.pack(EYE_CATCHER, n_pages, n_records, recs_off)
        fresh[PG2REC_OFFSET : PG2REC_OFFSET + n_pages] = bytes([PAGE_FREE]) * n_pages
        self.copy(len(EYE_CATCHER), fresh[len(EYE_CATCHER) :])
        self.store_u64(0, int.from_bytes(EYE_CATCHER, "little"))
        self.reread_header()

    def set_n_pages(self, n_pages: int) -> None:
        """Changes the number of allocatable pages, with one store."""
        self.store_u16(_N_PAGES, n_pages)
        self.n_pages = n_pages

    def set_n_records(self, n_records: int) -> None:
        """Changes the number of entries of the table, with one store."""
        self.store_u16(_N_RECORDS, n_records)
        self.n_records = n_records

    def set_recs_off(self, recs_off: int) -> None:
        """Changes where the table lies, with one store."""
        self.store_u16(_RECS_OFF, recs_off)
        self.recs_off = recs_off

    # The owners of the pages.

    def owners(self) -> bytes:
        """The owner of each page: a record's index, or 255 for a free one."""
        return bytes(self._view[PG2REC_OFFSET : PG2REC_OFFSET + self.n_pages])

    def set_owners(self, first: int, owners: bytes) -> None:
        """Gives the pages from `first` on their owners, one after the other."""
        self.copy(PG2REC_OFFSET + first, owners)

    # The record table.

    @property
    def table_end(self) -> int:
        """The offset right after the record table."""
        return self.recs_off + self.n_records * RECORD.size

    @property
    def data_end(self) -> int:
        """Where the data of the next record goes: after all that is in use."""
        return max([self.table_end, *(record.end for record in self.records())])

    def entry_offset(self, index: int) -> int:
        """Where an entry of the table lies."""
        return self.recs_off + index * RECORD.size

    def types(self) -> bytes:
        """The types of all entries; 0 is an unused one."""
        return bytes(self._view[self.recs_off + _ENTRY_TYPE : self.table_end : RECORD.size])

    def entry(self, index: int) -> Record:
        """An entry as it stands there. ImageError if it was damaged since the module was sound."""
        where = self.entry_offset(index)
        offset, type_, size = RECORD.unpack(self._view, where)
        if type_ != RECORD_NONE:
            if offset + size > PAGE_SIZE:
                raise ImageError("record-outside", f"record {index} is not in its page", where)
            if offset < self.table_end:
                raise ImageError("record-over-table", f"record {index} is in the table", where)
        return Record(index, type_, offset, size)

    def records(self) -> list[Record]:
        """All entries in use, lowest index first."""
        return [self.entry(index) for index, type_ in enumerate(self.types()) if type_]

    def unused_entry(self) -> int:
        """Index of the first unused entry. OutOfSpace if there is none."""
        index = self.types().find(RECORD_NONE)
        if index < 0:
            raise OutOfSpace("records of the kexec module", 1, 0)
        return index

    def data(self, record: Record) -> bytes:
        """A copy of a record's data."""
        return self.read(record.offset, record.size)

    def add(self, type_: int, data: bytes) -> int:
        """Stores a new record behind all others and gives its index. OutOfSpace if it can't be.

        The entry says first whose bytes those are, and gets its type when they are there.
        """
        index = self.unused_entry()
        offset = self.data_end
        if offset + len(data) > PAGE_SIZE:
            raise OutOfSpace("record bytes of the kexec module", len(data), PAGE_SIZE - offset)
        where = self.entry_offset(index)
        reservation = RECORD.pack(offset, RECORD_NONE, len(data))
        self.store_u32(where, int.from_bytes(reservation, "little"))
        self.copy(offset, data)
        self.store_u8(where + _ENTRY_TYPE, type_)
        return index

    def drop(self, record: Record) -> None:
        """Deletes a record that owns no page; gone with the first store, then cleaned up."""
        where = self.entry_offset(record.index)
        self.store_u8(where + _ENTRY_TYPE, RECORD_NONE)
        self.zero(record.offset, record.size)
        self.store_u32(where, 0)

    def relocate(self, record: Record, offset: int) -> None:
        """Moves a record's data to bytes at `offset` that nobody uses, not even itself."""
        self.copy(offset, self.data(record))
        self.store_u16(self.entry_offset(record.index), offset)
        self.zero(record.offset, record.size)


def rehearsed(page: AdminPage, ways: Iterable[Callable[[AdminPage], None]]) -> None:
    """Does the first of several ways that can be carried through to its end.

    Each is tried on a copy first. If none works, the error of the first is raised and nothing was
    changed.
    """
    error = None
    for way in ways:
        try:
            way(page.scratch())
        except OutOfSpace as failed:
            error = error or failed
        else:
            way(page)
            return
    if error is not None:
        raise error
