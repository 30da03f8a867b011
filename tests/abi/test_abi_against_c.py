"""Every layout and constant against a C compiler, and Xen's public headers where they are there.

The structures that no public header has (the kexec module's) are written down here in C, as Mini-OS
posted them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from xenlive.abi import grant_table, kexec_module, start_info, xen9pfs
from xenlive.abi.layout import Layout

HEADERS = ("xen/grant_table.h", "xen/io/9pfs.h", "xen/arch-x86/hvm/start_info.h")

C_PRELUDE = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <xen/xen.h>
#include <xen/grant_table.h>
#include <xen/io/9pfs.h>
#include <xen/arch-x86/hvm/start_info.h>

struct kexec_module {
    uint8_t eye_catcher[8];
    uint16_t n_pages;
    uint16_t n_records;
    uint16_t recs_off;
    uint8_t pg2rec[];
};
struct kexec_module_rec {
    uint16_t offset;
    uint8_t type;
    uint8_t size;
};
struct kexec_9pfs {
    uint32_t ring_ref;
    uint32_t evtchn;
    uint32_t prod_pvt_out;
    uint32_t cons_pvt_in;
};
struct kexec_sealed {
    uint8_t magic[4];
    uint16_t kind;
    uint16_t flags;
};
struct kexec_sealed_slot {
    uint32_t generation;
    uint32_t checksum;
};
struct kexec_resize {
    uint8_t magic[4];
    uint16_t n_small;
    uint16_t n_large;
    uint16_t boundary;
};
"""

FLEXIBLE = (xen9pfs.INTERFACE,)  # size is where the flexible array starts
LAYOUTS = [
    found
    for module in (grant_table, kexec_module, start_info, xen9pfs)
    for found in vars(module).values()
    if isinstance(found, Layout)
]
CONSTANTS = {
    name: getattr(grant_table, name)
    for name in vars(grant_table)
    if name.startswith(("GTF_", "GNTTAB_"))
} | {"XEN_HVM_START_MAGIC_VALUE": start_info.XEN_HVM_START_MAGIC_VALUE}


@pytest.fixture(scope="module")
def c_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler says: `struct x` its size, `struct x.f` an offset, `NAME` a constant."""
    missing = [header for header in HEADERS if not Path("/usr/include", header).exists()]
    if shutil.which("gcc") is None or missing:
        if os.environ.get("XENLIVE_REQUIRE_PEERS"):
            pytest.fail("gcc and Xen's public headers (libxen-dev) are required")
        pytest.skip("gcc or Xen's public headers (libxen-dev) are missing")
    lines = []
    for layout in LAYOUTS:
        lines.append(_print(layout.ctype, f"sizeof({layout.ctype})"))
        for field in _c_fields(layout):
            where = f"offsetof({layout.ctype}, {field})"
            lines.append(_print(f"{layout.ctype}.{field}", where))
            width = f"sizeof((({layout.ctype} *)0)->{field})"
            lines.append(_print(f"{layout.ctype}.{field} size", width))
    lines.append(
        _print("ref", "offsetof(struct xen_9pfs_data_intf, ref)"),
    )
    lines.append(_print("pg2rec", "offsetof(struct kexec_module, pg2rec)"))
    lines += [_print(name, name) for name in CONSTANTS]
    folder = tmp_path_factory.mktemp("abi")
    source = folder / "abi.c"
    source.write_text(C_PRELUDE + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
    program = folder / "abi"
    subprocess.run(["gcc", "-o", program, source], check=True, timeout=60)
    printed = subprocess.run([program], check=True, capture_output=True, text=True, timeout=60)
    pairs = (line.rsplit("=", 1) for line in printed.stdout.splitlines())
    return {name: int(value) for name, value in pairs}


def _print(name: str, expression: str) -> str:
    return f'printf("{name}=%lld\\n", (long long)({expression}));'


def _c_fields(layout: Layout) -> list[str]:
    return [field.name for field in layout.fields if not field.name.startswith("_pad")]


def test_every_layout_names_its_c_type() -> None:
    assert len(LAYOUTS) == 11
    assert all(layout.ctype for layout in LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_size_offsets_and_widths(layout: Layout, c_values: dict[str, int]) -> None:
    if layout not in FLEXIBLE:
        assert layout.size == c_values[layout.ctype]
    for field in layout.fields:
        if field.name.startswith("_pad"):
            continue
        assert field.offset == c_values[f"{layout.ctype}.{field.name}"], field.name
        assert field.size == c_values[f"{layout.ctype}.{field.name} size"], field.name


def test_flexible_arrays_start_where_the_fixed_part_ends(c_values: dict[str, int]) -> None:
    assert c_values["ref"] == xen9pfs.INTERFACE.size == xen9pfs.REF0 * 4
    assert c_values["pg2rec"] == kexec_module.PG2REC_OFFSET


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name: str, c_values: dict[str, int]) -> None:
    assert c_values[name] == CONSTANTS[name]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("in_cons", xen9pfs.IN_CONS),
        ("in_prod", xen9pfs.IN_PROD),
        ("out_cons", xen9pfs.OUT_CONS),
        ("out_prod", xen9pfs.OUT_PROD),
        ("ring_order", xen9pfs.RING_ORDER),
    ],
)
def test_word_indices_are_the_offsets(name: str, word: int) -> None:
    assert xen9pfs.INTERFACE.offset_of(name) == 4 * word


def test_a_page_of_grants_is_full() -> None:
    assert grant_table.GRANTS_PER_PAGE * grant_table.GRANT_ENTRY_V1.size == 4096


def test_the_largest_module_fills_its_page_to_the_last_byte() -> None:
    """One page more than 4019 runs past the page, in the posted code too."""
    table = kexec_module.FRESH_RECORDS * kexec_module.RECORD.size
    largest = kexec_module.MAX_MODULE_PAGES - 1
    assert kexec_module.fresh_recs_off(largest) + table == 4096
    assert kexec_module.fresh_recs_off(largest + 1) + table > 4096
