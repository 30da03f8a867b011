"""One epoll loop that drives the scripts of all connections and takes the time.

    Loop.connect(path, name)      a connection, never a second one for the same name
    Loop.start(connection, script, on_end)
    Loop.run(done, limit_s)       until `done()`, or TimeoutError

Each connection remembers its longest silence (from one answer to the next, pauses included) and
its longest wait (from a request to its answer) since `open_window`, with the times of both on the
system-wide monotonic clock, so that they can be laid over what other processes measured.

**Invariants.** A connection that broke is never made anew: it counts as lost, its unanswered
requests as failed, and its script ends. A server that doesn't answer for `limit_s` breaks the
connection, and all of them if nobody hears anything for so long: nothing here waits for ever, and
not for one connection after the other. Answers come in the order of requests and carry their
req_id and tx_id; one that doesn't breaks the connection too.
"""

from __future__ import annotations

import errno
import heapq
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from xenlive.demo import wire
from xenlive.demo.scripts import Ask, Script, Step
from xenlive.demo.tally import Tally
from xenlive.demo.wire import Decoder, Reply, Request
from xenlive.errors import PeerError

READ_BYTES = 1 << 18
SPLIT_BYTES = 7  # inside the header
CHECK_EVERY_S = 0.1
EventHandler = Callable[[bytes, bytes], None]


@dataclass
class Span:
    """A stretch of time on the monotonic clock."""

    start_s: float = 0.0
    end_s: float = 0.0

    @property
    def length_s(self) -> float:
        """How long it is."""
        return self.end_s - self.start_s


@dataclass(eq=False)
class Connection:
    """One connection of the load, and what has to be known of it."""

    name: str
    sock: socket.socket
    inode: int
    on_event: EventHandler | None = None
    decoder: Decoder = field(default_factory=Decoder)
    unsent: bytes = b""
    waiting: deque[tuple[int, Request]] = field(default_factory=deque)
    replies: list[Reply] = field(default_factory=list)
    script: Script | None = None
    on_end: Callable[[], None] | None = None
    lost: str = ""
    last_req_id: int = 0
    asked_s: float = 0.0
    answered_s: float = 0.0
    answers: int = 0
    silence: Span = field(default_factory=Span)
    wait: Span = field(default_factory=Span)

    @property
    def same(self) -> bool:
        """Whether this is still the connection that was made at the start."""
        return not self.lost and os.fstat(self.sock.fileno()).st_ino == self.inode


