"""A world with one guest that shares a directory, and the chain of kernels that it runs.

Every kernel but the first is entered by kexec; all that was not handed to it is poisoned before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from kernels.devices.device_kernel import device_kernel

from xenlive.kexec.elf import analyse_kernel
from xenlive.kexec.find import find_kexec_module
from xenlive.kexec.module import KexecModule
from xenlive.kexec.start_info import parse_start_info
from xenlive.machine.emulated.backends.ninepfs import NinePDevice, Share
from xenlive.machine.emulated.build import Module
from xenlive.machine.emulated.world import WORLD_IDLE, World
from xenlive.memory.address import PAGE_SIZE, PhysAddr

MEMORY_BYTES = 16 << 20
POISON = 0xA5


class Told(NamedTuple):
    """What one kernel said: the results of its commands in order, and all other lines."""

    results: list[int]
    lines: list[str]


class Rig:
    """One guest, its devices, and what its kernels say."""

    def __init__(self, *shares: Share) -> None:
        self.world = World()
        self.said = bytearray()
        self.guest = self.world.add_guest(
            "tester", MEMORY_BYTES, self.said.extend, has_console_io=True
        )
        self.devices = [self.guest.share(share) for share in shares]
        #: Called at the entry of each kernel but the first, with its number, before poisoning.
        self.at_entry: Callable[[int], None] | None = None
        self.entered = 0

    @property
    def device(self) -> NinePDevice:
        """The first one."""
        return self.devices[0]

    def error(self) -> str:
        """What the back end of the first device had to say of its front end."""
        return self.world.toolstack.read(self.device.place.error).decode()

    def run(self, *scripts: str, bits: Sequence[int] = (64,)) -> list[Told]:
        """Runs a chain of kernels, one for each script, to a poweroff by the last of them.

        A script goes to the next with `kexec 0`.
        """
        kernels = [device_kernel(bits[i % len(bits)]) for i in range(len(scripts))]
        later = [Module(k, s) for k, s in zip(kernels[1:], scripts[1:], strict=True)]
        self.guest.boot(kernels[0], scripts[0], later)
        for entry in {analyse_kernel(kernel).entry for kernel in kernels}:
            self.guest.vcpu.points.add(entry, self._on_entry)
        self.go_on()
        assert self.entered == len(scripts), self.said.decode()
        return self.told()

    def go_on(self) -> None:
        """Runs until the guest powers off."""
        if self.world.run() == WORLD_IDLE:
            self.world.give_up()
        stop = self.guest.stop
        assert stop is not None
        assert (stop.kind, stop.code) == ("shutdown", 0), f"{stop}\n{self.said.decode()}"

    def told(self) -> list[Told]:
        """What each kernel said."""
        found: list[Told] = []
        for line in self.said.decode().splitlines():
            if line.startswith("kernel "):
                found.append(Told([], []))
            elif line.startswith("> "):
                found[-1].results.append(int(line.split()[1]))
            elif line not in ("done", "kexec") and not line.startswith("module "):
                found[-1].lines.append(line)
        return found

    def close(self) -> None:
        """Ends the world."""
        self.world.close()

    # ---- entries -------------------------------------------------------------------------

    def _on_entry(self) -> None:
        engine = self.guest.vcpu.engine
        if engine.code_bits != 32 or engine.reg("cr0") != 0x11:
            return
        self.entered += 1
        if self.entered > 1:
            if self.at_entry is not None:
                self.at_entry(self.entered - 1)
            self._poison(engine.reg("rbx"))

    def module(self) -> KexecModule:
        """The kexec module as the kernel that is at its entry finds it."""
        memory = self.guest.domain.space.memory()
        info = parse_start_info(memory, PhysAddr(self.guest.vcpu.engine.reg("rbx")))
        found, reason = find_kexec_module(info, memory)
        assert found is not None, reason
        return found

    def _poison(self, start_info: int) -> None:
        space = self.guest.domain.space
        info = parse_start_info(space.memory(), PhysAddr(start_info))
        kept = sorted([(0, start_info), *info.reserved(), *(m[:2] for m in info.modules)])
        at = 0
        for address, size in [*kept, (MEMORY_BYTES, 0)]:
            if address > at:
                # Within a page of what is kept: the rest of the start info's block.
                first = min(-(-at // PAGE_SIZE) * PAGE_SIZE, address)
                space.load(first, bytes([POISON]) * (address - first))
            at = max(at, address + size)


class Rigs:
    """Makes rigs for one test, each with directories of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self._made: list[Rig] = []

    def __call__(
        self,
        n_shares: int = 1,
        is_read_only: bool = False,
        max_bytes: int = 1 << 20,
        max_files: int = 100,
    ) -> Rig:
        shares = []
        for number in range(n_shares):
            directory = self._tmp_path / f"rig{len(self._made)}-{number}"
            directory.mkdir()
            limits = max_bytes, max_files
            shares.append(Share(str(directory), f"share{number}", is_read_only, *limits))
        self._made.append(Rig(*shares))
        return self._made[-1]

    def close(self) -> None:
        """Closes all of them."""
        for rig in self._made:
            rig.close()


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Rigs]:
    """Makes rigs for one test."""
    made = Rigs(tmp_path)
    yield made
    made.close()
