"""CONTROL verb by verb in the C daemon's words, and the requests that set quotas and features."""

from __future__ import annotations

import random

import pytest
from xenstore.goings_on import GoingsOn, saved
from xenstore.talk import Client
from xenstore.test_xs_domains import World

from xenlive.abi.xs_wire import (
    XS_CONTROL,
    XS_GET_FEATURE,
    XS_GET_PERMS,
    XS_GET_QUOTA,
    XS_RELEASE,
    XS_SET_FEATURE,
    XS_SET_PERMS,
    XS_SET_QUOTA,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlive.xenstore import domains, usage
from xenlive.xenstore.domains import DomainState
from xenlive.xenstore.quota import MEMORY, NODES
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import load_state

OK = b"OK\0"
QUOTAS = """Quota settings:
nodes            :     1000 Nodes per domain
watches          :      128 Watches per domain
outstanding      :       20 Outstanding requests per domain
memory           :  2621440 Total Xenstore memory per domain
transactions     :       10 Active transactions per domain
transaction-nodes:     1024 Max. number of accessed nodes per transaction
node-permissions :        5 Max. number of permissions per node
path-max         :     2048 Max. length of a node path
node-size        :     2048 Max. size of a node
"""
SOFT = "Quota settings:\nmemory           :  2097152 Total Xenstore memory per domain\n"
HELP = """check           
log             [on|off|+<switch>|-<switch>]
logfile         <file>
memreport       [<file>]
print           <string>
quota           [set <name> <val>|<domid>|max [-r]]
quota-soft      [set <name> <val>]
help            
"""  # noqa: W291
LOG = "Log switch settings:\nobj     : on\nio      : on\n"
LOG += "wrl     : off\nacc     : off\ntdb     : off\n"


@pytest.fixture
def world() -> World:
    return World()


def control(client: Client, *words: str) -> str:
    """The answer's text, or the error's name."""
    reply = client.ask(XS_CONTROL, b"".join([word.encode() + b"\0" for word in words]))
    return reply if isinstance(reply, str) else reply[:-1].decode()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("check",), "OK"),
        (("check", "x"), "EINVAL"),
        (("help",), HELP),
        (("help", "x"), "EINVAL"),
        (("print", "x"), "OK"),
        (("print",), "EINVAL"),
        (("log",), LOG),
        (("log", "on"), "OK"),
        (("log", "off"), "OK"),
        (("log", "+tdb"), "OK"),
        (("log", "-io"), "OK"),
        *((("log", word), "EINVAL") for word in ("", "x", "+x", "io", "+")),
        (("log", "on", "off"), "EINVAL"),
        (("logfile",), "EINVAL"),
        (("logfile", "a", "b"), "EINVAL"),
        (("logfile", "a"), "OK"),
        (("memreport",), "EINVAL"),
        (("memreport", "a", "b"), "EINVAL"),
        (("quota",), QUOTAS),
        (("quota-soft",), SOFT),
        (("quota", "set", "nodes", "7"), "OK"),
        (("quota", "set", "permissions", "7"), "OK"),
        *((("quota", "set", "nodes", n), "EINVAL") for n in ("0", "-1", "x", "4294967295")),
        (("quota", "set", "nodes"), "EINVAL"),
        (("quota", "set", "soft-memory", "7"), "EINVAL"),
        (("quota", "set", "nothing", "7"), "EINVAL"),
        (("quota-soft", "set", "memory", "7"), "OK"),
        (("quota-soft", "set", "nodes", "7"), "EINVAL"),
        (("quota-soft", "7"), "EINVAL"),
        (("quota", "max", "-x"), "EINVAL"),
        (("quota", "max", "-r", "x"), "EINVAL"),
        (("quota", "9"), "ENOENT"),
        (("quota", "1", "2"), "EINVAL"),
        (("nothing",), "EINVAL"),
        ((), "EINVAL"),
    ],
)
def test_every_verb(world: World, words: tuple[str, ...], answer: str) -> None:
    assert control(world.dom0, *words) == answer


