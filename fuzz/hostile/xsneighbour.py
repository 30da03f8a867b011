"""A client beside the attacked ones, which must get exactly the service it would have alone.

It has nodes of its own, three watches and a transaction that stays open from one round to the next.
A round asks for all of it: values read are those it wrote, each event comes once and in order, and
its transaction is committed, since nobody else may change what it looks at. A second transaction
looks at a board that attackers may write to: that one is in conflict if, and only if, they did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from xenstore.talk import Message

from hostile.target import expect
from hostile.xsscript import message
from xenlive.abi.xs_wire import (
    XS_ERROR,
    XS_MKDIR,
    XS_READ,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlive.xenstore import changes

if TYPE_CHECKING:
    from xenlive.xenstore.changes import Change

#: An answer takes no more turns of the server's loop than this, whatever others do.
TURNS = 16
BOARD = b"/board"
_OK = b"OK\0"
_FIRST_REQ_ID = 1_000_000


class Line(Protocol):
    """The neighbour's end of its connection."""

    def send(self, data: bytes) -> None: ...

    def take(self) -> list[Message]: ...


def touches_board(change: Change, was_there: bool) -> bool:
    """Whether a journaled change may be of the board, or of what is right above or below it."""
    kind = change[0]
    if kind == changes.COMMIT:
        return any(touches_board(each, was_there) for each in change[3])
    if kind == changes.GONE:
        return True
    if kind > changes.REMOVE:
        return False
    path: bytes = change[1]
    # A node that is not there is looked for in the one above it, which has other children, too.
    return path.startswith(BOARD) or not (was_there or path.rfind(b"/"))


class Neighbour:
    """One; `base` is its own path, `turn` lets the server do one thing."""

    def __init__(
        self, line: Line, base: bytes, turn: Callable[[], object], heard: list[Change] | None = None
    ) -> None:
        self.line = line
        self.base = base
        self.turn = turn
        self.heard = heard
        self.rounds = 0
        self._req_id = _FIRST_REQ_ID
        self._value = b"none yet"
        self._open = 0
        self._written = b""  # in the open transaction
        self._on_board: tuple[int, int, bool] | None = None
        self._events: list[bytes] = []
        self._expected: list[bytes] = []

    def begin(self) -> None:
        """Makes its nodes, sets its watches, and opens its transaction."""
        self.want(XS_WRITE, b"data/hello\0hello", _OK)
        self.want(XS_WRITE, b"tx/a\0" + self._value, _OK)
        self.want(XS_MKDIR, b"told\0", _OK)
        for name in (b"data", b"told", b"tx"):
            self._expect(name, name)
            self.want(XS_WATCH, name + b"\0" + b"for " + name + b"\0", _OK)
        self._start()

    def update_over(self, heard: list[Change]) -> None:
        """Another kernel serves: open transactions have ended, the rest is as it was."""
        self.heard = heard
        self._on_board = None
        self._start()

    def told(self) -> bytes:
        """The path of a node that others write to, for this to hear of: each time is expected."""
        self._expect(b"told/n", b"told")
        return self.base + b"/told/n"

    def wait_for_events(self) -> None:
        """What was told arrives."""
        for _ in range(TURNS):
            if self._events == self._expected:
                return
            self.turn()
            self._take(0)
        self._compare()

    def round(self) -> None:
        """Asks for everything."""
        self.rounds += 1
        text = b"%d" % self.rounds
        self.wait_for_events()
        self.want(XS_READ, b"data/hello\0", b"hello")
        self._expect(b"data/n", b"data")
        self.want(XS_WRITE, b"data/n\0" + text, _OK)
        self.want(XS_READ, b"data/n\0", text)
        self.want(XS_READ, b"tx/a\0", self._value)
        if not self._written:
            self._written = text
            self.want(XS_READ, b"tx/a\0", self._value, self._open)
            self.want(XS_WRITE, b"tx/a\0" + text, _OK, self._open)
            self.want(XS_WRITE, b"tx/new/" + text + b"\0x", _OK, self._open)
            self.want(XS_READ, b"tx/a\0", self._value)
        else:
            self._value = self._written
            for name in (b"tx/a", b"tx/new/" + self._value):
                self._expect(name, b"tx")
            self.want(XS_TRANSACTION_END, b"T\0", _OK, self._open)
            self.want(XS_READ, b"tx/a\0", self._value)
            self._start()
        self._look_at_board()
        self._compare()

    def want(self, kind: int, payload: bytes, answer: bytes, tx_id: int = 0) -> None:
        """Asks, of a path below its own, what is answered like this."""
        got = self.ask(kind, payload if payload == b"T\0" else self.base + b"/" + payload, tx_id)
        expect(got == answer, f"a neighbour's {kind} {payload!r} is {answer!r}, not {got!r}")

    def ask(self, kind: int, payload: bytes, tx_id: int = 0) -> bytes | str:
        """The answer's payload, or the error's name; it takes not many turns."""
        self._req_id += 1
        self.line.send(message(kind, payload, tx_id, self._req_id))
        for _ in range(TURNS):
            self.turn()
            answer = self._take(self._req_id)
            if answer is not None:
                if answer.kind == XS_ERROR:
                    return answer.payload[:-1].decode()
                expect(answer.kind == kind, "an answer is of its request's type")
                return answer.payload
        expect(False, f"a neighbour is answered within {TURNS} turns")
        return b""

    def _take(self, req_id: int) -> Message | None:
        answer = None
        for each in self.line.take():
            if each.kind == XS_WATCH_EVENT:
                self._events.append(each.payload)
            else:
                expect(answer is None and each.req_id == req_id, "answers are to what was asked")
                answer = each
        return answer

    def _start(self) -> None:
        got = self.ask(XS_TRANSACTION_START, b"\0")
        expect(isinstance(got, bytes), f"a neighbour can open a transaction: {got!r}")
        self._written = b""
        self._open = int(bytes(got, "ascii")[:-1] if isinstance(got, str) else got[:-1])

    def _look_at_board(self) -> None:
        """Ends the look of the round before, and takes another."""
        if self.heard is None:
            return
        if self._on_board is not None:
            tx_id, since, was_there = self._on_board
            got = self.ask(XS_TRANSACTION_END, b"T\0", tx_id)
            changed = [change for change in self.heard[since:] if touches_board(change, was_there)]
            expect(got in (_OK, "EAGAIN"), f"a look at the board ends like that: {got!r}")
            expect(got == _OK or bool(changed), "no conflict with what nobody changed")
            written = [c for c in changed if c[0] == changes.VALUE and c[1] == BOARD]
            expect(got == "EAGAIN" or not written, "a conflict with what somebody wrote")
        answer = self.ask(XS_TRANSACTION_START, b"\0")
        expect(isinstance(answer, bytes), f"a neighbour can open two transactions: {answer!r}")
        tx_id = int(bytes(answer, "ascii")[:-1] if isinstance(answer, str) else answer[:-1])
        found = self.ask(XS_READ, BOARD + b"\0", tx_id)
        self._on_board = tx_id, len(self.heard), found != "ENOENT"

    def _expect(self, name: bytes, watched: bytes) -> None:
        self._expected.append(self.base + b"/" + name + b"\0for " + watched + b"\0")

    def _compare(self) -> None:
        got, wanted = self._events, self._expected
        expect(got == wanted, f"a neighbour hears of {wanted!r}, not of {got!r}")
        got.clear()
        wanted.clear()
