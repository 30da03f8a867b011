"""A domain as the toolstack builds it, and kernels that can and can't be put into it."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator

import pytest
from kexec.elves import Load, kernel
from machine.emulated.guests import World

from xenlive.abi.grant_table import GRANT_ENTRY_V1, GTF_permit_access
from xenlive.errors import ConfigError, ImageError
from xenlive.kexec.start_info import StartInfo, parse_start_info
from xenlive.machine.emulated import acpi
from xenlive.machine.emulated.build import (
    CONSOLE_GFN,
    HIGH_START,
    LOW_END,
    STORE_GFN,
    Loaded,
    Module,
    load_kernel,
    make_domain,
    memory_map,
)
from xenlive.machine.emulated.hypervisor.domain import Domain
from xenlive.machine.emulated.interface import Clock
from xenlive.memory.address import PAGE_SIZE, PhysAddr

MIB = 1 << 20


@pytest.fixture
def domain() -> Iterator[Domain]:
    """A domain of 4 MiB."""
    world = World(1)
    yield world.guests[0].domain
    world.close()


def start_info(domain: Domain, loaded: Loaded) -> StartInfo:
    return parse_start_info(domain.space.memory(), PhysAddr(loaded.start_info))


# ---- the domain ----------------------------------------------------------------------------------


def test_the_memory_map_is_that_of_a_real_guest() -> None:
    # Seen on Xen 4.17; domain_construct_memmap of tools/libs/light/libxl_x86.c
    assert memory_map(64 * MIB) == [
        (0, 64 * MIB, 1),
        (0xFEFF8000, 0x8000, 2),
        (0xFC008000, 64, 3),
        (0xFC000000, 0x1000, 3),
        (0xFC001000, 0x7000, 3),
    ]


def test_memory_that_does_not_fit_below_the_hole_goes_above_4_gib() -> None:
    ranges = memory_map(4 << 30)
    assert ranges[0] == (0, LOW_END, 1)
    assert ranges[-1] == (HIGH_START, (4 << 30) - LOW_END, 1)
    assert sum(size for _, size, kind in ranges if kind == 1) == 4 << 30


@pytest.mark.parametrize("size", [0, MIB - PAGE_SIZE, MIB + 1, (4 << 30) + PAGE_SIZE, -MIB])
def test_sizes_that_can_not_be(size: int) -> None:
    with pytest.raises(ConfigError):
        make_domain(1, size, {}, Clock())


def test_four_gib_cost_what_is_used() -> None:
    domain = make_domain(1, 4 << 30, {}, Clock())
    try:
        top = HIGH_START + (4 << 30) - LOW_END
        domain.space.write(top - 4, b"last")
        assert domain.space.read(top - 4, 8) == b"last\xff\xff\xff\xff"
        assert not domain.space.is_backed(LOW_END - PAGE_SIZE, 11 * PAGE_SIZE)
        blocks = os.fstat(domain.space.fd).st_blocks
        assert blocks * 512 < 1 * MIB
    finally:
        domain.space.close()


def test_pages_ports_and_grants_of_console_and_store(domain: Domain) -> None:
    # libxl__build_pre: ports; xc_dom_gnttab_seed of tools/libs/guest/xg_dom_boot.c: grants
    for ref, gfn in ((0, CONSOLE_GFN), (1, STORE_GFN)):
        page = domain.grants.shared_view()[0]
        entry = GRANT_ENTRY_V1.decode(page, ref * GRANT_ENTRY_V1.size)
        assert entry == {"flags": GTF_permit_access, "domid": 0, "frame": gfn}
        assert bytes(domain.grants_for(0).map(ref)) == bytes(PAGE_SIZE)
    for port in (1, 2):
        channel = domain.events.get(port)
        assert channel is not None
        assert channel.remote_domid == 0


def checked(domain: Domain, at: int, size: int) -> bytes:
    table = domain.space.read(at, size)
    assert sum(table) & 0xFF == 0
    return table


def table_at(domain: Domain, at: int) -> tuple[bytes, bytes]:
    """Signature and body of an ACPI table, whose sum is 0."""
    (size,) = struct.unpack("<I", domain.space.read(at + 4, 4))
    table = checked(domain, at, size)
    return table[:4], table[36:]


def test_acpi_tables_lead_to_the_processor(domain: Domain) -> None:
    # ACPI 5.0, 5.2
    checked(domain, acpi.RSDP_AT, 20)
    root = checked(domain, acpi.RSDP_AT, 36)
    assert (root[:8], root[15]) == (b"RSD PTR ", 2)
    name, entries = table_at(domain, struct.unpack_from("<Q", root, 24)[0])
    assert name == b"XSDT"
    tables = dict(table_at(domain, at) for at in struct.unpack("<2Q", entries))
    assert tables.keys() == {b"FACP", b"APIC"}
    assert struct.unpack("<IIBBBBI", tables[b"APIC"]) == (0xFEE00000, 0, 0, 8, 0, 0, 1)
    fixed = tables[b"FACP"]
    (flags,) = struct.unpack_from("<I", fixed, 112 - 36)
    assert flags == 1 << 20  # no fixed hardware at all
    (near,) = struct.unpack_from("<I", fixed, 40 - 36)
    (far,) = struct.unpack_from("<Q", fixed, 140 - 36)
    assert near == far
    assert table_at(domain, far) == (b"DSDT", b"")
    last = acpi.build_acpi()[-2]
    assert last[0] + len(last[1]) <= acpi.TABLES_AT + acpi.TABLES_BYTES


# ---- a kernel ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
def test_a_kernel_lies_where_its_file_says(domain: Domain, bits: int) -> None:
    domain.space.write(0x101000, b"\xee" * 0x4000)
    loaded = load_kernel(domain, kernel(bits=bits), "console=hvc0 quiet")
    assert loaded.entry == 0x100000
    assert domain.space.read(0x100000, 5) == b"\xf4code"
    assert domain.space.read(0x101000, 0x3210) == (b"data" * 300).ljust(0x3210, b"\0")
    info = start_info(domain, loaded)
    assert (info.cmdline, info.modules, info.version) == ("console=hvc0 quiet", [], 1)
    assert info.rsdp_paddr == acpi.RSDP_AT
    assert [(r.addr, r.size, r.type) for r in info.memmap.ranges()] == sorted(domain.e820)
    # Nothing lies below the kernel's end but the kernel.
    assert loaded.start_info == 0x105000


def test_modules_come_with_their_command_lines(domain: Domain) -> None:
    modules = [Module(b"first" * 2000, "one two"), Module(b"second"), Module(b"", "empty")]
    loaded = load_kernel(domain, kernel(), "root=/dev/ram", modules)
    info = start_info(domain, loaded)
    memory = domain.space.memory()
    found = []
    for paddr, size, line in info.modules:
        assert paddr % PAGE_SIZE == 0
        text = memory.read(PhysAddr(line), 16).partition(b"\0")[0].decode() if line else ""
        found.append(Module(memory.read(PhysAddr(paddr), size), text))
    assert found == modules
    places = [*loaded.taken]
    assert places == sorted(places)
    assert all(a + s <= b for (a, s), (b, _) in itertools.pairwise(places))


def test_what_was_handed_over_stays_and_is_named(domain: Domain) -> None:
    kept = 0x105000
    domain.space.write(kept, b"KexecMem" * 512)
    handed = [(kept, PAGE_SIZE, "kept")]
    loaded = load_kernel(domain, kernel(), "", [Module(b"new")], handed)
    assert domain.space.read(kept, PAGE_SIZE) == b"KexecMem" * 512
    info = start_info(domain, loaded)
    assert [module[:2] for module in info.modules] == [(0x106000, 3), (kept, PAGE_SIZE)]


def refused(domain: Domain, image: bytes, *args: object) -> str:
    """The code of the refusal; nothing was stored."""
    before = domain.space.read(0, 4 * MIB)
    with pytest.raises(ImageError) as error:
        load_kernel(domain, image, *args)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert domain.space.read(0, 4 * MIB) == before
    return error.value.code


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (b"#!/bin/sh", "elf-magic"),
        (kernel(notes_in="neither"), "elf-no-entry"),
        (kernel([Load(4 * MIB - 8, b"x" * 16)]), "kernel-too-large"),
        (kernel([Load(0x100000, b"code", memsz=4 * MIB)]), "kernel-too-large"),
        (kernel([Load(0xFEFF8000, b"special")]), "kernel-too-large"),
        (kernel([Load(0xFC000000, b"acpi")]), "kernel-too-large"),
    ],
)
def test_files_that_are_no_kernel_for_this_domain(domain: Domain, image: bytes, code: str) -> None:
    assert refused(domain, image) == code


def test_modules_and_blocks_that_do_not_fit(domain: Domain) -> None:
    assert refused(domain, kernel(), "", [Module(bytes(4 * MIB))]) == "kernel-too-large"
    nearly = kernel([Load(0x100000, b"code", memsz=3 * MIB)])
    assert refused(domain, nearly) == "kernel-too-large"


def test_a_kernel_over_what_is_handed_over(domain: Domain) -> None:
    assert refused(domain, kernel(), "", [], [(0x104000, PAGE_SIZE, "")]) == "kernel-overlaps"


def test_a_kernel_where_the_guest_gave_memory_back(domain: Domain) -> None:
    domain.space.unhook(0x102)
    assert refused(domain, kernel()) == "kernel-too-large"


def test_a_command_line_that_is_too_long(domain: Domain) -> None:
    with pytest.raises(ConfigError):
        load_kernel(domain, kernel(), "x" * 4096)
    assert domain.space.read(0x100000, 5) == bytes(5)
