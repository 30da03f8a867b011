"""Plays a sequence on one server and writes down what each client hears after each step.

**Invariants.** After a step every client asks a harmless request and waits for its answer, the one
that acted first: so all events of a step are heard before the next. A step of a guest that the
server does not serve is skipped, and so is one that makes no sense there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from differential.steps import (
    CREATE,
    DESTROY,
    NO_SUCH_TX,
    RECONNECT,
    SHUTDOWN,
    SOCKETS,
    Step,
)
from xenstore.talk import Message, encode

from xenlive.abi.xs_wire import (
    XS_DIRECTORY_PART,
    XS_ERROR,
    XS_GET_DOMAIN_PATH,
    XS_INTRODUCE,
    XS_RELEASE,
    XS_TRANSACTION_START,
    XS_WATCH_EVENT,
)

SYNC_ID = 0x5A5A5A5A
OK = b"OK\0"


class PeerGone(Exception):
    """The server has ended."""


class Line(Protocol):
    """How one client talks to a server."""

    def send(self, data: bytes) -> None:
        """Sends bytes."""

    def until(self, req_id: int) -> list[Message]:
        """All that is heard up to the reply to `req_id`, with it."""


class SocketLike(Line, Protocol):
    """A client's socket."""

    def close(self) -> None:
        """Hangs up."""


class RingLike(Line, Protocol):
    """A guest's rings."""

    def forget(self) -> None:
        """Begins anew."""


class Peer(Protocol):
    """A server with a machine around it."""

    def open_socket(self) -> SocketLike:
        """A new client of domain 0."""

    def create(self, domid: int) -> RingLike:
        """A new domain."""

    def destroy(self, domid: int) -> None:
        """A domain is no more."""

    def shut_down(self, domid: int) -> None:
        """A domain has shut down."""

    def close(self) -> None:
        """The server is no more."""


@dataclass(frozen=True)
class Heard:
    """What one client heard after a step: the reply, if it was its step, and events in order.

    `early` is how many of the events came before the reply.
    """

    kind: int = -1
    payload: bytes = b""
    right_ids: bool = True
    events: tuple[bytes, ...] = ()
    early: int = 0

    @property
    def error(self) -> str:
        """The name of the error replied; empty if there is none."""
        return self.payload[:-1].decode(errors="replace") if self.kind == XS_ERROR else ""


#: Nothing more will ever be heard: the server has ended.
GONE = Heard(kind=-2)

#: What was heard after one step, by client; None if it was skipped.
Record = dict[int, Heard] | None


@dataclass
class Session:
    """One sequence on one peer."""

    peer: Peer
    sockets: dict[int, SocketLike] = field(default_factory=dict)
    guests: dict[int, RingLike] = field(default_factory=dict)
    connected: set[int] = field(default_factory=set)
    tx_ids: dict[int, list[int]] = field(default_factory=dict)
    count: int = 0
    alive: set[int] = field(default_factory=set)

    def start(self) -> None:
        for who in SOCKETS:
            self.sockets[who] = self.peer.open_socket()

    def close(self) -> None:
        for line in self.sockets.values():
            line.close()
        self.peer.close()

    def play(self, step: Step) -> Record:
        """Does one step."""
        if step.kind < 0:
            if not self._machine(step):
                return None
            return self._listen(None, step, 0)
        line: Line | None = self.sockets.get(step.who)
        if line is None and step.who in self.connected:
            line = self.guests[step.who]
        if line is None:
            if step.kind == XS_TRANSACTION_START and not step.tx:
                self.tx_ids.setdefault(step.who, []).append(NO_SUCH_TX)
            return None
        tx_id = self._tx_id(step)
        self.count += 1
        line.send(encode(step.kind, step.payload, tx_id, self.count))
        return self._listen(line, step, tx_id)

    def _tx_id(self, step: Step) -> int:
        ids = self.tx_ids.get(step.who, [])
        return ids[step.tx - 1] if 0 < step.tx <= len(ids) else NO_SUCH_TX if step.tx else 0

    def _machine(self, step: Step) -> bool:
        domid = step.who
        if step.kind == RECONNECT:
            self.sockets[domid].close()
            self.sockets[domid] = self.peer.open_socket()
        elif step.kind == CREATE and domid not in self.alive:
            self.guests[domid] = self.peer.create(domid)
            self.alive.add(domid)
        elif step.kind == DESTROY and domid in self.alive:
            self.peer.destroy(domid)
            self.alive.discard(domid)
            self.connected.discard(domid)
        elif step.kind == SHUTDOWN and domid in self.alive:
            self.peer.shut_down(domid)
        else:
            return False
        return True

    def _listen(self, actor: Line | None, step: Step, tx_id: int) -> Record:
        record: dict[int, Heard] = {}
        if actor is not None:
            record[step.who] = heard = self._hear(actor, step, tx_id)
            if heard.payload == OK and step.kind in (XS_INTRODUCE, XS_RELEASE):
                domid = int(step.payload.split(b"\0")[0])
                if step.kind == XS_INTRODUCE:
                    self.connected.add(domid)
                    self.guests[domid].forget()
                else:
                    self.connected.discard(domid)
        for who, socket_line in self.sockets.items():
            if socket_line is not actor:
                record[who] = self._hear(socket_line, None, 0)
        for domid in sorted(self.connected):
            if self.guests[domid] is not actor:
                record[domid] = self._hear(self.guests[domid], None, 0)
        return record

    def _hear(self, line: Line, step: Step | None, tx_id: int) -> Heard:
        line.send(encode(XS_GET_DOMAIN_PATH, b"0\0", 0, SYNC_ID))
        events: list[bytes] = []
        reply: Message | None = None
        early = 0
        for message in line.until(SYNC_ID):
            if message.kind == XS_WATCH_EVENT:
                events.append(message.payload)
            elif message.req_id != SYNC_ID:
                if reply is not None or step is None:
                    raise RuntimeError(f"one reply too many: {message}")
                reply, early = message, len(events)
        if step is None:
            return Heard(events=tuple(events))
        if reply is None:
            raise RuntimeError(f"no reply to {step}")
        payload = reply.payload
        if step.kind == XS_TRANSACTION_START and not step.tx:
            number = int(payload[:-1]) if reply.kind == step.kind else NO_SUCH_TX
            ids = self.tx_ids.setdefault(step.who, [])
            ids.append(number)
            if reply.kind == step.kind:
                payload = b"#%d\0" % len(ids)
        elif reply.kind == XS_DIRECTORY_PART:
            payload = payload.partition(b"\0")[2]  # each server counts generations by itself
        right_ids = reply.req_id == self.count and reply.tx_id == tx_id
        return Heard(reply.kind, payload, right_ids, tuple(events), early)


def play(peer: Peer, steps: list[Step]) -> list[Record]:
    """The whole sequence on a fresh peer, which is closed at the end.

    The list is shorter than the sequence if the server ended: in the step after the last record.
    """
    session = Session(peer)
    records: list[Record] = []
    try:
        session.start()
        for step in steps:
            records.append(session.play(step))
    except PeerGone:
        pass
    finally:
        session.close()
    return records
