"""Two C kernels of one world: a channel, granted pages, copies; one kexecs, one dies.

What each command does is in `kernels/pair/pair.c`; what it must answer was read in Xen 4.17,
`xen/common/grant_table.c` and `xen/common/event_channel.c`, named at each test.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kernels.pair.pair_kernel import pair_kernel

from xenlive.machine.emulated.build import Module
from xenlive.machine.emulated.lens import report
from xenlive.machine.emulated.world import WORLD_ENDED, WORLD_IDLE, Guest, World

pytestmark = pytest.mark.peer

MEMORY_BYTES = 16 << 20
SECOND_NS = 1_000_000_000

# GNTMAP_host_map, GNTMAP_readonly; GTF_permit_access, GTF_transitive, GTF_readonly
HOST, READONLY = 2, 4
ACCESS, TRANSITIVE, GTF_READONLY, READING, WRITING = 1, 3, 4, 8, 16
# GNTST_, EVTCHNSTAT_
GENERAL_ERROR, BAD_DOMAIN, BAD_REF, BAD_HANDLE, BAD_COPY = -1, -2, -3, -4, -10
CLOSED, UNBOUND, INTERDOMAIN = 0, 1, 2

# A frame where nothing is: below xen.c's own.
TOP_FRAME = 0xFEFF0

#: How each of the two gets a channel to the other.
MEET = {"server": "peer client;offer port", "client": "peer server;bind port"}


class Pair:
    """The world of `server` and `client`, and what each said."""

    def __init__(self, bits: tuple[int, int] = (64, 64)) -> None:
        self.world = World()
        self.said: dict[str, bytearray] = {}
        self.guests: dict[str, Guest] = {}
        for name in ("server", "client"):
            said = self.said.setdefault(name, bytearray())
            self.guests[name] = self.world.add_guest(name, MEMORY_BYTES, said.extend)
        self.world.acquaint(*self.world.guests)
        self._bits = dict(zip(self.guests, bits, strict=True))

    def boot(self, name: str, script: str, next_script: str = "") -> None:
        """Gives one its commands, and those of the kernel that it enters with `kexec 0`."""
        kernel = pair_kernel(self._bits[name])
        modules = [Module(kernel, next_script)] if next_script else []
        self.guests[name].boot(kernel, f"{MEET[name]};{script}", modules)

    def run(self) -> None:
        """Runs both until they have powered off, each by itself."""
        assert self.world.run(until_ns=20 * SECOND_NS) == WORLD_ENDED, self.said
        for guest in self.world.guests:
            assert report.exit_code(guest.stop) == 0, (guest.stop, self.said)

    def results(self, name: str, skip: int = 2) -> list[int]:
        """What its commands came to, without the first ones; all kernels of a chain in a row."""
        lines = self.said[name].decode().splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith("> ")][skip:]


@pytest.fixture(params=[(64, 64), (32, 64), (64, 32)], ids=str)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.world.close()


@pytest.fixture
def one_pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.world.close()


def test_they_talk_through_a_page(pair: Pair) -> None:
    """evtchn_bind_interdomain, evtchn_send, map_grant_ref, unmap_common."""
    pair.boot(
        "server",
        f"page 0;grant 9 0 {ACCESS};put 0 5 41;tell ready 1;wait;get 0 6;put 0 7 99;send;"
        "wait;ungrant 9;state",
    )
    pair.boot(
        "client",
        f"hear ready;hole 1;map 1 9 {HOST};get 1 5;put 1 6 42;send;wait;get 1 7;unmap 1;send",
    )
    pair.run()
    # The entry is not in use at the end, and is taken away: its flags were access alone.
    assert pair.results("server") == [0, 0, 0, 0, 0, 42, 0, 0, 0, ACCESS, INTERDOMAIN]
    assert pair.results("client") == [1, 0, 0, 41, 0, 0, 0, 99, 0, 0]


def test_a_grant_in_use_is_not_taken_away(one_pair: Pair) -> None:
    """The flags say that it is in use until it is unmapped (`reduce_status_for_pin`)."""
    one_pair.boot(
        "server", f"page 0;grant 9 0 {ACCESS};tell ready 1;wait;ungrant 9;send;wait;ungrant 9"
    )
    one_pair.boot("client", f"hear ready;hole 1;map 1 9 {HOST};send;wait;unmap 1;send")
    one_pair.run()
    used = ACCESS | READING | WRITING
    assert one_pair.results("server") == [0, 0, 0, 0, used, 0, 0, ACCESS]


def test_a_page_that_may_only_be_read(pair: Pair) -> None:
    """GTF_readonly: to map it for writing is refused; what is stored to it is lost (hvm_hap)."""
    pair.boot(
        "server",
        f"page 0;put 0 0 7;grant 9 0 {ACCESS | GTF_READONLY};tell ready 1;wait;"
        "get 0 0;ungrant 9;send",
    )
    pair.boot(
        "client",
        f"hear ready;hole 1;map 1 9 {HOST};map 1 9 {HOST | READONLY};get 1 0;put 1 0 8;get 1 0;"
        "send;wait;unmap 1",
    )
    pair.run()
    used = ACCESS | GTF_READONLY | READING
    assert pair.results("server") == [0, 0, 0, 0, 0, 7, used, 0]
    assert pair.results("client") == [1, 0, GENERAL_ERROR, 0, 7, 0, 7, 0, 0, 0]


def test_what_is_refused(one_pair: Pair) -> None:
    """_set_status_v1: no such entry, a transitive one in a table of version 1, another domain's."""
    one_pair.boot(
        "server",
        f"page 0;grant 9 0 {TRANSITIVE};grant 10 0 {ACCESS};tell ready 1;wait;ungrant 9;ungrant 10",
    )
    one_pair.boot(
        "client",
        f"hear ready;at 1 {TOP_FRAME};map 1 9 {HOST};map 1 511 {HOST};map 1 512 {HOST};map 1 10 0;"
        f"map 1 10 1;take 9 0 1 16;unmap 1;map 1 10 {HOST};at 1 9999;unmap 1;at 1 {TOP_FRAME};"
        "unmap 1;unmap 1;send",
    )
    one_pair.run()
    assert one_pair.results("server")[-2:] == [TRANSITIVE, ACCESS]
    # No flag at all is GNTST_bad_gntref; a device mapping is not for HVM guests.
    maps = [GENERAL_ERROR, GENERAL_ERROR, BAD_REF, BAD_REF, GENERAL_ERROR]
    end = [GENERAL_ERROR, BAD_HANDLE, 0, 0, GENERAL_ERROR, 0, 0, BAD_HANDLE, 0]
    assert one_pair.results("client") == [1, 0, *maps, *end]


