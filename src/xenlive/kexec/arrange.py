"""Rearranging the administration page: gaps closed, the record table made longer or moved.

    | header, owners |    | record table |  data  |  gap  |  data  | free |
                     ^    ^              ^                         ^
      owners' end ---+    recs_off       table_end                 data_end

Nothing here changes a record's bytes, type or index; only where things lie. A record moves to
bytes that nobody uses, then its entry is switched with one store. The table moves the same way:
it is copied to where neither it nor a record lies, and `recs_off` is switched. The format wants the
table below all data, so data in the way goes first.

**Invariants.** The page is sound after each single store. Running out is found by rehearsing on a
copy (`rehearsed`), so that it changes nothing. What can't be moved without a moment of risk,
because its old and new place overlap and there is no third one, stays where it is.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import MAX_RECORDS, RECORD, RECORD_NONE, fresh_recs_off
from xenlive.errors import ModuleError, OutOfSpace
from xenlive.kexec.adminpage import rehearsed
from xenlive.memory.address import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.kexec.adminpage import AdminPage, Record

_WHAT = "record bytes of the kexec module"


def compact(page: AdminPage, n_pages: int = 0) -> None:
    """Closes the gaps between the owners, the record table and the records' data.

    The owners of `n_pages` pages keep their room if that is more than the module has.
    """
    pack(page, page.table_end)
    recs_off = fresh_recs_off(max(page.n_pages, n_pages))
    if page.recs_off > recs_off:
        ways = [lambda page: _move_table(page, recs_off, cut=False), lambda page: None]
        rehearsed(page, ways)
        pack(page, page.table_end)


def extend_table(page: AdminPage, n_records: int, n_pages: int = 0) -> None:
    """Makes the table `n_records` long, where it lies if that can be; data in the way moves.

    The owners of `n_pages` pages keep their room if that is more than the module has. ModuleError
    for a number that is smaller than now or that the format can't hold, OutOfSpace if there is no
    room.
    """
    if not page.n_records <= n_records <= MAX_RECORDS:
        what = f"a table of {page.n_records} records grows to at most {MAX_RECORDS}"
        raise ModuleError(what, n_records)

    def extend(page: AdminPage) -> None:
        moved = clear_below(page, page.recs_off + n_records * RECORD.size)
        _set_length(page, n_records)
        if moved:
            pack(page, page.table_end)

    def compact_and_extend(page: AdminPage) -> None:
        compact(page, n_pages)
        extend(page)

    rehearsed(page, [extend, compact_and_extend])


def raise_table(recs_off: int) -> list[Callable[[AdminPage], None]]:
    """Ways to move the table up, so that it starts at `recs_off` or behind; best first.

    The table has to be copied twice if its old and new place overlap, by way of a third one behind
    both. If there is no room for that, entries at the end that nobody uses are left out meanwhile;
    if that is not enough either, the table stays in the third place, which wastes some bytes.
    """
    return [
        lambda page: _raise_table(page, recs_off, cut=False),
        lambda page: _raise_table(page, recs_off, cut=True),
        lambda page: _raise_table(page, _behind(page, recs_off), cut=True),
    ]


def cut_table(page: AdminPage) -> None:
    """Takes unused entries off the table's end until just one entry is unused, if there is one."""
    n_records = _used_length(page)
    if RECORD_NONE not in page.types()[:n_records]:
        n_records += 1
    _cut(page, n_records)


def pack(page: AdminPage, floor: int) -> None:
    """Moves all data that lies above `floor` down towards it, as far as that is without risk."""
    while _pack_once(page, floor):
        pass


def clear_below(page: AdminPage, floor: int) -> bool:
    """Moves all data that starts below `floor` above it; whether there was any.

    To the end of all data if there is room, else into the smallest gap that is large enough.
    OutOfSpace, with some of it moved, if that can't be done.
    """
    if floor > PAGE_SIZE:
        raise OutOfSpace(_WHAT, floor - page.table_end, PAGE_SIZE - page.table_end)
    low = [record for record in page.records() if record.offset < floor]
    low.sort(key=lambda record: -record.size)
    for record in low:
        run = _run_for(page, record.size, floor)
        if run is None:
            pack(page, floor)
            run = _run_for(page, record.size, floor)
        if run is None:
            longest = max(end - start for start, end in _free_runs(page, floor))
            raise OutOfSpace(f"{_WHAT} in a row", record.size, longest)
        page.relocate(page.entry(record.index), run)
    return bool(low)


