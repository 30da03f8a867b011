"""What a live update keeps of settings: log, quotas, maxima, domains that nothing else names."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xenstore.goings_on import saved
from xenstore.test_xs_control import control
from xenstore.test_xs_domains import World

from xenlive.abi.xs_state import (
    XS_STATE_DOMAIN,
    XS_STATE_GLB_QUOTA,
    XS_STATE_PREAMBLE,
    XS_STATE_RECORD_HEADER,
    XS_STATE_TYPE_CONN,
    XS_STATE_TYPE_DOMAIN,
    XS_STATE_TYPE_END,
    XS_STATE_TYPE_GLB_QUOTA,
    XS_STATE_TYPE_NODE,
)
from xenlive.abi.xs_wire import (
    XS_GET_FEATURE,
    XS_GET_QUOTA,
    XS_RM,
    XS_SET_FEATURE,
    XS_SET_PERMS,
    XS_SET_QUOTA,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.xenstore import kept
from xenlive.xenstore.domains import DomainState
from xenlive.xenstore.quota import DEFAULTS, ITEMS
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import load_state
from xenlive.xenstore.watches import Watch

OK = b"OK\0"


def updated(server: XenstoreServer) -> XenstoreServer:
    """The next kernel's server."""
    after = XenstoreServer()
    load_state(after, saved(server))
    return after


def records(stream: bytes) -> list[tuple[int, bytes]]:
    found = []
    at = XS_STATE_PREAMBLE.size
    while True:
        kind, length = XS_STATE_RECORD_HEADER.unpack(stream, at)
        at += XS_STATE_RECORD_HEADER.size
        found.append((kind, stream[at : at + length]))
        at += length
        if kind == XS_STATE_TYPE_END:
            return found


def names(body: bytes, fixed: int, count: int) -> list[bytes]:
    return body[fixed + 4 * count :].split(b"\0")[:count]


def test_the_log_goes_on_where_it_was() -> None:
    world = World()
    files: dict[bytes, list[bytes]] = {}
    world.server.log.opener = lambda name: files.setdefault(name, []).append
    control(world.dom0, "logfile", "tr\xe4ce")
    control(world.dom0, "log", "+tdb")
    control(world.dom0, "log", "-obj")
    after = updated(world.server)
    assert control(world.dom0, "log") == control_of(after, "log")
    assert after.log.file == "tr\xe4ce".encode()
    assert after.log.sink is None  # nobody has said how files are opened
    again = updated(after)  # which may never happen
    again.log.start(lambda name: files.setdefault(name, []).append)
    assert again.log.sink is not None
    assert files["tr\xe4ce".encode()][-1] == b"\n***\n"
    control_of(again, "log", "off")
    off = updated(again)
    off.log.start(lambda name: files.setdefault(name, []).append)
    assert (off.log.sink, off.log.file) == (None, "tr\xe4ce".encode())


def control_of(server: XenstoreServer, *words: str) -> str:
    payload = b"".join([word.encode() + b"\0" for word in words])
    conn = server.connect()
    server.receive(conn, struct.pack("<IIII", 0, 0, 0, len(payload)) + payload)
    return conn.take()[16:-1].decode()


def test_a_log_that_nobody_touched_takes_no_room() -> None:
    assert [kind for kind, _ in records(saved(XenstoreServer()))].count(
        XS_STATE_TYPE_GLB_QUOTA
    ) == 0


def test_maxima_are_as_they_were() -> None:
    world = World()
    guest = world.guest(5)
    for number in range(4):
        assert guest.ask(XS_WRITE, b"a%d\0" % number + bytes(number)) == OK
        assert guest.ask(XS_WATCH, b"a\0%d\0" % number) == OK
    for number in range(4):
        assert guest.ask(XS_RM, b"a%d\0" % number) == OK
    most = world.server.store.accounts.most
    account = world.server.store.accounts.by_domid[5]
    after = updated(updated(world.server))
    assert control_of(after, "quota", "max") == control(world.dom0, "quota", "max")
    assert after.store.accounts.most == most
    assert after.store.accounts.by_domid[5].most == account.most


def test_quotas_of_all_and_of_one() -> None:
    world = World()
    world.guest(5)
    for payload in (b"nodes\x00777\0", b"5\0watches\x003\0", b"5\0soft-memory\x000\0"):
        assert world.dom0.ask(XS_SET_QUOTA, payload) == OK
    control(world.dom0, "quota-soft", "set", "memory", "5000")
    after = updated(updated(world.server))
    assert after.quotas.values == world.server.quotas.values
    before = world.server.store.accounts.by_domid[5].quotas
    assert after.store.accounts.by_domid[5].quotas == before
    assert control_of(after, "quota") == control(world.dom0, "quota")


