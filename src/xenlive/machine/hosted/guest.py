"""The hosted machine as the domain process sees it: RAM, hypercalls, event channels, kexec.

A kernel is entered with the descriptor of its hypercall channel and the address of its start info
(`image.py`); `HostedGuest` turns the first into a machine:

    machine = HostedGuest(channel_fd)
    machine.memory           GuestMemory over the RAM memfd
    machine.grant_frames     live view of the grant table's pages, shared with the hypervisor
    machine.alloc_unbound()  and the rest of `EventChannels`: doorbells are eventfds
    machine.kexec(...)       execve of the next image on the same descriptors

**Invariants.** Only the channel and what the caller names survive `kexec`; RAM, grant frames and
doorbells are asked for again by the next kernel, from the hypervisor that kept them. A hypercall
that the hypervisor refuses is a HypercallError and changed nothing.
"""

from __future__ import annotations

import _socket
import errno
import mmap
import os
import select
import struct
import sys
import time

from xenlive.abi.xs_state import XS_STATE_READ_VERSIONS
from xenlive.errors import BootError, HypercallError, UpdateError
from xenlive.machine.guest import GuestMachine, LoadedImage
from xenlive.machine.hosted import hypercall as hc
from xenlive.machine.hosted.image import LOAD_END, entry_command, running_code, validate_image
from xenlive.machine.hosted.trial import Trial
from xenlive.memory.address import PAGE_SIZE
from xenlive.memory.guest import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenlive.machine.guest import EventLoop, Loading
    from xenlive.memory.address import PhysAddr

_FDS_MAX = 4

#: A domain does not outlive its hypervisor; this is all there is to say.
HOST_GONE = "the host process is gone, and so is its domain"


