"""The description: its keys, its numbers, and that any module can be described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import minios

from xenlive.dump import describe_image
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
KEYS = [*CONTRACT, "pg2rec", "admin_address", "image", "streams", "others", "settled"]
RECORD_KEYS = ["index", "type", "type_name", "offset", "size", "data", "pages", "decoded"]
INTERFACE_PAGE = 0
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
        "pg2rec": "00" * 17,
        "admin_address": None,
        "image": {"kind": "module", "size_bytes": 73728, "regions": []},
        "streams": [],
        "others": [],
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


def test_problems_are_a_part_of_it(tmp_path: Path) -> None:
    data = bytearray(minios.module_image("mix-18-64", "entry1"))
    admin(data, 32, (5000).to_bytes(2, "little"))
    admin(data, 14, b"\x09")
    found = described(tmp_path / "image", data)
    assert [(one["code"], one["offset"]) for one in found["problems"]] == [
        ("record-outside", 32),
        ("owner-without-record", 14),
        ("bytes-outside-records", 96),  # the data that record 0 left behind
    ]
    assert all(list(one) == ["code", "message", "offset"] for one in found["problems"])
    assert (found["records"][0]["offset"], found["records"][0]["data"]) == (5000, "")


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
