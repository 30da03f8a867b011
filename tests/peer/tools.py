"""Where Debian's Xenstore tools are, and the programs of ours that gcc makes from C.

Debian keeps the daemons and `xenstore-control` in a folder with Xen's version in its name. What
lies on the PATH under these names is a wrapper that refuses to work without a hypervisor.

**Invariants.** Nothing here needs a hypervisor or changes the machine: programs are built into the
directory the caller names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIRE_VARIABLE = "XENLIVE_REQUIRE_PEERS"
INSTALL_HINT = "apt-get install xen-utils-4.17 xenstore-utils libxen-dev gcc"

CLIENT_TOOLS = ("ls", "read", "write", "rm", "list", "chmod", "exists", "watch")


def versioned_bin() -> Path | None:
    """The folder with Debian's `xenstored`, newest Xen first; None if there is none."""
    folders = sorted(Path("/usr/lib").glob("xen-[0-9]*/bin"), key=_version, reverse=True)
    return next((folder for folder in folders if (folder / "xenstored").exists()), None)


def xenstore_control() -> Path:
    """The `xenstore-control` that works without a hypervisor. FileNotFoundError if missing."""
    return _versioned("xenstore-control")


def c_xenstored() -> Path:
    """Debian's C daemon. FileNotFoundError if missing."""
    return _versioned("xenstored")


def ocaml_xenstored() -> Path:
    """Debian's OCaml daemon. FileNotFoundError if missing."""
    return _versioned("oxenstored")


def client_tool(name: str) -> Path:
    """Debian's `xenstore-NAME`, such as `ls`. FileNotFoundError if missing."""
    found = shutil.which(f"xenstore-{name}")
    if found is None:
        raise FileNotFoundError(f"xenstore-{name}")
    return Path(found)


def missing_peers() -> list[str]:
    """What a peer test needs and this machine does not have; empty if all is there."""
    missing = [tool for tool in ("gcc",) if shutil.which(tool) is None]
    missing += [f"xenstore-{n}" for n in CLIENT_TOOLS if shutil.which(f"xenstore-{n}") is None]
    folder = versioned_bin()
    if folder is None:
        missing.append("xenstored")
    else:
        missing += [n for n in ("xenstore-control", "oxenstored") if not (folder / n).exists()]
    if not Path("/usr/include/xenctrl.h").exists():
        missing.append("xenctrl.h")
    return missing


def peers_required() -> bool:
    """Whether missing peers are an error (as in CI) and not a reason to skip."""
    return os.environ.get(REQUIRE_VARIABLE, "") not in ("", "0")


def build_shim(folder: Path) -> Path:
    """Builds the library that stands in for the hypervisor; CalledProcessError with gcc's words."""
    target = folder / "shim.so"
    if not target.exists():
        _gcc(target, "-shared", "-fPIC", "-w", str(HERE / "shim.c"), "-ldl")
    return target


def build_xsbench(folder: Path) -> Path:
    """Builds the load client; CalledProcessError with gcc's words."""
    target = folder / "xsbench"
    if not target.exists():
        _gcc(target, str(HERE / "xsbench.c"))
    return target


def _gcc(target: Path, *arguments: str) -> None:
    """Compiles beside the target and renames, so that two test processes may do it at once."""
    part = target.with_name(f"{target.name}.{os.getpid()}")
    subprocess.run(["gcc", "-O2", "-o", str(part), *arguments], check=True)
    part.rename(target)


def _versioned(name: str) -> Path:
    folder = versioned_bin()
    if folder is None or not (folder / name).exists():
        raise FileNotFoundError(f"{name}: {INSTALL_HINT}")
    return folder / name


def _version(folder: Path) -> tuple[int, ...]:
    digits = folder.parent.name.removeprefix("xen-").split(".")
    return tuple(int(part) if part.isdigit() else 0 for part in digits)