def _raise_table(page: AdminPage, recs_off: int, cut: bool) -> None:
    if page.recs_off < recs_off:
        _move_table(page, recs_off, cut)


def _move_table(page: AdminPage, recs_off: int, cut: bool) -> None:
    """Moves the table up or down, by way of a third place if its old and new one overlap."""
    n_records = page.n_records
    if cut:
        _cut(page, _used_length(page))
    old, size = page.recs_off, page.n_records * RECORD.size
    third = max(old, recs_off) + size if abs(recs_off - old) < size else None
    end = recs_off + n_records * RECORD.size
    moved = clear_below(page, max(end, 0 if third is None else third + size))
    if third is not None:
        page.copy(third, page.read(old, size))
        page.set_recs_off(third)
    page.copy(recs_off, page.read(page.recs_off, size))
    page.set_recs_off(recs_off)
    if third is not None:
        page.zero(third, size)
    page.zero(old, min(size, recs_off - old))
    leftover = max(old, recs_off + size)
    page.zero(leftover, min(old + size, PAGE_SIZE) - leftover)
    _set_length(page, n_records)
    if moved:
        pack(page, page.table_end)


def _behind(page: AdminPage, recs_off: int) -> int:
    """Where a table of the entries in use lies right behind where it lies now, if it must move."""
    if page.recs_off >= recs_off:
        return recs_off
    return max(recs_off, page.recs_off + _used_length(page) * RECORD.size)


def _used_length(page: AdminPage) -> int:
    """How long the table must be for all entries in use."""
    return len(page.types().rstrip(bytes([RECORD_NONE])))


def _cut(page: AdminPage, n_records: int) -> None:
    end = page.table_end
    if n_records < page.n_records:
        page.set_n_records(n_records)
        page.zero(page.table_end, end - page.table_end)


def _set_length(page: AdminPage, n_records: int) -> None:
    """Adds unused entries to the table; there is no data where they will be."""
    if n_records != page.n_records:
        page.zero(page.table_end, (n_records - page.n_records) * RECORD.size)
        page.set_n_records(n_records)


def _pack_once(page: AdminPage, floor: int) -> bool:
    """One pass over the data above `floor`; whether anything with bytes was moved."""
    records = sorted(page.records(), key=lambda record: (record.offset, record.size))
    cursor = max([floor, *(record.end for record in records if record.offset < floor)])
    waiting = [record for record in records if record.offset >= floor]
    moved = False
    while waiting:
        record = waiting[0]
        if record.size == 0:
            if record.offset != cursor:
                page.relocate(record, cursor)
            del waiting[0]
        elif record.offset == cursor:
            cursor += record.size
            del waiting[0]
        else:
            placed = _move_down(page, waiting, cursor)
            cursor += placed
            moved = moved or placed > 0
            if not placed:
                cursor = record.end
                del waiting[0]
    return moved


def _move_down(page: AdminPage, waiting: list[Record], cursor: int) -> int:
    """Puts a record to `cursor`: the next one, or one from above that fits; its size, 0 if none."""
    record = waiting[0]
    gap = record.offset - cursor
    chosen = record
    if gap < record.size:
        run = _run_for(page, record.size, record.end)
        if run is not None:
            page.relocate(record, run)
            chosen = page.entry(record.index)
        else:
            fitting = [other for other in waiting[1:] if 0 < other.size <= gap]
            if not fitting:
                return 0
            chosen = max(fitting, key=lambda other: other.size)
    page.relocate(chosen, cursor)
    waiting[:] = [other for other in waiting if other.index != chosen.index]
    return chosen.size


def _run_for(page: AdminPage, size: int, floor: int) -> int | None:
    """Where `size` free bytes above `floor` are: behind all data, else in the tightest gap."""
    runs = _free_runs(page, floor)
    start, end = runs[-1]
    if end - start >= size:
        return start
    fitting = [run for run in runs if run[1] - run[0] >= size]
    return min(fitting, key=lambda run: run[1] - run[0])[0] if fitting else None


def _free_runs(page: AdminPage, floor: int) -> list[tuple[int, int]]:
    """Start and end of what no record uses above `floor`, lowest first; the last is the page's end.

    The last may be empty.
    """
    runs = []
    cursor = floor
    for record in sorted(page.records(), key=lambda record: record.offset):
        if record.size and record.end > cursor:
            if record.offset > cursor:
                runs.append((cursor, record.offset))
            cursor = record.end
    return [*runs, (cursor, PAGE_SIZE)]
