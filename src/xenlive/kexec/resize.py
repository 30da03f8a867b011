"""Growing and shrinking at the lower end: every page's index shifts, so every owner moves.

A module that grows by k pages has the owner of its page i at position i + k from then on. That is
no single store, so a record keeps the journal (RESIZE in `abi/kexec_module.py`): both sizes, and a
boundary between the two forms of the owners:

                 0              boundary            n_small      n_large
    owners       | small form     | large form ...                  |
    growing                     ◀─┤                     large[j] = small[j - k], new pages free
    shrinking                     ├─▶                   small[i] = large[i + k]

The boundary moves by at most k positions at a time: the owners are copied, then the boundary is
stored. The copy's source is never among its targets, so a step that was cut off is simply done
again. Where both forms are the same, the boundary moves on without a copy. The highest bit of the
boundary says which way it moves; to turn round, the step in progress is finished first. `n_pages`
changes when the boundary is at its end, and the deletion of the record is the last word: until then
either size is a way to look at the module, and `finish` gives the one that is asked for.

While the journal is there, the free pages belong to it. A kernel that knows only the posted format
and meets it sees a sound module in which no page in use looks free, and so takes none of them. What
it can't see is whose a page is: the owners on the other side of the boundary are `k` positions off,
so a page may seem to be another record's, or the journal's. If that kernel frees "its" pages then,
it frees others'. Nothing in the posted format can tell it; the window ends with the journal, and a
kernel of ours that attaches in between closes it. Without a journal no owner is ever misread.

**Invariants.** The page is sound after each single store. Whoever calls here has made room: the
table starts behind the owners of the large form. The journal's numbers are checked when it is read.

Why not move the owners elsewhere and switch: the format has one place for them, offset 14.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import (
    MAX_RECORDS,
    PAGE_FREE,
    PG2REC_OFFSET,
    RECORD_NONE,
    RECORD_RESIZE,
    RESIZE,
    RESIZE_MAGIC,
    RESIZE_SHRINKING,
    fresh_recs_off,
)
from xenlive.errors import ImageError
from xenlive.kexec.adminpage import rehearsed
from xenlive.kexec.arrange import compact, cut_table, extend_table, pack, raise_table
from xenlive.memory.address import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.kexec.adminpage import AdminPage

_BOUNDARY = RESIZE.offset_of("boundary")

# How many positions are looked at, whether they are the same in both forms.
_SKIPS = (256, 16)


class Resize:
    """A journal as it stands in a page: `index` of its record, where its data lies, its numbers."""

    __slots__ = ("boundary", "index", "n_large", "n_small", "offset", "shrinking")

    def __init__(self, index: int, offset: int, data: bytes) -> None:
        _, self.n_small, self.n_large, boundary = RESIZE.unpack(data)
        self.index = index
        self.offset = offset
        self.boundary: int = boundary & ~RESIZE_SHRINKING
        self.shrinking = bool(boundary & RESIZE_SHRINKING)

    @property
    def step(self) -> int:
        """By how many pages the sizes differ: as far as the boundary moves at a time."""
        return int(self.n_large - self.n_small)


def resize(page: AdminPage, n_pages: int) -> None:
    """Gives the module `n_pages` allocatable pages; the caller knows that the others are free.

    OutOfSpace, and nothing was changed, if the page has no room for it.
    """
    prepared: list[Callable[[AdminPage], None]] = [lambda page: None]
    if page.recs_off < PG2REC_OFFSET + n_pages:
        prepared = raise_table(fresh_recs_off(n_pages))
    shifts = (_shift, _shift_with_short_table)
    rehearsed(page, [_way(prepare, shift, n_pages) for shift in shifts for prepare in prepared])


def find_resize(page: AdminPage) -> Resize | None:
    """The journal in a sound page, if there is one.

    ImageError if it was damaged since the page was found to be sound.
    """
    for record in page.records():
        if record.type == RECORD_RESIZE and record.size == RESIZE.size:
            data = page.data(record)
            if data.startswith(RESIZE_MAGIC):
                journal = Resize(record.index, record.offset, data)
                _validate(page, journal)
                return journal
    return None


def _validate(page: AdminPage, journal: Resize) -> None:
    """What `verify` has checked, again: these bytes are read a second time here."""
    owners_end = PG2REC_OFFSET + journal.n_large
    sizes = journal.n_small < journal.n_large and owners_end <= page.recs_off
    if not sizes or journal.boundary > journal.n_large:
        what = "the journal of a resize can't be carried through"
        raise ImageError("bad-resize", what, page.entry_offset(journal.index))


def finish(page: AdminPage, n_pages: int) -> None:
    """Brings a resize to the end that gives `n_pages`, one of its two; none there: no change."""
    journal = find_resize(page)
    if journal is None:
        return
    if n_pages not in (journal.n_small, journal.n_large):
        raise ImageError("bad-resize", "the journal is of a resize to other sizes", value=n_pages)
    _hold_free_pages(page, journal)
    _turn(page, journal, shrinking=n_pages == journal.n_small)
    while _step(page, journal):
        pass
    page.set_n_pages(n_pages)
    if n_pages == journal.n_small:
        page.zero(PG2REC_OFFSET + n_pages, journal.step)
    owners = page.owners()
    page.set_owners(0, owners.replace(bytes([journal.index]), bytes([PAGE_FREE])))
    page.drop(page.entry(journal.index))


def _way(
    prepare: Callable[[AdminPage], None], shift: Callable[[AdminPage, int], None], n_pages: int
) -> Callable[[AdminPage], None]:
    def way(page: AdminPage) -> None:
        prepare(page)
        shift(page, n_pages)

    return way


def _shift_with_short_table(page: AdminPage, n_pages: int) -> None:
    """In a page without room for the journal, unused entries of the table make some meanwhile."""
    n_records = page.n_records
    cut_table(page)
    pack(page, page.table_end)
    _shift(page, n_pages)
    extend_table(page, n_records)


def _shift(page: AdminPage, n_pages: int) -> None:
    before = page.n_pages
    owners = page.owners()
    k = n_pages - before
    after = bytes([PAGE_FREE]) * k + owners if k > 0 else owners[-k:]
    both, large = min(before, n_pages), max(before, n_pages)
    if after[:both] == owners[:both]:
        page.set_owners(both, after[both:])
        page.set_n_pages(n_pages)
        page.zero(PG2REC_OFFSET + n_pages, -k)
        return
    n_records = page.n_records
    if RECORD_NONE not in page.types() and n_records < MAX_RECORDS:
        extend_table(page, n_records + 1, large)
    if page.data_end + RESIZE.size > PAGE_SIZE:
        compact(page, large)
    # A shrink begins as a growth that has come to its end, and turns round once all free pages are
    # held: until then a kernel that knows no journal may take one of those that are to go.
    boundary = n_pages if k > 0 else 0
    journal = RESIZE.pack(RESIZE_MAGIC, both, large, boundary)
    page.add(RECORD_RESIZE, journal)
    finish(page, n_pages)
    if n_records < page.n_records:
        page.set_n_records(n_records)


def _hold_free_pages(page: AdminPage, journal: Resize) -> None:
    """Gives the free pages of both forms to the journal; what lies between them is neither's."""
    free, held = bytes([PAGE_FREE]), bytes([journal.index])
    for first, end in (
        (0, journal.n_small),
        (max(journal.boundary, journal.n_small), journal.n_large),
    ):
        owners = page.read(PG2REC_OFFSET + first, end - first)
        if free in owners:
            page.set_owners(first, owners.replace(free, held))


