"""A line on stderr that says how far a search through memory is, if it takes long.

    looked at 3.2 of 16.0 GiB (--quick leaves this out)

**Invariants.** Nothing is written before `PATIENCE_S` have passed, and the line is gone when the
search is over: what a command prints stands by itself. It goes to terminals alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

PATIENCE_S = 1.0
_BETWEEN_S = 0.2
_GIB = 1 << 30


class Progress:
    """Called with bytes looked at, of how many; `finish` takes the line away."""

    def __init__(
        self, stream: TextIO, hint: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._hint = f" ({hint})" if hint else ""
        self._clock = clock
        self._next_s = clock() + PATIENCE_S
        self._width = 0

    def __call__(self, done: int, total: int) -> None:
        """Writes the line anew, if it is time."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _BETWEEN_S
        line = f"looked at {done / _GIB:.1f} of {total / _GIB:.1f} GiB{self._hint}"
        self._write(f"\r{line:{self._width}}")
        self._width = max(self._width, len(line))

    def finish(self) -> None:
        """Clears the line, if there is one."""
        if self._width:
            self._write(f"\r{'':{self._width}}\r")
            self._width = 0

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            pass  # nobody sees it


def progress_for(as_json: bool, hint: str = "") -> Progress | None:
    """Progress on stderr where somebody looks; None where nobody does, or a program reads."""
    if not sys.stderr.isatty() or (as_json and not sys.stdout.isatty()):
        return None
    return Progress(sys.stderr, hint)
