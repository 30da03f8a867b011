"""The vectors of a real Mini-OS (see README.md), by file name and in order of each run."""

from __future__ import annotations

import functools
import gzip
import json
import tarfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PAGE_SIZE = 4096


@functools.cache
def files() -> dict[str, bytes]:
    """Name and bytes of every file of the archive."""
    found = {}
    with tarfile.open(FOLDER / "minios.tar.gz") as archive:
        for member in archive.getmembers():
            reader = archive.extractfile(member)
            if reader is not None:
                found[member.name] = reader.read()
    return found


@functools.cache
def index() -> list[dict[str, Any]]:
    """`index.json`: one object a file, in order of each run."""
    entries: list[dict[str, Any]] = json.loads(files()["index.json"])
    return entries


def entries(kind: str) -> list[dict[str, Any]]:
    """The index entries of `kind`: `module` or `start_info`."""
    return [entry for entry in index() if entry["kind"] == kind]


def entry(run: str, event: str, kind: str) -> dict[str, Any]:
    """The one index entry of a run's event."""
    (found,) = [e for e in entries(kind) if e["run"] == run and e["event"] == event]
    return found


def module_image(run: str, event: str) -> bytes:
    """The bytes of a module at an event such as `boot0-prekexec`."""
    return files()[entry(run, event, "module")["file"]]


def host_image(name: str) -> bytes:
    """The bytes of `stubdom18` or `empty4`."""
    return gzip.decompress((FOLDER / f"{name}.bin.gz").read_bytes())
