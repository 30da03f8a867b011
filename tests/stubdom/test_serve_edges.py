"""Whatever a client leaves in its socket is heard: long, cut off, last words, a halted batch."""

from __future__ import annotations

import array
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from stubdom.serving import World, served
from xenstore.talk import Message, encode

from xenlive.abi.xs_wire import XS_CONTROL, XS_READ, XS_WRITE
from xenlive.stubdom.serve import READ_SIZE
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.requests import Request


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from served(tmp_path)


def test_more_than_one_read_takes(world: World) -> None:
    client = world.client()
    client.ask(XS_WRITE, b"/a\0v")
    request = encode(XS_READ, b"/a\0")
    count = 3 * READ_SIZE // len(request)
    world.inside(world.loop.freeze)
    client.send(request * count)
    world.inside(world.loop.thaw)
    for _ in range(count):
        assert client.message() == Message(XS_READ, 0, 0, b"v")


def test_exactly_what_one_read_takes(world: World) -> None:
    client = world.client()
    data = encode(XS_WRITE, b"/a\0" + bytes(READ_SIZE // 4 - 19)) * 4
    assert len(data) == READ_SIZE
    world.inside(world.loop.freeze)
    client.send(data)
    world.inside(world.loop.thaw)
    for _ in range(4):
        assert client.message() == Message(XS_WRITE, 0, 0, b"OK\0")
    assert client.ask(XS_READ, b"/a\0") == bytes(READ_SIZE // 4 - 19)


@pytest.mark.parametrize("shut", [socket.SHUT_WR, socket.SHUT_RDWR, None])
def test_last_words_and_the_end_at_once(world: World, shut: int | None) -> None:
    client = world.client()
    client.ask(XS_WRITE, b"/a\0v")
    world.inside(world.loop.freeze)
    client.send(encode(XS_WRITE, b"/a\0last"))
    if shut is None:
        client.close()
    else:
        client.socket.shutdown(shut)
    world.inside(world.loop.thaw)
    for _ in range(1000):
        world.inside(lambda: None)
        if not world.loop.connections():
            break
    world.inside(lambda: None)  # it is done with the last one, too
    assert world.server.store.nodes[b"/a"].value == b"last"
    assert not world.server.connections


def test_the_rest_of_a_batch_that_was_halted(world: World) -> None:
    """Each asks for a freeze in one batch of events: all but the first are heard later."""
    put_off: list[tuple[Connection, Request]] = []

    def handler(conn: Connection, request: Request, args: list[bytes]) -> bytes | None:
        put_off.append((conn, request))
        world.loop.freeze()
        return None

    def go_on() -> None:
        world.server.reply(*put_off.pop(), b"OK\0")
        world.loop.thaw()

    world.server.control[b"pause"] = handler
    clients = [world.client() for _ in range(5)]
    for client in clients:
        client.ask(XS_READ, b"/tool\0")
    world.inside(world.loop.freeze)
    for client in clients:
        client.send(encode(XS_CONTROL, b"pause\0"))
    world.inside(world.loop.thaw)
    for _ in clients:
        for _ in range(1000):
            world.inside(lambda: None)
            if put_off:
                break
        assert len(put_off) == 1
        world.inside(go_on)
    for client in clients:
        assert client.message() == Message(XS_CONTROL, 0, 0, b"OK\0")


def test_bytes_that_come_with_descriptors(world: World) -> None:
    """A read ends behind those, whatever comes after; the descriptors are nobody's."""
    client = world.client()
    request = encode(XS_READ, b"/tool\0")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]
    world.inside(world.loop.freeze)
    for _ in range(3):
        client.socket.sendmsg([request], rights)
        client.send(request)
    world.inside(world.loop.thaw)
    for _ in range(6):
        assert client.message() == Message(XS_READ, 0, 0, b"")
