"""Builds the kernel of two that share pages and events: `../handover`'s with more words."""

from __future__ import annotations

from pathlib import Path

from kernels.c_kernels import DEFAULT_BASE, build_c_kernel
from kernels.handover import script_kernel as script

HERE = Path(__file__).parent
PARTS = (*script.PARTS, HERE / "pair.c", HERE / "store.c")


def pair_kernel(bits: int = 64, base: int = DEFAULT_BASE) -> bytes:
    """The kernel's ELF file, for 32 or 64 bits, linked to lie at `base`."""
    return build_c_kernel("pair", PARTS, bits, base, folders=script.FOLDERS)
