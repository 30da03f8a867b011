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

import json
import os
import socket
from typing import Any

from xenlive.errors import PeerError, XenliveError
from xenlive.machine.hosted.door import Door
from xenlive.machine.hosted.others import OTHERS_MAX, Other, OtherDomains

PACKET_MAX = 4096
_FDS_MAX = 4


class _Neighbour:
    __slots__ = ("other", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.other: Other | None = None


class NeighbourDoor(Door[_Neighbour]):
    """Serves `others` on a listening socket at `path`; the owner's loop calls `serve`.

    `store_socket` is where a domain's toolstack reaches the stub domain.
    """

    def __init__(self, path: str, others: OtherDomains, store_socket: str) -> None:
        super().__init__(path, socket.SOCK_SEQPACKET, OTHERS_MAX)
        self._others = others
        self._store_socket = store_socket

    def _make(self, connection: socket.socket) -> _Neighbour:
        return _Neighbour(connection)

    def _step(self, fd: int) -> None:
        neighbour = self._inside[fd]
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

    def _make_room(self) -> bool:
        """Who has been there for longest and has entered no domain has to go."""
        for fd, neighbour in self._inside.items():
            if neighbour.other is None:
                self._drop(fd)
                return True
        return False

    def _drop(self, fd: int) -> _Neighbour:
        gone = super()._drop(fd)
        if gone.other is not None:
            self._others.leave(gone.other)
        return gone


def _number(request: dict[str, Any], name: str) -> int:
    value = request.get(name)
    if type(value) is not int:
        raise PeerError(f"{name} is no number")
    return value


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
