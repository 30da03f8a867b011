"""GDB's remote serial protocol for a guest: bytes in, bytes out, no socket.

    stopped ── c, s, vCont ──▶ running ── breakpoint, step done, Ctrl-C, the guest's end ──▶ stopped
       └──── D, k, the debugger is gone ──▶ detached

What is there: registers (g G p P) with a target description, memory (m M x X), breakpoints that
patch nothing (Z0 and Z1 alike), watchpoints (Z2, Z3, Z4), c, s, vCont with r (stepping within a
range of addresses, which makes `next` fast), D, k, Ctrl-C, `monitor info`. There is one thread, 1:
the guest's processor.

A guest that ends well gives `W`. One that crashes stops for a last time, as if by SIGABRT, so that
it can be looked at, and gives `X` when it is to go on.

Specification: GDB's manual, appendix E.

**Invariants.** Each packet gets exactly one answer, whatever its bytes, but for those that let the
guest run, whose answer is sent when it stops; what is not known gets the empty one, what can't be
done `E`. Nothing a debugger sends raises.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from xenlive.machine.emulated.lens import gdbpackets
from xenlive.machine.emulated.lens.gdbaccess import (
    BAD_REQUEST,
    NOT_KNOWN,
    OK,
    READ_MAX,
    answer_access,
    decode_range,
)
from xenlive.machine.emulated.lens.gdbpackets import (
    PAYLOAD_MAX,
    PacketReader,
    decode_hex,
    decode_number,
    encode_packet,
)
from xenlive.machine.emulated.lens.gdbregisters import target_description
from xenlive.machine.emulated.lens.gdbtarget import (
    STOP_ASKED,
    STOP_BREAKPOINT,
    STOP_WATCHPOINT,
    Stop,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_SIGINT, _SIGTRAP, _SIGABRT = 2, 5, 6
_FEATURES = (
    f"PacketSize={PAYLOAD_MAX:x};QStartNoAckMode+;qXfer:features:read+;vContSupported+;"
    "swbreak+;hwbreak+"
).encode()


class Stub:
    """The protocol for one debugger that has come to `target`, which stands still."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._reader = PacketReader()
        self._acknowledges = True
        self._last = b""
        self._stop = Stop(STOP_ASKED)
        self._tells_kinds = False
        self._end: bytes | None = None
        #: Whether the guest may run.
        self.is_running = False
        #: Whether the debugger has gone; what it still sends is not heard.
        self.is_detached = False
        self._handlers: dict[bytes, Callable[[bytes], bytes | None]] = {
            b"?": lambda _: self._stop_reply(),
            b"c": lambda rest: self._resume_at(rest, is_step=False),
            b"s": lambda rest: self._resume_at(rest, is_step=True),
            b"C": lambda rest: self._resume_at(rest.partition(b";")[2], is_step=False),
            b"S": lambda rest: self._resume_at(rest.partition(b";")[2], is_step=True),
            b"H": lambda _: OK,
            b"T": lambda rest: OK if rest == b"1" else BAD_REQUEST,
            b"D": lambda _: self._detach(),
            b"k": lambda _: self._kill(),
            b"v": self._long_request,
            b"q": self._query,
            b"Q": self._set,
        }

    # ---- to and fro ----------------------------------------------------------------------

    def receive(self, data: bytes) -> bytes:
        """What to answer to some bytes of the debugger's."""
        answers = bytearray()
        was_repeated = False
        for arrived in self._reader.receive(data):
            if self.is_detached:
                break
            if arrived.kind == gdbpackets.AGAIN:
                if was_repeated:  # a long answer for each byte would fill memory
                    continue
                was_repeated = True
            answers += self._answer(arrived)
        return bytes(answers)

    def _answer(self, arrived: gdbpackets.Arrived) -> bytes:
        if arrived.kind == gdbpackets.AGAIN:
            return self._last if self._acknowledges else b""
        if arrived.kind == gdbpackets.CTRL_C:
            return self.stopped(Stop(STOP_ASKED))
        if arrived.kind == gdbpackets.BAD_PACKET:
            return b"-" if self._acknowledges else self._send(BAD_REQUEST)
        acknowledgement = b"+" if self._acknowledges else b""
        payload = arrived.payload
        handler = self._handlers.get(payload[:1])
        if handler is not None:
            reply = handler(payload[1:])
        else:
            reply = answer_access(self._target, payload[:1], payload[1:])
        return acknowledgement + (b"" if reply is None else self._send(reply))

    def _send(self, payload: bytes) -> bytes:
        self._last = encode_packet(payload)
        return self._last

    # ---- stopping and going on -----------------------------------------------------------

    def stopped(self, stop: Stop) -> bytes:
        """The guest stands still again: what to tell the debugger, if it waits for that."""
        if not self.is_running:
            return b""
        self.is_running = False
        self._target.go_on()
        self._stop = stop
        return self._send(self._stop_reply())

    def ended(self, exit_code: int, is_failure: bool) -> bytes:
        """The guest has ended: what to tell. One that failed stands still, to be looked at."""
        was_running, self.is_running = self.is_running, False
        if is_failure:
            self._end = b"X%02x" % _SIGABRT
            reply = b"T%02xthread:1;" % _SIGABRT
        else:
            self._end = reply = b"W%02x" % (exit_code & 0xFF)
            self.is_detached = True
        return self._send(reply) if was_running else b""

    def _stop_reply(self) -> bytes:
        if self._end is not None:
            return b"T%02xthread:1;" % _SIGABRT
        signal = _SIGINT if self._stop.why == STOP_ASKED else _SIGTRAP
        reply = b"T%02xthread:1;" % signal
        if self._stop.why == STOP_BREAKPOINT and self._tells_kinds:
            reply += self._stop.kind.encode() + b":;"
        if self._stop.why == STOP_WATCHPOINT:
            reply += f"{self._stop.kind}:{self._stop.address:x};".encode()
        return reply

    def _resume(self, go: Callable[[], None]) -> bytes | None:
        if self._end is not None:
            self.is_detached = True
            return self._end
        go()
        self.is_running = True
        return None

    def _resume_at(self, text: bytes, is_step: bool) -> bytes | None:
        """c, s, C and S: `text` may be an address to go on at."""
        if text:
            address = decode_number(text)
            if address is None:
                return BAD_REQUEST
            self._target.jump(address)
        return self._resume(self._target.step if is_step else self._target.go_on)

    def _vcont(self, text: bytes) -> bytes | None:
        """`;ACTION[:THREAD]...`: the first one that is for our thread counts."""
        for word in text.split(b";")[1:]:
            action, _, thread = word.partition(b":")
            if thread not in (b"", b"1", b"-1", b"0"):
                continue
            if action[:1] in (b"c", b"C"):
                return self._resume(self._target.go_on)
            if action[:1] in (b"s", b"S"):
                return self._resume(self._target.step)
            start, _, end = action[1:].partition(b",")
            first, behind = decode_number(start), decode_number(end)
            if action[:1] == b"r" and first is not None and behind is not None:
                return self._resume(functools.partial(self._target.step, first, behind))
            return BAD_REQUEST
        return BAD_REQUEST

    def _detach(self) -> bytes:
        self.hang_up()
        return OK

    def _kill(self) -> bytes | None:
        self._target.kill()
        self.is_running = self.is_detached = True
        return None

    def hang_up(self) -> None:
        """The debugger has gone: the guest goes on without one."""
        self._target.let_go()
        self.is_running = self.is_detached = True

    # ---- longer words --------------------------------------------------------------------

    def _long_request(self, text: bytes) -> bytes | None:
        if text == b"Cont?":
            return b"vCont;c;C;s;S;r"
        if text.startswith(b"Cont"):
            return self._vcont(text[4:])
        if text.startswith(b"Kill"):
            self._kill()
            return OK
        return NOT_KNOWN

    def _query(self, text: bytes) -> bytes:
        name, _, rest = text.partition(b":")
        if name == b"Supported":
            words = rest.split(b";")
            self._tells_kinds = b"swbreak+" in words or b"hwbreak+" in words
            return _FEATURES
        if text.startswith(b"Xfer:features:read:target.xml:"):
            return self._description(text.rpartition(b":")[2])
        if name.startswith(b"Rcmd,"):
            return self._monitor(decode_hex(text[5:]))
        if text.startswith(b"ThreadExtraInfo,"):
            return self._target.describe()[2].encode().hex().encode()
        fixed = {b"C": b"QC1", b"fThreadInfo": b"m1", b"sThreadInfo": b"l", b"Attached": b"1"}
        return fixed.get(name, OK if name == b"Symbol" else NOT_KNOWN)

    def _set(self, text: bytes) -> bytes:
        if text == b"StartNoAckMode":
            self._acknowledges = False
            return OK
        return NOT_KNOWN

    def _description(self, text: bytes) -> bytes:
        where = decode_range(text)
        if where is None:
            return BAD_REQUEST
        whole = target_description(self._target.is_64bit)
        part = whole[where[0] : where[0] + min(where[1], READ_MAX)]
        return (b"m" if where[0] + len(part) < len(whole) else b"l") + part

    def _monitor(self, command: bytes | None) -> bytes:
        if command is None:
            return BAD_REQUEST
        lines = (
            self._target.describe() if command.strip() == b"info" else ["monitor info: where it is"]
        )
        return "".join(f"{line}\n" for line in lines).encode().hex().encode()
