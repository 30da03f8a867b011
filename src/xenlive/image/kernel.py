"""The Xenstore stub domain's kernel on the hosted machine: entered, boots, serves, hands over.

This is what an image runs (`machine/hosted/image.py`). `main` gets the process's arguments, boots
(`boot.py`), commits to having taken over, and then serves clients (`serve.py`) until it is
replaced by the next kernel or the host goes away.

Everything imported here is waited for by every client of every update: nothing heavy, see
ARCHITECTURE.md.
"""

from __future__ import annotations

import gc
import os
import time

ENTERED_NS = time.monotonic_ns()  # before the imports: they are part of the boot

from xenlive import __version__  # noqa: E402
from xenlive.abi.xs_state import XS_STATE_READ_VERSIONS  # noqa: E402
from xenlive.errors import BootError, XenliveError  # noqa: E402
from xenlive.machine.hosted.guest import HostedGuest  # noqa: E402
from xenlive.machine.hosted.image import (  # noqa: E402
    PREFLIGHT,
    commit_entry,
    drop_fallback_code,
    handed_code,
    running_code,
)
from xenlive.memory.address import PhysAddr  # noqa: E402
from xenlive.stubdom.boot import DEFAULT_CONFIG, STATE_FILE, StubDomain, boot  # noqa: E402
from xenlive.stubdom.logfile import LogFiles  # noqa: E402
from xenlive.stubdom.module import fit_module  # noqa: E402
from xenlive.stubdom.rings import RingLinks  # noqa: E402
from xenlive.stubdom.serve import ServeLoop  # noqa: E402
from xenlive.update.verb import LiveUpdateVerb  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.requests import Request

#: Seconds after an update at which the state file is removed, out of the clients' way.
TIDY_AFTER_S = 0.1

#: Seconds after its start at which a first kernel keeps its code, out of its first clients' way.
KEEP_CODE_AFTER_S = 1.0


def main(argv: Sequence[str]) -> None:
    """Runs a kernel; `argv` is image, channel, start info address, reason (or `--preflight`)."""
    if argv[1] == PREFLIGHT:
        print(_describe())
        return
    gc.disable()
    machine = HostedGuest(int(argv[1]))
    machine.milestone("entry", ENTERED_NS)
    try:
        domain = boot(machine, PhysAddr(int(argv[2], 16)), _image_config(argv[0]))
        kernel = Kernel(machine, domain, image=argv[0], came_back_because=argv[3])
    except XenliveError as error:
        if not isinstance(error, BootError):
            error = BootError("boot", str(error))
        machine.console(f"boot of {__version__} stopped: {error}")
        raise SystemExit(f"xenlive {__version__}: boot stopped: {error}") from None
    kernel.run()


def _describe() -> str:
    streams = ",".join(str(version) for version in XS_STATE_READ_VERSIONS)
    return f"xenlive-kernel version={__version__} streams={streams}"


def _image_config(image: str) -> str:
    """The Mini-OS configuration that a folder image brings as `minios.cfg`, or the default."""
    try:
        with open(os.path.join(image, "minios.cfg"), encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return DEFAULT_CONFIG


class Kernel:
    """A booted kernel with its serve loop; `run` returns when the host is gone."""

    __slots__ = (
        "_unfitted",
        "_untidy",
        "domain",
        "listen_fd",
        "log_files",
        "loop",
        "machine",
        "verb",
    )

    def __init__(
        self, machine: HostedGuest, domain: StubDomain, image: str, came_back_because: str
    ) -> None:
        self.machine = machine
        self.domain = domain
        self.loop = ServeLoop(domain.server)
        loaded = domain.loaded
        listen_fd = machine.listener() if loaded is None else loaded.listen_fd
        self.loop.listen(listen_fd)
        if loaded is not None:
            for connection, fd in loaded.connections:
                self.loop.adopt(connection, fd)
        rings = RingLinks(machine, self.loop, domain.server)
        if loaded is not None:
            rings.restore_all(loaded.rings)
        self.loop.watch_fd(machine.channel_fd, self._host_gone)
        self.listen_fd = listen_fd
        self.verb = LiveUpdateVerb(domain, self.loop, image, __version__, listen_fd)
        self.verb.register()
        self.verb.before_freeze = self._settle_in
        self._untidy = domain.is_update
        self._unfitted = True
        domain.server.control[b"xenlive-status"] = self._status
        domain.server.on_print = self._print
        self.log_files = LogFiles(domain, self.loop, (STATE_FILE,))
        if came_back_because:
            self.verb.undo_after_fallback(came_back_because)

    def run(self) -> None:
        """Takes over, then serves until the host is gone."""
        gc.freeze()
        commit_entry()
        # Only now: until the commit the old kernel could come back on these descriptors.
        fds = [fd for _, fd in self.loop.connections()]
        if self.domain.copy is not None:
            fds.append(self.domain.copy)
        self.machine.close_on_kexec([self.listen_fd, *handed_code(), *fds])
        self.machine.milestone(f"running {__version__}")
        log = self.domain.server.log
        log.flusher = self.log_files.write_all
        log.start(self.log_files.open)
        self.domain.server.follow_log()
        if self.domain.is_update:
            self.loop.on_first_reply = self._first_reply
        else:
            self.loop.call_at(time.monotonic() + KEEP_CODE_AFTER_S, self._keep_code)
            self.loop.call_at(time.monotonic() + KEEP_CODE_AFTER_S, self._settle_in)
        self.loop.run()
        self.verb.close()

    def _print(self, text: bytes) -> None:
        self.machine.console(text.decode("utf-8", "replace"))

    def _first_reply(self) -> None:
        self.machine.milestone("first-reply")
        self.loop.call_at(time.monotonic() + TIDY_AFTER_S, self._settle_in)

    def _keep_code(self) -> None:
        """Files may change while a kernel runs; what would come back is this one."""
        try:
            running_code()
        except OSError as error:
            self.machine.console(f"the running code is not kept, only its files: {error}")

    def _settle_in(self) -> None:
        """Work that no client needs to wait for, done before the next update at the latest.

        It is after the commit: who could come back has a start info with the module's old size.
        """
        self.log_files.write_all()
        self._tidy()
        if self._unfitted:
            self._unfitted = False
            fit_module(self.domain)

    def _tidy(self) -> None:
        """What an update leaves behind, and no client needs to wait for; the next one must not."""
        if not self._untidy:
            return
        self._untidy = False
        drop_fallback_code()
        if self.domain.copy is not None:
            self.machine.drop_copy(self.domain.copy)
        front = self.domain.front
        if front is not None:
            try:
                front.remove(STATE_FILE)
            except XenliveError as error:
                self.machine.console(f"{STATE_FILE} was not removed: {error}")

    def _status(self, connection: Connection, request: Request, args: list[bytes]) -> bytes:
        """What `xenlive status` asks: counts of the store, as `name=value` words."""
        server = self.domain.server
        counts = {
            "nodes": server.node_count,
            "watches": server.watch_count,
            "clients": len(server.connections),
            "transactions": len(server.open_transactions()),
        }
        return " ".join([f"{name}={value}" for name, value in counts.items()]).encode() + b"\0"

    def _host_gone(self) -> None:
        self.loop.stop()
