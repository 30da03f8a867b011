"""Builds the kernel that does what a script says (`probe.c`), for 32 and 64 bits."""

from __future__ import annotations

from pathlib import Path

from kernels.c_kernels import build_c_kernel

HERE = Path(__file__).parent
PARTS = (HERE / "probe.S", HERE / "probe.c")


def probe_kernel(bits: int) -> bytes:
    """The kernel's ELF file, for 32 or 64 bits."""
    return build_c_kernel("probe", PARTS, bits)
