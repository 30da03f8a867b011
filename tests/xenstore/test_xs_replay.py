"""What a journal hears, done again, gives the same server: from seeds, after each single change."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xenstore.goings_on import GoingsOn, saved
from xenstore.picture import differences, idle, picture
from xenstore.talk import Client

from xenlive.abi.xs_wire import XS_READ, XS_TRANSACTION_END, XS_TRANSACTION_START, XS_WRITE
from xenlive.errors import ImageError
from xenlive.xenstore import changes
from xenlive.xenstore.change_codec import decode, encode
from xenlive.xenstore.replay import replay
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import load_state

if TYPE_CHECKING:
    from xenlive.xenstore.changes import Change


class Stopped:
    """A clock that may be asked while a state is loaded, and then no more."""

    def __init__(self) -> None:
        self.now_s: float | None = 0.0

    def __call__(self) -> float:
        assert self.now_s is not None, "replaying asks no clock"
        return self.now_s


class Follower:
    """Another server: it is told each change of a first one, in bytes, and is the same at once."""

    def __init__(self, first: XenstoreServer, base: tuple[bytes, float] | None = None) -> None:
        clock = Stopped()
        self.first = first
        self.heard: list[Change] = []
        self.echo: list[Change] = []
        self.server = XenstoreServer(now=clock)
        if base is not None:
            clock.now_s = base[1]
            load_state(self.server, base[0])
        clock.now_s = None
        assert differences(first, self.server) == []
        first.journal = self.hear
        self.server.journal = self.echo.append

    def hear(self, change: Change) -> None:
        """Follows, and compares all there is."""
        self.heard.append(change)
        data = encode(change)
        again = decode(data)
        assert again == change
        replay(self.server, again)
        assert differences(self.first, self.server) == [], change

    def finish(self) -> None:
        """At the end: nothing changed that it was not told, and it would tell the same."""
        assert differences(self.first, self.server) == []
        assert self.echo == self.heard
        assert self.server.store.check() == []
        idle(self.first)
        idle(self.server)
        assert saved(self.first) == saved(self.server)


def follow(dice: random.Random, steps: int) -> set[int]:
    """Lets things happen, with a follower and some updates; returns the kinds that were heard."""
    world = GoingsOn(dice)
    follower = Follower(world.server)
    kinds: set[int] = set()
    for _ in range(steps):
        world.step()
        assert differences(follower.first, follower.server) == []
        if dice.random() < 0.01:
            follower.finish()
            kinds.update(change[0] for change in follower.heard)
            base = world.update()
            follower = Follower(world.server, base)
    follower.finish()
    return kinds | {change[0] for change in follower.heard}


@pytest.mark.parametrize("seed", range(12))
def test_after_each_change_the_follower_is_the_same(seed: int) -> None:
    follow(random.Random(seed), 250)


def test_all_kinds_of_changes_are_heard() -> None:
    kinds: set[int] = set()
    for seed in range(8):
        kinds |= follow(random.Random(1000 + seed), 300)
    assert kinds == set(changes.FIELDS)


@given(st.randoms(use_true_random=False), st.integers(1, 60))
@settings(deadline=None, max_examples=25)
def test_whatever_happens_the_follower_is_the_same(dice: random.Random, steps: int) -> None:
    follow(dice, steps)


@pytest.mark.parametrize("seed", range(3))
def test_any_prefix_gives_the_state_of_then(seed: int) -> None:
    """Each from the beginning, as a kernel would that finds a journal which ends there."""
    world = GoingsOn(random.Random(seed))
    heard: list[Change] = []
    then: list[dict[str, object]] = []

    def hear(change: Change) -> None:
        heard.append(change)
        then.append(picture(world.server))

    world.server.journal = hear
    for _ in range(60):
        world.step()
    assert len(heard) > 60
    for count in range(0, len(heard) + 1, 7):
        server = XenstoreServer()
        for change in heard[:count]:
            replay(server, change)
        assert count == 0 or picture(server) == then[count - 1]


def test_a_commit_is_one_change_with_all_it_does() -> None:
    server = XenstoreServer()
    client = Client(server)
    heard: list[Change] = []
    server.journal = heard.append
    client.ask(XS_TRANSACTION_START, b"\0")
    client.ask(XS_WRITE, b"/a/b\x001", 1)
    client.ask(XS_WRITE, b"/a/b\x002", 1)
    nodes = len(server.store.nodes)
    assert all(change[0] >= changes.START for change in heard)
    heard.clear()
    client.ask(XS_TRANSACTION_END, b"T\0", 1)
    assert len(server.store.nodes) == nodes + 2
    perms = server.store.nodes[b"/"].perms
    made = ((changes.CREATE, b"/a", b"", perms), (changes.CREATE, b"/a/b", b"2", perms))
    assert heard == [(changes.COMMIT, client.conn.number, 1, made)]
    client.ask(XS_WRITE, b"/a/b\x003")
    assert heard[1:] == [(changes.VALUE, b"/a/b", b"3")]


def test_a_refused_request_is_no_change() -> None:
    server = XenstoreServer()
    guest = Client(server, domid=3)
    heard: list[Change] = []
    server.journal = heard.append
    assert guest.ask(XS_WRITE, b"/tool\0x") == "EACCES"
    assert guest.ask(XS_READ, b"/none\0") == "EACCES"
    assert guest.ask(XS_TRANSACTION_END, b"T\0", 9) == "ENOENT"
    assert heard == []


def test_numbers_of_connections_are_never_used_again() -> None:
    server = XenstoreServer()
    seen: set[int] = set()
    for _ in range(5):
        conns = [server.connect() for _ in range(3)]
        assert not seen & {conn.number for conn in conns}
        seen |= {conn.number for conn in conns}
        for conn in conns:
            server.disconnect(conn)
            server.disconnect(conn)  # twice is once
    assert seen == set(range(1, 16))
    with pytest.raises(ImageError):
        replay(server, (changes.CONNECT, 15, 0))


def test_a_state_is_loaded_before_there_is_a_journal() -> None:
    server = XenstoreServer()
    stream = saved(server)
    again = XenstoreServer()
    again.journal = print
    with pytest.raises(ValueError, match="journal"):
        load_state(again, stream)
    assert picture(again) == picture(server)
