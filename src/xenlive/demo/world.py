"""What the demo can update and look at, and in which shape it is told.

A `World` is a server that can be given the next kernel. `hosted.py` has the real one; tests have
others, so that load and verdict are themselves tested against a server we did not write.

**Invariants.** A snapshot is read from the domain's memory and from its hypervisor, never from
what the kernels say of themselves, and only while the ring is at rest. Times are seconds on the
system-wide monotonic clock, durations milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

PHASES = ("quiesce", "dump", "kexec", "boot", "restore", "first_reply")


@dataclass(frozen=True)
class Image:
    """A kernel to update to: where it is, what it calls itself, its Mini-OS configuration."""

    path: Path
    version: str
    config: str


@dataclass(frozen=True)
class UpdateReport:
    """One live update as the host saw it; `reason` says why it is not `ok`."""

    ok: bool
    from_version: str
    to_version: str
    phases_ms: dict[str, float] = field(default_factory=dict)
    started_s: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class ModuleRecord:
    """An entry of the module's record table; `data` is in hex, `pages` are page indices."""

    index: int
    type: int
    offset: int
    size: int
    data: str
    pages: tuple[int, ...]


@dataclass(frozen=True)
class Grant:
    """A grant table entry."""

    frame: int
    domid: int
    flags: int


@dataclass(frozen=True)
class RingIndices:
    """The free-running u32 indices of the 9pfs interface page."""

    in_cons: int
    in_prod: int
    out_cons: int
    out_prod: int


@dataclass(frozen=True)
class Backend:
    """The 9pfs backend: how often it connected and lost a front end, and bytes each way."""

    connected: bool
    connects: int
    disconnects: int
    received_bytes: int
    sent_bytes: int


@dataclass(frozen=True)
class HandoverSnapshot:
    """All that a live update must hand over unchanged, or moved on without a break."""

    version: str
    domain_pid: int
    ram_identity: str
    module_address: int
    module_pages: int
    owners: str
    records: tuple[ModuleRecord, ...]
    problems: tuple[str, ...]
    ring_ref: int
    event_channel: int
    ring_order: int
    ring_refs: tuple[int, ...]
    grants: dict[int, Grant]
    indices: RingIndices
    saved_prod_pvt_out: int
    saved_cons_pvt_in: int
    backend: Backend
    description: dict[str, Any] = field(default_factory=dict)


class World(Protocol):
    """A server that runs a first kernel and can be updated."""

    @property
    def socket_path(self) -> Path:
        """The Xenstore socket that clients connect to."""
        ...

    def start(self) -> str:
        """Boots the first kernel and waits until it serves; returns its version."""
        ...

    def update(self, image: Image) -> UpdateReport:
        """One cold live update. Whatever goes wrong is in the report."""
        ...

    def snapshot(self) -> HandoverSnapshot | None:
        """The state of what is handed over; None where there is nothing of the kind."""
        ...

    def stop(self) -> None:
        """Ends everything and removes every trace; safe to call at any time, and twice."""
        ...
