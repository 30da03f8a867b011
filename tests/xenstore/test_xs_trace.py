"""What the log's switches write, and that they cost nothing when they are off."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from xenstore.goings_on import GoingsOn, saved
from xenstore.test_xs_control import control
from xenstore.test_xs_domains import World

from xenlive.abi.xs_wire import (
    XS_MKDIR,
    XS_READ,
    XS_RESET_WATCHES,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import load_state

if TYPE_CHECKING:
    from xenlive.xenstore.changes import Change

OK = b"OK\0"


class Logged(World):
    """A world whose log is on, with the switches named; `lines` are what came since the last."""

    def __init__(self, *switches: str) -> None:
        super().__init__()
        self._lines: list[bytes] = []
        log = self.server.log
        log.opener = lambda name: self._lines.append
        for switch in ("obj", "io"):
            control(self.dom0, "log", f"-{switch}")
        for switch in switches:
            control(self.dom0, "log", f"+{switch}")
        control(self.dom0, "logfile", "x")
        self.lines()

    def lines(self) -> list[str]:
        found = b"".join(self._lines).replace(b"\n***\n", b"").decode().splitlines()
        self._lines.clear()
        return found


def test_objects_come_and_go() -> None:
    world = Logged("obj")
    guest = world.guest(5)
    number = guest.conn.number
    assert world.lines() == [f"obj: CREATE connection #{number} (d5)"]
    guest.ask(XS_WATCH, b"a\0t\0")
    guest.ask(XS_WATCH, b"b\0t\0")
    guest.ask(XS_UNWATCH, b"a\0t\0")
    guest.ask(XS_WRITE, b"a\x001")
    home = "/local/domain/5"
    assert world.lines() == [
        f"obj: CREATE watch #{number} ({home}/a t)",
        f"obj: CREATE watch #{number} ({home}/b t)",
        f"obj: DESTROY watch #{number} ({home}/a t)",
    ]
    guest.ask(XS_TRANSACTION_START, b"\0")
    guest.ask(XS_TRANSACTION_START, b"\0")
    guest.ask(XS_MKDIR, b"x\0", 1)
    guest.ask(XS_TRANSACTION_END, b"T\0", 1)
    guest.ask(XS_RESET_WATCHES, b"\0")
    assert world.lines() == [
        f"obj: CREATE transaction #{number} (1)",
        f"obj: CREATE transaction #{number} (2)",
        f"obj: DESTROY transaction #{number} (1)",
        f"obj: DESTROY all watches #{number}",
        f"obj: DESTROY transaction #{number} (2)",
    ]
    world.server.disconnect(guest.conn)
    assert world.lines() == [f"obj: DESTROY connection #{number}"]


def test_the_data_base_is_read_and_written() -> None:
    world = Logged("tdb")
    dom0 = world.dom0
    number = dom0.conn.number
    assert dom0.ask(XS_WRITE, b"/a/b\0value") == OK
    assert world.lines() == ["tdb: store /a size 26", "tdb: store /a/b size 33"]
    assert dom0.ask(XS_READ, b"/a/b\0") == b"value"
    assert dom0.ask(XS_READ, b"/none\0") == "ENOENT"
    assert world.lines() == ["tdb: read /a/b size 33"]
    assert dom0.ask(XS_SET_PERMS, b"/a/b\0n0\0r5\0") == OK
    assert world.lines() == ["tdb: read /a/b size 33", "tdb: store /a/b size 41"]
    dom0.ask(XS_TRANSACTION_START, b"\0")
    assert dom0.ask(XS_WRITE, b"/a/b\0v", 1) == OK
    assert world.lines() == ["tdb: read /a/b size 41", f"tdb: store {number}.1/a/b size 37"]
    assert dom0.ask(XS_RM, b"/a/b\0", 1) == OK
    assert world.lines() == ["tdb: read /a/b size 37", f"tdb: delete {number}.1/a/b"]
    assert dom0.ask(XS_MKDIR, b"/c\0", 1) == OK
    assert world.lines() == [f"tdb: store {number}.1/c size 26"]
    assert dom0.ask(XS_TRANSACTION_END, b"T\0", 1) == OK
    found = world.lines()
    assert found[-2:] == ["tdb: delete /a/b", "tdb: store /c size 26"]


def test_accounts_are_told_after_each_request() -> None:
    world = Logged("acc")
    guest = world.guest(5)
    world.lines()
    guest.ask(XS_WRITE, b"a\x001")
    told = world.lines()
    assert "acc: domain 5: nodes 1 add 1" in told
    assert "acc: domain 5: outstanding 0 add 1" in told
    world.dom0.ask(XS_WRITE, b"/local/domain/5/a\x001234")
    assert [line.rsplit(" ", 1)[1] for line in world.lines()] == ["3"]  # bytes of memory
    world.dom0.ask(XS_WRITE, b"/elsewhere\x001")
    assert world.lines() == []


@pytest.mark.parametrize("switches", [(), ("wrl",)])
def test_what_is_not_asked_for_is_not_written(switches: tuple[str, ...]) -> None:
    world = Logged(*switches)
    guest = world.guest(5)
    guest.ask(XS_WRITE, b"a\x001")
    world.dom0.ask(XS_READ, b"/tool\0")
    assert world.lines() == []
    assert world.dom0.conn.fast


@pytest.mark.parametrize("switch", ["io", "tdb", "acc"])
def test_fast_paths_are_given_up_and_taken_again(switch: str) -> None:
    world = Logged(switch)
    assert not world.dom0.conn.fast
    assert not world.server.connect().fast
    control(world.dom0, "log", f"-{switch}")
    assert world.server.trace is None
    assert world.server.store.journal is None
    assert all(conn.fast for conn in world.server.connections)


def test_a_guest_can_not_forge_lines() -> None:
    world = Logged("io", "tdb")
    guest = world.guest(5)
    guest.ask(XS_WRITE, b"a\0x\nio: IN #1 (d0) RM (/)\r\x1b[2J\xff")
    assert not any(line.startswith("io: IN #1 (d0) RM") for line in world.lines())
    guest.ask(XS_READ, b"a\n\0")
    assert any("a\\x0a" in line for line in world.lines())


def test_a_journal_hears_the_same_beside_the_log() -> None:
    heard: list[list[Change]] = []
    for switches in ((), ("obj", "tdb", "acc", "io")):
        changes: list[Change] = []
        world = Logged(*switches)
        world.server.journal = changes.append
        assert world.server.journal == changes.append
        guest = world.guest(5)
        guest.ask(XS_WRITE, b"a\x001")
        control(world.dom0, "log", "off")
        guest.ask(XS_WRITE, b"a\x002")
        control(world.dom0, "log", "on")
        guest.ask(XS_TRANSACTION_START, b"\0")
        guest.ask(XS_WRITE, b"a\x003", 1)
        guest.ask(XS_TRANSACTION_END, b"T\0", 1)
        assert bool(world.lines()) == bool(switches)
        heard.append([change[:3] for change in changes])  # without times
        world.server.journal = None
        guest.ask(XS_WRITE, b"a\x004")
        assert bool(world.lines()) == bool(switches)
        assert len(changes) == len(heard[0])
    assert heard[0] == heard[1]


def test_it_goes_on_after_a_live_update() -> None:
    world = Logged("obj", "tdb")
    after = XenstoreServer()
    load_state(after, saved(world.server))
    lines: list[bytes] = []
    after.log.start(lambda name: lines.append)
    after.follow_log()
    after.connect(0)
    assert any(b"obj: CREATE connection" in line for line in lines)
    assert after.trace is not None


@pytest.mark.parametrize("seed", range(4))
def test_it_changes_nothing_whatever_happens(seed: int) -> None:
    """The same dice with the log off and with all of it."""
    states = []
    for is_on in (False, True):
        goings_on = GoingsOn(random.Random(seed))
        lines: list[bytes] = []
        server = goings_on.server
        if is_on:
            server.log.flags = 31
            server.log.file = b"x"
            server.log.is_wanted = True
            server.log.start(lambda name, lines=lines: lines.append)  # type: ignore[misc]
            server.follow_log()
        for _ in range(150):
            goings_on.step()
        now = goings_on.server
        states.append([(path, node.value, node.perms) for path, node in now.store.nodes.items()])
        assert bool(lines) == is_on
    assert states[0] == states[1]
