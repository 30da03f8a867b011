"""The process that forks Xenstore servers for tests: it has loaded all they need.

    test process ── run directory, lifeline, log ──▶ nursery ── fork ──▶ server
                 ◀────────────── b"ready", or why not ─── lifeline ────┘

Starting an interpreter takes longer than most tests; a fork of one that is ready takes a few
milliseconds. Nothing here has threads, so that a fork is a whole copy.

**Invariants.** A server ends when its lifeline does, the nursery when its socket does: none
outlives the test process, however that ends. The nursery itself serves nobody.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys

from xenlive.machine.hosted.neighbours import NeighbourDoor
from xenlive.rundir import DOMAINS_NAME, SOCKET_NAME
from xenlive.stubdom.rings import RingLinks
from xenlive.stubdom.serve import ServeLoop
from xenlive.testing.machine import BareMachine
from xenlive.xenstore.server import XenstoreServer

PACKET_MAX = 4096
BACKLOG = 128
READY = b"ready"


def main() -> None:
    """Forks a server for each packet on descriptor 0, until its other end is closed."""
    requests = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's interrupt is the test's affair
    gc.freeze()
    while True:
        packet, fds, _, _ = socket.recv_fds(requests, PACKET_MAX, 2, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            return
        if os.fork() == 0:
            requests.close()
            _be_a_server(os.fsdecode(packet), *fds)
        for fd in fds:
            os.close(fd)


def _be_a_server(rundir: str, lifeline_fd: int, log_fd: int) -> None:
    """Serves until the lifeline ends, and exits."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    lifeline = socket.socket(fileno=lifeline_fd)
    code = 1
    try:
        serve(rundir, lifeline)
        code = 0
    except OSError as error:
        lifeline.send((error.strerror or str(error)).encode())
    finally:
        sys.stderr.flush()
        os._exit(code)  # the nursery's own ends are not this process's to tidy


def serve(rundir: str, lifeline: socket.socket) -> None:
    """A server with its sockets in `rundir`, until `lifeline` ends. OSError."""
    socket_path = os.path.join(rundir, SOCKET_NAME)
    machine = BareMachine()
    server = XenstoreServer(now=machine.now_s)
    server.on_print = _print
    loop = ServeLoop(server)
    RingLinks(machine, loop, server)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path)
        os.chmod(socket_path, 0o600)
        listener.listen(BACKLOG)
        door = NeighbourDoor(os.path.join(rundir, DOMAINS_NAME), machine.others, socket_path)
        loop.listen(listener.fileno())
        loop.watch_fd(door.fileno(), door.serve)
        loop.watch_fd(lifeline.fileno(), loop.stop)
        lifeline.send(READY)
        loop.run()
        door.close()


def _print(text: bytes) -> None:
    """CONTROL print."""
    sys.stderr.write(text.decode("utf-8", "backslashreplace") + "\n")
    sys.stderr.flush()
