"""Domains without processors: who makes a hypercall in the tests of the hypervisor's side.

A `Guest` has one address for everything: its virtual memory is its physical one, and what is not
there faults, as with page tables that map RAM one to one.
"""

from __future__ import annotations

from typing import Any

from xenlive.abi.layout import Layout
from xenlive.machine.emulated.build import make_domain
from xenlive.machine.emulated.hypervisor.domain import Domain
from xenlive.machine.emulated.hypervisor.hypercalls.table import HYPERCALL_NAMES
from xenlive.machine.emulated.interface import Clock, Processor
from xenlive.machine.emulated.processor.paging import PageFault

MEMORY_BYTES = 4 << 20
# Where arguments are put, and an address that leads nowhere.
ARG = 0x8000
BAD = 0xDEAD0000
NUMBERS = {name: number for number, name in HYPERCALL_NAMES.items()}


class Guest(Processor):
    """Domain `domid` of 4 MiB and a processor that does nothing but make hypercalls."""

    def __init__(self, world: World, domid: int) -> None:
        self.domain = make_domain(domid, MEMORY_BYTES, world.peers, world.clock)
        self.in_long_mode = True
        self.is_64bit = True
        self.blocked = 0
        self.woken = 0

    def read_virtual(self, address: int, size: int) -> bytes:
        if not self.domain.space.is_backed(address, size):
            raise PageFault(address, 0)
        return self.domain.space.read(address, size)

    def write_virtual(self, address: int, data: bytes) -> None:
        if not self.domain.space.is_backed(address, len(data)):
            raise PageFault(address, 2)
        self.domain.space.write(address, data)

    def block(self) -> None:
        self.blocked += 1

    def wake(self) -> None:
        self.woken += 1

    def call(self, name: str, *args: int) -> int:
        """The result of a hypercall by its name, `event_channel_op`."""
        padded = (*args, *(0,) * (5 - len(args)))
        result = self.domain.hypercall(self, NUMBERS[name], padded, self.is_64bit)
        assert result is not None
        return result

    def put(self, layout: Layout, at: int = ARG, /, **fields: Any) -> int:
        """Stores a structure, zero but for `fields`, and says where."""
        known = layout.decode(bytes(layout.size)) | fields
        self.write_virtual(at, layout.encode(**known))
        return at

    def get(self, layout: Layout, at: int = ARG) -> dict[str, Any]:
        """A structure in memory."""
        return layout.decode(self.read_virtual(at, layout.size))

    def op(self, name: str, cmd: int, layout: Layout, /, **fields: Any) -> int:
        """A hypercall with one structure as its argument, which is left at ARG."""
        return self.call(name, cmd, self.put(layout, **fields))


class World:
    """Domains that know each other: the host's, and guests from 1 on."""

    def __init__(self, guests: int = 1) -> None:
        self.peers: dict[int, Domain] = {}
        self.clock = Clock()
        self.host = Domain.host(self.peers, self.clock)
        self.guests = [Guest(self, domid) for domid in range(1, guests + 1)]

    def close(self) -> None:
        """Gives the domains' memory back."""
        for domain in (self.host, *(guest.domain for guest in self.guests)):
            domain.space.close()
