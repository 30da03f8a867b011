"""Builds the kernel with a 9pfs device and a Xenstore client: `../handover`'s with more words.

What was built is kept as `script_kernel` keeps its own.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

from kernels.building import require_tools
from kernels.handover import script_kernel as script

HERE = Path(__file__).parent
PAIR = HERE.parent / "pair"
SOURCES = (HERE / "devices.c", HERE / "requests.c", HERE / "ninepfront.c", PAIR / "store.c")


@cache
def device_kernel(bits: int = 64, base: int = script.DEFAULT_BASE) -> bytes:
    """The kernel's ELF file, for 32 or 64 bits, linked to lie at `base`."""
    require_tools()
    parts = sorted([*HERE.glob("*.[ch]"), PAIR / "store.c", PAIR / "store.h"])
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in parts)).hexdigest()
    folder = script._folder() / f"devices-{digest[:16]}"
    folder.mkdir(exist_ok=True)
    kernel = folder / f"devices-{bits}-{base:x}.elf"
    if not kernel.exists():
        made = kernel.with_suffix(f".{os.getpid()}")
        where = ["-m", script._EMULATION[bits], f"--defsym=BASE={base:#x}"]
        objects = [*script._objects(bits), *(_object(folder, s, bits) for s in SOURCES)]
        link = ["-T", str(script.LINK_SCRIPT), *script._LINK]
        script._run("ld", *where, *link, "-o", str(made), *objects)
        os.replace(made, kernel)
    return kernel.read_bytes()


def _object(folder: Path, source: Path, bits: int) -> str:
    built = folder / f"{source.stem}-{bits}.o"
    made = built.with_suffix(f".{os.getpid()}")
    include = ("-isystem", script._output("gcc", "-print-file-name=include"), f"-I{HERE}")
    script._run("gcc", f"-m{bits}", *script.FLAGS, *include, "-c", str(source), "-o", str(made))
    os.replace(made, built)
    return str(built)
