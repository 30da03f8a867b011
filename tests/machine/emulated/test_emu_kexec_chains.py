"""A in C, B in C, C in C: the module's witness hands memory on by real kexec, and we look at it.

A sequence of random operations is done in Python first, on a module of the same size, and then by
kernels on the emulated processor: a part in the first, a part in the next, and so on. Each
operation's result and the administration page after it must be the same; at each entry the module
must be sound for us, and all else is poisoned (`kernels/handover/lab.py`).
"""

from __future__ import annotations

import zlib
from random import Random

import pytest
from kernels.c_kernels import DEFAULT_BASE
from kernels.handover.lab import MEMORY_BYTES, Labs, labs
from kernels.handover.script_kernel import script_kernel
from kexec.posted.operations import ANY_RESULT, Done, Player, as_ours

from xenlive.kexec.module import KexecModule
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.guest import GuestMemory

__all__ = ["labs"]  # the fixture
pytestmark = pytest.mark.peer

# A command line has at most 4095 bytes.
SCRIPT_BYTES = 3600


def played(seed: str, n_module_pages: int, n: int) -> list[Done]:
    """Random operations on a module of our own, as they are told to the kernels."""
    size_bytes = n_module_pages * PAGE_SIZE
    memory = GuestMemory([(0, bytearray(size_bytes))])
    module = KexecModule.create(memory, PhysAddr(0), n_module_pages)
    player = Player(Random(seed), memory, module)
    player.play(n)
    return player.done


def in_parts(done: list[Done], n: int) -> list[list[Done]]:
    """The first operations in `n` parts of up to 20, as long as command lines let them be."""
    parts: list[list[Done]] = [[] for _ in range(n)]
    left = iter(done)
    step = next(left, None)
    for part in parts:
        room = SCRIPT_BYTES
        while step is not None and len(part) < 20 and len(step.command) < room:
            part.append(step)
            room -= len(step.command) + 1
            step = next(left, None)
    return parts


def script_of(part: list[Done], n_module_pages: int, last: str) -> str:
    """The command line of a kernel that finds or makes the module and does its part."""
    return ";".join([f"make {n_module_pages}", *(done.command for done in part), last])


@pytest.mark.parametrize("n_module_pages", [1, 4, 18])
@pytest.mark.parametrize("bits", [(64, 64, 64), (32, 32, 32), (64, 32, 64), (32, 64, 32)])
def test_three_kernels_do_what_python_does(
    labs: Labs, bits: tuple[int, ...], n_module_pages: int
) -> None:
    parts = in_parts(played(f"{bits} {n_module_pages}", n_module_pages, 60), 3)
    lab = labs(*(script_kernel(width) for width in bits))
    lasts = ["kexec 0", "kexec 1", "ticks 2"]
    lab.boot(*(script_of(p, n_module_pages, end) for p, end in zip(parts, lasts, strict=True)))
    told = lab.run_to_poweroff()

    # The top of RAM, as Mini-OS places it: 18 pages in 16 MiB are at 0xfee000.
    place = (MEMORY_BYTES - n_module_pages * PAGE_SIZE, n_module_pages * PAGE_SIZE)
    assert lab.entered[0].module is None
    for before, entered in zip(parts, lab.entered[1:], strict=False):
        assert entered.module is not None
        assert entered.module[:2] == place
        assert zlib.crc32(entered.module[2]) == before[-1].crc
    for part, width, kernel in zip(parts, bits, told, strict=True):
        assert kernel.first.startswith(f"kernel {width} bit at {DEFAULT_BASE:x},")
        for step, reply in zip(part, kernel.replies[1:], strict=False):
            result = ANY_RESULT if step.result == ANY_RESULT else as_ours(reply.result)
            assert (result, reply.crc) == (step.result, step.crc), step.command
    assert [len(kernel.replies) for kernel in told] == [len(p) + 1 for p in parts[:2]] + [
        len(parts[2]) + 2
    ]
    module = lab.module()
    assert zlib.crc32(lab.space.read(module.admin_address, PAGE_SIZE)) == parts[2][-1].crc
