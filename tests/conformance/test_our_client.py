"""Our client, against every server: what a table of requests answers, and what events come."""

from __future__ import annotations

import pytest
from conformance.servers import Server

from xenlive.client.blocking import Transaction, Xenstore
from xenlive.client.codec import WatchEvent
from xenlive.client.requests import Permission
from xenlive.errors import XenstoreError

pytestmark = pytest.mark.peer

EVENT_TIMEOUT_S = 10.0


def refused(caught: pytest.ExceptionInfo[XenstoreError]) -> str:
    return caught.value.name


def events_until(store: Xenstore, path: str) -> list[str]:
    """Paths of the events up to the one for `path`, which is left out."""
    seen: list[str] = []
    while (event := store.next_event(EVENT_TIMEOUT_S)) is not None:
        if event.path == path:
            return seen
        seen.append(event.path)
    raise AssertionError(f"no event for {path}, but for {seen}")


def test_write_makes_parents_with_the_parents_permissions(store: Xenstore, place: str) -> None:
    store.mkdir(place)
    store.set_perms(place, [Permission(0, "b"), Permission(7, "r")])
    store.write(f"{place}/a/b", "value")
    assert store.read(f"{place}/a") == b""
    for node in (f"{place}/a", f"{place}/a/b"):
        assert store.get_perms(node) == [Permission(0, "b"), Permission(7, "r")]


def test_an_owner_that_does_not_exist(store: Xenstore, place: str) -> None:
    store.mkdir(place)
    with pytest.raises(XenstoreError) as caught:
        store.set_perms(place, [Permission(7, "n")])
    assert refused(caught) == "ENOENT"
    assert store.get_perms(place) == [Permission(0, "n")]


def test_mkdir_keeps_what_is_there(store: Xenstore, place: str) -> None:
    store.write(place, "value")
    store.mkdir(place)
    assert store.read(place) == b"value"


def test_an_empty_directory(store: Xenstore, place: str) -> None:
    store.mkdir(place)
    assert store.directory(place) == []


@pytest.mark.parametrize("path", ["", "/a//b", "/a/", "/a b", "/\N{EURO SIGN}", "/" + "x" * 3072])
def test_paths_that_are_none(store: Xenstore, path: str) -> None:
    with pytest.raises(XenstoreError) as caught:
        store.write(path, "")
    assert refused(caught) == "EINVAL"


def test_a_value_that_fills_the_message(store: Xenstore, place: str) -> None:
    value = bytes(4096 - len(place) - 1)
    store.write(place, value)
    assert store.read(place) == value


def test_rm(store: Xenstore, place: str) -> None:
    store.mkdir(place)
    store.rm(f"{place}/missing")
    with pytest.raises(XenstoreError) as caught:
        store.rm(f"{place}/missing/below")
    assert refused(caught) == "ENOENT"
    with pytest.raises(XenstoreError) as caught:
        store.rm("/")
    assert refused(caught) == "EINVAL"


def test_permissions_of_a_missing_node(store: Xenstore, place: str) -> None:
    for attempt in (store.get_perms, lambda path: store.set_perms(path, [Permission(0, "n")])):
        with pytest.raises(XenstoreError) as caught:
            attempt(f"{place}/none")
        assert refused(caught) == "ENOENT"


def test_a_watch_fires_once_when_it_is_set(store: Xenstore, place: str) -> None:
    store.watch(place, "a token")
    assert store.next_event(EVENT_TIMEOUT_S) == WatchEvent(place, "a token")
    store.mkdir("/sync")
    assert store.next_event(0.0) is None


def test_the_same_watch_twice_and_one_that_is_not_there(store: Xenstore, place: str) -> None:
    store.watch(place, "t")
    with pytest.raises(XenstoreError) as caught:
        store.watch(place, "t")
    assert refused(caught) == "EEXIST"
    store.watch(place, "another token")
    store.unwatch(place, "t")
    with pytest.raises(XenstoreError) as caught:
        store.unwatch(place, "t")
    assert refused(caught) == "ENOENT"


def test_what_a_watch_sees(store: Xenstore, place: str) -> None:
    store.write(f"{place}/a/b", "")
    store.watch(f"{place}/a", "t")
    store.write(f"{place}/a/b", "changed")
    store.write(f"{place}/ab", "a sibling with a longer name")
    store.mkdir(f"{place}/a/new")
    store.mkdir(f"{place}/a/new")  # nothing changes
    store.set_perms(f"{place}/a/b", [Permission(0, "r")])
    store.rm(f"{place}/a/b")
    store.rm(f"{place}/a")
    store.watch("/end-of-events", "end")
    assert events_until(store, "/end-of-events") == [
        f"{place}/a",
        f"{place}/a/b",
        f"{place}/a/new",
        f"{place}/a/b",
        f"{place}/a/b",
        f"{place}/a",
    ]


def test_removing_a_parent_fires_the_watch_below(store: Xenstore, place: str) -> None:
    store.write(f"{place}/a/b/c", "")
    store.watch(f"{place}/a/b", "t")
    assert store.next_event(EVENT_TIMEOUT_S) == WatchEvent(f"{place}/a/b", "t")
    store.rm(f"{place}/a")
    assert store.next_event(EVENT_TIMEOUT_S) == WatchEvent(f"{place}/a/b", "t")


def test_another_connection_sees_a_transaction_when_it_is_committed(
    server: Server, store: Xenstore, place: str
) -> None:
    with Xenstore.connect(server.socket_path) as other:
        other.watch(place, "t")
        other.next_event(EVENT_TIMEOUT_S)
        with store.transaction() as tx:
            tx.write(f"{place}/a", "1")
            tx.write(f"{place}/b", "2")
            assert tx.read(f"{place}/a") == b"1"
            assert not other.exists(f"{place}/a")
            assert other.next_event(0.0) is None
        seen = {other.next_event(EVENT_TIMEOUT_S), other.next_event(EVENT_TIMEOUT_S)}
        assert seen == {WatchEvent(f"{place}/a", "t"), WatchEvent(f"{place}/b", "t")}


def test_an_aborted_transaction_changes_nothing(store: Xenstore, place: str) -> None:
    store.write(place, "before")

    def change(tx: Transaction) -> None:
        tx.write(place, "after")
        raise LookupError

    with pytest.raises(LookupError):
        store.transact(change)
    assert store.read(place) == b"before"


def test_conflicting_transactions_are_repeated(server: Server, store: Xenstore, place: str) -> None:
    store.write(place, "0")
    attempts = 0
    with Xenstore.connect(server.socket_path) as other:
        for attempt in store.transactions():
            with attempt as tx:
                value = int(tx.read(place))
                if attempts == 0:
                    other.write(place, "10")
                attempts += 1
                tx.write(place, str(value + 1))
    assert attempts == 2
    assert store.read(place) == b"11"


def test_a_transaction_that_only_reads_conflicts_too(
    server: Server, store: Xenstore, place: str
) -> None:
    store.write(place, "0")
    with Xenstore.connect(server.socket_path) as other:

        def look(tx: Transaction) -> None:
            tx.read(place)
            other.write(place, "1")

        with pytest.raises(XenstoreError) as caught:
            store.transact(look, attempts=1)
        assert refused(caught) == "EAGAIN"


def test_domain_paths(store: Xenstore) -> None:
    assert store.get_domain_path(0) == "/local/domain/0"
    assert store.get_domain_path(7) == "/local/domain/7"
    assert store.is_domain_introduced(0)
    assert not store.is_domain_introduced(7)
