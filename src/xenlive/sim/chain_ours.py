"""A kernel of ours in a chain: from its start info, through its work, to the next kernel or death.

    start info ──▶ module ──▶ what the first one puts in, a resize, operations ──▶ hand over │ die
                   named, survived or made

**Invariants** (`Mismatch` if broken): the module that is found is the one that is there, whole;
none is found where none can be; a new one lies where a plain search from the top says; what a dying
kernel left is sound to `verify`, also if the kernel that puts it in order dies as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.kexec_module import FRESH_RECORDS, fresh_recs_off
from xenlive.errors import BadAddress, XenliveError
from xenlive.kexec import recover
from xenlive.kexec.find import find_kexec_module, find_surviving_module
from xenlive.kexec.module import KexecModule
from xenlive.kexec.start_info import StartInfo, parse_start_info
from xenlive.kexec.verify import verify
from xenlive.memory.address import PhysAddr
from xenlive.sim import chain_choice
from xenlive.sim.chain_handover import LOAD_PLACES, HandOver, Heap
from xenlive.sim.chain_image import chain_image
from xenlive.sim.chain_worker import Worker
from xenlive.sim.client import Mismatch
from xenlive.sim.mortal import Died, MortalPage
from xenlive.sim.posted import PAGE, place, read_block
from xenlive.sim.witness import size_of

if TYPE_CHECKING:
    from xenlive.sim.chain import ChainWorld
    from xenlive.sim.chain_spec import KernelSpec


def _is_any(module: KexecModule) -> bool:
    """A chain's RAM is all its own: what is sound there is the module, be it empty."""
    return True


