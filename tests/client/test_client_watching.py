"""The blocking client's watches as iterators, requests under way together, and pauses."""

from __future__ import annotations

import itertools

import pytest
from client.test_client_blocking import EVENT, served

from xenlive.abi import xs_wire
from xenlive.client import events, plans, requests
from xenlive.client.codec import WatchEvent
from xenlive.client.events import EventRouter
from xenlive.errors import PeerError, XenstoreError


class Watched:
    """A server that remembers watches; each READ makes an event for each of them."""

    def __init__(self) -> None:
        self.watches: list[tuple[bytes, bytes]] = []
        self.ended: list[tuple[bytes, bytes]] = []

    def __call__(self, type: int, transaction: int, payload: bytes) -> list[tuple[int, bytes]]:
        words = payload.split(b"\0")
        if type == xs_wire.XS_WATCH:
            self.watches.append((words[0], words[1]))
            return [(type, b"OK\0"), (xs_wire.XS_WATCH_EVENT, words[0] + b"\0" + words[1] + b"\0")]
        if type == xs_wire.XS_UNWATCH:
            self.ended.append((words[0], words[1]))
            return [EVENT, (type, b"OK\0")]
        changes = [
            (xs_wire.XS_WATCH_EVENT, path + b"/x\0" + token + b"\0") for path, token in self.watches
        ]
        return [*changes, (type, b"")]


def test_each_watch_has_its_own_events() -> None:
    server = Watched()
    with served(server) as store:
        with store.watching("/a") as first, store.watching("/b", depth=2) as second:
            store.read("/")
            assert [event.path for event in itertools.islice(first, 2)] == ["/a", "/a/x"]
            assert [event.path for event in itertools.islice(second, 2)] == ["/b", "/b/x"]
            assert first.next(0.0) is None
        assert sorted(server.ended) == sorted(server.watches)
        assert len({token for _, token in server.watches}) == 2
        # What came for others than iterators is where it always was.
        assert store.next_event(10.0) == WatchEvent("/w", "t")


def test_events_of_a_watch_that_has_ended_are_dropped() -> None:
    with served(Watched()) as store:
        with store.watching("/a"):
            pass
        store.read("/")  # the server knows no better
        assert store.next_event(10.0) == WatchEvent("/w", "t")
        assert store.next_event(0.0) is None


def test_a_watch_is_used_inside_of_its_with() -> None:
    with served(Watched()) as store:
        watch = store.watching("/a")
        with pytest.raises(RuntimeError, match="with"):
            watch.next()
        with watch, pytest.raises(RuntimeError, match="already"):
            watch.__enter__()


def test_a_watch_that_is_refused_leaves_nothing() -> None:
    with served(lambda *_: [(xs_wire.XS_ERROR, b"EINVAL\0")]) as store:
        with pytest.raises(XenstoreError, match="EINVAL"), store.watching("/a b"):
            pass
        assert store.fileno() >= 0


def test_a_watch_outlives_its_connection_quietly() -> None:
    with served(Watched()) as store, store.watching("/a") as watch:
        store.close()
        with pytest.raises(PeerError):
            list(watch)


def test_too_many_events_are_given_up_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WAITING_MAX", 3)
    router = EventRouter()
    for number in range(5):
        router.route(WatchEvent(f"/{number}", "t"))
    assert router.others
    with pytest.raises(XenstoreError, match="EOVERFLOW"):
        router.others.pop()
    assert [router.others.pop().path for _ in range(2)] == ["/3", "/4"]
    assert not router.others


def test_requests_under_way_together_keep_their_places() -> None:
    heard: list[bytes] = []

    def handler(type: int, transaction: int, payload: bytes) -> list[tuple[int, bytes]]:
        heard.append(payload)
        if payload == b"/7\0":
            return [EVENT, (xs_wire.XS_ERROR, b"ENOENT\0")]
        return [(type, payload[1:-1])]

    with served(handler) as store:
        outcomes = store.run_all([requests.read(f"/{number}") for number in range(100)])
        outcomes[7] = outcomes[7].name
        assert outcomes == [b"%d" % n if n != 7 else "ENOENT" for n in range(100)]
        assert len(heard) == 100
        assert store.next_event(0.0) == WatchEvent("/w", "t")
        assert store.run_all([]) == []


def test_one_request_of_many_that_is_too_long() -> None:
    batch = [requests.read("/1"), requests.write("/b", bytes(4096)), requests.read("/3")]
    with served(lambda type, _, payload: [(type, payload[1:-1])]) as store:
        first, refusal, last = store.run_all(batch)
    assert (first, refusal.name, last) == (b"1", "E2BIG", b"3")


def test_all_of_them_raises_the_first_refusal() -> None:
    def handler(type: int, transaction: int, payload: bytes) -> list[tuple[int, bytes]]:
        return [(xs_wire.XS_ERROR, b"EACCES\0" if payload == b"/2\0" else b"ENOENT\0")]

    with served(handler) as store, pytest.raises(XenstoreError, match="read /2: EACCES"):
        store.carry_out(plans.all_of([requests.read("/2"), requests.read("/1")]))


def test_waiting_for_a_value() -> None:
    values = iter([b"1", b"2", b"3"])
    watched = Watched()

    def handler(type: int, transaction: int, payload: bytes) -> list[tuple[int, bytes]]:
        answers = watched(type, transaction, payload)
        return [*answers[:-1], (type, next(values))] if type == xs_wire.XS_READ else answers

    with served(handler) as store:
        assert store.wait_for("/a", "2") == b"2"
        with pytest.raises(XenstoreError, match="ETIMEDOUT"):
            store.wait_for("/a", lambda value: False, timeout_s=0.0)


def test_a_missing_node_has_no_value() -> None:
    answers = iter([b"ENOENT\0", b"EACCES\0"])
    with served(lambda *_: [(xs_wire.XS_ERROR, next(answers))]) as store:
        assert store.get("/a") is None
        with pytest.raises(XenstoreError, match="EACCES"):
            store.get("/a")


def test_pauses_grow_and_are_bounded() -> None:
    assert [plans.pause_s(conflicts, 0.5) for conflicts in range(3)] == [0, 0, 0]
    longest = [plans.pause_s(conflicts, 1.0) for conflicts in range(3, 100)]
    assert longest == sorted(longest)
    assert 0 < longest[0] < longest[-1] == 0.05
    assert plans.pause_s(50, 0.0) == 0.0
