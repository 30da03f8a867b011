"""Builds the kernel that does what its command line says (`script.c`), for 32 and 64 bits.

Its runtime is `../pvh`, its module code the witness of `../../kexec/posted`. Nothing of a C library
is used: `../pvh/libc` has the few headers. What was built is kept in a folder of the system's
temporary ones, under a name made of all that went into it.
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
POSTED = HERE.parent.parent / "kexec" / "posted"
LINK_SCRIPT = PVH / "kernel.ld"

SOURCES = (
    *(PVH / "entry.S", PVH / "traps.S", PVH / "runtime.c", PVH / "xen.c"),
    *(HERE / "leave.S", HERE / "startinfo.c", HERE / "kexec.c", HERE / "script.c"),
    POSTED / "posted.c",
)
_FOLDERS = (PVH, PVH / "libc", HERE, POSTED)
FLAGS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdinc"),
    *("-fno-pic", "-fno-stack-protector", "-fcf-protection=none", "-mno-red-zone"),
    *("-mgeneral-regs-only", "-fno-asynchronous-unwind-tables"),
    *(f"-I{folder}" for folder in _FOLDERS),
)
_LINK = ("-z", "max-page-size=4096", "-z", "noexecstack", "--build-id=none")
_FOR_DEBUGGERS = ("-g", "-Og")
_EMULATION = {32: "elf_i386", 64: "elf_x86_64"}

DEFAULT_BASE = 0x100000


@cache
def script_kernel(bits: int = 64, base: int = DEFAULT_BASE, *, for_debugger: bool = False) -> bytes:
    """The kernel's ELF file, for 32 or 64 bits, linked to lie at `base`.

    A debugger gets lines and variables, and code that has them.
    """
    require_tools()
    kernel = _folder() / f"script-{bits}-{base:x}{'-g' if for_debugger else ''}.elf"
    if not kernel.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as scratch:
            made = Path(scratch) / "kernel.elf"
            where = ["-m", _EMULATION[bits], f"--defsym=BASE={base:#x}", "-T", str(LINK_SCRIPT)]
            strip = () if for_debugger else ("--strip-debug",)
            _run("ld", *where, *_LINK, *strip, "-o", str(made), *_objects(bits, for_debugger))
            os.replace(made, kernel)
    return kernel.read_bytes()


@cache
def _objects(bits: int, for_debugger: bool = False) -> list[str]:
    more, suffix = (_FOR_DEBUGGERS, "-g") if for_debugger else ((), "")
    objects = [_folder() / f"{source.stem}-{bits}{suffix}.o" for source in SOURCES]
    for source, built in zip(SOURCES, objects, strict=True):
        if not built.exists():
            made = built.with_suffix(f".{os.getpid()}")
            include = ("-isystem", _output("gcc", "-print-file-name=include"))
            _run("gcc", f"-m{bits}", *FLAGS, *more, *include, "-c", str(source), "-o", str(made))
            os.replace(made, built)
    return [str(built) for built in objects]


@cache
def _folder() -> Path:
    digest = hashlib.sha256(f"{_output('gcc', '--version')}{FLAGS}{_LINK}".encode())
    for folder in _FOLDERS:
        for file in sorted([*folder.glob("*.[chS]"), *folder.glob("*.ld")]):
            digest.update(f"{file.name}\0".encode() + file.read_bytes())
    home = Path(tempfile.gettempdir()) / f"xenlive-kernels-{os.getuid()}"
    folder = home / digest.hexdigest()[:24]
    home.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(exist_ok=True)
    return folder


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, f"{' '.join(command)}\n{done.stderr}"