def test_the_log_has_what_its_switches_ask_for(world: World) -> None:
    files: dict[bytes, list[bytes]] = {}
    world.server.log.opener = lambda name: files.setdefault(name, []).append
    assert control(world.dom0, "logfile", "x") == "OK"
    world.dom0.ask(XS_WRITE, b"/a\x001")
    assert any(b"IN #1 (d0) WRITE (/a 1)" in line for line in files[b"x"])
    assert any(b"OUT #1 (d0) WRITE (OK )" in line for line in files[b"x"])
    control(world.dom0, "log", "-io")
    count = len(files[b"x"])
    world.dom0.ask(XS_WRITE, b"/a\x001")
    assert len(files[b"x"]) == count
    assert control(world.dom0, "memreport", "y") == "OK"
    assert any(line.startswith(b"nodes ") for line in files[b"y"])
    assert control(world.dom0, "memreport") == "OK"
    assert len(files[b"x"]) > count
    control(world.dom0, "log", "off")
    assert world.server.log.sink is None
    assert world.dom0.conn.fast


def test_a_domains_numbers_and_the_most_there_ever_were(world: World) -> None:
    guest = world.guest(5)
    for number in range(3):
        assert guest.ask(XS_WATCH, b"a\0%d\0" % number) == OK
    assert guest.ask(XS_WRITE, b"a/b\0") == OK
    text = control(world.dom0, "quota", "5")
    assert text.startswith("Domain 5:\nnodes            :        3 (max        3)\n")
    assert "watches          :        3 (max        3)\n" in text
    world.dom0.ask(XS_RELEASE, b"5\0")
    assert control(world.dom0, "quota", "5") == "ENOENT"
    assert "nodes            :        3\n" in control(world.dom0, "quota", "max")
    assert "nodes            :        0\n" in control(world.dom0, "quota", "max", "-r")


def test_check_corrects_accounts(world: World) -> None:
    said: list[bytes] = []
    world.guest(5)
    world.server.on_print = said.append
    world.server.store.accounts.open(5).add(NODES, 2)
    assert control(world.dom0, "check") == "OK"
    assert said[1:-1] == [b"Correct accounting data for domain 5: nodes are -2 off"]
    assert world.server.store.accounts.open(5).used[NODES] == 1


@pytest.mark.parametrize(
    ("kind", "payload", "answer"),
    [
        (XS_GET_FEATURE, b"", b"14\0"),
        (XS_GET_FEATURE, b"0\0", b"14\0"),
        (XS_GET_FEATURE, b"5\0", b"14\0"),
        (XS_GET_FEATURE, b"9\0", "ENOENT"),
        (XS_GET_FEATURE, b"x\0", "EINVAL"),
        (XS_GET_FEATURE, b"5\x006\0", "EINVAL"),
        (XS_SET_FEATURE, b"6\x002\0", OK),
        (XS_SET_FEATURE, b"6\x001\0", "EINVAL"),
        (XS_SET_FEATURE, b"6\0", "EINVAL"),
        (XS_SET_FEATURE, b"6\x002\x002\0", "EINVAL"),
        (XS_SET_FEATURE, b"5\x002\0", "EBUSY"),
        (XS_SET_FEATURE, b"0\x002\0", "EBUSY"),
        (XS_SET_FEATURE, b"9\x002\0", "ENOENT"),
        (
            *(XS_GET_QUOTA, b""),
            b"nodes watches outstanding memory soft-memory transactions transaction-nodes "
            b"node-permissions path-max node-size\0",
        ),
        (XS_GET_QUOTA, b"nodes\0", b"1000\0"),
        (XS_GET_QUOTA, b"permissions\0", b"5\0"),
        (XS_GET_QUOTA, b"soft-memory\0", b"2097152\0"),
        (XS_GET_QUOTA, b"soft-nodes\0", "EINVAL"),
        (XS_GET_QUOTA, b"5\0nodes\0", b"1000\0"),
        (XS_GET_QUOTA, b"9\0nodes\0", "ENOENT"),
        (XS_GET_QUOTA, b"5\0nodes\0x\0", "EINVAL"),
        (XS_SET_QUOTA, b"nodes\0", "EINVAL"),
        (XS_SET_QUOTA, b"5\0nodes\x001\x001\0", "EINVAL"),
        (XS_SET_QUOTA, b"nodes\0-1\0", "EINVAL"),
        (XS_SET_QUOTA, b"nodes\x000\0", OK),
        (XS_SET_QUOTA, b"5\0nodes\x003\0", OK),
        (XS_SET_QUOTA, b"9\0nodes\x003\0", "ENOENT"),
        (XS_SET_QUOTA, b"5\0nothing\x003\0", "EINVAL"),
    ],
)
def test_words_of_settings(world: World, kind: int, payload: bytes, answer: bytes | str) -> None:
    world.guest(5)
    world.links.there[6] = DomainState(66, False)
    assert world.dom0.ask(kind, payload) == answer


