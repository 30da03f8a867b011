"""The server's log: what CONTROL's `log`, `logfile` and `memreport` are about.

Specification: Xen `docs/misc/xenstore.txt`, CONTROL; words and switches are the C daemon's (Xen
`tools/xenstored/core.c`: `trace`, `trace_switches`, `reopen_log`).

    on_print ◀── what an operator is to see at once: warnings, `print`, faults that were found
    sink     ◀── the same, and what the switches ask for (`trace`), while the log is on

**Invariants.** Nothing is written unless somebody has named a file and this machine can open it
(`opener`). Who changes what is logged calls `XenstoreServer.follow_log` afterwards.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Sink = Callable[[bytes], None]

#: In C's order, which is that of the flags.
SWITCHES = (b"obj", b"io", b"wrl", b"acc", b"tdb")
OBJ, IO, WRL, ACC, TDB = (1 << index for index in range(len(SWITCHES)))
FLAGS_MASK = (1 << len(SWITCHES)) - 1


class Log:
    """Where the log goes, and which switches are on; `opener` gives a sink for a file's name.

    `is_wanted` says that the log is on, as far as somebody can open it. `flusher`, if there is one,
    makes sure that all lines are where they belong.
    """

    __slots__ = ("file", "flags", "flusher", "is_wanted", "on_print", "opener", "sink")

    def __init__(self) -> None:
        self.flags = self.default_flags()
        self.file: bytes | None = None
        self.is_wanted = False
        self.sink: Sink | None = None
        self.opener: Callable[[bytes], Sink | None] | None = None
        self.flusher: Callable[[], None] | None = None
        self.on_print: Callable[[bytes], None] | None = None

    @staticmethod
    def default_flags() -> int:
        """The switches of a new server."""
        return OBJ | IO

    def start(self, opener: Callable[[bytes], Sink | None]) -> None:
        """Says how files are opened, and opens the log that was on before a live update."""
        self.opener = opener
        if self.is_wanted and self.sink is None:
            self.open()

    def open(self) -> None:
        """Opens the file again, if one was named."""
        if self.file is not None:
            self.close()
            self.is_wanted = True
            self.sink = self.opened(self.file)
            self.write("\n***")

    def close(self) -> None:
        """Writes no more."""
        self.is_wanted = False
        self.sink = None

    def opened(self, file: bytes) -> Sink | None:
        """A sink that writes to a file; None if it can't be opened."""
        return None if self.opener is None else self.opener(file)

    def switch(self, word: bytes) -> bool:
        """`+io` and the like; False if it is no such word."""
        if word[:1] not in (b"+", b"-") or word[1:] not in SWITCHES:
            return False
        flag = 1 << SWITCHES.index(word[1:])
        if word[:1] == b"+":
            self.flags |= flag
        else:
            self.flags &= ~flag
        return True

    def describe(self) -> str:
        """The switches, as CONTROL `log` answers them."""
        lines = [
            f"{name.decode():<8}: {'on' if self.flags >> index & 1 else 'off'}\n"
            for index, name in enumerate(SWITCHES)
        ]
        return "Log switch settings:\n" + "".join(lines)

    def write(self, text: str) -> None:
        """A line for the log."""
        if self.sink is not None:
            self.sink(text.encode("utf-8", "replace") + b"\n")

    def say(self, text: str) -> None:
        """A line for the operator, and for the log."""
        if self.on_print is not None:
            self.on_print(text.encode("utf-8", "replace"))
        self.write(text)
