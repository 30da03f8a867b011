"""Boot among pages that look like kexec modules: only the grant table says which one is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from stubdom.test_boot_module import console, first_boot, module_of, next_boot, works

from xenlive.abi.kexec_module import EYE_CATCHER, HEADER, PG2REC_OFFSET, RECORD
from xenlive.abi.xen9pfs import REF0
from xenlive.kexec import KexecModule
from xenlive.memory.address import PAGE_SIZE, PhysAddr, frame_of
from xenlive.memory.e820 import E820_RAM, E820_RESERVED, MemoryMap, MemoryRange
from xenlive.sim.machine import LOAD_END, RAM_BYTES, Hypervisor
from xenlive.stubdom.boot import StubDomain
from xenlive.stubdom.module import LOAD_RESERVE_BYTES

PAGES_24 = "CONFIG_KEXEC_MODULE_PAGES=24"
FREE_PAGE = PhysAddr(RAM_BYTES - 40 * PAGE_SIZE)
EMPTY = HEADER.pack(EYE_CATCHER, 0, 0, PG2REC_OFFSET)


@pytest.fixture
def hypervisor() -> Hypervisor:
    return Hypervisor()


def left(hypervisor: Hypervisor, cmdline: str = PAGES_24) -> StubDomain:
    """What a first kernel leaves, with its device at rest."""
    domain = first_boot(hypervisor, cmdline)
    assert domain.front is not None
    domain.front.write_file("/kept", [b"by the first"])
    domain.front.save()
    return domain


def admin_page(owners: bytes, records: list[tuple[int, bytes]]) -> bytes:
    """An administration page as anybody can write one."""
    table = PG2REC_OFFSET + len(owners)
    page = HEADER.pack(EYE_CATCHER, len(owners), len(records), table) + owners
    entries, data = b"", b""
    for type_, content in records:
        at = table + len(records) * RECORD.size + len(data)
        entries += RECORD.pack(at, type_, len(content))
        data += content
    return (page + entries + data).ljust(PAGE_SIZE, b"\0")


def put(hypervisor: Hypervisor, at: int, data: bytes) -> None:
    hypervisor.memory.write(PhysAddr(at), data)


def decoy_for(domain: StubDomain, at: int, n_pages: int, first: int = 0, skip: int = 0) -> bytes:
    """A page at `at` that says that the device's pages are its own, as far as they are inside.

    `skip` of them are left out, and the record is that of the device, which is easily guessed.
    """
    module = module_of(domain)
    low = at - n_pages * PAGE_SIZE
    device = {module.page_address(page) for page in module.pages_of(0)[first : 17 - skip]}
    owners = bytes(0 if low + n * PAGE_SIZE in device else 255 for n in range(n_pages))
    return admin_page(owners, [(1, module.read_record(0))])


class TestDecoys:
    """Bytes that clients can have written, in RAM when nothing is handed over."""

    def is_untouched_and_ignored(self, hypervisor: Hypervisor, at: int) -> None:
        before = hypervisor.memory.read(PhysAddr(at), PAGE_SIZE)
        second = next_boot(hypervisor, PAGES_24)
        assert not second.has_survivor
        assert hypervisor.memory.read(PhysAddr(at), PAGE_SIZE) == before
        module = module_of(second)
        assert module.n_pages == 23
        assert module.address == RAM_BYTES - 24 * PAGE_SIZE
        assert works(second)
        assert f"looks like a kexec module, not used: the one at {at - at % PAGE_SIZE:#x}" in (
            console(hypervisor)
        )
        assert "no-record" in console(hypervisor)

    def test_fourteen_bytes_are_no_survivor(self, hypervisor: Hypervisor) -> None:
        put(hypervisor, FREE_PAGE, EMPTY + b"a client's data")
        self.is_untouched_and_ignored(hypervisor, FREE_PAGE)

    def test_nor_is_a_module_that_is_all_there(self, hypervisor: Hypervisor) -> None:
        made = KexecModule.create(hypervisor.memory, PhysAddr(FREE_PAGE - 23 * PAGE_SIZE), 24)
        made.add_record(0x77, b"anything")
        before = hypervisor.memory.read(made.admin_address, PAGE_SIZE)
        second = next_boot(hypervisor, PAGES_24)
        assert not second.has_survivor
        assert works(second)
        assert hypervisor.memory.read(made.admin_address, PAGE_SIZE) == before

    def test_nor_one_whose_device_was_never_connected(self, hypervisor: Hypervisor) -> None:
        put(hypervisor, FREE_PAGE, admin_page(b"", [(1, bytes(16))]))
        self.is_untouched_and_ignored(hypervisor, FREE_PAGE)

    def test_one_above_the_real_one_does_not_hide_it(self, hypervisor: Hypervisor) -> None:
        hole = MemoryMap([MemoryRange(0, RAM_BYTES - 5 * PAGE_SIZE, E820_RAM)])
        hypervisor.load(PAGES_24)
        first = next_boot(hypervisor, PAGES_24, memmap=hole)
        assert first.front is not None
        first.front.write_file("/kept", [b"by the first"])
        first.front.save()
        put(hypervisor, RAM_BYTES - PAGE_SIZE, EMPTY)
        put(hypervisor, RAM_BYTES - 2 * PAGE_SIZE, admin_page(b"", [(1, b"x" * 16)]))
        second = next_boot(hypervisor)
        assert second.has_survivor
        assert module_of(second).address == module_of(first).address
        assert second.front is not None
        assert bytes(second.front.read_file("/kept")) == b"by the first"
        assert "9pfs-no-record" in console(hypervisor)
        assert "9pfs-dead-grant" in console(hypervisor)

    @pytest.mark.parametrize("n_pages", [0, 11, 12])
    def test_a_page_of_the_rings_is_none_when_the_real_one_is_lost(
        self, hypervisor: Hypervisor, n_pages: int
    ) -> None:
        """What stands there went through the ring; the device's other pages lie below it."""
        first = left(hypervisor)
        module = module_of(first)
        at = module.page_address(12)
        decoy = decoy_for(first, at, n_pages)
        put(hypervisor, module.admin_address, bytes(PAGE_SIZE))
        put(hypervisor, at, decoy)
        second = next_boot(hypervisor, PAGES_24)
        assert not second.has_survivor
        assert module_of(second).n_pages == 23
        assert works(second)
        said = console(hypervisor)
        assert "survivor-granted: its last page is granted to somebody" in said

    @pytest.mark.parametrize(("first_page", "skip"), [(1, 0), (0, 1), (0, 16)])
    def test_one_that_covers_a_part_of_the_device_is_none(
        self, hypervisor: Hypervisor, first_page: int, skip: int
    ) -> None:
        first = left(hypervisor)
        module = module_of(first)
        at = module.page_address(20)
        decoy = decoy_for(first, at, 20, first_page, skip)
        put(hypervisor, module.admin_address, bytes(PAGE_SIZE))
        put(hypervisor, at, decoy)
        second = next_boot(hypervisor, PAGES_24)
        assert not second.has_survivor
        assert "9pfs-foreign-page" in console(hypervisor)
        assert works(second)

    def test_another_that_covers_all_of_it_puts_both_in_doubt(self, hypervisor: Hypervisor) -> None:
        """The decoy is in a free page of the module: as good as the real one, to look at."""
        first = left(hypervisor)
        module = module_of(first)
        at = module.page_address(20)
        put(hypervisor, at, decoy_for(first, at, 20))
        pages = hypervisor.memory.read(module.address, module.size_bytes)
        second = next_boot(hypervisor, PAGES_24)
        assert not second.has_survivor
        assert console(hypervisor).count("survivor-in-doubt") == 2
        assert module_of(second).address + module_of(second).size_bytes <= module.address
        assert works(second)
        # nothing was written to either, and with the backend gone from it no grant is left
        after = hypervisor.memory.read(module.address, module.size_bytes)
        assert after[17 * PAGE_SIZE :] == pages[17 * PAGE_SIZE :]
        assert second.grants.free_refs == first.grants.free_refs
        third = next_boot(hypervisor)
        assert third.has_survivor
        assert module_of(third).address == module_of(second).address

    @pytest.mark.parametrize(
        ("n_decoys", "why"),
        [
            (31, "another one has the same device"),
            (32, "the search for others inside of it was cut short"),
            (40, "the search for others inside of it was cut short"),
        ],
    )
    def test_a_real_one_out_of_sight_is_not_taken_for_none(
        self, hypervisor: Hypervisor, n_decoys: int, why: str
    ) -> None:
        """One above covers the real one; between them is more than is looked at."""
        hole = MemoryMap([MemoryRange(0, RAM_BYTES - (n_decoys + 1) * PAGE_SIZE, E820_RAM)])
        hypervisor.load(PAGES_24)
        first = next_boot(hypervisor, PAGES_24, memmap=hole)
        assert first.front is not None
        first.front.write_file("/kept", [b"by the first"])
        first.front.save()
        real = module_of(first)
        at = RAM_BYTES - PAGE_SIZE
        for page in range(n_decoys):
            put(hypervisor, at - (page + 1) * PAGE_SIZE, EMPTY)
        put(hypervisor, at, decoy_for(first, at, n_decoys + 24))
        assert real.admin_address == at - (n_decoys + 1) * PAGE_SIZE
        kept = hypervisor.memory.read(real.address, real.size_bytes)
        second = next_boot(hypervisor, PAGES_24)
        assert not second.has_survivor
        # a new one, in the free pages of the decoys
        assert module_of(second).size_bytes == 24 * PAGE_SIZE
        assert module_of(second).address > real.admin_address
        assert works(second)
        said = console(hypervisor)
        assert f"survivor-in-doubt: {why}" in said
        assert "the search for a kexec module was cut short: out of looks" in said
        # nothing was written to the real one, but for what the backend did with the rings
        after = hypervisor.memory.read(real.address, real.size_bytes)
        assert after[17 * PAGE_SIZE :] == kept[17 * PAGE_SIZE :]

    def test_what_is_told_has_a_bound(self, hypervisor: Hypervisor) -> None:
        for page in range(30):
            put(hypervisor, FREE_PAGE - page * PAGE_SIZE, EMPTY)
        next_boot(hypervisor)
        told = [line for line in hypervisor.console if "looks like" in line]
        assert len(told) == 1
        assert told[0].count("the one at") == 3
        assert told[0].endswith("; 27 more")


