"""Modules of a real Mini-OS: attached, checked, and made again by the operations it printed."""

from __future__ import annotations

import re

import pytest
from vectors import minios

from xenlive.abi.kexec_module import PAGE_FREE, RECORD_9PFS
from xenlive.abi.xen9pfs import RECORD_9PFS as LAYOUT_9PFS
from xenlive.errors import ModuleError
from xenlive.kexec import KexecModule
from xenlive.kexec.verify import verify
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.guest import GuestMemory

MODULES = minios.entries("module")
ADD = re.compile(r"ADD type (\d+) size (\d+) -> (\d+)")
ALLOC = re.compile(r"ALLOC rec (\d+) n (\d+) -> ([0-9a-f]+) \(page (\d+)\)")
FIND = re.compile(r"FIND\((\d+),(\d+)\) -> (-?\d+)")
UPDATE = re.compile(r"UPD rec (\d+) -> 0")
HEADER = re.compile(r"MOD start (\w+) desc (\w+) n_pages (\d+) n_records (\d+) recs_off (\d+)")
RECORD = re.compile(r"MOD rec (\d+): offset (\d+) type (\d+) size (\d+)")
OWNERS = "MOD pg2rec:"
END = re.compile(r"MOD records start \d+ end (\d+)")
STEPS = [
    ("mix-18-64", "boot0-boot", "boot0-prekexec"),
    ("mix-18-64", "boot1-boot", "boot1-prekexec"),
    ("small-4-64", "boot0-boot", "boot0-prekexec"),
    ("small-4-64", "boot1-boot", "boot1-prekexec"),
    ("rec-1-64", "boot0-boot", "boot0-prekexec"),
    ("rec-1-64", "boot1-boot", "boot1-prekexec"),
    ("e820-hole", "boot0-boot", "boot0-prekexec"),
    ("e820-hole", "boot1-boot", "boot1-prekexec"),
]


def attach(image: bytes, address: int) -> tuple[GuestMemory, KexecModule]:
    memory = GuestMemory([(address, bytearray(image))])
    return memory, KexecModule.attach(memory, PhysAddr(address), len(image))


def admin_page(memory: GuestMemory, module: KexecModule) -> bytes:
    return memory.read(module.admin_address, PAGE_SIZE)


@pytest.mark.parametrize("entry", MODULES, ids=lambda entry: entry["file"])
def test_real_modules_are_sound_and_say_what_the_guest_printed(entry: dict[str, object]) -> None:
    image = minios.files()[str(entry["file"])]
    address = entry["address"]
    assert isinstance(address, int)
    assert verify(image[-PAGE_SIZE:], len(image)) == []
    _, module = attach(image, address)
    printed = entry.get("guest_printed")
    if not isinstance(printed, list):
        return
    for line in printed:
        if found := HEADER.match(line):
            start, desc = int(found[1], 16), int(found[2], 16)
            assert (module.address, module.admin_address) == (start, desc)
            numbers = [module.n_pages, module.n_records, module.recs_off]
            assert numbers == [int(word) for word in found.groups()[2:]]
        elif line.startswith(OWNERS):
            assert module.owners() == bytes(map(int, line.removeprefix(OWNERS).split()))
        elif found := END.match(line):
            assert PAGE_SIZE - module.free_record_bytes() == int(found[1])
    in_use = [list(map(int, found.groups())) for line in printed if (found := RECORD.match(line))]
    assert [[r.index, r.offset, r.type, r.size] for r in module.records()] == in_use


@pytest.mark.parametrize(("run", "before", "after"), STEPS)
def test_the_same_operations_give_the_same_page(run: str, before: str, after: str) -> None:
    """Contents are taken from the later image; frees were not printed and follow from it too."""
    entry = minios.entry(run, after, "module")
    memory, module = attach(minios.module_image(run, before), entry["address"])
    _, target = attach(minios.module_image(run, after), entry["address"])
    operations = 0
    for line in entry["guest_printed"]:
        operations += replay(line, module, target)
    for page, owner in enumerate(target.owners()):
        if owner == PAGE_FREE and module.owners()[page] != PAGE_FREE:
            module.free_pages(page, 1)
    assert operations > 0
    assert admin_page(memory, module) == minios.module_image(run, after)[-PAGE_SIZE:]


