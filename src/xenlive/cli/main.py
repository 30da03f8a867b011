"""The entry point of the `xenlive` command, light: what it does first is to listen to Ctrl-C.

    main ─▶ SIGINT leaves at once ─▶ import click and the command ─▶ SIGINT as always ─▶ run

Until the imports are done there is nothing to clean up, and Python would answer Ctrl-C with a
traceback of whatever was being imported. (Its own start, before any line of ours, is its own.)

Afterwards Ctrl-C raises KeyboardInterrupt, wherever that happens to be. Python drops an exception
in a destructor, a weak reference's callback (each import has one) or a callback from C, writes a
traceback and goes on: such an interrupt is sent once more, a moment later.

**Invariants.** Importing this module imports nothing else of ours and changes nothing. A SIGINT
that whoever started us has set to be ignored stays ignored.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from types import FrameType
    from typing import NoReturn
else:
    import _signal as signal  # `signal` itself imports half a dozen modules first

EXIT_INTERRUPTED = 130

#: Until an interrupt that was dropped is sent again: whoever dropped it is done by then.
_AGAIN_S = 0.001


def main() -> NoReturn:
    """Runs the command line in `sys.argv`; the process ends with its exit code."""
    listened_to = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listened_to:
        signal.signal(signal.SIGINT, _leave)
    from xenlive.cli import root

    root.import_command(sys.argv[1:])
    try:
        if listened_to:
            sys.unraisablehook = _on_dropped
            signal.signal(signal.SIGALRM, _interrupt_again)
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = root.run()
        if listened_to:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done but Python's own end
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    sys.exit(code)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(EXIT_INTERRUPTED)


def _on_dropped(dropped: sys.UnraisableHookArgs) -> None:
    """Python drops an exception here; nothing raised here would get further than it."""
    if dropped.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    else:
        sys.__unraisablehook__(dropped)


def _interrupt_again(number: int, frame: FrameType | None) -> None:
    """By whoever hears SIGINT by now: it may be a terminal's guest that runs."""
    signal.raise_signal(signal.SIGINT)
