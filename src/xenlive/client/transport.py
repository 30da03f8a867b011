"""How a blocking client's bytes reach a server: `SocketTransport`; `ring.py` has a domain's.

**Invariants.** `send` has sent all or raised. `receive` gives at least one byte or raises. Both
raise TimeoutError once the deadline is over, OSError or PeerError when the connection is broken,
and what was there before the deadline is given even if that has passed.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from xenlive.errors import ConfigError, PeerError

RECEIVE_BYTES = 65536
RETRY_S = 0.002


class Transport:
    """Bytes to the server and from it, in their order; `deadline_s` is of the monotonic clock."""

    def send(self, data: bytes, deadline_s: float | None) -> None:
        """Sends all of `data`, waiting for room."""
        raise NotImplementedError

    def receive(self, deadline_s: float | None) -> bytes:
        """What has come, waiting for some; `None` waits for ever."""
        raise NotImplementedError

    def fileno(self) -> int:
        """A descriptor to wait for with `select`; -1 once closed."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the connection."""
        raise NotImplementedError


class SocketTransport(Transport):
    """A connected Unix socket, which it owns."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def send(self, data: bytes, deadline_s: float | None) -> None:
        """Sends all of `data`."""
        self._limit(deadline_s)
        self._socket.sendall(data)

    def receive(self, deadline_s: float | None) -> bytes:
        """What has come; PeerError at the end of the stream."""
        self._limit(deadline_s)
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise PeerError("the server closed the connection")
        return data

    def fileno(self) -> int:
        """The socket's."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def _limit(self, deadline_s: float | None) -> None:
        """Sets how long the next call on the socket may take before it raises TimeoutError."""
        if deadline_s is None:
            self._socket.settimeout(None)
            return
        # Never zero, which would mean not to wait at all: what has already arrived is still taken.
        self._socket.settimeout(max(deadline_s - time.monotonic(), 1e-6))


def new_socket() -> socket.socket:
    """A Unix socket that does not block, so that a full queue says EAGAIN and does not wait."""
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connecting.setblocking(False)
    return connecting


def unreachable(path: str | os.PathLike[str], error: OSError | ValueError) -> ConfigError:
    """What to raise when nobody answers at `path`."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConfigError(str(path), 0, f"no Xenstore can be reached there: {why}")


def connect_socket(path: Path, timeout_s: float) -> socket.socket:
    """A socket that is connected to `path`; a full queue is tried again until `timeout_s` is over.

    ConfigError, naming the path, if no server can be reached there.
    """
    deadline_s = time.monotonic() + timeout_s
    connecting = new_socket()
    try:
        while True:
            try:
                connecting.connect(str(path))
                return connecting
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise
                time.sleep(RETRY_S)
    except (OSError, ValueError) as error:
        connecting.close()
        raise unreachable(path, error) from None
    except BaseException:
        connecting.close()
        raise
