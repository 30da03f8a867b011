"""`xenlive abi --c` as others meet it: compiled as C and as C++, and beside Xen's own headers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from xenlive import abi
from xenlive.abi.c_header import c_header
from xenlive.abi.declared import Group, Structure, c_type, groups
from xenlive.abi.layout import Field, Layout

FLAGS = ("-Wall", "-Wextra", "-Werror", "-pedantic")
LANGUAGES = {"C": ("gcc", "-std=c11"), "C++": ("g++", "-std=c++11")}
XEN = Path("/usr/include/xen")
XEN_HEADERS = ("xen.h", "grant_table.h", "io/9pfs.h", "io/xs_wire.h", "arch-x86/hvm/start_info.h")
XEN_STRUCTURES = (
    *("hvm_start_info", "hvm_modlist_entry", "hvm_memmap_table_entry"),
    *("grant_entry_v1", "xen_9pfs_data_intf", "xsd_sockmsg"),
)


def need(*programs: str) -> None:
    """Skips the test without a compiler, or fails it where peers are required."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and os.environ.get("XENLIVE_REQUIRE_PEERS", "") not in ("", "0"):
        pytest.fail(f"missing: {missing}", pytrace=False)
    if missing:
        pytest.skip(f"missing: {missing}")


def compiles(folder: Path, header: str, code: str = "", language: str = "C") -> str:
    """Compiles a file that includes the header twice, and runs it; the compiler's complaints."""
    compiler, standard = LANGUAGES[language]
    need(compiler)
    (folder / "xenlive_abi.h").write_text(header, encoding="ascii")
    suffix = ".c" if language == "C" else ".cc"
    source = folder / f"user{suffix}"
    twice = '#include "xenlive_abi.h"\n' * 2
    source.write_text(f"{twice}{code}\nint main(void) {{ return 0; }}\n", encoding="ascii")
    command = [compiler, standard, *FLAGS, "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stderr


def structures() -> dict[str, Structure]:
    return {s.name: s for group in groups() for s in group.structures}


@pytest.mark.parametrize("language", LANGUAGES)
def test_it_compiles_without_a_warning(tmp_path: Path, language: str) -> None:
    assert compiles(tmp_path, c_header(), language=language) == ""


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("XENLIVE_SIZE(xenlive_kexec_module, 14);", "XENLIVE_SIZE(xenlive_kexec_module, 16);"),
        ("uint16_t n_records;", "uint8_t n_records;"),
        ("uint8_t _pad1[56];", "uint8_t _pad1[55];"),
    ],
)
def test_its_assertions_can_fail(tmp_path: Path, language: str, right: str, wrong: str) -> None:
    assert right in c_header()
    complaint = compiles(tmp_path, c_header().replace(right, wrong), language=language)
    assert "static assertion failed" in complaint


def test_every_layout_and_every_number_of_the_room_is_in_it() -> None:
    """But for ELF, which every system has."""
    folder = Path(abi.__file__).parent
    files = {path.stem for path in folder.glob("*.py") if "Layout(" in path.read_text()}
    assert files - {"layout", "elf"} == {group.file for group in groups()}
    header = c_header()
    for group in groups():
        assert group.title in header
        assert group.structures
        for name in group.constants:
            assert len(re.findall(rf"^#define XENLIVE_{name} ", header, flags=re.MULTILINE)) == 1
    for name, structure in structures().items():
        assert len(re.findall(rf"^struct xenlive_{name} {{", header, flags=re.MULTILINE)) == 1
        assert f"XENLIVE_SIZE(xenlive_{name}, {structure.layout.size});" in header
        for field in structure.layout.fields:
            check = f"XENLIVE_FIELD(xenlive_{name}, {field.name}, {field.offset}, {field.size});"
            assert check in header
    names = [s.name for group in groups() for s in group.structures]
    assert len(set(names)) == len(names)


def test_what_follows_a_structure_is_said_of_structures_that_are_there() -> None:
    from xenlive.abi.declared import _FOLLOWED_BY, _LEFT_OUT

    assert set(_FOLLOWED_BY) <= set(structures())
    for text in _FOLLOWED_BY.values():
        assert set(re.findall(r"struct (\w+)", text)) <= set(structures())
    assert vars(abi.xen9pfs).keys() >= _LEFT_OUT


def test_lines_are_ascii_and_not_too_long() -> None:
    header = c_header()
    assert header.isascii()
    assert header.endswith("*/\n")
    assert max(map(len, header.splitlines())) <= 100


