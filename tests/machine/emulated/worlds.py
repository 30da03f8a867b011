"""Worlds that are worth saving, and ways to go through one in steps."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.building import build_kernel
from kernels.pair.pair_kernel import pair_kernel
from machine.emulated import small_guests

from xenlive.machine.emulated.build import Module
from xenlive.machine.emulated.world import WORLD_ENDED, World

MEMORY_BYTES = 16 << 20
SECOND_NS = 1_000_000_000


class Said:
    """What each guest wrote to its console."""

    def __init__(self) -> None:
        self.text: dict[str, bytearray] = {}

    def sink(self, name: str) -> bytearray:
        """Where a guest's console goes: a new place."""
        return self.text.setdefault(name, bytearray())


def add(world: World, said: Said, name: str, kernel: bytes, *how: str, **options: int) -> None:
    """A guest with a kernel, its command line, and modules that are the same kernel."""
    sink = said.sink(name).extend
    guest = world.add_guest(name, MEMORY_BYTES, sink, **options)  # type: ignore[arg-type]
    guest.boot(kernel, how[0] if how else "", [Module(kernel, line) for line in how[1:]])


def pair_world(said: Said, bits: tuple[int, int] = (64, 32)) -> World:
    """Two that talk through a granted page, one of which enters another kernel meanwhile."""
    world = World()
    add(
        world,
        said,
        "server",
        pair_kernel(bits[0]),
        "peer client;offer port;make 4;part 0 0;put 0 0 1;grant 9 0 1;tell ready 1;wait;kexec 0",
        "make 4;part 0 0;get 0 0;get 0 1;table;peer client;put 0 2 3;port 4;send;wait;get 0 3;"
        "ticks 2;ungrant 9;state",
    )
    add(
        world,
        said,
        "client",
        pair_kernel(bits[1]),
        "watch @releaseDomain;event;peer server;bind port;hear ready;hole 1;map 1 9 2;get 1 0;"
        "put 1 1 2;send;wait;get 1 2;put 1 3 4;page 2;take 9 0 2 8;get 2 3;unmap 1;send;nap 3000",
    )
    world.acquaint(*world.guests)
    return world


def small_world(said: Said) -> World:
    """Four that sleep, spin, echo and ask Xenstore, without a C compiler's help."""
    world = World()
    for name, source in (
        ("sleeps", small_guests.SLEEPS),
        ("echoes", small_guests.ECHOES),
        ("asks", small_guests.ASKS_THE_STORE),
    ):
        add(world, said, name, build_kernel(source).read_bytes())
    spins = build_kernel(small_guests.SPINS).read_bytes()
    add(world, said, "spins", spins, spin_limit=60_000)
    for guest in world.guests:
        guest.console.type(b"typed\n" * 200)
        guest.console.type(b"q")
    return world


def run_in_steps(world: World) -> Iterator[int]:
    """Runs a world to its end; gives a number after each third round of slices.

    Not each: between two rounds of which the first did nothing, time passes.
    """
    rounds = 0

    def count() -> bool:
        nonlocal rounds
        rounds += 1
        return rounds % 3 == 0

    while world.run(until=count, until_ns=20 * SECOND_NS) != WORLD_ENDED:
        assert rounds < 3000
        yield rounds
