"""Sealed records and the journal of a resize, as an image shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dump.made import module_with, put

from xenlive.abi.kexec_module import RECORD_RESIZE, RECORD_SEALED, RESIZE, RESIZE_MAGIC
from xenlive.dump import describe_image
from xenlive.dump.lines import record_lines
from xenlive.kexec import KexecModule
from xenlive.kexec.sealed import add_sealed, update_sealed
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.guest import GuestMemory

PAYLOAD_AT = 8 + 8  # of the first copy, in the record's data
PAGES = 4


def described(path: Path, data: bytes | bytearray) -> dict[str, Any]:
    path.write_bytes(data)
    return describe_image(path)


def sealed_module(covering: bool) -> tuple[bytearray, int]:
    """A module with one sealed record of generation 2, and where its data lies in the file."""
    data = bytearray(PAGES * PAGE_SIZE)
    memory = GuestMemory([(0, data)])
    module = KexecModule.create(memory, PhysAddr(0), PAGES)
    index = add_sealed(module, 7, b"abcd", memory if covering else None)
    module.alloc_pages(index, 2)
    update_sealed(module, index, b"efgh", memory)
    return data, len(data) - PAGE_SIZE + module.record(index).offset


def sealed_in(path: Path, data: bytearray) -> tuple[dict[str, Any], list[str]]:
    found = described(path, data)
    (record,) = found["records"]
    assert isinstance(record["decoded"], dict)
    lines = [line.strip() for line in record_lines(record)[1:]]
    return record["decoded"], lines


@pytest.mark.parametrize("covering", [False, True])
def test_a_whole_seal(covering: bool, tmp_path: Path) -> None:
    data, _ = sealed_module(covering)
    decoded, lines = sealed_in(tmp_path / "image", data)
    assert decoded == {
        "kind": 7,
        "covers_pages": covering,
        "seal": "ok",
        "generation": 2,
        "payload": b"efgh".hex(),
    }
    covers = ", covers its pages" if covering else ""
    assert lines == [f"kind 7{covers}, generation 2, the seal is whole", "payload 65666768"]


def test_damage_to_the_newer_copy(tmp_path: Path) -> None:
    data, start = sealed_module(covering=False)
    data[start + PAYLOAD_AT + 12] ^= 1  # the copy of generation 2 is the second one
    decoded, lines = sealed_in(tmp_path / "image", data)
    assert (decoded["seal"], decoded["generation"]) == ("fell-back", 1)
    assert decoded["payload"] == b"abcd".hex()
    assert lines[0] == "kind 7, generation 1; the newer copy is damaged"


def test_damage_to_both_copies(tmp_path: Path) -> None:
    data, start = sealed_module(covering=False)
    data[start + PAYLOAD_AT] ^= 1
    data[start + PAYLOAD_AT + 12] ^= 1
    decoded, lines = sealed_in(tmp_path / "image", data)
    assert (decoded["seal"], decoded["generation"], decoded["payload"]) == ("broken", None, None)
    assert lines == ["kind 7, the seal is broken: neither copy matches its checksum"]
    codes = [problem["code"] for problem in describe_image(tmp_path / "image")["problems"]]
    assert codes == ["seal-broken"]


def test_damage_to_a_covered_page(tmp_path: Path) -> None:
    data, _ = sealed_module(covering=True)
    data[PAGE_SIZE + 5] ^= 1
    decoded, _ = sealed_in(tmp_path / "image", data)
    assert decoded["seal"] == "broken"


def test_a_resize_that_was_cut_off(tmp_path: Path) -> None:
    journal = RESIZE.pack(RESIZE_MAGIC, 3, 5, 0x8000 | 2)
    found = described(tmp_path / "image", module_with((RECORD_RESIZE, journal, 0)))
    (record,) = found["records"]
    assert record["type_name"] == "RESIZE"
    assert record["decoded"] == {"n_small": 3, "n_large": 5, "boundary": 2, "shrinking": True}
    said = "a resize between 3 and 5 pages was cut off while shrinking, at page 2"
    assert record_lines(record)[1].strip() == said


@pytest.mark.parametrize("type_", [RECORD_SEALED, RECORD_RESIZE])
@pytest.mark.parametrize("data", [b"", b"KexR", b"KexS", b"somebody else's", bytes(10), bytes(40)])
def test_a_record_of_somebody_else(type_: int, data: bytes, tmp_path: Path) -> None:
    found = described(tmp_path / "image", module_with((type_, data, 0)))
    (record,) = found["records"]
    assert record["decoded"] is None
    assert record["data"] == data.hex()


def test_a_sealed_record_that_is_cut_short(tmp_path: Path) -> None:
    data = module_with((RECORD_SEALED, b"KexS" + bytes(9), 0))
    put(data, -PAGE_SIZE, b"KexecMem")
    (record,) = described(tmp_path / "image", data)["records"]
    assert record["decoded"]["seal"] == "broken"
