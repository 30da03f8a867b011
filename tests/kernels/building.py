"""Builds small PVH kernels from assembly and C, with the gcc and ld of the host.

A kernel is assembly, perhaps C, and a linker script that puts its note where loaders look for it.
What was built is kept in a folder of the system's temporary ones, under a name made of all that
went into it, so that each source is built once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMMON = HERE / "common.S"
LINK_SCRIPT = HERE / "kernel.ld"
FLAGS = (
    *("-ffreestanding", "-fno-pic", "-fno-pie", "-fno-stack-protector", "-fcf-protection=none"),
    *("-fno-asynchronous-unwind-tables", "-nostdlib", "-mno-red-zone", "-mgeneral-regs-only"),
    *("-O2", "-Wall", "-Wextra", "-Werror", f"-I{HERE}"),
)


def have_tools() -> bool:
    """Whether kernels can be built here; a test that needs one is skipped if not."""
    return all(shutil.which(tool) for tool in ("gcc", "ld"))


def require_tools() -> None:
    """Skips a test where no kernel can be built, unless the tools are demanded."""
    if not have_tools() and not os.environ.get("XENLIVE_REQUIRE_PEERS"):
        pytest.skip("gcc and ld are not there")


@cache
def compiler() -> str:
    """Which gcc it is: another one makes another kernel."""
    return run_tool("gcc", "--version").partition("\n")[0]


@cache
def kept_folder() -> Path:
    """Where what was built is kept."""
    folder = Path(tempfile.gettempdir()) / f"xenlive-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def build_kernel(
    assembly: str, *, c_source: str = "", defines: tuple[str, ...] = (), base: int = 0x100000
) -> Path:
    """An ELF with a PVH note, from assembly after `common.S`, and C for 64-bit code.

    `defines` are words such as "X=1"; `base` is where its first segment is loaded.
    """
    require_tools()
    parts = (
        *(compiler(), COMMON.read_text(), LINK_SCRIPT.read_text(), assembly, c_source),
        *(repr(defines), hex(base), repr(FLAGS)),
    )
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    kernel = kept_folder() / f"{name}.elf"
    if not kernel.exists():
        with tempfile.TemporaryDirectory(dir=kept_folder()) as folder:
            _build(Path(folder), kernel, assembly, c_source, defines, base)
    return kernel


def _build(
    folder: Path, kernel: Path, assembly: str, c_source: str, defines: tuple[str, ...], base: int
) -> None:
    (folder / "kernel.S").write_text(f'#include "common.S"\n{assembly}\n')
    objects = ["kernel.o"]
    sources = ["kernel.S"]
    if c_source:
        (folder / "kernel.c").write_text(c_source)
        objects.append("kernel-c.o")
        sources.append("kernel.c")
    for source, result in zip(sources, objects, strict=True):
        words = [f"-D{define}" for define in defines]
        run_tool("gcc", *FLAGS, *words, "-m64", "-c", source, "-o", result, folder=folder)
    script = LINK_SCRIPT.read_text().replace("KERNEL_BASE", hex(base))
    (folder / "kernel.ld").write_text(script)
    run_tool(
        "ld", "-m", "elf_x86_64", "-T", "kernel.ld", "-o", "kernel.elf", *objects, folder=folder
    )
    os.replace(folder / "kernel.elf", kernel)


def run_tool(*command: str, folder: Path | None = None) -> str:
    """Runs a tool, in `folder` if given, and gives what it wrote; a test fails with it."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert not done.returncode, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout
