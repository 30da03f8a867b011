"""The kexec module: what the last page of handed-over memory says about it.

Specification: Mini-OS `include/kexec.h` (posted July 2025). A module is a run of whole pages; the
last one, the administration page, describes the pages before it. Little endian, no padding:

      0 eye_catcher  8 n_pages  10 n_records  12 recs_off   header, 14 bytes
     14 pg2rec[n_pages]       owner of each page: a record's index, or 255
    recs_off  rec[n_records]  offset, type, size: 4 bytes each
    ...       data of the records, one after the other; all offsets count from the page's start

It is an ABI between kernels of different age: it only grows compatibly. Types 1 and up are the
posted ones; those from 0xE0 on are this project's own, described in docs/kexec-module.md. Kernels
that don't know them leave them alone, and each starts with a magic of its own, so that somebody
else's record of the same type is not taken for one of ours.

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

# A payload with a checksum and a generation, kept twice: an update that is cut off spoils one.
RECORD_SEALED = 0xE0
SEALED_MAGIC = b"KexS"
SEALED_HEAD = Layout(
    "kexec module sealed record",
    8,
    [
        Field("magic", 0, "4s"),
        Field("kind", 4, "H"),
        Field("flags", 6, "H"),
    ],
    ctype="struct kexec_sealed",
)
# Two of these follow, each with as many payload bytes behind it as the record has room for.
SEALED_SLOT = Layout(
    "kexec module sealed slot",
    8,
    [
        Field("generation", 0, "I"),
        Field("checksum", 4, "I"),
    ],
    ctype="struct kexec_sealed_slot",
)
SEALED_COVERS_PAGES = 1

# The journal of a module that is being grown or shrunk; never there when nobody is at it.
RECORD_RESIZE = 0xE1
RESIZE_MAGIC = b"KexR"
RESIZE = Layout(
    "kexec module resize journal",
    10,
    [
        Field("magic", 0, "4s"),
        Field("n_small", 4, "H"),
        Field("n_large", 6, "H"),
        Field("boundary", 8, "H"),
    ],
    ctype="struct kexec_resize",
)
# The highest bit of `boundary` says which way it is moving.
RESIZE_SHRINKING = 0x8000

TYPE_NAMES = {
    RECORD_NONE: "NONE",
    RECORD_9PFS: "9PFS",
    RECORD_SEALED: "SEALED",
    RECORD_RESIZE: "RESIZE",
}


def fresh_recs_off(n_pages: int) -> int:
    """Where a new module's record table starts: after `pg2rec`, at an even offset."""
    return PG2REC_OFFSET + n_pages + (n_pages & 1)
