"""A world: domains that know each other, the services around them, and the one clock they share.

    outside ◀──▶ World ── a slice each, in turn ──▶ Guest: Vcpu, Domain, Console, StoreRing
     (terminal)    │                                         └────────┬────────┘
                   ├── all wait: time jumps to the next timer         │ rings and events
                   └── StoreService, toolstack's nodes ◀──────────────┘

**Invariants.** Who runs when depends on blocks of code and virtual time alone: with the same input
at the same places, the same run, bit for bit. `run` raises nothing that a guest could cause; how
each guest ended is its `stop`. When all guests wait for what nobody in this world and nothing from
outside can bring, `run` says so and returns.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Protocol

from xenlive.machine.emulated.backends.console import Console
from xenlive.machine.emulated.backends.toolstack import add_guest, remove_guest, start_store
from xenlive.machine.emulated.backends.xenstore import StoreService
from xenlive.machine.emulated.build import Loaded, Module, load_kernel, make_domain
from xenlive.machine.emulated.hypervisor.domain import Domain
from xenlive.machine.emulated.interface import Clock
from xenlive.machine.emulated.processor.vcpu import RUN_ENDED, SPIN_LIMIT, Vcpu
from xenlive.machine.emulated.stop import STUCK, GuestStop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenlive.machine.emulated.backends.ninepfs import NinePDevice, Share
    from xenlive.machine.emulated.backends.store import Store

# What `run` came to.
WORLD_ENDED = "ended"  # no guest can go on; `Guest.stop` says why
WORLD_IDLE = "idle"  # all guests wait, and nothing can come: `give_up` ends them as stuck
WORLD_PAUSED = "paused"  # what `until` asked for is there
WORLD_TIME = "time"  # the limit of virtual time is reached

#: Blocks that a guest runs before anybody else does, and before the outside is looked at.
SLICE_BLOCKS = 50_000
# Timers that may fire in a row while nobody runs a single block because of them.
_VAIN_TIMERS_MAX = 10_000

FIRST_DOMID = 1
DEFAULT_MEMORY_BYTES = 64 << 20


class Outside:
    """What is around a world; this one is empty: nothing ever comes from it."""

    @property
    def is_open(self) -> bool:
        """Whether something may still come."""
        return False

    def poll(self) -> None:
        """Called between slices: may type something, and may not wait."""

    def wait(self, time_ns: int | None, has_timer: bool) -> int | None:
        """All guests wait: for `time_ns` at most, or for ever, until something comes.

        After that time a timer fires, or, without `has_timer`, the run is over. The answer is the
        nanoseconds after which something was typed, or None if nothing was; it need not really
        take that long.
        """
        return None


class Guest:
    """A domain of a world with all that belongs to it."""

    def __init__(
        self, world: World, domain: Domain, name: str, sink: Callable[[bytes], object], spin: int
    ) -> None:
        self.name = name
        self.domain = domain
        self.vcpu = Vcpu(domain.domid, domain.space, domain, world.clock, spin_limit=spin)
        self.console = Console(world.host, domain, sink)
        self.store = world.store.introduce(domain)
        #: Its 9pfs devices, by their numbers.
        self.devices: list[NinePDevice] = []
        self._world = world
        #: The kernel it was entered with, and the files that were put beside it.
        self.kernel = b""
        self.files: list[bytes] = []
        self.loaded: Loaded | None = None
        #: The kernels that it has run, as far as they are known: since when, and the file.
        self.chain: list[tuple[int, bytes]] = []
        #: Asked at its end: True if it goes on all the same, with another kernel.
        self.on_stop: Callable[[GuestStop], bool] | None = None
        #: Why it ended, once it has.
        self.stop: GuestStop | None = None

    def boot(self, kernel: bytes, cmdline: str = "", modules: Sequence[Module] = ()) -> None:
        """Loads a kernel and stands at its entry. ImageError or ConfigError if it can't be."""
        self.loaded = load_kernel(self.domain, kernel, cmdline, modules)
        self.kernel = kernel
        self.files = [module.data for module in modules]
        self.chain.append((self.vcpu.clock.now_ns, kernel))
        self.vcpu.enter_pvh(self.loaded.entry, self.loaded.start_info)

    def share(self, share: Share) -> NinePDevice:
        """One more directory for the guest, as a 9pfs device. OSError if it is none."""
        from xenlive.machine.emulated.backends.ninepfs import NinePDevice

        world, number = self._world, len(self.devices)
        device = NinePDevice(world.host, self.domain, world.toolstack, number, share)
        self.devices.append(device)
        return device

    def close_devices(self) -> None:
        """Takes all devices away from it."""
        for device in self.devices:
            device.close()
        self.devices.clear()

    def close(self) -> None:
        """Gives devices, processor and memory back."""
        self.close_devices()
        self.vcpu.engine.close()
        space = self.domain.space
        try:
            space.close()
        except BufferError:
            # Rings and shared info have views of it: the mapping goes with the last of them.
            os.close(space.fd)


