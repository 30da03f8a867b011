"""Builds the kernel that does what its command line says (`script.c`), for 32 and 64 bits.

Its module code is the witness of `../../kexec/posted`. Other kernels are this one with more words:
they have `PARTS` and files of their own.
"""

from __future__ import annotations

from pathlib import Path

from kernels.c_kernels import DEFAULT_BASE, PVH, build_c_kernel

HERE = Path(__file__).parent
POSTED = HERE.parent.parent / "kexec" / "posted"

#: What it is made of beside the runtime of every kernel, and where the headers of that are.
PARTS = (
    *(PVH / "xen.c", HERE / "leave.S", HERE / "startinfo.c", HERE / "kexec.c", HERE / "script.c"),
    POSTED / "posted.c",
)
FOLDERS = (HERE, POSTED)


def script_kernel(bits: int = 64, base: int = DEFAULT_BASE, *, for_debugger: bool = False) -> bytes:
    """The kernel's ELF file, for 32 or 64 bits, linked to lie at `base`.

    A debugger gets lines and variables, and code that has them.
    """
    return build_c_kernel("script", PARTS, bits, base, folders=FOLDERS, for_debugger=for_debugger)
