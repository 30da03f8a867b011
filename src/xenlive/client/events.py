"""Watch events on their way to who asked for them, without I/O.

Each iterator over a watch has a queue of its own, found by the watch's token; what comes for any
other token goes to the queue that `next_event` reads.

**Invariants.** Events of one queue keep their order. No queue has more than `WAITING_MAX` events: a
reader that is so far behind is told so once (`EOVERFLOW`) and has to look at the nodes themselves.
An event for an iterator that has ended is dropped, also when it was on its way already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from xenlive.client.codec import WatchEvent
from xenlive.errors import XenstoreError

WAITING_MAX = 65536
_PREFIX = "xenlive:"


class EventQueue:
    """Events that came and were not looked at; `on_event` is called when there is something."""

    __slots__ = ("_events", "_lost", "label", "on_event", "token")

    def __init__(self, token: str, label: str) -> None:
        self.token = token
        self.label = label
        self.on_event: Callable[[], None] | None = None
        self._events: deque[WatchEvent] = deque()
        self._lost = False

    def __bool__(self) -> bool:
        return self._lost or bool(self._events)

    def pop(self) -> WatchEvent:
        """The oldest event. XenstoreError EOVERFLOW if some were lost, IndexError if none waits."""
        if self._lost:
            self._lost = False
            raise XenstoreError("EOVERFLOW", self.label)
        return self._events.popleft()

    def put(self, event: WatchEvent) -> None:
        """One more; when there are too many, all are given up."""
        if len(self._events) >= WAITING_MAX:
            self._events.clear()
            self._lost = True
        self._events.append(event)
        if self.on_event is not None:
            self.on_event()


class EventRouter:
    """The queues of one connection; `others` has what no iterator asked for."""

    __slots__ = ("_by_token", "_opened", "others")

    def __init__(self) -> None:
        self.others = EventQueue("", "watch events")
        self._by_token: dict[str, EventQueue] = {}
        self._opened = 0

    def open(self, label: str) -> EventQueue:
        """A queue for a watch that is about to be set with the queue's token."""
        self._opened += 1
        queue = EventQueue(f"{_PREFIX}{self._opened}", label)
        self._by_token[queue.token] = queue
        return queue

    def close(self, queue: EventQueue) -> None:
        """Forgets a queue; what still comes for it is dropped."""
        self._by_token.pop(queue.token, None)

    def route(self, event: WatchEvent) -> None:
        """Hands an event on."""
        queue = self._by_token.get(event.token)
        if queue is not None:
            queue.put(event)
        elif not event.token.startswith(_PREFIX):
            self.others.put(event)

    def wake_all(self) -> None:
        """Has every reader look: there may be nothing more to come."""
        for queue in (self.others, *self._by_token.values()):
            if queue.on_event is not None:
                queue.on_event()