def test_copies_between_them(pair: Pair) -> None:
    """gnttab_copy: from a granted page, to a granted page, to one that may only be read."""
    pair.boot(
        "server",
        f"page 0;page 1;put 0 100 11;put 1 0 12;grant 9 0 {ACCESS};"
        f"grant 10 1 {ACCESS | GTF_READONLY};tell ready 1;wait;get 0 200;"
        "get 1 200;ungrant 9;ungrant 10",
    )
    pair.boot(
        "client",
        "hear ready;page 1;take 9 100 1 8;get 1 0;put 1 0 33;give 9 200 1 1;give 10 200 1 1;"
        "take 10 0 1 1;get 1 0;take 9 4090 1 8;take 77 0 1 1;send",
    )
    pair.run()
    assert pair.results("server")[-4:] == [33, 0, ACCESS, ACCESS | GTF_READONLY]
    # The last two: over the end of the page, and no such grant.
    refused = [BAD_COPY, GENERAL_ERROR]
    assert pair.results("client") == [1, 0, 0, 11, 0, 0, GENERAL_ERROR, 0, 12, *refused, 0]


def test_who_grants_kexecs_and_the_mapping_stays(pair: Pair) -> None:
    """A page of the kexec module is granted; the next kernel goes on with it where it lies."""
    pair.boot(
        "server",
        f"make 4;part 0 0;put 0 0 1;grant 9 0 {ACCESS};tell ready 1;wait;kexec 0",
        "make 4;part 0 0;get 0 0;get 0 1;table;peer client;put 0 2 3;port 4;send;wait;get 0 3;"
        "ungrant 9;state",
    )
    pair.boot(
        "client",
        f"hear ready;hole 1;map 1 9 {HOST};get 1 0;put 1 1 2;send;wait;get 1 2;"
        "put 1 3 4;unmap 1;send",
    )
    pair.run()
    first, second = pair.said["server"].decode().split("kexec\n")
    assert "module ffc000 4000 made" in first
    after = [int(line.split()[1]) for line in second.splitlines() if line.startswith("> ")]
    assert "module ffc000 4000 handed" in second
    assert after == [0, 0, 1, 2, 0, 2, 0, 0, 0, 0, 4, ACCESS, INTERDOMAIN]
    assert pair.results("client") == [1, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]


