"""The user's terminal as the console of an emulated guest.

    keys ──stdin──▶ console.type        guest's output ──▶ stdout
    other processes ──▶ sources         (a Xenstore that is served elsewhere)
    Ctrl-C, SIGTERM ──▶ an exception at the next `poll`, or at once in `wait` and `show`
    stopped and continued (fg) ──▶ the terminal is the shell's meanwhile, then the guest's again

With a terminal at stdin, or other processes around, idle guests wait in real time, so that a clock
in the guest goes as fast as one on the wall and a waiting guest costs nothing. With a file or a
pipe nobody waits: time jumps, and with a file the same run is the same.

**Invariants.** Whatever ends the `with` block, an exception or a signal that can be caught, the
terminal and the signals' handlers are as they were before. Reading never waits, except in `wait`
when nothing else can happen.

Why signals are put off: one that raises in the middle of the emulator's callbacks would be lost.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Protocol

from xenlive.machine.emulated.world import Outside

_READ_MAX = 4096
_DISABLED = b"\0"  # _POSIX_VDISABLE on Linux and the BSDs
_INPUT, _LOCAL, _CHARACTERS = 0, 3, 6  # places in what tcgetattr gives
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Source(Protocol):
    """What else may have something for the guests, in its own time."""

    def fileno(self) -> int:
        """Readable when `ready` has something to do; -1 when nothing will come any more."""

    def ready(self) -> object:
        """Hands over what has come, without waiting."""


class Terminal(Outside):
    """Feeds `type_in` from the descriptor `fd`, once that is set; nothing comes from None.

    As a context manager it puts a terminal at `fd` into raw mode, so that keys are passed on as
    they are typed, unseen.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        #: Where what is typed goes: the console of a guest.
        self.type_in: Callable[[bytes], object] = bytes
        self.is_interactive = fd is not None and os.isatty(fd)
        self._sources: list[Source] = []
        self._tty: int | None = None
        self._before: list[Any] = []
        self._handlers: dict[signal.Signals, Any] = {}
        self._signal: int | None = None
        self._is_waiting = False
        self._others: dict[int, Callable[[], object]] = {}
        #: Called when a signal has come that the next `poll` raises: to let that be soon.
        self.on_signal: Callable[[], object] = bytes

    def __enter__(self) -> Terminal:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._on_signal)
        if self._fd is not None and self.is_interactive:
            self._before = termios.tcgetattr(self._fd)
            self._tty = self._fd
            self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._on_suspend)
            self._handlers[signal.SIGCONT] = signal.signal(signal.SIGCONT, self._on_continue)
            termios.tcsetattr(self._tty, termios.TCSADRAIN, _raw(self._before))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()
        self._raise_signal()

    def _restore(self) -> None:
        tty, self._tty = self._tty, None
        if tty is not None:
            with contextlib.suppress(termios.error):  # its window was closed: nothing to restore
                termios.tcsetattr(tty, termios.TCSADRAIN, self._before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        if self._is_waiting:
            self._raise_signal()
        self.on_signal()

    def _on_suspend(self, *_: object) -> None:
        """The shell, or whoever stopped us, gets its terminal for the time being."""
        self._set_if_ours(self._before)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _on_continue(self, *_: object) -> None:
        """In the foreground again: a shell gives the terminal back as it likes it itself."""
        self._set_if_ours(_raw(self._before))

    def _set_if_ours(self, attributes: list[Any]) -> None:
        """Changes the terminal, if there is one, and not from the background."""
        with contextlib.suppress(OSError, termios.error):  # its window was closed
            if self._tty is not None and os.tcgetpgrp(self._tty) == os.getpgrp():
                termios.tcsetattr(self._tty, termios.TCSADRAIN, attributes)

    def _raise_signal(self) -> None:
        number, self._signal = self._signal, None
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number is not None:
            raise SystemExit(128 + number)

    def listen(self, source: Source) -> None:
        """Hears of `source`, too; from now on time goes as on the wall while guests wait."""
        self._sources.append(source)

    @property
    def is_real_time(self) -> bool:
        """Whether waiting really takes as long as it does for the guests."""
        return self.is_interactive or bool(self._sources)

    def show(self, data: bytes) -> None:
        """Writes to stdout what the guest wrote, byte for byte."""
        self._is_waiting = True
        try:
            self._raise_signal()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        finally:
            self._is_waiting = False

    # ---- other descriptors ---------------------------------------------------------------

    def watch(self, fd: int, function: Callable[[], object]) -> None:
        """Calls `function` whenever the descriptor `fd` can be read: between slices of the guests.

        Nothing but that comes of it: guests that wait go on waiting for as long as before, and the
        time that `function` takes is nobody's.
        """
        self._others[fd] = function

    def unwatch(self, fd: int) -> None:
        """Ends what `watch` began."""
        self._others.pop(fd, None)

    def wait_for(self, *fds: int, to_write: bool = False) -> list[int]:
        """Waits until one of `fds` can be read, or written, however long: which of them.

        Signals raise at once.
        """
        self._is_waiting = True
        try:
            self._raise_signal()
            readable, writable, _ = select.select(
                [] if to_write else fds, fds if to_write else [], []
            )
        finally:
            self._is_waiting = False
        return readable + writable

    # ---- what a world asks ---------------------------------------------------------------

    def poll(self) -> None:
        self._raise_signal()
        self._take(self._ready(0))

    @property
    def is_open(self) -> bool:
        return self._fd is not None or any(source.fileno() >= 0 for source in self._sources)

    def wait(self, time_ns: int | None, has_timer: bool) -> int | None:
        if not self.is_open or (has_timer and not self.is_real_time):
            return None  # time jumps
        if not self.is_real_time:
            time_ns = None  # time stands still until there is input, or no more of it
        waited_ns = 0
        while True:
            left_s = None if time_ns is None else max(time_ns - waited_ns, 0) / 1e9
            started_ns = time.monotonic_ns()
            self._is_waiting = True
            try:
                self._raise_signal()
                ready = self._ready(left_s)
            finally:
                self._is_waiting = False
            waited_ns += time.monotonic_ns() - started_ns
            was_other = bool(self._others.keys() & ready)  # who is heard may go by that
            if self._take(ready):
                return waited_ns if self.is_real_time else 0
            if not was_other:
                return None

    def _ready(self, timeout_s: float | None) -> list[int]:
        """Which descriptors can be read, after `timeout_s` at most."""
        fds = [source.fileno() for source in self._sources if source.fileno() >= 0]
        fds += [*self._others, *([] if self._fd is None else [self._fd])]
        return select.select(fds, [], [], timeout_s)[0] if fds else []

    def _take(self, ready: list[int]) -> bool:
        """Hands over what has come; whether there was something for a guest."""
        for fd in ready:
            if fd in self._others:
                self._others[fd]()
        found = [source for source in self._sources if source.fileno() in ready]
        for source in found:
            source.ready()
        return (self._fd in ready and self._read(self._fd)) or bool(found)

    def _read(self, fd: int) -> bool:
        """Types what can be read; False at the end of it, after which nothing is read any more."""
        try:
            data = os.read(fd, _READ_MAX)
        except OSError:  # the terminal has gone
            data = b""
        if data:
            self.type_in(data)
        else:
            self._fd = None
        return bool(data)


def _raw(before: list[Any]) -> list[Any]:
    """No echo, no lines, no editing; of the keys with a meaning only Ctrl-C keeps it."""
    raw = list(before)
    raw[_LOCAL] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
    raw[_INPUT] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.IXON)
    characters = list(raw[_CHARACTERS])
    characters[termios.VQUIT] = characters[termios.VSUSP] = _DISABLED
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    raw[_CHARACTERS] = characters
    return raw
