"""The memory of a domain that runs, as a file.

    run directory    its `ram` is a link to /proc/PID/fd/N of the host process
    /proc/PID        its descriptors
    /proc/PID/fd     the memfd among them that is the domain's RAM

**Invariants.** Nothing is opened or asked here but the names of links.
"""

from __future__ import annotations

import os
from pathlib import Path

from xenlive.errors import ImageError

RAM_NAME = "ram"  # in a run directory: a link to the memory of the running domain

_MEMFD_PREFIX = "/memfd:"
_MEMFD_RAM = f"{_MEMFD_PREFIX}{RAM_NAME} (deleted)"


def memory_file(folder: Path) -> Path:
    """The file in `folder` that is a domain's memory: its `ram`, or a memfd among descriptors.

    A path that is not there if it is neither; ImageError (`no-memory`) if no descriptor fits.
    """
    descriptors = _descriptors(folder)
    if descriptors is None:
        return folder / RAM_NAME
    best: tuple[bool, int, Path] | None = None
    for path in descriptors:
        try:
            name = os.readlink(path)
            size = path.stat().st_size
        except OSError:
            continue  # closed meanwhile
        if name.startswith(_MEMFD_PREFIX) and (
            best is None or (name == _MEMFD_RAM, size) > best[:2]
        ):
            best = (name == _MEMFD_RAM, size, path)
    if best is None:
        raise ImageError("no-memory", f"{folder} has no descriptor of a domain's memory")
    return best[2]


def _descriptors(folder: Path) -> list[Path] | None:
    """The links in a process' `fd` directory; None if `folder` is something else."""
    folder = folder.resolve()
    if folder.name.isdigit() and folder.parent == Path("/proc"):
        folder /= "fd"
    if folder.name != "fd" or folder.parts[:2] != ("/", "proc"):
        return None
    return sorted((path for path in folder.iterdir() if path.name.isdigit()), key=_number)


def _number(path: Path) -> int:
    return int(path.name)