class Part(Protocol):
    """A part of a world that snapshots keep: a back end with a state outside of the guests."""

    def save(self) -> Any:
        """The state, made of numbers, strings, lists, dicts with string keys, booleans and None.

        ConfigError if it can't be kept: it is somebody else's.
        """

    def restore(self, state: Any) -> None:
        """Goes back to what `save` gave, in this or another process.

        Domains, rings, grants and Xenstore were put back before; handlers of event channels were
        not (`HandlerDelivery.put_back`). The state may come from a file: ImageError if it can't be.
        """


class World:
    """Guests and what they share. The first one added gets domain id 1.

    `make_store` makes its Xenstore, which is in this process if nothing else is said. As a context
    manager it closes itself.
    """

    def __init__(self, make_store: Callable[[Domain, Clock], Store] = StoreService) -> None:
        self.clock = Clock()
        self.peers: dict[int, Domain] = {}
        self.host = Domain.host(self.peers, self.clock)
        self.store = make_store(self.host, self.clock)
        self.toolstack = self.store.client()
        start_store(self.toolstack)
        self.guests: list[Guest] = []
        #: What else has a state that goes into snapshots: back ends, by a name of their own.
        self.parts: dict[str, Part] = {}
        #: Timers that fired in a row without a block of anybody's.
        self.vain_timers = 0

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives everything back; nothing runs any more."""
        for guest in self.guests:
            guest.close()
        self.guests.clear()

    def add_guest(
        self,
        name: str = "guest",
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        sink: Callable[[bytes], object] = bytes,
        spin_limit: int = SPIN_LIMIT,
        has_console_io: bool = False,
    ) -> Guest:
        """A domain without a kernel: `Guest.boot` comes next. ConfigError for a bad size.

        `sink` gets what it writes to its console, and with `has_console_io` to Xen's own.
        """
        domid = self.store.new_domid()
        if domid is None:
            domid = max(self._domids_in_use(), default=FIRST_DOMID - 1) + 1
        guest = self.make_guest(domid, name, memory_bytes, sink, spin_limit)
        guest.domain.has_console_io = has_console_io
        self.guests.append(guest)
        return guest

    def _domids_in_use(self) -> set[int]:
        """Those of guests, and of domains that are gone while others still map their pages.

        As in Xen, where such a domain keeps its id.
        """
        tables = {
            mapped.table
            for guest in self.guests
            for mapped in guest.domain.mappings.mapped().values()
        }
        return {guest.domain.domid for guest in self.guests} | {each.domid for each in tables}

    def make_guest(
        self,
        domid: int,
        name: str,
        memory_bytes: int,
        sink: Callable[[bytes], object],
        spin_limit: int,
    ) -> Guest:
        """The same with an id that is free, and not among `guests` yet."""
        # Not random, so that a run can be repeated.
        handle = hashlib.blake2b(f"{domid} {name}".encode(), digest_size=16).digest()
        domain = make_domain(domid, memory_bytes, self.peers, self.clock, handle)
        self.store.know(domid)
        add_guest(self.toolstack, domain, name, memory_bytes >> 10)
        return Guest(self, domain, name, sink, spin_limit)

    def remove_guest(self, guest: Guest) -> None:
        """Takes a domain out of the world: its ports, its mappings, its nodes."""
        self.guests.remove(guest)
        guest.close_devices()
        guest.domain.destroy()
        self.store.release(guest.store)
        remove_guest(self.toolstack, guest.domain)
        guest.close()

    def acquaint(self, *guests: Guest) -> None:
        """Tells each of `guests` the domain ids of the others: its nodes `peer/NAME`.

        As with all of its home, it may read them and nobody else may.
        """
        for guest in guests:
            home = f"/local/domain/{guest.domain.domid}/peer"
            self.toolstack.write(home, "")
            for other in guests:
                if other is not guest:
                    self.toolstack.write(f"{home}/{other.name}", str(other.domain.domid))

    def ask_to_shut_down(self, guest: Guest, how: str = "poweroff") -> None:
        """Asks its kernel, by `control/shutdown`; whether it heeds that is its own affair."""
        self.toolstack.write(f"/local/domain/{guest.domain.domid}/control/shutdown", how)

    # ---- running -------------------------------------------------------------------------

    def run(
        self,
        outside: Outside | None = None,
        until: Callable[[], bool] | None = None,
        until_ns: int | None = None,
    ) -> str:
        """Runs all guests until none can go on: one of this file's names that begin with WORLD_.

        `until` is asked after each slice, `until_ns` is a limit of virtual time.
        """
        around = outside or Outside()
        while True:
            around.poll()
            is_busy = self.step()
            if until is not None and until():
                return WORLD_PAUSED
            if all(guest.stop is not None for guest in self.guests):
                return WORLD_ENDED
            if until_ns is not None and self.clock.now_ns >= until_ns:
                return WORLD_TIME
            if not is_busy and not self._pass_time(around, until_ns):
                return WORLD_IDLE

    def step(self) -> bool:
        """Runs each guest for a slice; False if none ran a single block: all wait."""
        is_busy = False
        for guest in self.guests:
            if guest.stop is not None:
                continue
            before = guest.vcpu.blocks
            state = guest.vcpu.run(SLICE_BLOCKS)
            if guest.vcpu.blocks != before:
                is_busy = True
                self.vain_timers = 0
            guest.console.pump()
            if state == RUN_ENDED:
                stop = guest.vcpu.ended
                if guest.on_stop is None or stop is None or not guest.on_stop(stop):
                    self._end(guest, stop)
        return is_busy

    def pause(self) -> None:
        """Ends the slice that runs before its time, also from a signal's handler.

        Guests that make expensive hypercalls all the time have slices of many seconds.
        """
        for guest in self.guests:
            guest.vcpu.pause()

    def _pass_time(self, outside: Outside, until_ns: int | None) -> bool:
        """All guests wait, for input or for the next timer; False if neither can come."""
        deadline_ns = None if self._fires_in_vain else self._next_timer_ns()
        has_timer = deadline_ns is not None
        if not has_timer and not outside.is_open:
            return False
        if until_ns is not None:
            deadline_ns = until_ns if deadline_ns is None else min(deadline_ns, until_ns)
        wait_ns = None if deadline_ns is None else max(deadline_ns - self.clock.now_ns, 0)
        came_after_ns = outside.wait(wait_ns, has_timer)
        if came_after_ns is not None:
            self.clock.advance(came_after_ns if wait_ns is None else min(came_after_ns, wait_ns))
            self.vain_timers = 0
        elif deadline_ns is not None and (has_timer or outside.is_open):
            self.clock.advance_to(deadline_ns)
            self.vain_timers += 1
        return True

    @property
    def _fires_in_vain(self) -> bool:
        return self.vain_timers > _VAIN_TIMERS_MAX

    def _next_timer_ns(self) -> int | None:
        deadlines = [
            when
            for guest in self.guests
            if guest.stop is None and (when := guest.vcpu.next_timer_ns()) is not None
        ]
        return min(deadlines, default=None)

    def give_up(self) -> None:
        """Ends all guests that wait: nothing will come."""
        vain = self._fires_in_vain
        what = "its timers fire and it hears none" if vain else "no timer is set, and nobody calls"
        for guest in self.guests:
            if guest.stop is None:
                self._end(guest, GuestStop(STUCK, f"it waits for ever: {what}"))

    def _end(self, guest: Guest, stop: GuestStop | None) -> None:
        guest.stop = stop
        guest.console.pump()
        self.store.domain_stopped(guest.store)
