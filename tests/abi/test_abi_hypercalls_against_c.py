"""Arguments of hypercalls against a C compiler and Xen's public headers, for 64 and 32 bit guests.

Nothing is run: the compiler writes sizes and offsets into assembly, which works for i386 too where
no C library for it is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from xenlive.abi.hypercalls import (
    event_channel,
    grant_table,
    hvm,
    memory,
    sched,
    shared_info,
    vcpu,
    version,
    xen,
)
from xenlive.abi.layout import Field, Layout

MODULES = (
    event_channel,
    grant_table,
    hvm,
    memory,
    sched,
    shared_info,
    vcpu,
    version,
    xen,
)
INCLUDES = (
    *("xen", "event_channel", "grant_table", "memory", "sched", "vcpu", "version", "features"),
    *("hvm/hvm_op", "hvm/params", "errno"),
)
# Where fields are called something else in C, or are part of a union.
SPELLED = {("struct multicall_entry", f"arg{i}"): f"args[{i}]" for i in range(6)} | {
    ("union grant_entry_v2", "flags"): "hdr.flags",
    ("union grant_entry_v2", "domid"): "hdr.domid",
    ("union grant_entry_v2", "trans_domid"): "transitive.trans_domid",
    ("union grant_entry_v2", "gref"): "transitive.gref",
    ("union grant_entry_v2", "page_off"): "sub_page.page_off",
    ("union grant_entry_v2", "length"): "sub_page.length",
    ("union grant_entry_v2", "frame"): "full_page.frame",
    ("struct gnttab_copy", "source_u"): "source.u",
    ("struct gnttab_copy", "source_domid"): "source.domid",
    ("struct gnttab_copy", "source_offset"): "source.offset",
    ("struct gnttab_copy", "dest_u"): "dest.u",
    ("struct gnttab_copy", "dest_domid"): "dest.domid",
    ("struct gnttab_copy", "dest_offset"): "dest.offset",
    ("struct xen_reserved_device_memory_map", "dev"): "dev.pci",
}
# A prefix that only Python's names have not.
PREFIXES = {"HYPERVISOR_": "__HYPERVISOR_"}
# Not in a public header, or a property of this program.
OURS = (
    *("INVALID_GFN_64", "INVALID_GFN_32", "WC_SEC_HI_32", "MEMOP_", "EXTRAVERSION_SIZE"),
    *("CAPABILITIES_SIZE", "CHANGESET_SIZE", "GUEST_HANDLE_SIZE", "EVTCHNOP_reset_cont"),
    *("HVMOP_pagetable_dying", "HYPERVISOR_event_channel_op_"),
    *("HYPERVISOR_physdev_op_compat", "EVTCHNOP_bind_pirq_", "XENMEM_paging_op"),
)
WIDTHS = {"m64": "", "m32": "_32"}


def layouts(suffix: str) -> list[Layout]:
    """Those of one width: a form of its own if there is one, else the common one."""
    found = []
    for module in MODULES:
        named = {k: v for k, v in vars(module).items() if isinstance(v, Layout) and v.ctype}
        for name, layout in named.items():
            if name.endswith("_32"):
                continue
            found.append(named.get(name + suffix, layout) if suffix else layout)
    return found


def constants() -> dict[str, int]:
    return {
        name: value
        for module in MODULES
        for name, value in vars(module).items()
        if type(value) is int and not name.startswith(OURS)
    }


def c_name(name: str) -> str:
    for ours, theirs in PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def member(layout: Layout, field: Field) -> str:
    return SPELLED.get((layout.ctype, field.name), field.name)


def fields(layout: Layout) -> list[Field]:
    return [f for f in layout.fields if not f.name.startswith("_")]


def compiled(folder: Path, flag: str) -> list[int]:
    """What the compiler puts into one array: constants, then each layout's size and offsets."""
    words = [f"(unsigned int)({c_name(name)})" for name in constants()]
    for layout in layouts(WIDTHS[flag]):
        words.append(f"sizeof({layout.ctype})")
        for field in fields(layout):
            c_member = member(layout, field)
            words.append(f"offsetof({layout.ctype}, {c_member})")
            words.append(f"sizeof((({layout.ctype} *)0)->{c_member})")
    lines = ["#define __XEN_TOOLS__ 1", "#include <stddef.h>", "#include <stdint.h>"]
    lines += [f"#include <xen/{name}.h>" for name in INCLUDES]
    lines.append("const unsigned int answers[] = {\n" + ",\n".join(words) + "};\n")
    source = folder / f"{flag}.c"
    source.write_text("\n".join(lines))
    command = ["gcc", f"-{flag}", "-ffreestanding", "-S", "-o", "-", str(source)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return assembled(text)


def assembled(text: str) -> list[int]:
    """The words of the array `answers` in gcc's assembly."""
    body = text.partition("answers:\n")[2]
    numbers: list[int] = []
    for directive, value in re.findall(r"^\s+\.(long|zero)\s+(-?\d+)", body, flags=re.MULTILINE):
        if directive == "long":
            numbers.append(int(value) & 0xFFFFFFFF)
        else:
            numbers += [0] * (int(value) // 4)
    return numbers


@pytest.fixture(scope="module", params=list(WIDTHS))
def width(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def answers(width: str, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    if shutil.which("gcc") is None or not Path("/usr/include/xen/xen.h").exists():
        if os.environ.get("XENLIVE_REQUIRE_PEERS"):
            pytest.fail("gcc and Xen's public headers (libxen-dev) are required")
        pytest.skip("gcc or Xen's public headers (libxen-dev) are missing")
    return compiled(tmp_path_factory.mktemp("abi"), width)


@pytest.mark.peer
def test_constants_are_those_of_the_headers(answers: list[int]) -> None:
    ours = {name: value & 0xFFFFFFFF for name, value in constants().items()}
    assert len(ours) > 150
    assert dict(zip(ours, answers, strict=False)) == ours


@pytest.mark.peer
def test_structures_are_those_of_the_headers(answers: list[int], width: str) -> None:
    theirs = iter(answers[len(constants()) :])
    for layout in layouts(WIDTHS[width]):
        assert (layout.name, layout.size) == (layout.name, next(theirs))
        for field in fields(layout):
            place = (layout.name, field.name, field.offset, field.size)
            assert place == (layout.name, field.name, next(theirs), next(theirs))
    assert not list(theirs)


def test_every_structure_names_its_c_type_unless_c_has_none() -> None:
    nameless = {
        v.name for m in MODULES for v in vars(m).values() if isinstance(v, Layout) and not v.ctype
    }
    assert nameless == {"domid_t", "e820entry"}


def test_pairs_have_the_same_fields() -> None:
    for module, name in ((m, n) for m in MODULES for n in vars(m) if n.endswith("_32")):
        narrow = getattr(module, name)
        if isinstance(narrow, Layout):
            wide = getattr(module, name.removesuffix("_32"))
            names = {f.name for f in fields(narrow)}
            assert names == {f.name for f in fields(wide)} - {"wc_sec_hi"}
