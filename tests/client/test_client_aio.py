"""The asyncio client against a script of a server: order, cancellation, lost connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from xenlive.abi import xs_wire
from xenlive.client import requests
from xenlive.client.aio import AsyncTransaction, AsyncXenstore
from xenlive.client.codec import WatchEvent
from xenlive.errors import ConfigError, PeerError, XenstoreError

HEADER = xs_wire.XSD_SOCKMSG
PATIENCE_S = 30.0


class Script:
    """The server's side of one connection: `hear` gives requests, `say` sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def hear(self) -> tuple[int, int, int, bytes]:
        """Type, request id, transaction and payload of the next request."""
        header = await asyncio.wait_for(self.reader.readexactly(HEADER.size), PATIENCE_S)
        type, request_id, transaction, length = HEADER.unpack(header)
        return type, request_id, transaction, await self.reader.readexactly(length)

    def say(self, type: int, request_id: int, payload: bytes, transaction: int = 0) -> None:
        """Sends one message."""
        self.writer.write(HEADER.pack(type, request_id, transaction, len(payload)) + payload)

    async def expect(self, type: int, answer: bytes, payload: bytes | None = None) -> bytes:
        """Hears one request, which has to be of a type, and answers it."""
        heard, request_id, transaction, found = await self.hear()
        assert heard == type, xs_wire.TYPE_NAMES[heard]
        assert payload is None or found == payload
        self.say(type, request_id, answer, transaction)
        return found


@asynccontextmanager
async def scripted(
    folder: Path, timeout_s: float | None = None
) -> AsyncIterator[tuple[AsyncXenstore, Script]]:
    """A client, and the script's end of its connection."""
    connected: asyncio.Queue[Script] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.put_nowait(Script(reader, writer))

    path = folder / "socket"
    listening = await asyncio.start_unix_server(accept, path)
    async with listening, await AsyncXenstore.connect(path, timeout_s=timeout_s) as store:
        script = await connected.get()
        try:
            yield store, script
        finally:
            script.writer.close()


Play = Callable[[AsyncXenstore, Script], Coroutine[Any, Any, None]]


def play(folder: Path, story: Play, timeout_s: float | None = None) -> None:
    """Runs a story to its end."""

    async def run() -> None:
        async with asyncio.timeout(PATIENCE_S), scripted(folder, timeout_s) as (store, script):
            await story(store, script)

    asyncio.run(run())


async def refused(awaited: Awaitable[object]) -> str:
    with pytest.raises(XenstoreError) as caught:
        await awaited
    return caught.value.name


