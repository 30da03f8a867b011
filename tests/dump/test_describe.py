"""The description: its keys, its numbers, and that any module can be described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dump.cores import Segment, write_elf_core
from dump.made import ADDRESS, REAL, grant_page, module_with, put, ram_with
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import minios

from xenlive.dump import Image, describe_image
from xenlive.dump.describe import MAX_OTHERS, MAX_PROBLEMS_OF_OTHERS
from xenlive.dump.search import MAX_DEVICES, search
from xenlive.dump.source import Source
from xenlive.kexec import KexecModule
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.guest import GuestMemory

# The contract of `inspect --json`: these are there, in this order; others only follow.
CONTRACT = [
    "address",
    "n_pages",
    "n_records",
    "recs_off",
    "free_pages",
    "free_record_bytes",
    "records",
    "problems",
]
KEYS = [
    *(*CONTRACT, "attachable", "pg2rec", "missing_pages", "admin_address", "image", "streams"),
    *("others", "others_left_out", "settled"),
]
RECORD_KEYS = ["index", "type", "type_name", "offset", "size", "data", "pages", "decoded"]
INTERFACE_PAGE = 0
REAL_RECORD = bytes.fromhex("ff07000004000000969d0000869d0000")
STREAM = (minios.FOLDER / "xs_state" / "c_daemon_4_17_7.bin").read_bytes()
EMPTY_RING = {
    "size_bytes": 32768,
    "cons": 0,
    "prod": 0,
    "pending_bytes": 0,
    "messages": [],
    "left_out": 0,
    "problem": None,
}


def described(path: Path, data: bytes | bytearray) -> dict[str, Any]:
    path.write_bytes(data)
    return describe_image(path)


def admin(data: bytearray, at: int, value: bytes) -> None:
    """Overwrites bytes of the administration page."""
    start = len(data) - PAGE_SIZE + at
    data[start : start + len(value)] = value


def test_the_whole_description_of_a_real_device(tmp_path: Path) -> None:
    """`p9-18-64`, after kernel B used it: the numbers are those the guest printed."""
    found = described(tmp_path / "image", minios.module_image("p9-18-64", "boot1-prekexec"))
    assert found == {
        "address": None,
        "n_pages": 17,
        "n_records": 16,
        "recs_off": 32,
        "free_pages": 0,
        "free_record_bytes": 3960,
        "records": [
            {
                "index": 0,
                "type": 1,
                "type_name": "9PFS",
                "offset": 96,
                "size": 16,
                "data": "ff07000004000000969d0000869d0000",
                "pages": list(range(17)),
                "decoded": {
                    "ring_ref": 2047,
                    "evtchn": 4,
                    "prod_pvt_out": 40342,
                    "cons_pvt_in": 40326,
                    "interface": {
                        "page": 0,
                        "in_cons": 80633,
                        "in_prod": 80633,
                        "out_cons": 73988,
                        "out_prod": 73988,
                        "ring_order": 4,
                        "ref": list(range(2046, 2030, -1)),
                    },
                    "rings": {
                        "ground": "page-order",
                        "pages": list(range(1, 17)),
                        "in": EMPTY_RING | {"cons": 80633, "prod": 80633},
                        "out": EMPTY_RING | {"cons": 73988, "prod": 73988},
                    },
                },
            },
            {
                "index": 1,
                "type": 2,
                "type_name": "unknown",
                "offset": 112,
                "size": 24,
                "data": "171a1d202326292c2f3235383b3e4144474a4d505356595c",
                "pages": [],
                "decoded": None,
            },
        ],
        "problems": [],
        "attachable": True,
        "pg2rec": "00" * 17,
        "missing_pages": [],
        "admin_address": None,
        "image": {"kind": "module", "size_bytes": 73728, "regions": []},
        "streams": [],
        "others": [],
        "others_left_out": 0,
        "settled": True,
    }


@pytest.mark.parametrize("entry", minios.entries("module"), ids=lambda entry: entry["file"])
def test_it_agrees_with_the_module_itself(entry: dict[str, object], tmp_path: Path) -> None:
    data = minios.files()[str(entry["file"])]
    found = described(tmp_path / "image", data)
    module = KexecModule.attach(GuestMemory([(0, bytearray(data))]), PhysAddr(0), len(data))
    assert list(found) == KEYS
    assert (found["n_pages"], found["n_records"]) == (module.n_pages, module.n_records)
    assert found["free_pages"] == module.free_page_count()
    assert found["free_record_bytes"] == module.free_record_bytes()
    assert found["problems"] == []
    assert [one["index"] for one in found["records"]] == [r.index for r in module.records()]
    for one in found["records"]:
        assert list(one) == RECORD_KEYS
        assert bytes.fromhex(one["data"]) == module.read_record(one["index"])
        assert one["pages"] == module.pages_of(one["index"])


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (128, (0).to_bytes(4, "little")),
        (128, (5).to_bytes(4, "little")),  # 32 ring pages, but only 17 are owned
        (128, (10).to_bytes(4, "little")),
        (132, (0).to_bytes(4, "little")),
        (132, (2031).to_bytes(4, "little")),  # twice
    ],
)
def test_a_page_that_can_be_no_interface_is_not_shown_as_one(
    at: int, value: bytes, tmp_path: Path
) -> None:
    data = bytearray(minios.module_image("p9-18-64", "boot1-prekexec"))
    for page in range(1, 17):
        data[page * PAGE_SIZE + 128 : page * PAGE_SIZE + 132] = bytes(4)
    assert "interface" in described(tmp_path / "image", data)["records"][0]["decoded"]
    data[INTERFACE_PAGE + at : INTERFACE_PAGE + at + len(value)] = value
    decoded = described(tmp_path / "image", data)["records"][0]["decoded"]
    assert list(decoded) == ["ring_ref", "evtchn", "prod_pvt_out", "cons_pvt_in"]


def test_an_interface_page_whose_ring_pages_are_not_all_owned(tmp_path: Path) -> None:
    data = bytearray(minios.module_image("p9-18-64", "boot1-prekexec"))
    admin(data, 14 + 16, b"\xff")
    decoded = described(tmp_path / "image", data)["records"][0]["decoded"]
    assert "interface" not in decoded


def test_a_9pfs_record_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    data = bytearray(minios.module_image("p9-18-64", "boot1-prekexec"))
    admin(data, 32 + 3, b"\x0c")
    found = described(tmp_path / "image", data)
    assert found["records"][0]["size"] == 12
    assert found["records"][0]["decoded"] is None
    assert [one["code"] for one in found["problems"]] == ["bytes-outside-records"]


def test_of_a_longer_9pfs_record_the_first_16_bytes_are_decoded(tmp_path: Path) -> None:
    data = module_with((1, REAL_RECORD + b"more", 0))
    (record,) = described(tmp_path / "image", data)["records"]
    assert record["data"] == (REAL_RECORD + b"more").hex()
    assert record["decoded"] == {
        "ring_ref": 2047,
        "evtchn": 4,
        "prod_pvt_out": 40342,
        "cons_pvt_in": 40326,
    }


def test_pages_that_the_image_lacks(tmp_path: Path) -> None:
    lacking = [Segment(ADDRESS, 4 * PAGE_SIZE, [(0, REAL[: 4 * PAGE_SIZE])])]
    lacking.append(Segment(ADDRESS + 6 * PAGE_SIZE, 12 * PAGE_SIZE, [(0, REAL[6 * PAGE_SIZE :])]))
    found = describe_image(write_elf_core(tmp_path / "core", lacking))
    assert found["address"] == ADDRESS
    assert found["missing_pages"] == [4, 5]
    whole = [Segment(ADDRESS, len(REAL), [(0, REAL)])]
    assert describe_image(write_elf_core(tmp_path / "core", whole))["missing_pages"] == []


def test_a_module_that_was_cut_off_at_its_start_lacks_pages(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(REAL[3 * PAGE_SIZE :])
    assert describe_image(path, "module")["missing_pages"] == [0, 1, 2]


@pytest.mark.parametrize(("address", "said"), [(0xFFFEE000, False), (0xFFFEF000, True)])
def test_above_4_gib_no_kernel_looks(address: int, said: bool, tmp_path: Path) -> None:
    """That is a suspicion: who is told of such a module does attach to it."""
    core = write_elf_core(tmp_path / "core", [Segment(address, len(REAL), [(0, REAL)])])
    found = describe_image(core)
    assert [(one["code"], one["kind"]) for one in found["problems"]] == (
        [("above-4-gib", "suspicion")] if said else []
    )
    assert found["attachable"]


def test_of_many_other_modules_some_are_described(tmp_path: Path) -> None:
    """And of what is wrong with each only some; the rest is counted."""
    nasty = bytearray(module_with(*[(7, b"", 0)] * 255, n_module_pages=1, n_records=255))
    for index in range(255):  # every record lies outside of the page
        put(nasty, 14 + 4 * index, b"\xff\xff\x07\x07")
    parts = [(page * PAGE_SIZE, bytes(nasty)) for page in range(1, 51)]
    found = describe_image(ram_with(tmp_path / "ram", REAL, ADDRESS, *parts), thorough=True)
    assert (found["address"], found["problems"]) == (ADDRESS, [])
    assert (len(found["others"]), found["others_left_out"]) == (MAX_OTHERS, 50 - MAX_OTHERS)
    for other in found["others"]:
        assert list(other) == ["address", "n_pages", "attachable", "problems"]
        assert len(other["problems"]) == MAX_PROBLEMS_OF_OTHERS
        assert not other["attachable"]


def test_a_pass_looks_for_some_devices_however_many_there_are(tmp_path: Path) -> None:
    devices = {ref: [0x100 + ref] for ref in range(1, 101)}
    last = grant_page({ref: 0x100 + ref for ref in range(MAX_DEVICES + 1, 101)})
    first = grant_page({1: 0x101})
    parts = (0x100000, last), (0x200000, first)
    with Image(ram_with(tmp_path / "ram", REAL, ADDRESS, *parts)) as image:
        assert search(image, devices).grants == [(1, 0x200000)]


def test_all_that_lies_outside_is_found_in_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module's own page at the top, then all memory once."""
    size = 16 << 20
    small = minios.module_image("small-4-64", "boot1-boot")
    data = bytearray(b"\x11" * size)
    put(data, 0x100000, small)
    put(data, 0x200000, STREAM)
    put(data, size - len(REAL), REAL)
    path = tmp_path / "ram"
    path.write_bytes(data)
    read: list[int] = []
    read_into, read_some = Source.read_into, Source.read

    def counting_into(self: Source, offset: int, buffer: memoryview) -> int:
        read.append(read_into(self, offset, buffer))
        return read[-1]

    def counting(self: Source, offset: int, count: int) -> bytes:
        found = read_some(self, offset, count)
        read.append(len(found))
        return found

    monkeypatch.setattr(Source, "read_into", counting_into)
    monkeypatch.setattr(Source, "read", counting)
    found = describe_image(path, "memory", thorough=True)
    assert [other["address"] for other in found["others"]] == [0x100000]
    assert [stream["address"] for stream in found["streams"]] == [0x200000]
    assert size < sum(read) < size * 5 // 4


