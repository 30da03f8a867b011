"""Where a running domain keeps its sockets, and where clients look for a Xenstore.

    RUNDIR/socket     Xenstore's socket, for clients

A run directory of ours is `--rundir`, else `$XENLIVE_RUNDIR`, else `xenlive` below the user's own
runtime directory, else a directory of the user's in /tmp. Any other Xenstore is found the way
libxenstore finds it: `$XENSTORED_PATH`, else `$XENSTORED_RUNDIR/socket`.

**Invariants.** Nothing here makes or opens a file; the environment is read at the call.
"""

from __future__ import annotations

import os
from pathlib import Path

SOCKET_NAME = "socket"


def default_rundir() -> Path:
    """The run directory when none is named."""
    named = os.environ.get("XENLIVE_RUNDIR")
    if named:
        return Path(named)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "xenlive"
    return Path(f"/tmp/xenlive-{os.getuid()}")


def socket_in(rundir: Path) -> Path:
    """Xenstore's socket in a run directory."""
    return rundir / SOCKET_NAME


def default_socket() -> Path:
    """The Xenstore socket when neither a path nor a run directory is named."""
    path = os.environ.get("XENSTORED_PATH")
    if path:
        return Path(path)
    rundir = os.environ.get("XENSTORED_RUNDIR")
    if rundir:
        return socket_in(Path(rundir))
    return socket_in(default_rundir())