class TestRefusedSurvivors:
    """Real ones whose device is not granted any more as it must be."""

    def dead_grant(self, hypervisor: Hypervisor, domain: StubDomain) -> None:
        assert domain.front is not None
        ref = domain.front.device.ring_ref
        hypervisor.grant_frames[ref * 8 : ref * 8 + 8] = bytes(8)

    def foreign_page(self, hypervisor: Hypervisor, domain: StubDomain) -> None:
        word = (2046).to_bytes(4, "little")
        put(hypervisor, module_of(domain).page_address(0) + (REF0 + 5) * 4, word)

    def other_domain(self, hypervisor: Hypervisor, domain: StubDomain) -> None:
        assert domain.front is not None
        hypervisor.grant_frames[domain.front.device.refs[7] * 8 + 2] = 3

    DAMAGES = ("dead_grant", "foreign_page", "other_domain")

    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize("backend", [True, False])
    def test_a_new_one_takes_no_page_that_somebody_still_uses(
        self, hypervisor: Hypervisor, damage: str, backend: bool
    ) -> None:
        first = left(hypervisor)
        damaging: Callable[[Hypervisor, StubDomain], None] = getattr(self, damage)
        damaging(hypervisor, first)
        assert hypervisor.back is not None
        if not backend:
            hypervisor.back.close()
        second = next_boot(hypervisor, PAGES_24)
        module, old = module_of(second), module_of(first)
        assert not second.has_survivor
        apart = module.address + module.size_bytes <= old.page_address(17)
        assert apart == backend
        assert works(second)
        assert hypervisor.backend_connects == 2
        # of the old device's grants those are left that a backend never gave back, if any
        assert second.front is not None
        active = {ref for ref in range(second.grants.n_refs) if second.grants.entry(ref)[0]}
        assert set(second.front.device.refs) <= active
        assert len(active) <= 17 + (backend and damage == "dead_grant")

    def test_no_room_beside_pages_in_use_is_no_end_of_the_boot(
        self, hypervisor: Hypervisor
    ) -> None:
        """Clients come first: the device stays off, and the old one's pages are left alone."""
        base = LOAD_END + LOAD_RESERVE_BYTES
        small = MemoryMap(
            [
                MemoryRange(0, base + 20 * PAGE_SIZE, E820_RAM),
                MemoryRange(base + 20 * PAGE_SIZE, PAGE_SIZE, E820_RESERVED),
            ]
        )
        hypervisor.load("")
        first = next_boot(hypervisor, memmap=small)
        self.foreign_page(hypervisor, first)
        before = hypervisor.memory.read(module_of(first).address, module_of(first).size_bytes)
        second = next_boot(hypervisor, memmap=small)
        assert second.module is None
        assert second.front is None
        said = console(hypervisor)
        assert "no kexec module: it would lie in granted pages" in said
        assert "the 9pfs device stays off" in said
        after = hypervisor.memory.read(module_of(first).address, module_of(first).size_bytes)
        assert after == before

    def test_reserved_grants_are_nobodys_to_take_back(self, hypervisor: Hypervisor) -> None:
        frame = frame_of(PhysAddr(RAM_BYTES - PAGE_SIZE))
        entry = (1).to_bytes(4, "little") + int(frame).to_bytes(4, "little")
        hypervisor.grant_frames[8:16] = entry
        domain = first_boot(hypervisor)
        assert bytes(hypervisor.grant_frames[8:16]) == entry
        assert module_of(domain).admin_address == RAM_BYTES - 2 * PAGE_SIZE

    def test_the_record_that_is_granted_counts_not_the_first(self, hypervisor: Hypervisor) -> None:
        first = left(hypervisor)
        module = module_of(first)
        data = module.read_record(0)
        module.add_record(1, data)
        module.update_record(0, b"\x01" + bytes(15))
        for page in range(17):
            put(hypervisor, module.admin_address + PG2REC_OFFSET + page, b"\x01")
        second = next_boot(hypervisor)
        assert second.survivor_record == 1
        assert second.front is not None
        assert second.front.device.record == 1
        assert bytes(second.front.read_file("/kept")) == b"by the first"


class TestHandedOver:
    """A start info that names what can't be."""

    @pytest.mark.parametrize("pages", [1, 3])
    def test_one_inside_of_the_running_kernels_image(
        self, hypervisor: Hypervisor, pages: int
    ) -> None:
        at = int(LOAD_END) - 3 * PAGE_SIZE
        put(hypervisor, at + (pages - 1) * PAGE_SIZE, admin_page(b"\xff" * (pages - 1), [(9, b"")]))
        second = next_boot(hypervisor, PAGES_24, modules=[(at, pages * PAGE_SIZE)])
        assert module_of(second).n_pages == 23
        assert works(second)
        said = console(hypervisor)
        assert f"module not used: module at {at:#x}: module-in-use: it reaches into" in said

    def test_an_empty_one_before_ours(self, hypervisor: Hypervisor) -> None:
        module = module_of(left(hypervisor))
        put(hypervisor, FREE_PAGE, EMPTY)
        named = [(int(FREE_PAGE), PAGE_SIZE), (int(module.address), module.size_bytes)]
        second = next_boot(hypervisor, modules=named)
        assert module_of(second).address == module.address
        assert second.front is not None
        assert bytes(second.front.read_file("/kept")) == b"by the first"
