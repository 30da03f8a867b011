"""Which operations a seed chooses, and what the first kernel of a chain puts into its module.

**Invariants.** Nothing is chosen by looking at the module object: choices follow from the model and
the random numbers, so that a seed means the same whatever the product does.
"""

from __future__ import annotations

import struct
from random import Random

from xenlive.memory.guest import GuestMemory
from xenlive.sim.chain_ops import (
    Operation,
    add,
    alloc,
    compact,
    delete,
    extend,
    free,
    has_room_for,
    reseal,
    seal,
    update,
)
from xenlive.sim.posted import PAGE
from xenlive.sim.witness import Expected

#: Types that the chain's records have; 1 is the 9pfs device's.
PLAIN_TYPES = (1, 2, 7, 200)
KINDS = (
    *("add", "add", "update", "alloc", "alloc", "free", "delete"),
    *("compact", "extend", "seal", "reseal"),
)
MIXES = ("none", "9pfs", "many", "big", "full", "sealed")


def choose(random: Random, expected: Expected, memory: GuestMemory) -> Operation | None:
    """The next operation of a seed, resizes left out; None: it is not to be had right now."""
    kind = random.choice(KINDS)
    indexes = sorted(expected.records)
    plain = [index for index in indexes if index not in expected.seals]
    if kind == "add":
        size = random.choice((0, 1, 4, 16, 16, 40, 255))
        return add(random.choice(PLAIN_TYPES), random.randbytes(size))
    if kind == "update" and plain:
        index = random.choice(plain)
        return update(index, random.randbytes(len(expected.records[index][1])))
    if kind == "alloc" and indexes:
        return alloc(random.choice(indexes), random.choice((1, 1, 2, 3, 17)))
    if kind == "free" and expected.owners:
        first = (random.choice(sorted(expected.owners)) - expected.address) // PAGE
        run = 1
        while run < 3 and expected.address + (first + run) * PAGE in expected.owners:
            run += 1
        return free(first, random.randint(1, run))
    if kind == "delete" and indexes and random.random() < 0.7:
        return delete(random.choice(indexes))
    if kind == "compact":
        return compact()
    if kind == "extend":
        wanted = min(255, expected.n_records + random.choice((0, 1, 2, 9, 40)))
        return extend(wanted, has_room_for(expected, wanted, expected.n_pages))
    return _choose_sealed(random, expected, memory, kind)


def _choose_sealed(
    random: Random, expected: Expected, memory: GuestMemory, kind: str
) -> Operation | None:
    if kind == "seal":
        covered = memory if random.random() < 0.5 else None
        payload = random.randbytes(random.choice((0, 4, 16, 60)))
        return seal(random.randrange(1 << 16), payload, covered)
    if kind == "reseal" and expected.seals:
        index = random.choice(sorted(expected.seals))
        known = expected.seals[index]
        payload = random.randbytes(len(known.payload))
        return reseal(index, payload, memory if known.covers_pages else None)
    return None


def fill(mix: str, random: Random, n_pages: int, memory: GuestMemory) -> list[Operation]:
    """What the first kernel of a chain puts into its module, as far as it fits."""
    large = [alloc(0, n_pages // 4)] if n_pages > 100 and mix != "none" else []
    return [*_mix(mix, random, n_pages, memory), *large]


def _mix(mix: str, random: Random, n_pages: int, memory: GuestMemory) -> list[Operation]:
    if mix == "9pfs":
        # An interface page and a ring of the highest order that fits, up to Xen's 16 pages.
        ring = max((1 << order for order in range(5) if 1 << order < n_pages), default=0)
        device = add(1, struct.pack("<4I", 2047, 4, 0, 0))
        return [device, *([alloc(0, 1), alloc(0, ring)] if ring else [])]
    if mix == "many":
        records = [add(random.choice(PLAIN_TYPES), random.randbytes(i % 5)) for i in range(12)]
        return records + [alloc(index, 1 + index % 2) for index in range(0, 12, 3)]
    if mix == "big":
        return [add(7, random.randbytes(255)) for _ in range(6)] + [alloc(2, 1)]
    if mix == "full":
        return [add(1 + index, random.randbytes(4)) for index in range(17)] + [alloc(15, 1)]
    if mix == "sealed":
        seals = [seal(5, random.randbytes(20), None), seal(6, random.randbytes(8), memory)]
        return [*seals, alloc(1, 2), reseal(1, random.randbytes(8), memory), add(2, b"plain")]
    return []