def test_a_domain_that_is_not_there_yet_keeps_what_was_set_for_it() -> None:
    world = World()
    world.links.there[7] = DomainState(70, False)
    assert world.dom0.ask(XS_SET_FEATURE, b"7\x002\0") == OK
    assert world.dom0.ask(XS_SET_QUOTA, b"7\0nodes\x005\0") == OK
    assert world.dom0.ask(XS_WRITE, b"/for7\0") == OK
    assert world.dom0.ask(XS_SET_PERMS, b"/for7\0n0\0r7\0") == OK
    stream = saved(world.server)
    # The newest C daemon ends if a DOMAIN_DATA record names a domain without connection and nodes.
    assert XS_STATE_TYPE_DOMAIN not in [kind for kind, _ in records(stream)]
    world.server = updated(updated(world.server))
    assert 7 in world.server.store.domains
    account = world.server.store.accounts.by_domid[7]
    assert (account.features, account.quotas["nodes"]) == (2, 5)
    node = world.server.store.nodes[b"/for7"]
    assert world.server.store.allowed(node, 7) == 1


def test_domain_data_is_of_domains_that_any_reader_knows_by_then() -> None:
    world = World()
    world.guest(5)
    world.links.there[6] = DomainState(60, False)
    world.links.there[7] = DomainState(70, False)
    assert world.dom0.ask(XS_SET_QUOTA, b"5\0nodes\x005\0") == OK
    assert world.dom0.ask(XS_WRITE, b"/of6\0") == OK
    assert world.dom0.ask(XS_SET_PERMS, b"/of6\0n6\0r7\0") == OK
    assert world.dom0.ask(XS_GET_FEATURE, b"7\0") == b"14\0"
    known: set[int] = set()
    told = []
    for kind, body in records(saved(world.server)):
        if kind == XS_STATE_TYPE_CONN:
            known.add(struct.unpack_from("<H", body, 8)[0])
        elif kind == XS_STATE_TYPE_NODE:
            known.add(struct.unpack_from("<H", body, 18)[0])
        elif kind == XS_STATE_TYPE_DOMAIN:
            told.append(XS_STATE_DOMAIN.unpack(body)[0])
    assert set(told) <= known
    assert sorted(told) == [5, 6]


def test_our_entries_are_no_quotas_to_anybody() -> None:
    """They are counted as global ones, and come out of no GET_QUOTA and no later stream."""
    world = World()
    guest = world.guest(5)
    assert guest.ask(XS_WATCH, b"a\0b\0") == OK
    control(world.dom0, "log", "+acc")
    for kind, body in records(saved(world.server)):
        if kind == XS_STATE_TYPE_GLB_QUOTA:
            per_domain, overall = XS_STATE_GLB_QUOTA.unpack(body)
            assert per_domain == 0
            found = names(body, XS_STATE_GLB_QUOTA.size, overall)
            assert found
            assert all(name.startswith(b"xenlive:") for name in found)
            break
    else:
        pytest.fail("no entries")
    after = updated(world.server)
    assert after.quotas.values == DEFAULTS
    listed = world.dom0.ask(XS_GET_QUOTA, b"")
    assert isinstance(listed, bytes)
    assert b"xenlive" not in listed


def test_a_watch_with_the_deepest_depth_keeps_one() -> None:
    world = World()
    dom0 = world.dom0.conn
    world.server.watches.add(Watch(dom0, b"@releaseDomain", b"t", 0x7FFFFFFF, 0))
    after = updated(world.server)
    (watch,) = after.watches.by_path[b"@releaseDomain"]
    assert watch.depth == 0xFFFE


@pytest.mark.parametrize(
    "name",
    [
        "xenlive:",
        "xenlive:x",
        "xenlive:log-file:",
        "xenlive:log-file:zz",
        "xenlive:log-file:61006",
        "xenlive:log-file:6100",
        "xenlive:max:",
        "xenlive:max:nothing",
        "xenlive:0:known",
        "xenlive:65536:known",
        "xenlive:9:max:nodes",
        "xenlive:9:quota:nodes",
        "xenlive:9:features",
        "xenlive::known",
        "xenlive:-1:known",
    ],
)
def test_an_entry_that_means_nothing_does_nothing(name: str) -> None:
    server = XenstoreServer()
    before = saved(server)
    entries = {name: 7}
    kept.put_back(server, entries)
    assert kept.early_domains(entries) == []
    assert saved(server) == before


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text("xenlive:log-fmaqutsdk059", max_size=30).map(lambda text: "xenlive:" + text),
        st.integers(0, (1 << 32) - 1),
        max_size=8,
    )
)
def test_any_entries_can_be_read(entries: dict[str, int]) -> None:
    server = XenstoreServer()
    kept.put_back(server, entries)
    assert 0 not in [domid for domid, _, _ in kept.early_domains(entries)]
    load_state(XenstoreServer(), saved(server))


def test_many_domains_take_several_records() -> None:
    server = XenstoreServer()
    for domid in range(1, 1000):
        server.store.add_domain(domid)
        account = server.store.accounts.open(domid)
        for item in range(len(ITEMS)):
            account.note(item, domid)
    after = updated(server)
    assert len(after.store.domains) == 1000
    assert after.store.accounts.by_domid[999].most == [999] * len(ITEMS)
    assert after.store.accounts.by_domid[5].most == [5] * len(ITEMS)
    assert after.store.accounts.most == [999] * len(ITEMS)
