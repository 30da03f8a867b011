"""A door of the host process: a listening Unix socket, and those who came in by it.

    Door ── path bound, mode 0600 ──▶ accept ──▶ a visitor: `_make`, `_step` whenever it is readable
                                        └── full, or no descriptor left: `_make_room`

**Invariants.** Nobody is waited for: all sockets are non-blocking. Nobody comes in who has no
place; while there is no descriptor for anybody, the door is deaf until somebody has gone. The
socket file is removed if it is still the one that was made.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import Generic, Protocol, TypeVar

from xenlive.machine.hosted.places import identity, remove_own

_WAITING_MAX = 16


class Visitor(Protocol):
    """What is known of somebody inside; at least the socket."""

    socket: socket.socket


V = TypeVar("V", bound=Visitor)


class Door(Generic[V]):
    """A listening socket of `kind` at `path` with `places`; the owner's loop calls `serve`.

    `_inside` are those who came in, by descriptor. OSError if the path can't be had.
    """

    def __init__(self, path: str, kind: socket.SocketKind, places: int) -> None:
        self.path = path
        self._places = places
        self._inside: dict[int, V] = {}
        with contextlib.ExitStack() as undo:
            self._listener = undo.enter_context(socket.socket(socket.AF_UNIX, kind))
            self._listener.bind(path)
            self._made = identity(path)
            undo.callback(remove_own, path, self._made)
            os.chmod(path, 0o600)
            self._listener.listen(_WAITING_MAX)
            self._listener.setblocking(False)
            self._epoll = undo.enter_context(select.epoll())
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
            undo.pop_all()

    def fileno(self) -> int:
        """The descriptor that is readable whenever `serve` has something to do."""
        return self._epoll.fileno()

    def serve(self) -> None:
        """Lets in who knocks, and does one step for each who waits for one. Never blocks."""
        for fd, _ in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._accept()
            elif fd in self._inside:
                self._step(fd)

    def close(self) -> None:
        """Closes everything and removes the socket file."""
        for fd in list(self._inside):
            self._drop(fd)
        self._epoll.close()
        self._listener.close()
        remove_own(self.path, self._made)

    def _make(self, connection: socket.socket) -> V:
        """Somebody who just came in."""
        raise NotImplementedError

    def _step(self, fd: int) -> None:
        """Serves one of those inside, without waiting."""
        raise NotImplementedError

    def _make_room(self) -> bool:
        """Drops whoever has to go first for another one; whether there is such a one."""
        raise NotImplementedError

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # Too many descriptors, most likely: somebody has to make room, or this comes again.
            if not self._make_room() and self._inside:
                self._epoll.modify(self._listener.fileno(), 0)
            return
        if len(self._inside) >= self._places and not self._make_room():
            connection.close()
            return
        connection.setblocking(False)
        fd = connection.fileno()
        self._inside[fd] = self._make(connection)
        self._epoll.register(fd, select.EPOLLIN)

    def _drop(self, fd: int) -> V:
        """Closes the connection of one of those inside, and gives what was known of it."""
        gone = self._inside.pop(fd)
        self._epoll.unregister(fd)
        self._epoll.modify(self._listener.fileno(), select.EPOLLIN)
        gone.socket.close()
        return gone
