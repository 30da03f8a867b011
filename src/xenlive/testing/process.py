"""A Xenstore server of one's own: started, used and gone, from the test's side.

**Invariants.** When `start` returns the server answers; when `stop` returns its process has ended
and its sockets are gone. What ends the test process ends the servers too. No test meets another's
server: each has a directory that nobody else can enter.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import xenlive
from xenlive.client import plans, requests, tree, treefile
from xenlive.client.blocking import Xenstore
from xenlive.client.tree import Node
from xenlive.errors import ConfigError
from xenlive.rundir import socket_in
from xenlive.testing.guest import Guest

START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 30.0
_READY = b"ready"
_PACKET_MAX = 4096
_PREFIX = "xenlive-test-"
_RUNDIR_MAX = 108 - len("/domains") - 1  # struct sockaddr_un

#: What a store starts with: paths and values, nodes with permissions, or a file that `dump` wrote.
Seed = Mapping[str, bytes | str] | list[Node] | os.PathLike[str]


class PrivateXenstore:
    """A server with an empty store, for a `with`.

    `seed` is what is in the store at the start, `quotas` the limits for domains, by the names of
    GET_QUOTA. ConfigError if the server can't be started, XenstoreError if it refuses either.
    """

    def __init__(
        self, *, seed: Seed | None = None, quotas: Mapping[str, int] | None = None
    ) -> None:
        self._seed = seed
        self._quotas = dict(quotas or {})
        self._rundir: Path | None = None
        self._lifeline: socket.socket | None = None
        self._client: Xenstore | None = None
        self._clients: list[Xenstore] = []
        self._guests: list[Guest] = []
        self._log = b""

    @property
    def rundir(self) -> Path:
        """Its run directory, as `xenlive ... --rundir` takes it. RuntimeError if it is stopped."""
        if self._rundir is None:
            raise RuntimeError("the server is not running")
        return self._rundir

    @property
    def socket_path(self) -> Path:
        """Its socket."""
        return socket_in(self.rundir)

    @property
    def environment(self) -> dict[str, str]:
        """What makes libxenstore, and all built upon it, find this server."""
        return {
            "XENSTORED_PATH": str(self.socket_path),
            "XENSTORED_RUNDIR": str(self.rundir),
        }

    @property
    def client(self) -> Xenstore:
        """A client of domain 0, connected when it is first asked for."""
        if self._client is None or self._client.fileno() < 0:
            self._client = self.connect()
        return self._client

    def connect(self) -> Xenstore:
        """Another client of domain 0, closed when the server is stopped."""
        made = Xenstore.connect(self.socket_path, timeout_s=ANSWER_TIMEOUT_S)
        self._clients.append(made)
        return made

    def new_guest(self, *, introduce: bool = True) -> Guest:
        """A new unprivileged domain with its nodes and its ring; 1 is the first one's id.

        With `introduce=False` it is not connected yet: `Guest.introduce` does that.
        """
        guest = Guest(self.rundir, self.client)
        self._guests.append(guest)
        if introduce:
            guest.introduce()
        return guest

    def log(self) -> str:
        """What the server has said so far."""
        if self._rundir is not None:
            self._log = (self._rundir / "log").read_bytes()
        return self._log.decode("utf-8", "backslashreplace")

    def start(self) -> None:
        """Starts the server."""
        if self._rundir is not None:
            raise RuntimeError("the server is running already")
        rundir = _new_rundir()
        try:
            with (rundir / "log").open("wb") as log:
                self._lifeline = _NURSERY.start_server(rundir, log.fileno())
            self._rundir = rundir
            self._set_up()
        except BaseException:
            self._rundir = rundir
            self.stop()
            raise

    def stop(self) -> None:
        """Ends the server, its guests and clients; nothing happens if it is not running."""
        for guest in self._guests:
            guest.close()
        for client in self._clients:
            client.close()
        self._guests.clear()
        self._clients.clear()
        self._client = None
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            with lifeline, contextlib.suppress(OSError):
                lifeline.shutdown(socket.SHUT_WR)
                while lifeline.recv(_PACKET_MAX):  # its end is the end of the process
                    pass
        if self._rundir is not None:
            self.log()
            shutil.rmtree(self._rundir, ignore_errors=True)
            self._rundir = None

    def __enter__(self) -> PrivateXenstore:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _set_up(self) -> None:
        if self._quotas:
            limits = [requests.set_quota(name, value) for name, value in self._quotas.items()]
            self.client.carry_out(plans.all_of(limits))
        if self._seed is not None:
            self.client.carry_out(tree.make(_nodes_of(self._seed)))


def _new_rundir() -> Path:
    """A directory of our own, with a name that leaves room for those of sockets."""
    rundir = tempfile.mkdtemp(prefix=_PREFIX)
    if len(os.fsencode(rundir)) > _RUNDIR_MAX:
        os.rmdir(rundir)
        rundir = tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp")
    return Path(rundir)


def _nodes_of(seed: Seed) -> list[Node]:
    if isinstance(seed, list):
        return seed
    if isinstance(seed, Mapping):
        return treefile.from_mapping(seed)
    return treefile.parse(Path(seed).read_bytes(), str(seed))[1]


class _Nursery:
    """The process that forks servers, started when the first one is wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def start_server(self, rundir: Path, log_fd: int) -> socket.socket:
        """The lifeline of a new server, which serves. ConfigError if it does not."""
        with self._lock:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                with theirs:
                    self._send([os.fsencode(rundir)], [theirs.fileno(), log_fd])
                ours.settimeout(START_TIMEOUT_S)
                said = ours.recv(_PACKET_MAX)
            except OSError as error:
                said = str(error).encode()
            if said != _READY:
                ours.close()
                why = said.decode("utf-8", "replace") or "it ended without a word"
                raise ConfigError(str(rundir), 0, f"no Xenstore could be started: {why}")
            return ours

    def close(self) -> None:
        """Ends it; servers that run go on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.wait()

    def _send(self, data: list[bytes], fds: list[int]) -> None:
        """Sends a packet, to a new process if there is none or it has ended."""
        if self._owner == os.getpid() and self._socket is not None:
            with contextlib.suppress(OSError):
                socket.send_fds(self._socket, data, fds)
                return
        self.close()
        self._start()
        assert self._socket is not None
        socket.send_fds(self._socket, data, fds)

    def _start(self) -> None:
        source = str(Path(xenlive.__file__).resolve().parent.parent)
        code = (
            f"import sys; sys.path.insert(0, {source!r}); "
            "from xenlive.testing.nursery import main; main()"
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._socket = ours
        self._owner = os.getpid()


_NURSERY = _Nursery()
atexit.register(_NURSERY.close)
