"""Worlds: how guests end, how time passes, several guests, what is said of an end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kernels.building import build_kernel
from machine.emulated import small_guests

from xenlive.errors import ConfigError, ImageError
from xenlive.machine.emulated import stop
from xenlive.machine.emulated.lens import report
from xenlive.machine.emulated.world import (
    WORLD_ENDED,
    WORLD_IDLE,
    WORLD_PAUSED,
    WORLD_TIME,
    Guest,
    Outside,
    World,
)

SECOND_NS = 1_000_000_000
MEMORY_BYTES = 16 << 20


class Tried:
    """A world with one guest after another, and what they write."""

    def __init__(self) -> None:
        self.world = World()
        self.seen = bytearray()

    def add(self, assembly: str, **how: Any) -> Guest:
        """A guest that stands at its entry."""
        guest = self.world.add_guest(memory_bytes=MEMORY_BYTES, sink=self.seen.extend, **how)
        guest.boot(build_kernel(assembly).read_bytes())
        return guest

    def end(self, assembly: str, **how: Any) -> stop.GuestStop:
        """How a guest ends that nobody helps."""
        guest = self.add(assembly, **how)
        if self.world.run(until_ns=100 * SECOND_NS) == WORLD_IDLE:
            self.world.give_up()
        assert guest.stop is not None
        return guest.stop


@pytest.fixture
def tried() -> Iterator[Tried]:
    made = Tried()
    yield made
    made.world.close()


class Script(Outside):
    """Types one piece of text after the other, whenever all guests wait."""

    def __init__(self, guest: Guest, *pieces: bytes, after_ns: int = 0) -> None:
        self._guest = guest
        self._pieces = list(pieces)
        self._after_ns = after_ns
        self.waits: list[int | None] = []

    @property
    def is_open(self) -> bool:
        return bool(self._pieces)

    def wait(self, time_ns: int | None, has_timer: bool) -> int | None:
        self.waits.append(time_ns)
        if not self._pieces:
            return None
        self._guest.console.type(self._pieces.pop(0))
        return self._after_ns


# ---- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "code", "name", "is_failure"),
    [
        (0, 0, "poweroff", False),
        (1, 11, "reboot", False),
        (2, 12, "suspend", False),
        (3, 13, "crash", True),
        (4, 14, "watchdog", True),
        (5, 15, "soft reset", False),
        (6, 19, "shutdown reason 6", False),
        (255, 19, "shutdown reason 255", False),
    ],
)
def test_shutdown_reasons(
    tried: Tried, reason: int, code: int, name: str, is_failure: bool
) -> None:
    ended = tried.end(small_guests.shutdown(reason))
    assert (ended.kind, ended.code) == (stop.SHUTDOWN, reason)
    assert report.exit_code(ended) == code
    assert report.end_name(ended) == name
    assert report.is_failure(ended) is is_failure


@pytest.mark.parametrize(
    ("assembly", "kind", "code"),
    [
        (small_guests.TRIPLE_FAULTS, stop.TRIPLE_FAULT, 20),
        (small_guests.SPINS, stop.SPIN, 21),
        (small_guests.WAITS_FOR_EVER, stop.STUCK, 22),
        (small_guests.HEARS_NO_TIMER, stop.STUCK, 22),
        (small_guests.HALTS_FOR_GOOD, stop.SHUTDOWN, 0),
    ],
)
def test_other_ends(tried: Tried, assembly: str, kind: str, code: int) -> None:
    ended = tried.end(assembly, spin_limit=1_000_000)
    assert (ended.kind, report.exit_code(ended)) == (kind, code)
    assert report.is_failure(ended) is (code != 0)


def test_every_kind_of_end_has_an_exit_code_of_its_own() -> None:
    kinds = (stop.TRIPLE_FAULT, stop.SPIN, stop.STUCK, stop.UNSUPPORTED)
    codes = {report.exit_code(stop.GuestStop(kind, "x")) for kind in kinds}
    codes |= {report.exit_code(stop.GuestStop(stop.SHUTDOWN, "x", code)) for code in range(7)}
    codes.add(report.exit_code(None))
    assert len(codes) == 4 + 7 + 1
    assert not codes & {1, 2, 130}


def test_the_limit_of_time(tried: Tried) -> None:
    guest = tried.add(small_guests.SPINS)
    assert tried.world.run(until_ns=5_000_000) == WORLD_TIME
    assert guest.stop is None
    assert 5_000_000 <= tried.world.clock.now_ns < 10_000_000
    assert report.exit_code(guest.stop) == 24


class Silent(Outside):
    """Something might come, and nothing does."""

    is_open = True


def test_the_limit_of_time_for_one_who_waits(tried: Tried) -> None:
    guest = tried.add(small_guests.WAITS_FOR_EVER)
    assert tried.world.run(Silent(), until_ns=SECOND_NS) == WORLD_TIME
    assert guest.stop is None
    assert tried.world.clock.now_ns == SECOND_NS


def test_who_waits_for_nothing_can_still_be_helped(tried: Tried) -> None:
    guest = tried.add(small_guests.ECHOES)
    assert tried.world.run() == WORLD_IDLE
    guest.console.type(b"q")
    assert tried.world.run() == WORLD_ENDED
    assert report.exit_code(guest.stop) == 0


def test_a_timer_that_nobody_hears_is_nothing_to_wait_for(tried: Tried) -> None:
    ended = tried.end(small_guests.HEARS_NO_TIMER)
    assert "timers fire" in ended.what


# ---- console, store and time --------------------------------------------------------------------


def test_what_a_guest_writes(tried: Tried) -> None:
    assert report.exit_code(tried.end(small_guests.SAYS_HELLO)) == 0
    assert tried.seen == b"hi\n"


def test_typed_input_wakes_a_guest_that_waits(tried: Tried) -> None:
    guest = tried.add(small_guests.ECHOES)
    script = Script(guest, b"hello ", b"world", b"q")
    assert tried.world.run(script) == WORLD_ENDED
    assert tried.seen == b"hello worldq"
    assert report.exit_code(guest.stop) == 0
    assert script.waits == [None, None, None]


def test_more_is_typed_than_the_ring_holds(tried: Tried) -> None:
    guest = tried.add(small_guests.ECHOES)
    text = bytes(97 + index % 16 for index in range(5000))
    guest.console.type(text + b"q")
    assert tried.world.run() == WORLD_ENDED
    assert tried.seen == text + b"q"


def test_the_end_of_input_is_the_end_of_one_who_only_waits(tried: Tried) -> None:
    guest = tried.add(small_guests.ECHOES)
    assert tried.world.run(Script(guest, b"a")) == WORLD_IDLE
    tried.world.give_up()
    assert guest.stop is not None
    assert guest.stop.kind == stop.STUCK
    assert tried.seen == b"a"


def test_time_jumps_to_the_timer(tried: Tried) -> None:
    guest = tried.add(small_guests.SLEEPS)
    assert tried.world.run() == WORLD_ENDED
    assert report.exit_code(guest.stop) == 0
    assert 5 * SECOND_NS <= tried.world.clock.now_ns < 5.001 * SECOND_NS
    assert guest.vcpu.blocks < 100


def test_input_comes_before_the_timer(tried: Tried) -> None:
    guest = tried.add(small_guests.SLEEPS)
    script = Script(guest, b"x", b"y", after_ns=SECOND_NS)
    assert tried.world.run(script) == WORLD_ENDED
    first, second, third = script.waits
    assert first is not None
    assert second is not None
    assert third is not None
    assert 4.99 * SECOND_NS < first <= 5 * SECOND_NS
    # Each key took a second, and the guest a little while to hear of it.
    assert all(
        SECOND_NS <= taken < 1.00001 * SECOND_NS for taken in (first - second, second - third)
    )
    assert 5 * SECOND_NS <= tried.world.clock.now_ns < 5.001 * SECOND_NS


def test_a_guest_asks_xenstore_through_its_ring(tried: Tried) -> None:
    tried.end(small_guests.ASKS_THE_STORE)
    assert tried.seen == b"1"


def test_until(tried: Tried) -> None:
    guest = tried.add(small_guests.ECHOES)
    guest.console.type(b"abc")
    assert tried.world.run(until=lambda: b"b" in tried.seen) == WORLD_PAUSED
    assert guest.stop is None
    guest.console.type(b"q")
    assert tried.world.run() == WORLD_ENDED
    assert tried.seen == b"abcq"


def test_the_toolstack_hears_of_an_end_and_asks_for_one(tried: Tried) -> None:
    heard: list[str] = []
    tried.world.toolstack.watch("@releaseDomain", heard.append)
    guest = tried.add(small_guests.SAYS_HELLO)
    heard.clear()
    tried.world.ask_to_shut_down(guest, "halt")
    assert tried.world.toolstack.read("/local/domain/1/control/shutdown") == b"halt"
    tried.world.run()
    assert heard == ["@releaseDomain"]


# ---- several ------------------------------------------------------------------------------------


def test_several_guests_share_the_clock(tried: Tried) -> None:
    spinning = tried.add(small_guests.SPINS, spin_limit=10_000_000)
    sleeping = tried.add(small_guests.SLEEPS)
    talking = tried.add(small_guests.SAYS_HELLO)
    assert [guest.domain.domid for guest in tried.world.guests] == [1, 2, 3]
    assert tried.world.run() == WORLD_ENDED
    codes = [report.exit_code(guest.stop) for guest in (spinning, sleeping, talking)]
    assert codes == [21, 0, 0]
    assert tried.seen == b"hi\n"
    assert tried.world.clock.now_ns >= 5 * SECOND_NS


def test_who_is_removed_leaves_nothing_behind(tried: Tried) -> None:
    first = tried.add(small_guests.SAYS_HELLO)
    second = tried.add(small_guests.ASKS_THE_STORE)
    tried.world.remove_guest(first)
    assert not tried.world.toolstack.exists("/local/domain/1")
    assert tried.world.run() == WORLD_ENDED
    assert tried.seen == b"2"
    assert report.exit_code(second.stop) == 0
    assert 1 not in tried.world.peers


def test_the_same_run_twice() -> None:
    runs = []
    for _ in range(2):
        with World() as world:
            seen = bytearray()
            for name in ("a", "b"):
                guest = world.add_guest(name, MEMORY_BYTES, seen.extend)
                guest.boot(build_kernel(small_guests.ECHOES).read_bytes())
                guest.console.type(b"typed at first")
            world.run(Script(world.guests[0], b"once more", b"q", after_ns=5))
            calls = [record for each in world.guests for record in each.vcpu.recent]
            blocks = [each.vcpu.blocks for each in world.guests]
            memory = [each.domain.space.read(0, MEMORY_BYTES) for each in world.guests]
            runs.append((bytes(seen), world.clock.now_ns, blocks, calls, memory))
    assert runs[0] == runs[1]
    assert runs[0][0]


# ---- what is refused ----------------------------------------------------------------------------


def test_what_cannot_be_booted_changes_nothing(tried: Tried) -> None:
    guest = tried.world.add_guest(memory_bytes=MEMORY_BYTES)
    with pytest.raises(ImageError, match="elf-magic"):
        guest.boot(b"no kernel")
    assert guest.loaded is None
    with pytest.raises(ConfigError):
        tried.world.add_guest(memory_bytes=123)
    assert tried.world.guests == [guest]
    assert not tried.world.toolstack.exists("/local/domain/2")