def test_settings_are_for_domain_0_and_a_guests_own_features_for_itself(world: World) -> None:
    guest = world.guest(5)
    for kind in (XS_SET_FEATURE, XS_GET_QUOTA, XS_SET_QUOTA):
        assert guest.ask(kind, b"") == "EACCES"
    assert guest.ask(XS_GET_FEATURE, b"5\0") == "EACCES"
    assert guest.ask(XS_GET_FEATURE, b"") == b"14\0"


def test_a_guest_without_features_can_use_neither_depths_nor_domid_any(world: World) -> None:
    world.links.there[5] = DomainState(5, False)
    assert world.dom0.ask(XS_SET_FEATURE, b"5\x002\0") == OK
    guest = world.guest(5)
    assert guest.ask(XS_WATCH, b"a\0t\x001\0") == "EINVAL"
    home = b"/local/domain/5\0"
    assert guest.ask(XS_SET_PERMS, home + b"n32757\0") == "ENOENT"
    assert guest.ask(XS_SET_PERMS, home + b"n5\0r32757\0") == OK
    assert guest.ask(XS_GET_PERMS, home) == b"n5\0r32757\0"
    other = world.guest(6)
    assert other.ask(XS_GET_PERMS, home) == "EACCES"


def test_special_events_of_one_domain(world: World) -> None:
    asked = [b"@releaseDomain\0no depth\0", b"@releaseDomain\x000\x000\0"]
    asked += [
        b"@releaseDomain\x001\x001\0",
        b"@releaseDomain/5\0this\0",
        b"@releaseDomain/6\0other\0",
    ]
    asked += [b"@introduceDomain\x001\x001\0", b"@introduceDomain/5\0this\0"]
    for watch in asked:
        assert world.dom0.ask(XS_WATCH, watch) == OK
    world.dom0.heard()
    world.links.there[5] = DomainState(1, False)
    world.guest(5)
    world.dom0.heard()
    world.links.there[5].is_shut_down = True
    domains.check(world.server)
    shut_down = [
        b"@releaseDomain/5\x001\0",
        b"@releaseDomain/5\0this\0",
        b"@releaseDomain\0no depth\0",
    ]
    assert world.dom0.events() == shut_down
    heard = world.dom0.send(XS_RELEASE, b"5\0")
    told = [message.payload for message in heard if message.kind == XS_WATCH_EVENT]
    assert told == [shut_down[2], *shut_down[:2]]


@pytest.mark.parametrize("seed", range(12))
def test_accounts_are_right_whatever_happens(seed: int) -> None:
    """After transactions, changes of owners, ends of domains and updates: as counted anew."""
    world = GoingsOn(random.Random(seed))
    for number in range(400):
        world.step()
        if number % 40 == 0:
            _validate(world.server)
    _validate(world.server)


def _validate(server: XenstoreServer) -> None:
    accounts = server.store.accounts
    assert accounts.wrong_counts(usage.all_nodes(server.store)) == {}
    other = XenstoreServer()
    for conn in server.connections:
        server.end_transactions(conn)
        conn.take()
    load_state(other, saved(server))
    for domid, account in accounts.by_domid.items():
        assert account.used[MEMORY] == other.store.accounts.open(domid).used[MEMORY], domid
        assert account.used[NODES] == other.store.accounts.open(domid).used[NODES], domid


def test_quotas_and_features_travel(world: World) -> None:
    world.guest(5)
    world.links.there[6] = DomainState(66, False)
    for payload in (b"5\0nodes\x007\0", b"6\0soft-memory\x008\0", b"watches\x009\0"):
        assert world.dom0.ask(XS_SET_QUOTA, payload) == OK
    assert world.dom0.ask(XS_SET_FEATURE, b"6\x004\0") == OK
    server = XenstoreServer()
    load_state(server, saved(world.server))
    client = Client(server)
    asked = [(b"5\0nodes\0", b"7\0"), (b"5\0watches\0", b"128\0"), (b"watches\0", b"9\0")]
    for payload, answer in [*asked, (b"6\0soft-memory\0", b"8\0")]:
        assert client.ask(XS_GET_QUOTA, payload) == answer
    assert client.ask(XS_GET_FEATURE, b"6\0") == b"4\0"
    assert client.ask(XS_GET_FEATURE, b"5\0") == b"14\0"
