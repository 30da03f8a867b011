"""The pages of console and Xenstore against a C compiler and Xen's public headers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from xenlive.abi import xencons, xs_ring
from xenlive.abi.layout import Layout

HEADERS = ("xen/xen.h", "xen/io/console.h", "xen/io/xs_wire.h")
LAYOUTS = [xencons.XENCONS_INTERFACE, xs_ring.XENSTORE_DOMAIN_INTERFACE]
CONSTANTS = {
    name: getattr(xs_ring, name)
    for name in vars(xs_ring)
    if name.startswith("XENSTORE_") and type(getattr(xs_ring, name)) is int
}
#: Younger than the headers of Xen 4.17, by the newest ones; and a name of our own.
NEWER = {
    "XENSTORE_SERVER_FEATURE_WATCHDEPTH": 4,
    "XENSTORE_SERVER_FEATURE_DOMID_ANY": 8,
    "XENSTORE_FEATURES": 14,
}
for _name, _value in NEWER.items():
    assert CONSTANTS.pop(_name) == _value
#: Fields at the end that are younger, by the newest headers, and their sizes.
NEWER_FIELDS = {"xenstore_domain_interface": {"evtchn_port": 4}}


@pytest.fixture(scope="module")
def c_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler says: `struct x` its size, `struct x.f` an offset, `NAME` a constant."""
    missing = [header for header in HEADERS if not Path("/usr/include", header).exists()]
    if shutil.which("gcc") is None or missing:
        if os.environ.get("XENLIVE_REQUIRE_PEERS"):
            pytest.fail("gcc and Xen's public headers (libxen-dev) are required")
        pytest.skip("gcc or Xen's public headers (libxen-dev) are missing")
    values = {}
    for layout in LAYOUTS:
        values[layout.ctype] = f"sizeof({layout.ctype})"
        for field in layout.fields:
            if field.name in NEWER_FIELDS.get(layout.name, {}):
                continue
            where = f"{layout.ctype}.{field.name}"
            values[where] = f"offsetof({layout.ctype}, {field.name})"
            values[f"{where} size"] = f"sizeof((({layout.ctype} *)0)->{field.name})"
    values |= {name: name for name in CONSTANTS}
    lines = [f'printf("{name}=%lld\\n", (long long)({value}));' for name, value in values.items()]
    includes = "".join(f"#include <{name}>\n" for name in ("stddef.h", "stdint.h", "stdio.h"))
    includes += "".join(f"#include <{name}>\n" for name in HEADERS)
    folder = tmp_path_factory.mktemp("rings")
    source, program = folder / "rings.c", folder / "rings"
    source.write_text(includes + "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
    subprocess.run(["gcc", "-o", program, source], check=True, timeout=60)
    printed = subprocess.run([program], check=True, capture_output=True, text=True, timeout=60)
    pairs = (line.rsplit("=", 1) for line in printed.stdout.splitlines())
    return {name: int(value) for name, value in pairs}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_size_offsets_and_widths(layout: Layout, c_values: dict[str, int]) -> None:
    newer = NEWER_FIELDS.get(layout.name, {})
    assert layout.size == c_values[layout.ctype] + sum(newer.values())
    for field in layout.fields:
        if field.name in newer:
            assert field.offset >= c_values[layout.ctype]
            assert field.size == newer[field.name]
            continue
        assert field.offset == c_values[f"{layout.ctype}.{field.name}"], field.name
        assert field.size == c_values[f"{layout.ctype}.{field.name} size"], field.name


def test_constants(c_values: dict[str, int]) -> None:
    assert {name: c_values[name] for name in CONSTANTS} == CONSTANTS
    assert len(CONSTANTS) >= 7


def test_rings_end_where_the_next_thing_begins() -> None:
    assert xencons.OUT_AT == xencons.IN_SIZE
    assert xencons.OUT_AT + xencons.OUT_SIZE == xencons.IN_CONS * 4
    assert xs_ring.RSP_AT == xs_ring.XENSTORE_RING_SIZE
    assert xs_ring.RSP_AT + xs_ring.XENSTORE_RING_SIZE == xs_ring.REQ_CONS * 4
