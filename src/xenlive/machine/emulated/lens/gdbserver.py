"""A debugger at a socket: who listens, and how the guest waits while it stands still.

    listen ──▶ wait_for_debugger ──▶ debugger has the say ◀──▶ guest runs
                                            └── gone: the guest runs, and the next one may come

While the guest runs, the socket is looked at between slices (`Around.watch`). When the guest comes
to a breakpoint, the processor calls here in the middle of its slice, and this returns when the
debugger lets the guest go on: nobody else runs meanwhile, time stands still, and the slice goes on
as if nothing had been.

**Invariants.** Only this machine's processes can connect. A debugger that goes, or breaks off in
the middle of anything, leaves a guest that runs as without one. There is one debugger at a time:
another one is turned away at once, and the first does not notice.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

from xenlive.errors import ConfigError
from xenlive.machine.emulated.lens.gdb import Stub
from xenlive.machine.emulated.lens.gdbtarget import Stop, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.world import Guest

ADDRESS = "127.0.0.1"
_RECEIVE_MAX = 1 << 16


class Around(Protocol):
    """Who looks at descriptors while the guests run: a terminal."""

    def watch(self, fd: int, function: Callable[[], object]) -> None:
        """Calls `function` between slices of the guests whenever `fd` can be read."""

    def unwatch(self, fd: int) -> None:
        """Ends that."""

    def wait_for(self, *fds: int, to_write: bool = False) -> list[int]:
        """Waits until one of `fds` can be read, or written: which of them."""


class GdbServer:
    """Listens at `port` of this machine for debuggers of `guest`; 0 is any free port.

    ConfigError if that port can't be had.
    """

    def __init__(self, guest: Guest, port: int, around: Around) -> None:
        self._guest = guest
        self._around = around
        self._socket: socket.socket | None = None
        self._stub: Stub | None = None
        try:
            self._listener = socket.create_server((ADDRESS, port), backlog=1)
        except OSError as problem:
            raise ConfigError(f"--gdb {port}", 0, f"can't listen there: {problem}") from None
        self._listener.setblocking(True)
        #: Where it listens.
        self.port: int = self._listener.getsockname()[1]

    def wait_for_debugger(self) -> None:
        """Waits until a debugger is there, and has let the guest go on."""
        self._around.wait_for(self._listener.fileno())
        self._accept()

    def close(self) -> None:
        """Nobody can connect any more; the debugger that is there is left."""
        self._drop()
        self._listener.close()

    # ---- coming and going ----------------------------------------------------------------

    def _accept(self) -> None:
        self._socket, _ = self._listener.accept()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._around.watch(self._listener.fileno(), self._on_newcomer)
        self._around.watch(self._socket.fileno(), self._on_input)
        self._stub = Stub(Target(self._guest, self._on_stop))
        self._serve()

    def _drop(self) -> None:
        """The debugger has gone; another one may come."""
        if self._stub is not None and not self._stub.is_detached:
            self._stub.hang_up()
        self._stub = None
        if self._socket is not None:
            self._around.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._around.watch(self._listener.fileno(), self._accept)

    # ---- while one is there --------------------------------------------------------------

    def _serve(self) -> None:
        """The debugger has the say, until it lets the guest run or goes."""
        while self._stub is not None and not self._stub.is_running and self._socket is not None:
            ready = self._around.wait_for(self._socket.fileno(), self._listener.fileno())
            if self._listener.fileno() in ready:
                self._turn_away()
            else:
                self._hear()

    def _on_input(self) -> None:
        self._hear()
        self._serve()

    def _on_newcomer(self) -> None:
        self._turn_away()
        self._serve()

    def _turn_away(self) -> None:
        """Somebody wants to connect: not while the debugger that is here has not gone."""
        while self._hear():
            pass
        if self._stub is not None:
            self._listener.accept()[0].close()

    def _hear(self) -> bool:
        """Answers what has come; whether that was something, and there may be more."""
        if self._socket is None or self._stub is None:
            return False
        try:
            data = self._socket.recv(_RECEIVE_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._say(self._stub.receive(data))
        if not data or (self._stub is not None and self._stub.is_detached):
            self._drop()
        return self._stub is not None

    def _say(self, data: bytes) -> None:
        # A debugger that takes no answers makes the guest wait, but not who ends the run.
        while self._socket is not None and data:
            try:
                data = data[self._socket.send(data, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                self._around.wait_for(self._socket.fileno(), to_write=True)
            except OSError:
                self._drop()

    def _on_stop(self, stop: Stop) -> None:
        if self._stub is not None:
            self._say(self._stub.stopped(stop))
            self._serve()

    def guest_ended(self, exit_code: int, is_failure: bool) -> None:
        """The guest has ended; a debugger may look at one that failed before it is gone."""
        if self._stub is not None:
            self._say(self._stub.ended(exit_code, is_failure))
            self._serve()
            self._drop()
