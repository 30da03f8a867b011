"""A domain without processes for tests of the 9pfs device: RAM, module, grants, events, backend."""

from __future__ import annotations

from collections.abc import Callable

from xenlive.domain.events import LocalEvents
from xenlive.domain.grants import GrantMapper, GrantTable
from xenlive.domain.ninepback import NinePBack
from xenlive.domain.ninepfront import NinePFront
from xenlive.errors import PeerError
from xenlive.kexec.module import KexecModule
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.guest import GuestMemory
from xenlive.ninep.tree import MemoryTree, Tree

#: Where the module of 18 pages lies in 64 MiB, as in the recordings.
MODULE_ADDRESS = PhysAddr(0x3FEE000)


class World:
    """What stays when kernels change. `refused` is what the backend had to say of its front end."""

    def __init__(
        self,
        n_module_pages: int = 18,
        tree: Tree | None = None,
        address: PhysAddr = MODULE_ADDRESS,
    ) -> None:
        self.ram = bytearray(n_module_pages * PAGE_SIZE)
        self.memory = GuestMemory([(address, self.ram)])
        self.address = address
        self.grant_frames = bytearray(4 * PAGE_SIZE)
        self.events = LocalEvents()
        self.tree = tree if tree is not None else MemoryTree()
        self.back: NinePBack | None = None
        self.refused: PeerError | None = None
        self.n_connects = 0
        KexecModule.create(self.memory, address, n_module_pages)

    def grants(self) -> GrantTable:
        """The grant table as a kernel sees it that was just entered."""
        return GrantTable(memoryview(self.grant_frames))

    def module(self) -> KexecModule:
        """The module as a kernel sees it that was just entered."""
        return KexecModule.attach(self.memory, self.address, len(self.ram))

    def connect(self, ring_ref: int, port: int) -> None:
        """What the machine does: the backend attaches to the rings."""
        self.n_connects += 1
        mapper = GrantMapper(memoryview(self.grant_frames), self.memory, 0)
        self.back = NinePBack(mapper, ring_ref, port, self.tree)
        self.events.listen(port, lambda: self.kick(port))

    def kick(self, port: int) -> None:
        """The front end rang: the backend serves, and rings back if it should."""
        assert self.back is not None
        try:
            if self.back.kick():
                self.events.ring(port)
        except PeerError as error:
            self.refused = error

    def first_kernel(
        self, order: int = 4, connect: Callable[[int, int], None] | None = None
    ) -> NinePFront:
        """A new device, connected."""
        return NinePFront.create(
            self.memory,
            self.module(),
            self.grants(),
            self.events,
            connect or self.connect,
            order=order,
        )

    def next_kernel(self, record: int = 0) -> NinePFront:
        """The device as the kernel after a kexec takes it over."""
        self.events.forget_kernel()
        return NinePFront.resume(self.memory, self.module(), record, self.grants(), self.events)
