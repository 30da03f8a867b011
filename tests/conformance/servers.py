"""The servers that the same tests run against: Debian's C daemon, and ours.

**Invariants.** A server is ready when `start` returns and gone when `stop` returns. Nothing but
its socket and its environment reaches a test, so that a test can't tell whom it talks to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from peer.c_daemon import CDaemon
from peer.tools import c_xenstored

from xenlive.client import Xenstore
from xenlive.errors import XenliveError
from xenlive.machine.hosted.image import installed_image

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0


class Server(Protocol):
    """A Xenstore server under test."""

    socket_path: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """What a client's process needs in its environment to find this server."""

    @property
    def image(self) -> str:
        """A program that live update can be given: the server's own."""

    def start(self) -> None:
        """Starts the server and waits until it accepts."""

    def stop(self) -> None:
        """Ends the server."""


class CServer(CDaemon):
    """Debian's C daemon."""

    @property
    def image(self) -> str:
        """The daemon's program."""
        return str(c_xenstored())


class XenliveServer:
    """`xenlive up`, as a user would run it."""

    def __init__(self, rundir: Path, image: Path | None = None) -> None:
        self.rundir = rundir
        self._boots = [str(image)] if image is not None else []
        self.socket_path = rundir / "socket"
        self.log_path = rundir.with_name(f"{rundir.name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        """What a client's process needs in its environment to find this server."""
        found = {**os.environ, "XENSTORED_PATH": str(self.socket_path)}
        found["XENSTORED_RUNDIR"] = str(self.rundir)
        return found

    @property
    def image(self) -> str:
        """What it was started with, or the installed xenlive."""
        return self._boots[0] if self._boots else installed_image()

    @property
    def pid(self) -> int:
        """The host process."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def start(self, prefix: tuple[str, ...] = ()) -> None:
        """Starts `xenlive up`, behind `prefix`, and waits until it accepts.

        RuntimeError with its words if it does not.
        """
        with self.log_path.open("wb") as log:
            command = [sys.executable, "-m", "xenlive", "up", "--rundir", str(self.rundir)]
            self._process = subprocess.Popen(
                [*prefix, *command, *self._boots],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not answers(self.socket_path):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self._kill()
                raise RuntimeError(f"xenlive up: {self.log_path.read_text(errors='replace')}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends it with SIGTERM. RuntimeError with its words if it does not end well."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
        self._kill()
        if code not in (0, 130, 128 + signal.SIGTERM, -signal.SIGTERM):
            said = self.log_path.read_text(errors="replace")
            raise RuntimeError(f"xenlive up ended with {code}: {said}")

    def _kill(self) -> None:
        """Ends whatever is left of the process group that `start` made."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(path: Path) -> bool:
    """Whether a Xenstore answers on `path`, not only accepts."""
    try:
        with Xenstore.connect(path, timeout_s=START_TIMEOUT_S) as store:
            store.directory("/")
    except XenliveError:
        return False
    return True
