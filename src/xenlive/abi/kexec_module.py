"""The kexec module: what the last page of handed-over memory says about it.

Specification: Mini-OS `include/kexec.h` (posted July 2025). A module is a run of whole pages; the
last one, the administration page, describes the pages before it. Little endian, no padding:

      0 eye_catcher  8 n_pages  10 n_records  12 recs_off   header, 14 bytes
     14 pg2rec[n_pages]       owner of each page: a record's index, or 255
    recs_off  rec[n_records]  offset, type, size: 4 bytes each
    ...       data of the records, one after the other; all offsets count from the page's start

It is an ABI between kernels of different age: it only grows compatibly.

**Invariants.** All of it lies in the one page. A record's index fits in the byte `pg2rec` has for
it, and 255 is none.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

EYE_CATCHER = b"KexecMem"

HEADER = Layout(
    "kexec module header",
    14,
    [
        Field("eye_catcher", 0, "8s"),
        Field("n_pages", 8, "H"),
        Field("n_records", 10, "H"),
        Field("recs_off", 12, "H"),
    ],
    ctype="struct kexec_module",
)
PG2REC_OFFSET = HEADER.size

RECORD = Layout(
    "kexec module record",
    4,
    [
        Field("offset", 0, "H"),
        Field("type", 2, "B"),
        Field("size", 3, "B"),
    ],
    ctype="struct kexec_module_rec",
)

PAGE_FREE = 255
MAX_RECORDS = 255
MAX_RECORD_SIZE = 255
FRESH_RECORDS = 16

# 4018 allocatable pages and the administration page: their owners and a fresh record table fill
# the page to its last byte.
MAX_MODULE_PAGES = 4019

RECORD_NONE = 0
RECORD_9PFS = 1
MAX_RECORD_TYPE = 255

TYPE_NAMES = {RECORD_NONE: "NONE", RECORD_9PFS: "9PFS"}


def fresh_recs_off(n_pages: int) -> int:
    """Where a new module's record table starts: after `pg2rec`, at an even offset."""
    return PG2REC_OFFSET + n_pages + (n_pages & 1)
