"""Builds PVH kernels of C files and assembly, with the gcc and ld of the host, for 32 and 64 bits.

Their way in, their traps and their text are `pvh`'s; nothing of a C library is used, `pvh/libc` has
the few headers. What was built is kept in a folder of the system's temporary ones.

**Invariants.** Objects and kernels lie in folders named after all that they were made of, so
what kernels have in common is compiled once, and nothing that is there is ever out of date. A file
comes to its name whole: test runs beside each other may build the same one.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from kernels.building import compiler, kept_folder, require_tools, run_tool

HERE = Path(__file__).parent
PVH = HERE / "pvh"
LINK_SCRIPT = PVH / "kernel.ld"
#: The way in, traps and text, which every kernel needs.
RUNTIME = (PVH / "entry.S", PVH / "traps.S", PVH / "idt.c", PVH / "runtime.c")
DEFAULT_BASE = 0x100000

_FLAGS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdinc"),
    *("-fno-pic", "-fno-stack-protector", "-fcf-protection=none", "-mno-red-zone"),
    *("-mgeneral-regs-only", "-fno-asynchronous-unwind-tables"),
)
_FOR_DEBUGGERS = ("-g", "-Og")
_LINK = ("-z", "max-page-size=4096", "-z", "noexecstack", "--build-id=none")
_EMULATION = {32: "elf_i386", 64: "elf_x86_64"}


@cache
def build_c_kernel(
    name: str,
    sources: tuple[Path, ...],
    bits: int,
    base: int = DEFAULT_BASE,
    *,
    folders: tuple[Path, ...] = (),
    for_debugger: bool = False,
) -> bytes:
    """The ELF file of a kernel made of `RUNTIME` and `sources`, linked to lie at `base`.

    `folders` are those of headers that no source has beside it. A debugger gets lines and
    variables, and code that has them.
    """
    require_tools()
    flags = (*_FLAGS, *(_FOR_DEBUGGERS if for_debugger else ()))
    include = tuple(f"-I{folder}" for folder in (PVH, PVH / "libc", *folders))
    objects = [_compile(source, bits, flags, include) for source in (*RUNTIME, *sources)]
    words = (
        *("-m", _EMULATION[bits], f"--defsym=BASE={base:#x}", *_LINK),
        *(() if for_debugger else ("--strip-debug",)),
    )
    content = "\0".join([LINK_SCRIPT.read_text(), *words, *map(str, objects)])

    def link(made: Path) -> None:
        files = [str(built) for built in objects]
        run_tool("ld", *words, "-T", str(LINK_SCRIPT), "-o", str(made), *files)

    return _kept(f"{name}-{bits}.elf", content.encode(), link).read_bytes()


@cache
def _compile(source: Path, bits: int, flags: tuple[str, ...], include: tuple[str, ...]) -> Path:
    words = "\0".join([compiler(), str(source), str(bits), *flags, *include])

    def compile_it(made: Path) -> None:
        own = ("-isystem", _compilers_headers())
        run_tool("gcc", f"-m{bits}", *flags, *include, *own, "-c", str(source), "-o", str(made))

    content = words.encode() + _headers(include) + source.read_bytes()
    return _kept(f"{source.stem}-{bits}.o", content, compile_it)


@cache
def _headers(include: tuple[str, ...]) -> bytes:
    """What any source may include: all headers of the kernels, and of the folders it looks in."""
    found = {*HERE.rglob("*.h")}
    for word in include:
        found.update(Path(word.removeprefix("-I")).glob("*.h"))
    return b"".join(f"{file}\0".encode() + file.read_bytes() for file in sorted(found))


@cache
def _compilers_headers() -> str:
    return run_tool("gcc", "-print-file-name=include").strip()


def _kept(name: str, content: bytes, make: Callable[[Path], None]) -> Path:
    """The file of that name that `make` makes of this content, made if it is not there.

    The content names its folder, not the file: names of objects get into a kernel's symbols.
    """
    folder = kept_folder() / hashlib.sha256(content).hexdigest()[:24]
    kept = folder / name
    if not kept.exists():
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / name
            make(made)
            os.replace(made, kept)
    return kept
