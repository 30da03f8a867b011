"""Grant table entries, version 1: which frames a domain lets others map.

Specification: Xen `public/grant_table.h`, "Version 1 of the grant table entry structure". The
table is an array of entries in frames shared with the hypervisor; an index into it is a grant
reference. The owner writes `domid` and `frame` first and `flags` last, the hypervisor sets
`GTF_reading` and `GTF_writing` while somebody has the frame mapped.

**Invariants.** An entry never straddles a page: 512 of 8 bytes fill one exactly.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

GRANT_ENTRY_V1 = Layout(
    "grant_entry_v1",
    8,
    [
        Field("flags", 0, "H"),
        Field("domid", 2, "H"),
        Field("frame", 4, "I"),
    ],
    ctype="struct grant_entry_v1",
)

GRANTS_PER_PAGE = 4096 // GRANT_ENTRY_V1.size

# The lowest references belong to the toolstack: a guest's own start above them.
GNTTAB_NR_RESERVED_ENTRIES = 8
GNTTAB_RESERVED_CONSOLE = 0
GNTTAB_RESERVED_XENSTORE = 1

# Type of an entry, in the lowest two bits of `flags`.
GTF_invalid = 0
GTF_permit_access = 1
GTF_accept_transfer = 2
GTF_transitive = 3
GTF_type_mask = 3

# Flags of a permit_access entry; reading and writing are set by the hypervisor.
GTF_readonly = 1 << 2
GTF_reading = 1 << 3
GTF_writing = 1 << 4
GTF_PWT = 1 << 5
GTF_PCD = 1 << 6
GTF_PAT = 1 << 7
GTF_sub_page = 1 << 8
