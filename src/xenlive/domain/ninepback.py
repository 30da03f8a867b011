"""The 9pfs backend of one device: a 9P server behind a front end's rings.

Source: Xen `docs/misc/9pfs.pandoc`, "Ring Usage" and "Request/Response Workflow". The front end's
domain is not trusted: the backend sees the pages that were granted to it, and no others.

    kick():  reply of before fully sent?  ── no, ring full ──▶ return
                  │ yes
             next request complete?  ── no ──▶ take bytes from the ring ── none ──▶ return
                  │ yes
             one reply, into the ring

**Invariants.** Never more than one request and one reply is held, however much the front end asks
for. A front end that breaks the protocol gets a PeerError, once; from then on its device is dead
and `kick` does nothing, and no other device is touched. The interface page's `ring_order` and
`ref[]` are read once.
"""

from __future__ import annotations

from xenlive.abi.xen9pfs import (
    IN_CONS,
    IN_PROD,
    MAX_RING_ORDER,
    MIN_RING_ORDER,
    OUT_CONS,
    OUT_PROD,
    REF0,
    RING_ORDER,
)
from xenlive.errors import PeerError
from xenlive.ninep.server import NinePServer
from xenlive.ring.area import RingArea, split_views
from xenlive.ring.stream import Consumer, Producer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    from xenlive.ninep.server import Session
    from xenlive.ninep.tree import Tree

    class Mapper(Protocol):
        """Whoever maps what the front end's domain granted: HypercallError if that is refused."""

        def map(self, ref: int, writable: bool = True) -> memoryview:
            """A live view of one granted page."""

        def map_ring(self, refs: Iterable[int]) -> list[memoryview]:
            """Views of many, writable, in order. All or none."""

        def unmap(self, ref: int, writable: bool = True) -> None:
            """Gives one mapping back."""


#: Requests that one `kick` handles before it lets others have their turn.
BUDGET = 256


def start_rings_over(mapper: Mapper, ring_ref: int) -> None:
    """Sets the four indices of an interface page to 0; HypercallError if it is not granted."""
    interface = mapper.map(ring_ref).cast("I")
    for index in (IN_CONS, IN_PROD, OUT_CONS, OUT_PROD):
        interface[index] = 0
    mapper.unmap(ring_ref)


class NinePBack:
    """A connected device. HypercallError if a page is not granted, PeerError for a bad interface.

    `notify`, if given, is called by `kick` whenever the front end should look, and already when a
    request was taken, so that both sides work at once. Without it, `kick` says at its end whether.
    A device of several rings has one of these for each, and one `session`, the caller's to close.
    """

    __slots__ = (
        "_budget_spent",
        "_dead",
        "_grants",
        "_notify",
        "_refs",
        "_replies",
        "_reply",
        "_requests",
        "bytes_read",
        "bytes_written",
        "order",
        "port",
        "ring_ref",
        "server",
    )

    def __init__(
        self,
        grants: Mapper,
        ring_ref: int,
        port: int,
        tree: Tree,
        *,
        notify: Callable[[], None] | None = None,
        max_fids: int = 256,
        max_open_files: int = 64,
        session: Session | None = None,
    ) -> None:
        self._grants = grants
        self._notify = notify
        self.ring_ref = ring_ref
        self.port = port
        interface = grants.map(ring_ref).cast("I")
        try:
            self.order: int = interface[RING_ORDER]
            if not MIN_RING_ORDER <= self.order <= MAX_RING_ORDER:
                raise PeerError("ring order out of range", RING_ORDER * 4, self.order)
            refs: list[int] = interface[REF0 : REF0 + (1 << self.order)].tolist()
            views = grants.map_ring(refs)
        except BaseException:
            grants.unmap(ring_ref)
            raise
        self._refs = [ring_ref, *refs]
        half = sum(len(view) for view in views) // 2
        inward, outward = split_views(views, half)
        self._requests = Consumer(
            RingArea(outward), interface, OUT_PROD, OUT_CONS, interface[OUT_CONS]
        )
        self._replies = Producer(RingArea(inward), interface, IN_PROD, IN_CONS, interface[IN_PROD])
        self.server = NinePServer(tree, half, max_fids, max_open_files, session)
        self._reply = memoryview(b"")
        self._dead = False
        self._budget_spent = False
        self.bytes_read = 0
        self.bytes_written = 0

    @property
    def is_dead(self) -> bool:
        """Whether the device was closed, by `close` or by a front end that broke the protocol."""
        return self._dead

    @property
    def wants_kick(self) -> bool:
        """Whether the last `kick` stopped with work left, for the sake of others."""
        return self._budget_spent

    def kick(self) -> bool:
        """Handles what the front end sent; whether the caller should notify it of anything.

        PeerError if the front end broke the protocol: the device is closed then.
        """
        if self._dead:
            return False
        try:
            return self._serve()
        except PeerError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the files and gives the pages back; `kick` does nothing any more."""
        if self._dead:
            return
        self._dead = True
        self._budget_spent = False
        try:
            self.server.close()
        finally:
            for ref in self._refs:
                self._grants.unmap(ref)

    def _serve(self) -> bool:
        moved = False
        budget = BUDGET
        while True:
            if len(self._reply):
                count = self._replies.write(self._reply)
                self._reply = self._reply[count:]
                self.bytes_written += count
                moved = moved or count > 0
                if len(self._reply):
                    break
            if budget == 0:
                break
            reply = self.server.next_reply()
            if reply is not None:
                self._reply = memoryview(reply)
                budget -= 1
                continue
            data = self._requests.read(self.server.room)
            if not data:
                break
            self.bytes_read += len(data)
            self.server.receive(data)
            moved = True
            if self._notify is not None:
                # The front end may fill the ring again while the request is handled.
                self._notify()
                moved = False
        self._budget_spent = budget == 0
        if moved and self._notify is not None:
            self._notify()
            return False
        return moved
