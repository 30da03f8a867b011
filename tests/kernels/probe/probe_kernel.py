"""Builds the kernel that does what a script says (`probe.c`), for 32 and 64 bits.

Its way in, its traps and its text are `../pvh`'s. What was built is kept in a folder of the
system's temporary ones, under a name made of all that went into it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from kernels.building import require_tools

HERE = Path(__file__).parent
PVH = HERE.parent / "pvh"
_SOURCES = (PVH / "entry.S", PVH / "traps.S", PVH / "runtime.c", HERE / "probe.S", HERE / "probe.c")
_HEADERS = (PVH / "runtime.h", PVH / "xen.h", PVH / "kernel.ld", *(PVH / "libc").glob("*.h"))
_FLAGS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdinc"),
    *("-fno-pic", "-fno-stack-protector", "-fcf-protection=none", "-mno-red-zone"),
    *("-mgeneral-regs-only", "-fno-asynchronous-unwind-tables"),
    *(f"-I{folder}" for folder in (PVH, PVH / "libc")),
)
_LINK = ("-z", "max-page-size=4096", "-z", "noexecstack", "--build-id=none", "--strip-debug")
_EMULATION = {32: "elf_i386", 64: "elf_x86_64"}
_BASE = 0x100000


@cache
def probe_kernel(bits: int) -> bytes:
    """The kernel's ELF file, for 32 or 64 bits."""
    require_tools()
    kernel = _folder() / f"probe-{bits}.elf"
    if not kernel.exists():
        with tempfile.TemporaryDirectory(dir=kernel.parent) as scratch:
            made = Path(scratch) / "kernel.elf"
            _link(bits, Path(scratch), made)
            os.replace(made, kernel)
    return kernel.read_bytes()


def _link(bits: int, scratch: Path, made: Path) -> None:
    include = ("-isystem", _output("gcc", "-print-file-name=include"))
    objects = []
    for source in _SOURCES:
        objects.append(str(scratch / f"{source.stem}{source.suffix[1:]}.o"))
        _output("gcc", f"-m{bits}", *_FLAGS, *include, "-c", str(source), "-o", objects[-1])
    where = ("-m", _EMULATION[bits], f"--defsym=BASE={_BASE:#x}", "-T", str(PVH / "kernel.ld"))
    _output("ld", *where, *_LINK, "-o", str(made), *objects)


@cache
def _folder() -> Path:
    digest = hashlib.sha256(f"{_output('gcc', '--version')}{_FLAGS}{_LINK}".encode())
    for file in sorted([*_SOURCES, *_HEADERS]):
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    home = Path(tempfile.gettempdir()) / f"xenlive-kernels-{os.getuid()}"
    folder = home / digest.hexdigest()[:24]
    home.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(exist_ok=True)
    return folder


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout.strip()
