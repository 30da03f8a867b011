"""What a kernel left that died in the middle of a change, put in order by the next one.

Specification: docs/kexec-module.md. Each change of a module is sound after every single store, so
nothing has to be undone for the module to be usable. What may be there is a journal of a resize,
and reservations: unused entries that say whose bytes they were about to be, or had been. (A stray
copy of a record's data may be there too. It lies in free bytes, and nobody minds it.)

**Invariants.** Records in use keep their bytes, and pages in use their owner. The page is sound
after each single store here too, so that dying in the middle of this is nothing new.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import RECORD, RECORD_NONE
from xenlive.kexec.resize import finish
from xenlive.memory.address import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.kexec.adminpage import AdminPage, Record

_UNUSED = bytes(RECORD.size)


def settle(page: AdminPage, size_bytes: int) -> None:
    """Puts a sound page in order, which `verify` accepted for a module of `size_bytes`."""
    finish(page, size_bytes // PAGE_SIZE - 1)
    table = page.read(page.recs_off, page.n_records * RECORD.size)
    used = None
    for index, type_ in enumerate(page.types()):
        where = index * RECORD.size
        if type_ == RECORD_NONE and table[where : where + RECORD.size] != _UNUSED:
            used = page.records() if used is None else used
            _clear_reservation(page, page.entry(index), used)


def _clear_reservation(page: AdminPage, reserved: Record, used: list[Record]) -> None:
    """Zeroes its bytes, as far as they are behind the table and nobody else's, then the entry."""
    cursor = max(reserved.offset, page.table_end)
    end = min(reserved.end, PAGE_SIZE)
    for record in sorted(used, key=lambda record: record.offset):
        page.zero(cursor, min(record.offset, end) - cursor)
        cursor = max(cursor, record.end)
    page.zero(cursor, end - cursor)
    page.store_u32(page.entry_offset(reserved.index), 0)
