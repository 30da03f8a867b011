"""The ACPI tables of a PVH guest: one processor with a local APIC, no hardware besides.

    RSDP ──▶ XSDT ──▶ FADT ──▶ DSDT (nothing in it)
                 └──▶ MADT (the local APIC)

Specification: ACPI 5.0, chapter 5; which tables, where, and what they say of missing hardware is
`tools/libacpi` and `tools/libs/light/libxl_x86_acpi.c` of Xen 4.17. A Linux guest looks for its
processor here, and without one registers no clock.

**Invariants.** Each table's bytes add up to 0. All addresses in them are final. Sizes and places
depend on nothing but this file.
"""

from __future__ import annotations

import struct

# ACPI_INFO_PHYSICAL_ADDRESS: an information page, seven pages of tables, a page for the RSDP.
ACPI_BASE = 0xFC000000
TABLES_AT = 0xFC001000
RSDP_AT = 0xFC008000
RSDP_BYTES = 64
TABLES_BYTES = RSDP_AT - TABLES_AT
ACPI_PAGES = 9
LAPIC_AT = 0xFEE00000

_OEM_ID = b"Xen\0\0\0"
_OEM_TABLE_ID = b"HVM\0\0\0\0\0"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")

_FADT_BYTES = 268
_HW_REDUCED = 1 << 20
# No VGA, no CMOS clock to look for.
_NO_VGA, _NO_CMOS_RTC = 1 << 2, 1 << 5


def build_acpi(lapic_id: int = 0) -> list[tuple[int, bytes]]:
    """All tables: pairs of physical address and bytes."""
    dsdt_at = TABLES_AT
    dsdt = _table(b"DSDT", 2, b"")
    fadt_at = dsdt_at + 64
    fadt = _fadt(dsdt_at)
    madt_at = fadt_at + 320
    madt = _table(b"APIC", 3, struct.pack("<II", LAPIC_AT, 0) + _local_apic(0, lapic_id))
    xsdt_at = madt_at + 128
    xsdt = _table(b"XSDT", 1, struct.pack("<QQ", fadt_at, madt_at))
    tables = [(dsdt_at, dsdt), (fadt_at, fadt), (madt_at, madt), (xsdt_at, xsdt)]
    return [*tables, (RSDP_AT, _rsdp(xsdt_at))]


def _local_apic(processor: int, lapic_id: int) -> bytes:
    """An enabled processor."""
    return struct.pack("<BBBBI", 0, 8, processor, lapic_id, 1)


def _fadt(dsdt_at: int) -> bytes:
    """The fixed description: no fixed hardware, and where the DSDT is."""
    body = bytearray(_FADT_BYTES - _HEADER.size)

    def put(offset: int, form: str, value: int) -> None:
        packed = struct.pack("<" + form, value)
        body[offset - _HEADER.size : offset - _HEADER.size + len(packed)] = packed

    put(40, "I", dsdt_at)
    put(109, "H", _NO_VGA | _NO_CMOS_RTC)
    put(112, "I", _HW_REDUCED)
    put(140, "Q", dsdt_at)
    return _table(b"FACP", 5, bytes(body))


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    size = _HEADER.size + len(body)
    fields = (revision, 0, _OEM_ID, _OEM_TABLE_ID, 0, b"INTL", 0)
    return _summed(_HEADER.pack(signature, size, *fields) + body, 9)


def _rsdp(xsdt_at: int) -> bytes:
    """The root pointer: its first 20 bytes add up to 0, and all of it does."""
    first = struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM_ID, 2, 0)
    return _summed(_summed(first, 8) + struct.pack("<IQI", 36, xsdt_at, 0), 32)


def _summed(table: bytes, checksum_at: int) -> bytes:
    """The table with the byte that makes its sum 0."""
    checksum = -sum(table) & 0xFF
    return table[:checksum_at] + bytes([checksum]) + table[checksum_at + 1 :]
