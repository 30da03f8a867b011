"""Hex dumps: every byte is there once, with what it is, and nothing acts on a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dump.made import ADDRESS, REAL, device_with, module_with, put, ram_with
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import minios

from xenlive.cli.root import run
from xenlive.dump import describe_image
from xenlive.dump.annotate import Annotator, Note, record_notes
from xenlive.dump.hexdump import rows_of
from xenlive.memory.address import PAGE_SIZE
from xenlive.ninep.codec import encode
from xenlive.ninep.messages import TCLUNK, TWRITE

CLUNK = encode(TCLUNK, 5, fid=1)
WRITE = encode(TWRITE, 6, fid=1, offset=0, data=bytes(range(200)))
HALF = 8 * PAGE_SIZE


def notes_of(path: Path, data: bytes | bytearray, page: int) -> list[Note]:
    path.write_bytes(data)
    content = bytes(data[page * PAGE_SIZE : (page + 1) * PAGE_SIZE])
    return Annotator(describe_image(path)).notes(page, content)


def dumped(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert run(["hexdump", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_the_administration_page_of_a_real_device(tmp_path: Path) -> None:
    said = [
        (note.offset, note.size, note.name, note.value)
        for note in notes_of(tmp_path / "image", REAL, 17)
    ]
    assert said == [
        (0, 8, "eye_catcher", "KexecMem"),
        (8, 2, "n_pages", "17"),
        (10, 2, "n_records", "16"),
        (12, 2, "recs_off", "32"),
        (14, 17, "pg2rec[0-16]", "record 0"),
        (31, 1, "unused", ""),
        (32, 4, "rec[0]", "type 1 (9PFS), 16 bytes at 96"),
        (36, 4, "rec[1]", "type 2 (unknown), 24 bytes at 112"),
        (40, 56, "rec[2-15]", "unused"),
        (96, 4, "record 0 (9PFS) ring_ref", "2047"),
        (100, 4, "record 0 (9PFS) evtchn", "4"),
        (104, 4, "record 0 (9PFS) prod_pvt_out", "40342"),
        (108, 4, "record 0 (9PFS) cons_pvt_in", "40326"),
        (112, 24, "record 1 (type 2)", ""),
        (136, 3960, "unused", ""),
    ]


def test_owners_reservations_and_bytes_of_nobody(tmp_path: Path) -> None:
    data = module_with((7, b"ab", 2), (8, b"", 0), (7, b"", 1))
    put(data, 32 + 4 * 5 - PAGE_SIZE, b"\x88\x0f\0\x08")  # a record that is not there yet
    put(data, -3, b"zzz")
    said = {note.name: note.value for note in notes_of(tmp_path / "image", data, 17)}
    assert said["pg2rec[0-1]"] == "record 0"
    assert said["pg2rec[2]"] == "record 2"
    assert said["pg2rec[3-16]"] == "free"
    assert said["rec[5]"] == "reserved: 8 bytes at 3976"
    assert said["rec[6-15]"] == "unused"
    assert "in no record" in said


@pytest.mark.parametrize("present", [14, 20, 34, 60, 100, 4095])
def test_a_page_that_is_cut_short_is_dumped_as_far_as_it_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], present: int
) -> None:
    path = tmp_path / "image"
    path.write_bytes(REAL[: present - PAGE_SIZE])
    (piece,) = json.loads(dumped(["--json", "--admin", str(path)], capsys)[0])
    assert bytes.fromhex(piece["data"]) == REAL[-PAGE_SIZE : present - PAGE_SIZE]


def test_an_interface_page(tmp_path: Path) -> None:
    notes = notes_of(tmp_path / "image", REAL, 0)
    names = [note.name for note in notes]
    assert names == [
        *("in_cons", "in_prod", "pad1", "out_cons", "out_prod", "pad2", "ring_order"),
        *("ref[0-15]", "unused"),
    ]
    assert {note.name: note.value for note in notes}["ref[0-15]"] == "2046 to 2031"


def test_messages_that_wait_lie_where_they_are(tmp_path: Path) -> None:
    """One over the border of two pages, one over the end of the ring."""
    path = tmp_path / "image"
    cons = HALF + PAGE_SIZE - 11
    data = device_with(CLUNK + WRITE, WRITE, out_cons=cons, in_cons=HALF - 100)
    out0, out1 = notes_of(path, data, 9), notes_of(path, data, 10)
    assert [(note.offset, note.size, note.name) for note in out0] == [
        (0, PAGE_SIZE - 11, "not pending"),
        (PAGE_SIZE - 11, 11, "Tclunk tag 5"),
    ]
    assert [(note.offset, note.size, note.name) for note in out1] == [
        (0, len(WRITE), "Twrite tag 6"),
        (len(WRITE), PAGE_SIZE - len(WRITE), "not pending"),
    ]
    first, last = notes_of(path, data, 1), notes_of(path, data, 8)
    assert (last[-1].name, last[-1].size) == ("Twrite tag 6", 100)
    assert (first[0].name, first[0].size) == ("Twrite tag 6 (goes on)", len(WRITE) - 100)


def test_pending_bytes_that_are_no_message(tmp_path: Path) -> None:
    notes = notes_of(tmp_path / "image", device_with(CLUNK + b"\0" * 20), 9)
    assert [(note.size, note.name) for note in notes[:2]] == [
        (11, "Tclunk tag 5"),
        (20, "out ring, pending"),
    ]


def test_rows_repeat_no_row() -> None:
    data = bytes(70) + b"\x01" * 32 + bytes(3)
    rows = [str(row) for row in rows_of(data, [Note(0, len(data), "name", "value")], 0x1000)]
    zeros = "00 " * 16
    assert rows == [
        f"0x1000  {zeros} |{'.' * 16}|  name value",
        "*       (3 more rows like this)",
        f"0x1040  {'00 ' * 6}{'01 ' * 10} |{'.' * 16}|",
        f"0x1050  {'01 ' * 16} |{'.' * 16}|",
        f"0x1060  {'01 ' * 6}{'00 ' * 3}{'':21} |{'.' * 9}|",
    ]


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["p9-18-64", "mix-18-64", "rec-1-64"]),
    wrong=st.lists(st.tuples(st.integers(8, 200), st.binary(min_size=1, max_size=4)), max_size=6),
    page=st.integers(0, 17),
)
def test_every_byte_has_one_note_whatever_the_page_says(
    name: str,
    wrong: list[tuple[int, bytes]],
    page: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = bytearray(minios.module_image(name, "boot1-prekexec"))
    for at, value in wrong:
        put(data, at - PAGE_SIZE, value)
    path = tmp_path_factory.getbasetemp() / "dumped"
    path.write_bytes(data)
    found = describe_image(path)
    for index in (min(page, found["n_pages"]), found["n_pages"]):
        content = bytes(data[-PAGE_SIZE:])
        notes = Annotator(found).notes(index, content)
        at = 0
        for note in notes:
            assert note.offset == at
            assert note.size > 0
            assert f"{note.name} {note.value}".isprintable()
            at = note.end
        assert at == PAGE_SIZE
    for record in found["records"]:
        size = len(record["data"]) // 2
        assert sum(note.size for note in record_notes(record)) == size


def test_pages_and_records_by_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(ram_with(tmp_path / "ram", REAL))
    assert dumped([path], capsys) == dumped([path, "--admin"], capsys)
    assert dumped([path], capsys) == dumped([path, "--page", "17"], capsys)
    title, first, *_ = dumped([path, "--page", "0x1"], capsys)
    assert title == "page 1: record 0 (9PFS), in ring, page 0"
    assert first.startswith("0x3fef000  9b a2 a9 b0 ")
    assert dumped([path, "--record", "0"], capsys) == [
        "record 0: 9PFS",
        *(line for line in dumped([path], capsys) if "record 0 (9PFS)" in line),
    ]


def test_memory_by_its_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ram_with(tmp_path / "ram", REAL, ADDRESS, (0x1000, b"\x1b[31mred")))
    assert dumped([path, "--address", "4096", "--size", "8"], capsys) == [
        "0x1000  1b 5b 33 31 6d 72 65 64                          |.[31mred|"
    ]
    rows = dumped([path, "--address", "0x3feeffe", "--size", "4"], capsys)
    assert rows == [
        "page 0: record 0 (9PFS), interface page",
        "0x3feeffe  00 00                                            |..|                unused",
        "page 1: record 0 (9PFS), in ring, page 0",
        "0x3fef000  9b a2                                            |..|                "
        "not pending",
    ]


def test_json_has_the_bytes_and_the_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "image"
    path.write_bytes(REAL)
    (found,) = json.loads("".join(dumped([str(path), "--json"], capsys)))
    assert list(found) == ["start", "title", "data", "fields"]
    assert bytes.fromhex(found["data"]) == REAL[-PAGE_SIZE:]
    assert found["start"] == 17 * PAGE_SIZE
    assert found["fields"][0] == {
        "offset": 0,
        "size": 8,
        "name": "eye_catcher",
        "value": "KexecMem",
    }
    pieces: list[dict[str, Any]] = json.loads(
        "".join(
            dumped(
                [
                    *(str(ram_with(tmp_path / "ram", REAL)), "--json"),
                    *("--address", "0x3fee000", "--size", "8192"),
                ],
                capsys,
            )
        )
    )
    assert "".join(piece["data"] for piece in pieces) == REAL[:8192].hex()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--page", "18"], "xenlive: the module has no page 18: the last one is 17"),
        (["--record", "9"], "xenlive: the module has no record 9"),
        (["--address", "0x4000000"], "xenlive: the image has no memory at 0x4000000"),
        (["--page", "x"], "'x' is no number such as 4096 or 0x1000"),
        (["--page", "-1"], "'-1' is no number such as 4096 or 0x1000"),
        (["--page", "1", "--admin"], "exclude each other"),
        (["--size", "5"], "--size goes with --address"),
        (["--address", "0", "--size", "0"], "and is 1 to 67108864"),
        (["--rundir", "elsewhere"], "IMAGE and --rundir exclude each other"),
    ],
)
def test_what_cannot_be_dumped_is_one_line_and_exit_2(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ram_with(tmp_path / "ram", REAL)
    assert run(["hexdump", str(path), *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_module_image_has_no_addresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "image"
    path.write_bytes(REAL)
    assert run(["hexdump", str(path), "--address", "0"]) == 2
    said = "a module image does not say addresses: ask for a page or a record"
    assert said in capsys.readouterr().err


def test_memory_without_a_module_is_dumped_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(3 * PAGE_SIZE))
    rows = dumped([str(path), "--address", "0xff8", "--size", "16"], capsys)
    assert [row.split()[0] for row in rows] == ["0x0ff8", "0x1000"]
