"""A serve loop with real sockets for tests: the loop in a thread, blocking clients outside."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from xenstore.talk import HEADER, Message, decode, encode

from xenlive.abi.xs_wire import XS_WATCH_EVENT
from xenlive.stubdom.serve import ServeLoop
from xenlive.xenstore.server import XenstoreServer

PATIENCE_S = 20


class World:
    """A serve loop in a thread of its own, and clients in this one."""

    def __init__(self, folder: Path) -> None:
        self.server = XenstoreServer()
        self.loop = ServeLoop(self.server)
        self.path = str(folder / "socket")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self.loop.listen(self.listener.fileno())
        self._wake, self._waker = os.pipe()
        self._jobs: list[Callable[[], None]] = []
        self.loop.watch_fd(self._wake, self._run_jobs)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failure: BaseException | None = None
        self.clients: list[Client] = []

    def start(self) -> None:
        self._thread.start()

    def inside(self, job: Callable[[], None]) -> None:
        """Runs `job` as a callback of the loop, and waits until it is done."""
        done = threading.Event()

        def run() -> None:
            job()
            done.set()

        self._jobs.append(run)
        os.write(self._waker, b"x")
        assert done.wait(PATIENCE_S)

    def client(self) -> Client:
        client = Client(self.path)
        self.clients.append(client)
        return client

    def finish(self) -> None:
        if self._thread.is_alive():
            self.inside(self.loop.stop)
            self._thread.join(PATIENCE_S)
        for client in self.clients:
            client.close()
        for _, fd in self.loop.connections():
            os.close(fd)
        self.loop.close()
        self.listener.close()
        os.close(self._wake)
        os.close(self._waker)
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:  # reported by the test, not by the thread
            self.failure = error

    def _run_jobs(self) -> None:
        os.read(self._wake, 1)
        self._jobs.pop(0)()


class Client:
    """A blocking client."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.socket.settimeout(PATIENCE_S)
        self._data = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def message(self) -> Message | None:
        """The next message; None at the end."""
        while len(self._data) < 16 or len(self._data) < 16 + HEADER.unpack_from(self._data)[3]:
            try:
                more = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not more:
                return None
            self._data += more
        size = 16 + HEADER.unpack_from(self._data)[3]
        (message,) = decode(self._data[:size])
        self._data = self._data[size:]
        return message

    def ask(self, kind: int, payload: bytes, tx_id: int = 0) -> bytes | str:
        """The reply's payload or error; events before it are dropped."""
        self.send(encode(kind, payload, tx_id, 1))
        while True:
            message = self.message()
            assert message is not None
            if message.kind != XS_WATCH_EVENT:
                return message.error or message.payload

    def close(self) -> None:
        self.socket.close()


def served(folder: Path) -> Iterator[World]:
    """A running world, for a fixture."""
    world = World(folder)
    world.start()
    yield world
    world.finish()
