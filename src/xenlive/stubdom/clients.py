"""What an update needs of the loop that serves clients, whichever loop that is.

`serve.py` has the one on epoll; the simulator has one without descriptors. An update session knows
only this.
"""

from __future__ import annotations

from xenlive.machine.guest import EventLoop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.xenstore.connection import Connection


class ClientLoop(EventLoop):
    """A loop that moves bytes between clients and the server core."""

    __slots__ = ()

    def watch_client_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """As `watch_fd`, but not while frozen; `unwatch_fd` ends it."""
        raise NotImplementedError

    def freeze(self) -> None:
        """From now on no byte is read from or written to a client."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Undoes `freeze`; what waited meanwhile is served."""
        raise NotImplementedError

    def release_held(self) -> None:
        """Ends the server's `hold_transactions`; what waited is served."""
        raise NotImplementedError

    def flush(self, connection: Connection) -> None:
        """Writes what waits for a client, now if it takes it, else when it does."""
        raise NotImplementedError

    def connections(self) -> list[tuple[Connection, int]]:
        """Each client's connection and its descriptor."""
        raise NotImplementedError

    def fd_of(self, connection: Connection) -> int:
        """A client's descriptor; KeyError if it is none of ours."""
        raise NotImplementedError
