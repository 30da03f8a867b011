"""Builds the C kernels of the tests for whoever wants to boot them: `make kernels`.

Each does what its command line says; the comment at the head of its C file has the words. Where
Debian's cloud kernel and a static busybox are (`.ci/run` fetches both), Linux is beside them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kernels.asker.asker_kernel import asker_kernel
from kernels.building import have_tools
from kernels.debian import packages
from kernels.debian.initrd import build_initrd
from kernels.devices.device_kernel import device_kernel
from kernels.handover.script_kernel import script_kernel
from kernels.pair.pair_kernel import pair_kernel

KERNELS = {
    "script": script_kernel,
    "pair": pair_kernel,
    "device": device_kernel,
    "asker": asker_kernel,
}


def main(folder: Path) -> int:
    """Writes `NAME-BITS.elf` for each kernel, for 64 and 32 bits; one of them for GDB, too."""
    if not have_tools():
        sys.stderr.write("the kernels are built by gcc and ld: install them (Debian: gcc)\n")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in KERNELS.items():
        for bits in (64, 32):
            _write(folder / f"{name}-{bits}.elf", build(bits))
    for bits in (64, 32):
        _write(folder / f"script-{bits}-debug.elf", script_kernel(bits, for_debugger=True))
    busybox = packages.busybox()
    if packages.linux_image() is not None and busybox is not None:
        _write(folder / "vmlinux", packages.linux_elf())
        _write(folder / "initrd", build_initrd(busybox))
    return 0


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
