"""Arguments of the grant table hypercall, and grant entries of version 2.

Specification: Xen `public/grant_table.h`. Structures with a frame number or a pointer in them have
a second form for 32 bit guests, named `…_32`.

**Invariants.** A status is a negative number of this file, never an errno: the hypercall itself may
succeed while each of its operations failed.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

GNTTABOP_map_grant_ref = 0
GNTTABOP_unmap_grant_ref = 1
GNTTABOP_setup_table = 2
GNTTABOP_dump_table = 3
GNTTABOP_transfer = 4
GNTTABOP_copy = 5
GNTTABOP_query_size = 6
GNTTABOP_unmap_and_replace = 7
GNTTABOP_set_version = 8
GNTTABOP_get_status_frames = 9
GNTTABOP_get_version = 10
GNTTABOP_swap_grant_ref = 11
GNTTABOP_cache_flush = 12

GNTMAP_device_map = 1 << 0
GNTMAP_host_map = 1 << 1
GNTMAP_readonly = 1 << 2
GNTMAP_application_map = 1 << 3
GNTMAP_contains_pte = 1 << 4

GNTCOPY_source_gref = 1 << 0
GNTCOPY_dest_gref = 1 << 1

GNTST_okay = 0
GNTST_general_error = -1
GNTST_bad_domain = -2
GNTST_bad_gntref = -3
GNTST_bad_handle = -4
GNTST_bad_virt_addr = -5
GNTST_bad_dev_addr = -6
GNTST_permission_denied = -8
GNTST_bad_page = -9
GNTST_bad_copy_arg = -10
GNTST_eagain = -12
GNTST_no_space = -13

GNTTAB_MAP_GRANT_REF = Layout(
    "gnttab_map_grant_ref",
    32,
    [
        Field("host_addr", 0, "Q"),
        Field("flags", 8, "I"),
        Field("ref", 12, "I"),
        Field("dom", 16, "H"),
        Field("status", 18, "h"),
        Field("handle", 20, "I"),
        Field("dev_bus_addr", 24, "Q"),
    ],
    ctype="struct gnttab_map_grant_ref",
)

GNTTAB_UNMAP_GRANT_REF = Layout(
    "gnttab_unmap_grant_ref",
    24,
    [
        Field("host_addr", 0, "Q"),
        Field("dev_bus_addr", 8, "Q"),
        Field("handle", 16, "I"),
        Field("status", 20, "h"),
        Field("_pad0", 22, "2s"),
    ],
    ctype="struct gnttab_unmap_grant_ref",
)

GNTTAB_SETUP_TABLE = Layout(
    "gnttab_setup_table",
    24,
    [
        Field("dom", 0, "H"),
        Field("_pad0", 2, "2s"),
        Field("nr_frames", 4, "I"),
        Field("status", 8, "h"),
        Field("_pad1", 10, "6s"),
        Field("frame_list", 16, "Q"),
    ],
    ctype="struct gnttab_setup_table",
)

GNTTAB_SETUP_TABLE_32 = Layout(
    "gnttab_setup_table of 32 bits",
    16,
    [
        Field("dom", 0, "H"),
        Field("_pad0", 2, "2s"),
        Field("nr_frames", 4, "I"),
        Field("status", 8, "h"),
        Field("_pad1", 10, "2s"),
        Field("frame_list", 12, "I"),
    ],
    ctype="struct gnttab_setup_table",
)

GNTTAB_QUERY_SIZE = Layout(
    "gnttab_query_size",
    16,
    [
        Field("dom", 0, "H"),
        Field("_pad0", 2, "2s"),
        Field("nr_frames", 4, "I"),
        Field("max_nr_frames", 8, "I"),
        Field("status", 12, "h"),
        Field("_pad1", 14, "2s"),
    ],
    ctype="struct gnttab_query_size",
)

# In source and destination, `u` is a grant reference in its lower half, or a frame.
GNTTAB_COPY = Layout(
    "gnttab_copy",
    40,
    [
        Field("source_u", 0, "Q"),
        Field("source_domid", 8, "H"),
        Field("source_offset", 10, "H"),
        Field("_pad0", 12, "4s"),
        Field("dest_u", 16, "Q"),
        Field("dest_domid", 24, "H"),
        Field("dest_offset", 26, "H"),
        Field("_pad1", 28, "4s"),
        Field("len", 32, "H"),
        Field("flags", 34, "H"),
        Field("status", 36, "h"),
        Field("_pad2", 38, "2s"),
    ],
    ctype="struct gnttab_copy",
)

GNTTAB_COPY_32 = Layout(
    "gnttab_copy of 32 bits",
    24,
    [
        Field("source_u", 0, "I"),
        Field("source_domid", 4, "H"),
        Field("source_offset", 6, "H"),
        Field("dest_u", 8, "I"),
        Field("dest_domid", 12, "H"),
        Field("dest_offset", 14, "H"),
        Field("len", 16, "H"),
        Field("flags", 18, "H"),
        Field("status", 20, "h"),
        Field("_pad0", 22, "2s"),
    ],
    ctype="struct gnttab_copy",
)

GNTTAB_SET_VERSION = Layout(
    "gnttab_set_version", 4, [Field("version", 0, "I")], ctype="struct gnttab_set_version"
)

GNTTAB_GET_VERSION = Layout(
    "gnttab_get_version",
    8,
    [Field("dom", 0, "H"), Field("_pad0", 2, "2s"), Field("version", 4, "I")],
    ctype="struct gnttab_get_version",
)

GNTTAB_SWAP_GRANT_REF = Layout(
    "gnttab_swap_grant_ref",
    12,
    [
        Field("ref_a", 0, "I"),
        Field("ref_b", 4, "I"),
        Field("status", 8, "h"),
        Field("_pad0", 10, "2s"),
    ],
    ctype="struct gnttab_swap_grant_ref",
)

# Version 2: `status` of an entry is a u16 in a table of its own.
GRANT_ENTRY_V2_FULL_PAGE = Layout(
    "grant_entry_v2, whole page",
    16,
    [
        Field("flags", 0, "H"),
        Field("domid", 2, "H"),
        Field("_pad0", 4, "4s"),
        Field("frame", 8, "Q"),
    ],
    ctype="union grant_entry_v2",
)

GRANT_ENTRY_V2_SUB_PAGE = Layout(
    "grant_entry_v2, part of a page",
    16,
    [
        Field("flags", 0, "H"),
        Field("domid", 2, "H"),
        Field("page_off", 4, "H"),
        Field("length", 6, "H"),
        Field("frame", 8, "Q"),
    ],
    ctype="union grant_entry_v2",
)

GRANT_ENTRY_V2_TRANSITIVE = Layout(
    "grant_entry_v2, another's grant",
    16,
    [
        Field("flags", 0, "H"),
        Field("domid", 2, "H"),
        Field("trans_domid", 4, "H"),
        Field("_pad0", 6, "2s"),
        Field("gref", 8, "I"),
        Field("_pad1", 12, "4s"),
    ],
    ctype="union grant_entry_v2",
)
