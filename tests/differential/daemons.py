"""Debian's daemons as peers of a comparison: sockets, and guests on ring pages.

The machine around a daemon is `peer/shim.c`: a file `dom.N` says that a domain is there, `ring.N`
is its page, and event channels are two FIFOs.

**Invariants.** A peer is a fresh daemon with a fresh store. Whoever waits for an answer fails after
`PATIENCE_S`; nothing here depends on time otherwise.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import shutil
import socket
import struct
import termios
import time
from pathlib import Path

from differential.playing import PeerGone
from differential.ringguest import RingGuest
from peer.c_daemon import CDaemon, OCamlDaemon
from xenstore.talk import HEADER, Message, decode

PAGE_SIZE = 4096
PATIENCE_S = 20.0
VIRQ_PORT = 1
FIRST_PORT = 1000  # plus the domid: our end's port of a domain, as the shim has it

_U32 = struct.Struct("<I")


def split(data: bytes) -> tuple[list[Message], bytes]:
    """The whole messages of `data`, and the rest."""
    at = 0
    while len(data) - at >= HEADER.size:
        end = at + HEADER.size + HEADER.unpack_from(data, at)[3]
        if end > len(data):
            break
        at = end
    return decode(data[:at]), data[at:]


class SocketLine:
    """A client's socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._socket.settimeout(PATIENCE_S)
        self._data = b""

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except ConnectionError:
            raise PeerGone from None

    def until(self, req_id: int) -> list[Message]:
        """All that comes before the reply to `req_id`, and that reply."""
        heard: list[Message] = []
        while True:
            messages, self._data = split(self._data)
            heard += messages
            if any(message.req_id == req_id for message in messages):
                return heard
            try:
                more = self._socket.recv(65536)
            except ConnectionError:
                more = b""
            if not more:
                raise PeerGone
            self._data += more

    def close(self) -> None:
        self._socket.close()


class RingLine:
    """A guest whose page the daemon maps."""

    def __init__(self, peer: DaemonPeer, domid: int, page: memoryview) -> None:
        self._peer = peer
        self._port = FIRST_PORT + domid
        self.guest = RingGuest(page)

    def send(self, data: bytes) -> None:
        self.guest.unsent += data
        self._move()

    def until(self, req_id: int) -> list[Message]:
        """All that comes before the reply to `req_id`, and that reply."""
        heard: list[Message] = []
        until_s = time.monotonic() + PATIENCE_S
        while True:
            self._move()
            messages, self.guest.received = split(self.guest.received)
            heard += messages
            if any(message.req_id == req_id for message in messages):
                return heard
            if not self._peer.daemon.is_running:
                raise PeerGone
            if time.monotonic() > until_s:
                raise TimeoutError(f"no answer by ring; its error field is {self.guest.error}")
            self._peer.wait_for_a_bell()

    def forget(self) -> None:
        self.guest.forget()

    def _move(self) -> None:
        if self.guest.move():
            self._peer.ring(self._port)


class DaemonPeer:
    """One daemon; `folder` is its own and gone afterwards."""

    def __init__(self, daemon: CDaemon) -> None:
        self.daemon = daemon
        self._pages: dict[int, mmap.mmap] = {}
        daemon.rundir.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        for name in ("evtchn.in", "evtchn.out"):
            os.mkfifo(daemon.rundir / name, 0o600)
        self._out = os.open(daemon.rundir / "evtchn.in", flags)
        self._in = os.open(daemon.rundir / "evtchn.out", flags)
        daemon.start()

    def close(self) -> None:
        self.daemon.stop()
        os.close(self._out)
        os.close(self._in)
        shutil.rmtree(self.daemon.rundir, ignore_errors=True)

    def open_socket(self) -> SocketLine:
        return SocketLine(self.daemon.socket_path)

    def create(self, domid: int) -> RingLine:
        """A new domain with a new page."""
        path = self.daemon.rundir / f"ring.{domid}"
        path.unlink(missing_ok=True)
        path.write_bytes(bytes(PAGE_SIZE))
        with path.open("r+b") as file:
            self._pages[domid] = mmap.mmap(file.fileno(), PAGE_SIZE)
        self.daemon.add_domain(domid)
        return RingLine(self, domid, memoryview(self._pages[domid]))

    def destroy(self, domid: int) -> None:
        (self.daemon.rundir / f"dom.{domid}").unlink()
        self._say_so()

    def shut_down(self, domid: int) -> None:
        (self.daemon.rundir / f"dom.{domid}").write_text("shutdown")
        self._say_so()

    def ring(self, port: int) -> None:
        """Rings one of the daemon's ports."""
        os.write(self._out, _U32.pack(port))

    def _say_so(self) -> None:
        """Rings VIRQ_DOM_EXC, and waits until the daemon has heard all there was to hear."""
        self.ring(VIRQ_PORT)
        until_s = time.monotonic() + PATIENCE_S
        while struct.unpack("i", fcntl.ioctl(self._out, termios.FIONREAD, bytes(4)))[0]:
            if not self.daemon.is_running:
                raise PeerGone
            if time.monotonic() > until_s:
                raise TimeoutError("the daemon takes no events")
            time.sleep(0.0005)

    def wait_for_a_bell(self) -> None:
        """Waits until the daemon rings anybody, or a moment."""
        if select.select([self._in], [], [], 0.02)[0]:
            os.read(self._in, 4096)


def c_peer(folder: Path, build_folder: Path) -> DaemonPeer:
    """Debian's C daemon."""
    return DaemonPeer(CDaemon(folder, shim_folder=build_folder))


def ocaml_peer(folder: Path, build_folder: Path) -> DaemonPeer:
    """Debian's OCaml daemon."""
    return DaemonPeer(OCamlDaemon(folder, shim_folder=build_folder))
