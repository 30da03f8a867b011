"""FIFO event channels: a word for each port in pages of the guest's, linked to queues by priority.

    control block   ready: a bit for each queue ──▶ head[priority] ─┐
    event array     port 5: PENDING LINKED ... 9 ──▶ port 9: PENDING LINKED ... 0
                    (LINK: the next port of the queue; the guest takes words off the head)

Specification: Xen 4.17 `xen/common/event_fifo.c`, `public/event_channel.h`.

**Invariants.** Pages are held while they are in use, whatever the guest does with its frames. Words
are the guest's to spoil: no number from them is used but as a bit, so a guest that links nonsense
loses its own events. An event for a port whose page is still to come waits for it.

A vcpu has 16 queues here, and there is one vcpu.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xenlive.abi.hypercalls.event_channel import (
    EVTCHN_FIFO_BUSY,
    EVTCHN_FIFO_CONTROL_BLOCK,
    EVTCHN_FIFO_LINK_BITS,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_MAX_QUEUES,
    EVTCHN_FIFO_NR_CHANNELS,
    EVTCHN_FIFO_PENDING,
    EVTCHN_FIFO_PRIORITY_DEFAULT,
    EVTCHN_FIFO_PRIORITY_MIN,
)
from xenlive.abi.hypercalls.xen import XEN_EINVAL, XEN_ENOSPC
from xenlive.errors import HypercallError
from xenlive.memory.address import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenlive.machine.emulated.space import MachineFrame, Space

WORDS_PER_PAGE = PAGE_SIZE // 4
MAX_PAGES = EVTCHN_FIFO_NR_CHANNELS // WORDS_PER_PAGE

_PENDING, _MASKED = 1 << EVTCHN_FIFO_PENDING, 1 << EVTCHN_FIFO_MASKED
_LINKED, _BUSY = 1 << EVTCHN_FIFO_LINKED, 1 << EVTCHN_FIFO_BUSY
_LINK = (1 << EVTCHN_FIFO_LINK_BITS) - 1
_READY = EVTCHN_FIFO_CONTROL_BLOCK.offset_of("ready") // 4
_HEADS = EVTCHN_FIFO_CONTROL_BLOCK.offset_of("head") // 4


class QueueState(NamedTuple):
    """What `EventQueues.save` gives of queues in use."""

    control: MachineFrame
    offset: int
    pages: tuple[MachineFrame, ...]
    tails: tuple[int, ...]
    #: By port, where it is not as at first: its priority, the queue it was in last.
    priorities: dict[int, int]
    last_queues: dict[int, int]
    #: Ports with an event, whose page is still to come.
    waiting: frozenset[int]


class EventQueues:
    """The queues of a domain with the memory `space`; off until `start`.

    `notify` tells the vcpu to look for events, `woken` is called with each port that became
    pending, for whoever polls it. Once on, it is the domain's `Delivery`.
    """

    def __init__(
        self, space: Space, notify: Callable[[], None], woken: Callable[[int], None]
    ) -> None:
        self._space = space
        self._notify = notify
        self._woken = woken
        self._use(None)

    def _use(self, state: QueueState | None) -> None:
        self._control = state.control if state else None
        self._offset = state.offset if state else 0
        self._block: memoryview | None = None
        if state is not None:
            end = state.offset + EVTCHN_FIFO_CONTROL_BLOCK.size
            self._block = state.control.view[state.offset : end].cast("I")
        self._pages = list(state.pages) if state else []
        self._words = [page.view.cast("I") for page in self._pages]
        self._tails = list(state.tails) if state else [0] * EVTCHN_FIFO_MAX_QUEUES
        self._priorities = dict(state.priorities) if state else {}
        self._last_queues = dict(state.last_queues) if state else {}
        self._waiting = set(state.waiting) if state else set()

    # ---- on and off ----------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        """Whether the domain gets its events this way."""
        return self._control is not None

    def start(self, control: MachineFrame, offset: int, pending: Iterable[int]) -> None:
        """Queues with their control block there (`evtchn_fifo_init_control`, `setup_ports`).

        `pending` are the ports with an event: it is announced when there is a word for it.
        """
        if self.is_on:
            raise HypercallError("EVTCHNOP_init_control", XEN_EINVAL, "there is a control block")
        self._space.hold(control)
        tails = (0,) * EVTCHN_FIFO_MAX_QUEUES
        self._use(QueueState(control, offset, (), tails, {}, {}, frozenset(pending)))

    def validate_room(self) -> None:
        """ENOSPC when all ports have words."""
        if len(self._pages) >= MAX_PAGES:
            raise HypercallError("EVTCHNOP_expand_array", XEN_ENOSPC, "all ports have words")

    def add_page(self, page: MachineFrame, is_valid: Callable[[int], bool]) -> None:
        """Words for the next 1024 ports (`add_page_to_event_array`); events that waited come."""
        first = len(self._pages) * WORDS_PER_PAGE
        self._space.hold(page)
        self._pages.append(page)
        self._words.append(page.view.cast("I"))
        for port in sorted(self._waiting):
            if first <= port < first + WORDS_PER_PAGE and is_valid(port):
                self.set_pending(port, 0)

    def stop(self) -> None:
        """Gives all pages back (`evtchn_fifo_destroy`)."""
        held = [*self._pages, *([self._control] if self._control else [])]
        self._use(None)
        for frame in held:
            self._space.let_go(frame)

    # ---- words ---------------------------------------------------------------------------

    def _word(self, port: int) -> int:
        """The port's word; 0 while there is none."""
        page, index = divmod(port, WORDS_PER_PAGE)
        return self._words[page][index] if page < len(self._words) else 0

    def _set_word(self, port: int, value: int) -> None:
        page, index = divmod(port, WORDS_PER_PAGE)
        if page < len(self._words):
            self._words[page][index] = value

    def _has_word(self, port: int) -> bool:
        return port < len(self._words) * WORDS_PER_PAGE

    # ---- events --------------------------------------------------------------------------

    def set_pending(self, port: int, vcpu: int) -> None:
        """An event for `port` (`evtchn_fifo_set_pending`)."""
        if self._block is None or not self._has_word(port):
            self._waiting.add(port)
            return
        word = self._word(port)
        links = not word & (_MASKED | _LINKED)
        self._set_word(port, word | _PENDING | (_LINKED if links else 0))
        if links:
            self._enqueue(port)
        if not word & _PENDING:
            self._woken(port)

    def _enqueue(self, port: int) -> None:
        """Puts a port that was just marked as linked at the end of its queue."""
        block = self._block
        assert block is not None
        queue = self._priorities.get(port, EVTCHN_FIFO_PRIORITY_DEFAULT)
        last = self._last_queues.get(port, 0)
        if self._tails[last] == port:  # it was the last one there, and was taken
            self._tails[last] = 0
        self._last_queues[port] = queue
        is_linked = bool(self._tails[queue]) and self._link(self._tails[queue], port)
        self._tails[queue] = port
        if is_linked:
            return
        block[_HEADS + queue] = port
        ready = block[_READY]
        block[_READY] = ready | 1 << queue
        if not ready >> queue & 1:
            self._notify()

    def _link(self, tail: int, port: int) -> bool:
        """Lets the queue go on with `port`, if the guest has not taken its tail off."""
        word = self._word(tail)
        if not word & _LINKED:
            return False
        self._set_word(tail, word & ~(_BUSY | _LINK) | port)
        return True

    def clear_pending(self, port: int) -> None:
        """Forgets an event nobody took; the guest unlinks (`evtchn_fifo_clear_pending`)."""
        self._set_word(port, self._word(port) & ~_PENDING)

    def unmask(self, port: int, vcpu: int) -> None:
        """Takes events of `port` again, also the one that waits (`evtchn_fifo_unmask`)."""
        if not self._has_word(port):
            return
        word = self._word(port)
        self._set_word(port, word & ~_MASKED)
        if word & _PENDING:
            self.set_pending(port, vcpu)

    def is_pending(self, port: int) -> bool:
        """Whether the port's word says so (`evtchn_fifo_is_pending`)."""
        return bool(self._word(port) & _PENDING)

    def is_masked(self, port: int) -> bool:
        """Whether the guest does not want to hear of the port now, or can't."""
        return not self._has_word(port) or bool(self._word(port) & _MASKED)

    def is_busy(self, port: int) -> bool:
        """Whether a free port is still in a queue, and can't be given out (`evtchn_is_busy`)."""
        return bool(self._word(port) & _LINKED)

    def bound(self, port: int) -> None:
        """A port begins with the usual priority (`evtchn_fifo_init`)."""
        self._priorities.pop(port, None)

    def max_ports(self) -> int:
        """As many ports as a link has room for."""
        return EVTCHN_FIFO_NR_CHANNELS

    def set_priority(self, port: int, priority: int) -> None:
        """Which queue its next events go to (`evtchn_fifo_set_priority`)."""
        if priority > EVTCHN_FIFO_PRIORITY_MIN:
            raise HypercallError("EVTCHNOP_set_priority", XEN_EINVAL, f"priority {priority}")
        self._priorities[port] = priority

    # ---- snapshots -----------------------------------------------------------------------

    def save(self) -> QueueState | None:
        """What is not in the guest's pages, for `restore`; None while it is off."""
        if self._control is None:
            return None
        return QueueState(
            self._control,
            self._offset,
            tuple(self._pages),
            tuple(self._tails),
            dict(self._priorities),
            dict(self._last_queues),
            frozenset(self._waiting),
        )

    def restore(self, state: QueueState | None) -> None:
        """Goes back to what `save` gave; pages and who holds them are the space's to restore."""
        self._use(state)
