"""The client's end of 9P2000.u without I/O: requests out, replies in.

    call = client.call(TWALK, fid=0, newfid=1, wname=[b"state"])
    client.output          what to send, in pieces, in order; the transport takes them away
    client.receive(data)   replies, in any chunking
    call.result()          the reply once `call.done`; NinePError if the server said Rerror

**Invariants.** A tag is used again only after its reply. A reply must answer a request that is
out, be of its kind or Rerror, and carry no more than was asked; anything else is a PeerError. At
most `MAX_CALLS` requests are out, the number a Mini-OS front end has.

A reply to something this client never asked is accepted in one place: before the first Rversion.
After kexec the backend may still owe the kernel before some replies, and by the 9P manual Tversion
ends everything that was under way.
"""

from __future__ import annotations

from xenlive.errors import NinePError, PeerError
from xenlive.ninep.codec import Message, decode, encode, encode_write, frame_size, header, name_of
from xenlive.ninep.messages import (
    MIN_MSIZE,
    NOTAG,
    RERROR,
    RREAD_BYTES,
    RVERSION,
    TREAD,
    TVERSION,
    TWALK,
    TWRITE,
    TWRITE_BYTES,
    VERSION_9P2000U,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Buffer

#: Requests in flight at once, as in Mini-OS.
MAX_CALLS = 64


class Call:
    """One request; `limit` is the most its reply may carry (bytes, or names of a walk)."""

    __slots__ = ("error", "limit", "reply", "tag", "type")

    def __init__(self, type: int, tag: int, limit: int) -> None:
        self.type = type
        self.tag = tag
        self.limit = limit
        self.reply: Message | None = None
        self.error: NinePError | None = None

    @property
    def done(self) -> bool:
        """Whether the reply, or an Rerror, is there."""
        return self.reply is not None or self.error is not None

    def result(self) -> Message:
        """The reply. NinePError if the server refused; only for calls that are `done`."""
        if self.error is not None:
            raise self.error
        if self.reply is None:
            raise RuntimeError(f"{name_of(self.type)} is not answered yet")
        return self.reply


class NinePClient:
    """One connection; `msize` is the largest message this end takes, less after `version`."""

    __slots__ = ("_calls", "_free_fids", "_free_tags", "_partial", "msize", "next_fid", "output")

    def __init__(self, msize: int) -> None:
        self.msize = msize
        self.output: list[memoryview] = []
        self.next_fid = 0
        self._calls: dict[int, Call] = {}
        self._free_tags = list(range(MAX_CALLS - 1, -1, -1))
        self._free_fids: list[int] = []
        self._partial = bytearray()

    # -- requests --------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that have no reply yet."""
        return len(self._calls)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way in either direction, not even a part of a message."""
        return not (self._calls or self.output or self._partial)

    @property
    def can_call(self) -> bool:
        """Whether one more request may go out now."""
        return bool(self._free_tags) and NOTAG not in self._calls

    def version(self) -> Call:
        """Asks for the protocol; the reply sets `msize`. Only when nothing else is under way."""
        if not self.is_idle:
            raise RuntimeError("Tversion while other requests are under way")
        call = self._calls[NOTAG] = Call(TVERSION, NOTAG, self.msize)
        self._send(encode(TVERSION, NOTAG, msize=self.msize, version=VERSION_9P2000U))
        return call

    def call(self, type: int, **fields: Any) -> Call:
        """Any request of the table but Tversion and Twrite. RuntimeError unless `can_call`."""
        limit = 0
        if type == TREAD:
            limit = fields["count"] = min(fields["count"], self.read_limit)
        elif type == TWALK:
            limit = len(fields["wname"])
        call = self._new_call(type, limit)
        self._send(encode(type, call.tag, **fields))
        return call

    def write(self, fid: int, offset: int, data: Buffer) -> Call:
        """Twrite of at most `write_limit` bytes; `data` must not change until it left `output`."""
        view = memoryview(data).cast("B")
        if len(view) > self.write_limit:
            raise ValueError(f"{len(view)} bytes don't fit a message of {self.msize}")
        call = self._new_call(TWRITE, len(view))
        self._send(encode_write(call.tag, fid, offset, len(view)))
        if len(view):
            self.output.append(view)
        return call

    @property
    def write_limit(self) -> int:
        """Bytes that fit one Twrite."""
        return self.msize - TWRITE_BYTES

    @property
    def read_limit(self) -> int:
        """Bytes that fit one Rread."""
        return self.msize - RREAD_BYTES

    def new_fid(self) -> int:
        """A number no file of this client has."""
        if self._free_fids:
            return self._free_fids.pop()
        self.next_fid += 1
        return self.next_fid - 1

    def free_fid(self, fid: int) -> None:
        """Gives a number back that the server no longer knows."""
        self._free_fids.append(fid)

    def _new_call(self, type: int, limit: int) -> Call:
        if not self.can_call:
            raise RuntimeError("too many 9P requests under way")
        tag = self._free_tags.pop()
        call = self._calls[tag] = Call(type, tag, limit)
        return call

    def _send(self, data: bytes) -> None:
        self.output.append(memoryview(data))

    # -- replies ---------------------------------------------------------------------------------

    def receive(self, data: Buffer) -> None:
        """Takes bytes from the server and settles the calls they answer.

        PeerError ends the connection: what comes after can't be understood.
        """
        view = memoryview(data).cast("B")
        if self._partial:
            missing = self._missing(view)
            if missing > len(view):
                self._partial += view
                return
            frame = bytes(self._partial) + view[:missing]
            self._partial.clear()
            self._settle(memoryview(frame))
            view = view[missing:]
        while len(view):
            size = frame_size(view, self.msize)
            if size == 0 or size > len(view):
                self._partial += view
                return
            self._settle(view[:size])
            view = view[size:]

    def _missing(self, view: memoryview) -> int:
        """How many bytes of `view` complete the message that `_partial` starts; more if not all."""
        have = len(self._partial)
        start = bytes(self._partial[:4])
        size = frame_size(start + view[: 4 - len(start)], self.msize)
        return size - have if size else len(view) + 1

    def _settle(self, frame: memoryview) -> None:
        type, tag = header(frame)
        call = self._calls.get(tag)
        if call is None:
            if NOTAG in self._calls:
                return
            raise PeerError("9P reply to no request", 5, tag)
        if type not in (call.type + 1, RERROR):
            raise PeerError(f"{name_of(type)} in answer to {name_of(call.type)}", 4, type)
        reply = decode(frame)
        if type == RERROR:
            text = reply["ename"].decode("utf-8", "replace")
            call.error = NinePError(text, reply["errno"])
        else:
            self._validate_reply(call, reply)
            call.reply = reply
        del self._calls[tag]
        if tag != NOTAG:
            self._free_tags.append(tag)

    def _validate_reply(self, call: Call, reply: Message) -> None:
        carried = 0
        if call.type == TREAD:
            carried = len(reply["data"])
        elif call.type == TWRITE:
            carried = reply["count"]
        elif call.type == TWALK:
            carried = len(reply["wqid"])
        elif reply.type == RVERSION:
            carried = reply["msize"]
            if reply["version"] != VERSION_9P2000U or carried < MIN_MSIZE:
                raise PeerError("the 9P server does not speak 9P2000.u", 7, reply["version"])
        if carried > call.limit:
            raise PeerError(f"{name_of(reply.type)} with more than asked", 7, carried)
        if reply.type == RVERSION:
            self.msize = carried
