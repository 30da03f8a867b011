"""Modules to begin with: real ones, and ones that random operations made.

**Invariants.** Every seed is sound; the same code gives the same seeds.
"""

from __future__ import annotations

from contextlib import suppress
from random import Random

from vectors import minios

from hostile.modulecase import ModuleCase
from xenlive.abi.kexec_module import RECORD_SEALED, SEALED_HEAD, SEALED_SLOT
from xenlive.errors import ImageError, ModuleError, OutOfSpace
from xenlive.kexec.module import KexecModule
from xenlive.kexec.sealed import add_sealed, update_sealed
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.guest import GuestMemory

SIZES = (1, 2, 4, 18, 24, 300, 4000, 4003, 4018, 4019)
MADE_PER_SIZE = 4
OPERATIONS_PER_SEED = 10


def module_seeds() -> list[bytes]:
    """Encoded cases."""
    rng = Random(20250714)
    images = {minios.files()[str(entry["file"])] for entry in minios.entries("module")}
    images |= {minios.host_image("stubdom18"), minios.host_image("empty4")}
    cases = [_of_image(image) for image in sorted(images)]
    cases += [_made(size, rng) for size in SIZES for _ in range(MADE_PER_SIZE)]
    for case in cases:
        case.operations = _operations(rng)
    return [case.encode() for case in cases]


def _of_image(image: bytes) -> ModuleCase:
    page = bytearray(image[-PAGE_SIZE:])
    return ModuleCase(
        len(image), page, contents=image[:PAGE_SIZE] if len(image) > PAGE_SIZE else b""
    )


def _made(n_module_pages: int, rng: Random) -> ModuleCase:
    """A module after random operations."""
    size_bytes = n_module_pages * PAGE_SIZE
    memory = GuestMemory([(0, bytearray(size_bytes))])
    module = KexecModule.create(memory, PhysAddr(0), n_module_pages)
    if n_module_pages > 4 and rng.random() < 0.5:
        module.shrink(2)  # so that the table leaves room for it to grow again
    for _ in range(rng.choice((0, 3, 10, 40))):
        with suppress(ModuleError, OutOfSpace, ImageError):
            _random_step(module, rng)
    return ModuleCase(module.size_bytes, bytearray(memory.read(module.admin_address, PAGE_SIZE)))


def _random_step(module: KexecModule, rng: Random) -> None:
    records = [record.index for record in module.records()] or [0]
    kind = rng.randrange(11)
    if kind < 2:
        size = rng.choice((0, 1, 6, 16, 40, 255))
        module.add_record(rng.choice((1, 1, 2, 7, 200)), rng.randbytes(size))
    elif kind < 4:
        module.alloc_pages(rng.choice(records), rng.choice((1, 1, 2, 17, 100)))
    elif kind == 4 and module.n_pages:
        module.free_pages(rng.randrange(module.n_pages), rng.choice((1, 1, 2)))
    elif kind == 5:
        index = rng.choice(records)
        module.update_record(index, rng.randbytes(module.record(index).size))
    elif kind == 6:
        module.delete_record(rng.choice(records), free_pages=rng.random() < 0.5)
    elif kind == 7:
        module.extend_table(module.n_records + rng.choice((1, 4, 100)))
    elif kind == 8:
        module.compact()
    elif kind == 9:
        add_sealed(module, rng.randrange(4), rng.randbytes(rng.choice((0, 4, 60))))
    elif kind == 10:
        sealed = module.find_record(RECORD_SEALED)
        if sealed is not None:
            size = (module.record(sealed).size - SEALED_HEAD.size) // 2 - SEALED_SLOT.size
            update_sealed(module, sealed, rng.randbytes(size))


def _operations(rng: Random) -> list[tuple[int, int, int, int]]:
    return [random_operation(rng) for _ in range(rng.randrange(OPERATIONS_PER_SEED))]


def random_operation(rng: Random) -> tuple[int, int, int, int]:
    """Four bytes of an operation; small numbers are likely, as records and types are small."""
    a, b, c = (rng.choice((rng.randrange(4), rng.randrange(20), rng.randrange(256))) for _ in "abc")
    return rng.randrange(256), a, b, c
