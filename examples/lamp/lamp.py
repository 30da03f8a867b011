"""A device that does not exist: a lamp that domain 0 dims for a guest. Both of its ends are here.

    toolstack   add_lamp           makes the nodes of both ends, in one transaction
    guest       LampFrontend       says that it is there, and reads how bright it is to be
    domain 0    serve_lamp         waits for the guest, and says that it is connected

As with Xen's own devices each end has a `state`, which the other one may read and watches.
"""

from __future__ import annotations

from xenlive.client import Permission, Transaction, Xenstore
from xenlive.client.aio import AsyncXenstore

INITIALISING, INITIALISED, CONNECTED = "1", "3", "4"


def front_of(domid: int) -> str:
    """The guest's end."""
    return f"/local/domain/{domid}/device/lamp/0"


def back_of(domid: int) -> str:
    """Domain 0's end."""
    return f"/local/domain/0/backend/lamp/{domid}/0"


def add_lamp(store: Xenstore, domid: int, brightness: int) -> None:
    """What a toolstack does: all of the device is there, or nothing."""
    front, back = front_of(domid), back_of(domid)

    def change(tx: Transaction) -> None:
        for end, other in ((front, back), (back, front)):
            tx.write(end, "")
            tx.write(f"{end}/other-end", other)
            tx.write(f"{end}/state", INITIALISING)
        tx.write(f"{back}/brightness", str(brightness))
        for node in (front, f"{front}/other-end", f"{front}/state"):
            tx.set_perms(node, [Permission(domid, "n"), Permission(0, "r")])
        for node in (back, f"{back}/other-end", f"{back}/state", f"{back}/brightness"):
            tx.set_perms(node, [Permission(0, "n"), Permission(domid, "r")])

    store.transact(change)


class LampFrontend:
    """The guest's driver; `store` is the guest's own client, its paths begin at its home."""

    def __init__(self, store: Xenstore) -> None:
        self._store = store
        self._back = store.read_text("device/lamp/0/other-end")

    def connect(self, timeout_s: float) -> None:
        """Says that we are there, and waits for the other end."""
        self._store.write("device/lamp/0/state", INITIALISED)
        self._store.wait_for(f"{self._back}/state", CONNECTED, timeout_s)
        self._store.write("device/lamp/0/state", CONNECTED)

    @property
    def brightness(self) -> int:
        """How bright it is to be."""
        return int(self._store.read(f"{self._back}/brightness"))

    def wait_for_brightness(self, wanted: int, timeout_s: float) -> None:
        """Waits until somebody has dimmed it to `wanted`."""
        self._store.wait_for(f"{self._back}/brightness", str(wanted), timeout_s)


async def serve_lamp(store: AsyncXenstore, domid: int) -> None:
    """Domain 0's driver, until its task is cancelled."""
    front, back = front_of(domid), back_of(domid)
    async with store.watching(f"{front}/state") as events:
        async for _ in events:
            if await store.get(f"{front}/state") == INITIALISED.encode():
                await store.write(f"{back}/state", CONNECTED)
