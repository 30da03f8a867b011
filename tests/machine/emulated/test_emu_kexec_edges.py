"""Kernels at other places, files that can't be entered, much memory, and what poison finds."""

from __future__ import annotations

import os

import pytest
from kernels.handover.lab import MEMORY_BYTES, POISON, Labs, labs
from kernels.handover.script_kernel import script_kernel
from kexec.elves import Elf, Load

from xenlive.errors import ImageError
from xenlive.kexec.elf import analyse_kernel
from xenlive.machine.emulated.build import Module
from xenlive.machine.emulated.stop import SHUTDOWN_CRASH, SHUTDOWN_POWEROFF
from xenlive.memory.address import PAGE_SIZE

__all__ = ["labs"]  # the fixture
pytestmark = pytest.mark.peer

ENOEXEC, EBUSY, EINVAL, ENOSPC = -8, -16, -22, -28
MODULE_AT = MEMORY_BYTES - 18 * PAGE_SIZE


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("bases", [(0x100000, 0x300000), (0x400000, 0x40000), (0x40000, 0x110000)])
def test_the_next_kernel_lies_elsewhere(labs: Labs, bits: int, bases: tuple[int, int]) -> None:
    """Above this one, below it, and over the files that it was given, which move."""
    lab = labs(*(script_kernel(bits, base) for base in (*bases, bases[0])))
    lab.boot("make 18; add 7 aa; kexec 0", "make 1; read 0 1; kexec 1", "make 1; read 0 1")
    told = lab.run_to_poweroff()
    assert [kernel.replies[-1].data for kernel in told[1:]] == [b"\xaa", b"\xaa"]
    for entered, base in zip(lab.entered, (*bases, bases[0]), strict=True):
        assert base <= entered.address < base + 0x100000
    # Nothing that is handed over lies where the next kernel does.
    for entered, kernel in zip(lab.entered[1:], lab.kernels[1:], strict=True):
        end = analyse_kernel(kernel).end
        assert all(address >= end for address, _, _ in entered.info.modules)


@pytest.mark.parametrize("bits", [64, 32])
def test_what_can_not_be_entered_is_refused_and_the_kernel_goes_on(labs: Labs, bits: int) -> None:
    good = script_kernel(bits)
    cut, text = good[:5000], b"no kernel at all" * 10
    noteless = good.replace(b"Xen\0", b"Nex\0")
    for data in (cut, text, noteless):
        with pytest.raises(ImageError):
            analyse_kernel(data)
    outside = script_kernel(bits, MEMORY_BYTES)
    over = script_kernel(bits, MODULE_AT - PAGE_SIZE)
    bad = [Module(data) for data in (text, noteless, cut, outside, over)]
    lab = labs(good, good)
    # Module 0 is the good one.
    lab.boot(
        "make 18; add 7 bb; kexec 1; kexec 2; kexec 3; kexec 4; kexec 5; kexec 6; kexec 0",
        "make 1; read 0 1",
        modules=bad,
    )
    told = lab.run_to_poweroff()
    results = [reply.result for reply in told[0].replies[2:]]
    assert results == [ENOEXEC, ENOEXEC, ENOEXEC, EBUSY, EBUSY, EINVAL]
    assert told[1].replies[-1].data == b"\xbb"
    # All others are handed on, behind the kexec module.
    assert [size for _, size, _ in lab.entered[1].info.modules] == [
        18 * PAGE_SIZE,
        *(len(module.data) for module in bad),
    ]
    handed = lab.entered[1].info.modules[1:]
    assert [lab.space.read(at, size) for at, size, _ in handed] == [module.data for module in bad]


# mov %ebx, %edi; cpuid; hlt: with interrupts off that is the end.
HALTS = b"\x89\xdf\x0f\xa2\xf4"


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize(("notes_in", "entry_size"), [("program", 4), ("section", 8), ("both", 4)])
def test_files_of_other_makers_are_entered(
    labs: Labs, bits: int, notes_in: str, entry_size: int
) -> None:
    loads = [Load(0x200000, b"data" * 33, memsz=0x5000), Load(0x300000, b"\xcc" * 77 + HALTS)]
    entry = 0x300000 + 77
    next_kernel = Elf(loads, entry, 96 - bits, notes_in=notes_in, entry_size=entry_size).build()
    lab = labs(script_kernel(bits), next_kernel)
    lab.boot("make 4; kexec 0", "")
    assert lab.run().code == SHUTDOWN_POWEROFF
    assert len(lab.entered) == 2
    assert lab.vcpu.engine.reg("rdi") == lab.entered[1].address
    assert lab.space.read(0x200000, 0x5000) == (b"data" * 33).ljust(0x5000, b"\0")


