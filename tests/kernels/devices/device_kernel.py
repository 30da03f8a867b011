"""Builds the kernel with a 9pfs device and a Xenstore client: `../handover`'s with more words."""

from __future__ import annotations

from pathlib import Path

from kernels.c_kernels import DEFAULT_BASE, build_c_kernel
from kernels.handover import script_kernel as script

HERE = Path(__file__).parent
STORE = HERE.parent / "pair" / "store.c"
PARTS = (
    *script.PARTS,
    *(HERE / "devices.c", HERE / "requests.c", HERE / "ninepfront.c", STORE),
)


def device_kernel(bits: int = 64, base: int = DEFAULT_BASE) -> bytes:
    """The kernel's ELF file, for 32 or 64 bits, linked to lie at `base`."""
    return build_c_kernel("device", PARTS, bits, base, folders=script.FOLDERS)