def test_who_maps_kexecs_and_the_mapping_stays(one_pair: Pair) -> None:
    """Handle, frame and port are the domain's: its next kernel may use them, and unmap."""
    one_pair.boot(
        "server", f"page 0;put 0 0 5;grant 9 0 {ACCESS};tell ready 1;wait;get 0 1;ungrant 9"
    )
    one_pair.boot(
        "client",
        f"hear ready;at 1 {TOP_FRAME};map 1 9 {HOST};get 1 0;kexec 0",
        f"at 1 {TOP_FRAME};get 1 0;put 1 1 6;handle 1 0;unmap 1;unmap 1;port 4;send;state",
    )
    one_pair.run()
    assert one_pair.results("client")[:4] == [1, 0, 0, 5]
    second = one_pair.said["client"].decode().split("kexec\n")[1]
    after = [int(line.split()[1]) for line in second.splitlines() if line.startswith("> ")]
    assert after == [0, 5, 0, 0, 0, BAD_HANDLE, 0, 0, INTERDOMAIN]
    assert one_pair.results("server")[-2:] == [6, ACCESS]


def test_one_is_destroyed_and_the_other_sees_it(one_pair: Pair) -> None:
    """evtchn_destroy leaves an unbound port; a mapped page stays until it is unmapped; the domain
    is gone for what comes after; who watches @releaseDomain hears of it (`domain_kill`).
    """
    one_pair.boot(
        "server",
        f"page 0;put 0 0 77;grant 9 0 {ACCESS};grant 10 0 {ACCESS};tell ready 1;wait;shutdown 0",
    )
    one_pair.boot(
        "client",
        f"watch @releaseDomain;event;hear ready;hole 1;map 1 9 {HOST};state;send;event;nap 5000;"
        f"get 1 0;put 1 0 78;get 1 0;state;send;hole 2;map 2 10 {HOST};unmap 1;close;state",
    )
    world, server = one_pair.world, one_pair.guests["server"]
    world.run(until=lambda: server.stop is not None)
    world.remove_guest(server)
    one_pair.run()
    answers = one_pair.results("client")
    assert answers[:8] == [0, 0, 1, 0, 0, INTERDOMAIN, 0, 0]
    assert answers[8:] == [0, 77, 0, 78, UNBOUND, 0, 0, BAD_DOMAIN, 0, 0, CLOSED]


def test_the_id_of_a_dead_one_is_taken_while_its_page_is_mapped(one_pair: Pair) -> None:
    """`complete_domain_destroy` comes with the last reference, which each mapping has one of."""
    one_pair.boot("client", f"page 0;grant 9 0 {ACCESS};tell ready 1;wait;shutdown 0")
    one_pair.boot("server", f"hear ready;hole 1;map 1 9 {HOST};send;nap 5000;unmap 1")
    world, client = one_pair.world, one_pair.guests["client"]
    world.run(until=lambda: client.stop is not None)
    world.remove_guest(client)
    assert client.domain.domid == 2
    assert world.add_guest("other", MEMORY_BYTES).domain.domid == 3
    world.remove_guest(world.guests[-1])
    one_pair.run()
    assert one_pair.results("server")[-1] == 0
    assert world.add_guest("later", MEMORY_BYTES).domain.domid == 2


def test_who_waits_for_a_dead_one_waits_for_ever(one_pair: Pair) -> None:
    one_pair.boot("server", "shutdown 0")
    one_pair.boot("client", "wait")
    assert one_pair.world.run(until_ns=SECOND_NS) == WORLD_IDLE
    assert report.exit_code(one_pair.guests["server"].stop) == 0
    assert one_pair.guests["client"].stop is None


def test_they_find_each_other_by_name_alone(one_pair: Pair) -> None:
    assert one_pair.world.toolstack.read("/local/domain/1/peer/client") == b"2"
    assert one_pair.world.toolstack.read("/local/domain/2/peer/server") == b"1"
    one_pair.boot("server", "")
    one_pair.boot("client", "")
    one_pair.run()
    assert [one_pair.results(name, 0)[0] for name in ("server", "client")] == [2, 1]
