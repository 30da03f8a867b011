"""The host process: hypervisor, 9pfs backend and nurse of one stub domain.

    rundir/
    ├── socket      the domain's Xenstore socket (the domain serves it, the host only made it)
    ├── control     the host's own door (`control.py`)
    ├── ram         -> /proc/PID/fd/N: the domain's RAM, to look at
    └── 9pfs/       what the domain's 9pfs device exports

One epoll loop: hypercalls, doorbells of the 9pfs device, the control door, the domain's end and
the signals that end the host. It never touches a Xenstore byte.

**Invariants.** Whatever ends the host, nothing is left behind: the domain is ended, the files
made here are removed, a directory only if it was made here. A host that finds another one alive
in its rundir leaves everything as it is.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any

from xenlive import __version__
from xenlive.errors import ConfigError
from xenlive.machine.hosted.control import ControlDoor, ask
from xenlive.machine.hosted.hypervisor import HostedDomain
from xenlive.machine.hosted.image import entry_command, installed_image
from xenlive.machine.hosted.limits import allow_descriptors
from xenlive.machine.hosted.ninepfs import NinePDevice
from xenlive.machine.hosted.timeline import Timeline

STUB_DOMID = 1
DEFAULT_RAM_BYTES = 8 << 20
STOP_TIMEOUT_S = 5.0
SUN_PATH_MAX = 107


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
    ) -> None:
        self.rundir = os.path.abspath(rundir)
        self.socket_path = os.path.abspath(socket_path or os.path.join(self.rundir, "socket"))
        self.image = image or installed_image()
        self.cmdline = " ".join(options)
        self.log = log
        self.timeline = Timeline()
        self.domain = HostedDomain(STUB_DOMID, ram_bytes)
        self.domain.on_console = lambda text: self.log(f"console: {text}")
        self.domain.on_milestone = self._milestone
        self.domain.on_ninepfs_connect = self._connect_ninepfs
        self.ninepfs: NinePDevice | None = None
        self.ninepfs_connects = 0
        self.ninepfs_losses = 0
        self.started_ns = time.monotonic_ns()
        self.exit_status: int | None = None
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._cleanup = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._stopping = False

    def __enter__(self) -> Host:
        try:
            self._catch_signals()
            self._cleanup.callback(self.domain.close)
            self._make_rundir()
            self._listen()
            self._start_domain()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- start and end ---------------------------------------------------------------------------

    def _make_rundir(self) -> None:
        control = os.path.join(self.rundir, "control")
        if max(len(control.encode()), len(self.socket_path.encode())) > SUN_PATH_MAX:
            raise ConfigError(
                self.rundir,
                0,
                f"a socket's path has at most {SUN_PATH_MAX} bytes; name a shorter one",
            )
        if not os.path.isdir(self.rundir):
            os.makedirs(self.rundir, 0o700)
            self._cleanup.callback(_remove_if_empty, self.rundir)
        if os.stat(self.rundir).st_uid != os.getuid():
            raise ConfigError(
                self.rundir, 0, "belongs to another user; name one of yours with --rundir"
            )
        if _alive(control):
            raise ConfigError(
                self.rundir, 0, "a host process runs here already; end it or name another --rundir"
            )
        for stale in (control, os.path.join(self.rundir, "ram")):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(stale)
        self.export = os.path.join(self.rundir, "9pfs")
        shutil.rmtree(self.export, ignore_errors=True)
        os.mkdir(self.export, 0o700)
        self._cleanup.callback(shutil.rmtree, self.export, ignore_errors=True)

        self._door = ControlDoor(control, {"status": lambda request: self.status()})
        self._cleanup.callback(self._door.close)
        self._watch(self._door.listener_fd, self._knock)

        ram = os.path.join(self.rundir, "ram")
        os.symlink(f"/proc/{os.getpid()}/fd/{self.domain.ram_fd}", ram)
        self._cleanup.callback(_unlink, ram)

    def _listen(self) -> None:
        if os.path.exists(self.socket_path):
            if _alive(self.socket_path):
                raise ConfigError(
                    self.socket_path, 0, "somebody serves this socket; name another with --socket"
                )
            os.unlink(self.socket_path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(self.socket_path)
            os.chmod(self.socket_path, 0o600)
            listener.listen(512)
        except OSError as error:
            listener.close()
            raise ConfigError(self.socket_path, 0, f"can't listen there: {error}") from None
        self.domain.listener_fd = listener.detach()
        self._cleanup.callback(_unlink, self.socket_path)

    def _start_domain(self) -> None:
        allow_descriptors()
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
        self._watch(ours.fileno(), self._hypercall)
        pidfd = os.pidfd_open(self._process.pid)
        self._cleanup.callback(os.close, pidfd)
        self._watch(pidfd, self._domain_ended)

    def _end_domain(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Ends the domain and removes everything that was made for it."""
        if self.ninepfs is not None:
            self.ninepfs.close()
            self.ninepfs = None
        self._cleanup.close()
        self._epoll.close()

    # -- the loop --------------------------------------------------------------------------------

    def run(self) -> int:
        """Serves until a signal or the domain's end; the exit status, 0 after SIGTERM or SIGINT."""
        while not self._stopping:
            for fd, _ in self._epoll.poll():
                action = self._watched.get(fd)
                if action is not None:
                    action()
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
        self._watch(woken, lambda: self.stop(0))

    def stop(self, status: int) -> None:
        """Ends the loop; `run` returns `status`."""
        self.exit_status = status
        self._stopping = True

    def _watch(self, fd: int, action: Callable[[], None]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = action

    def _unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _hypercall(self) -> None:
        channel = self._channel
        assert channel is not None
        packet = channel.recv(65536, socket.MSG_DONTWAIT)
        if not packet:
            self._unwatch(channel.fileno())
            return
        answer = self.domain.answer(packet)
        if answer is not None:
            data, fds = answer
            with contextlib.suppress(OSError):  # a domain that just died asks no more
                socket.send_fds(channel, [data], fds, socket.MSG_DONTWAIT)

    def _domain_ended(self) -> None:
        assert self._process is not None
        status = self._process.wait()
        how = f"exit status {status}" if status >= 0 else f"signal {-status}"
        self.log(f"the domain ended by itself: {how}")
        self.stop(1)

    def _knock(self) -> None:
        fd = self._door.accept()
        if fd is not None:
            self._watch(fd, lambda: self._control(fd))

    def _control(self, fd: int) -> None:
        if not self._door.ready(fd):
            # The door has closed the descriptor; epoll forgets it by itself.
            self._watched.pop(fd, None)

    def _milestone(self, name: str, when_ns: int) -> None:
        self.timeline.note(name, min(when_ns, time.monotonic_ns()))

    # -- devices ---------------------------------------------------------------------------------

    def _connect_ninepfs(self, ring_ref: int, port: int) -> None:
        if self.ninepfs is not None:
            self._unwatch(self.ninepfs.doorbell)
            self.ninepfs.close()
        self.ninepfs = NinePDevice(self.domain, self.export, ring_ref, port, self.log)
        self.ninepfs_connects += 1
        self._watch(self.ninepfs.doorbell, self._ninepfs_rung)

    def _ninepfs_rung(self) -> None:
        device = self.ninepfs
        if device is None:
            return
        if not device.rung():
            self.ninepfs_losses += 1
            self._unwatch(device.doorbell)

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
            "ninepfs": self.ninepfs.status() if self.ninepfs is not None else None,
            "ninepfs_connects": self.ninepfs_connects,
            "ninepfs_losses": self.ninepfs_losses,
        }


def _alive(path: str) -> bool:
    """Whether somebody accepts connections on the socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except TimeoutError:
            return True
        except OSError:
            return False
    return True


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _remove_if_empty(path: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)


def host_status(rundir: str) -> dict[str, Any]:
    """The status of the host process of `rundir`; ConfigError when none answers there."""
    try:
        return ask(os.path.join(rundir, "control"), {"verb": "status"})
    except (OSError, ValueError) as error:
        raise ConfigError(
            rundir, 0, f"no host process answers here ({error}); start one with: xenlive up"
        ) from None
