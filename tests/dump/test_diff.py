"""What changed between two images: told in words, and never kept quiet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dump.made import ADDRESS, REAL, module_with, put, ram_with
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import minios

from xenlive.cli.root import run
from xenlive.dump import Image, Side, diff
from xenlive.kexec import KexecModule
from xenlive.kexec.sealed import add_sealed, update_sealed
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory


def told(folder: Path, before: bytes | bytearray, after: bytes | bytearray) -> list[str]:
    """The changes between two images, in words."""
    (folder / "a").write_bytes(before)
    (folder / "b").write_bytes(after)
    return told_of(folder / "a", folder / "b")


def told_of(a: Path, b: Path) -> list[str]:
    with Image(a) as first, Image(b) as second:
        changes = diff(
            Side(first, first.find_module()),
            Side(second, second.find_module()),
        )
    return [change.text for change in changes]


def test_nothing_changed(tmp_path: Path) -> None:
    assert told(tmp_path, REAL, REAL) == []


def test_a_device_over_two_kernels(tmp_path: Path) -> None:
    """The numbers are those that the guest printed."""
    after = minios.module_image("p9-18-64", "boot2-prekexec")
    assert told(tmp_path, REAL, after) == [
        "record 0 (9PFS): prod_pvt_out 40342 -> 73988 (33,646 bytes sent)",
        "record 0 (9PFS): cons_pvt_in 40326 -> 80633 (40,307 bytes received)",
        "record 0 (9PFS): in_cons 80633 -> 154356 (73,723 bytes taken from the in ring)",
        "record 0 (9PFS): in_prod 80633 -> 154356 (73,723 bytes answered by the backend)",
        "record 0 (9PFS): out_cons 73988 -> 74298 (310 bytes taken by the backend)",
        "record 0 (9PFS): out_prod 73988 -> 74298 (310 bytes put in the out ring)",
        "record 0: pages 0-16 unchanged but for 0 (interface), 1-8 (in ring), 11 (out ring)",
    ]


def test_an_index_that_ran_over_and_one_that_went_back(tmp_path: Path) -> None:
    data = bytearray(REAL)
    before, after = bytearray(data), bytearray(data)
    put(before, 96 + 8 - PAGE_SIZE, b"\xf0\xff\xff\xff")
    put(after, 96 + 8 - PAGE_SIZE, b"\x10\0\0\0")
    said = "record 0 (9PFS): prod_pvt_out 4294967280 -> 16 (32 bytes sent)"
    assert told(tmp_path, before, after) == [said]
    said = "record 0 (9PFS): prod_pvt_out 16 -> 4294967280 (back by 32 bytes)"
    assert told(tmp_path, after, before) == [said]


def test_records_and_pages_come_and_go(tmp_path: Path) -> None:
    before = module_with((7, b"old", 2), (8, b"gone", 3))
    after = bytearray(before)
    module = KexecModule.attach(GuestMemory([(0, after)]), PhysAddr(0), len(after))
    module.update_record(0, b"new")
    module.delete_record(1, free_pages=True)
    module.alloc_pages(module.add_record(9, b"come"), 1)
    after[3 * PAGE_SIZE] = 1
    assert told(tmp_path, before, after) == [
        "record 0 (type 7): 3 bytes differ at 0-2: 6f6c64 -> 6e6577",
        "record 1 (type 9): was type 8, 4 bytes",
        "record 1 (type 9): 2 bytes differ at 0, 2: 676f6e -> 636f6d",
        "pages 3-4: were record 1, now free",
        "free page 3: contents differ",
    ]


def test_a_record_deleted_and_one_new(tmp_path: Path) -> None:
    one, both = module_with((7, b"", 0)), module_with((7, b"", 0), (8, b"x", 0))
    assert told(tmp_path, one, both) == ["record 1 new: type 8, 1 byte"]
    gone = told(tmp_path, both, one)
    assert gone == ["record 1 deleted: type 8, 1 byte"]


def test_a_module_that_grew(tmp_path: Path) -> None:
    """Pages keep their place and get another index: that alone is no change."""
    ram = bytearray(4 << 20)
    memory = GuestMemory([(0, ram)])
    memmap = MemoryMap([MemoryRange(0, len(ram), E820_RAM)])
    start = len(ram) - 18 * PAGE_SIZE
    module = KexecModule.create(memory, PhysAddr(start), 18)
    module.alloc_pages(module.add_record(7, b"data"), 5)
    before = bytes(ram)
    module.grow(6, memmap)
    changes = told(tmp_path, before, ram)
    assert changes[0] == (
        "module grew by 6 pages at its lower end: 18 -> 24 pages, 0x3ee000 -> 0x3e8000"
    )
    assert "pages 0-5 are new: free" in changes
    assert not any("were" in text or "differ" in text for text in changes)
    after = bytes(ram)
    module.alloc_pages(0, 3)
    ram[module.page_address(8)] = 1
    assert told(tmp_path, after, ram) == [
        "pages 0-2: were free, now record 0",
        "record 0: pages 0-2, 6-10 unchanged but for 8",
    ]
    module.free_pages(0, 3)
    module.shrink(6)
    assert told(tmp_path, after, ram)[0].startswith("module shrank by 6 pages at its lower end")
    assert "pages 0-5 are gone: free" in told(tmp_path, after, ram)


def test_a_page_of_a_module_that_grew_has_two_indices(tmp_path: Path) -> None:
    before = module_with((7, b"", 5), n_module_pages=18)
    after = module_with((7, b"", 0), n_module_pages=24)
    put(after, 14 - PAGE_SIZE, b"\xff" * 6 + b"\0" * 6)
    changes = told(tmp_path, before, after)
    assert "page 11 (5 before): was free, now record 0" in changes


def test_a_module_that_moved(tmp_path: Path) -> None:
    paths = [
        ram_with(tmp_path / name, REAL, address)
        for name, address in (("a", ADDRESS), ("b", ADDRESS - 0x100000))
    ]
    texts = told_of(*paths)
    assert texts == ["module moved: administration page 0x3fff000 -> 0x3eff000"]


def test_problems_that_are_new_and_gone(tmp_path: Path) -> None:
    broken = bytearray(REAL)
    put(broken, 14 + 5 - PAGE_SIZE, b"\x03")
    said = "owner-without-record at 19: 1 page belongs to record 3, which is unused"
    assert f"problem new: {said}" in told(tmp_path, REAL, broken)
    assert f"problem gone: {said}" in told(tmp_path, broken, REAL)


def test_a_sealed_record_was_updated(tmp_path: Path) -> None:
    data = bytearray(4 * PAGE_SIZE)
    module = KexecModule.create(GuestMemory([(0, data)]), PhysAddr(0), 4)
    index = add_sealed(module, 7, b"abcd")
    before = bytes(data)
    update_sealed(module, index, b"efgh")
    assert told(tmp_path, before, data) == [
        "record 0 (SEALED): generation 1 -> 2",
        "record 0 (SEALED): payload 61626364 -> 65666768",
    ]


def test_bytes_of_no_record(tmp_path: Path) -> None:
    after = bytearray(REAL)
    put(after, -10, b"left over")
    first, second = told(tmp_path, REAL, after)
    assert first.startswith("problem new: bytes-outside-records at 4086")
    assert second == "administration page: bytes of no record differ at 4086-4094"


@settings(deadline=None, max_examples=80)
@given(
    at=st.one_of(
        st.integers(0, len(REAL) - 1),
        st.integers(8 - PAGE_SIZE, 140 - PAGE_SIZE),
    ),
    bit=st.integers(0, 7),
    name=st.sampled_from(["p9-18-64", "mix-18-64"]),
)
def test_no_byte_changes_quietly(
    at: int, bit: int, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = minios.module_image(name, "boot1-prekexec")
    after = bytearray(before)
    after[at] ^= 1 << bit
    if after[-PAGE_SIZE : 8 - PAGE_SIZE] != b"KexecMem":
        return
    folder = tmp_path_factory.getbasetemp()
    assert told(folder, before, after)
    assert all(text.isprintable() for text in told(folder, before, after))
    assert told(folder, after, after) == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(REAL)
    (tmp_path / "b").write_bytes(minios.module_image("p9-18-64", "boot2-prekexec"))
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert run(["diff", a, a]) == 0
    assert capsys.readouterr() == ("", "")
    assert run(["diff", a, b]) == 1
    out, err = capsys.readouterr()
    assert (len(out.splitlines()), err) == (7, "")
    assert run(["diff", "--json", a, a]) == 0
    assert json.loads(capsys.readouterr().out) == {"same": True, "changes": []}
    assert run(["diff", "--json", a, b]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [change["text"] for change in found["changes"]] == out.splitlines()
    assert found["changes"][-1]["kind"] == "content"
    assert found["changes"][-1]["pages"] == [*range(9), 11]


def test_a_module_and_the_memory_it_lies_in_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(REAL)
    assert run(["diff", str(tmp_path / "a"), str(ram_with(tmp_path / "ram", REAL))]) == 0


@pytest.mark.parametrize("words", [["a"], ["a", "missing"], ["missing", "a"], ["a", "empty"]])
def test_trouble_is_one_line_and_exit_2(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").write_bytes(REAL)
    (tmp_path / "empty").write_bytes(b"")
    assert run(["diff", *(str(tmp_path / word) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_a_record_whose_type_changed_and_that_is_a_device_now(tmp_path: Path) -> None:
    """Either way round, with an interface page on one side alone."""
    other = bytearray(REAL)
    put(other, 34 - PAGE_SIZE, b"\x50")
    assert "record 0 (9PFS): was type 80, 16 bytes" in told(tmp_path, other, REAL)
    assert "record 0 (9PFS): interface page none -> found" in told(tmp_path, other, REAL)
    assert "record 0 (type 80): was 9PFS, 16 bytes" in told(tmp_path, REAL, other)


def test_a_record_whose_data_left_the_page(tmp_path: Path) -> None:
    """It has as many bytes as before; but what they are can't be said."""
    outside = bytearray(REAL)
    put(outside, 32 - PAGE_SIZE, (5000).to_bytes(2, "little"))
    changes = [text for text in told(tmp_path, REAL, outside) if text.startswith("record 0 (9PFS)")]
    assert changes == [
        "record 0 (9PFS): data moved: 96 -> 5000",
        "record 0 (9PFS): bytes of it outside the page: 0 -> 16",
    ]
