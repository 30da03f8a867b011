"""The simulated machine: RAM in a bytearray, event channels that are calls, kexec as an exception.

    Hypervisor       what outlives kernels: RAM, grant frames, ports, the 9pfs backend, the clock
    SimMachine       what one kernel sees of it (`GuestMachine`)
    Entered          raised by kexec, past all handlers, for the world to enter the next kernel

**Invariants.** At each kexec all RAM that is neither in the module nor in a block for the next
kernel is filled with `POISON`: a kernel that lives by luck does not live here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from xenlive.abi.xs_state import XS_STATE_READ_VERSIONS
from xenlive.domain.events import LocalEvents
from xenlive.domain.grants import GrantMapper
from xenlive.domain.ninepback import NinePBack, start_rings_over
from xenlive.errors import UpdateError
from xenlive.kexec.start_info import build_start_info
from xenlive.machine.guest import EventLoop, GuestMachine, LoadedImage, Loading
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, E820_RESERVED, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory
from xenlive.ninep.tree import MemoryTree

RAM_BYTES = 2 << 20
GRANT_PAGES = 4
LOAD_END = PhysAddr(0x100000)
POISON = 0xA5


class Entered(BaseException):
    """The processor has left the old kernel. Not an `Exception`: no handler is to stop it."""

    def __init__(
        self, image: str, start_info: PhysAddr, fallback: str, fallback_start_info: PhysAddr
    ) -> None:
        super().__init__(image)
        self.image = image
        self.start_info = start_info
        self.fallback = fallback
        self.fallback_start_info = fallback_start_info


class Hypervisor:
    """Everything of a simulated domain that outlives its kernels."""

    def __init__(self) -> None:
        self.ram = bytearray(RAM_BYTES)
        self.grant_frames = bytearray(GRANT_PAGES * PAGE_SIZE)
        self.memory = GuestMemory([(0, self.ram)])
        self.events = LocalEvents()
        self.tree = MemoryTree()
        self.back: NinePBack | None = None
        self.backend_connects = 0
        self.clock_s = 1000.0
        self.milestones: list[str] = []
        self.console: list[str] = []
        self.images: dict[str, str] = {}
        self.copies: list[bytearray] = []

    def load(self, cmdline: str) -> PhysAddr:
        """Writes the first kernel's start info and returns its address."""
        memmap = MemoryMap(
            [
                MemoryRange(0, RAM_BYTES, E820_RAM),
                MemoryRange(0xFEFF8000, 0x8000, E820_RESERVED),
            ]
        )
        self.memory.write(LOAD_END, build_start_info(LOAD_END, memmap, [], cmdline))
        return LOAD_END

    def connect_ninepfs(self, ring_ref: int, port: int) -> None:
        """Attaches the backend to a granted interface page."""
        if self.back is not None:
            self.back.close()
        mapper = GrantMapper(memoryview(self.grant_frames), self.memory, 0)
        start_rings_over(mapper, ring_ref)
        back = NinePBack(mapper, ring_ref, port, self.tree)
        self.back = back
        self.backend_connects += 1

        def rung() -> None:
            if back.kick():
                self.events.ring(port)

        self.events.listen(port, rung)

    def poison(self, keep: Iterable[tuple[int, int]]) -> None:
        """Fills all RAM outside of the runs `keep` (address, size) with POISON."""
        kept = [(address, bytes(self.ram[address : address + size])) for address, size in keep]
        self.ram[:] = bytes([POISON]) * len(self.ram)
        for address, data in kept:
            self.ram[address : address + len(data)] = data


class SimLoading(Loading):
    """An image that answers when its time has come, unless it was cancelled."""

    def __init__(self, on_done: Callable[[], None]) -> None:
        self._on_done: Callable[[], None] | None = on_done

    def answer(self) -> None:
        """Its time has come."""
        if self._on_done is not None:
            self._on_done()

    def cancel(self) -> None:
        """No answer comes."""
        self._on_done = None


class SimMachine(GuestMachine):
    """One kernel's view of the hypervisor."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self.domid = 1
        self.memory = hypervisor.memory
        self.grant_frames = memoryview(hypervisor.grant_frames)
        self.load_end = LOAD_END

    def now_s(self) -> float:
        """Virtual time."""
        return self._hypervisor.clock_s

    def console(self, text: str) -> None:
        """Kept for the test to look at."""
        self._hypervisor.console.append(text)

    def milestone(self, name: str, when_ns: int = 0) -> None:
        """Kept for the test to look at."""
        self._hypervisor.milestones.append(name)

    def connect_ninepfs(self, ring_ref: int, port: int) -> None:
        """Attaches the backend, in this very call."""
        self._hypervisor.connect_ninepfs(ring_ref, port)

    def validate_image(self, image: str) -> None:
        """An image is a name that the hypervisor knows."""
        if image not in self._hypervisor.images:
            raise UpdateError("image", "File not accessible.")

    def load_image(
        self, loop: EventLoop, image: str, on_done: Callable[[LoadedImage | UpdateError], None]
    ) -> Loading:
        """Answers a little later, in virtual time."""
        answer = LoadedImage(image, self._hypervisor.images[image], XS_STATE_READ_VERSIONS)
        loading = SimLoading(lambda: on_done(answer))
        loop.call_at(self.now_s() + 0.05, loading.answer)
        return loading

    def running_image(self, image: str, version: str) -> LoadedImage:
        """The image by its name."""
        return LoadedImage(image, version, XS_STATE_READ_VERSIONS)

    def unload(self, loaded: LoadedImage) -> None:
        """Nothing is held."""

    def new_copy(self) -> int:
        """A buffer of the hypervisor's."""
        self._hypervisor.copies.append(bytearray())
        return len(self._hypervisor.copies) - 1

    def write_copy(self, copy: int, data: bytes) -> None:
        """Appends to it."""
        self._hypervisor.copies[copy] += data

    def read_copy(self, copy: int) -> bytes:
        """All of it."""
        return bytes(self._hypervisor.copies[copy])

    def drop_copy(self, copy: int) -> None:
        """Empties it."""
        self._hypervisor.copies[copy].clear()

    def kexec(
        self,
        loaded: LoadedImage,
        start_info: PhysAddr,
        fallback: LoadedImage,
        fallback_start_info: PhysAddr,
        keep: Iterable[int],
    ) -> None:
        """Leaves the kernel for good: raises Entered."""
        raise Entered(loaded.image, start_info, fallback.image, fallback_start_info)

    # -- event channels: the hypervisor's own ----------------------------------------------------

    def alloc_unbound(self, remote_domid: int) -> int:
        """A new port."""
        return self._hypervisor.events.alloc_unbound(remote_domid)

    def bind(self, port: int) -> None:
        """Takes a port up again."""
        self._hypervisor.events.bind(port)

    def close(self, port: int) -> None:
        """Gives a port back."""
        self._hypervisor.events.close(port)

    def notify(self, port: int) -> None:
        """Rings the other end, which answers within the call."""
        self._hypervisor.events.notify(port)

    def wait(self, port: int, timeout_s: float) -> bool:
        """Whether the other end has rung."""
        return self._hypervisor.events.wait(port, timeout_s)
