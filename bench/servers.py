"""The servers that are measured, each pinned to a CPU: Debian's C daemon, ours, ours compiled.

**Invariants.** Both are started by the code that the tests start them with. `pids` are the
processes whose CPU time counts as the server's: for ours the domain and its host.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from conformance.servers import CServer, XenliveServer
from peer.tools import xenstore_control

C_DAEMON = "C 4.17"
OURS = "xenlive"
COMPILED = "compiled"
CPUCLOCK_SCHED = 2  # of the Linux kernel: what the scheduler counted, in nanoseconds


class CSubject:
    """Debian's C daemon."""

    name = C_DAEMON

    def __init__(self, folder: Path, build_folder: Path) -> None:
        self.server = CServer(folder / "c", shim_folder=build_folder)
        self.socket_path = self.server.socket_path

    def start(self, prefix: tuple[str, ...]) -> None:
        """Starts it behind `prefix` and waits until it accepts."""
        self.server.start(prefix=prefix)

    def stop(self) -> None:
        """Ends it."""
        self.server.stop()

    def pids(self) -> list[int]:
        """Its only process."""
        return [self.server.pid]

    def update_command(self) -> list[str]:
        """What updates it to itself."""
        return [str(xenstore_control()), "live-update", self.server.image]

    def environment(self) -> dict[str, str]:
        """The environment in which `update_command` finds it."""
        return dict(self.server.environment)


class XenliveSubject:
    """`xenlive up`, of the installed xenlive or of a compiled image."""

    def __init__(self, folder: Path, image: Path | None = None) -> None:
        self.name = OURS if image is None else COMPILED
        self.server = XenliveServer(folder / self.name, image)
        self.socket_path = self.server.socket_path

    def start(self, prefix: tuple[str, ...]) -> None:
        """Starts it behind `prefix` and waits until it accepts."""
        self.server.start(prefix=prefix)

    def stop(self) -> None:
        """Ends it."""
        self.server.stop()

    def pids(self) -> list[int]:
        """The host process and its children, of which one is the domain."""
        host = self.server.pid
        children = Path(f"/proc/{host}/task/{host}/children").read_text().split()
        return [host, *map(int, children)]

    def update_command(self) -> list[str]:
        """What updates it to itself."""
        update = [sys.executable, "-m", "xenlive", "update", "--rundir", str(self.server.rundir)]
        return [*update, self.server.image]

    def environment(self) -> dict[str, str]:
        """The environment in which `update_command` finds it."""
        return dict(self.server.environment)


Subject = CSubject | XenliveSubject


def cpu_s(pids: list[int]) -> float:
    """CPU time that processes have used so far, user and system, in seconds.

    Read from the processes' own clocks (clock_getcpuclockid(3)): /proc counts in ticks of 10 ms.
    """
    return sum(time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED) for pid in pids)
