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
from random import Random

from xenlive.kexec.module import KexecModule
from xenlive.memory.address import PhysAddr
from xenlive.sim import chain_ops, witness
from xenlive.sim.chain_handover import CMDLINE, LOAD_PLACES, STRANGERS_AT
from xenlive.sim.chain_image import ChainImage, chain_image
from xenlive.sim.chain_maps import machine
from xenlive.sim.chain_ours import OursKernel
from xenlive.sim.chain_posted import PostedKernel
from xenlive.sim.chain_spec import Scenario
from xenlive.sim.client import Mismatch
from xenlive.sim.posted import PAGE, build_block
from xenlive.sim.witness import RESIZE, Expected, check, look, size_of

FRESH_RECORDS = 16


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
        #: A kernel of ours was there and has put the mix into its module.
        self.filled = False
        self._position = -1

    # -- running ---------------------------------------------------------------------------------

    def run(self) -> Counter[str]:
        """Runs all kernels of the scenario, and the witness over what the last one leaves."""
        self.load([], keep_all=True)
        for position, spec in enumerate(self.scenario.kernels):
            self._position = position
            self.figures[f"kernels {spec.kind}"] += 1
            if spec.kind == "ours":
                OursKernel(self, spec).run()
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
        if self.next_kind() == "ours" and self.random.random() < 0.5:
            named.reverse()  # only ours looks for its module behind strangers
        block = build_block(self.image.block_address, self.machine.memmap, named, CMDLINE)
        self.machine.memory.write(PhysAddr(self.image.block_address), block)
        self.entered(self.image.block_address, named)

    def new_image(self) -> ChainImage:
        """A kernel that can be loaded."""
        return chain_image(self.random, self.random.choice(LOAD_PLACES))

    def next_kind(self) -> str:
        """The kind of the kernel after this one."""
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

    def settle(self) -> None:
        """The next kernel has put in order what a dead one left: which of the states is it?"""
        assert self.torn is not None
        self.truth = witness.settle(self.machine.read, *self.torn)
        self.torn = None

    def settle_for_posted(self, size: int) -> None:
        """A kernel that can't finish a resize has booted: the module has the size it was given."""
        if self.torn is None:
            return
        if not self.resize_in_flight():
            self.settle()
            return
        (self.truth,) = [state for state in self.torn[:2] if state.size == size]
        self.truth.tidy = False
        self.truth.n_records = look(self.machine.read, self.truth.admin_address).n_records
        self.torn = None

    def made(self, address: int, module_pages: int) -> None:
        """A kernel has made a fresh module."""
        admin = address + (module_pages - 1) * PAGE
        self.truth = Expected(address, admin, FRESH_RECORDS)
        self.torn = None
        self.figures["modules made"] += 1

    def resize_in_flight(self) -> bool:
        """Whether the journal of a resize is in the module."""
        return any(
            type_ == RESIZE
            for state in self.states()
            for type_, _ in look(self.machine.read, state.admin_address).records.values()
        )

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
            size = size_of(self.machine.read(state.admin_address, PAGE))
            address = PhysAddr(state.admin_address + PAGE - size)
            KexecModule.attach(self.machine.memory, address, size).release()
        if self.torn is not None:
            self.settle()
        self.check()
        for start, length in self.strangers:
            last_page = (start + length - 1) // PAGE * PAGE
            if self.machine.read(last_page, len(self._strange)) != self._strange:
                raise Mismatch("a stranger's module has changed")
