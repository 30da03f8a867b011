"""The hunts on Xenstore do find things: one mistake at a time is planted in the product."""

from __future__ import annotations

import select
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hostile.targets import load_target

from xenlive.errors import PeerError
from xenlive.ring.stream import Consumer
from xenlive.stubdom.rings import RingLink
from xenlive.stubdom.serve import ServeLoop
from xenlive.xenstore import (
    change_codec,
    perms,
    quota,
    replay,
    ringpage,
    stream_decode,
    stream_encode,
    watches,
)
from xenlive.xenstore.accounts import Account, Accounts
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.ringpage import RingPage
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.store import Store
from xenlive.xenstore.transaction import Transaction
from xenlive.xenstore.watches import Watch, Watches

# Inputs until a mistake must have been found: the seeds, and some that come of them.
INPUTS = 3000

Plant = Callable[[pytest.MonkeyPatch], None]


def found(target_name: str) -> str:
    """What the first input that finds something says."""
    target = load_target(target_name)
    kept, rng = target.seeds(), Random(1)
    for number in range(INPUTS):
        data = kept[number] if number < len(kept) else target.mutate(rng.choice(kept), rng)
        try:
            target.check(data)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "nothing"


def in_place_of(owner: object, name: str, mistake: Any) -> Plant:
    """Has `owner` do something else."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, mistake)


def all_of(*plants: Plant) -> Plant:
    """Several at once."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        for each in plants:
            each(monkeypatch)

    return plant


class NeverRaised(Exception):
    """In place of an error that is then not caught."""


def read_twice(consumer: Consumer, limit: int | None = None) -> bytes:
    """An index is looked at again after it was checked."""
    if not consumer.available():
        return b""
    count = (consumer._indices[consumer._prod_word] - consumer.cons) & 0xFFFFFFFF
    data = b"".join(consumer._area.spans(consumer.cons, count))
    consumer.cons = (consumer.cons + count) & 0xFFFFFFFF
    consumer._indices[consumer._cons_word] = consumer.cons
    return data


def unchecked(consumer: Consumer) -> int:
    return (consumer._indices[consumer._prod_word] - consumer.cons) & 0xFFFFFFFF


def put_value_unheard(store: Store, path: bytes, node: Any, value: bytes) -> None:
    store.generation += 1
    node.generation = store.generation
    if perms.owner_of(node.perms):
        store.accounts.grow(perms.owner_of(node.perms), len(value) - len(node.value))
    node.value = value


def add_node_only(accounts: Accounts, path: bytes, node: Any, sign: int) -> None:
    if perms.owner_of(node.perms) and sign > 0:
        accounts.open(perms.owner_of(node.perms)).add(0, 1)


def without_depth(number: int, watch: Watch) -> bytes:
    shallow = Watch(watch.conn, watch.path, watch.token, None, watch.prefix)
    return WATCH_RECORD(number, shallow)


def pump_all(link: RingLink) -> None:
    """All that one guest has to say comes first."""
    while link.page.has_work() and link.page.pump():
        pass


def dismiss_then_answer(server: XenstoreServer, conn: Connection, data: bytes) -> bool:
    """What came before is forgotten, if it was not whole."""
    conn.unparsed = b""
    return RECEIVE(server, conn, data)


def watch_all_output(loop: ServeLoop, conn: Connection) -> None:
    if conn.fd >= 0:
        conn.mask = select.EPOLLOUT | (0 if loop._choked(conn) else select.EPOLLIN)
        loop._world.modify(conn.fd, conn.mask)


def fire_exactly(self: Watches, store: Store, path: bytes, origin: Any, **how: Any) -> None:
    FIRE(self, store, path, origin, **{**how, "exact": True})


def knows_all(store: Store, path: bytes, conn: Connection, old_perms: bytes | None) -> bool:
    return True


WATCH_RECORD = stream_encode._watch_record
RECEIVE = XenstoreServer.receive
FIRE = Watches.fire

NOT_STALE = all_of(
    in_place_of(perms, "without_stale", lambda raw, generation, known: raw),
    in_place_of(perms, "without_domain", lambda raw, domid: raw),
)
UNBOUNDED = all_of(
    in_place_of(Account, "must_wait", lambda account, conn: False),
    in_place_of(Account, "over_memory", lambda account, conn, more_bytes: False),
)
ALL_RIGHTS = in_place_of(Store, "allowed", lambda store, node, domid, target=-1: perms.ALL)

ANY_NUMBER = dict.fromkeys(range(9), ("", -(1 << 64), 1 << 64))

MISTAKES: dict[str, tuple[str, Plant, str]] = {
    "a wild index": ("ring", in_place_of(ringpage, "PeerError", NeverRaised), PeerError.__name__),
    "an index not checked": ("ring", in_place_of(Consumer, "available", unchecked), ""),
    "an index looked at twice": ("ring", in_place_of(Consumer, "read", read_twice), ""),
    "work without end": ("ring", in_place_of(RingPage, "has_work", lambda page: True), "done"),
    "nobody told": ("ring", in_place_of(Watches, "touch", lambda w, conn: None), "hears of"),
    "only exact events": ("ring", in_place_of(Watches, "fire", fire_exactly), "hears of"),
    "always a conflict": (
        *("ring", in_place_of(Transaction, "in_conflict", lambda tx: True)),
        "not 'EAGAIN'",
    ),
    "never a conflict": (
        *("ring", in_place_of(Transaction, "in_conflict", lambda tx: False)),
        "what somebody wrote",
    ),
    "rights of the dead": ("ring", NOT_STALE, "is not told b'f0r-the-f1rst'"),
    "rights of all": ("ring", ALL_RIGHTS, "is not told b"),
    "names told": ("ring", in_place_of(watches, "_may_know", knows_all), "is not told b'h1dden"),
    "no bounds": ("ring", UNBOUNDED, "what waits unread is bounded"),
    "nodes never given back": (
        *("ring", in_place_of(Accounts, "add_node", add_node_only)),
        "accounts",
    ),
    "a change unheard": ("ring", in_place_of(Store, "put_value", put_value_unheard), "journal"),
    "a depth unsaved": (
        *("ring", in_place_of(stream_encode, "_watch_record", without_depth)),
        "watches as saved",
    ),
    "words not checked": ("socket", in_place_of(quota, "parse_name", bytes.decode), "KeyError"),
    "a busy loop": ("socket", in_place_of(ServeLoop, "_watch_output", watch_all_output), "to do"),
    "never choked": (
        *("socket", in_place_of(ServeLoop, "_choked", lambda loop, conn: False)),
        "what waits unread is bounded",
    ),
    "pieces forgotten": (
        *("socket", in_place_of(XenstoreServer, "receive", dismiss_then_answer)),
        "",
    ),
    "bytes of answers": (
        *("stream", in_place_of(stream_decode._Reader, "_validate_messages", lambda *a: None)),
        "",
    ),
    "names of nodes": (
        *("stream", in_place_of(stream_decode._Reader, "_validate_names", lambda reader: None)),
        "",
    ),
    "rights of nodes": (
        *("stream", in_place_of(perms, "valid_stream_entry", lambda raw: True)),
        "",
    ),
    "lists of changes": ("change", in_place_of(replay, "_validate_list", lambda *a: None), ""),
    "places of changes": ("change", in_place_of(replay, "_seen", lambda tx, path: None), ""),
    "bounds of changes": (
        *("change", in_place_of(change_codec, "_NUMBERS", ANY_NUMBER)),
        "",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, plant, said = MISTAKES[name]
    plant(monkeypatch)
    what = found(f"xenstore-{target}")
    assert what != "nothing"
    assert said in what
