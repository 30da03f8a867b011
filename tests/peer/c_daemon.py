"""Debian's own Xenstore daemons, running without Xen: the measure that ours is held against.

    with CDaemon(tmp_path) as daemon:
        subprocess.run([client_tool("ls")], env=daemon.environment)

`shim.c` is preloaded into the daemon and stands in for the hypervisor; its head comment says which
files in `rundir` are what. The socket is `rundir/socket`.

**Invariants.** When `start` returns, the socket accepts. A daemon never outlives the test: it is
killed by `stop`, and by the system should the test process die first. The preloaded library
reaches the daemon only, not what the test runs.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from peer.tools import build_shim, c_xenstored, ocaml_xenstored

PAGE_SIZE = 4096
DOM0_PORT = "7"


class CDaemon:
    """Debian's C daemon in `rundir` (made if missing), listening on `socket_path`."""

    def __init__(self, rundir: Path, *, shim_folder: Path | None = None) -> None:
        self.rundir = rundir
        self.socket_path = rundir / "socket"
        self.log_path = rundir / "daemon.log"
        self._shim_folder = shim_folder or rundir
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id; it stays the same over the daemon's own live update."""
        if self._process is None:
            raise RuntimeError("the daemon is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def environment(self) -> Mapping[str, str]:
        """What a client's process needs in its environment to find this daemon."""
        found = {**os.environ, "XENSTORED_PATH": str(self.socket_path)}
        found["XENSTORED_RUNDIR"] = str(self.socket_path.parent)
        return found

    def start(self, timeout_s: float = 10.0, prefix: tuple[str, ...] = ()) -> None:
        """Starts the daemon, behind `prefix` (such as taskset), and waits until it accepts.

        RuntimeError with the daemon's own words if it ends, TimeoutError if it never accepts.
        """
        self.rundir.mkdir(parents=True, exist_ok=True)
        self._shim_folder.mkdir(parents=True, exist_ok=True)
        shim = build_shim(self._shim_folder)
        (self.rundir / "xsd_port").write_text(DOM0_PORT)
        (self.rundir / "xsd_kva").write_bytes(bytes(PAGE_SIZE))
        environment = {
            **self.environment,
            "XS_SHIM_DIR": str(self.rundir),
            "XENSTORED_RUNDIR": str(self.rundir),
            "LD_PRELOAD": str(shim),
        }
        command = [*prefix, *_die_with_parent(), *self._command()]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_until_it_accepts(timeout_s)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the daemon and waits for its end; nothing to do if it has ended already."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        self.socket_path.unlink(missing_ok=True)

    def add_domain(self, domid: int) -> None:
        """Makes the hypervisor's stand-in say that this domain exists."""
        (self.rundir / f"dom.{domid}").touch()

    def log(self) -> str:
        """What the daemon has said so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def __enter__(self) -> CDaemon:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _command(self) -> list[str]:
        return [str(c_xenstored()), "-N", "-F", str(self.rundir / "pid")]

    def _wait_until_it_accepts(self, timeout_s: float) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + timeout_s
        while not accepts(self.socket_path):
            if self._process.poll() is not None:
                raise RuntimeError(f"the daemon ended: {self.log().strip() or 'without a word'}")
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"no daemon on {self.socket_path} after {timeout_s} s")
            time.sleep(0.01)


class OCamlDaemon(CDaemon):
    """Debian's OCaml daemon."""

    def _command(self) -> list[str]:
        config = self.rundir / "oxenstored.conf"
        config.write_text(
            f"pid-file = {self.rundir}/pid\n"
            "conflict-burst-limit = 1000000.0\n"  # nobody is held back for a conflict
            "merge-activate = true\nperms-activate = true\nquota-activate = true\n"
            "persistent = false\n"
            f"xenstored-kva = {self.rundir}/xsd_kva\nxenstored-port = {self.rundir}/xsd_port\n"
        )
        return [str(ocaml_xenstored()), "--no-fork", "--config-file", str(config)]


def accepts(path: Path) -> bool:
    """Whether a server accepts connections on `path` right now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _die_with_parent() -> list[str]:
    """A prefix that has the system kill the daemon should this process die without `stop`."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []
