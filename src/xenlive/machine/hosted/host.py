"""The host process: hypervisor, 9pfs backend and nurse of one stub domain.

    rundir/
    ├── socket      the domain's Xenstore socket (the domain serves it, the host only made it)
    ├── control     the host's own door (`control.py`)
    ├── domains     where other machines enter their domains (`neighbours.py`)
    ├── ram         -> /proc/PID/fd/N: the domain's RAM, to look at
    └── 9pfs/       what the domain's 9pfs device exports

One epoll loop: hypercalls, doorbells of the 9pfs device, the control door, the domain's end and
the signals that end the host. It never touches a Xenstore byte.

**Invariants.** Whatever ends the host, nothing is left behind: the domain is ended with all
processes of its group, the files made here are removed, and no others (`places.py`). A host that is
killed leaves files for the next one to remove, and a domain that ends when its channel does. A host
that finds another one alive in its rundir leaves everything as it is. Nothing is acquired before
`__enter__`. Nothing that the domain sends, rings or closes ends the host or makes it wait.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any

from xenlive import __version__
from xenlive.domain.events import MAX_PORTS
from xenlive.errors import ConfigError
from xenlive.machine.hosted import places
from xenlive.machine.hosted.control import ControlDoor, ask
from xenlive.machine.hosted.hypervisor import HostedDomain
from xenlive.machine.hosted.image import entry_command, installed_image
from xenlive.machine.hosted.limits import allow_descriptors
from xenlive.machine.hosted.neighbours import NeighbourDoor
from xenlive.machine.hosted.ninepfs import NinePDevice
from xenlive.machine.hosted.timeline import Timeline
from xenlive.rundir import DOMAINS_NAME

STUB_DOMID = 1
DEFAULT_RAM_BYTES = 8 << 20
STOP_TIMEOUT_S = 5.0
PACKET_MAX = 65536

#: Descriptors that the host needs for itself, whatever its domain asks for.
OWN_DESCRIPTORS = 256

_GONE = select.EPOLLHUP | select.EPOLLRDHUP | select.EPOLLERR


class Host:
    """One stub domain and all that serves it; `with Host(...) as host: host.run()`."""

    def __init__(
        self,
        rundir: str,
        *,
        socket_path: str | None = None,
        options: Iterable[str] = (),
        ram_bytes: int = DEFAULT_RAM_BYTES,
        image: str | None = None,
        log: Callable[[str], None] = lambda line: None,
        on_running: Callable[[str], None] = lambda version: None,
    ) -> None:
        self.rundir = os.path.abspath(rundir)
        self.socket_path = os.path.abspath(socket_path or os.path.join(self.rundir, "socket"))
        self.image = image or installed_image()
        self.cmdline = " ".join(options)
        self.log = log
        self.on_running = on_running
        self.timeline = Timeline()
        self.ram_bytes = ram_bytes
        self.domain: HostedDomain
        self.ninepfs: NinePDevice | None = None
        self.ninepfs_connects = 0
        self.ninepfs_losses = 0
        self.started_ns = time.monotonic_ns()
        self.exit_status: int | None = None
        self._epoll: select.epoll
        self._watched: dict[int, Callable[[int], None]] = {}
        self._cleanup = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket
        self._unsent: tuple[bytes, list[int]] | None = None
        self._stopping = False

    def __enter__(self) -> Host:
        try:
            self._epoll = self._cleanup.enter_context(select.epoll())
            self._catch_signals()
            self._make_domain()
            self._make_places()
            self._start_domain()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- start and end ---------------------------------------------------------------------------

    def _make_domain(self) -> None:
        descriptors = allow_descriptors()
        domain = HostedDomain(STUB_DOMID, self.ram_bytes)
        self._cleanup.callback(domain.close)
        domain.ports_max = min(MAX_PORTS, max(1, (descriptors - OWN_DESCRIPTORS) // 2))
        domain.on_console = lambda text: self.log(f"console: {text}")
        domain.on_milestone = self._milestone
        domain.on_ninepfs_connect = self._connect_ninepfs
        domain.on_port_close = self._port_closes
        self.domain = domain
        self._cleanup.callback(self._disconnect_ninepfs)

    def _make_places(self) -> None:
        control = os.path.join(self.rundir, "control")
        ram = os.path.join(self.rundir, "ram")
        domains = os.path.join(self.rundir, DOMAINS_NAME)
        for path in (control, domains, self.socket_path):
            places.validate_socket_path(path)
        places.claim_rundir(self.rundir, self._cleanup)
        places.clear_leftovers(control, ram)
        places.clear_socket(domains)
        self._export = places.ExportDir(os.path.join(self.rundir, "9pfs"))
        self._cleanup.callback(self._export.remove)

        door = ControlDoor(control, {"status": lambda request: self.status()})
        self._cleanup.callback(door.close)
        self._watch(door.fileno(), lambda events: door.serve())

        neighbours = NeighbourDoor(domains, self.domain.others, self.socket_path)
        self._cleanup.callback(neighbours.close)
        self._watch(neighbours.fileno(), lambda events: neighbours.serve())

        os.symlink(f"/proc/{os.getpid()}/fd/{self.domain.ram_fd}", ram)
        self._cleanup.callback(places.remove_own, ram, places.identity(ram))
        self.domain.listener_fd = places.listen_at(self.socket_path, self._cleanup)

    def _start_domain(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._cleanup.callback(ours.close)
        with theirs:
            command = entry_command(
                self.image, theirs.fileno(), self.domain.load_start_info(self.cmdline)
            )
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._cleanup.callback(self._end_domain)
        self._channel = ours
        self._watch(ours.fileno(), self._hypercall, select.EPOLLIN | select.EPOLLRDHUP)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._cleanup.callback(os.close, self._pidfd)
        self._watch(self._pidfd, self._domain_ended)

    def _end_domain(self) -> None:
        """Ends the domain's process and all others of its group, gently if it lets itself."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        # It is not waited for before the end: until then its group's number is nobody else's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while not _has_ended(process.pid) and time.monotonic() < deadline_s:
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        """Ends the domain and removes everything that was made for it."""
        self._cleanup.close()

    # -- the loop --------------------------------------------------------------------------------

    def run(self) -> int:
        """Serves until a signal or the domain's end; the exit status, 0 after SIGTERM or SIGINT."""
        while not self._stopping:
            for fd, events in self._epoll.poll():
                action = self._watched.get(fd)
                if action is not None:
                    action(events)
        return self.exit_status or 0

    def _catch_signals(self) -> None:
        """From here to the end of `close` a signal ends the loop instead of the process."""
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        previous_fd = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        previous = {
            number: signal.signal(number, lambda *_: None)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }

        def restore() -> None:
            signal.set_wakeup_fd(previous_fd)
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(woken)
            os.close(wake)

        self._cleanup.callback(restore)
        self._watch(woken, lambda events: self.stop(0))

    def stop(self, status: int) -> None:
        """Ends the loop; `run` returns `status`."""
        self.exit_status = status
        self._stopping = True

    def _watch(self, fd: int, action: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        self._epoll.register(fd, events)
        self._watched[fd] = action

    def _unwatch(self, fd: int) -> None:
        """To be called while `fd` is open: what others hold open too is not forgotten by itself."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _hypercall(self, events: int) -> None:
        if self._unsent is not None:
            self._send_answer(self._unsent)
            return
        try:
            packet = self._channel.recv(PACKET_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            packet = b""  # it died with answers unread; what it had sent is still there
        if not packet and events & _GONE:
            self._unwatch(self._channel.fileno())
            return
        answer = self.domain.answer(packet)
        if answer is not None:
            self._send_answer(answer)

    def _send_answer(self, answer: tuple[bytes, list[int]]) -> None:
        """Sends an answer; without room for it no more calls are taken before it is sent."""
        data, fds = answer
        waited, self._unsent = self._unsent is not None, None
        try:
            socket.send_fds(self._channel, [data], fds, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._unsent = answer
        except OSError:
            pass  # a domain that just died asks no more
        if waited != (self._unsent is not None):
            events = select.EPOLLOUT if self._unsent else select.EPOLLIN | select.EPOLLRDHUP
            self._epoll.modify(self._channel.fileno(), events)

    def _domain_ended(self, events: int) -> None:
        assert self._process is not None
        # Its children first, while its process still holds on to the group's number.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        how = f"exit status {status}" if status >= 0 else f"signal {-status}"
        self.log(f"the domain ended by itself: {how}")
        self.stop(1)

    def _milestone(self, name: str, when_ns: int) -> None:
        before = self.timeline.version
        self.timeline.note(name, min(when_ns, time.monotonic_ns()))
        if not before and self.timeline.version:
            self.on_running(self.timeline.version)

    # -- devices ---------------------------------------------------------------------------------

    def _connect_ninepfs(self, ring_ref: int, port: int) -> None:
        self._disconnect_ninepfs()
        self.ninepfs = NinePDevice(self.domain, self._export, ring_ref, port, self.log)
        self.ninepfs_connects += 1
        self._watch(self.ninepfs.doorbell, self._ninepfs_rung)

    def _disconnect_ninepfs(self) -> None:
        device = self.ninepfs
        if device is not None and device.is_connected:
            self._unwatch(device.doorbell)
            device.close()

    def _ninepfs_rung(self, events: int) -> None:
        device = self.ninepfs
        if device is not None and not device.rung():
            self.ninepfs_losses += 1
            self._unwatch(device.doorbell)

    def _port_closes(self, port: int) -> None:
        if self.ninepfs is not None and self.ninepfs.port == port:
            self._disconnect_ninepfs()

    # -- status ----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What the host knows of its domain, as the control door's `status` gives it."""
        timeline = self.timeline
        return {
            "version": __version__,
            "pid": os.getpid(),
            "rundir": self.rundir,
            "socket": self.socket_path,
            "image": self.image,
            "up_s": round((time.monotonic_ns() - self.started_ns) / 1e9, 3),
            "domain": {
                "domid": self.domain.domid,
                "pid": self._process.pid if self._process else None,
                "version": timeline.version,
                "since_s": round((time.monotonic_ns() - timeline.running_since_ns) / 1e9, 3)
                if timeline.running_since_ns
                else None,
            },
            "memory": {
                "ram_bytes": self.domain.ram_bytes,
                "map": [
                    {"addr": r.addr, "size": r.size, "type": r.type}
                    for r in self.domain.memory_map().ranges()
                ],
            },
            "updates_done": timeline.updates_done,
            "updates_failed": timeline.updates_failed,
            "updates": timeline.updates,
            "grants": self.domain.active_grants(),
            "ports": {str(n): p.remote_domid for n, p in sorted(self.domain.ports.items())},
            "others": self.domain.others.domids(),
            "ninepfs": self.ninepfs.status() if self.ninepfs is not None else None,
            "ninepfs_connects": self.ninepfs_connects,
            "ninepfs_losses": self.ninepfs_losses,
        }


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; it stays there to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def host_status(rundir: str) -> dict[str, Any]:
    """The status of the host process of `rundir`; ConfigError when none answers there."""
    try:
        return ask(os.path.join(rundir, "control"), {"verb": "status"})
    except (OSError, ValueError) as error:
        raise ConfigError(
            rundir, 0, f"no host process answers here ({error}); start one with: xenlive up"
        ) from None
