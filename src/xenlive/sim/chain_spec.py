"""What a chain is: which machine, which kernels one after the other, and what befalls each.

    fault       what befalls a kernel of ours
    stages      its hand-over fails at each step in turn, and then succeeds
    guard       it is asked to load images that reach into the module, and then a good one
    entry       it dies at its first instruction and is loaded again
    die-NAME    it dies in the middle of that operation, and the next kernel is loaded

**Invariants.** A scenario is all there is to a chain: run twice, it is the same chain.
"""

from __future__ import annotations

from dataclasses import dataclass

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