class HostedGuest(GuestMachine):
    """The machine under one domain process; `channel_fd` is its hypercall channel."""

    __slots__ = (
        "_channel",
        "_doorbells",
        "_grants",
        "_ram",
    )

    def __init__(self, channel_fd: int) -> None:
        self._channel = _socket.socket(fileno=channel_fd)
        self._channel.setblocking(True)
        self._doorbells: dict[int, tuple[int, int]] = {}
        values, fds = self._call(hc.MEMORY_MAP, want_fds=2)
        ram_size, grant_size, self.domid = values[0], values[1], values[2]
        try:
            for fd, size in zip(fds, (ram_size, grant_size), strict=True):
                if size == 0 or os.fstat(fd).st_size < size:
                    raise BootError("memory-map", f"the hypervisor names {size} bytes of memory")
            self._ram = mmap.mmap(fds[0], ram_size)
            self._grants = mmap.mmap(fds[1], grant_size)
        finally:
            for fd in fds:
                os.close(fd)
        self.memory = GuestMemory([(0, self._ram)])
        self.load_end = LOAD_END
        self.grant_frames = memoryview(self._grants)

    # -- hypercalls ------------------------------------------------------------------------------

    def _call(
        self, op: int, a0: int = 0, a1: int = 0, a2: int = 0, want_fds: int = 0
    ) -> tuple[tuple[int, int, int, int], list[int]]:
        name = hc.NAMES[op]
        self._send(hc.CALL.pack(op, a0, a1, a2, 0))
        room = _socket.CMSG_SPACE(4 * _FDS_MAX) if want_fds else 0
        packet, ancillary, _flags, _ = self._channel.recvmsg(
            hc.ANSWER.size, room, _socket.MSG_CMSG_CLOEXEC
        )
        fds: list[int] = []
        for level, kind, data in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                fds += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
        if len(packet) < hc.ANSWER.size:
            raise HypercallError(name, 5, "the hypervisor is gone")
        status, v0, v1, v2, v3 = hc.ANSWER.unpack(packet)
        if status < 0 or len(fds) != want_fds:
            for fd in fds:
                os.close(fd)
            raise HypercallError(name, -status if status < 0 else 5)
        return (v0, v1, v2, v3), fds

    def _tell(self, op: int, payload: bytes, a0: int = 0) -> None:
        self._send(hc.CALL.pack(op, a0, 0, 0, 0) + payload[: hc.PAYLOAD_MAX])

    def _send(self, packet: bytes) -> None:
        try:
            self._channel.send(packet)
        except OSError:
            raise SystemExit(HOST_GONE) from None

    @property
    def channel_fd(self) -> int:
        """The channel's descriptor: readable only when the hypervisor is gone."""
        return self._channel.fileno()

    def populated_memory(self) -> list[tuple[int, int]] | None:
        """The runs of the RAM memfd that are no holes; it is looked at, but no page is read."""
        values, fds = self._call(hc.MEMORY_MAP, want_fds=2)
        try:
            return _data_runs(fds[0], values[0])
        finally:
            for fd in fds:
                os.close(fd)

    def now_s(self) -> float:
        """CLOCK_MONOTONIC in seconds."""
        return time.monotonic()

    def console(self, text: str) -> None:
        """Writes a line to the domain's console."""
        self._tell(hc.CONSOLE_WRITE, text.encode("utf-8", "backslashreplace"))

    def milestone(self, name: str, when_ns: int = 0) -> None:
        """Tells the host that a step of boot or update was reached, now or at `when_ns`."""
        payload = name.encode("utf-8", "backslashreplace")
        self._tell(hc.MILESTONE, payload, when_ns or time.monotonic_ns())

    def listener(self) -> int:
        """A descriptor of the listening socket of this domain's service."""
        _, fds = self._call(hc.LISTENER, want_fds=1)
        os.set_blocking(fds[0], False)
        return fds[0]

    def connect_ninepfs(self, ring_ref: int, port: int) -> None:
        """Has the host's 9pfs backend attach to the rings behind a granted interface page."""
        self._call(hc.NINEPFS_CONNECT, ring_ref, port)

    # -- other domains ---------------------------------------------------------------------------

    def map_foreign(self, domid: int, ref: int) -> memoryview:
        """Maps the page from the memory that the hypervisor names, and nothing else of it."""
        values, fds = self._call(hc.GNTTAB_MAP, domid, ref, want_fds=1)
        try:
            return memoryview(mmap.mmap(fds[0], PAGE_SIZE, offset=values[0]))
        except (OSError, ValueError) as error:
            raise HypercallError("gnttab_map", errno.EINVAL, str(error)) from None
        finally:
            os.close(fds[0])

    def bind_interdomain(self, domid: int, port: int) -> int:
        """A port of ours with a pair of doorbells that the other domain has, too."""
        (own, *_), _fds = self._call(hc.EVTCHN_BIND_INTERDOMAIN, domid, port)
        self.bind(own)
        return own

    def bind_virq(self, virq: int) -> int:
        """The port of a virtual interrupt; the next kernel gets the same one."""
        (port, *_), _fds = self._call(hc.EVTCHN_BIND_VIRQ, virq)
        self.bind(port)
        return port

    def bell(self, port: int) -> int:
        """The doorbell that the other end rings."""
        return self._bells(port)[1]

    def take_ring(self, port: int) -> bool:
        """Silences the doorbell; the other end shares its flags, so it is told not to wait."""
        bell = self._bells(port)[1]
        os.set_blocking(bell, False)
        try:
            os.eventfd_read(bell)
        except BlockingIOError:
            return False
        return True

    def ring_again(self, port: int) -> None:
        """Rings the own doorbell."""
        _ring(self._bells(port)[1])

    def domain_state(self, domid: int) -> tuple[int, bool] | None:
        """What the hypervisor knows of another domain."""
        try:
            values, _ = self._call(hc.DOMAIN_STATE, domid)
        except HypercallError:
            return None
        return values[1], bool(values[0])

    # -- event channels --------------------------------------------------------------------------

    def alloc_unbound(self, remote_domid: int) -> int:
        """A new port that `remote_domid` may bind to."""
        (port, *_), _fds = self._call(hc.EVTCHN_ALLOC_UNBOUND, remote_domid)
        self.bind(port)
        return port

    def bind(self, port: int) -> None:
        """Takes up a port of this domain, after a kexec too. HypercallError for a wild port."""
        _, fds = self._call(hc.EVTCHN_BIND, port, want_fds=2)
        for fd in self._doorbells.pop(port, ()):
            os.close(fd)
        self._doorbells[port] = (fds[0], fds[1])

    def notify(self, port: int) -> None:
        """Rings the other end's bell."""
        _ring(self._bells(port)[0])

    def wait(self, port: int, timeout_s: float) -> bool:
        """Waits until the other end has rung; False when it did not within `timeout_s`."""
        bell = self._bells(port)[1]
        try:
            os.eventfd_read(bell)
            return True
        except BlockingIOError:
            pass
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        poll.register(self._channel.fileno(), 0)  # its hang-up is heard all the same
        ready = [fd for fd, _ in poll.poll(timeout_s * 1000)]
        if not ready:
            return False
        if bell not in ready:
            raise SystemExit(HOST_GONE)
        try:
            os.eventfd_read(bell)
        except BlockingIOError:
            return False
        return True

    def close(self, port: int) -> None:
        """Closes a port for good."""
        for fd in self._doorbells.pop(port, ()):
            os.close(fd)
        self._call(hc.EVTCHN_CLOSE, port)

    def _bells(self, port: int) -> tuple[int, int]:
        try:
            return self._doorbells[port]
        except KeyError:
            raise HypercallError("evtchn_send", 22, f"port {port} is not bound") from None

    # -- images and kexec ------------------------------------------------------------------------

    def close_on_kexec(self, fds: Iterable[int]) -> None:
        """Undoes what `kexec` did to the descriptors it kept, so that no child gets them."""
        for fd in (self._channel.fileno(), *fds):
            try:
                os.set_inheritable(fd, False)
            except OSError as error:  # a number that leads nowhere is nobody's to inherit
                self.console(f"descriptor {fd} was handed over, but is none: {error}")

    def validate_image(self, image: str) -> None:
        """Refuses a path that can't be an image (`image.py`)."""
        validate_image(image)

    def load_image(
        self, loop: EventLoop, image: str, on_done: Callable[[LoadedImage | UpdateError], None]
    ) -> Loading:
        """Runs the image with `--preflight` in a process of its own (`trial.py`)."""
        return Trial(loop, image, on_done)

    def running_image(self, image: str, version: str) -> LoadedImage:
        """The running kernel and the memfd with its code. UpdateError if it can't be made."""
        try:
            handle = running_code()
        except OSError as error:
            raise UpdateError("image", f"the running code can't be kept: {error}") from None
        return LoadedImage(image, version, XS_STATE_READ_VERSIONS, handle)

    def unload(self, loaded: LoadedImage) -> None:
        """Closes the memfd that the image's code is in."""
        if loaded.handle >= 0:
            os.close(loaded.handle)
            loaded.handle = -1

    def new_copy(self) -> int:
        """A memfd; its descriptor is handed over like a client's."""
        try:
            return os.memfd_create("xenlive-state", os.MFD_CLOEXEC)
        except OSError as error:
            raise UpdateError("copy", f"no memory for a copy of the state: {error}") from None

    def write_copy(self, copy: int, data: bytes) -> None:
        """Appends to the memfd."""
        while data:
            data = data[os.write(copy, data) :]

    def read_copy(self, copy: int) -> bytes:
        """All of the memfd."""
        return os.pread(copy, os.fstat(copy).st_size, 0)

    def drop_copy(self, copy: int) -> None:
        """Closes the memfd."""
        try:
            os.close(copy)
        except OSError as error:
            self.console(f"descriptor {copy} was said to be a copy of the state: {error}")

    def kexec(
        self,
        loaded: LoadedImage,
        start_info: PhysAddr,
        fallback: LoadedImage,
        fallback_start_info: PhysAddr,
        keep: Iterable[int],
    ) -> None:
        """Replaces this kernel: execve of `loaded` with the channel and the descriptors `keep`.

        Does not return. OSError if the processor can't be entered; then all is as it was.
        """
        changed: list[int] = []
        try:
            for fd in (self._channel.fileno(), loaded.handle, fallback.handle, *keep):
                if not os.get_inheritable(fd):
                    os.set_inheritable(fd, True)
                    changed.append(fd)
            command = entry_command(
                loaded.image,
                self._channel.fileno(),
                start_info,
                fallback.image,
                fallback_start_info,
                loaded=loaded.handle,
                kept=fallback.handle,
            )
            os.execv(sys.executable, command)
        except BaseException:
            for fd in changed:
                os.set_inheritable(fd, False)
            raise


def _ring(bell: int) -> None:
    """Rings a doorbell. One that is full rings already; whoever has the other end may fill it."""
    os.set_blocking(bell, False)
    try:
        os.eventfd_write(bell, 1)
    except BlockingIOError:
        return


def _data_runs(fd: int, size: int) -> list[tuple[int, int]] | None:
    """Offset and size of each run of data below `size`; None if the file can't tell."""
    runs = []
    end = 0
    try:
        while end < size:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            runs.append((start, end - start))
    except OSError as error:
        return runs if error.errno == errno.ENXIO else None
    return runs
