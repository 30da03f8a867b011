"""Our blocking client, against every server: watches as iterators, trees, requests under way."""

from __future__ import annotations

import itertools

import pytest
from conformance.servers import Server

from xenlive.client import Permission, Xenstore, requests, tree
from xenlive.client.tree import Node
from xenlive.errors import XenstoreError

pytestmark = pytest.mark.peer

PATIENCE_S = 30.0


def test_watches_are_iterators(server: Server, store: Xenstore, place: str) -> None:
    with Xenstore.connect(server.socket_path) as other, store.watching(place) as events:
        other.write(f"{place}/a", "1")
        other.rm(place)
        seen = [event.path for event in itertools.islice(events, 3)]
        assert seen == [place, f"{place}/a", place]
        assert events.next(0.0) is None
    store.write(place, "")
    assert store.next_event(0.0) is None


def test_waiting_for_a_value(store: Xenstore, place: str) -> None:
    store.write(place, "4")
    assert store.wait_for(place, "4", PATIENCE_S) == b"4"
    assert store.wait_for(f"{place}/no", lambda value: value is None, PATIENCE_S) is None
    with pytest.raises(XenstoreError, match="ETIMEDOUT"):
        store.wait_for(place, "5", 0.01)


def test_many_requests_under_way(store: Xenstore, place: str) -> None:
    value = bytes(range(256)) * 12
    writes = [requests.write(f"{place}/{number}", value) for number in range(100)]
    assert store.run_all(writes) == [None] * 100
    reads = [requests.read(f"{place}/{number}") for number in range(-1, 100)]
    missing, *values = store.run_all(reads)
    assert missing.name == "ENOENT"
    assert values == [value] * 100


def test_a_tree_goes_and_comes_back(store: Xenstore, place: str) -> None:
    permissions = (Permission(0, "b"), Permission(7, "r"))
    nodes = [Node(f"{place}/t", b"\0\xff", permissions)]
    nodes += [Node(f"{place}/t/{a}/{b}", b"", None) for a in "xyz" for b in range(40)]
    store.transact(lambda tx: tx.carry_out(tree.make(nodes)))
    found = store.transact(lambda tx: tx.carry_out(tree.collect(f"{place}/t")))
    assert len(found) == 1 + 3 + 120
    assert {node.permissions for node in found} == {permissions}  # the parent's are a child's
    assert found[0].value == b"\0\xff"
    store.carry_out(tree.remove(f"{place}/t"))
    store.carry_out(tree.make(found))
    assert store.carry_out(tree.collect(f"{place}/t")) == found


def test_what_ends_with_reset_watches(store: Xenstore, place: str) -> None:
    store.watch(place, "t")
    store.reset_watches()
    with pytest.raises(XenstoreError, match="ENOENT"):
        store.unwatch(place, "t")


@pytest.mark.parametrize(
    "request_",
    [requests.release(7), requests.resume(7), requests.set_target(7, 0), requests.set_target(0, 7)],
)
def test_domains_that_are_not_there(store: Xenstore, request_: requests.Request[None]) -> None:
    with pytest.raises(XenstoreError, match=r"ENOENT|EINVAL"):
        store.run(request_)


def test_features_and_quotas_where_they_are_known(store: Xenstore) -> None:
    asked: list[requests.Request[object]] = [
        requests.quota_names(),
        requests.get_feature(),
        requests.get_quota("nodes"),
        requests.set_quota("nodes", 1000),
    ]
    found = store.run_all(asked)
    if isinstance(found[0], XenstoreError):  # the C daemon before 4.22
        assert [refusal.name for refusal in found] == ["ENOSYS"] * len(asked)
        return
    names, features, *_ = found
    assert {"nodes", "watches", "transactions"} <= set(names)
    assert features >= 0
    before = store.get_quota("watches")
    store.set_quota("watches", before + 1)
    assert store.get_quota("watches") == before + 1
    store.set_quota("watches", before)
