"""A back end's side of the handshake by which a guest and its device find each other.

    front (guest)                                          back (here)
    1 Initialising                                         1 Initialising
                                                           2 InitWait: what it offers is written
    3 Initialised: rings and ports are written  ─────────▶
                                                           4 Connected, or 6 Closed if they are bad
    4 Connected                                 ◀─────────
    5 Closing                                   ─────────▶ 5 Closing: all is unmapped
    6 Closed                                    ─────────▶ 6 Closed
    1 Initialising again                        ─────────▶ 2 InitWait again

Specification: Xen `public/io/xenbus.h` and the state machine of `public/io/9pfs.h`; what an odd
front end gets is what `frontend_changed` of `tools/9pfsd/xen-9pfsd.c` does. Coming back after a
close is as in Linux' back ends, which Xen's daemon does not do.

**Invariants.** All that the front end wrote is read once and checked. It may jump between states
and name what is not its own: the worst it gets is a closed device, and why is in the back end's
node `error/.../error`, as Linux' `xenbus_dev_error` writes it. A front end that goes through
Initialised again, or starts over at Initialising, while it is connected, is disconnected first:
another kernel may be in its place. A write of the state that it has already changes nothing.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xenlive.abi.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitialising,
    XenbusStateInitWait,
    XenbusStateReconfigured,
    XenbusStateUnknown,
)
from xenlive.errors import HypercallError, PeerError, XenstoreError

if TYPE_CHECKING:
    from xenlive.machine.emulated.backends.store import StoreClient

_U32_MAX = 0xFFFFFFFF
_DIGITS_MAX = 10


@dataclass(frozen=True, slots=True)
class DevicePlace:
    """Which device: its kind (`9pfs`), the guest's domain, its number there."""

    kind: str
    domid: int
    number: int

    @property
    def front(self) -> str:
        """The guest's nodes."""
        return f"/local/domain/{self.domid}/device/{self.kind}/{self.number}"

    @property
    def back(self) -> str:
        """The back end's nodes."""
        return f"/local/domain/0/backend/{self.kind}/{self.domid}/{self.number}"

    @property
    def error(self) -> str:
        """Where the back end says what was wrong."""
        return f"/local/domain/0/error/backend/{self.kind}/{self.domid}/{self.number}/error"


class Driver(Protocol):
    """The device behind the handshake."""

    def features(self) -> dict[str, str]:
        """What the front end may read before it connects: names of nodes and their values."""

    def connect(self, front: FrontEnd) -> None:
        """Attaches to what the front end offers. PeerError or HypercallError, and nothing is."""

    def serve(self) -> None:
        """The front end was told that it is connected: serves it from now on."""

    def disconnect(self) -> None:
        """Lets go of all of it; also when there is nothing."""


class FrontEnd:
    """What the front end wrote; each read asks the store."""

    def __init__(self, store: StoreClient, place: DevicePlace) -> None:
        self._store = store
        self._place = place

    def text(self, name: str) -> str | None:
        """A node's value; None if it is missing, or no ASCII text."""
        try:
            value = self._store.read(f"{self._place.front}/{name}")
            return value.rstrip(b"\0").decode("ascii")
        except (XenstoreError, UnicodeDecodeError):
            return None

    def number(self, name: str) -> int | None:
        """A node's value as a decimal u32; None if it is none."""
        text = self.text(name)
        if text is None or not text.isdigit() or len(text) > _DIGITS_MAX:
            return None
        value = int(text)
        return value if value <= _U32_MAX else None


class XenbusBackEnd:
    """One device's back end: follows the front end's state, from InitWait on."""

    def __init__(self, store: StoreClient, place: DevicePlace, driver: Driver) -> None:
        self.place = place
        self.state = XenbusStateInitialising
        self._store = store
        self._driver = driver
        self._front = FrontEnd(store, place)
        self._front_state = XenbusStateUnknown
        self._state_path = f"{place.front}/state"
        self._offer()
        store.watch(self._state_path, self._on_change)

    @property
    def is_connected(self) -> bool:
        """Whether the front end's rings are served."""
        return self.state == XenbusStateConnected

    def fail(self, why: str) -> None:
        """Closes the device, and says why where toolstacks look."""
        self._driver.disconnect()
        self._store.write(self.place.error, f"{errno.EINVAL} {why}")
        self._write_state(XenbusStateClosed)

    def close(self) -> None:
        """The device is no more: nobody looks at its nodes from now on."""
        self._store.unwatch(self._state_path, self._on_change)
        self._driver.disconnect()
        self.state = XenbusStateClosed

    def _offer(self) -> None:
        for name, value in self._driver.features().items():
            self._store.write(f"{self.place.back}/{name}", value)
        self._write_state(XenbusStateInitWait)

    def _write_state(self, state: int) -> None:
        self.state = state
        self._store.write(f"{self.place.back}/state", str(state))

    def _on_change(self, _: str) -> None:
        state = self._read_front_state()
        if state == self._front_state:
            return
        self._front_state = state
        if state == XenbusStateInitialising:
            self._front_begins()
        elif state == XenbusStateInitialised:
            self._connect()
        elif state == XenbusStateClosing:
            self._driver.disconnect()
            self._write_state(XenbusStateClosing)
        elif state == XenbusStateClosed:
            self._driver.disconnect()
            self._write_state(XenbusStateClosed)

    def _read_front_state(self) -> int:
        """As a number that is one; a front end without the node is closed."""
        if self._front.text("state") is None:
            return XenbusStateClosed
        state = self._front.number("state")
        if state is None or state > XenbusStateReconfigured:
            return XenbusStateUnknown
        return state

    def _front_begins(self) -> None:
        if self.state != XenbusStateInitWait:
            self._driver.disconnect()
            self._offer()

    def _connect(self) -> None:
        self._driver.disconnect()
        try:
            self._driver.connect(self._front)
        except (HypercallError, PeerError) as error:
            self.fail(str(error))
        else:
            self._write_state(XenbusStateConnected)
            self._driver.serve()
