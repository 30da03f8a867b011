"""Where chains of kernels are watched: each one is stopped at its entry and looked at.

    kernel A ── kexec ──▶ entry of B: processor as a PVH kernel expects it? start info and module
                                       sound? ── all that was not handed over is poisoned ──▶ B ...

An entry is known as `lens/entries.py` knows it, and what is poisoned is `lens/handover.py`'s.

**Invariants.** What is kept of memory at an entry is exact to the byte: the image's segments, the
start info block, which is one run of bytes with all that it points to in it, and the modules. What
a kernel answered is looked at by the tests, what it was entered with by `Lab`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from xenlive.kexec.elf import KernelImage
from xenlive.kexec.find import find_kexec_module
from xenlive.kexec.module import KexecModule
from xenlive.kexec.start_info import StartInfo, parse_start_info
from xenlive.kexec.verify import verify
from xenlive.machine.emulated.build import Loaded, Module, load_kernel
from xenlive.machine.emulated.lens.entries import Entries, Entry
from xenlive.machine.emulated.lens.handover import block_of, processor_problems
from xenlive.machine.emulated.lens.poison import poison_all_but
from xenlive.machine.emulated.processor.vcpu import RUN_HALTED
from xenlive.machine.emulated.stop import GuestStop
from xenlive.machine.emulated.world import World
from xenlive.memory.address import PAGE_SIZE, PhysAddr, round_up

MEMORY_BYTES = 16 << 20
POISON = 0xA5
BLOCK_ALIGN = 8


class Entered(NamedTuple):
    """What a kernel was entered with; `module` is address, size and the last page's bytes."""

    address: int
    info: StartInfo
    module: tuple[int, int, bytes] | None
    kept: list[tuple[int, int]]


class Reply(NamedTuple):
    """A command's answer: the result, the CRC of the administration page, and what was read."""

    result: int
    crc: int
    data: bytes


class Told(NamedTuple):
    """What one kernel said: its first line, its answers, and the other lines."""

    first: str
    replies: list[Reply]
    others: list[str]


class StoppedAtEntry(Exception):
    """The kernel that was waited for is at its entry."""


