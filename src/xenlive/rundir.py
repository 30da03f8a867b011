"""Where a running domain keeps its sockets, and where clients look for a Xenstore.

    RUNDIR/socket     Xenstore's socket, for clients, if `up` was not told another place
    RUNDIR/control    the host process's own, which says where
    RUNDIR/domains    where other machines enter their domains

A run directory of ours is `--rundir`, else `$XENLIVE_RUNDIR`, else `xenlive` below the user's own
runtime directory, else a directory of the user's in /tmp. Any other Xenstore is found the way
libxenstore finds it: `$XENSTORED_PATH`, else `$XENSTORED_RUNDIR/socket`.

**Invariants.** Nothing here makes or opens a file; the environment is read at the call.
"""

from __future__ import annotations

import os
from pathlib import Path

SOCKET_NAME = "socket"
CONTROL_NAME = "control"
DOMAINS_NAME = "domains"


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


def control_in(rundir: Path) -> Path:
    """The host process's socket in a run directory of ours."""
    return rundir / CONTROL_NAME


def named_socket() -> Path | None:
    """The Xenstore socket that the environment names, None if it names none."""
    path = os.environ.get("XENSTORED_PATH")
    if path:
        return Path(path)
    rundir = os.environ.get("XENSTORED_RUNDIR")
    return socket_in(Path(rundir)) if rundir else None


def default_socket() -> Path:
    """The Xenstore socket when neither a path nor a run directory is named."""
    return named_socket() or socket_in(default_rundir())
