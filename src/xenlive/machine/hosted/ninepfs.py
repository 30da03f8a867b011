"""The host's 9pfs device: the backend of `domain/`, bound to one domain's grants and doorbells.

**Invariants.** It sees only pages that the domain has granted. A front end that breaks the
protocol loses its device and nothing else: the export directory stays, the domain runs on. The
domain holds the other end of each doorbell and may do to it what it likes: the host never waits on
one, and a device is disconnected before its port is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Any

from xenlive.domain.grants import GrantMapper
from xenlive.domain.ninepback import NinePBack, start_rings_over
from xenlive.errors import HypercallError, XenliveError
from xenlive.machine.disktree import DiskTree
from xenlive.machine.hosted.hypervisor import HostedDomain
from xenlive.machine.hosted.places import ExportDir

#: What a domain may keep in its exported directory.
EXPORT_MAX_BYTES = 1 << 30
EXPORT_MAX_FILES = 1000


def ring(bell: int) -> None:
    """Rings a doorbell. One that is full rings already; the domain may have made it so."""
    os.set_blocking(bell, False)  # a flag that the domain shares, so it is not believed
    with contextlib.suppress(BlockingIOError, InterruptedError):
        os.eventfd_write(bell, 1)


def take_ring(bell: int) -> bool:
    """Whether a doorbell was rung; it is silent again then."""
    os.set_blocking(bell, False)
    try:
        os.eventfd_read(bell)
    except (BlockingIOError, InterruptedError):
        return False
    return True


class NinePDevice:
    """One connected front end; HypercallError if what it names can't be attached to."""

    def __init__(
        self,
        domain: HostedDomain,
        export: ExportDir,
        ring_ref: int,
        port: int,
        log: Callable[[str], None],
    ) -> None:
        self.ring_ref = ring_ref
        self.port = port
        self.kicks = 0
        self._log = log
        ends = domain.port(port)
        self.doorbell = ends.to_remote
        self._answer_bell = ends.from_remote
        mapper = GrantMapper(domain.grant_frames, domain.memory, 0)
        try:
            export.make()
            self._tree = DiskTree(export.path, EXPORT_MAX_BYTES, EXPORT_MAX_FILES, export.make)
        except OSError as error:
            log(f"9pfs device refused: {export.path}: {error.strerror}")
            raise HypercallError("ninepfs_connect", error.errno or errno.EIO) from None
        try:
            start_rings_over(mapper, ring_ref)
            self._back: NinePBack | None = NinePBack(
                mapper, ring_ref, port, self._tree, notify=self._notify
            )
        except XenliveError as error:
            self._tree.close()
            log(f"9pfs device refused: {error}")
            raise HypercallError("ninepfs_connect", errno.EINVAL, str(error)) from None

    @property
    def is_connected(self) -> bool:
        """Whether it serves: neither closed nor lost to a front end that broke the protocol."""
        return self._back is not None

    def rung(self) -> bool:
        """The front end has rung: serves what is in the ring. False when the device is lost."""
        if self._back is None:
            return False
        if not take_ring(self.doorbell):
            return True
        self.kicks += 1
        try:
            self._back.kick()
        except XenliveError as error:
            self._log(f"9pfs device closed: {error}")
            self.close()
            return False
        if self._back.wants_kick:
            ring(self.doorbell)
        return True

    def _notify(self) -> None:
        ring(self._answer_bell)

    def close(self) -> None:
        """Unmaps everything and closes all files."""
        if self._back is not None:
            with contextlib.suppress(OSError):  # a disk that fails at close(2)
                self._back.close()
            self._back = None
            self._tree.close()

    def status(self) -> dict[str, Any]:
        """What `status` says of the device."""
        return {
            "connected": self._back is not None,
            "ring_ref": self.ring_ref,
            "port": self.port,
            "kicks": self.kicks,
            "bytes_read": self._back.bytes_read if self._back is not None else 0,
            "bytes_written": self._back.bytes_written if self._back is not None else 0,
        }
