"""A guest as a debugger wants it: registers, memory, breakpoints, going on and stopping.

Memory is what the guest's own page tables say at that moment, rights apart: a debugger may write
where the kernel may not. Breakpoints are the processor's (`processor/debugging.py`): no byte of the
guest's is patched, so that the guest can't see them, and they outlive what is loaded over them, a
next kernel for one.

**Invariants.** All of it happens while the guest stands still between two instructions. Looking
changes nothing; a guest that is only stopped and let go on runs as if nobody had looked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xenlive.machine.emulated.lens.gdbregisters import registers
from xenlive.machine.emulated.lens.report import name_at
from xenlive.machine.emulated.processor.paging import PAGE_SIZE, NonCanonical, PageFault
from xenlive.machine.emulated.processor.watches import READ, WRITE
from xenlive.machine.emulated.stop import KILLED, GuestStop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xenlive.machine.emulated.lens.gdbregisters import Register
    from xenlive.machine.emulated.processor.debugging import Breakpoint, Watchpoint
    from xenlive.machine.emulated.world import Guest

# Why the guest stopped.
STOP_STEP = "step"
STOP_BREAKPOINT = "breakpoint"
STOP_WATCHPOINT = "watchpoint"
STOP_ASKED = "asked"

_ELF_CLASS_AT, _ELF_CLASS_64 = 4, 2
_WATCHED_MAX = 1 << 16
_ADDRESS_MASKS = {False: (1 << 32) - 1, True: (1 << 64) - 1}


class Stop(NamedTuple):
    """Why the guest stopped; at what kind of breakpoint or watchpoint, and where that is."""

    why: str
    kind: str = ""
    address: int = 0


# Kinds of watchpoints, by the protocol's names: which accesses they are for.
WATCHES = {"watch": (WRITE,), "rwatch": (READ,), "awatch": (READ, WRITE)}


class Target:
    """The guest; `on_stop` is called when it has come to where it was to stop.

    It goes on when that returns.
    """

    def __init__(self, guest: Guest, on_stop: Callable[[Stop], object]) -> None:
        self.guest = guest
        self._vcpu = guest.vcpu
        self._engine = guest.vcpu.engine
        self._on_stop = on_stop
        self._breakpoints: dict[tuple[str, int], Breakpoint] = {}
        self._watchpoints: dict[tuple[str, int, int], list[Watchpoint]] = {}
        #: Whether GDB is told of 64-bit registers.
        elf_class = guest.kernel[_ELF_CLASS_AT : _ELF_CLASS_AT + 1]
        self.is_64bit = (
            elf_class == bytes((_ELF_CLASS_64,)) if elf_class else self._engine.in_long_mode
        )
        self.registers: tuple[Register, ...] = registers(self.is_64bit)

    # ---- registers -----------------------------------------------------------------------

    def read_register(self, number: int) -> bytes | None:
        """A register's bytes; None if there is no such one."""
        if not 0 <= number < len(self.registers):
            return None
        return self.registers[number].read(self._engine)

    def write_register(self, number: int, data: bytes) -> bool:
        """Sets one; False if that can't be."""
        if not 0 <= number < len(self.registers):
            return False
        return self.registers[number].write(self._engine, data)

    def jump(self, address: int) -> None:
        """The guest goes on at `address`."""
        self._engine.set_reg("rip", address & _ADDRESS_MASKS[self._engine.code_bits == 64])

    # ---- memory --------------------------------------------------------------------------

    def read_memory(self, address: int, size: int) -> bytes:
        """The first of `size` bytes at a virtual address, as far as there is memory."""
        found = bytearray()
        for _, physical, length in self._pieces(address, size):
            found += self.guest.domain.space.read(physical, length)
        return bytes(found)

    def write_memory(self, address: int, data: bytes) -> bool:
        """Stores `data`; nothing and False if there is not memory for all of it."""
        pieces = list(self._pieces(address, len(data)))
        if sum(length for _, _, length in pieces) != len(data):
            return False
        for offset, physical, length in pieces:
            self.guest.domain.space.load(physical, data[offset : offset + length])
        return True

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Offset, physical address and length of each piece, up to the first hole."""
        paging, space = self._engine.paging(), self.guest.domain.space
        mask = _ADDRESS_MASKS[self._engine.in_long_mode]
        offset = 0
        while offset < size:
            at = address + offset & mask
            length = min(size - offset, PAGE_SIZE - at % PAGE_SIZE)
            try:
                physical = paging.translate(space, at)
            except (PageFault, NonCanonical):
                return
            if not space.is_backed(physical, length):
                return
            yield offset, physical, length
            offset += length

    # ---- breakpoints ---------------------------------------------------------------------

    def add_breakpoint(self, kind: str, address: int) -> None:
        """Stops the guest before the instruction there; once more is no second one."""
        if (kind, address) not in self._breakpoints:
            stop = Stop(STOP_BREAKPOINT, kind)
            point = self._vcpu.points.add(address, lambda: self.stop(stop))
            self._breakpoints[kind, address] = point

    def remove_breakpoint(self, kind: str, address: int) -> None:
        """Takes one away, if it is there."""
        point = self._breakpoints.pop((kind, address), None)
        if point is not None:
            self._vcpu.points.remove(point)

    def add_watchpoint(self, kind: str, address: int, size: int) -> bool:
        """Stops the guest after accesses to `size` bytes; False if that is too much or nowhere.

        The memory that is there now is watched: it is the same one when page tables change.
        """
        if (kind, address, size) in self._watchpoints:
            return True
        pieces = list(self._pieces(address, min(size, _WATCHED_MAX + 1)))
        if not 0 < size <= _WATCHED_MAX or sum(length for _, _, length in pieces) != size:
            return False
        stop = Stop(STOP_WATCHPOINT, kind, address)
        self._watchpoints[kind, address, size] = [
            self._vcpu.points.watch(access, physical, length, lambda _: self.stop(stop))
            for access in WATCHES[kind]
            for _, physical, length in pieces
        ]
        return True

    def remove_watchpoint(self, kind: str, address: int, size: int) -> None:
        """Takes one away, if it is there."""
        for point in self._watchpoints.pop((kind, address, size), ()):
            self._vcpu.points.unwatch(point)

    # ---- going on ------------------------------------------------------------------------

    def go_on(self) -> None:
        """Lets the guest run until it comes to a breakpoint."""
        self._vcpu.points.on_step = None

    def step(self, start: int = 0, end: int = 0) -> None:
        """Lets it run for one instruction, and as long as it is from `start` to before `end`."""

        def stepped() -> None:
            if not start <= self._engine.linear_rip < end:
                self.stop(Stop(STOP_STEP))

        self._vcpu.points.on_step = stepped

    def stop(self, stop: Stop) -> None:
        """The guest is where it was to stop; it goes on when this returns."""
        self._vcpu.points.on_step = None
        self._on_stop(stop)

    def let_go(self) -> None:
        """Nobody debugs any more: no breakpoint, no step."""
        self.go_on()
        for kind, address in list(self._breakpoints):
            self.remove_breakpoint(kind, address)
        for kind, address, size in list(self._watchpoints):
            self.remove_watchpoint(kind, address, size)

    def kill(self) -> None:
        """Ends the guest, wherever it is."""
        self.let_go()
        self._vcpu.ended = GuestStop(KILLED, "by the debugger")
        self._vcpu.pause()

    def describe(self) -> list[str]:
        """Where the guest is, in a few lines."""
        engine, vcpu = self._engine, self._vcpu
        rip = engine.reg("rip")
        levels = engine.paging().levels
        paging = f"{levels} levels of page tables" if levels else "no paging"
        return [
            f"guest {self.guest.name}, domain {self.guest.domain.domid}"
            f"{', waits' if vcpu.is_blocked else ''}",
            f"at {rip:#x} {name_at(self.guest, rip, vcpu.clock.now_ns)}".rstrip(),
            f"{engine.code_bits}-bit code, ring {engine.cpl}, {paging}",
            f"{vcpu.clock.now_ns / 1e6:.6f} ms, {vcpu.blocks} blocks of code",
            f"kernels entered: {len(self.guest.chain)}",
        ]
