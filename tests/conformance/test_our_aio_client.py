"""Our asyncio client, against every server: what it answers while many requests are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from conformance.servers import Server

from xenlive.client import Permission, Xenstore, tree
from xenlive.client.aio import AsyncTransaction, AsyncXenstore
from xenlive.client.codec import WatchEvent
from xenlive.errors import PeerError, XenstoreError

pytestmark = pytest.mark.peer

PATIENCE_S = 60.0
Story = Callable[[AsyncXenstore], Coroutine[Any, Any, None]]
Play = Callable[[Story], None]


@pytest.fixture
def play(server: Server) -> Play:
    """Runs a story with a client of the shared server."""

    def run(story: Story) -> None:
        async def connected() -> None:
            async with asyncio.timeout(PATIENCE_S):
                async with await AsyncXenstore.connect(server.socket_path) as store:
                    await story(store)

        asyncio.run(connected())

    return run


def test_many_requests_under_way(play: Play, place: str) -> None:
    async def story(store: AsyncXenstore) -> None:
        names = [f"{place}/{number}" for number in range(300)]
        await asyncio.gather(*(store.write(name, name) for name in names))
        values = await asyncio.gather(*(store.read(name) for name in names))
        assert values == [name.encode() for name in names]
        assert len(await store.directory(place)) == 300

    play(story)


def test_each_kind_of_request(play: Play, place: str) -> None:
    async def story(store: AsyncXenstore) -> None:
        await store.mkdir(f"{place}/a")
        assert await store.read(f"{place}/a") == b""
        assert await store.get(f"{place}/none") is None
        assert await store.exists(f"{place}/a")
        assert not await store.exists(f"{place}/none")
        await store.set_perms(f"{place}/a", [Permission(0, "b")])
        assert await store.get_perms(f"{place}/a") == [Permission(0, "b")]
        await store.write(f"{place}/a", "\N{EURO SIGN}")
        assert await store.read_text(f"{place}/a") == "\N{EURO SIGN}"
        await store.rm(f"{place}/a")
        assert await store.get_domain_path(7) == "/local/domain/7"
        assert await store.is_domain_introduced(0)
        assert "live-update" in await store.control("help")
        for refused in (store.release(7), store.resume(7), store.set_target(7, 8)):
            with pytest.raises(XenstoreError, match=r"ENOENT|EINVAL"):
                await refused

    play(story)


def test_a_counter_that_many_count(play: Play, place: str) -> None:
    async def story(store: AsyncXenstore) -> None:
        await store.write(place, "0")

        async def count(tx: AsyncTransaction) -> None:
            await tx.write(place, str(int(await tx.read(place)) + 1))

        await asyncio.gather(*(store.transact(count) for _ in range(8)))
        for attempt in store.transactions():
            async with attempt as tx:
                await count(tx)
        assert await store.read(place) == b"9"

    play(story)


def test_a_body_that_fails_changes_nothing(play: Play, place: str) -> None:
    async def story(store: AsyncXenstore) -> None:
        async def change(tx: AsyncTransaction) -> None:
            await tx.write(place, "1")
            raise LookupError

        with pytest.raises(LookupError):
            await store.transact(change)
        assert not await store.exists(place)

    play(story)


def test_watches_are_iterators(play: Play, server: Server, place: str) -> None:
    async def story(store: AsyncXenstore) -> None:
        async with store.watching(place) as events, store.watching(f"{place}/b") as below:
            await store.write(f"{place}/a", "1")
            await store.write(f"{place}/b", "2")
            seen = [(await anext(events)).path for _ in range(3)]
            assert seen == [place, f"{place}/a", f"{place}/b"]
            assert [(await anext(below)).path for _ in range(2)] == [f"{place}/b"] * 2
            assert await events.next(0.0) is None
        await store.watch(place, "mine")
        await store.write(f"{place}/a", "3")
        assert await store.next_event() == WatchEvent(place, "mine")
        await store.unwatch(place, "mine")
        await store.reset_watches()

    play(story)


def test_waiting_for_a_value(play: Play, server: Server, place: str) -> None:
    async def story(store: AsyncXenstore) -> None:
        waiting = asyncio.create_task(store.wait_for(place, "4"))
        for value in ("1", "2", "4"):
            await store.write(place, value)
        assert await waiting == b"4"
        with pytest.raises(XenstoreError, match="ETIMEDOUT"):
            await store.wait_for(place, "5", timeout_s=0.01)

    play(story)


def test_cancelling_leaves_nothing_open(play: Play, place: str) -> None:
    async def story(store: AsyncXenstore) -> None:
        await store.write(place, "0")
        for turns in range(12):
            begun = asyncio.create_task(store.transact(lambda tx: tx.write(place, "1")))
            for _ in range(turns):
                await asyncio.sleep(0)
            begun.cancel()
            await asyncio.gather(begun, return_exceptions=True)
        # A server lets nobody have many transactions open; each new one is refused then.
        async with store.transaction() as tx:
            await tx.write(place, "done")
        assert await store.read(place) == b"done"

    play(story)


def test_a_tree_goes_and_comes_back(play: Play, store: Xenstore, place: str) -> None:
    async def story(client: AsyncXenstore) -> None:
        nodes = [
            tree.Node(f"{place}/t", b"", (Permission(0, "b"),)),
            *(tree.Node(f"{place}/t/{n}", bytes([n]), (Permission(0, "r"),)) for n in range(200)),
        ]
        await client.carry_out(tree.make(nodes))
        found = await client.carry_out(tree.collect(f"{place}/t"))
        key = [(node.path, node.value, node.permissions) for node in found]
        assert sorted(key[1:]) == sorted((n.path, n.value, n.permissions) for n in nodes[1:])
        walked = [node.path async for node in client.walk(f"{place}/t", with_top=True)]
        assert walked == [node.path for node in store.walk(f"{place}/t", with_top=True)]
        await client.carry_out(tree.remove(f"{place}/t"))
        assert not store.exists(f"{place}/t")

    play(story)


def test_a_server_that_ends(own_server: Server) -> None:
    async def story() -> None:
        async with await AsyncXenstore.connect(own_server.socket_path) as store:
            async with store.watching("/a") as events:
                assert await events.next() is not None
                waiting = asyncio.create_task(events.next())
                await asyncio.sleep(0)
                await asyncio.to_thread(own_server.stop)
                with pytest.raises(PeerError):
                    await waiting
            with pytest.raises(PeerError):
                await store.read("/a")

    asyncio.run(story())
