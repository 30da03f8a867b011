"""Which chains there are: one from each seed, and the matrix of cases that have a name.

A case is six words, `18,growing,resize,hole,9pfs,die-grow`: the first kernel's module pages, what
the second is configured for in comparison, whether it resizes what it was handed, the machine, what
is in the module, and the fault that befalls the second kernel. Two more kernels follow, so that
somebody meets what it left.

**Invariants.** A case's name is all there is to it: its seed is made from it. `spread` covers every
pair of choices of two different words.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import gcd
from random import Random

from xenlive.sim.chain_choice import MIXES
from xenlive.sim.chain_maps import MAPS
from xenlive.sim.chain_spec import FAULTS, KernelSpec, Scenario

SIZES = (1, 2, 18, 24, 4000)
CHANGES = ("equal", "growing", "shrinking")
KEEP, RESIZE = "keep", "resize"
NO_FAULT = "none"
AXES: tuple[tuple[str, ...], ...] = (
    tuple(str(size) for size in SIZES),
    CHANGES,
    (KEEP, RESIZE),
    MAPS,
    MIXES,
    tuple(fault or NO_FAULT for fault in FAULTS),
)

LARGEST = 4019
#: Who follows the kernel with the fault; chosen by the case's name.
FOLLOWERS = (
    ("ours", "ours"),
    ("posted", "ours"),
    ("ignorant", "ours"),
    ("posted", "posted"),
    ("ours", "posted"),
)


@dataclass(frozen=True)
class Case:
    """One case of the matrix, by its words."""

    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """As the command line has it."""
        return ",".join(self.words)

    @classmethod
    def named(cls, name: str) -> Case:
        """The case of that name; ValueError if there is none."""
        words = tuple(name.split(","))
        if len(words) != len(AXES):
            raise ValueError(f"a case has {len(AXES)} words: {','.join(a[0] for a in AXES)}")
        for word, axis in zip(words, AXES, strict=True):
            if word not in axis:
                raise ValueError(f"{word!r} is none of {', '.join(axis)}")
        return cls(words)

    def scenario(self) -> Scenario:
        """The chain of this case."""
        size, change, resizes, map_name, mix, fault = self.words
        seed = zlib.crc32(self.name.encode())
        first = int(size)
        second = {"equal": first, "growing": first + 6, "shrinking": max(1, first - 5)}[change]
        random = Random(seed)
        deadly = KernelSpec(
            *("ours", second, resizes == RESIZE, 2, fault if fault != NO_FAULT else ""),
            where=random.choice((0.0, random.random(), random.random(), 1.0)),
        )
        after = [KernelSpec(kind, first, True, 2) for kind in random.choice(FOLLOWERS)]
        return Scenario(seed, map_name, mix, [KernelSpec("ours", first, steps=2), deadly, *after])


def matrix() -> list[Case]:
    """All cases, in order."""
    return [Case(words) for words in product(*AXES)]


def spread(step: int = 37) -> list[Case]:
    """About one in `step` of all cases, spread so that each pair of choices is among them."""
    cases = matrix()
    assert gcd(step, len(cases)) == 1
    return cases[::step]


def pairs(words: tuple[str, ...]) -> Iterator[tuple[int, str, int, str]]:
    """Each pair of a case's choices."""
    for i, one in enumerate(words):
        for j, other in enumerate(words[:i]):
            yield i, one, j, other


def from_seed(seed: int) -> Scenario:
    """The chain of a seed: two to six kernels of all kinds, each perhaps with a fault."""
    random = Random(seed)
    sizes: tuple[int, ...] = (1, 2, 3, 17, 18, 18, 24, 40)
    if random.random() < 0.03:
        sizes = (3990, 4000, 4003, 4004, 4018, LARGEST)
    kernels = []
    for _ in range(random.randint(2, 6)):
        kind = random.choice(("ours", "ours", "ours", "posted", "ignorant"))
        fault = random.choice(FAULTS) if kind == "ours" else ""
        kernels.append(
            KernelSpec(
                *(kind, random.choice(sizes), random.random() < 0.5, random.randint(0, 8), fault),
                where=random.choice((0.0, random.random(), random.random(), 1.0)),
            )
        )
    return Scenario(seed, random.choice(MAPS), random.choice(MIXES), kernels)