class Lab:
    """A domain of `memory_bytes`, and a chain of kernels to come, each an ELF file."""

    def __init__(
        self, *kernels: bytes, memory_bytes: int = MEMORY_BYTES, poison: int | None = POISON
    ) -> None:
        self.kernels = kernels
        self._world = World()
        self.guest = self._world.add_guest(memory_bytes=memory_bytes, has_console_io=True)
        self.clock, self.domain, self.vcpu = self._world.clock, self.guest.domain, self.guest.vcpu
        self.space = self.domain.space
        self.memory = self.space.memory()
        self.entered: list[Entered] = []
        #: Whether entries are looked at.
        self.is_watching = True
        #: Whether a block that points out of itself fails the test here, and not by its effects.
        self.is_strict = True
        self._poison = poison
        self._stop_at = 0
        self._runs = list(self.space.runs())
        entries = Entries(self.guest)
        for kernel in kernels:
            entries.know(kernel)
        entries.on_entry.append(self._on_entry)

    # ---- running -------------------------------------------------------------------------

    def boot(self, *scripts: str, modules: Sequence[Module] = ()) -> Loaded:
        """Loads the first kernel; the others are its modules, a script being each one's line."""
        later = [Module(k, s) for k, s in zip(self.kernels[1:], scripts[1:], strict=True)]
        loaded = load_kernel(self.domain, self.kernels[0], scripts[0], [*later, *modules])
        self.vcpu.enter_pvh(loaded.entry, loaded.start_info)
        return loaded

    def enter(self, entry: int, start_info: int) -> None:
        """Enters what was put into memory by somebody else."""
        self.vcpu.enter_pvh(entry, start_info)

    def run_to_entry(self, n: int) -> Entered:
        """Runs until kernel `n` of the chain, counted from 0, is at its entry: it won't start.

        Memory is as it was handed over, all else poisoned.
        """
        self._stop_at = n
        with pytest.raises(StoppedAtEntry):
            self.run()
        self._stop_at = 0
        return self.entered[-1]

    def run(self) -> GuestStop:
        """Runs until the domain ends."""
        while self.vcpu.run() == RUN_HALTED:
            deadline_ns = self.domain.timer_deadline_ns()
            assert deadline_ns is not None, "waits for ever"
            self.clock.advance_to(deadline_ns)
        assert self.vcpu.ended is not None
        return self.vcpu.ended

    def run_to_poweroff(self) -> list[Told]:
        """Runs the chain; each kernel of it was entered, the last one powered off."""
        ended = self.run()
        assert (ended.kind, ended.code) == ("shutdown", 0), f"{ended}\n{self.console}"
        assert len(self.entered) == len(self.kernels), self.console
        return self.told()

    @property
    def console(self) -> str:
        """All that was said."""
        return self.domain.console_io.decode()

    def told(self) -> list[Told]:
        """What each kernel said."""
        found: list[Told] = []
        for line in self.console.splitlines():
            if line.startswith("kernel "):
                found.append(Told(line, [], []))
            elif line.startswith("> "):
                result, crc, *data = line[2:].split()
                found[-1].replies.append(Reply(int(result), int(crc), bytes.fromhex("".join(data))))
            else:
                found[-1].others.append(line)
        return found

    def digest(self) -> str:
        """A digest of all RAM."""
        address, size, _ = self.domain.e820[0]
        return hashlib.sha256(self.space.read(address, size)).hexdigest()

    def close(self) -> None:
        """Gives processor and memory back."""
        self._world.close()

    # ---- entries -------------------------------------------------------------------------

    def _on_entry(self, entry: Entry) -> None:
        if not self.is_watching or len(self.entered) == len(self.kernels):
            return
        assert processor_problems(self.guest) == []
        assert entry.known.elf == self.kernels[len(self.entered)]
        assert entry.known.image is not None
        self.entered.append(self._look(entry.known.image, entry))
        if self._poison is not None:
            poison_all_but(self.domain, self.entered[-1].kept, self._poison)
        if self._stop_at and len(self.entered) > self._stop_at:
            raise StoppedAtEntry

    def _look(self, image: KernelImage, entry: Entry) -> Entered:
        # What is behind each frame, RAM or nothing, is as it was when the domain was made.
        assert list(self.space.runs()) == self._runs
        address = entry.start_info
        info = parse_start_info(self.memory, PhysAddr(address))
        module, reason = find_kexec_module(info, self.memory)
        assert reason == ""
        block, others = block_of(self.guest, info, address)
        assert not (self.is_strict and others), f"{others} is not in the block at {address:#x}"
        kept = [*image.touched(), block, *((paddr, size) for paddr, size, _ in info.modules)]
        if self.entered:  # by kexec, and not by who built the domain
            assert address == round_up(image.end, BLOCK_ALIGN)
            before = self.entered[-1].info
            assert info.memmap == before.memmap.for_next_kernel()
            assert info.rsdp_paddr == before.rsdp_paddr
        found = None
        if module is not None:
            page = self.space.read(module.admin_address, PAGE_SIZE)
            assert verify(page, module.size_bytes) == []
            found = (int(module.address), module.size_bytes, page)
            module.release()
        return Entered(address, info, found, sorted(kept))

    def module(self) -> KexecModule:
        """The module that the last kernel was entered with, as it is now."""
        place = self.entered[-1].module
        assert place is not None
        return KexecModule.attach(self.memory, PhysAddr(place[0]), place[1])


class Labs:
    """Makes labs for a test, and closes them after it."""

    def __init__(self) -> None:
        self._made: list[Lab] = []

    def __call__(
        self, *kernels: bytes, memory_bytes: int = MEMORY_BYTES, poison: int | None = POISON
    ) -> Lab:
        self._made.append(Lab(*kernels, memory_bytes=memory_bytes, poison=poison))
        return self._made[-1]

    def close(self) -> None:
        """Closes all of them."""
        for lab in self._made:
            lab.close()


@pytest.fixture
def labs() -> Iterator[Labs]:
    """Makes labs for one test."""
    made = Labs()
    yield made
    made.close()
