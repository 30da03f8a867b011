"""`xenlive boot --json`: one object on stdout, however the run ends.

**Invariants.** With `--json` stdout has exactly one object: the guest's end, or, when an error or
a signal ended the run, what is known until then, with `exit` and `why` of that. Wrong usage prints
none, as nothing was begun.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Any

import click

from xenlive.cli.failure import EXPECTED, in_one_line
from xenlive.cli.kept import Kept

_SIGNAL_BASE = 128


class JsonOutput:
    """Prints one object, if it is `wanted`: by `say`, or at the end of the block by an error."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        #: What the guest wrote to its console.
        self.written = Kept()
        #: What is known of the guest; None before there is one.
        self.describe: Callable[[], dict[str, Any]] | None = None
        self._is_said = False

    def __enter__(self) -> JsonOutput:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.wanted and not self._is_said and error is not None:
            ending = _ending_of(error)
            if ending is not None:
                self.say(ending)

    def say(self, ending: dict[str, Any] | None = None) -> None:
        """Prints the object; `ending` has the keys that stand above what the guest came to."""
        self._is_said = True
        said = self.describe() if self.describe is not None else {}
        said |= self.written.as_object()
        click.echo(json.dumps(said | (ending or {})))


def _ending_of(error: BaseException) -> dict[str, Any] | None:
    """What is said of an error that ends the run; None for a bug, or if nobody reads."""
    if isinstance(error, KeyboardInterrupt):
        return _by_signal(signal.SIGINT)
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > _SIGNAL_BASE:
        return _by_signal(error.code - _SIGNAL_BASE)
    if isinstance(error, EXPECTED) and not isinstance(error, BrokenPipeError):
        return {"end": "failed", "why": in_one_line(error), "exit": 1}
    return None


def _by_signal(number: int) -> dict[str, Any]:
    name = signal.Signals(number).name
    return {"end": "interrupted", "why": name, "exit": _SIGNAL_BASE + number}
