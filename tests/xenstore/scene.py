"""Domain 0 and guests on rings before any Xenstore server: what the tests of quotas play on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

from xenstore.talk import Message, encode

from xenlive.abi.xs_wire import XS_CONTROL, XS_INTRODUCE, XS_SET_PERMS, XS_WRITE

OK = b"OK\0"
Reply = bytes | str


class Line(Protocol):
    """A client's connection, of whatever kind."""

    def send(self, data: bytes) -> None: ...

    def until(self, req_id: int) -> list[Message]: ...


class Socket(Line, Protocol):
    """One that can be closed."""

    def close(self) -> None: ...


class Peer(Protocol):
    """A server, and the machine around it."""

    def open_socket(self) -> Socket: ...

    def create(self, domid: int) -> Line: ...

    def close(self) -> None: ...


class Scene:
    """One server with its domain 0; guests have a home of their own."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.dom0 = peer.open_socket()
        self._ids = itertools.count(1)

    def close(self) -> None:
        """Ends it all."""
        self.dom0.close()
        self.peer.close()

    def ask(self, line: Line, kind: int, payload: bytes, tx_id: int = 0) -> Reply:
        """The reply's payload, or the error's name."""
        number = next(self._ids)
        line.send(encode(kind, payload, tx_id, number))
        (reply,) = [message for message in line.until(number) if message.req_id == number]
        return reply.error or reply.payload

    def guest(self, domid: int) -> Line:
        """A domain that has been introduced."""
        line = self.peer.create(domid)
        home = b"/local/domain/%d\0" % domid
        assert self.ask(self.dom0, XS_WRITE, home) == OK
        assert self.ask(self.dom0, XS_SET_PERMS, home + b"n%d\0" % domid) == OK
        assert self.ask(self.dom0, XS_INTRODUCE, b"%d\x001\x001\0" % domid) == OK
        return line

    def control(self, *words: str) -> Reply:
        """CONTROL: text without its NUL, or the error's name."""
        reply = self.ask(self.dom0, XS_CONTROL, b"".join([w.encode() + b"\0" for w in words]))
        return reply if isinstance(reply, str) else reply[:-1].decode()

    def used(self, domid: int, item: str) -> int:
        """A number of CONTROL `quota DOMID`."""
        text = self.control("quota", str(domid))
        assert isinstance(text, str)
        (line,) = [line for line in text.splitlines() if line.split(":")[0].strip() == item]
        return int(line.split(":")[1].split()[0])


def count_until_error(do: Callable[[int], Reply], most: int = 3000) -> tuple[int, Reply]:
    """How often `do(0)`, `do(1)` … went well, and the error then."""
    for number in range(most):
        reply = do(number)
        if isinstance(reply, str):
            return number, reply
    return most, ""
