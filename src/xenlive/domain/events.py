"""Event channels: how one end of a device tells the other that there is something to see.

A port is a number the hypervisor gave; ringing it says nothing but "look". `EventChannels` is what
a device needs of them and every machine has its own; `LocalEvents` is the one without processes,
for tests and simulation. Names and refusals follow Xen `public/event_channel.h`.

**Invariants.** A ring that comes while nobody waits is kept: the next `wait` returns at once. A
port outlives the kernel that asked for it (kexec), so the next kernel binds the same number again,
and a number that is no port of this domain is refused, never guessed.
"""

from __future__ import annotations

import errno

from xenlive.errors import HypercallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_FREE_PORT = 3
MAX_PORTS = 1024


class EventChannels:
    """The event channels of one domain, as its kernel uses them."""

    __slots__ = ()

    def alloc_unbound(self, remote_domid: int) -> int:
        """A new port, ready to use, that `remote_domid` may connect to. HypercallError if none."""
        raise NotImplementedError

    def bind(self, port: int) -> None:
        """Takes a port up again after kexec. HypercallError if it is none of this domain's."""
        raise NotImplementedError

    def close(self, port: int) -> None:
        """Gives a port back. HypercallError if it is none of this domain's."""
        raise NotImplementedError

    def notify(self, port: int) -> None:
        """Rings the other end. HypercallError if the port is not bound."""
        raise NotImplementedError

    def wait(self, port: int, timeout_s: float) -> bool:
        """Waits until the other end has rung, and takes that ring; False after `timeout_s`."""
        raise NotImplementedError


class LocalEvents(EventChannels):
    """Event channels within one process and without time.

    It stands for the hypervisor: it keeps the ports while kernels come and go. The other end of a
    port is a handler, called when the port is rung; it answers with `ring`. Where `wait` finds
    nothing it calls `idle` for as long as that says it did something, and then gives up at once,
    whatever the time-out: nothing else could ring here.
    """

    __slots__ = ("_bound", "_handlers", "_pending", "_ports", "idle")

    def __init__(self, idle: Callable[[], bool] | None = None) -> None:
        self.idle = idle
        self._ports: dict[int, int] = {}
        self._bound: set[int] = set()
        self._pending: set[int] = set()
        self._handlers: dict[int, Callable[[], None]] = {}

    def alloc_unbound(self, remote_domid: int) -> int:
        """The lowest free port from `FIRST_FREE_PORT` up; ENOSPC when all are taken."""
        for port in range(FIRST_FREE_PORT, MAX_PORTS):
            if port not in self._ports:
                self._ports[port] = remote_domid
                self._bound.add(port)
                return port
        raise HypercallError("evtchn_alloc_unbound", errno.ENOSPC)

    def bind(self, port: int) -> None:
        """Takes a port up again; EINVAL for a number that was never given out."""
        self._known("evtchn_bind", port)
        self._bound.add(port)

    def close(self, port: int) -> None:
        """Forgets a port, its handler and its pending ring."""
        self._known("evtchn_close", port)
        del self._ports[port]
        self._bound.discard(port)
        self._pending.discard(port)
        self._handlers.pop(port, None)

    def notify(self, port: int) -> None:
        """Calls the other end's handler, if there is one."""
        if port not in self._bound:
            raise HypercallError("evtchn_send", errno.EINVAL, f"port {port} is not bound")
        handler = self._handlers.get(port)
        if handler is not None:
            handler()

    def wait(self, port: int, timeout_s: float) -> bool:
        """True if the port was rung, or `idle` got it rung."""
        if port not in self._bound:
            raise HypercallError("evtchn_wait", errno.EINVAL, f"port {port} is not bound")
        while port not in self._pending:
            if self.idle is None or not self.idle():
                return False
        self._pending.discard(port)
        return True

    # -- the hypervisor's and the other end's side -----------------------------------------------

    def listen(self, port: int, handler: Callable[[], None] | None) -> None:
        """Makes `handler` the other end of a port; None takes it away again."""
        self._known("evtchn_bind_interdomain", port)
        if handler is None:
            self._handlers.pop(port, None)
        else:
            self._handlers[port] = handler

    def ring(self, port: int) -> None:
        """Rings the domain's end of a port; nothing happens if it is closed."""
        if port in self._ports:
            self._pending.add(port)

    def forget_kernel(self) -> None:
        """What kexec does to event channels: ports stay, but no kernel has them bound."""
        self._bound.clear()

    def ports(self) -> dict[int, int]:
        """The domain's ports and who may be at their other end."""
        return dict(self._ports)

    def _known(self, call: str, port: int) -> None:
        if port not in self._ports:
            raise HypercallError(call, errno.EINVAL, f"no port {port}")
