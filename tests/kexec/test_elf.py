"""Kernels' ELF files: built here, made by a compiler, the distribution's own, and hostile ones."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexec.elves import EM_386, EM_X86_64, Elf, Load, kernel, note

from xenlive.abi import elf as abi
from xenlive.abi.layout import Layout
from xenlive.errors import ImageError
from xenlive.kexec.elf import Segment, analyse_kernel

GRUB = Path("/usr/lib/grub-xen/grub-i386-xen_pvh.bin")
CODE = Load(0x100000, b"\xf4" * 64)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("notes_in", ["program", "section", "both"])
def test_a_good_kernel(bits: int, notes_in: str) -> None:
    elf = kernel(bits=bits, notes_in=notes_in)
    image = analyse_kernel(elf)
    assert (image.bits, image.machine) == (bits, EM_X86_64 if bits == 64 else EM_386)
    assert (image.entry, image.end, image.size_bytes) == (0x100000, 0x104210, len(elf))
    code, data = image.segments
    assert (code.address, code.memory_size, code.file_size) == (0x100000, 3500, 3500)
    assert elf[code.offset : code.offset + 10] == b"\xf4code\xf4code"
    assert (data.address, data.memory_size, data.file_size) == (0x101000, 0x3210, 1200)
    assert elf[data.offset : data.offset + data.file_size] == b"data" * 300
    assert image.touched() == [(0x100000, 3500), (0x101000, 0x3210)]


@pytest.mark.parametrize("machine", [EM_386, EM_X86_64])
@pytest.mark.parametrize("bits", [32, 64])
def test_either_machine_in_either_width(bits: int, machine: int) -> None:
    assert analyse_kernel(kernel(bits=bits, machine=machine)).machine == machine


@pytest.mark.parametrize(("size", "entry"), [(1, 0x42), (2, 0x1042), (4, 0x100042), (8, 0x100042)])
def test_entries_of_every_size(size: int, entry: int) -> None:
    code = Load(entry - 2, b"\xf4" * 4)
    assert analyse_kernel(kernel([code], entry=entry, entry_size=size)).entry == entry


@pytest.mark.parametrize("size", [0, 3, 5, 16])
def test_entries_of_other_sizes(size: int) -> None:
    more = note(b"Xen\0", 18, bytes(size))
    assert refused(kernel(more_notes=more)) == "elf-entry-size"


def test_the_first_entry_counts_and_program_headers_before_sections() -> None:
    other = note(b"Xen\0", 18, (0x101004).to_bytes(4, "little"))
    assert analyse_kernel(kernel(more_notes=other)).entry == 0x101004
    elf = bytearray(kernel(notes_in="both"))
    # a second set of notes at the end of the file, named by the section only
    sections_at = struct.unpack_from("<Q", elf, 40)[0]
    struct.pack_into("<QQ", elf, sections_at + 2 * 64 + 24, len(elf), len(other))
    assert analyse_kernel(bytes(elf) + other).entry == 0x100000


@pytest.mark.parametrize(
    "others",
    [
        note(b"GNU\0", 18, bytes(4)),
        note(b"Xen\0", 17, bytes(4)),
        note(b"Xen", 18, bytes(4)),
        note(b"", 18, b""),
        note(b"Linux\0", 257, b"abcde"),
    ],
)
def test_other_notes_are_passed_over(others: bytes) -> None:
    assert analyse_kernel(kernel(more_notes=others * 3)).entry == 0x100000


def test_segments_in_any_order_come_by_address() -> None:
    loads = [Load(0x300000, b"c", 9), Load(0x100000, b"a"), Load(0x200000, b"", 0x1000)]
    image = analyse_kernel(kernel(loads, entry=0x100000))
    assert [segment.address for segment in image.segments] == [0x100000, 0x200000, 0x300000]
    assert image.end == 0x300009


def test_empty_segments_are_nothing() -> None:
    loads = [CODE, Load(0x100000, b""), Load(1 << 63, b"", 0, offset=1 << 60)]
    assert [s.address for s in analyse_kernel(kernel(loads)).segments] == [0x100000]


def test_segments_that_touch_and_one_that_ends_at_4_gib() -> None:
    loads = [CODE, Load(0x100040, b"x"), Load((1 << 32) - 4096, b"", 4096)]
    assert analyse_kernel(kernel(loads)).end == 1 << 32


def refused(elf: bytes) -> str:
    """The code of the error."""
    with pytest.raises(ImageError) as raised:
        analyse_kernel(elf)
    return raised.value.code


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("code", "more"),
    [
        ("elf-magic", {"ident": {0: 0x7E}}),
        ("elf-class", {"ident": {4: 0}}),
        ("elf-class", {"ident": {4: 3}}),
        ("elf-byte-order", {"ident": {5: 2}}),
        ("elf-machine", {"machine": 40}),
        ("elf-headers", {"header": {"e_phentsize": 33}}),
        ("elf-headers", {"header": {"e_phentsize": 0}}),
        ("elf-headers", {"header": {"e_phnum": 0xFFFF}}),
        ("elf-truncated", {"header": {"e_phoff": 1 << 31}}),
        ("elf-truncated", {"header": {"e_phnum": 128}, "loads": [CODE]}),
        ("elf-no-segments", {"header": {"e_phnum": 0}}),
        ("elf-no-segments", {"header": {"e_phoff": 0}}),
        ("elf-headers", {"header": {"e_shentsize": 1}, "notes_in": "section"}),
        ("elf-headers", {"header": {"e_shnum": 0xFFFF}, "notes_in": "section"}),
        ("elf-truncated", {"header": {"e_shoff": 1 << 31}, "notes_in": "section"}),
        ("elf-no-entry", {"header": {"e_shoff": 0}, "notes_in": "section"}),
        ("elf-no-entry", {"notes_in": "neither"}),
        ("elf-notes", {"notes_size": 19}),
        ("elf-no-entry", {"notes_size": 11}),
        ("elf-no-entry", {"notes_size": 0}),
        ("elf-notes", {"notes_size": 1 << 30}),
        ("elf-truncated", {"notes_size": 0xFFFF}),
        ("elf-notes", {"more_notes": struct.pack("<III", 0xFFFFFFFF, 0, 18)}),
        ("elf-notes", {"more_notes": struct.pack("<III", 4, 0xFFFFFFFF, 18) + b"Xen\0"}),
        ("elf-notes", {"more_notes": bytes(0x10001)}),
        ("elf-entry-outside", {"entry": 0xFFFFF}),
        ("elf-entry-outside", {"entry": 0x102000}),  # in the bss
        ("elf-entry-outside", {"entry": 0x100000 + 3500}),
        ("elf-entry-outside", {"entry": (1 << 32) + 0x100000, "entry_size": 8}),
        ("elf-segment-size", {"loads": [CODE, Load(0x200000, b"1234", 3)]}),
        ("elf-truncated", {"loads": [CODE, Load(0x200000, b"", 1 << 30, filesz=1 << 30)]}),
        ("elf-truncated", {"loads": [CODE, Load(0x200000, b"", 8, filesz=8, offset=1 << 30)]}),
        ("elf-segment-address", {"loads": [CODE, Load((1 << 32) - 4, b"", 5)]}),
        ("elf-segments-overlap", {"loads": [CODE, Load(0x10003F, b"1")]}),
        ("elf-segments-overlap", {"loads": [Load(0xFFFFF, b"", 0x2000), CODE]}),
        ("elf-no-segments", {"loads": [Load(0x100000, b"", 0)]}),
    ],
)
def test_what_is_refused(bits: int, code: str, more: dict[str, object]) -> None:
    assert refused(kernel(bits=bits, **{"entry": 0x100000} | more)) == code  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "loads"),
    [
        ("elf-segment-address", [CODE, Load((1 << 64) - 8, b"", 16)]),
        ("elf-segment-address", [CODE, Load(1 << 32, b"x")]),
        ("elf-truncated", [CODE, Load(0x200000, b"", 16, filesz=16, offset=(1 << 64) - 8)]),
        ("elf-segment-address", [CODE, Load(0, b"", (1 << 64) - 1)]),
    ],
)
def test_numbers_that_wrap_in_64_bits(code: str, loads: list[Load]) -> None:
    assert refused(kernel(loads)) == code


@pytest.mark.parametrize("bits", [32, 64])
def test_a_file_cut_anywhere(bits: int) -> None:
    elf = kernel([CODE], bits=bits, notes_in="section")
    assert analyse_kernel(elf)
    for length in range(len(elf)):
        assert refused(elf[:length]) in ("elf-magic", "elf-truncated")


def test_a_packed_kernel_is_told_apart() -> None:
    with pytest.raises(ImageError, match="unpack it first"):
        analyse_kernel(b"\x1f\x8b\x08\0" * 100)


def test_bytes_of_any_kind() -> None:
    elf = kernel()
    assert analyse_kernel(bytearray(elf)).entry == analyse_kernel(memoryview(elf)).entry == 0x100000


numbers = st.one_of(
    st.integers(0, 300),
    st.sampled_from([0x100000, 0xFFFF, 0xFFFFFFFF, 1 << 31, (1 << 64) - 1, 1 << 63, 18]),
    st.integers(0, (1 << 64) - 1),
)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from([32, 64]),
    st.sampled_from(["program", "section", "both"]),
    st.lists(st.tuples(st.integers(0, 3800), st.sampled_from("BHIQ"), numbers), max_size=4),
    st.integers(0, 1) | st.integers(0, 4000),
)
def test_any_file_is_an_image_or_one_error(
    bits: int, notes_in: str, changes: list[tuple[int, str, int]], cut: int
) -> None:
    loads = [Load(0x100000, b"\xf4" * 40), Load(0x101000, b"data" * 9, memsz=0x3210)]
    elf = bytearray(kernel(loads, bits=bits, notes_in=notes_in))
    for at, code, value in changes:
        size = struct.calcsize(code)
        at %= len(elf) - size
        struct.pack_into("<" + code, elf, at, value & ((1 << 8 * size) - 1))
    data = bytes(elf[: len(elf) - cut]) if cut < len(elf) else bytes(elf)
    try:
        image = analyse_kernel(data)
    except ImageError:
        return
    end = 0
    for segment in image.segments:
        assert end <= segment.address < segment.end <= 1 << 32
        assert segment.file_size <= segment.memory_size
        assert not segment.file_size or segment.offset + segment.file_size <= len(data)
        end = segment.end
    assert image.end == end
    assert any(s.address <= image.entry < s.address + s.file_size for s in image.segments)


@pytest.mark.skipif(not GRUB.exists(), reason="grub-xen-bin is not installed")
def test_grubs_own_pvh_image() -> None:
    """What `readelf -ln` says of it in Debian 12, as far as that stays with each build."""
    image = analyse_kernel(GRUB.read_bytes())
    assert (image.bits, image.machine, image.entry) == (32, EM_386, 0x100000)
    assert image.segments[0].address == 0x100000
    assert image.segments[0].memory_size > image.segments[0].file_size


def gcc() -> str:
    found = shutil.which("gcc")
    if found is None:
        if os.environ.get("XENLIVE_REQUIRE_PEERS"):
            pytest.fail("gcc is required")
        pytest.skip("gcc is missing")
    return found


SOURCE = """
__asm__(".section .note.Xen, \\"a\\", @note\\n"
        ".long 4, BYTES, 18\\n.asciz \\"Xen\\"\\n DIRECTIVE pvh_start\\n.previous\\n");
