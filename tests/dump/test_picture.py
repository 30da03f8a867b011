"""The picture of a module, without colours and with them."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from rich.text import Text
from vectors import minios

from xenlive.dump import describe_image, draw_module
from xenlive.dump.picture import STYLE_SUSPECT, draw_memory, draw_pages

DEVICE = {"ring_ref": 2047, "evtchn": 4, "prod_pvt_out": 0, "cons_pvt_in": 0}


def description(n_pages: int, *owned: range, address: int | None = 0x3FEE000) -> dict[str, Any]:
    """A module whose record i owns the i-th range of pages; record 0 is a device."""
    return {
        "address": address,
        "n_pages": n_pages,
        "n_records": 16,
        "free_pages": n_pages - sum(len(pages) for pages in owned),
        "free_record_bytes": 1,
        "problems": [],
        "records": [
            {
                "index": index,
                "type": 7 if index else 1,
                "type_name": "unknown" if index else "9PFS",
                "size": index,
                "pages": list(pages),
                "decoded": None if index else DEVICE,
            }
            for index, pages in enumerate(owned)
        ],
    }


def drawn(found: dict[str, Any], width: int = 80) -> list[str]:
    picture = draw_module(found, width)
    assert isinstance(picture, Text)
    return picture.plain.splitlines()


def test_a_device_and_a_record() -> None:
    assert drawn(description(20, range(17), range(18, 19))) == [
        "0x3fee000  0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 . 1 . #",
        "  0  9PFS, 17 pages, 0 bytes: grant 2047, port 4",
        "  1  record of type 7, 1 page, 1 byte",
        "  #  administration page: 2 of 16 records, 1 byte free",
        "  .  free: 2 pages",
    ]


def test_an_address_that_the_image_does_not_say() -> None:
    assert drawn(description(3, range(1), address=None))[0] == "page 0  0 . . #"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("n_pages", [0, 1, 17, 63, 100, 255, 256, 300])
def test_it_keeps_to_the_width_and_shows_every_page(n_pages: int, width: int) -> None:
    owned = [range(page, page + 1) for page in range(0, min(n_pages, 200), 2)]
    rows = "".join(text for text, _ in draw_pages(description(n_pages, *owned), width))
    lines = rows.splitlines()
    if width > 20:
        assert all(len(line) <= width for line in lines)
    signs = "".join(line.split("  ", 1)[1].replace(" ", "") for line in lines if "more" not in line)
    if "more" not in rows:
        assert len(signs) == n_pages + 1
    assert signs.endswith("#")


def test_rows_that_repeat_are_told_once() -> None:
    rows = "".join(text for text, _ in draw_pages(description(4002, range(10, 4001)), 80))
    lines = rows.splitlines()
    assert lines[2].strip() == "(60 more rows like this)"
    assert [line.split()[0] for line in lines if "more" not in line] == [
        "0x3fee000",
        "0x402e000",
        "0x4f6e000",
    ]


def test_owners_have_colours_of_their_own() -> None:
    pieces = draw_pages(description(3, range(1), range(1, 2)), 80)
    styles = {text.strip(): style for text, style in pieces if text.strip() in ("0", "1", ".", "#")}
    assert len(set(styles.values())) == 4


def test_records_beyond_the_signs_share_one() -> None:
    owned = [range(page, page + 1) for page in range(64)]
    assert drawn(description(64, *owned), 200)[0].endswith("Z + + #")


def test_without_rich_it_is_a_string(monkeypatch: pytest.MonkeyPatch) -> None:
    with_rich = drawn(description(20, range(17)))
    monkeypatch.setitem(sys.modules, "rich.text", None)
    picture = draw_module(description(20, range(17)))
    assert isinstance(picture, str)
    assert picture.splitlines() == with_rich


@pytest.mark.parametrize("name", ["stubdom18", "empty4"])
def test_described_modules_can_be_drawn(name: str, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("picture") / name
    path.write_bytes(minios.host_image(name))
    assert drawn(describe_image(path))[0].endswith("#")


def device(index: int, first: int, order: int) -> dict[str, Any]:
    """A 9PFS record whose interface page is `first`, and its ring behind it."""
    ring = list(range(first + 1, first + 1 + (1 << order)))
    return {
        "index": index,
        "type": 1,
        "type_name": "9PFS",
        "size": 16,
        "pages": [first, *ring],
        "decoded": DEVICE | {"interface": {"page": first}, "rings": {"pages": ring}},
    }


def test_the_parts_of_two_devices() -> None:
    found = description(9) | {"records": [device(0, 0, 1), device(1, 3, 2)], "free_pages": 1}
    assert drawn(found)[:5] == [
        "0x3fee000  0i 0< 0> 1i 1< 1< 1> 1> .  #",
        "  0  9PFS, 3 pages, 16 bytes: grant 2047, port 4",
        "     i interface page 0, < in ring 1, > out ring 2",
        "  1  9PFS, 5 pages, 16 bytes: grant 2047, port 4",
        "     i interface page 3, < in ring 4-5, > out ring 6-7",
    ]


def test_large_modules_have_no_room_for_parts_but_say_them() -> None:
    found = description(4000) | {"records": [device(0, 0, 9)], "free_pages": 4000 - 513}
    lines = drawn(found)
    assert lines[0] == "0x3fee000  " + "0" * 64
    assert "     interface page 0, in ring 1-256, out ring 257-512" in lines
    rows = [line for line in lines if line.startswith("0x")]
    assert [int(row.split()[0], 16) % (64 * 4096) for row in rows] == [0x3FEE000 % (64 * 4096)] * (
        len(rows)
    )


def test_pages_of_no_record_are_marked() -> None:
    found = description(4, range(1)) | {"pg2rec": "0009ffff"}
    lines = drawn(found)
    assert lines[0] == "0x3fee000  0 ! . . #"
    assert "  !  owned by no record in use: 1 page" in lines
    assert dict(draw_pages(found, 80))["!"] == STYLE_SUSPECT


def test_what_a_problem_names_is_red() -> None:
    problems = [{"code": "x", "message": "y", "offset": offset} for offset in (14 + 2, 4000)]
    styles = [
        (text.strip(), style)
        for text, style in draw_pages(description(4, range(4)) | {"problems": problems}, 80)
        if text.strip() in ("0", "#")
    ]
    assert [sign for sign, style in styles if style == STYLE_SUSPECT] == ["0", "#"]
    assert styles[2] == ("0", STYLE_SUSPECT)


def test_the_memory_around_it() -> None:
    found = description(3) | {
        "image": {
            "regions": [
                {"address": 0, "size_bytes": 0x1000000},
                {"address": 0x3000000, "size_bytes": 0x1000000},
            ]
        },
        "others": [{"address": 0x100000, "n_pages": 3, "problems": []}],
        "streams": [{"address": 0x3000000}, {"address": None}],
    }
    row = "".join(text for text, _ in draw_memory(found, 88))
    memory = "-o" + "-" * 14 + " " * 32 + "s" + "-" * 14 + "#"  # a column is a MiB
    assert row == f"memory  0x0 [{memory}] 0x4000000\n\n"


def test_without_addresses_there_is_no_memory_to_draw() -> None:
    assert draw_memory(description(3), 80) == []
    no_address = description(3, address=None) | {"image": {"regions": [{}]}}
    assert draw_memory(no_address, 80) == []


def test_many_records_without_pages_are_counted() -> None:
    owned = [range(0)] * 20 + [range(2)]
    lines = drawn(description(4, *owned))
    assert lines[1:3] == [
        "  k  record of type 7, 2 pages, 20 bytes",
        "     and 20 records without pages",
    ]


def test_pages_that_the_image_lacks_have_a_sign() -> None:
    found = description(9) | {"records": [device(0, 0, 1)], "missing_pages": [1, 7]}
    lines = drawn(found)
    assert lines[0] == "0x3fee000  0i 0? 0> .  .  .  .  .? .  #"
    assert "  ?  not in the image: 2 pages" in lines
    large = drawn(description(300, range(2)) | {"missing_pages": [1]})
    assert large[0].startswith("0x3fee000  0?.")
    assert "  ?  not in the image: 1 page" in large


@pytest.mark.parametrize(("n_pages", "signs"), [(255, True), (256, False)])
def test_signs_of_parts_are_explained_where_they_are_drawn(n_pages: int, signs: bool) -> None:
    lines = drawn(description(n_pages) | {"records": [device(0, 0, 2)]})
    rows = "".join(line for line in lines if line.startswith("0x"))
    assert ("<" in rows, any("< in ring" in line for line in lines)) == (signs, signs)
    assert any("in ring 1-2" in line for line in lines)


@pytest.mark.parametrize(("n", "more"), [(62, None), (63, 1), (254, 192)])
def test_records_beyond_the_signs_are_one_line(n: int, more: int | None) -> None:
    lines = drawn(description(600, *(range(2 * page, 2 * page + 2) for page in range(n))))
    told = [line for line in lines if line.startswith("  +  ")]
    if more is None:
        assert told == []
    else:
        records = "record" if more == 1 else "records"
        assert told == [f"  +  {more} more {records}, {2 * more} pages"]
    assert len([line for line in lines if "record of type" in line or "9PFS" in line]) == min(n, 62)
