"""The 9pfs front end: files of the host for a stub domain, over rings that outlive its kernels.

    front = NinePFront.create(memory, module, grants, events, connect)      first boot
    front = NinePFront.resume(memory, module, record, grants, events)       after kexec
    front.write_file("/state", chunks)
    front.save()                                                            right before kexec

`ninepdevice.py` makes the device or takes it over, `xenlive.ninep.files` knows the requests; what
happens here is moving bytes between the two, and waiting.

**Invariants.** Requests are only sent and replies only taken inside of an operation; between two
of them nothing is under way, which is what `save` insists on: an index that is handed over lies
between two messages. A backend that breaks the protocol ends the device: the same PeerError comes
from every later operation. A silent one is a PeerTimeout; its answer may still come, and is then
taken by the next operation.
"""

from __future__ import annotations

import time

from xenlive.domain.ninepdevice import make_device, take_over_device, unmake_device
from xenlive.errors import BootError, NinePError, PeerError, PeerTimeout, UpdateError
from xenlive.ninep.client import NinePClient
from xenlive.ninep.files import NinePFiles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Buffer

    from xenlive.domain.events import EventChannels
    from xenlive.domain.grants import GrantTable
    from xenlive.domain.ninepdevice import NinePDevice
    from xenlive.kexec.module import KexecModule
    from xenlive.memory.guest import GuestMemory
    from xenlive.ninep.messages import Stat

TIMEOUT_S = 10.0


class NinePFront:
    """An attached device; made by `create` or `resume`."""

    __slots__ = ("_broken", "_client", "_files", "device", "timeout_s")

    def __init__(self, device: NinePDevice, timeout_s: float) -> None:
        self.device = device
        self.timeout_s = timeout_s
        self._client = NinePClient(device.requests.size)
        self._files = NinePFiles(self._client, self._drive)
        self._broken: PeerError | None = None

    @classmethod
    def create(
        cls,
        memory: GuestMemory,
        module: KexecModule,
        grants: GrantTable,
        events: EventChannels,
        connect: Callable[[int, int], None],
        *,
        backend_domid: int = 0,
        order: int = 4,
        timeout_s: float = TIMEOUT_S,
    ) -> NinePFront:
        """A new device. `connect(ring_ref, port)` has the machine's backend attach to it.

        OutOfSpace, HypercallError, NinePError, PeerError, PeerTimeout; then all is given back.
        """
        device = make_device(memory, module, grants, events, backend_domid, order)
        try:
            connect(device.ring_ref, device.port)
            front = cls(device, timeout_s)
            front._files.attach()
        except BaseException:
            unmake_device(device, module, grants)
            raise
        return front

    @classmethod
    def resume(
        cls,
        memory: GuestMemory,
        module: KexecModule,
        record: int,
        grants: GrantTable,
        events: EventChannels,
        *,
        backend_domid: int = 0,
        timeout_s: float = TIMEOUT_S,
        reconnect: Callable[[int, int], None] | None = None,
    ) -> NinePFront:
        """The device of the kernel before, from its record alone; nobody but the backend is asked.

        With `reconnect` the rings start over, for a kernel that comes back after another has died
        on them (`take_over_device`).

        BootError: the codes of `take_over_device`, and 9pfs-no-answer, 9pfs-broken-backend,
        9pfs-refused when the backend does not play along.
        """
        device = take_over_device(memory, module, record, grants, events, backend_domid, reconnect)
        front = cls(device, timeout_s)
        try:
            front._files.attach()
        except PeerTimeout as error:
            raise BootError("9pfs-no-answer", str(error)) from error
        except PeerError as error:
            raise BootError("9pfs-broken-backend", str(error)) from error
        except NinePError as error:
            raise BootError("9pfs-refused", str(error)) from error
        return front

    # -- handing over ----------------------------------------------------------------------------

    def settle(self) -> bool:
        """Takes what the backend answered too late; whether the rings are at rest now."""
        if self._broken is not None:
            return False
        try:
            while self._move():
                self.device.events.notify(self.device.port)
            pending = self.device.requests.queued() + self.device.replies.available()
        except PeerError:
            return False
        return self._files.is_idle and not pending

    def save(self) -> None:
        """Writes down where the rings stand, for the next kernel. UpdateError if not at rest."""
        if self._broken is not None:
            raise UpdateError("9pfs", f"the device is broken: {self._broken}")
        if not self._files.is_idle:
            raise UpdateError("9pfs", f"{self._client.in_flight} requests are not answered yet")
        try:
            pending = self.device.requests.queued() + self.device.replies.available()
        except PeerError as error:
            raise UpdateError("9pfs", str(error)) from error
        if pending:
            raise UpdateError("9pfs", f"{pending} bytes are on their way in the rings")
        self.device.save_indices()

    # -- files -----------------------------------------------------------------------------------

    def write_file(self, path: str, chunks: Iterable[Buffer], permissions: int = 0o600) -> int:
        """Creates or replaces a file; returns its length in bytes. See `NinePFiles.write_file`.

        NinePError, PeerError, PeerTimeout; a part of the file may be there then.
        """
        return self._files.write_file(path, chunks, permissions)

    def append_file(self, path: str, data: bytes, limit_bytes: int = 1 << 30) -> int:
        """Writes behind the end of a file, made if there is none; returns its length then.

        NinePError, PeerError, PeerTimeout; a part of the data may be there then. OutOfSpace above
        `limit_bytes`.
        """
        return self._files.append_file(path, data, limit_bytes)

    def read_file(self, path: str, limit_bytes: int = 1 << 30) -> bytearray:
        """A whole file. NinePError, PeerError, PeerTimeout; OutOfSpace above `limit_bytes`."""
        return self._files.read_file(path, limit_bytes)

    def stat(self, path: str) -> Stat:
        """What is known of a file; NinePError (ENOENT if there is none), PeerError, PeerTimeout."""
        return self._files.stat(path)

    def remove(self, path: str) -> None:
        """Removes a file or an empty directory. NinePError, PeerError, PeerTimeout."""
        self._files.remove(path)

    # -- moving bytes ----------------------------------------------------------------------------

    def _drive(self, until: Callable[[], bool]) -> None:
        """Moves bytes both ways until `until()` holds. PeerTimeout after `timeout_s` without any.

        Each round that moved something rings the backend once: it may be waiting for requests as
        well as for room.
        """
        if self._broken is not None:
            raise self._broken
        events, port = self.device.events, self.device.port
        deadline_s = 0.0
        while True:
            moved = self._move()
            if moved:
                events.notify(port)
                deadline_s = 0.0
            if until():
                return
            if moved:
                continue
            now_s = time.monotonic()
            deadline_s = deadline_s or now_s + self.timeout_s
            if now_s >= deadline_s or not events.wait(port, deadline_s - now_s):
                if self._move():
                    events.notify(port)
                    deadline_s = 0.0
                    continue
                raise PeerTimeout("9pfs backend", self.timeout_s)

    def _move(self) -> bool:
        """Moves what can be moved now; whether that was anything."""
        try:
            sent = self._send()
            data = self.device.replies.read()
            if data:
                self._client.receive(data)
            return sent or bool(data)
        except PeerError as error:
            self._broken = error
            raise

    def _send(self) -> bool:
        output = self._client.output
        sent = False
        while output:
            piece = output[0]
            count = self.device.requests.write(piece)
            if count:
                sent = True
            if count < len(piece):
                output[0] = piece[count:]
                break
            output.pop(0)
        return sent