def test_answers_in_any_order_find_their_requests(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        reads = asyncio.gather(*(store.read(f"/{number}") for number in range(50)))
        heard = [await script.hear() for _ in range(50)]
        for type, request_id, _, payload in reversed(heard):
            script.say(type, request_id, payload[1:-1])
        assert await reads == [b"%d" % number for number in range(50)]

    play(tmp_path, story)


def test_a_cancelled_request_disturbs_nobody(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        given_up = asyncio.create_task(store.read("/slow"))
        _, slow_id, _, _ = await script.hear()
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        other = asyncio.create_task(store.read("/a"))
        _, request_id, _, _ = await script.hear()
        script.say(xs_wire.XS_READ, slow_id, b"too late")
        script.say(xs_wire.XS_READ, request_id, b"1")
        assert await other == b"1"

    play(tmp_path, story)


def test_a_transaction_that_nobody_waits_for_is_ended(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        starting = asyncio.create_task(store.transaction().__aenter__())
        type, request_id, _, _ = await script.hear()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        script.say(type, request_id, b"7\0")
        type, _, transaction, payload = await script.hear()
        assert (type, transaction, payload) == (xs_wire.XS_TRANSACTION_END, 7, b"F\0")

    play(tmp_path, story)


def test_a_watch_that_nobody_waits_for_is_ended(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        setting = asyncio.create_task(store.watching("/a").__aenter__())
        type, request_id, _, watched = await script.hear()
        setting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await setting
        script.say(type, request_id, b"OK\0")
        await script.expect(xs_wire.XS_UNWATCH, b"OK\0", watched)

    play(tmp_path, story)


def test_an_undone_request_that_was_refused_needs_no_undoing(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        starting = asyncio.create_task(store.transaction().__aenter__())
        _, request_id, _, _ = await script.hear()
        starting.cancel()
        script.say(xs_wire.XS_ERROR, request_id, b"ENOSPC\0")
        reading = asyncio.create_task(store.read("/a"))
        await script.expect(xs_wire.XS_READ, b"1")
        assert await reading == b"1"

    play(tmp_path, story)


def test_a_cancelled_body_aborts_its_transaction(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        async def body() -> None:
            async with store.transaction() as tx:
                await tx.read("/a")

        running = asyncio.create_task(body())
        await script.expect(xs_wire.XS_TRANSACTION_START, b"3\0")
        await script.hear()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await script.hear())[0::2] == (xs_wire.XS_TRANSACTION_END, 3)

    play(tmp_path, story)


def test_a_time_out_leaves_the_connection(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        assert await refused(store.read("/slow")) == "ETIMEDOUT"
        _, slow_id, _, _ = await script.hear()
        store.timeout_s = None
        reading = asyncio.create_task(store.read("/a"))
        script.say(xs_wire.XS_READ, slow_id, b"too late")
        await script.expect(xs_wire.XS_READ, b"1")
        assert await reading == b"1"
        store.timeout_s = 0.01
        assert (
            await refused(store.run_all([requests.read("/a"), requests.read("/b")])) == "ETIMEDOUT"
        )

    play(tmp_path, story, timeout_s=0.01)


def test_a_lost_connection_is_told_to_all(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        setting = asyncio.create_task(store.watching("/a").__aenter__())
        await script.expect(xs_wire.XS_WATCH, b"OK\0")
        events = await setting
        waiting = [
            asyncio.create_task(store.read("/a")),
            asyncio.create_task(events.next()),
            asyncio.create_task(store.next_event()),
        ]
        await script.hear()
        script.writer.close()
        for task in waiting:
            with pytest.raises(PeerError, match=r"closed|broke"):
                await task
        assert not store.is_connected
        with pytest.raises(PeerError, match=r"closed|broke"):
            await store.write("/a", "1")

    play(tmp_path, story)


def test_events_that_came_before_the_end_are_still_given(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        script.say(xs_wire.XS_WATCH_EVENT, 0, b"/a\0t\0")
        script.writer.close()
        assert await store.next_event() == WatchEvent("/a", "t")
        with pytest.raises(PeerError):
            await store.next_event()

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("type", "payload"), [(xs_wire.XS_RM, b"OK\0"), (xs_wire.XS_WRITE, b"no\0")]
)
def test_a_server_that_speaks_nonsense_is_left(tmp_path: Path, type: int, payload: bytes) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        writing = asyncio.create_task(store.write("/a", "1"))
        _, request_id, _, _ = await script.hear()
        script.say(type, request_id, payload)
        with pytest.raises(PeerError):
            await writing
        assert not store.is_connected

    play(tmp_path, story)


def test_closing_ends_whoever_waits(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        reading = asyncio.create_task(store.read("/a"))
        await script.hear()
        await store.close()
        with pytest.raises(PeerError, match="closed"):
            await reading
        await store.close()

    play(tmp_path, story)


def test_events_go_to_whoever_watches(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        async def watching() -> list[str]:
            async with store.watching("/a", depth=1) as events:
                return [(await anext(events)).path for _ in range(2)]

        task = asyncio.create_task(watching())
        watched = await script.expect(xs_wire.XS_WATCH, b"OK\0")
        path, token, depth, _ = watched.split(b"\0")
        assert (path, depth) == (b"/a", b"1")
        for payload in (b"/other\0mine\0", b"/a\0" + token + b"\0", b"/a/b\0" + token + b"\0"):
            script.say(xs_wire.XS_WATCH_EVENT, 0, payload)
        assert await task == ["/a", "/a/b"]
        await script.expect(xs_wire.XS_UNWATCH, b"OK\0")
        script.say(xs_wire.XS_WATCH_EVENT, 0, b"/a\0" + token + b"\0")  # was on its way
        assert await store.next_event() == WatchEvent("/other", "mine")
        assert await store.next_event(0.01) is None

    play(tmp_path, story)


def test_conflicts_are_tried_again_and_then_an_error(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        async def change(tx: AsyncTransaction) -> str:
            await tx.write("/a", "1")
            return "done"

        async def serve(conflicts: int) -> None:
            for number in range(1, conflicts + 2):
                await script.expect(xs_wire.XS_TRANSACTION_START, b"%d\0" % number)
                await script.expect(xs_wire.XS_WRITE, b"OK\0")
                _, request_id, transaction, payload = await script.hear()
                assert (transaction, payload) == (number, b"T\0")
                if number <= conflicts:
                    script.say(xs_wire.XS_ERROR, request_id, b"EAGAIN\0", transaction)
                else:
                    script.say(xs_wire.XS_TRANSACTION_END, request_id, b"OK\0", transaction)

        result, _ = await asyncio.gather(store.transact(change), serve(conflicts=5))
        assert result == "done"
        serving = asyncio.create_task(serve(conflicts=9))
        assert await refused(store.transact(change, attempts=2)) == "EAGAIN"
        serving.cancel()

    play(tmp_path, story)


def test_a_transaction_is_used_inside_of_its_with(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        with pytest.raises(RuntimeError, match="async with"):
            await store.transaction().read("/a")
        with pytest.raises(RuntimeError, match="async with"):
            await store.watching("/a").next()

    play(tmp_path, story)


def test_one_request_of_many_that_is_too_long(tmp_path: Path) -> None:
    async def story(store: AsyncXenstore, script: Script) -> None:
        batch = [requests.read("/a"), requests.write("/b", bytes(4096)), requests.read("/c")]
        running = asyncio.create_task(store.run_all(batch))
        await script.expect(xs_wire.XS_READ, b"1")
        await script.expect(xs_wire.XS_READ, b"3")
        first, refusal, last = await running
        assert (first, refusal.name, last) == (b"1", "E2BIG", b"3")

    play(tmp_path, story)


def test_nobody_there_and_a_full_queue(tmp_path: Path) -> None:
    async def story() -> None:
        with pytest.raises(ConfigError, match="No such file"):
            await AsyncXenstore.connect(tmp_path / "none")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "full"))
            listener.listen(0)
            async with await AsyncXenstore.connect(tmp_path / "full"):
                with pytest.raises(ConfigError, match="unavailable"):
                    await AsyncXenstore.connect(tmp_path / "full", connect_timeout_s=0.01)
                asyncio.get_running_loop().call_later(0.02, lambda: listener.accept()[0].close())
                await (await AsyncXenstore.connect(tmp_path / "full")).close()

    asyncio.run(story())
