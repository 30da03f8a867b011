"""hvm_start_info: what a PVH kernel is entered with, in the register `ebx`.

Specification: Xen `public/arch-x86/hvm/start_info.h`. The block names, by physical address, a
module list, a command line and a memory map.

**Invariants.** All three structures are multiples of 8 bytes, so that they follow each other
without padding.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

XEN_HVM_START_MAGIC_VALUE = 0x336EC578

HVM_START_INFO = Layout(
    "hvm_start_info",
    56,
    [
        Field("magic", 0, "I"),
        Field("version", 4, "I"),
        Field("flags", 8, "I"),
        Field("nr_modules", 12, "I"),
        Field("modlist_paddr", 16, "Q"),
        Field("cmdline_paddr", 24, "Q"),
        Field("rsdp_paddr", 32, "Q"),
        Field("memmap_paddr", 40, "Q"),
        Field("memmap_entries", 48, "I"),
        Field("reserved", 52, "I"),
    ],
    ctype="struct hvm_start_info",
)

# Version 0 of the structure ended before the memory map.
VERSION_0_SIZE = HVM_START_INFO.offset_of("memmap_paddr")

HVM_MODLIST_ENTRY = Layout(
    "hvm_modlist_entry",
    32,
    [
        Field("paddr", 0, "Q"),
        Field("size", 8, "Q"),
        Field("cmdline_paddr", 16, "Q"),
        Field("reserved", 24, "Q"),
    ],
    ctype="struct hvm_modlist_entry",
)

HVM_MEMMAP_TABLE_ENTRY = Layout(
    "hvm_memmap_table_entry",
    24,
    [
        Field("addr", 0, "Q"),
        Field("size", 8, "Q"),
        Field("type", 16, "I"),
        Field("reserved", 20, "I"),
    ],
    ctype="struct hvm_memmap_table_entry",
)
