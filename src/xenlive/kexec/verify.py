"""What is wrong with a kexec module: every problem, by name.

The module was written by an earlier kernel, perhaps an old or a broken one, so every number in it
is suspect. Specification: see `abi/kexec_module.py`. The posted C code accepts a module by three
checks only (size, eye catcher, `n_pages`) and trusts the rest; here all of it has to hold together.

    code                        what
    bad-size                    the module's size is no whole number of pages, or absurd
    bad-eye-catcher             the administration page doesn't start with KexecMem
    bad-n-pages                 n_pages is not the module's size in pages minus one
    pg2rec-outside              the owners of the pages don't fit in the administration page
    bad-n-records               more than 255 records
    table-over-pg2rec           recs_off lies inside of the header or the owners
    table-outside               the record table doesn't end inside the page
    record-over-table           a record's data starts before the end of the table
    record-outside              a record's data doesn't end inside the page
    records-overlap             two records share bytes
    owner-out-of-range          a page's owner is an index that n_records rules out
    owner-without-record        a page's owner is an unused record
    type-twice                  a second journal of a resize, of which one may be
    bad-resize                  a journal of a resize that can't be carried through

A resize in flight (`kexec/resize.py`) is no problem: `n_pages` and the module's size may then be
either of the journal's two numbers, and of the owners those are checked that either form has.

**Invariants.** Any bytes give a list, never an exception; an empty list means that every later
access through the numbers in the page stays inside of it. `offset` of a problem is in bytes from
the start of the administration page. What follows from an earlier problem is not looked at: with a
wrong eye catcher there is nothing else to say.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import (
    EYE_CATCHER,
    HEADER,
    MAX_RECORDS,
    PAGE_FREE,
    PG2REC_OFFSET,
    RECORD,
    RECORD_NONE,
    RECORD_RESIZE,
    RESIZE,
    RESIZE_MAGIC,
    RESIZE_SHRINKING,
)
from xenlive.memory.address import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer


class Problem:
    """One thing wrong: `code` is stable, `message` for people, `offset` in the last page."""

    __slots__ = ("code", "message", "offset")

    def __init__(self, code: str, message: str, offset: int) -> None:
        self.code = code
        self.message = message
        self.offset = offset

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Problem):
            return NotImplemented
        return (self.code, self.message, self.offset) == (other.code, other.message, other.offset)

    def __hash__(self) -> int:
        return hash((self.code, self.message, self.offset))

    def __repr__(self) -> str:
        return f"Problem({self.code!r}, {self.message!r}, {self.offset})"


def verify(admin_page: Buffer, size_bytes: int) -> list[Problem]:
    """Every problem of a module of `size_bytes` that ends with `admin_page`, worst first.

    The page is copied before anything is looked at: what is checked can't change underneath.
    """
    return list(_problems(bytes(admin_page), size_bytes))


def first_problem(admin_page: Buffer, size_bytes: int) -> Problem | None:
    """The first of the problems that `verify` names, None for a sound module.

    It looks no further than that: a search may meet many pages that only begin like a module's.
    """
    return next(_problems(bytes(admin_page), size_bytes), None)


def _problems(page: bytes, size_bytes: int) -> Iterator[Problem]:
    if size_bytes <= 0 or size_bytes % PAGE_SIZE or len(page) != PAGE_SIZE:
        yield Problem("bad-size", f"a size of {size_bytes} is no whole number of pages", 0)
        return
    if page[: len(EYE_CATCHER)] != EYE_CATCHER:
        found = ascii(page[: len(EYE_CATCHER)])[1:]
        yield Problem("bad-eye-catcher", f"{found} stands where 'KexecMem' should", 0)
        return
    _, n_pages, n_records, recs_off = HEADER.unpack(page)
    journals = _journals(page, n_records, recs_off)
    header = _header_problems(n_pages, n_records, size_bytes // PAGE_SIZE - 1, journals)
    if header:
        yield from header
        return
    table_end = recs_off + n_records * RECORD.size
    table = _table_problem(n_pages, recs_off, table_end)
    if table:
        yield table
        return
    records = [RECORD.unpack(page, recs_off + i * RECORD.size) for i in range(n_records)]
    owners = page[PG2REC_OFFSET : PG2REC_OFFSET + n_pages]
    in_order = True
    for problem in _record_problems(records, recs_off, table_end):
        in_order = False
        yield problem
    for problem in _journal_problems(journals, n_pages, recs_off):
        in_order = False
        yield problem
    if journals and in_order:
        owners = journals[0].owners(page)
    yield from _owner_problems(owners, records)


class _Journal:
    """A journal of a resize as it stands there: its entry is at `where`; `whole` if it has all."""

    __slots__ = ("boundary", "n_large", "n_small", "where", "whole")

    def __init__(self, where: int, data: bytes) -> None:
        self.where = where
        self.whole = len(data) == RESIZE.size
        numbers = RESIZE.unpack(data.ljust(RESIZE.size, b"\0"))
        self.n_small: int = numbers[1]
        self.n_large: int = numbers[2]
        self.boundary: int = numbers[3] & ~RESIZE_SHRINKING

    def allows(self, n_pages: int) -> bool:
        """Whether a module that is being resized can have so many pages."""
        return self.whole and n_pages in (self.n_small, self.n_large)

    def owners(self, page: bytes) -> bytes:
        """The owners by position; where neither form has one they count as free."""
        owners = page[PG2REC_OFFSET : PG2REC_OFFSET + self.n_large]
        stale = max(self.boundary, self.n_small) - self.n_small
        free = bytes([PAGE_FREE]) * stale
        return owners[: self.n_small] + free + owners[self.n_small + stale :]


def _journals(page: bytes, n_records: int, recs_off: int) -> list[_Journal]:
    """All records that are journals by type and magic; the numbers may be anything."""
    if recs_off + n_records * RECORD.size > PAGE_SIZE:
        return []
    journals = []
    for index in range(n_records):
        where = recs_off + index * RECORD.size
        offset, type_, size = RECORD.unpack(page, where)
        if type_ == RECORD_RESIZE and page.startswith(RESIZE_MAGIC, offset, offset + size):
            journals.append(_Journal(where, page[offset : offset + size]))
    return journals


def _header_problems(
    n_pages: int, n_records: int, expected: int, journals: list[_Journal]
) -> list[Problem]:
    problems = []
    in_flight = journals and journals[0].allows(n_pages) and journals[0].allows(expected)
    if n_pages != expected and not in_flight:
        message = f"n_pages is {n_pages}, by the module's size it is {expected}"
        problems.append(Problem("bad-n-pages", message, HEADER.offset_of("n_pages")))
    elif PG2REC_OFFSET + n_pages > PAGE_SIZE:
        message = f"the owners of {n_pages} pages don't fit, at most {PAGE_SIZE - PG2REC_OFFSET} do"
        problems.append(Problem("pg2rec-outside", message, HEADER.offset_of("n_pages")))
    if n_records > MAX_RECORDS:
        message = f"n_records is {n_records}, at most {MAX_RECORDS} can be told apart"
        problems.append(Problem("bad-n-records", message, HEADER.offset_of("n_records")))
    return problems


def _journal_problems(journals: list[_Journal], n_pages: int, recs_off: int) -> list[Problem]:
    if not journals:
        return []
    first = journals[0]
    problems = [
        Problem("type-twice", "a second journal of a resize", journal.where)
        for journal in journals[1:]
    ]
    wrong = ""
    if not first.whole:
        wrong = f"a journal of a resize has {RESIZE.size} bytes, this one has not"
    elif first.n_small >= first.n_large or not first.allows(n_pages):
        wrong = f"n_pages is {n_pages}, the resize is from {first.n_small} to {first.n_large}"
    elif PG2REC_OFFSET + first.n_large > recs_off:
        wrong = f"the owners of {first.n_large} pages reach over the table at {recs_off}"
    elif first.boundary > first.n_large:
        wrong = f"the boundary is {first.boundary}, behind the last of {first.n_large} pages"
    if wrong:
        problems.insert(0, Problem("bad-resize", wrong, first.where))
    return problems


def _table_problem(n_pages: int, recs_off: int, table_end: int) -> Problem | None:
    where = HEADER.offset_of("recs_off")
    if recs_off < PG2REC_OFFSET + n_pages:
        owners_end = PG2REC_OFFSET + n_pages
        message = f"recs_off is {recs_off}, the owners of the pages end at {owners_end}"
        return Problem("table-over-pg2rec", message, where)
    if table_end > PAGE_SIZE:
        return Problem("table-outside", f"the record table ends at {table_end}", where)
    return None


def _record_problems(
    records: list[tuple[int, int, int]], recs_off: int, table_end: int
) -> Iterator[Problem]:
    used = []
    for index, (offset, type_, size) in enumerate(records):
        where = recs_off + index * RECORD.size
        if type_ == RECORD_NONE:
            continue
        if offset < table_end:
            message = f"record {index} lies at {offset}, the table ends at {table_end}"
            yield Problem("record-over-table", message, where)
        if offset + size > PAGE_SIZE:
            message = f"record {index} ends at {offset + size}, the page at {PAGE_SIZE}"
            yield Problem("record-outside", message, where)
        if size:
            used.append((offset, offset + size, index))
    used.sort()
    reach, reach_index = 0, 0
    for offset, end, index in used:
        if offset < reach:
            message = f"record {index} at {offset} lies inside record {reach_index}"
            where = recs_off + index * RECORD.size
            yield Problem("records-overlap", message, where)
        if end > reach:
            reach, reach_index = end, index


def _owner_problems(owners: bytes, records: list[tuple[int, int, int]]) -> Iterator[Problem]:
    used = [index for index, (_, type_, _) in enumerate(records) if type_ != RECORD_NONE]
    for owner in sorted(set(owners.translate(None, bytes([*used, PAGE_FREE])))):
        pages = owners.count(owner)
        where = PG2REC_OFFSET + owners.index(owner)
        if owner >= len(records):
            there = len(records) - 1
            which = f"the last is {there}" if records else "there are none"
            message = f"{_pages_belong(pages)} to record {owner}, {which}"
            yield Problem("owner-out-of-range", message, where)
        else:
            message = f"{_pages_belong(pages)} to record {owner}, which is unused"
            yield Problem("owner-without-record", message, where)


def _pages_belong(pages: int) -> str:
    return "1 page belongs" if pages == 1 else f"{pages} pages belong"