def test_sixteen_actions_are_all_there_are(labs: Labs) -> None:
    """The block is one of them; what was taken for those that fail is given back each time."""
    loads = [Load(0x200000 + n * 0x2000, HALTS, memsz=0x1000) for n in range(8)]
    too_many = Elf(loads, 0x200000).build()
    fits = Elf([*loads[:7], Load(0x20E000, HALTS)], 0x200000).build()
    lab = labs(script_kernel(64), fits)
    lab.boot("make 4;" + "kexec 1;" * 60 + "kexec 0", "", modules=[Module(too_many)])
    assert lab.run().code == SHUTDOWN_POWEROFF
    assert len(lab.entered) == 2
    (told,) = lab.told()
    assert [reply.result for reply in told.replies] == [0] + [ENOSPC] * 60


def test_poison_reaches_what_was_not_handed_over(labs: Labs) -> None:
    """A kernel that lives by luck: it counts on a byte that the one before left somewhere."""
    scripts = ("poke 8388608 90; peek 8388608; kexec 0", "peek 8388608")
    found = []
    for poison in (None, POISON):
        lab = labs(script_kernel(64), script_kernel(64), poison=poison)
        lab.boot(*scripts)
        found.append([reply.result for told in lab.run_to_poweroff() for reply in told.replies])
    assert found == [[0, 90, 90], [0, 90, POISON]]


@pytest.mark.parametrize("bits", [64, 32])
def test_pointers_to_the_buffer_work_by_luck_alone(labs: Labs, bits: int) -> None:
    """What an earlier version of the posted code did: its block was right until memory was used."""
    scripts = ("make 18; add 7 aa; lucky; kexec 0", "make 1; read 0 1")
    lab = labs(script_kernel(bits), script_kernel(bits), poison=None)
    lab.boot(*scripts)
    with pytest.raises(AssertionError, match="is not in the block at"):
        lab.run()

    # With nobody to look and no poison the next kernel gets along; with poison it finds nothing.
    ends = []
    for poison in (None, POISON):
        lab = labs(script_kernel(bits), script_kernel(bits), poison=poison)
        lab.is_strict = False
        lab.boot(*scripts)
        ends.append(lab.run().code)
    assert ends == [SHUTDOWN_POWEROFF, SHUTDOWN_CRASH]
    assert lab.console.splitlines()[-1].startswith("panic: ")


def test_a_chain_is_the_same_each_time(labs: Labs) -> None:
    runs = []
    for _ in range(2):
        lab = labs(script_kernel(64), script_kernel(32))
        lab.boot("make 18; add 7 aa; alloc 0 3; ticks 2; kexec 0", "make 1; ticks 2; alloc 0 2")
        lab.run_to_poweroff()
        runs.append((lab.digest(), lab.clock.now_ns, lab.vcpu.blocks, lab.console))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("bits", [64, 32])
def test_the_module_is_handed_on_below_the_tables_of_four_gib(labs: Labs, bits: int) -> None:
    """RAM ends where the ACPI tables begin; the rest lies above 4 GiB, where no module can be."""
    lab = labs(script_kernel(bits), script_kernel(bits), memory_bytes=4 << 30, poison=None)
    lab.boot("make 18; add 7 cc; alloc 0 17; fill 0 17 204; kexec 0", "make 1; read 0 1; crc 0 17")
    told = lab.run_to_poweroff()
    at = 0xFC000000 - 18 * PAGE_SIZE
    assert told[1].others[0] == f"module {at:x} 12000 handed"
    assert told[1].replies[1].data == b"\xcc"
    assert lab.space.read(at, 17 * PAGE_SIZE) == b"\xcc" * (17 * PAGE_SIZE)
    # Kernels, files and the module take memory of the host, and not much else.
    assert os.fstat(lab.space.fd).st_blocks * 512 < 4 << 20
