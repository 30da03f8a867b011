"""The memory of a domain that runs, as a file.

    run directory    its `ram` is a link to /proc/PID/fd/N of the host process
    /proc/PID        its descriptors
    /proc/PID/fd     the memfd among them that is named as the RAM, else the largest

**Invariants.** Nothing is opened or asked here but the names of links.
"""

from __future__ import annotations

import os
from pathlib import Path

from xenlive.errors import ImageError

RAM_NAME = "ram"  # in a run directory: a link to the memory of the running domain

_MEMFD = "/memfd:"
_OUR_MEMFD = "/memfd:xenlive-ram-"


def memory_file(folder: Path) -> Path:
    """The file in `folder` that is a domain's memory: its `ram`, or a memfd among descriptors.

    A path that is not there if it is neither; ImageError (`no-memory`) if no descriptor fits.
    """
    descriptors = _descriptors(folder)
    if descriptors is None:
        return folder / RAM_NAME
    best = (False, -1)
    found = None
    for path in descriptors:
        try:
            name = os.readlink(path)
            rank = (name.startswith(_OUR_MEMFD), path.stat().st_size)
        except OSError:
            continue  # closed meanwhile
        if name.startswith(_MEMFD) and rank > best:
            best, found = rank, path
    if found is None:
        raise ImageError("no-memory", f"{folder} has no descriptor of a domain's memory")
    return found


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
