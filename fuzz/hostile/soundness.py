"""When a kexec module is sound, said a second time: short, plain, and without the product's code.

Source: the format as `docs/kexec-module.md` states it. `xenlive.kexec.verify` names each problem
with its place; here there is only yes or no, and a reading of what a sound page holds. Fuzzing
holds the one against the other.

**Invariants.** Nothing of xenlive is imported: a mistake there can't repeat itself here. Any bytes
and any number give an answer.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PAGE = 4096
FREE = 255
RESIZE, RESIZE_BYTES = 0xE1, 10


@dataclass(frozen=True)
class State:
    """What a page says, without where it says it.

    `records` has (type, data) by index. `owners` begins with the page right below the
    administration page, so that it stays comparable when the module grows at its other end.
    """

    n_records: int
    records: dict[int, tuple[int, bytes]]
    owners: bytes


def is_sound(page: bytes, size_bytes: int) -> bool:
    """Whether a module of `size_bytes` that ends with `page` is sound."""
    if len(page) != PAGE or size_bytes <= 0 or size_bytes % PAGE or page[:8] != b"KexecMem":
        return False
    n_pages, n_records, recs_off = struct.unpack_from("<3H", page, 8)
    table_end = recs_off + 4 * n_records
    if 14 + n_pages > PAGE or n_records > 255 or recs_off < 14 + n_pages or table_end > PAGE:
        return False
    used = [entry for entry in entries(page) if entry[2]]
    if any(offset < table_end or offset + size > PAGE for _, offset, _, size in used):
        return False
    taken = bytearray(PAGE)
    for _, offset, _, size in used:
        if any(taken[offset : offset + size]):
            return False
        taken[offset : offset + size] = b"\1" * size
    journals = [_journal(page, entry) for entry in used if _is_journal(page, entry)]
    owners = page[14 : 14 + n_pages]
    if journals:
        if len(journals) > 1 or not _can_be_carried_through(journals[0], n_pages, recs_off):
            return False
        owners = _checked_owners(page, journals[0])
    if set(owners) - {FREE} - {index for index, *_ in used}:
        return False
    expected = size_bytes // PAGE - 1
    return n_pages == expected or any(expected in (j.small, j.large) for j in journals)


def entries(page: bytes) -> list[tuple[int, int, int, int]]:
    """(index, offset, type, size) of all entries of a table that lies in the page."""
    n_records, recs_off = struct.unpack_from("<2H", page, 10)
    table = struct.iter_unpack("<HBB", page[recs_off : recs_off + 4 * n_records])
    return [(index, *entry) for index, entry in enumerate(table)]


def read_state(page: bytes) -> State:
    """What a sound page holds."""
    n_pages, n_records = struct.unpack_from("<2H", page, 8)
    records = {
        index: (type_, page[offset : offset + size])
        for index, offset, type_, size in entries(page)
        if type_
    }
    return State(n_records, records, page[14 : 14 + n_pages][::-1])


def settled_state(page: bytes, size_bytes: int) -> State:
    """What a sound page of a module of `size_bytes` holds once a resize in flight is finished."""
    state = read_state(page)
    found = [_journal(page, entry) for entry in entries(page) if _is_journal(page, entry)]
    if not found:
        return state
    journal = found[0]
    k = journal.large - journal.small
    # Of the step in progress only the source can be relied on.
    known = journal.boundary if journal.shrinking else journal.boundary - k
    at = [14 + position + (k if position >= known else 0) for position in range(journal.small)]
    owners = bytes(page[position] for position in at)
    if size_bytes // PAGE - 1 == journal.large:
        new = 0 if journal.shrinking else max(k - journal.boundary, 0)
        owners = bytes([FREE]) * (k - new) + page[14 + k - new : 14 + k] + owners
    owners = owners.replace(bytes([journal.index]), bytes([FREE]))
    del state.records[journal.index]
    return State(state.n_records, state.records, owners[::-1])


@dataclass(frozen=True)
class _Journal:
    """A resize between `small` and `large` pages: below `boundary` the owners are those of the
    small module, from there on those of the large one."""

    index: int
    size: int
    small: int
    large: int
    boundary: int
    shrinking: bool


def _is_journal(page: bytes, entry: tuple[int, int, int, int]) -> bool:
    _, offset, type_, size = entry
    return type_ == RESIZE and page[offset : offset + size].startswith(b"KexR")


def _journal(page: bytes, entry: tuple[int, int, int, int]) -> _Journal:
    index, offset, _, size = entry
    numbers = struct.unpack("<3H", page[offset + 4 : offset + 10].ljust(6, b"\0"))
    small, large, boundary = numbers
    return _Journal(index, size, small, large, boundary & 0x7FFF, boundary > 0x7FFF)


def _can_be_carried_through(journal: _Journal, n_pages: int, recs_off: int) -> bool:
    return (
        journal.size == RESIZE_BYTES
        and n_pages in (journal.small, journal.large)
        and journal.boundary <= journal.large
        and journal.small < journal.large <= recs_off - 14
    )


def _checked_owners(page: bytes, journal: _Journal) -> bytes:
    """The owners that either form has; between the forms there is nobody's."""
    large_from = max(journal.boundary, journal.small)
    return page[14 : 14 + journal.small] + page[14 + large_from : 14 + journal.large]
