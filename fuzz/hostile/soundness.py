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
RESIZE, RESIZE_BYTES = 0xE1, 6


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
    indices = {index for index, *_ in used}
    if set(page[14 : 14 + n_pages]) - {FREE} - indices:
        return False
    return _fits_the_size(page, used, n_pages, size_bytes // PAGE - 1)


def _fits_the_size(
    page: bytes, used: list[tuple[int, int, int, int]], n_pages: int, expected: int
) -> bool:
    return n_pages == expected


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
