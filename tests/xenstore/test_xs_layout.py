"""How nodes lie in memory: what no client may notice."""

from __future__ import annotations

import random

import pytest
from xenstore.talk import Client

from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_MKDIR,
    XS_RM,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WRITE,
)
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.store import SMALL_DIRECTORY, Directory


def listed(client: Client) -> list[bytes]:
    answer = client.ask(XS_DIRECTORY, b"/d\0")
    assert isinstance(answer, bytes)
    return answer.split(b"\0")[:-1]


def directory_of(client: Client) -> Directory:
    directory = client.server.store.nodes[b"/d"].directory
    assert directory is not None
    return directory


@pytest.mark.parametrize("seed", range(5))
def test_children_keep_their_order_however_many_they_are(seed: int) -> None:
    rng = random.Random(seed)
    client = Client(XenstoreServer())
    expected: list[bytes] = []
    for number in range(3 * SMALL_DIRECTORY):
        name = b"%d" % number
        client.ask(XS_MKDIR, b"/d/" + name + b"\0")
        expected.append(name)
        while expected and rng.random() < 0.3:
            gone = expected.pop(rng.randrange(len(expected)))
            client.ask(XS_RM, b"/d/" + gone + b"\0")
        if number % 50 == 0 and expected:
            assert listed(client) == expected
    assert listed(client) == expected
    assert len(expected) > SMALL_DIRECTORY
    assert isinstance(directory_of(client).paths, dict)
    assert not client.server.store.check()


def test_a_directory_that_has_no_children_left_is_none() -> None:
    client = Client(XenstoreServer())
    client.ask(XS_WRITE, b"/d/a\0")
    assert isinstance(directory_of(client).paths, list)
    client.ask(XS_RM, b"/d/a\0")
    assert client.server.store.nodes[b"/d"].directory is None
    assert listed(client) == []
    assert not client.server.store.check()


@pytest.mark.parametrize("count", [SMALL_DIRECTORY - 1, SMALL_DIRECTORY, SMALL_DIRECTORY + 1])
def test_a_transaction_sees_the_children_of_its_first_look(count: int) -> None:
    """Also if the list becomes a dict meanwhile, or its last child goes."""
    client = Client(XenstoreServer())
    for number in range(count):
        client.ask(XS_MKDIR, b"/d/%d\0" % number)
    client.ask(XS_TRANSACTION_START, b"\0")
    before = client.ask(XS_DIRECTORY, b"/d\0", 1)
    client.ask(XS_MKDIR, b"/d/more\0")
    assert client.ask(XS_DIRECTORY, b"/d\0", 1) == before
    for name in [b"%d" % number for number in range(count)] + [b"more"]:
        client.ask(XS_RM, b"/d/" + name + b"\0")
    assert client.ask(XS_DIRECTORY, b"/d\0", 1) == before
    assert client.ask(XS_TRANSACTION_END, b"T\0", 1) == "EAGAIN"
    assert not client.server.store.pins
    assert not client.server.store.check()


def test_what_is_made_anew_is_not_what_was_there() -> None:
    """New nodes share a generation, but never that of a node that was at their path."""
    client = Client(XenstoreServer())
    seen: set[bytes | str | None] = set()
    for _ in range(4):
        client.ask(XS_MKDIR, b"/d\0")
        for _ in range(2):
            answer = client.ask(XS_DIRECTORY_PART, b"/d\0000\0")
            assert answer not in seen
            seen.add(answer)
            client.ask(XS_MKDIR, b"/d/a\0")
        client.ask(XS_RM, b"/d\0")


def test_a_transaction_hears_of_a_node_that_was_made_anew() -> None:
    client = Client(XenstoreServer())
    client.ask(XS_MKDIR, b"/d\0")
    client.ask(XS_TRANSACTION_START, b"\0")
    client.ask(XS_DIRECTORY, b"/d\0", 1)
    client.ask(XS_RM, b"/d\0")
    client.ask(XS_MKDIR, b"/d\0")
    client.ask(XS_WRITE, b"/e\0x", 1)
    assert client.ask(XS_TRANSACTION_END, b"T\0", 1) == "EAGAIN"