class Loop:
    """The loop; `limit_s` is how long a server may take for one answer."""

    def __init__(self, tally: Tally, limit_s: float) -> None:
        self.connections: list[Connection] = []
        self._tally = tally
        self._limit_s = limit_s
        self._epoll = select.epoll()
        self._by_fd: dict[int, Connection] = {}
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._heard_s = 0.0  # when the server last said anything to anybody
        self._call_in(CHECK_EVERY_S, self._find_stuck)

    # -- connections -----------------------------------------------------------------------------

    def connect(
        self, path: str, name: str, on_event: EventHandler | None = None, limit_s: float = 10.0
    ) -> Connection:
        """A new connection to the server at `path`. OSError if it can't be made in `limit_s`."""
        deadline_s = time.monotonic() + limit_s
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                sock.connect(path)
                break
            except OSError as error:
                sock.close()
                # A short backlog (the C daemon's is 1) refuses for a moment.
                if error.errno != errno.EAGAIN or time.monotonic() > deadline_s:
                    raise
            time.sleep(0.001)
        fd = sock.fileno()
        connection = Connection(name, sock, os.fstat(fd).st_ino, on_event)
        self.connections.append(connection)
        self._by_fd[fd] = connection
        self._epoll.register(fd, select.EPOLLIN)
        return connection

    def start(
        self, connection: Connection, script: Script, on_end: Callable[[], None] | None = None
    ) -> None:
        """Starts a script on an idle connection; `on_end` is called once, however it ends.

        On a connection that was lost it ends at once, and counts as one failed request at least.
        """
        connection.script = script
        connection.on_end = on_end
        if connection.lost:
            self._tally.fail(f"{connection.name}: nothing can be asked: {connection.lost}")
            self._end_script(connection)
        else:
            self._advance(connection, None)

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls `callback` whenever `fd` is readable, until `unwatch_fd`."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch_fd(self, fd: int) -> None:
        """Ends `watch_fd`."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def open_window(self) -> None:
        """Starts measuring silences and waits anew."""
        now_s = time.monotonic()
        for connection in self.connections:
            connection.silence = Span()
            connection.wait = Span()
            connection.answers = 0
            connection.answered_s = connection.answered_s or now_s

    def close(self) -> None:
        """Closes all connections."""
        for connection in self.connections:
            if connection.script is not None:
                connection.script.close()
            connection.sock.close()
        self._epoll.close()

    # -- the loop --------------------------------------------------------------------------------

    def run(self, done: Callable[[], bool], limit_s: float | None = None) -> None:
        """Runs until `done()`; TimeoutError when that takes longer than `limit_s`."""
        deadline_s = None if limit_s is None else time.monotonic() + limit_s
        while not done():
            now_s = time.monotonic()
            if deadline_s is not None and now_s > deadline_s:
                raise TimeoutError(f"not done after {limit_s:.0f} s")
            timeout_s = max(0.0, self._timers[0][0] - now_s) if self._timers else CHECK_EVERY_S
            for fd, events in self._epoll.poll(timeout_s):
                connection = self._by_fd.get(fd)
                if connection is None:
                    callback = self._callbacks.get(fd)
                    if callback is not None:
                        callback()
                    continue
                if events & ~select.EPOLLOUT:
                    self._read(connection)
                if events & select.EPOLLOUT and not connection.lost:
                    self._flush(connection)
            self._fire_timers()

    def _fire_timers(self) -> None:
        now_s = time.monotonic()
        while self._timers and self._timers[0][0] <= now_s:
            heapq.heappop(self._timers)[2]()

    def _call_in(self, delay_s: float, callback: Callable[[], None]) -> None:
        self._timer_count += 1
        due_s = time.monotonic() + delay_s
        heapq.heappush(self._timers, (due_s, self._timer_count, callback))

    def _find_stuck(self) -> None:
        """A server that stopped answering: every request has its time limit."""
        now_s = time.monotonic()
        late = [c for c in self.connections if c.waiting and now_s - c.asked_s > self._limit_s]
        if late and now_s - self._heard_s > self._limit_s:
            late = list(self.connections)
        for connection in late:
            self._lose(connection, f"no answer for {self._limit_s:g} s")
        self._call_in(CHECK_EVERY_S, self._find_stuck)

    # -- one connection --------------------------------------------------------------------------

    def _advance(self, connection: Connection, replies: list[Reply] | None) -> None:
        """Gives the script what it waited for (None to start it), and does what it asks next."""
        script = connection.script
        if script is None:
            return
        try:
            step: Step = next(script) if replies is None else script.send(replies)
        except StopIteration:
            self._end_script(connection)
            return
        if isinstance(step, Ask):
            if step.requests:
                self._send(connection, step)
                return
            step = 0.0
        self._call_in(step, lambda: self._resume(connection, script))

    def _resume(self, connection: Connection, script: Script) -> None:
        if connection.script is script and not connection.lost:
            self._advance(connection, [])

    def _end_script(self, connection: Connection) -> None:
        script, on_end = connection.script, connection.on_end
        connection.script = connection.on_end = None
        if script is not None:
            script.close()
        if on_end is not None:
            on_end()

    def _send(self, connection: Connection, step: Ask) -> None:
        pieces = []
        for request in step.requests:
            connection.last_req_id += 1
            connection.waiting.append((connection.last_req_id, request))
            pieces.append(wire.encode(request, connection.last_req_id))
        self._tally.requests += len(step.requests)
        connection.asked_s = time.monotonic()
        data = b"".join(pieces)
        if step.split_s:
            self._write(connection, data[:SPLIT_BYTES])
            rest = data[SPLIT_BYTES:]
            self._call_in(step.split_s, lambda: self._write(connection, rest))
        else:
            self._write(connection, data)

    def _write(self, connection: Connection, data: bytes) -> None:
        if connection.lost:
            return
        waits = bool(connection.unsent)
        connection.unsent += data
        if not waits:
            self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        try:
            sent = connection.sock.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(connection, f"send: {error.strerror}")
            return
        connection.unsent = connection.unsent[sent:]
        wanted = select.EPOLLIN | (select.EPOLLOUT if connection.unsent else 0)
        self._epoll.modify(connection.sock.fileno(), wanted)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(READ_BYTES)
            messages = connection.decoder.feed(data)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(connection, f"receive: {error.strerror}")
            return
        except PeerError as error:
            self._lose(connection, str(error))
            return
        if not data:
            self._lose(connection, "closed by the server")
            return
        self._heard_s = time.monotonic()
        for message in messages:
            self._take(connection, message)
            if connection.lost:
                return
        if connection.replies and not connection.waiting:
            self._take_time(connection)
            replies, connection.replies = connection.replies, []
            self._advance(connection, replies)

    def _take(self, connection: Connection, message: Reply) -> None:
        if message.type == wire.WATCH_EVENT:
            path, _, rest = message.payload.partition(b"\0")
            if connection.on_event is None:
                self._tally.fail(f"{connection.name}: an event without a watch: {path!r}", 0)
                self._lose(connection, "got an event that is nobody's")
            else:
                connection.on_event(path, rest.removesuffix(b"\0"))
            return
        if not connection.waiting:
            self._lose(connection, "got an answer without a request")
            return
        req_id, request = connection.waiting.popleft()
        if (message.req_id, message.tx_id) != (req_id, request.tx_id):
            self._tally.fail(f"{connection.name}: {wire.describe(request)}: another one's answer")
            self._lose(connection, "got answers out of order")
            return
        connection.replies.append(message)

    def _take_time(self, connection: Connection) -> None:
        now_s = time.monotonic()
        if connection.answered_s and now_s - connection.answered_s > connection.silence.length_s:
            connection.silence = Span(connection.answered_s, now_s)
        if now_s - connection.asked_s > connection.wait.length_s:
            connection.wait = Span(connection.asked_s, now_s)
        connection.answered_s = now_s
        connection.answers += len(connection.replies)

    def _lose(self, connection: Connection, why: str) -> None:
        if connection.lost:
            return
        connection.lost = why
        self._tally.connections_lost += 1
        self._tally.note(f"{connection.name}: connection lost: {why}")
        if connection.waiting:
            first = wire.describe(connection.waiting[0][1])
            self._tally.fail(f"{connection.name}: {first}: no answer", len(connection.waiting))
        connection.waiting.clear()
        fd = connection.sock.fileno()
        self._epoll.unregister(fd)
        del self._by_fd[fd]
        connection.sock.close()
        self._end_script(connection)
