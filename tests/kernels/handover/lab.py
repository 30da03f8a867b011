"""Where chains of kernels are watched: each one is stopped at its entry and looked at.

    kernel A ── kexec ──▶ entry of B: processor as a PVH kernel expects it? start info and module
                                       sound? ── all that was not handed over is poisoned ──▶ B ...

An entry is known by a breakpoint at the image's own, with the processor in 32-bit code: nothing of
the kernel has run yet.

**Invariants.** What is kept of memory at an entry is exact to the byte: the image's segments, the
start info block, which is one run of bytes with all that it points to in it, and the modules. What
a kernel answered is looked at by the
tests, what it was entered with by `Lab`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from xenlive.kexec.elf import KernelImage, analyse_kernel
from xenlive.kexec.find import find_kexec_module
from xenlive.kexec.module import KexecModule
from xenlive.kexec.start_info import StartInfo, parse_start_info
from xenlive.kexec.verify import verify
from xenlive.machine.emulated.build import Loaded, Module, load_kernel, make_domain
from xenlive.machine.emulated.hypervisor.domain import Domain
from xenlive.machine.emulated.interface import Clock
from xenlive.machine.emulated.processor.vcpu import RUN_HALTED, Vcpu
from xenlive.machine.emulated.stop import GuestStop
from xenlive.memory.address import PAGE_SIZE, PhysAddr, round_up

MEMORY_BYTES = 16 << 20
POISON = 0xA5
BLOCK_ALIGN = 8
_FLAT = {"cs": 0x00C09B00, "ds": 0x00C09300, "es": 0x00C09300, "ss": 0x00C09300}


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
        self.clock = Clock()
        peers: dict[int, Domain] = {}
        Domain.host(peers, self.clock)
        self.domain = make_domain(1, memory_bytes, peers, self.clock)
        self.domain.has_console_io = True
        self.space = self.domain.space
        self.memory = self.space.memory()
        self.vcpu = Vcpu(1, self.space, self.domain, self.clock)
        self.entered: list[Entered] = []
        #: Whether entries are looked at.
        self.is_watching = True
        #: Whether a block that points out of itself fails the test here, and not by its effects.
        self.is_strict = True
        self._images = [analyse_kernel(kernel) for kernel in kernels]
        self._poison = poison
        self._stop_at = 0
        self._runs = list(self.space.runs())
        for entry in {image.entry for image in self._images}:
            self.vcpu.points.add(entry, self._on_entry)

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
        self.vcpu.engine.close()
        self.space.close()

    # ---- entries -------------------------------------------------------------------------

    def _on_entry(self) -> None:
        if not self.is_watching or len(self.entered) == len(self._images):
            return
        image, engine = self._images[len(self.entered)], self.vcpu.engine
        if engine.linear_rip == image.entry and engine.code_bits == 32:
            self._check_processor()
            self.entered.append(self._look(image, engine.reg("rbx")))
            if self._poison is not None:
                self._poison_all_but(self.entered[-1].kept)
            if self._stop_at and len(self.entered) > self._stop_at:
                raise StoppedAtEntry

    def _check_processor(self) -> None:
        """docs/misc/pvh.pandoc: 32 bit, flat, cr0 with PE alone, cr4 nothing, no IF, TF, VM."""
        engine = self.vcpu.engine
        assert (engine.code_bits, engine.cpl) == (32, 0)
        assert (engine.reg("cr0"), engine.reg("cr4")) == (0x11, 0)
        assert not engine.reg("efer") & 0x500
        assert not engine.eflags & 0x20300
        for name, flags in _FLAT.items():
            segment = engine.segment(name)
            found = (segment.base, segment.limit, segment.flags & 0x00F0FF00)
            assert found == (0, 0xFFFFFFFF, flags), name

    def _look(self, image: KernelImage, address: int) -> Entered:
        # What is behind each frame, RAM or nothing, is as it was when the domain was made.
        assert list(self.space.runs()) == self._runs
        info = parse_start_info(self.memory, PhysAddr(address))
        module, reason = find_kexec_module(info, self.memory)
        assert reason == ""
        kept = [*image.touched(), self._block(info, address)]
        kept += [(paddr, size) for paddr, size, _ in info.modules]
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

    def _block(self, info: StartInfo, address: int) -> tuple[int, int]:
        """Address and size of the block: no pointer in it leads out of it, but for modules."""
        parts = [part for part in info.reserved() if part not in [m[:2] for m in info.modules]]
        for _, _, cmdline in info.modules:
            if cmdline:
                line, _, _ = self.space.read(cmdline, PAGE_SIZE).partition(b"\0")
                parts.append((cmdline, len(line) + 1))
        end = address
        for at, size in sorted(parts):
            if end <= at < end + BLOCK_ALIGN:
                end = at + size
            else:
                assert not self.is_strict, f"{at:#x} is not in the block at {address:#x}"
        return address, end - address

    def _poison_all_but(self, kept: list[tuple[int, int]]) -> None:
        for start, size, kind in self.domain.e820:
            at, end = start, start + size
            for keep, length in [*kept, (end, 0)] if kind == 1 else []:
                if keep > at:
                    self.space.load(at, bytes([self._poison or 0]) * (min(keep, end) - at))
                at = max(at, keep + length)

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