def test_problems_are_a_part_of_it(tmp_path: Path) -> None:
    data = bytearray(minios.module_image("mix-18-64", "entry1"))
    admin(data, 32, (5000).to_bytes(2, "little"))
    admin(data, 14, b"\x09")
    admin(data, 4000, b"left over")
    found = described(tmp_path / "image", data)
    assert [(one["code"], one["offset"], one["kind"]) for one in found["problems"]] == [
        ("record-outside", 32, "unsound"),
        ("owner-without-record", 14, "unsound"),
        ("bytes-outside-records", 96, "suspicion"),
        ("bytes-outside-records", 4000, "suspicion"),
    ]
    assert not found["attachable"]
    assert all(list(one) == ["code", "message", "offset", "kind"] for one in found["problems"])
    assert (found["records"][0]["offset"], found["records"][0]["data"]) == (5000, "")


def test_bytes_that_the_image_lacks_are_not_made_up(tmp_path: Path) -> None:
    """Cut within a record's data, the table, and the owners of the pages."""
    data = minios.module_image("mix-18-64", "entry1")
    last = len(data) - PAGE_SIZE
    whole = described(tmp_path / "whole", data)["records"][4]
    cut = described(tmp_path / "data", data[: last + 170])
    assert cut["records"][4]["data"] == whole["data"][:20]
    assert [one["code"] for one in cut["problems"]] == ["bad-size"]
    assert [
        one["index"] for one in described(tmp_path / "table", data[: last + 42])["records"]
    ] == [*(0, 1)]
    assert (
        described(tmp_path / "owners", data[: last + 20])["pg2rec"]
        == data[last + 14 : last + 20].hex()
    )


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from([entry["file"] for entry in minios.entries("module")]),
    wrong=st.lists(st.tuples(st.integers(8, 100), st.integers(0, 255)), max_size=5),
    kind=st.sampled_from(["auto", "module"]),
)
def test_any_module_can_be_described(
    name: str,
    wrong: list[tuple[int, int]],
    kind: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = bytearray(minios.files()[name])
    for at, byte in wrong:
        admin(data, at, bytes([byte]))
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    found = describe_image(path, kind)
    assert list(found) == KEYS
    assert json.loads(json.dumps(found)) == found
    assert found["free_record_bytes"] in range(4097)
    for one in found["records"]:
        assert all(page < found["n_pages"] for page in one["pages"])
