"""A kernel of a chain that knows only the posted format, at work with the code of `posted.py`.

It reads what kernels of ours left, adds its own, and hands on the size it was handed. It can meet
a module whose resize was cut off by a death: to it that is a sound module with little free in it.

**Invariants** (`Mismatch` if broken): it never refuses a module that was handed over, reads each
record's bytes right, and finds each free page free and each owned one owned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.memory.address import PhysAddr
from xenlive.sim.chain_ops import pattern, spoil_seals
from xenlive.sim.client import Mismatch
from xenlive.sim.posted import PAGE, PostedModule, place, read_block
from xenlive.sim.witness import Expected

if TYPE_CHECKING:
    from xenlive.sim.chain import ChainWorld
    from xenlive.sim.chain_spec import KernelSpec

TYPES = (1, 3, 9)


class PostedKernel:
    """One such kernel."""

    def __init__(self, world: ChainWorld, spec: KernelSpec) -> None:
        self._world = world
        self._spec = spec
        self._random = world.random
        self._machine = world.machine

    def run(self) -> None:
        """From its start info to the next kernel's."""
        module = self._boot()
        self._world.settle_for_posted(module.size)
        expected = self._world.truth
        assert expected is not None
        self._read_all(module, expected)
        for _ in range(self._spec.steps):
            self._work(module, expected)
        self._world.check()
        self._world.load([(module.address, module.size)])

    def _boot(self) -> PostedModule:
        world = self._world
        block = read_block(self._machine.memory, world.start_info)
        module = None
        if block.modules:
            module = PostedModule.attach(self._machine.memory, *block.modules[0])
        if module is not None:
            return module
        if world.states() and world.module_is_named():
            raise Mismatch("a kernel that knows the posted format refuses the module")
        taken = [*block.parts, *block.modules, *world.image.touched()]
        address = place(self._machine.memmap, self._spec.pages, taken)
        if address is None:
            raise Mismatch(f"no place for {self._spec.pages} pages")
        world.made(address, self._spec.pages)
        return PostedModule.create(self._machine.memory, address, self._spec.pages)

    def _read_all(self, module: PostedModule, expected: Expected) -> None:
        for index, (type_, data) in expected.records.items():
            if module.find(type_, index) != index:
                raise Mismatch(f"record {index} of type {type_} is not found by its type")
            if index not in expected.seals and module.read(index) != data:
                raise Mismatch(f"record {index} reads {module.read(index)!r}, not {data!r}")

    def _work(self, module: PostedModule, expected: Expected) -> None:
        kind = self._random.choice(("add", "update", "alloc", "alloc", "free"))
        plain = sorted(expected.records.keys() - expected.seals.keys())
        if kind == "add":
            type_, data = self._random.choice(TYPES), self._random.randbytes(16)
            index = module.add(type_, data)
            if index is not None:
                if index in expected.records:
                    raise Mismatch(f"record {index} was free to be taken")
                expected.records[index] = (type_, data)
        elif kind == "update" and plain:
            index = self._random.choice(plain)
            data = self._random.randbytes(len(expected.records[index][1]))
            module.update(index, data)
            expected.records[index] = (expected.records[index][0], data)
        elif kind == "alloc" and plain:
            self._alloc(module, expected, self._random.choice(plain))
        elif kind == "free" and expected.owners and not self._world.resize_in_flight():
            address = self._random.choice(sorted(expected.owners))
            module.free((address - module.address) // PAGE, 1)
            spoil_seals(expected, expected.owners.pop(address))
            expected.contents.pop(address, None)

    def _alloc(self, module: PostedModule, expected: Expected, index: int) -> None:
        n = self._random.choice((1, 2))
        first = module.alloc(index, n)
        for page in range(n if first is not None else 0):
            assert first is not None
            address = module.address + (first + page) * PAGE
            if address in expected.owners:
                raise Mismatch(f"page {address:#x} of {expected.owners[address]} looks free")
            content = pattern(self._random)
            self._machine.memory.write(PhysAddr(address), content)
            expected.owners[address] = index
            expected.contents[address] = content