static char bss[12345];
const char words[] = "what it says";
int counter = 77;
__attribute__((section(".text.start"))) void pvh_start(void)
{
    for (;;) {
        bss[counter % sizeof(bss)]++;
        __asm__ volatile("hlt");
    }
}
"""
SCRIPT = """
ENTRY(pvh_start)
PHDRS { text PT_LOAD; data PT_LOAD; note PT_NOTE; }
SECTIONS {
    . = 0x200000;
    .text : { *(.text.start) *(.text*) *(.rodata*) } :text
    .note.Xen : { *(.note.Xen) } :text :note
    . = ALIGN(0x1000);
    .data : { *(.data*) } :data
    .bss : { *(.bss*) } :data
    /DISCARD/ : { *(.eh_frame*) *(.comment) *(.note.gnu*) *(.note.GNU*) }
}
"""


@pytest.mark.peer
@pytest.mark.parametrize("bits", [32, 64])
def test_a_kernel_made_by_a_compiler(bits: int, tmp_path: Path) -> None:
    directive = ".quad" if bits == 64 else ".long"
    source = SOURCE.replace("BYTES", str(bits // 8)).replace("DIRECTIVE", directive)
    (tmp_path / "kernel.c").write_text(source)
    (tmp_path / "kernel.lds").write_text(SCRIPT)
    command = [gcc(), f"-m{bits}", "-O1", "-ffreestanding", "-nostdlib", "-static", "-fno-pie"]
    command += ["-no-pie", "-fno-stack-protector", "-fcf-protection=none", "-Wl,--build-id=none"]
    command += ["-Wl,-T,kernel.lds", "-o", "kernel", "kernel.c"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    elf = (tmp_path / "kernel").read_bytes()
    image = analyse_kernel(elf)
    assert (image.bits, image.entry) == (bits, 0x200000)
    text, data = image.segments
    assert text.address == 0x200000
    assert b"what it says" in elf[text.offset : text.offset + text.file_size]
    assert elf[data.offset : data.offset + 4] == (77).to_bytes(4, "little")
    assert data.memory_size >= data.file_size + 12345
    assert image.end == data.address + data.memory_size


C_CONSTANTS = [
    *("EI_CLASS", "EI_DATA", "EI_VERSION", "EI_NIDENT", "ELFCLASS32", "ELFCLASS64"),
    *("ELFDATA2LSB", "EV_CURRENT", "EM_386", "EM_X86_64", "PT_LOAD", "PT_NOTE", "SHT_NOTE"),
]


@pytest.mark.peer
def test_the_layouts_against_c(tmp_path: Path) -> None:
    layouts = [found for found in vars(abi).values() if isinstance(found, Layout)]
    assert len(layouts) == 7
    lines = ["#include <elf.h>", "#include <stddef.h>"]
    for layout in layouts:
        lines.append(f"_Static_assert(sizeof({layout.ctype}) == {layout.size}, {layout.name!r});")
        for each in layout.fields:
            where, size = f"offsetof({layout.ctype}, {each.name})", f"(({layout.ctype} *)0)->"
            lines.append(f"_Static_assert({where} == {each.offset}, {each.name!r});")
            lines.append(
                f"_Static_assert(sizeof({size}{each.name}) == {each.size}, {each.name!r});"
            )
    for name in C_CONSTANTS:
        lines.append(f"_Static_assert({name} == {getattr(abi, name)}, {name!r});")
    (tmp_path / "elf.c").write_text("\n".join(lines).replace("'", '"') + "\n")
    command = [gcc(), "-std=c11", "-fsyntax-only", "elf.c"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr


def test_segments_are_compared_by_what_they_say() -> None:
    assert Segment(1, 2, 3, 4) == Segment(1, 2, 3, 4) != Segment(1, 2, 3, 3)
    assert Elf([CODE], 0x100000).build() == kernel([CODE])
