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

**Invariants.** Any bytes give a list, never an exception, and a short one: what is left out is
counted in its last line. A module that only sound code has written gives an empty one, wherever a
kernel died in a copy that goes from one end to the other; but for a device whose pages were being
given back. (A copy cut off in its midst, or of a record that was changed or deleted since, looks
like nobody's bytes.)
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


#: No more suspicions than this, and one line that counts the others.
MAX_SUSPICIONS = 100
_MAX_NAMED = 4

# How often a place is tried out for what may be a part of a copy; far more than honest pages need.
_MAX_TRIES = 50_000
_NONZERO = bytes([0] + [0xFF] * 255)


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
    return _bounded(problems + _seal_problems(entries, owners, read_page))


def _bounded(problems: list[Problem]) -> list[Problem]:
    more = problems[MAX_SUSPICIONS:]
    if not more:
        return problems
    told = f"{more[0].message}; and {len(more) - 1} more suspicions"
    return [*problems[:MAX_SUSPICIONS], Problem(more[0].code, told, more[0].offset)]


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
    copies = _Copies({entry.data for entry in entries}, page[recs_off:table_end])
    by_offset = sorted(entries, key=lambda entry: entry.offset)
    for start, end in _gaps(page, recs_off, table_end):
        left = page[start:end].rstrip(b"\0")
        found = left.lstrip(b"\0")
        if not found or copies.has(found):
            continue
        first = start + len(left) - len(found)
        size = "1 byte belongs" if len(found) == 1 else f"{len(found)} bytes belong"
        message = f"{size} to no record" + _whose(first, len(found), by_offset)
        problems.append(Problem("bytes-outside-records", message, first))
    return problems


def _whose(first: int, size: int, entries: list[_Entry]) -> str:
    """Whose the bytes at `first` may be: a record that ends with them, modulo 256."""
    end = first + size
    for entry in reversed(entries):
        stored, real = len(entry.data), end - entry.offset
        if entry.offset + stored > first or (real - stored) % 256:
            continue
        message = f"; record {entry.index} may have {real} bytes, not {stored}"
        inside = [e.index for e in entries if e.data and entry.offset + stored <= e.offset < end]
        message += "".join(f", and record {index} lies inside it" for index in inside[:_MAX_NAMED])
        more = len(inside) - _MAX_NAMED
        return message + (f", and {more} more" if more > 0 else "")
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


class _Copies:
    """What a kernel leaves that dies while it moves something: a copy begun, or not yet cleared.

    Of a record's data that is its first or its last bytes, of the table any part; the other bytes
    are zero. Not any part of the data: real kernels' records resemble each other, so what a size
    modulo 256 left behind could then pass for a copy.
    """

    __slots__ = ("_data", "_table", "_tries")

    def __init__(self, data: set[bytes], table: bytes) -> None:
        self._data = sorted({source.strip(b"\0") for source in data} - {b""})
        self._table = table
        self._tries = _MAX_TRIES

    def has(self, found: bytes) -> bool:
        """Whether `found`, which begins and ends with no zero, is what is left of a copy."""
        size = len(found)
        wanted = int.from_bytes(found, "little")
        mask = int.from_bytes(found.translate(_NONZERO), "little")
        for data in self._data:
            if size > len(data):
                continue
            for piece in (data[:size], data[-size:]):
                if int.from_bytes(piece, "little") & mask == wanted:
                    return True
        return self._is_of_table(found, wanted, mask)

    def _is_of_table(self, found: bytes, wanted: int, mask: int) -> bool:
        """Where it may come from is found by its longest run without a zero."""
        run = max(found.split(b"\0"), key=len)
        at = found.index(run)
        end = len(self._table) - len(found) + at + len(run)
        place = self._table.find(run, at, end) if len(found) <= len(self._table) else -1
        while place >= 0 and self._tries:
            self._tries -= 1
            piece = self._table[place - at : place - at + len(found)]
            if int.from_bytes(piece, "little") & mask == wanted:
                return True
            place = self._table.find(run, place + 1, end)
        return False


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
