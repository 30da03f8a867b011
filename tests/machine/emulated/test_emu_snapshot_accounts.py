"""What guests may use up goes along with a snapshot: quotas, features, maxima, warnings, log."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from machine.emulated.test_emu_snapshot import request

from xenlive.abi.xs_ring import XENSTORE_FEATURES
from xenlive.abi.xs_wire import (
    XS_CONTROL,
    XS_GET_FEATURE,
    XS_GET_QUOTA,
    XS_MKDIR,
    XS_SET_FEATURE,
    XS_SET_QUOTA,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WATCH,
)
from xenlive.errors import ImageError
from xenlive.machine.emulated.backends.xenstore import StoreRing, StoreService
from xenlive.machine.emulated.lens.snapshot import digest_of, restore_world, save_world
from xenlive.machine.emulated.lens.snapshot_file import read_snapshot, write_snapshot
from xenlive.machine.emulated.world import World
from xenlive.xenstore.connection import Connection
from xenlive.xenstore.quota import DEFAULTS

pytestmark = pytest.mark.peer

MEMORY_BYTES = 4 << 20
EARLY = 40


class Told:
    """A world with one guest whose store was told a lot."""

    def __init__(self) -> None:
        self.world = World()
        guest = self.world.add_guest(memory_bytes=MEMORY_BYTES)
        assert isinstance(self.world.store, StoreService)
        assert isinstance(guest.store, StoreRing)
        self.service = self.world.store
        self.domid = guest.domain.domid
        self.ring = guest.store.connection
        self.dom0 = self.service.client().connection
        self.service.know(EARLY)

    def ask(self, kind: int, payload: bytes, tx: int = 0, conn: Connection | None = None) -> bytes:
        who = conn or self.dom0
        self.service.server.receive(who, request(kind, payload, tx))
        data = who.take()
        who.sent(data, len(data))
        return data[16:]

    def answers(self) -> list[bytes]:
        """All that can be asked of it."""
        domid = b"%d\0" % self.domid
        early = b"%d\0" % EARLY
        asked = [self.ask(XS_GET_QUOTA, name.encode() + b"\0") for name in DEFAULTS]
        for domain in (domid, early):
            asked += [self.ask(XS_GET_QUOTA, domain + name.encode() + b"\0") for name in DEFAULTS]
            asked.append(self.ask(XS_GET_FEATURE, domain))
            asked.append(self.ask(XS_CONTROL, b"quota\0" + domain))
        return [*asked, self.ask(XS_CONTROL, b"quota\0max\0"), self.ask(XS_CONTROL, b"log\0")]


@pytest.fixture
def worlds_to_close() -> Iterator[list[World]]:
    made: list[World] = []
    yield made
    for world in made:
        world.close()


@pytest.fixture
def told(worlds_to_close: list[World]) -> Told:
    made = Told()
    worlds_to_close.append(made.world)
    domid = b"%d\0" % made.domid
    made.ask(XS_SET_QUOTA, b"nodes\0007\0")
    made.ask(XS_SET_QUOTA, domid + b"watches\x002\0")
    made.ask(XS_SET_QUOTA, b"%d\0memory\x005000\0" % EARLY)
    assert made.ask(XS_SET_FEATURE, b"%d\x002\0" % EARLY) == b"OK\0"
    made.ask(XS_CONTROL, b"log\0+tdb\0")
    made.ask(XS_CONTROL, b"logfile\0trace\0")
    for token in (b"1", b"2"):
        assert b"OK\0" in made.ask(XS_WATCH, b"a\0" + token + b"\0", conn=made.ring)
    return made


def test_quotas_features_and_maxima_go_along(told: Told) -> None:
    world = told.world
    before = told.answers()
    snapshot = save_world(world)
    domid = b"%d\0" % told.domid
    for payload in (b"nodes\x001\0", domid + b"watches\x009\0", domid + b"node-size\x001\0"):
        assert told.ask(XS_SET_QUOTA, payload) == b"OK\0"
    told.ask(XS_CONTROL, b"quota\0max\0-r\0")
    told.ask(XS_CONTROL, b"log\0-tdb\0")
    assert told.answers() != before
    restore_world(world, snapshot)
    assert told.answers() == before
    assert digest_of(world) == snapshot.digest()
    assert told.ask(XS_WATCH, b"a\x003\0", conn=told.ring) == b"ENOSPC\0"
    log = told.service.server.log
    assert (log.file, log.is_wanted) == (b"trace", True)


def test_they_go_through_a_file_into_another_world(
    told: Told, tmp_path: Any, worlds_to_close: list[World]
) -> None:
    before = told.answers()
    write_snapshot(save_world(told.world), tmp_path / "file")
    there = Told()
    worlds_to_close.append(there.world)
    restore_world(there.world, read_snapshot(tmp_path / "file"))
    assert there.answers() == before


def test_a_transaction_that_can_not_be_committed_can_not_be_afterwards(told: Told) -> None:
    told.ask(XS_SET_QUOTA, b"%d\0transaction-nodes\x001\0" % told.domid)
    tx = int(told.ask(XS_TRANSACTION_START, b"\0", conn=told.ring)[:-1])
    assert told.ask(XS_MKDIR, b"x/y\0", tx, told.ring) == b"ENOSPC\0"
    snapshot = save_world(told.world)
    for _ in range(2):
        assert told.ask(XS_TRANSACTION_END, b"T\0", tx, told.ring) == b"ENOMEM\0"
        restore_world(told.world, snapshot)


def test_who_waits_is_served_afterwards(told: Told) -> None:
    told.ring.stalled = True
    snapshot = save_world(told.world)
    told.ring.stalled = False
    restore_world(told.world, snapshot)
    assert told.ring.stalled


def test_a_snapshot_that_leaves_quotas_out_gives_the_usual_ones(told: Told) -> None:
    snapshot = save_world(told.world)
    state = copy.deepcopy(snapshot.state)
    state["store"]["accounts"]["quotas"] = []
    for each in state["store"]["accounts"]["accounts"]:
        each["quotas"] = []
    object.__setattr__(snapshot, "state", state)
    restore_world(told.world, snapshot)
    assert told.service.server.quotas.values == DEFAULTS
    account = told.service.server.store.accounts.by_domid[told.domid]
    assert account.quotas == DEFAULTS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("domid", 0),
        ("domid", 65536),
        ("features", XENSTORE_FEATURES + 1),
        ("quotas", [["nodes", -1]]),
        ("quotas", [["nodes", 1], ["nodes", 1]]),
        ("most", [1, 2]),
        ("reported", [True]),
        ("last_message_s", 1),
        ("last_message_s", float("nan")),
    ],
)
def test_nonsense_is_one_error(told: Told, key: str, value: object) -> None:
    snapshot = save_world(told.world)
    state = copy.deepcopy(snapshot.state)
    state["store"]["accounts"]["accounts"][0][key] = value
    object.__setattr__(snapshot, "state", state)
    before = told.answers()
    with pytest.raises(ImageError, match=key):
        restore_world(told.world, snapshot)
    assert told.answers() == before