class OursKernel:
    """One such kernel."""

    def __init__(self, world: ChainWorld, spec: KernelSpec) -> None:
        self._world = world
        self._spec = spec
        self._machine = world.machine
        self._random = world.random

    def run(self) -> None:
        """From its start info to the next kernel's, or to its death."""
        info = self._read_start_info()
        kernel = [*info.reserved(), *self._world.image.touched()]
        for module in self._world.named:
            if module not in self._world.strangers:
                kernel.remove(module)
        worker = self._boot(info, kernel)
        heap = Heap(self._machine, self._random, [*kernel, *self._module_range(worker)])
        taken = [*kernel, *heap.ranges()]
        if not self._world.filled:
            self._fill(worker)
        if self._spec.resize:
            worker.resize(self._spec.pages - worker.expected.n_pages - 1, taken)
        for _ in range(self._spec.steps):
            worker.work(taken)
        worker.stamp_new()
        worker.check()
        heap.check()
        if not (self._spec.fault.startswith("die-") and self._die(worker, taken)):
            self._leave(worker, heap, kernel)
        self._world.figures.update(worker.figures)

    @staticmethod
    def _module_range(worker: Worker) -> list[tuple[int, int]]:
        return [(worker.expected.address, worker.expected.size)]

    def _read_start_info(self) -> StartInfo:
        if self._spec.fault == "entry" and not self._is_survivor():
            # It dies at its first instruction; whoever loads it again hands over the same.
            self._world.load(
                [module for module in self._world.named if module not in self._world.strangers]
            )
            self._world.figures["deaths"] += 1
        info = parse_start_info(self._machine.memory, PhysAddr(self._world.start_info))
        self._compare_start_info(info)
        return info

    def _is_survivor(self) -> bool:
        return bool(self._world.states()) and not self._world.module_is_named()

    def _boot(self, info: StartInfo, kernel: list[tuple[int, int]]) -> Worker:
        self._verify_what_is_there()
        self._die_while_settling()
        module, why = find_kexec_module(info, self._machine.memory)
        if module is None and why and self._world.module_is_named():
            raise Mismatch(f"a sound module was refused: {why}")
        if module is None:
            module = find_surviving_module(self._machine.memory, info.memmap, kernel, None, _is_any)
            self._world.figures["survivors"] += module is not None
        if module is None:
            module = self._create(info, kernel)
        elif not self._world.states():
            raise Mismatch(f"a module at {module.address:#x} where none can be")
        elif self._world.torn is not None:
            self._world.settle()
        assert self._world.truth is not None
        worker = Worker(self._machine, module, self._world.truth, self._random)
        worker.check()
        return worker

    def _die_while_settling(self) -> None:
        """At times a kernel dies while it puts in order what the one before it left."""
        if self._world.torn is None or self._random.random() < 0.5:
            return
        stores = self._random.choice((0, 1, 2, 5, 20, 100))
        for address, size in self._world.named:
            if (address, size) not in self._world.strangers:
                admin = PhysAddr(address + size - PAGE)
                view = self._machine.memory.view(admin, PAGE)
                try:
                    recover.settle(MortalPage(view, stores), size)
                except Died:
                    self._world.figures["deaths while settling"] += 1
                self._verify_what_is_there()

    def _create(self, info: StartInfo, taken: list[tuple[int, int]]) -> KexecModule:
        if self._world.states():
            raise Mismatch(f"the module at {self._world.states()[0].address:#x} was not found")
        address = info.memmap.place_module(self._spec.pages, taken)
        wanted = place(self._machine.memmap, self._spec.pages, taken)
        if address != wanted:
            raise Mismatch(f"a new module goes to {address:#x}, not {wanted}")
        self._die_while_creating(int(address), info, taken)
        self._world.made(address, self._spec.pages)
        return KexecModule.create(self._machine.memory, address, self._spec.pages)

    def _die_while_creating(
        self, address: int, info: StartInfo, taken: list[tuple[int, int]]
    ) -> None:
        """At times a kernel dies before its new module is whole: then nobody must find one."""
        if self._random.random() < 0.7:
            return
        n_pages = self._spec.pages - 1
        view = self._machine.memory.view(PhysAddr(address + n_pages * PAGE), PAGE)
        # All stores but the last: two of eight bytes, and a byte each for the rest of the page.
        stores = self._random.choice((0, 1, 2, self._random.randrange(PAGE - 8), PAGE - 7))
        try:
            MortalPage(view, stores).format(n_pages, FRESH_RECORDS, fresh_recs_off(n_pages))
        except Died:
            self._world.figures["deaths while creating"] += 1
        memory = self._machine.memory
        if find_surviving_module(memory, info.memmap, taken, None, _is_any) is not None:
            raise Mismatch("a module was found that nobody has finished making")

    def _compare_start_info(self, info: StartInfo) -> None:
        block = read_block(self._machine.memory, self._world.start_info)
        ranges = [(int(r.addr), r.size, r.type) for r in info.memmap.ranges()]
        modules = [(address, size) for address, size, _ in info.modules]
        if ranges != block.memmap or modules != block.modules or modules != self._world.named:
            raise Mismatch(f"a start info names {modules}, handed over were {self._world.named}")

    def _verify_what_is_there(self) -> None:
        """Whatever happened to the last kernel, the module it left is sound."""
        for state in self._world.states():
            for size in {state.size, *(size for _, size in self._world.named[:1])}:
                page = self._machine.read(state.admin_address, PAGE)
                if size == size_of(page) and (problems := verify(page, size)):
                    raise Mismatch(f"what a kernel left is not sound: {problems[0]}")

    def _fill(self, worker: Worker) -> None:
        self._world.filled = True
        if worker.expected.records:
            return  # a kernel before it has been at work
        for operation in chain_choice.fill(
            self._world.scenario.mix, self._random, worker.expected.n_pages, self._machine.memory
        ):
            if operation.index is None or operation.index in worker.expected.records:
                worker.perform(operation)
        worker.stamp_new()

    # -- dying -----------------------------------------------------------------------------------

    def _die(self, worker: Worker, taken: list[tuple[int, int]]) -> bool:
        operation = worker.reach(self._spec.fault.removeprefix("die-"), taken)
        if operation is None or not worker.die(operation, self._spec.where):
            self._world.figures["deaths that could not be"] += 1
            return False
        assert worker.torn is not None
        self._world.torn = worker.torn
        self._world.truth = None
        before, after, _ = self._world.torn
        size = size_of(self._machine.read(before.admin_address, PAGE))
        if self._world.resize_in_flight() and self._world.next_kind() == "ours":
            size = self._random.choice((before.size, after.size))
        address = before.admin_address + PAGE - size
        low = min(before.address, after.address)
        self._machine.poison([(low, before.admin_address + PAGE - low), *self._world.strangers])
        self._world.load([(address, size)], keep_all=True)
        return True

    # -- leaving ---------------------------------------------------------------------------------

    def _leave(self, worker: Worker, heap: Heap, kernel: list[tuple[int, int]]) -> None:
        if self._spec.fault == "guard":
            self._run_into_guard(worker, heap, kernel)
        image = self._world.new_image()
        hand_over = HandOver(self._machine, worker, heap, image, self._world.strangers, kernel)
        hand_over.prepare()
        if self._spec.fault == "stages":
            self._world.figures["stages undone"] += hand_over.fail_everywhere()
        start_info = hand_over.run()
        self._world.truth = worker.expected
        modules = [*self._module_range(worker), *self._world.strangers]
        self._machine.poison([*modules, *image.touched(), hand_over.block_range])
        for address, data in image.placed:
            if self._machine.read(address, len(data)) != data:
                raise Mismatch(f"the next kernel's segment at {address:#x} is not in place")
        self._world.image = image
        self._world.entered(start_info, modules)
        self._world.check()

    def _run_into_guard(self, worker: Worker, heap: Heap, kernel: list[tuple[int, int]]) -> None:
        """An image whose end, or whose block, would lie in the module is refused."""
        low = worker.expected.address
        ends = [worker.expected.admin_address + PAGE // 2]
        if self._machine.is_free_ram(low - PAGE, []):
            ends += [low + 1, low - 8]
        for end in ends:
            image = chain_image(self._random, LOAD_PLACES[1], end)
            hand_over = HandOver(self._machine, worker, heap, image, self._world.strangers, kernel)
            before = self._machine.snapshot()
            try:
                hand_over.prepare()
                hand_over.run()
            except XenliveError as error:
                if not isinstance(error, BadAddress) or "handed-over" not in str(error):
                    raise Mismatch(f"an image that ends at {end:#x}: {error}") from error
                self._world.figures["guarded"] += 1
            else:
                raise Mismatch(f"an image that ends at {end:#x} was let into the module")
            if self._machine.snapshot() != before:
                raise Mismatch("a refused image left something in RAM")
        worker.check()
