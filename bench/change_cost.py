"""What a journal costs: `bench/change_cost.py`, in microseconds a change.

A journal hears of each change of a server (`xenlive.xenstore.changes`). Here the same requests are
served without one, with one that appends to a list, and with one that appends each change's bytes;
CPU time, in turns of some hundred requests, and what counts is the median of the turns'
differences. The journals are emptied after each turn: what memory costs that grows without end is
not measured here.

**Invariants.** The requests of a row are the same for all three, and how many changes they make is
counted, not assumed.
"""

from __future__ import annotations

import gc
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from figures import Figure, table_of
from rich.console import Console

from xenlive.abi.xs_wire import (
    XS_RM,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.xenstore.change_codec import encode
from xenlive.xenstore.server import XenstoreServer

if TYPE_CHECKING:
    from xenlive.xenstore.changes import Change, Journal

COUNT = 60_000
PIECE = 600  # requests of a turn
_HEADER = struct.Struct("<IIII").pack


def message(kind: int, payload: bytes, tx_id: int = 0) -> bytes:
    """One request."""
    return _HEADER(kind, 1, tx_id, len(payload)) + payload


def writes() -> list[bytes]:
    """A value that changes."""
    return [message(XS_WRITE, b"/bench/node\0value")] * COUNT


def nodes() -> list[bytes]:
    """A node that comes and goes."""
    pair = [message(XS_WRITE, b"/bench/other\0value"), message(XS_RM, b"/bench/other\0")]
    return pair * (COUNT // 2)


def watches() -> list[bytes]:
    """A watch that comes and goes."""
    pair = [message(XS_WATCH, b"/bench\0token\0"), message(XS_UNWATCH, b"/bench\0token\0")]
    return pair * (COUNT // 2)


def transactions() -> list[bytes]:
    """Transactions that write one value."""
    return [
        each
        for tx_id in range(1, COUNT // 6 + 1)
        for each in (
            message(XS_TRANSACTION_START, b"\0"),
            message(XS_WRITE, b"/bench/node\0value", tx_id),
            message(XS_TRANSACTION_END, b"T\0", tx_id),
        )
    ]


class Subject:
    """One server, and who listens to it; `forget` empties what was heard."""

    def __init__(self, journal: Journal | None, forget: Callable[[], None]) -> None:
        self.server = XenstoreServer()
        self.conn = self.server.connect()
        self.server.receive(self.conn, message(XS_WRITE, b"/bench/node\0"))
        self.server.journal = journal
        self.forget = forget

    def serve(self, requests: list[bytes]) -> float:
        """Serves them all, and forgets; microseconds of CPU that the serving took."""
        receive, conn, out = self.server.receive, self.conn, self.conn.out
        start = time.process_time_ns()
        for request in requests:
            receive(conn, request)
            out.clear()
        taken = time.process_time_ns() - start
        self.forget()
        return taken / 1000


def measured(make: Callable[[], list[bytes]]) -> list[Figure]:
    """The three figures of one kind of requests: what a change costs, and what the journals add."""
    what = (make.__doc__ or "").rstrip(".").lower()
    names = ("no journal", "a list adds", "a list of bytes adds")
    figures = [Figure(f"{what}: {name}", "µs a change") for name in names]
    listed: list[Change] = []
    written: list[bytes] = []
    counted: list[Change] = []
    subjects = [
        Subject(None, written.clear),
        Subject(listed.append, listed.clear),
        Subject(lambda change: written.append(encode(change)), written.clear),
    ]
    witness = Subject(counted.append, counted.clear)
    requests = make()
    for at in range(0, len(requests), PIECE):
        piece = requests[at : at + PIECE]
        witness.forget = lambda: None
        witness.serve(piece)
        count = len(counted)
        counted.clear()
        order = [(at // PIECE + place) % 3 for place in range(3)]
        taken = {which: subjects[which].serve(piece) for which in order}
        for which, figure in enumerate(figures):
            figure.rounds.append((taken[which] - (taken[0] if which else 0)) / count)
    return figures


def main() -> None:
    """Prints the table."""
    gc.disable()
    rows = [figure for make in (writes, nodes, watches, transactions) for figure in measured(make)]
    Console().print(table_of("changes of a Xenstore server, and who listens", rows))


if __name__ == "__main__":
    main()
