"""What tests of the hosted machine share: a running host, its commands, images that misbehave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conformance.servers import XenliveServer


def xenlive(*words: str | Path, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a command of ours to its end."""
    return subprocess.run(
        [sys.executable, "-m", "xenlive", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def status(server: XenliveServer) -> dict[str, Any]:
    """`xenlive status --json` of a server."""
    answer = xenlive("status", "--rundir", server.rundir, "--json")
    assert answer.returncode == 0, answer.stderr
    told: dict[str, Any] = json.loads(answer.stdout)
    return told


def update(server: XenliveServer, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """`xenlive update` of a server."""
    return xenlive("update", "--rundir", server.rundir, *words)


def make_image(folder: Path, before: str = "", after: str = "") -> Path:
    """An image that runs this very package, with code `before` and `after` its kernel's import."""
    source = Path(__file__).resolve().parents[2] / "src"
    folder.mkdir()
    (folder / "__main__.py").write_text(
        f"import sys\nsys.path.insert(0, {str(source)!r})\n{before}\n"
        f"from xenlive.image import kernel\n{after}\nkernel.main(sys.argv)\n"
    )
    return folder


def descriptors_of(pid: int) -> set[str]:
    """What the descriptors of a process lead to."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            continue
    return found
