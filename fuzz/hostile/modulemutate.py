"""Changes to a module case that know the format: what is changed stays nearly right.

Random bytes in an administration page end at the first check. So each change takes one field, puts
a number there at which code goes wrong (a border, a neighbour, another field's value), and leaves
the rest; several changes follow each other from run to run.
"""

from __future__ import annotations

import struct
from random import Random

from hostile import bytewise
from hostile.modulecase import MAX_BYTES, MAX_OPERATIONS, ModuleCase, decode_case
from hostile.moduleseeds import random_operation
from hostile.soundness import entries
from xenlive.abi.kexec_module import RECORD_RESIZE, RESIZE, RESIZE_MAGIC, RESIZE_SHRINKING
from xenlive.memory.address import PAGE_SIZE

_TYPES = (0, 0, 1, 1, 2, 7, 0xE0, 0xE1, 0xE1, 0xFF)
_SIZES = (0, 1, 5, 6, 7, 15, 16, 17, 20, 254, 255)


def mutate_module(data: bytes, rng: Random, max_bytes: int = MAX_BYTES) -> bytes:
    """Another case made from one."""
    case = decode_case(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        if len(case.page) < PAGE_SIZE:
            case.page = case.page.ljust(PAGE_SIZE, b"\0")
        rng.choices(_CHANGES, _WEIGHTS)[0](case, rng)
    return case.encode()[:max_bytes]


def _numbers(page: bytearray) -> tuple[int, int, int]:
    n_pages, n_records, recs_off = struct.unpack_from("<3H", page, 8)
    return n_pages, n_records, recs_off


def _put(page: bytearray, at: int, value: int, size: int = 2) -> None:
    if 0 <= at <= len(page) - size:
        page[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def _entry_at(page: bytearray, rng: Random) -> int:
    """Where a random entry of the table is, mostly one of the first."""
    _, n_records, recs_off = _numbers(page)
    return recs_off + 4 * rng.randrange(rng.choice((2, 4, max(n_records, 1))))


def _header(case: ModuleCase, rng: Random) -> None:
    n_pages, n_records, recs_off = _numbers(case.page)
    owners_end = 14 + n_pages
    name = rng.randrange(3)
    if name == 0:
        pages = case.size_bytes // PAGE_SIZE
        _put(case.page, 8, rng.choice((0, pages, pages - 1, pages - 2, n_pages + 1, 4082, 0xFFFF)))
    elif name == 1:
        fitting = (PAGE_SIZE - recs_off) // 4
        _put(
            case.page,
            10,
            rng.choice((0, 1, 15, 16, 17, fitting, fitting + 1, 254, 255, 256, 0xFFFF)),
        )
    else:
        last = PAGE_SIZE - 4 * n_records
        choices = (0, 13, 14, owners_end - 1, owners_end, owners_end + 1, last - 1, last, last + 1)
        _put(case.page, 12, rng.choice((*choices, recs_off + 4, 0xFFFF)))


def _size(case: ModuleCase, rng: Random) -> None:
    right = (_numbers(case.page)[0] + 1) * PAGE_SIZE
    choices = (right, right, right + PAGE_SIZE, right - PAGE_SIZE, right + 1, right - 1)
    absurd = (0, 1, -1, -PAGE_SIZE, PAGE_SIZE, 1 << 28, 1 << 40, (1 << 63) - 1, -(1 << 63))
    case.size_bytes = rng.choice((*choices, rng.choice(absurd)))
    case.size_bytes = max(min(case.size_bytes, (1 << 63) - 1), -(1 << 63))


def _whole_size(case: ModuleCase, rng: Random) -> None:
    """Other n_pages and the size that goes with it."""
    n_pages = rng.choice((0, 1, 3, 17, 23, 4002, 4003, 4004, 4017, 4018, 4019, 4082, 4083))
    _put(case.page, 8, n_pages)
    case.size_bytes = (n_pages + 1) * PAGE_SIZE
    if rng.random() < 0.7:
        _put(case.page, 12, 14 + n_pages + (n_pages & 1))


def _entry_offset(case: ModuleCase, rng: Random) -> None:
    at = _entry_at(case.page, rng)
    other = _entry_at(case.page, rng)
    if at + 4 > PAGE_SIZE or other + 4 > PAGE_SIZE:
        return
    _, n_records, recs_off = _numbers(case.page)
    size = case.page[at + 3]
    start, _, other_size = struct.unpack_from("<HBB", case.page, other)
    table_end = recs_off + 4 * n_records
    choices = (start, start + other_size, start + other_size - 1, start - size, start - size + 1)
    borders = (table_end, table_end - 1, PAGE_SIZE - size, PAGE_SIZE - size + 1, 0, 0xFFFF)
    _put(case.page, at, rng.choice((*choices, *borders)))


def _entry_type(case: ModuleCase, rng: Random) -> None:
    _put(case.page, _entry_at(case.page, rng) + 2, rng.choice(_TYPES), 1)


def _entry_size(case: ModuleCase, rng: Random) -> None:
    at = _entry_at(case.page, rng) + 3
    if at < PAGE_SIZE:
        size = case.page[at]
        _put(case.page, at, rng.choice((*_SIZES, size + 1, size - 1)), 1)


def _entry_copied(case: ModuleCase, rng: Random) -> None:
    source, target = _entry_at(case.page, rng), _entry_at(case.page, rng)
    if max(source, target) + 4 <= PAGE_SIZE:
        case.page[target : target + 4] = case.page[source : source + 4]


def _owners(case: ModuleCase, rng: Random) -> None:
    n_pages, n_records, _ = _numbers(case.page)
    first = 14 + rng.randrange(max(min(n_pages, PAGE_SIZE - 14), 1))
    if rng.random() < 0.2:
        first = 14 + n_pages - 1
    count = rng.choice((1, 1, 2, 16, 17))
    owner = rng.choice((0, 1, 2, n_records - 1, n_records, 254, 255)) % 256
    run = bytes([owner]) * count
    case.page[first : first + count] = run[: max(PAGE_SIZE - first, 0)]


def _in_flight(case: ModuleCase, rng: Random) -> None:
    """A journal of a resize, with the owners as they are when its boundary is anywhere."""
    n_pages, n_records, recs_off = _numbers(case.page)
    if recs_off + 4 * n_records > PAGE_SIZE or n_pages > PAGE_SIZE:
        return
    table = entries(bytes(case.page))
    unused = [index for index, _, type_, _ in table if not type_]
    data_at = max([recs_off + 4 * n_records, *(at + size for _, at, type_, size in table if type_)])
    spare = recs_off - 14 - n_pages
    growing = spare > 0 and rng.random() < 0.6
    k = min(rng.choice((1, 1, 2, 3, 17, 100)), spare if growing else n_pages)
    if not unused or data_at + RESIZE.size > PAGE_SIZE or k < 1:
        return
    large = n_pages + k if growing else n_pages
    owners = bytes(case.page[14 : 14 + n_pages])
    small_form = (owners if growing else owners[k:]).replace(b"\xff", bytes([unused[0]]))
    large_form = bytes([unused[0]]) * k + small_form
    boundary = rng.choice((rng.randrange(large + 1), 0, large - k, large, large + 1))
    mixed = small_form[:boundary].ljust(boundary, b"\xff") + large_form[boundary:]
    case.page[14 : 14 + large] = mixed[:large]
    direction = rng.choice((0, RESIZE_SHRINKING))
    journal = RESIZE.pack(RESIZE_MAGIC, large - k, large, boundary | direction)
    case.page[data_at : data_at + len(journal)] = journal
    entry = struct.pack("<HBB", data_at, RECORD_RESIZE, len(journal))
    case.page[recs_off + 4 * unused[0] : recs_off + 4 * unused[0] + 4] = entry
    _put(case.page, 8, rng.choice((large, large - k)))
    case.size_bytes = (rng.choice((large, large - k)) + 1) * PAGE_SIZE


def _anywhere(case: ModuleCase, rng: Random) -> None:
    bytewise.change(case.page, rng, PAGE_SIZE, resize=False)


def _early(case: ModuleCase, rng: Random) -> None:
    """One byte among header, owners, table and the first records of a small module."""
    case.page[rng.randrange(8, 160)] = rng.randrange(256)


def _record_data(case: ModuleCase, rng: Random) -> None:
    """A number inside of a record's data, where our own types have theirs."""
    _, n_records, recs_off = _numbers(case.page)
    if recs_off + 4 * n_records > PAGE_SIZE:
        return
    used = [entry for entry in entries(bytes(case.page)) if entry[2] and entry[1] >= 14]
    if used:
        _, offset, _, size = rng.choice(used)
        where = offset + rng.randrange(max(size, 1)) // 2 * 2
        bytewise.put_number(case.page, rng, where, rng.choice((1, 2, 2, 4)))


def _operation(case: ModuleCase, rng: Random) -> None:
    if case.operations and rng.random() < 0.5:
        del case.operations[rng.randrange(len(case.operations))]
    elif len(case.operations) < MAX_OPERATIONS:
        where = rng.randrange(len(case.operations) + 1)
        case.operations.insert(where, random_operation(rng))


def _contents(case: ModuleCase, rng: Random) -> None:
    contents = bytearray(case.contents)
    bytewise.change(contents, rng, 2 * PAGE_SIZE)
    case.contents = bytes(contents)


def _cut(case: ModuleCase, rng: Random) -> None:
    del case.page[rng.choice((0, 7, 8, 13, 14, 4095)) :]
    case.contents = b""


_CHANGES_AND_WEIGHTS = (
    (_header, 6),
    (_size, 2),
    (_whole_size, 2),
    (_entry_offset, 8),
    (_entry_type, 8),
    (_entry_size, 6),
    (_entry_copied, 4),
    (_owners, 6),
    (_anywhere, 3),
    (_early, 4),
    (_record_data, 6),
    (_operation, 12),
    (_in_flight, 6),
    (_contents, 2),
    (_cut, 0.1),
)
_CHANGES = [change for change, _ in _CHANGES_AND_WEIGHTS]
_WEIGHTS = [weight for _, weight in _CHANGES_AND_WEIGHTS]
