"""Chains A -> B -> C of kernels that share nothing but a kexec module, and what must come through.

    load ──▶ boot: start info ─▶ module (named, survived, or made) ──▶ work ──▶ hand over ──▶ boot …
                                                                        │ dies: the next one boots
              all RAM that is not handed over is poisoned ◀─────────────┴──────────┘

Three kinds of kernels: `ours` knows everything; `posted` the posted format alone (`posted.py`);
`ignorant` no modules: it names none to the next kernel, and only what it used itself is lost.

A scenario says which machine, what is in the module at first, and for each kernel its kind, how
many module pages it is configured for, and the one fault that befalls it; a seed decides the rest.

**Invariants** (checked after each operation and each boot, `Mismatch` if broken): module, records,
owners and page contents are those of the plain model; the last page stays where it is; a start
info names the module and nothing that was lost; what physically survived is found again; a kernel
whose hand-over fails goes on with all of RAM as it was.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from xenlive.errors import XenliveError
from xenlive.kexec.find import find_kexec_module, find_surviving_module
from xenlive.kexec.module import KexecModule
from xenlive.kexec.start_info import StartInfo, parse_start_info
from xenlive.kexec.verify import verify
from xenlive.memory.address import PhysAddr
from xenlive.sim import chain_ops
from xenlive.sim.chain_handover import CMDLINE, LOAD_PLACES, STRANGERS_AT, HandOver, Heap
from xenlive.sim.chain_image import ChainImage, chain_image
from xenlive.sim.chain_maps import LOW_END, machine
from xenlive.sim.chain_posted import PostedKernel
from xenlive.sim.chain_worker import Worker
from xenlive.sim.client import Mismatch
from xenlive.sim.posted import PAGE, build_block, place, read_block
from xenlive.sim.witness import RESIZE, Expected, check, look, settle

FRESH_RECORDS = 16
DEADLY = (
    *("add", "update", "alloc", "free", "delete", "compact", "extend", "seal", "reseal"),
    *("grow", "shrink"),
)
FAULTS = ("", "stages", "guard", "entry", *(f"die-{name}" for name in DEADLY))


@dataclass
class KernelSpec:
    """One kernel of a chain: `pages` is its CONFIG_KEXEC_MODULE_PAGES, `fault` one of FAULTS.

    `resize`: it brings a module it was handed to that size. `where`: after which part of an
    operation's stores a kernel with a deadly fault dies.
    """

    kind: str
    pages: int
    resize: bool = False
    steps: int = 4
    fault: str = ""
    where: float = 0.5


@dataclass
class Scenario:
    """A chain: the seed, the machine, what the first kernel of ours puts into its module."""

    seed: int
    map: str
    mix: str
    kernels: list[KernelSpec]

    def __str__(self) -> str:
        kernels = " -> ".join(
            f"{k.kind}({k.pages}{' resizes' if k.resize else ''}{' ' + k.fault if k.fault else ''})"
            for k in self.kernels
        )
        return f"{self.map}, {self.mix}, {kernels}"


class ChainWorld:
    """A chain being run; `run` gives what happened in figures."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.random = Random(scenario.seed)
        self.machine = machine(scenario.map, max(spec.pages for spec in scenario.kernels))
        self.figures: Counter[str] = Counter(chains=1)
        #: What the module must hold; None while there is none.
        self.truth: Expected | None = None
        #: A kernel died: the states before and after what it was doing, and if that is piecewise.
        self.torn: tuple[Expected, Expected, bool] | None = None
        self.image = self.new_image()
        self.start_info = 0
        self.named: list[tuple[int, int]] = []
        self.strangers = self._make_strangers()
        self._filled = False
        self._position = -1

    # -- running ---------------------------------------------------------------------------------

    def run(self) -> Counter[str]:
        """Runs all kernels of the scenario, and the witness over what the last one leaves."""
        self.load([])
        for position, spec in enumerate(self.scenario.kernels):
            self._position = position
            self.figures[f"kernels {spec.kind}"] += 1
            if spec.kind == "ours":
                self._run_ours(spec)
            elif spec.kind == "posted":
                PostedKernel(self, spec).run()
            else:
                self._run_ignorant()
        self._check_end()
        return self.figures

    def load(self, modules: list[tuple[int, int]], keep_all: bool = False) -> None:
        """Puts the next kernel and a start info that names `modules` into RAM, as a boot loader.

        All RAM that is not handed over is poisoned first, unless `keep_all`.
        """
        self.image = self.new_image()
        if not keep_all:
            self.machine.poison([*modules, *self.strangers])
        for address, data in self.image.placed:
            self.machine.memory.write(PhysAddr(address), data)
        named = [*modules, *self.strangers]
        if self._next_kind() == "ours" and self.random.random() < 0.5:
            named.reverse()  # only ours looks for its module behind strangers
        block = build_block(self.image.block_address, self.machine.memmap, named, CMDLINE)
        self.machine.memory.write(PhysAddr(self.image.block_address), block)
        self.entered(self.image.block_address, named)

    def new_image(self) -> ChainImage:
        """A kernel that can be loaded."""
        return chain_image(self.random, self.random.choice(LOAD_PLACES))

    def _next_kind(self) -> str:
        kernels = self.scenario.kernels
        return kernels[self._position + 1].kind if self._position + 1 < len(kernels) else ""

    def _make_strangers(self) -> list[tuple[int, int]]:
        """At times a module that is none of ours, even if it begins its last page as ours do."""
        if self.random.random() < 0.7:
            return []
        stranger = (STRANGERS_AT, self.random.choice((PAGE, 2 * PAGE, 0x1234)))
        last_page = (sum(stranger) - 1) // PAGE * PAGE
        self._strange = b"KexecMem" + bytes([0x77]) * 40
        if self.random.random() < 0.5:
            self._strange = bytes([0x77]) * 48
        self.machine.memory.write(PhysAddr(last_page), self._strange)
        return [stranger]

    def entered(self, start_info: int, named: list[tuple[int, int]]) -> None:
        """The next kernel is in RAM; its start info lies there and names these modules."""
        self.start_info = start_info
        self.named = named

    def states(self) -> list[Expected]:
        """What the module may hold: one state, or two after a death."""
        if self.torn is not None:
            return list(self.torn[:2])
        return [] if self.truth is None else [self.truth]

    def module_is_named(self) -> bool:
        """Whether the start info names a module of ours."""
        return any(module not in self.strangers for module in self.named)

    def check(self) -> None:
        """The witness looks, unless a journal waits for a kernel that knows it."""
        if self.truth is not None and not self.resize_in_flight():
            check(self.machine.read, self.truth)

    # -- ours ------------------------------------------------------------------------------------

    def _run_ours(self, spec: KernelSpec) -> None:
        info = self._read_start_info(spec)
        kernel = [*info.reserved(), *self.image.touched()]
        for module in self.named:
            if module not in self.strangers:
                kernel.remove(module)
        worker = self._boot(spec, info, kernel)
        heap = Heap(self.machine, self.random, [*kernel, *self._module_range(worker)])
        taken = [*kernel, *heap.ranges()]
        if not self._filled:
            self._fill(worker)
        if spec.resize:
            worker.resize(spec.pages - worker.expected.n_pages - 1, taken)
        for _ in range(spec.steps):
            worker.work(taken)
        worker.stamp_new()
        worker.check()
        heap.check()
        if not (spec.fault.startswith("die-") and self._die(spec, worker, taken)):
            self._leave(spec, worker, heap, kernel)
        self.figures.update(worker.figures)

    @staticmethod
    def _module_range(worker: Worker) -> list[tuple[int, int]]:
        return [(worker.expected.address, worker.expected.size)]

    def _read_start_info(self, spec: KernelSpec) -> StartInfo:
        if spec.fault == "entry" and not self._is_survivor():
            # It dies at its first instruction; whoever loads it again hands over the same.
            self.load([module for module in self.named if module not in self.strangers])
            self.figures["deaths"] += 1
        info = parse_start_info(self.machine.memory, PhysAddr(self.start_info))
        self._compare_start_info(info)
        return info

    def _is_survivor(self) -> bool:
        return bool(self.states()) and not self.module_is_named()

    def _boot(self, spec: KernelSpec, info: StartInfo, kernel: list[tuple[int, int]]) -> Worker:
        self._verify_what_is_there()
        module, why = find_kexec_module(info, self.machine.memory)
        if module is None and why and self.module_is_named():
            raise Mismatch(f"a sound module was refused: {why}")
        if module is None:
            module = find_surviving_module(self.machine.memory, info.memmap, kernel)
            self.figures["survivors"] += module is not None
        if module is None:
            module = self._create(spec, info, kernel)
        elif not self.states():
            raise Mismatch(f"a module at {module.address:#x} where none can be")
        elif self.torn is not None:
            self._settle()
        assert self.truth is not None
        worker = Worker(self.machine, module, self.truth, self.random)
        worker.check()
        return worker

    def _settle(self) -> None:
        assert self.torn is not None
        self.truth = settle(self.machine.read, *self.torn)
        self.torn = None

    def settle_for_posted(self, size: int) -> None:
        """A kernel that can't finish a resize has booted: the module has the size it was given."""
        if self.torn is None:
            return
        if not self.resize_in_flight():
            self._settle()
            return
        (self.truth,) = [state for state in self.torn[:2] if state.size == size]
        self.truth.tidy = False
        self.truth.n_records = look(self.machine.read, self.truth.admin_address).n_records
        self.torn = None

    def _create(
        self, spec: KernelSpec, info: StartInfo, taken: list[tuple[int, int]]
    ) -> KexecModule:
        if self.states():
            raise Mismatch(f"the module at {self.states()[0].address:#x} was not found")
        address = info.memmap.place_module(spec.pages, taken)
        wanted = place(self.machine.memmap, spec.pages, taken)
        if address != wanted:
            raise Mismatch(f"a new module goes to {address:#x}, not {wanted}")
        self.made(address, spec.pages)
        return KexecModule.create(self.machine.memory, address, spec.pages)

    def made(self, address: int, module_pages: int) -> None:
        """A kernel has made a fresh module."""
        admin = address + (module_pages - 1) * PAGE
        self.truth = Expected(address, admin, FRESH_RECORDS)
        self.torn = None
        self.figures["modules made"] += 1

    def _compare_start_info(self, info: StartInfo) -> None:
        block = read_block(self.machine.memory, self.start_info)
        ranges = [(int(r.addr), r.size, r.type) for r in info.memmap.ranges()]
        modules = [(address, size) for address, size, _ in info.modules]
        if ranges != block.memmap or modules != block.modules or modules != self.named:
            raise Mismatch(f"a start info names {modules}, handed over were {self.named}")

    def _verify_what_is_there(self) -> None:
        """Whatever happened to the last kernel, the module it left is sound."""
        for state in self.states():
            for size in {state.size, *(size for _, size in self.named[:1])}:
                page = self.machine.read(state.admin_address, PAGE)
                if size == self._size_of(page) and (problems := verify(page, size)):
                    raise Mismatch(f"what a kernel left is not sound: {problems[0]}")

    @staticmethod
    def _size_of(page: bytes) -> int:
        return (int.from_bytes(page[8:10], "little") + 1) * PAGE

    def _fill(self, worker: Worker) -> None:
        self._filled = True
        if worker.expected.records:
            return  # a kernel before it has been at work
        for operation in chain_ops.fill(
            self.scenario.mix, self.random, worker.expected.n_pages, self.machine.memory
        ):
            if operation.index is None or operation.index in worker.expected.records:
                worker.perform(operation)
        worker.stamp_new()

    # -- dying -----------------------------------------------------------------------------------

    def _die(self, spec: KernelSpec, worker: Worker, taken: list[tuple[int, int]]) -> bool:
        operation = worker.reach(spec.fault.removeprefix("die-"), taken)
        if operation is None or not worker.die(operation, spec.where):
            self.figures["deaths that could not be"] += 1
            return False
        assert worker.torn is not None
        self.torn = worker.torn
        self.truth = None
        before, after, _ = self.torn
        size = self._size_of(self.machine.read(before.admin_address, PAGE))
        if self.resize_in_flight() and self._next_kind() == "ours":
            size = self.random.choice((before.size, after.size))
        address = before.admin_address + PAGE - size
        low = min(before.address, after.address)
        self.machine.poison([(low, before.admin_address + PAGE - low), *self.strangers])
        self.load([(address, size)], keep_all=True)
        return True

    def resize_in_flight(self) -> bool:
        """Whether the journal of a resize is in the module."""
        return any(
            type_ == RESIZE
            for state in self.states()
            for type_, _ in look(self.machine.read, state.admin_address).records.values()
        )

    # -- leaving ---------------------------------------------------------------------------------

    def _leave(
        self, spec: KernelSpec, worker: Worker, heap: Heap, kernel: list[tuple[int, int]]
    ) -> None:
        if spec.fault == "guard":
            self._run_into_guard(worker, heap, kernel)
        image = self.new_image()
        hand_over = HandOver(self.machine, worker, heap, image, self.strangers, kernel)
        hand_over.prepare()
        if spec.fault == "stages":
            self.figures["stages undone"] += hand_over.fail_everywhere()
        start_info = hand_over.run()
        self.truth = worker.expected
        modules = [*self._module_range(worker), *self.strangers]
        self.machine.poison([*modules, *image.touched(), hand_over.block_range])
        for address, data in image.placed:
            if self.machine.read(address, len(data)) != data:
                raise Mismatch(f"the next kernel's segment at {address:#x} is not in place")
        self.image = image
        self.entered(start_info, modules)
        self.check()

    def _run_into_guard(self, worker: Worker, heap: Heap, kernel: list[tuple[int, int]]) -> None:
        """An image whose end, or whose block, would lie in the module is refused."""
        low = worker.expected.address
        if self.scenario.map == "above-4g":
            return  # the module lies where no image of a believable size reaches
        for end in (low + 1, low - 8, worker.expected.admin_address + PAGE // 2):
            image = chain_image(self.random, LOAD_PLACES[1], end=max(end, LOW_END))
            hand_over = HandOver(self.machine, worker, heap, image, self.strangers, kernel)
            before = self.machine.snapshot()
            try:
                hand_over.prepare()
                hand_over.run()
            except XenliveError:
                self.figures["guarded"] += 1
            else:
                raise Mismatch(f"an image that ends at {end:#x} was let into the module")
            if self.machine.snapshot() != before:
                raise Mismatch("a refused image left something in RAM")
        worker.check()

    # -- ignorant --------------------------------------------------------------------------------

    def _run_ignorant(self) -> None:
        self.strangers = []
        for _ in range(self.random.choice((0, 3, 12))):
            base, data = self.random.choice(self.machine.regions)
            page = base + self.random.randrange(len(data)) // PAGE * PAGE
            self._use_unknowingly(-(-page // PAGE) * PAGE, base + len(data))
        self.load([], keep_all=True)

    def _use_unknowingly(self, page: int, region_end: int) -> None:
        inside = page + PAGE <= region_end
        kernel_end = self.image.block_address + PAGE
        if not inside or page < kernel_end:
            return
        self.machine.poison_run(page, PAGE)
        for state in self.states():
            state.contents.pop(page, None)
            if page in state.owners:
                chain_ops.spoil_seals(state, state.owners[page])
        if any(state.admin_address == page for state in self.states()):
            self.truth = None
            self.torn = None
            self.figures["modules lost"] += 1

    def _check_end(self) -> None:
        """An attach of ours at the very end, so that nothing is left undone, and the witness."""
        if self.states():
            state = self.states()[0]
            size = self._size_of(self.machine.read(state.admin_address, PAGE))
            address = PhysAddr(state.admin_address + PAGE - size)
            KexecModule.attach(self.machine.memory, address, size).release()
        if self.torn is not None:
            self._settle()
        self.check()
        for start, length in self.strangers:
            last_page = (start + length - 1) // PAGE * PAGE
            if self.machine.read(last_page, len(self._strange)) != self._strange:
                raise Mismatch("a stranger's module has changed")


__all__ = ["FAULTS", "ChainImage", "ChainWorld", "KernelSpec", "Scenario"]
