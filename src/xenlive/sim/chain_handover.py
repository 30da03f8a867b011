"""A kernel of ours leaves: the plan of `kexec/plan.py`, carried out, or made to fail at each step.

    0x4000 … 0x12000 …  0x20000 … 0x2a000     the kernel, its pages in use, the next kernel's file
    └ loads here or there     └ or down there, in the way

**Invariants** (`Mismatch` if broken): a hand-over that fails leaves all of RAM as it was and the
kernel's pages where they were, callbacks undone in reverse; one that succeeds has moved every page
in use to where it says, has the block that the posted format asks for, byte for byte, and has
written nothing into what is handed over.
"""

from __future__ import annotations

import struct
from random import Random

from xenlive.errors import UpdateError
from xenlive.kexec.elf import analyse_kernel
from xenlive.kexec.plan import KexecPlan, plan_kexec
from xenlive.kexec.stages import Stages
from xenlive.memory.address import Frame, PhysAddr
from xenlive.sim.chain_image import ChainImage
from xenlive.sim.chain_maps import Machine
from xenlive.sim.chain_ops import memory_map, pattern
from xenlive.sim.chain_worker import Worker
from xenlive.sim.client import Mismatch
from xenlive.sim.posted import PAGE, build_block

CMDLINE = b"chain=1"
LOAD_PLACES = (0x4000, 0x12000)
FILE_PLACES = (0x3000, 0xC000, 0x20000)
HEAP_FRAMES = range(2, 0x20)
STRANGERS_AT = 0x2A000


class Heap:
    """The pages that a kernel uses besides its own image: it finds them again when they move."""

    def __init__(self, machine: Machine, random: Random, taken: list[tuple[int, int]]) -> None:
        self._machine = machine
        self.pages: dict[int, bytes] = {}
        free = [f for f in HEAP_FRAMES if machine.is_free_ram(f * PAGE, taken)]
        for frame in random.sample(free, min(random.choice((0, 1, 4)), len(free))):
            content = pattern(random)
            machine.memory.write(PhysAddr(frame * PAGE), content)
            self.pages[frame] = content

    def ranges(self) -> list[tuple[int, int]]:
        """Address and size of each page."""
        return [(frame * PAGE, PAGE) for frame in self.pages]

    def moved(self, old: Frame, new: Frame, what: str) -> None:
        """A page has another frame now."""
        if what != "heap" or old not in self.pages:
            raise Mismatch(f"{what} moved from {old:#x}, which is not in use")
        self.pages[new] = self.pages.pop(old)

    def check(self) -> None:
        """All pages are where the kernel thinks they are. Mismatch if not."""
        for frame, content in self.pages.items():
            if self._machine.read(frame * PAGE, PAGE) != content:
                raise Mismatch(f"the kernel's own page {frame:#x} has changed")


class HandOver:
    """One kernel's leaving for `image`; `strangers` are handed over behind the module."""

    def __init__(
        self,
        machine: Machine,
        worker: Worker,
        heap: Heap,
        image: ChainImage,
        strangers: list[tuple[int, int]],
        kernel: list[tuple[int, int]],
    ) -> None:
        self._machine = machine
        self._worker = worker
        self._heap = heap
        self._image = image
        self._strangers = strangers
        self._calls: list[tuple[str, bool]] = []
        self._file_at = self._put_file(kernel)
        self._device = self._find_device()
        self._indices = worker.random.randbytes(8)
        self.plan: KexecPlan

    def _put_file(self, kernel: list[tuple[int, int]]) -> PhysAddr:
        """Where the file is read to: sometimes in the next kernel's way."""
        size = len(self._image.elf)
        taken = [*kernel, *self._heap.ranges(), *self._strangers]
        pages = range(0, size, PAGE)
        places = [
            at
            for at in FILE_PLACES
            if all(self._machine.is_free_ram(at + page, taken) for page in pages)
        ]
        place = PhysAddr(self._worker.random.choice(places))
        self._machine.memory.write(place, self._image.elf)
        return place

    def _find_device(self) -> int | None:
        """The record that gets its ring indices at the last moment."""
        for index, (type_, data) in sorted(self._worker.expected.records.items()):
            if type_ == 1 and len(data) == struct.calcsize("<4I"):
                return index
        return None

    def prepare(self) -> None:
        """Plans it. XenliveError if it can't be done."""
        memory = self._machine.memory
        at, size = self._file_at, len(self._image.elf)
        self.plan = plan_kexec(
            analyse_kernel(memory.view(at, size)),
            memory,
            memory_map(self._machine),
            self._worker.module,
            CMDLINE,
            [(Frame(frame), "heap") for frame in self._heap.pages],
            file_at=at,
            others=self._strangers,
        )

    @property
    def block_range(self) -> tuple[int, int]:
        """Address and size of the next kernel's start info."""
        return self.plan.start_info, len(self.plan.block)

    # -- callbacks -------------------------------------------------------------------------------

    def _save_device(self, undo: bool) -> None:
        self._calls.append(("device", undo))
        if self._device is not None:
            data = self._worker.expected.records[self._device][1]
            new = data if undo else data[:8] + self._indices
            self._worker.module.update_record(self._device, new)

    def _quiet(self, undo: bool) -> None:
        self._calls.append(("timer", undo))

    def _stages(self) -> Stages:
        self._calls = []
        callbacks = [("device", self._save_device), ("timer", self._quiet)]
        return self.plan.stages(callbacks, self._heap.moved)

    # -- failing and succeeding ------------------------------------------------------------------

    def fail_everywhere(self) -> int:
        """Fails at each step in turn; how many those were."""
        names = self._stages().names()
        for name in names:
            before = self._machine.snapshot()
            frames = sorted(self._heap.pages)
            stages = self._stages()
            stages.fail_at = name
            try:
                stages.run()
            except UpdateError as error:
                if error.step != name:
                    raise Mismatch(f"{error.step} failed instead of {name}: {error}") from error
            else:
                raise Mismatch(f"{name} was to fail and did not")
            if self._machine.snapshot() != before or sorted(self._heap.pages) != frames:
                raise Mismatch(f"{name} failed, and RAM is not what it was")
            done = [call for call, undo in self._calls if not undo]
            undone = [call for call, undo in self._calls if undo]
            if undone != done[::-1]:
                raise Mismatch(f"{name} failed: done {done}, undone {undone}")
            self._worker.check()
            self._heap.check()
        return len(names)

    def run(self) -> int:
        """Leaves for good; the address of the next kernel's start info."""
        handed_over = [(self._worker.expected.address, self._worker.expected.size)]
        address = self.plan.start_info
        wanted = build_block(
            address, self._machine.memmap, [*handed_over, *self._strangers], CMDLINE
        )
        if self.plan.block != wanted or address != self._image.block_address:
            raise Mismatch("the next kernel's start info is not what the posted format asks for")
        self._stages().run()
        if self._calls != [("device", False), ("timer", False)]:
            raise Mismatch(f"callbacks were called as {self._calls}")
        if self._device is not None:
            type_, data = self._worker.expected.records[self._device]
            self._worker.expected.records[self._device] = (type_, data[:8] + self._indices)
        self._worker.check()
        self._heap.check()
        self.plan.apply(self._machine.memory)
        return int(address)
