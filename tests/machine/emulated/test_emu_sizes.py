"""How much memory a domain may have, where it lies, and what it costs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from kernels.building import build_kernel
from kexec.elves import Load, kernel
from machine.emulated import small_guests

from xenlive.errors import ConfigError
from xenlive.kexec.start_info import parse_start_info
from xenlive.machine.emulated.build import (
    HIGH_START,
    LOW_END,
    Module,
    load_kernel,
    make_domain,
)
from xenlive.machine.emulated.hypervisor.domain import Domain
from xenlive.machine.emulated.interface import Clock
from xenlive.machine.emulated.world import WORLD_ENDED, World
from xenlive.memory.address import PAGE_SIZE, PhysAddr

MIB, GIB = 1 << 20, 1 << 30

#: Writes a byte at the end of RAM and one past it, reads both back and says what it read.
TOUCHES_THE_TOP = small_guests.kernel(
    """
        movl $TOP - 1, %edi
        movb $0x41, (%edi)
        movb $0x42, 1(%edi)
        movb (%edi), %al
        put %al
        movb 1(%edi), %al
        put %al
        kick
        shutdown 0
"""
)


@pytest.fixture
def closing() -> Iterator[list[Domain]]:
    made: list[Domain] = []
    yield made
    for domain in made:
        domain.space.close()


def held_bytes(domain: Domain) -> int:
    """What the domain's memory costs now."""
    return os.fstat(domain.space.fd).st_blocks * 512


def resident_bytes() -> int:
    """What this process has in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "size", [MIB, 3 * MIB, 64 * MIB + PAGE_SIZE, LOW_END - PAGE_SIZE, LOW_END, 4 * GIB - PAGE_SIZE]
)
def test_sizes_that_can_be(size: int, closing: list[Domain]) -> None:
    domain = make_domain(1, size, {}, Clock())
    closing.append(domain)
    ranges = sorted((address, length) for address, length, kind in domain.e820 if kind == 1)
    assert sum(length for _, length in ranges) == size
    for address, length in ranges:
        assert domain.space.is_backed(address, length)
        assert domain.space.lookup((address + length) // PAGE_SIZE) is None or address + length in (
            LOW_END,
        )


def test_what_does_not_fit_below_the_hole_is_above_4_gib(closing: list[Domain]) -> None:
    # domain_construct_memmap of tools/libs/light/libxl_x86.c
    domain = make_domain(1, LOW_END + 5 * PAGE_SIZE, {}, Clock())
    closing.append(domain)
    assert (HIGH_START, 5 * PAGE_SIZE, 1) in domain.e820
    domain.space.write(HIGH_START + 5 * PAGE_SIZE - 2, b"end")
    assert domain.space.read(HIGH_START + 5 * PAGE_SIZE - 2, 3) == b"en\xff"
    loaded = load_kernel(domain, kernel())
    info = parse_start_info(domain.space.memory(), PhysAddr(loaded.start_info))
    assert [(r.addr, r.size, r.type) for r in info.memmap.ranges()] == sorted(domain.e820)


@pytest.mark.parametrize("size", [MIB, 16 * MIB, LOW_END])
def test_the_last_byte_of_ram_is_there_and_the_next_is_not(size: int) -> None:
    source = TOUCHES_THE_TOP.replace("TOP", hex(size))
    elf = build_kernel(source, base=0x10000).read_bytes()
    said = bytearray()
    with World() as world:
        world.add_guest(memory_bytes=size, sink=said.extend).boot(elf)
        assert world.run() == WORLD_ENDED
    # Past the end is a hole, or, right below 4 GiB, the page that tells where ACPI is.
    assert said[:1] == b"A"
    assert said[1:] == b"\xff" if size != LOW_END else b"B"


def test_a_domain_of_4_gib_costs_what_is_used() -> None:
    before = resident_bytes()
    with World() as world:
        guest = world.add_guest(memory_bytes=4 * GIB)
        guest.boot(build_kernel(small_guests.SAYS_HELLO).read_bytes())
        world.run()
        assert held_bytes(guest.domain) < 2 * MIB
        assert resident_bytes() - before < 96 * MIB


def test_a_bss_of_gigabytes_costs_nothing(closing: list[Domain]) -> None:
    domain = make_domain(1, 4 * GIB, {}, Clock())
    closing.append(domain)
    huge = kernel([Load(0x100000, b"\xf4code", memsz=3 * GIB + 5)])
    before = resident_bytes()
    for used in (0x100010, 0x200000, 3 * GIB + 0x100004):
        domain.space.write(used, b"old")
    domain.space.write(3 * GIB + 0x100005, b"beyond")
    load_kernel(domain, huge)
    assert held_bytes(domain) < 2 * MIB
    assert resident_bytes() - before < 64 * MIB
    assert domain.space.read(0x100000, 20) == b"\xf4code".ljust(20, b"\0")
    assert domain.space.read(0x200000, 3) == bytes(3)
    assert domain.space.read(3 * GIB + 0x100004, 1) == b"\0"


def test_bss_is_cleared_where_pages_have_moved(closing: list[Domain]) -> None:
    """Each of its bytes, whichever page is behind it now."""
    domain = make_domain(1, 4 * MIB, {}, Clock())
    closing.append(domain)
    space = domain.space
    for gfn in (0x101, 0x103):
        frame = space.allocate()
        assert frame is not None
        space.place(gfn, frame, "ram")
    space.write(0x100000, b"\xee" * 0x6000)
    load_kernel(domain, kernel([Load(0x100800, b"\xf4code", memsz=0x3900)]))
    assert space.read(0x100800, 0x3900) == b"\xf4code".ljust(0x3900, b"\0")
    assert space.read(0x1007FF, 1) == b"\xee"


@pytest.mark.parametrize("n", [1, 63, 64])
def test_many_modules(n: int, closing: list[Domain]) -> None:
    domain = make_domain(1, 16 * MIB, {}, Clock())
    closing.append(domain)
    modules = [Module(b"%d" % i, f"number {i}" if i % 2 else "") for i in range(n)]
    loaded = load_kernel(domain, kernel(), "", modules)
    info = parse_start_info(domain.space.memory(), PhysAddr(loaded.start_info))
    assert [domain.space.read(paddr, size) for paddr, size, _ in info.modules] == [
        module.data for module in modules
    ]


@pytest.mark.parametrize(
    "size", [0, 1, MIB - PAGE_SIZE, MIB + 1, 4 * GIB + PAGE_SIZE, -MIB, 1 << 64]
)
def test_odd_sizes_leave_no_domain(size: int) -> None:
    with World() as world:
        with pytest.raises(ConfigError) as error:
            world.add_guest(memory_bytes=size)
        assert "\n" not in str(error.value)
        assert world.guests == []
        assert sorted(world.peers) == [0]
        assert not world.toolstack.exists("/local/domain/1")