def test_structures_that_are_named_are_declared() -> None:
    header = c_header()
    named = set(re.findall(r"\bstruct (?!type\b)(\w+)", header))
    declared = set(re.findall(r"^struct (\w+) \{", header, flags=re.MULTILINE))
    assert named - declared == set()


def test_rules_for_other_implementers_are_in_it() -> None:
    """Behind the structure's name: what the fields are held to."""
    header = c_header()
    for name, words in (
        ("kexec module sealed record", ("CRC-32", "generation 0, payload, checksum")),
        ("kexec module resize journal", ("large[j + k] = small[j]", "n_pages is stored")),
    ):
        comment = header[header.index(f" * {name}:") :].partition("*/")[0]
        assert all(word in comment for word in words)


ODD = Layout(
    "odd */ fields",
    15,
    [
        *(Field("a", 0, "B"), Field("b", 1, "I"), Field("c", 5, "Q")),
        *(Field("_pad", 13, "1s"), Field("d", 14, "b")),
    ],
)


@pytest.mark.parametrize("language", LANGUAGES)
def test_fields_where_no_compiler_places_them(tmp_path: Path, language: str) -> None:
    """No layout of ours is so today."""
    assert not any(structure.packed for structure in structures().values())
    odd = Structure("odd", ODD)
    assert odd.packed
    constants: dict[str, int | bytes] = {"ODD": b'a"\\\0b?', "LARGE": 0xFFFFFFFF}
    header = c_header([Group("odd", "odd …", constants, [odd, *structures().values()])])
    code = 'static const char odd[] = XENLIVE_ODD; XENLIVE_STATIC_ASSERT(sizeof(odd) == 7, "");'
    code += "char use(void); char use(void) { return odd[0]; }"
    assert compiles(tmp_path, header, code, language) == ""


@pytest.mark.parametrize(
    ("layout", "packed"),
    [
        (Layout("tail", 6, [Field("a", 0, "I"), Field("b", 4, "H")]), True),
        (Layout("bytes", 7, [Field("a", 0, "4s"), Field("b", 4, "3s")]), False),
        (Layout("even", 6, [Field("a", 0, "H"), Field("b", 2, "4s")]), False),
    ],
)
def test_what_needs_packing(layout: Layout, packed: bool) -> None:
    assert Structure("x", layout).packed == packed


def test_it_agrees_with_xens_public_headers(tmp_path: Path) -> None:
    """In one translation unit: no name clashes, and every size, offset and number is the same."""
    missing = [name for name in XEN_HEADERS if not (XEN / name).exists()]
    if missing:
        need(f"xen/{missing[0]}")
    includes = "".join(f"#include <xen/{name}>\n" for name in XEN_HEADERS)
    declared = "".join((XEN / name).read_text() for name in XEN_HEADERS)
    known = set(re.findall(r"\w+", re.sub(r"/\*.*?\*/", "", declared, flags=re.DOTALL)))
    checks = []
    for name in XEN_STRUCTURES:
        layout, ours, theirs = structures()[name].layout, f"struct xenlive_{name}", f"struct {name}"
        if name != "xen_9pfs_data_intf":  # it ends with an array there
            checks.append(f"sizeof({ours}) == sizeof({theirs})")
        for field in layout.fields:
            if field.name.startswith("_pad"):
                continue
            checks.append(f"offsetof({ours}, {field.name}) == offsetof({theirs}, {field.name})")
            both = (f"sizeof((({s} *)0)->{field.name})" for s in (ours, theirs))
            checks.append(" == ".join(both))
    same = [name for group in groups() for name in group.constants if name in known]
    same.remove("XS_TYPE_COUNT")  # grows with Xen's version
    checks += [f"XENLIVE_{name} == {name}" for name in same]
    assert len(same) >= 40
    assert {"GTF_readonly", "XS_WRITE", "XENSTORE_PAYLOAD_MAX", "DOMID_SELF"} <= set(same)
    code = includes + "".join(f'XENLIVE_STATIC_ASSERT({check}, "");\n' for check in checks)
    assert compiles(tmp_path, c_header(), code) == ""


def test_types_in_c() -> None:
    found = {c_type(f)[0] for s in structures().values() for f in s.layout.fields}
    assert found <= {"uint8_t", "uint16_t", "uint32_t", "uint64_t", "int32_t"}
    assert c_type(Field("x", 0, "8s")) == ("uint8_t", 8)
    assert c_type(Field("x", 0, "q")) == ("int64_t", 0)
