"""The host's 9pfs device: the backend of `domain/`, bound to one domain's grants and doorbells.

**Invariants.** It sees only pages that the domain has granted. A front end that breaks the
protocol loses its device and nothing else: the export directory stays, the domain runs on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from xenlive.abi.xen9pfs import IN_CONS, IN_PROD, OUT_CONS, OUT_PROD
from xenlive.domain.grants import GrantMapper
from xenlive.domain.ninepback import NinePBack
from xenlive.errors import HypercallError, XenliveError
from xenlive.machine.hosted.disktree import DiskTree
from xenlive.machine.hosted.hypervisor import HostedDomain

#: What a domain may keep in its exported directory.
EXPORT_MAX_BYTES = 1 << 30
EXPORT_MAX_FILES = 1000


def start_rings_over(mapper: GrantMapper, ring_ref: int) -> None:
    """Sets the four indices of an interface page to 0; HypercallError if it is not granted."""
    interface = mapper.map(ring_ref).cast("I")
    for index in (IN_CONS, IN_PROD, OUT_CONS, OUT_PROD):
        interface[index] = 0
    mapper.unmap(ring_ref)


class NinePDevice:
    """One connected front end; HypercallError if what it names can't be attached to."""

    def __init__(
        self,
        domain: HostedDomain,
        export: str,
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
        self._tree = DiskTree(export, EXPORT_MAX_BYTES, EXPORT_MAX_FILES)
        try:
            start_rings_over(mapper, ring_ref)
            self._back: NinePBack | None = NinePBack(
                mapper, ring_ref, port, self._tree, notify=self._notify
            )
        except XenliveError as error:
            self._tree.close()
            log(f"9pfs device refused: {error}")
            raise HypercallError("ninepfs_connect", errno.EINVAL, str(error)) from None

    def rung(self) -> bool:
        """The front end has rung: serves what is in the ring. False when the device is lost."""
        try:
            os.eventfd_read(self.doorbell)
        except BlockingIOError:
            return True
        if self._back is None:
            return False
        self.kicks += 1
        try:
            self._back.kick()
        except XenliveError as error:
            self._log(f"9pfs device closed: {error}")
            self.close()
            return False
        if self._back.wants_kick:
            os.eventfd_write(self.doorbell, 1)
        return True

    def _notify(self) -> None:
        os.eventfd_write(self._answer_bell, 1)

    def close(self) -> None:
        """Unmaps everything and closes all files."""
        if self._back is not None:
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
