"""The chains notice what they are there to notice: each test breaks the product in one way."""

from __future__ import annotations

import pytest

from xenlive.abi.kexec_module import EYE_CATCHER, HEADER, RECORD
from xenlive.errors import OutOfSpace
from xenlive.kexec import module as module_file
from xenlive.kexec import plan as plan_file
from xenlive.kexec import recover, sealed
from xenlive.kexec import resize as resize_file
from xenlive.kexec.adminpage import AdminPage, Record
from xenlive.kexec.find import find_kexec_module
from xenlive.kexec.module import KexecModule
from xenlive.kexec.start_info import StartInfo, build_start_info
from xenlive.memory.address import PhysAddr
from xenlive.memory.e820 import MemoryMap
from xenlive.memory.guest import GuestMemory
from xenlive.sim import chain_ours
from xenlive.sim.chain_campaign import Failure, run_chain
from xenlive.sim.chain_scenarios import spread


def complaint(*words: str) -> str:
    """What the first chain with all of these words complains of."""
    cases = [case for case in spread(step=7) if set(words) <= set(case.words)]
    assert cases
    for case in cases[:80]:
        result = run_chain(case.name)
        if isinstance(result, Failure):
            return result.what
    return ""


def test_nothing_is_wrong_to_begin_with() -> None:
    assert complaint("18", "die-grow") == ""


def test_a_type_that_is_stored_before_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(self: AdminPage, type_: int, data: bytes) -> int:
        index, offset = self.unused_entry(), self.data_end
        if offset + len(data) > 4096:
            raise OutOfSpace("bytes", len(data), 0)
        entry = RECORD.pack(offset, type_, len(data))
        self.store_u32(self.entry_offset(index), int.from_bytes(entry, "little"))
        self.copy(offset, data)
        return index

    monkeypatch.setattr(AdminPage, "add", add)
    assert "neither before" in complaint("18", "die-add")


def test_a_module_that_is_named_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(self: AdminPage, n_pages: int, n_records: int, recs_off: int) -> None:
        header = HEADER.pack(EYE_CATCHER, n_pages, n_records, recs_off)
        self.copy(0, header)
        self.copy(len(header), (b"\xff" * n_pages).ljust(4096 - len(header), b"\0"))
        self.reread_header()

    monkeypatch.setattr(AdminPage, "format", make)
    assert "nobody has finished making" in complaint("1")


def test_an_owned_page_that_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def alloc_pages(self: KexecModule, record: int, n: int) -> int:
        self._page.set_owners(0, bytes([record]) * min(n, self.n_pages))
        return 0

    monkeypatch.setattr(KexecModule, "alloc_pages", alloc_pages)
    assert "alloc" in complaint("18", "many")


def test_a_gap_that_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    add = AdminPage.add

    def wasteful(self: AdminPage, type_: int, data: bytes) -> int:
        index = add(self, type_, data)
        record = self.entry(index)
        if record.end + 2 <= 4096:
            self.copy(record.offset + 2, data)
            self.store_u16(self.entry_offset(index), record.offset + 2)
        return index

    monkeypatch.setattr(AdminPage, "add", wasteful)
    assert "other bytes than the posted format's" in complaint("18", "9pfs")


def test_a_record_that_moves_before_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def relocate(self: AdminPage, record: Record, offset: int) -> None:
        data = self.data(record)
        self.store_u16(self.entry_offset(record.index), offset)
        self.copy(offset, data)
        self.zero(record.offset, record.size)

    monkeypatch.setattr(AdminPage, "relocate", relocate)
    assert "neither before" in complaint("18", "die-compact")


def test_a_compaction_that_leaves_copies_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def relocate(self: AdminPage, record: Record, offset: int) -> None:
        self.copy(offset, self.data(record))
        self.store_u16(self.entry_offset(record.index), offset)

    monkeypatch.setattr(AdminPage, "relocate", relocate)
    assert "left behind" in complaint("24", "big")


def test_owners_that_do_not_move_with_their_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(page: AdminPage, n_pages: int) -> None:
        more = n_pages - page.n_pages
        if more < 0 or page.recs_off < 14 + n_pages:
            raise OutOfSpace("pages", n_pages, 0)
        page.set_owners(page.n_pages, b"\xff" * more)
        page.set_n_pages(n_pages)

    monkeypatch.setattr(module_file, "resize", resize)
    assert "grow" in complaint("18", "growing", "resize", "9pfs")


def test_a_resize_without_a_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    def shift(page: AdminPage, n_pages: int) -> None:
        owners = page.owners()
        more = n_pages - page.n_pages
        page.set_owners(0, (b"\xff" * more + owners)[-n_pages:] if n_pages else b"")
        page.set_n_pages(n_pages)

    monkeypatch.setattr(resize_file, "_shift", shift)
    assert "neither before" in complaint("die-grow")


def test_a_resize_that_is_not_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recover, "finish", lambda page, n_pages: None)
    assert complaint("die-shrink") or complaint("die-grow")


def test_a_seal_that_is_updated_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(head: bytes, slots: list[sealed._Slot]) -> sealed._Slot:
        return min(slots, key=lambda slot: slot.generation)

    monkeypatch.setattr(sealed, "_kept", kept)
    assert "seal" in complaint("die-reseal")


def test_space_that_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryMap, "room_below", lambda *_: 0)
    assert "although there is space" in complaint("18", "growing", "resize", "none")


def test_a_survivor_that_is_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_ours, "find_surviving_module", lambda *_: None)
    assert "was not found" in complaint("plain")


def test_a_module_behind_strangers_that_is_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_only(info: StartInfo, memory: GuestMemory) -> tuple[KexecModule | None, str]:
        info.modules = info.modules[:1]
        return find_kexec_module(info, memory)

    monkeypatch.setattr(chain_ours, "find_kexec_module", first_only)
    monkeypatch.setattr(chain_ours, "find_surviving_module", lambda *_: None)
    assert "was not found" in complaint("entry")


def test_a_guard_that_looks_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_file, "check_clear", lambda *_: None)
    assert "an image that ends at" in complaint("guard", "plain")


@pytest.mark.parametrize("broken", ["_Run", "_PageMove"])
def test_a_step_that_is_not_undone(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(getattr(plan_file, broken), "undo", lambda self: None)
    assert "RAM is not what it was" in complaint("stages")


def test_a_start_info_that_names_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(
        start: PhysAddr, memmap: MemoryMap, modules: list[tuple[int, int]], cmdline: bytes, *_: int
    ) -> bytes:
        smaller = [(at, size - 4096) for at, size in modules]
        return build_start_info(start, memmap, smaller, cmdline)

    monkeypatch.setattr(plan_file, "build_start_info", wrong)
    assert "start info" in complaint("18")