def replay(line: str, module: KexecModule, target: KexecModule) -> int:
    """Does what a printed line tells of, and checks its result; 1 if it was an operation."""
    if found := ADD.match(line):
        type_, size, index = map(int, found.groups())
        assert target.record(index).size == size
        assert module.add_record(type_, target.read_record(index)) == index
    elif found := ALLOC.match(line):
        record, n, page = int(found[1]), int(found[2]), int(found[4])
        free_what_the_guest_had_freed(module, target, n, page)
        assert module.alloc_pages(record, n) == page
        assert module.page_address(page) == int(found[3], 16)
    elif found := UPDATE.match(line):
        index = int(found[1])
        size = module.record(index).size
        module.update_record(index, bytes(size))
        module.update_record(index, target.read_record(index))
    elif found := FIND.match(line):
        start, type_, index = map(int, found.groups())
        if type_ == 0:
            with pytest.raises(ModuleError):
                module.find_record(type_, start)
        else:
            assert module.find_record(type_, start) == (index if index >= 0 else None)
    else:
        return 0
    return 1


def free_what_the_guest_had_freed(
    module: KexecModule, target: KexecModule, n: int, page: int
) -> None:
    """Pages that a printed allocation took although somebody had them before."""
    owners = module.owners()
    if PAGE_FREE not in owners[page : page + n] and owners[page] != target.owners()[page]:
        module.free_pages(page, n)


@pytest.mark.parametrize("boot", [0, 1])
def test_between_two_kernels_only_the_ring_indices_change(boot: int) -> None:
    run = "p9-18-64"
    entry = minios.entry(run, f"boot{boot}-prekexec", "module")
    memory, module = attach(minios.module_image(run, f"boot{boot}-prekexec"), entry["address"])
    (device,) = [line for line in entry["guest_printed"] if line.startswith("P9 dev:")]
    found = re.search(r"prod_pvt_out (\d+) cons_pvt_in (\d+)", device)
    assert found is not None
    index = module.find_record(RECORD_9PFS)
    assert index is not None
    fields = LAYOUT_9PFS.decode(module.read_record(index))
    assert (fields["ring_ref"], fields["evtchn"]) == (2047, 4)
    fields |= {"prod_pvt_out": int(found[1]), "cons_pvt_in": int(found[2])}
    module.update_record(index, LAYOUT_9PFS.encode(**fields))
    after = minios.module_image(run, f"entry{boot + 1}")
    assert admin_page(memory, module) == after[-PAGE_SIZE:]


def test_the_device_of_the_real_kernel_can_be_made() -> None:
    run = "p9-18-64"
    entry = minios.entry(run, "boot0-prekexec", "module")
    memory, module = attach(minios.module_image(run, "boot0-boot"), entry["address"])
    _, target = attach(minios.module_image(run, "boot0-prekexec"), entry["address"])
    assert module.add_record(RECORD_9PFS, LAYOUT_9PFS.pack(2047, 4, 0, 0)) == 0
    assert (module.alloc_pages(0, 1), module.alloc_pages(0, 16)) == (0, 1)
    assert module.add_record(2, target.read_record(1)) == 1
    page = minios.module_image(run, "boot0-prekexec")[-PAGE_SIZE:]
    assert admin_page(memory, module) == page


@pytest.mark.parametrize("run", ["mix-18-64", "small-4-64", "rec-1-64", "idle-4-64-dirty"])
def test_a_fresh_module_is_the_real_kernels(run: str) -> None:
    """Over RAM that was not zero: only the administration page is cleared."""
    image = minios.module_image(run, "boot0-boot")
    address = PhysAddr(minios.entry(run, "boot0-boot", "module")["address"])
    dirty = bytearray(b"\xa5" * len(image))
    memory = GuestMemory([(address, dirty)])
    module = KexecModule.create(memory, address, len(image) // PAGE_SIZE)
    assert admin_page(memory, module) == image[-PAGE_SIZE:]
    assert dirty[:-PAGE_SIZE] == b"\xa5" * (len(image) - PAGE_SIZE)


def test_images_of_the_c_functions() -> None:
    """`stubdom18` and `empty4`: the posted functions on a host buffer, over RAM of letters."""
    for name, n_pages in (("stubdom18", 18), ("empty4", 4)):
        image = minios.host_image(name)
        memory = GuestMemory([(0x10000, bytearray(image))])
        module = KexecModule.create(memory, PhysAddr(0x10000), n_pages)
        if name == "stubdom18":
            assert module.add_record(RECORD_9PFS, LAYOUT_9PFS.pack(8, 5, 0, 0)) == 0
            assert module.alloc_pages(0, 17) == 0
        assert memory.read(PhysAddr(0x10000), len(image)) == image
