"""Boot on a module that nobody handed over, and modules that grow and shrink after a boot."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xenlive.abi.xen9pfs import OUT_PROD
from xenlive.domain.ninepdevice import unmake_device
from xenlive.errors import BootError
from xenlive.kexec import KexecModule
from xenlive.kexec.start_info import build_start_info
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, E820_RESERVED, MemoryMap, MemoryRange
from xenlive.sim.machine import LOAD_END, RAM_BYTES, Hypervisor, SimMachine
from xenlive.stubdom.boot import STATE_FILE, StubDomain, boot
from xenlive.stubdom.module import LOAD_RESERVE_BYTES, fit_module

PAGES_24 = "CONFIG_KEXEC_MODULE_PAGES=24"
RESIZE = "CONFIG_KEXEC_MODULE_RESIZE=y"


@pytest.fixture
def hypervisor() -> Hypervisor:
    return Hypervisor()


def first_boot(hypervisor: Hypervisor, cmdline: str = "") -> StubDomain:
    return boot(SimMachine(hypervisor), hypervisor.load(cmdline))


def next_boot(
    hypervisor: Hypervisor,
    cmdline: str = "",
    modules: list[tuple[int, int]] | None = None,
    memmap: MemoryMap | None = None,
) -> StubDomain:
    """The next kernel, as it is entered with `modules` in its start info."""
    memmap = memmap or MemoryMap([MemoryRange(0, RAM_BYTES, E820_RAM)])
    hypervisor.memory.write(LOAD_END, build_start_info(LOAD_END, memmap, modules or [], cmdline))
    hypervisor.events.forget_kernel()
    return boot(SimMachine(hypervisor), LOAD_END)


def module_of(domain: StubDomain) -> KexecModule:
    assert domain.module is not None
    return domain.module


def works(domain: StubDomain) -> bool:
    """Whether the device carries a file there and back."""
    assert domain.front is not None
    domain.front.write_file("/probe", [b"there and back" * 1000])
    return bytes(domain.front.read_file("/probe")) == b"there and back" * 1000


def console(hypervisor: Hypervisor) -> str:
    return "\n".join(hypervisor.console)


class TestSurvivors:
    """A kernel that knows no modules was there in between: the start info names none."""

    def left(self, hypervisor: Hypervisor, cmdline: str = "") -> StubDomain:
        """What the first kernel leaves, with its device at rest and a page of its own kind."""
        domain = first_boot(hypervisor, cmdline or PAGES_24)
        module = module_of(domain)
        record = module.add_record(0x77, b"somebody's")
        page = module.alloc_pages(record, 2)
        hypervisor.memory.fill(module.page_address(page), 2 * PAGE_SIZE, 0x42)
        assert domain.front is not None
        domain.front.write_file("/kept", [b"by the first"])
        domain.front.save()
        return domain

    def test_it_is_used_with_its_device(self, hypervisor: Hypervisor) -> None:
        first = self.left(hypervisor)
        module = module_of(first)
        before = hypervisor.memory.read(module.address, module.size_bytes)
        second = next_boot(hypervisor)
        assert module_of(second).address == module.address
        assert second.has_survivor
        assert "has survived, 24 pages" in console(hypervisor)
        assert second.front is not None
        assert first.front is not None
        assert second.front.device.refs == first.front.device.refs
        assert bytes(second.front.read_file("/kept")) == b"by the first"
        assert hypervisor.backend_connects == 1
        assert list(second.server.store.nodes) == list(first.server.store.nodes)
        used = 19 * PAGE_SIZE
        after = hypervisor.memory.read(module.address, module.size_bytes)
        assert after[17 * PAGE_SIZE : used] == before[17 * PAGE_SIZE : used]
        assert module_of(second).read_record(1) == b"somebody's"

    def test_what_was_handed_over_is_no_survivor(self, hypervisor: Hypervisor) -> None:
        module = module_of(self.left(hypervisor))
        second = next_boot(hypervisor, modules=[(module.address, module.size_bytes)])
        assert not second.has_survivor
        assert "survived" not in console(hypervisor)

    def test_it_is_kept_at_its_size(self, hypervisor: Hypervisor) -> None:
        self.left(hypervisor)
        second = next_boot(hypervisor, "CONFIG_KEXEC_MODULE_PAGES=40")
        assert module_of(second).n_pages == 23

    def test_it_is_used_though_none_would_be_made(self, hypervisor: Hypervisor) -> None:
        self.left(hypervisor)
        assert next_boot(hypervisor, "CONFIG_KEXEC_MODULE_PAGES=0").has_survivor

    def test_not_without_kexec(self, hypervisor: Hypervisor) -> None:
        self.left(hypervisor)
        assert next_boot(hypervisor, "CONFIG_KEXEC=n").module is None

    @pytest.mark.parametrize("words", ["-U", "-U came-back"])
    def test_not_for_a_live_update(self, hypervisor: Hypervisor, words: str) -> None:
        """What such a kernel needs was handed over, or is lost."""
        self.left(hypervisor)
        with pytest.raises(BootError, match=r"no-module|9pfs-no-record"):
            next_boot(hypervisor, words)
        assert "survived" not in console(hypervisor)

    def test_a_damaged_one_is_not_used(self, hypervisor: Hypervisor) -> None:
        module = module_of(self.left(hypervisor))
        hypervisor.memory.write(PhysAddr(module.admin_address + 10), b"\xff\xff")
        second = next_boot(hypervisor)
        assert not second.has_survivor
        assert module_of(second).n_pages == 17
        assert works(second)

    def test_one_of_ours_that_was_handed_over_broken_gives_way_to_it(
        self, hypervisor: Hypervisor
    ) -> None:
        address = module_of(self.left(hypervisor)).address
        broken = KexecModule.create(hypervisor.memory, PhysAddr(0x180000), 4)
        hypervisor.memory.write(PhysAddr(broken.admin_address + 10), b"\xff\xff")
        second = next_boot(hypervisor, modules=[(0x180000, 4 * PAGE_SIZE)])
        assert module_of(second).address == address
        assert "module not used: module at 0x180000: bad-n-records" in console(hypervisor)

    def test_strangers_are_told_of_when_nothing_else_was_handed_over(
        self, hypervisor: Hypervisor
    ) -> None:
        self.left(hypervisor)
        assert next_boot(hypervisor, modules=[(0x180000, 77)]).has_survivor
        assert "none of them begins its last page with KexecMem" in console(hypervisor)

    @pytest.mark.parametrize("taken", ["start info", "named", "load area"])
    def test_one_that_reaches_into_what_is_in_use_is_not(
        self, hypervisor: Hypervisor, taken: str
    ) -> None:
        at = {
            "start info": LOAD_END - PAGE_SIZE,
            "named": 0x180000,
            "load area": LOAD_END + LOAD_RESERVE_BYTES - PAGE_SIZE,
        }[taken]
        KexecModule.create(hypervisor.memory, PhysAddr(at), 4)
        second = next_boot(hypervisor, modules=[(0x180FFF, 2)] if taken == "named" else [])
        assert not second.has_survivor

    def test_only_what_was_ever_written_is_searched(
        self, hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = module_of(self.left(hypervisor))
        runs = [(int(module.admin_address), PAGE_SIZE)]
        monkeypatch.setattr(SimMachine, "populated_memory", lambda self: runs)
        assert next_boot(hypervisor).has_survivor
        runs[:] = [(int(module.address), module.size_bytes - PAGE_SIZE)]
        assert not next_boot(hypervisor).has_survivor

    # Its device.

    def damaged(self, hypervisor: Hypervisor, damage: Callable[[StubDomain], None]) -> StubDomain:
        domain = self.left(hypervisor)
        damage(domain)
        return domain

    def test_rings_that_nobody_saved_start_over(self, hypervisor: Hypervisor) -> None:
        """The first kernel died in the middle of its work."""
        first = self.left(hypervisor)
        assert first.front is not None
        first.front.write_file("/later", [b"x"])
        refs = first.front.device.refs
        second = next_boot(hypervisor)
        assert "9pfs-bad-index" in console(hypervisor)
        assert second.front is not None
        assert second.front.device.refs == refs
        assert hypervisor.backend_connects == 2
        assert works(second)

    def test_a_silent_backend_is_connected_again(self, hypervisor: Hypervisor) -> None:
        first = self.left(hypervisor)
        assert first.front is not None
        hypervisor.events.listen(first.front.device.port, None)
        second = next_boot(hypervisor)
        assert "9pfs-no-answer" in console(hypervisor)
        assert works(second)

    def wild_port(self, hypervisor: Hypervisor, domain: StubDomain, backend: bool) -> None:
        """Its event channel is none; a `backend` that is there has the pages still."""
        assert domain.front is not None
        assert hypervisor.back is not None
        if not backend:
            hypervisor.back.close()
        port = (0x7777).to_bytes(4, "little")
        module_of(domain).update_record(domain.front.device.record, port, 4)

    def test_one_that_can_not_be_taken_over_makes_room_for_a_new_one(
        self, hypervisor: Hypervisor
    ) -> None:
        first = self.left(hypervisor)
        self.wild_port(hypervisor, first, backend=False)
        second = next_boot(hypervisor)
        said = console(hypervisor)
        assert "record 0 can't be taken over: 9pfs-wild-port" in said
        assert "record 0 is deleted, its pages are free" in said
        module = module_of(second)
        assert [(r.index, r.type) for r in module.records()] == [(0, 1), (1, 0x77)]
        assert module.read_record(1) == b"somebody's"
        assert module.pages_of(1) == [17, 18]
        assert module.pages_of(0) == list(range(17))
        assert works(second)
        # no grant is left over: as many are free as before the old device was given up
        assert second.grants.free_refs == first.grants.free_refs

    def test_pages_that_are_still_in_use_stay_with_their_record(
        self, hypervisor: Hypervisor
    ) -> None:
        first = self.left(hypervisor)
        self.wild_port(hypervisor, first, backend=True)
        grants = bytes(hypervisor.grant_frames)
        second = next_boot(hypervisor)
        assert "still granted and in use: 9pfs device stays off" in console(hypervisor)
        assert second.front is None
        assert module_of(second).owners() == module_of(first).owners()
        assert bytes(hypervisor.grant_frames) == grants
        assert hypervisor.backend_connects == 1

    def test_a_reserved_grant_to_one_of_its_pages_is_not_ours_to_end(
        self, hypervisor: Hypervisor
    ) -> None:
        first = self.left(hypervisor)
        self.wild_port(hypervisor, first, backend=False)
        assert first.front is not None
        ref = first.front.device.refs[1]
        hypervisor.grant_frames[8:16] = hypervisor.grant_frames[ref * 8 : ref * 8 + 8]
        assert next_boot(hypervisor).front is None
        assert module_of(first).pages_of(0) == list(range(17))

    def test_the_first_connected_record_counts(self, hypervisor: Hypervisor) -> None:
        """A record of a device that was never connected stands before it."""
        first = first_boot(hypervisor, PAGES_24)
        assert first.front is not None
        module = module_of(first)
        data = module.read_record(0)
        module.add_record(1, data)
        module.update_record(0, bytes(16))
        for page in range(17):
            hypervisor.memory.write(PhysAddr(module.admin_address + 14 + page), b"\x01")
        first.front.device.record = 1
        first.front.save()
        modules = [(int(module.address), module.size_bytes)]
        second = next_boot(hypervisor, modules=modules)
        assert second.front is not None
        assert second.front.device.record == 1
        assert works(second)

    def test_one_that_is_handed_over_by_name_still_stops_the_boot(
        self, hypervisor: Hypervisor
    ) -> None:
        module = module_of(self.left(hypervisor))
        hypervisor.memory.write(PhysAddr(module.page_address(0) + OUT_PROD * 4), b"\7\7\7\7")
        with pytest.raises(BootError, match="9pfs-bad-index"):
            next_boot(hypervisor, modules=[(module.address, module.size_bytes)])


class TestFitting:
    """`CONFIG_KEXEC_MODULE_RESIZE`, after the boot."""

    def handed(
        self, hypervisor: Hypervisor, first: str, then: str, memmap: MemoryMap | None = None
    ) -> StubDomain:
        domain = first_boot(hypervisor, first)
        assert domain.front is not None
        domain.front.save()
        module = module_of(domain)
        return next_boot(hypervisor, then, [(module.address, module.size_bytes)], memmap)

    def test_off_by_default(self, hypervisor: Hypervisor) -> None:
        domain = self.handed(hypervisor, "", PAGES_24)
        fit_module(domain)
        assert module_of(domain).n_pages == 17
        assert not domain.config.flag("KEXEC_MODULE_RESIZE")

    def test_the_boot_itself_changes_no_size(self, hypervisor: Hypervisor) -> None:
        """Until it has taken over, the kernel before may come back, with the old size."""
        domain = self.handed(hypervisor, "", f"{PAGES_24} {RESIZE}")
        assert module_of(domain).n_pages == 17

    def test_growing_and_shrinking_back(self, hypervisor: Hypervisor) -> None:
        domain = self.handed(hypervisor, "", f"{PAGES_24} {RESIZE}")
        module = module_of(domain)
        address, admin = module.address, module.admin_address
        fit_module(domain)
        assert (module.address, module.n_pages) == (address - 6 * PAGE_SIZE, 23)
        assert module.admin_address == admin
        assert module.pages_of(0) == list(range(6, 23))
        assert "kexec module has 24 pages now, 18 before" in console(hypervisor)
        assert works(domain)
        assert domain.front is not None
        domain.front.save()
        modules = [(int(module.address), module.size_bytes)]
        third = next_boot(hypervisor, f"CONFIG_KEXEC_MODULE_PAGES=18 {RESIZE}", modules)
        fit_module(third)
        module = module_of(third)
        assert (module.address, module.n_pages) == (address, 17)
        assert module.pages_of(0) == list(range(17))
        assert hypervisor.backend_connects == 1
        assert works(third)
        said = len(hypervisor.console)
        fit_module(third)
        assert len(hypervisor.console) == said

    def test_a_device_that_this_kernel_made_follows(self, hypervisor: Hypervisor) -> None:
        domain = first_boot(hypervisor, RESIZE)
        domain.config = domain.config.with_options([PAGES_24])
        fit_module(domain)
        assert domain.front is not None
        assert domain.front.device.pages == range(6, 23)
        assert hypervisor.back is not None
        hypervisor.back.close()
        unmake_device(domain.front.device, module_of(domain), domain.grants)
        assert module_of(domain).free_page_count() == 23

    def test_growing_as_far_as_memory_is_free(self, hypervisor: Hypervisor) -> None:
        hole = RAM_BYTES - 22 * PAGE_SIZE
        memmap = MemoryMap(
            [
                MemoryRange(0, hole, E820_RAM),
                MemoryRange(hole, PAGE_SIZE, E820_RESERVED),
                MemoryRange(hole + PAGE_SIZE, 21 * PAGE_SIZE, E820_RAM),
            ]
        )
        domain = self.handed(hypervisor, "", f"{PAGES_24} {RESIZE}", memmap)
        fit_module(domain)
        assert module_of(domain).n_pages == 20
        assert "has 21 pages now, 18 before, 24 wanted" in console(hypervisor)
        fit_module(domain)
        assert module_of(domain).n_pages == 20
        assert "keeps its 21 pages, 24 wanted: out of free pages" in console(hypervisor)
        assert works(domain)

    def test_growing_stops_at_the_place_of_the_next_start_info(
        self, hypervisor: Hypervisor
    ) -> None:
        domain = self.handed(hypervisor, "", f"CONFIG_KEXEC_MODULE_PAGES=4000 {RESIZE}")
        fit_module(domain)
        assert module_of(domain).address == LOAD_END + LOAD_RESERVE_BYTES
        assert works(domain)

    def test_shrinking_as_far_as_pages_are_free(self, hypervisor: Hypervisor) -> None:
        less = f"CONFIG_KEXEC_MODULE_PAGES=4 {RESIZE}"
        domain = self.handed(hypervisor, PAGES_24, less)
        fit_module(domain)
        # the device has the lowest pages of a module it was made in
        assert module_of(domain).n_pages == 23
        assert "keeps its 24 pages, 4 wanted: out of free pages at the lower" in console(hypervisor)
        domain.config = domain.config.with_options(["CONFIG_KEXEC_MODULE_PAGES=30"])
        fit_module(domain)
        domain.config = domain.config.with_options(["CONFIG_KEXEC_MODULE_PAGES=4"])
        fit_module(domain)
        assert module_of(domain).n_pages == 23
        assert "has 24 pages now, 30 before, 4 wanted" in console(hypervisor)
        assert works(domain)

    def test_a_full_administration_page(self, hypervisor: Hypervisor) -> None:
        domain = self.handed(hypervisor, "", f"{PAGES_24} {RESIZE}")
        module = module_of(domain)
        while module.free_record_bytes():
            module.add_record(9, bytes(min(255, module.free_record_bytes())))
            if not any(r == 0 for r in self.types(module)):
                module.extend_table(module.n_records + 1)
        before = hypervisor.memory.read(module.address, module.size_bytes)
        fit_module(domain)
        assert hypervisor.memory.read(module.address, module.size_bytes) == before
        assert "keeps its 18 pages, 24 wanted: out of" in console(hypervisor)

    def types(self, module: KexecModule) -> list[int]:
        used = {record.index: record.type for record in module.records()}
        return [used.get(index, 0) for index in range(module.n_records)]

    def test_without_a_module_or_a_size_there_is_nothing_to_fit(
        self, hypervisor: Hypervisor
    ) -> None:
        fit_module(first_boot(hypervisor, "CONFIG_KEXEC=n"))
        domain = self.handed(hypervisor, "", f"CONFIG_KEXEC_MODULE_PAGES=0 {RESIZE}")
        fit_module(domain)
        assert module_of(domain).n_pages == 17

    def test_the_next_update_hands_the_new_size_over(self, hypervisor: Hypervisor) -> None:
        domain = self.handed(hypervisor, "", f"{PAGES_24} {RESIZE}")
        fit_module(domain)
        assert domain.front is not None
        domain.front.write_file(STATE_FILE, [b"kept"])
        domain.front.save()
        module = module_of(domain)
        third = next_boot(hypervisor, "", [(module.address, module.size_bytes)])
        assert module_of(third).n_pages == 23
        assert third.front is not None
        assert bytes(third.front.read_file(STATE_FILE)) == b"kept"
