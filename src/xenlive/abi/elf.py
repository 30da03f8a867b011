"""ELF, as far as a kernel image needs it: file header, program and section headers, notes.

Specification: System V ABI, "Object Files" and "Program Loading"; names as in `elf.h`. The 32-bit
and the 64-bit forms have the same fields in another order and width:

    file header ──▶ program headers ──▶ PT_LOAD: what goes where in memory
                │                  └──▶ PT_NOTE: notes, one after the other
                └─▶ section headers ──▶ SHT_NOTE: notes too

The note that says where a kernel is entered is Xen's: `public/elfnote.h`, name "Xen".

**Invariants.** Little endian only. A note's name and descriptor are padded to 4 bytes each, as Xen
reads them whatever the alignment of what they lie in.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

ELFMAG = b"\x7fELF"
EI_CLASS = 4
EI_DATA = 5
EI_VERSION = 6
ELFCLASS32 = 1
ELFCLASS64 = 2
ELFDATA2LSB = 1
EV_CURRENT = 1
EI_NIDENT = 16

EM_386 = 3
EM_X86_64 = 62

PT_LOAD = 1
PT_NOTE = 4
SHT_NOTE = 7

XEN_ELFNOTE_PHYS32_ENTRY = 18
XEN_NOTE_NAME = b"Xen\0"

ELF32_EHDR = Layout(
    "Elf32_Ehdr",
    52,
    [
        Field("e_ident", 0, "16s"),
        Field("e_type", 16, "H"),
        Field("e_machine", 18, "H"),
        Field("e_version", 20, "I"),
        Field("e_entry", 24, "I"),
        Field("e_phoff", 28, "I"),
        Field("e_shoff", 32, "I"),
        Field("e_flags", 36, "I"),
        Field("e_ehsize", 40, "H"),
        Field("e_phentsize", 42, "H"),
        Field("e_phnum", 44, "H"),
        Field("e_shentsize", 46, "H"),
        Field("e_shnum", 48, "H"),
        Field("e_shstrndx", 50, "H"),
    ],
    ctype="Elf32_Ehdr",
)

ELF64_EHDR = Layout(
    "Elf64_Ehdr",
    64,
    [
        Field("e_ident", 0, "16s"),
        Field("e_type", 16, "H"),
        Field("e_machine", 18, "H"),
        Field("e_version", 20, "I"),
        Field("e_entry", 24, "Q"),
        Field("e_phoff", 32, "Q"),
        Field("e_shoff", 40, "Q"),
        Field("e_flags", 48, "I"),
        Field("e_ehsize", 52, "H"),
        Field("e_phentsize", 54, "H"),
        Field("e_phnum", 56, "H"),
        Field("e_shentsize", 58, "H"),
        Field("e_shnum", 60, "H"),
        Field("e_shstrndx", 62, "H"),
    ],
    ctype="Elf64_Ehdr",
)

ELF32_PHDR = Layout(
    "Elf32_Phdr",
    32,
    [
        Field("p_type", 0, "I"),
        Field("p_offset", 4, "I"),
        Field("p_vaddr", 8, "I"),
        Field("p_paddr", 12, "I"),
        Field("p_filesz", 16, "I"),
        Field("p_memsz", 20, "I"),
        Field("p_flags", 24, "I"),
        Field("p_align", 28, "I"),
    ],
    ctype="Elf32_Phdr",
)

ELF64_PHDR = Layout(
    "Elf64_Phdr",
    56,
    [
        Field("p_type", 0, "I"),
        Field("p_flags", 4, "I"),
        Field("p_offset", 8, "Q"),
        Field("p_vaddr", 16, "Q"),
        Field("p_paddr", 24, "Q"),
        Field("p_filesz", 32, "Q"),
        Field("p_memsz", 40, "Q"),
        Field("p_align", 48, "Q"),
    ],
    ctype="Elf64_Phdr",
)

ELF32_SHDR = Layout(
    "Elf32_Shdr",
    40,
    [
        Field("sh_name", 0, "I"),
        Field("sh_type", 4, "I"),
        Field("sh_flags", 8, "I"),
        Field("sh_addr", 12, "I"),
        Field("sh_offset", 16, "I"),
        Field("sh_size", 20, "I"),
        Field("sh_link", 24, "I"),
        Field("sh_info", 28, "I"),
        Field("sh_addralign", 32, "I"),
        Field("sh_entsize", 36, "I"),
    ],
    ctype="Elf32_Shdr",
)

ELF64_SHDR = Layout(
    "Elf64_Shdr",
    64,
    [
        Field("sh_name", 0, "I"),
        Field("sh_type", 4, "I"),
        Field("sh_flags", 8, "Q"),
        Field("sh_addr", 16, "Q"),
        Field("sh_offset", 24, "Q"),
        Field("sh_size", 32, "Q"),
        Field("sh_link", 40, "I"),
        Field("sh_info", 44, "I"),
        Field("sh_addralign", 48, "Q"),
        Field("sh_entsize", 56, "Q"),
    ],
    ctype="Elf64_Shdr",
)

ELF_NHDR = Layout(
    "Elf32_Nhdr",
    12,
    [
        Field("n_namesz", 0, "I"),
        Field("n_descsz", 4, "I"),
        Field("n_type", 8, "I"),
    ],
    ctype="Elf32_Nhdr",
)