def _turn(page: AdminPage, journal: Resize, shrinking: bool) -> None:
    if journal.shrinking != shrinking:
        _step(page, journal)
        journal.shrinking = shrinking
        _store_boundary(page, journal, journal.boundary)


def _step(page: AdminPage, journal: Resize) -> bool:
    """Moves the boundary by one step, or the rest of one; False if it was at its end."""
    step = _shrink_by if journal.shrinking else _grow_by
    if journal.boundary == (journal.n_large if journal.shrinking else 0):
        return False
    for n in _SKIPS:
        if n > journal.step and step(page, journal, n, False):
            return True
    return step(page, journal, journal.step, True)


def _grow_by(page: AdminPage, journal: Resize, n: int, store: bool) -> bool:
    """Brings up to `n` positions into the large form; without `store` only if they have it."""
    k, end = journal.step, journal.boundary
    first = max(end - n, 0)
    n_new = min(max(k - first, 0), end - first)
    source = PG2REC_OFFSET + first + n_new - k
    owners = bytes([journal.index]) * n_new + page.read(source, end - first - n_new)
    return _bring(page, journal, first, owners, store) and _store_boundary(page, journal, first)


def _shrink_by(page: AdminPage, journal: Resize, n: int, store: bool) -> bool:
    """Brings up to `n` positions into the small form; without `store` only if they have it."""
    k, first = journal.step, journal.boundary
    end = min(first + n, journal.n_small)
    owners = page.read(PG2REC_OFFSET + first + k, max(end - first, 0))
    # Behind the last page of the small form there is nothing to be done.
    boundary = end if end < journal.n_small else journal.n_large
    return _bring(page, journal, first, owners, store) and _store_boundary(page, journal, boundary)


def _bring(page: AdminPage, journal: Resize, first: int, owners: bytes, store: bool) -> bool:
    if store:
        page.set_owners(first, owners)
        return True
    return page.read(PG2REC_OFFSET + first, len(owners)) == owners


def _store_boundary(page: AdminPage, journal: Resize, boundary: int) -> bool:
    direction = RESIZE_SHRINKING if journal.shrinking else 0
    page.store_u16(journal.offset + _BOUNDARY, boundary | direction)
    journal.boundary = boundary
    return True
