"""A machine to run small kernels on: a processor, RAM, and a hypervisor that notes what it is told.

Hypercall 1000 reports two numbers, 1001 ends the guest. The rest is what a test makes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernels.building import build_kernel

from xenlive.kexec.elf import analyse_kernel
from xenlive.machine.emulated.interface import Clock, Hypervisor, Processor
from xenlive.machine.emulated.processor.exits import EngineHooks
from xenlive.machine.emulated.processor.vcpu import RUN_HALTED, SPIN_LIMIT, Vcpu
from xenlive.machine.emulated.space import Space
from xenlive.machine.emulated.stop import SHUTDOWN, SHUTDOWN_POWEROFF, GuestStop
from xenlive.memory.address import PAGE_SIZE

REPORT, FINISH = 1000, 1001
START_INFO = 0x9000
RAM_BYTES = 16 << 20


class Note(Hypervisor):
    """Notes reports; events, timers and memory calls are set by the test."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.reports: list[tuple[int, int]] = []
        self.others: list[tuple[int, tuple[int, ...], bool]] = []
        self.upcall = False
        self.vector = 0
        self.timer_ns: int | None = None
        self.timers_fired: list[int] = []

    def hypercall(
        self, processor: Processor, number: int, args: tuple[int, ...], is_64bit: bool
    ) -> int | None:
        if number == REPORT:
            self.reports.append((args[0], args[1]))
            return 0
        if number == FINISH:
            raise GuestStop(SHUTDOWN, "finished", SHUTDOWN_POWEROFF)
        self.others.append((number, args, is_64bit))
        return self.other(processor, number, args)

    def other(self, processor: Processor, number: int, args: tuple[int, ...]) -> int | None:
        """Any other hypercall."""
        return -38

    def pending_upcall(self) -> bool:
        return self.upcall

    def callback_vector(self) -> int:
        return self.vector

    def timer_deadline_ns(self) -> int | None:
        return self.timer_ns

    def timer_fired(self, now_ns: int) -> None:
        self.timers_fired.append(now_ns)
        self.timer_ns = None
        self.upcall = True

    def write_hypercall_page(self, processor: Processor, gfn: int, page: bytes) -> bool:
        if self.space.lookup(gfn) is None:
            return False
        self.space.load(gfn * PAGE_SIZE, page)
        return True

    def vcpu_down(self) -> None:
        raise GuestStop(SHUTDOWN, "halted with interrupts off", SHUTDOWN_POWEROFF)


class Machine:
    """One kernel on one processor."""

    def __init__(
        self,
        kernel: Path,
        *,
        hypervisor: type[Note] = Note,
        devices: EngineHooks | None = None,
        spin_limit: int = SPIN_LIMIT,
        ram_bytes: int = RAM_BYTES,
    ) -> None:
        pages = ram_bytes // PAGE_SIZE
        self.space = Space(1, [(0, pages)], pages)
        self.clock = Clock()
        self.note = hypervisor(self.space)
        self.vcpu = Vcpu(1, self.space, self.note, self.clock, devices, spin_limit)
        self.engine = self.vcpu.engine
        self.load(kernel)

    def load(self, kernel: Path) -> None:
        """Puts a kernel into memory, and the processor at its entry."""
        elf = kernel.read_bytes()
        image = analyse_kernel(elf)
        for segment in image.segments:
            data = elf[segment.offset :][: segment.file_size]
            self.space.load(segment.address, data.ljust(segment.memory_size, b"\0"))
        self.vcpu.enter_pvh(image.entry, START_INFO)

    def run(self, max_blocks: int = 1 << 40) -> str:
        """Runs the guest; time jumps to its timer when it waits for that."""
        while True:
            ended = self.vcpu.run(max_blocks)
            timer_ns = self.vcpu.next_timer_ns()
            if ended != RUN_HALTED or timer_ns is None:
                return ended
            self.clock.advance_to(timer_ns)

    def run_to_end(self) -> GuestStop:
        """Runs the guest until it ends."""
        self.run()
        assert self.vcpu.ended is not None
        return self.vcpu.ended

    def reports(self) -> list[tuple[int, int]]:
        """What the guest reported until it finished."""
        ended = self.run_to_end()
        assert ended.what == "finished", ended
        return self.note.reports

    def memory_hash(self) -> str:
        """A digest of all RAM."""
        digest = hashlib.sha256()
        for frame in range(RAM_BYTES // PAGE_SIZE):
            digest.update(self.space.frame_view(frame))
        return digest.hexdigest()

    def close(self) -> None:
        """Gives everything back."""
        self.engine.close()
        self.space.close()


class Machines:
    """Makes machines from assembly, and closes them after the test."""

    def __init__(self) -> None:
        self._made: list[Machine] = []

    def __call__(self, assembly: str, **how: Any) -> Machine:
        machine = Machine(build_kernel(assembly), **how)
        self._made.append(machine)
        return machine

    def close(self) -> None:
        """Closes all of them."""
        for machine in self._made:
            machine.close()


@pytest.fixture
def machines() -> Iterator[Machines]:
    """Makes machines for one test."""
    made = Machines()
    yield made
    made.close()
