"""Where other machines enter their domains beside a hosted one: a Unix socket, a packet each way.

    {"verb": "enter"}                                    ->  {"ok": true, "domid": 2, "socket": ...}
    {"verb": "share", "ref": R, "offset": O, "port": P}  ->  {"ok": true}
      with the memfd of its memory                           with the doorbell it hears and its own
    {"verb": "shutdown"}                                 ->  {"ok": true}
    anything else                                        ->  {"ok": false, "error": "..."}

One connection is one domain: when it closes, for whatever reason, the domain is gone.

**Invariants.** Nobody is waited for: sockets are non-blocking, a packet is answered at once or its
connection is closed. Each descriptor that comes with a packet and is not kept is closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
from typing import Any

from xenlive.errors import PeerError, XenliveError
from xenlive.machine.hosted.others import OTHERS_MAX, Other, OtherDomains
from xenlive.machine.hosted.places import identity, remove_own

PACKET_MAX = 4096
_FDS_MAX = 4


class _Neighbour:
    __slots__ = ("other", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.other: Other | None = None


class NeighbourDoor:
    """Serves `others` on a listening socket at `path`; the owner's loop calls `serve`.

    `store_socket` is where a domain's toolstack reaches the stub domain.
    """

    def __init__(self, path: str, others: OtherDomains, store_socket: str) -> None:
        self._path = path
        self._others = others
        self._store_socket = store_socket
        self._neighbours: dict[int, _Neighbour] = {}
        with contextlib.ExitStack() as undo:
            self._listener = undo.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            )
            self._listener.bind(path)
            self._made = identity(path)
            undo.callback(remove_own, path, self._made)
            os.chmod(path, 0o600)
            self._listener.listen(16)
            self._listener.setblocking(False)
            self._epoll = undo.enter_context(select.epoll())
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
            undo.pop_all()

    def fileno(self) -> int:
        """The descriptor that is readable whenever `serve` has something to do."""
        return self._epoll.fileno()

    def serve(self) -> None:
        """Lets machines in, and serves one packet of each that sent one. Never blocks."""
        for fd, _ in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._accept()
            elif fd in self._neighbours:
                self._step(fd)

    def close(self) -> None:
        """Closes everything and removes the socket file."""
        for fd in list(self._neighbours):
            self._drop(fd)
        self._epoll.close()
        self._listener.close()
        remove_own(self._path, self._made)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # Too many descriptors, most likely: nobody comes in before somebody has gone.
            self._drop_idle()
            self._epoll.modify(self._listener.fileno(), 0 if self._neighbours else select.EPOLLIN)
            return
        if len(self._neighbours) >= OTHERS_MAX:
            self._drop_idle()
        if len(self._neighbours) >= OTHERS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        fd = connection.fileno()
        self._neighbours[fd] = _Neighbour(connection)
        self._epoll.register(fd, select.EPOLLIN)

    def _step(self, fd: int) -> None:
        neighbour = self._neighbours[fd]
        try:
            packet, fds, _, _ = socket.recv_fds(
                neighbour.socket, PACKET_MAX, _FDS_MAX, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            packet, fds = b"", []
        if not packet:
            _close_all(fds)
            self._drop(fd)
            return
        try:
            answer, given = self._answer(neighbour, packet, fds)
        except (XenliveError, OSError) as error:
            answer, given = {"ok": False, "error": str(error)}, []
        _close_all(fds)
        try:
            socket.send_fds(neighbour.socket, [json.dumps(answer).encode()], given)
        except OSError:
            self._drop(fd)

    def _answer(
        self, neighbour: _Neighbour, packet: bytes, fds: list[int]
    ) -> tuple[dict[str, Any], list[int]]:
        """The answer and its descriptors; what is kept of `fds` is taken out of it."""
        try:
            request = json.loads(packet)
            verb = request["verb"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise PeerError("a packet that asks for nothing") from None
        other = neighbour.other
        if verb == "enter" and other is None:
            neighbour.other = other = self._others.enter()
            return {"ok": True, "domid": other.domid, "socket": self._store_socket}, []
        if verb == "share" and other is not None:
            ref, offset, port = (_number(request, name) for name in ("ref", "offset", "port"))
            if len(fds) != 1:
                raise PeerError("memory is one descriptor", value=len(fds))
            other.share_page(ref, fds[0], offset)
            fds.pop()
            return {"ok": True}, list(other.share_port(port))
        if verb == "shutdown" and other is not None:
            self._others.shut_down(other)
            return {"ok": True}, []
        raise PeerError("not a verb, or not now", value=str(verb)[:40])

    def _drop_idle(self) -> None:
        """Makes room: who has been there for longest and has entered no domain has to go."""
        for fd, neighbour in self._neighbours.items():
            if neighbour.other is None:
                self._drop(fd)
                return

    def _drop(self, fd: int) -> None:
        neighbour = self._neighbours.pop(fd)
        self._epoll.unregister(fd)
        self._epoll.modify(self._listener.fileno(), select.EPOLLIN)
        neighbour.socket.close()
        if neighbour.other is not None:
            self._others.leave(neighbour.other)


def _number(request: dict[str, Any], name: str) -> int:
    value = request.get(name)
    if type(value) is not int:
        raise PeerError(f"{name} is no number")
    return value


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
