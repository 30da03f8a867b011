"""What looks wrong in a kexec module that is sound by its numbers.

The posted C code leaves modules that pass every check of `verify`, and still two things share
memory. That can only be seen in what the bytes say, so these are suspicions: they are told to
people, and never keep anybody from attaching.

    code                        what
    bytes-outside-records   bytes behind the table that no entry accounts for: a record whose size
                            was stored modulo 256 goes on there, and the next one may lie in it
    page-two-users          a page of a 9pfs device that belongs to another record, or to nobody:
                            a single page is always page 0 there, owned or not, and the last page
                            of a run is not looked at (`suspect_device.py`)
    same-device-twice       two 9PFS records name one grant reference or one event channel
    seal-broken             a sealed record none of whose two copies matches its checksum
    seal-fell-back          a sealed record whose newest copy does not match, but the older does

**Invariants.** Any bytes give a list, never an exception. A module that only sound code has written
gives an empty one, wherever a kernel died, but for a device whose pages were being given back.
`offset` is in bytes from the start of the administration page.

Why this is not in `verify`: it needs the other pages, and it can be wrong.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import (
    EYE_CATCHER,
    HEADER,
    MAX_RECORDS,
    PG2REC_OFFSET,
    RECORD,
    RECORD_NONE,
)
from xenlive.errors import ImageError
from xenlive.kexec.adminpage import AdminPage
from xenlive.kexec.recover import settle
from xenlive.kexec.sealed import covers_pages, decode_sealed, is_sealed
from xenlive.kexec.suspect_device import device_problems
from xenlive.kexec.verify import Problem, verify
from xenlive.memory.address import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer


class _Entry:
    """An entry of the record table that is in use, with what of its data lies in the page."""

    __slots__ = ("data", "index", "offset", "type", "where")

    def __init__(self, index: int, where: int, type_: int, offset: int, data: bytes) -> None:
        self.index = index
        self.where = where
        self.type = type_
        self.offset = offset
        self.data = data


def suspect(
    admin_page: Buffer, size_bytes: int, read_page: Callable[[int], bytes]
) -> list[Problem]:
    """Every suspicion about a module of `size_bytes` that ends with `admin_page`.

    `read_page(index)` gives the 4096 bytes of an allocatable page, fewer if they are not known. A
    module whose table can't be found has no suspicions, `verify` says enough about that.
    """
    page = bytes(admin_page)
    if not verify(page, size_bytes):
        page = _settled(page, size_bytes)
    if len(page) != PAGE_SIZE or not page.startswith(EYE_CATCHER):
        return []
    _, n_pages, n_records, recs_off = HEADER.unpack(page)
    table_end = recs_off + n_records * RECORD.size
    if n_records > MAX_RECORDS or table_end > PAGE_SIZE or recs_off < PG2REC_OFFSET + n_pages:
        return []
    if size_bytes != (n_pages + 1) * PAGE_SIZE:
        return []
    owners = page[PG2REC_OFFSET : PG2REC_OFFSET + n_pages]
    entries = _entries(page, recs_off, n_records)
    problems = _outside_problems(page, recs_off, n_records, entries)
    records = [(entry.index, entry.where, entry.type, entry.data) for entry in entries]
    problems += device_problems(records, owners, read_page)
    return problems + _seal_problems(entries, owners, read_page)


def _settled(page: bytes, size_bytes: int) -> bytes:
    """A sound page as the next kernel sees it: a resize that was cut off is brought to its end."""
    copy = bytearray(page)
    settle(AdminPage(memoryview(copy)), size_bytes)
    return bytes(copy)


def _entries(page: bytes, recs_off: int, n_records: int) -> list[_Entry]:
    entries = []
    for index in range(n_records):
        where = recs_off + index * RECORD.size
        offset, type_, size = RECORD.unpack(page, where)
        if type_ != RECORD_NONE:
            entries.append(_Entry(index, where, type_, offset, page[offset : offset + size]))
    return entries


def _outside_problems(
    page: bytes, recs_off: int, n_records: int, entries: list[_Entry]
) -> list[Problem]:
    table_end = recs_off + n_records * RECORD.size
    problems = []
    for start, end in _gaps(page, recs_off, table_end):
        left = page[start:end].rstrip(b"\0")
        found = left.lstrip(b"\0")
        if not found or _is_copy(found, entries, page[recs_off:table_end]):
            continue
        first = start + len(left) - len(found)
        message = f"{len(found)} bytes belong to no record" + _whose(first, len(found), entries)
        problems.append(Problem("bytes-outside-records", message, first))
    return problems


def _whose(first: int, size: int, entries: list[_Entry]) -> str:
    """Whose the bytes at `first` may be: a record that ends with them, modulo 256."""
    end = first + size
    for entry in sorted(entries, key=lambda entry: -entry.offset):
        stored, real = len(entry.data), end - entry.offset
        if entry.offset + stored > first or (real - stored) % 256:
            continue
        message = f"; record {entry.index} may have {real} bytes, not {stored}"
        inside = [e.index for e in entries if e.data and entry.offset + stored <= e.offset < end]
        return message + "".join(f", and record {index} lies inside it" for index in inside)
    return ""


def _gaps(page: bytes, recs_off: int, table_end: int) -> list[tuple[int, int]]:
    """Start and end of what no entry accounts for behind the table, lowest first.

    In a page that is not sound, unused entries with an offset and a size may be left: a record that
    is not there yet, or not any more.
    """
    spans = []
    for where in range(recs_off, table_end, RECORD.size):
        offset, _, size = RECORD.unpack(page, where)
        if size:
            spans.append((offset, offset + size))
    gaps = []
    reach = table_end
    for start, end in sorted(spans):
        if start > reach:
            gaps.append((reach, min(start, PAGE_SIZE)))
        reach = max(reach, end)
    return [gap for gap in [*gaps, (reach, PAGE_SIZE)] if gap[0] < gap[1]]


def _is_copy(found: bytes, entries: list[_Entry], table: bytes) -> bool:
    """Whether what is found in a gap is what a kernel leaves that dies while it moves something.

    That is a copy of the data or the table that was begun or is being cleared, from either end:
    some of its first or last bytes.
    """
    size, first, last = len(found), found[0], found[-1]
    for entry in entries:
        data = entry.data.strip(b"\0")
        if size > len(data):
            continue
        if data[0] == first and _agrees(found, data[:size]):
            return True
        if data[-1] == last and _agrees(found, data[-size:]):
            return True
    at = table.find(first)
    while 0 <= at <= len(table) - size:
        if _agrees(found, table[at : at + size]):
            return True
        at = table.find(first, at + 1)
    return False


def _agrees(found: bytes, source: bytes) -> bool:
    """Whether each byte found is that of the source, or zero."""
    return all(a in (0, b) for a, b in zip(found, source, strict=True))


def _seal_problems(
    entries: list[_Entry], owners: bytes, read_page: Callable[[int], bytes]
) -> list[Problem]:
    problems = []
    for entry in entries:
        if not is_sealed(entry.type, entry.data):
            continue
        pages: list[bytes] = []
        if covers_pages(entry.data):
            owned = (page for page, owner in enumerate(owners) if owner == entry.index)
            pages = [read_page(page) for page in owned]
            if any(len(content) < PAGE_SIZE for content in pages):
                continue
        try:
            sealed = decode_sealed(entry.data, pages)
        except ImageError as error:
            message = f"record {entry.index}: {error.what}"
            problems.append(Problem(error.code, message, entry.where))
            continue
        if sealed.fell_back:
            message = f"record {entry.index}: only generation {sealed.generation} matches its seal"
            problems.append(Problem("seal-fell-back", message, entry.where))
    return problems
