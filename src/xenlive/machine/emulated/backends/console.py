"""A guest's console: what it writes, and what is typed to it.

    guest ──out ring──▶ pump ──▶ sink          typed ──▶ queue ──pump──▶ in ring ──▶ guest
          ──console_io hypercall──┘                      (any length)    (1024 bytes)

Specification: Xen `public/io/console.h`; what a broken ring gets is what
`tools/console/daemon/io.c` does (`buffer_append`, `handle_tty_read`, `ring_free_bytes`).

**Invariants.** All of the page is the guest's to write, this end's indices too: each is read once,
and a pair that can't be moves nothing until it can be again. No byte typed is lost, whatever the
guest does; what it writes is handed on at once and kept nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi import xencons
from xenlive.abi.grant_table import GNTTAB_RESERVED_CONSOLE
from xenlive.abi.hypercalls.hvm import HVM_PARAM_CONSOLE_EVTCHN
from xenlive.errors import PeerError
from xenlive.ring.area import RingArea
from xenlive.ring.stream import Consumer, Producer

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.hypervisor.domain import Domain


class Console:
    """The back end of `domain`'s console, in the domain `host`; `sink` gets all it writes."""

    def __init__(self, host: Domain, domain: Domain, sink: Callable[[bytes], object]) -> None:
        self._host = host
        self._domain = domain
        self.sink = sink
        page = domain.grants_for(host.domid).map(GNTTAB_RESERVED_CONSOLE)
        self._words = page.cast("I")
        self._in = RingArea([page[: xencons.IN_SIZE]])
        self._out = RingArea([page[xencons.OUT_AT : xencons.OUT_AT + xencons.OUT_SIZE]])
        self._queue = bytearray()
        remote = domain.params.peek(HVM_PARAM_CONSOLE_EVTCHN)
        self._port = host.events.bind_interdomain(domain.events, remote)
        host.host_events.handle(self._port, self.pump)

    @property
    def waiting(self) -> int:
        """Bytes that were typed and that the guest has not taken yet."""
        return len(self._queue) + self._in_ring()

    def _in_ring(self) -> int:
        used: int = self._words[xencons.IN_PROD] - self._words[xencons.IN_CONS] & 0xFFFFFFFF
        return used if used <= xencons.IN_SIZE else 0

    def save(self) -> tuple[bytes, int]:
        """What was typed and is not in the ring yet, and this end's port."""
        return bytes(self._queue), self._port

    def restore(self, state: tuple[bytes, int]) -> None:
        """Goes back to what `save` gave; ring and channel are the domains' to put back."""
        self._queue, self._port = bytearray(state[0]), state[1]
        self._host.host_events.put_back(self._port, self.pump)

    def type(self, data: bytes) -> None:
        """Types `data`: the guest finds it in its ring, as soon as there is room."""
        self._queue += data
        self.pump()

    def pump(self) -> None:
        """Moves what can be moved in both directions, and tells the guest if anything was."""
        text = bytes(self._domain.console_io)
        self._domain.console_io.clear()
        written = self._read_output()
        if self._feed_input() or written:
            self._host.events.send(self._port)
        if text or written:
            self.sink(text + written)

    def _read_output(self) -> bytes:
        # As the C daemon, this end keeps no index of its own: a new kernel in the same domain may
        # have begun the ring anew.
        words = self._words
        start: int = words[xencons.OUT_CONS]
        ring = Consumer(self._out, words, xencons.OUT_PROD, xencons.OUT_CONS, start)
        try:
            return ring.read()
        except PeerError:
            return b""

    def _feed_input(self) -> bool:
        if not self._queue:
            return False
        words = self._words
        start: int = words[xencons.IN_PROD]
        ring = Producer(self._in, words, xencons.IN_PROD, xencons.IN_CONS, start)
        try:
            count = ring.write(self._queue)
        except PeerError:
            return False
        del self._queue[:count]
        return bool(count)
