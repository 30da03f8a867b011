"""The SVG: well-formed for any description, the same each time, nothing of it acts."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dump.made import ADDRESS, REAL, module_with, put, ram_with
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import minios

from xenlive.cli.root import run
from xenlive.dump import describe_image, draw_svg
from xenlive.memory.address import PAGE_SIZE

SVG = "{http://www.w3.org/2000/svg}"


def drawn(description: dict[str, Any]) -> ElementTree.Element:
    return ElementTree.fromstring(draw_svg(description))


def tooltips(picture: ElementTree.Element) -> list[str]:
    """What is said of each page; the first row of them is of memory, if there is one."""
    titles = picture.iterfind(f"{SVG}rect/{SVG}title")
    return [title.text or "" for title in titles]


def texts(picture: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in picture.iterfind(f"{SVG}text")]


@pytest.mark.parametrize("entry", minios.entries("module"), ids=lambda entry: entry["file"])
def test_a_square_and_a_tooltip_for_each_page(entry: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(minios.files()[str(entry["file"])])
    found = describe_image(path)
    said = tooltips(drawn(found))
    assert len(said) == found["n_pages"] + 1
    assert said[-1].endswith("administration page")
    for record in found["records"]:
        for page in record["pages"]:
            assert said[page].startswith(f"page {page}: record {record['index']} ")


def test_a_device_in_memory(tmp_path: Path) -> None:
    found = describe_image(ram_with(tmp_path / "ram", REAL), thorough=True)
    said = tooltips(drawn(found))
    assert said[:4] == [
        "memory, 0x0 to 0x4000000",
        "the kexec module, 0x3fee000 to 0x4000000",
        "page 0 0x3fee000: record 0 (9PFS), interface page",
        "page 1 0x3fef000: record 0 (9PFS), in ring, page 0",
    ]
    assert said[-2] == "page 16 0x3ffe000: record 0 (9PFS), out ring, page 7"


def test_problems_are_drawn_and_listed(tmp_path: Path) -> None:
    data = bytearray(REAL)
    put(data, 14 + 3 - PAGE_SIZE, b"\x09")
    path = tmp_path / "image"
    path.write_bytes(data)
    picture = drawn(describe_image(path))
    assert any(text.startswith("owner-without-record at 17: ") for text in texts(picture))
    marked = [r for r in picture.iterfind(f"{SVG}rect") if "suspect" in r.get("class", "")]
    titles = [rect.findtext(f"{SVG}title") for rect in marked]
    assert titles == ["page 3: owned by no record in use"]


@pytest.mark.parametrize("n", [1, 20, 21, 64, 65, 512, 513, 4000])
def test_no_square_lies_on_another_or_outside(n: int, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(module_with((7, b"", min(n - 1, 10)), n_module_pages=n))
    picture = drawn(describe_image(path))
    width, height = int(picture.attrib["width"]), int(picture.attrib["height"])
    squares = [
        rect for rect in picture.iterfind(f"{SVG}rect") if rect.find(f"{SVG}title") is not None
    ]
    places = [[int(rect.attrib[key]) for key in ("x", "y", "width", "height")] for rect in squares]
    assert len({(x, y) for x, y, _, _ in places}) == n
    sides = {(w, h) for _, _, w, h in places}
    ((side, same),) = sides
    assert side == same
    assert all(x + side <= width and y + side <= height for x, y, _, _ in places)
    columns = sorted({x for x, _, _, _ in places})
    assert all(b - a > side for a, b in pairwise(columns))


def test_the_same_description_gives_the_same_bytes(tmp_path: Path) -> None:
    path = ram_with(tmp_path / "ram", REAL)
    assert draw_svg(describe_image(path)) == draw_svg(describe_image(path))


HOSTILE = "<script>alert(1)</script>]]>&\x00\x1b[31m\ud800\ufffe\n"


def test_hostile_text_is_text() -> None:
    """A saved description can say anything."""
    picture = draw_svg(
        {
            "address": ADDRESS,
            "n_pages": 1,
            "n_records": 1,
            "free_pages": 0,
            "free_record_bytes": 0,
            "records": [
                {
                    "index": 0,
                    "type": 7,
                    "type_name": HOSTILE,
                    "size": 0,
                    "pages": [0],
                    "decoded": None,
                }
            ],
            "problems": [{"code": HOSTILE, "message": HOSTILE, "offset": 0}],
        }
    )
    ElementTree.fromstring(picture.encode("utf-8"))
    assert "<script" not in picture
    assert "\x1b" not in picture
    assert "\x00" not in picture


def test_it_loads_and_runs_nothing(tmp_path: Path) -> None:
    picture = drawn(describe_image(ram_with(tmp_path / "ram", REAL)))
    kinds = {element.tag.removeprefix(SVG) for element in picture.iter()}
    assert kinds <= {"svg", "title", "style", "rect", "text", "circle"}
    keys = {key for element in picture.iter() for key in element.attrib}
    assert not any("href" in key or key.startswith("on") for key in keys)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["p9-18-64", "mix-18-64"]),
    wrong=st.lists(st.tuples(st.integers(10, 200), st.binary(min_size=1, max_size=4)), max_size=6),
)
def test_any_module_can_be_drawn(
    name: str, wrong: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(minios.module_image(name, "boot1-prekexec"))
    for at, value in wrong:
        put(data, at - PAGE_SIZE, value)
    path = tmp_path_factory.getbasetemp() / "drawn"
    path.write_bytes(data)
    found = describe_image(path)
    assert len(tooltips(drawn(found))) == found["n_pages"] + 1


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ram_with(tmp_path / "ram", REAL)
    picture = tmp_path / "picture.svg"
    assert run(["inspect", str(path), "--svg", str(picture)]) == 0
    assert capsys.readouterr() == ("", "")
    assert run(["inspect", str(path), "--svg", "-"]) == 0
    assert capsys.readouterr() == (picture.read_text(), "")
    assert picture.read_text() == draw_svg(describe_image(path, thorough=True))
    assert run(["inspect", str(path), "--svg", "-", "--json"]) == 2
    said = "xenlive inspect: --svg and --json exclude each other\n"
    assert capsys.readouterr() == ("", said)
    assert run(["inspect", str(path), "--svg", str(tmp_path / "no" / "folder")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def luminance(colour: str) -> float:
    """As WCAG 2 has it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def blended(colour: str, ground: str, opacity: float) -> str:
    pairs = [(int(colour[at : at + 2], 16), int(ground[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(a * opacity + b * (1 - opacity)):02x}" for a, b in pairs)


@pytest.mark.parametrize("dark", [False, True])
def test_what_is_written_on_a_square_can_be_read(dark: bool, tmp_path: Path) -> None:
    """By the colours in the file: text on squares has a contrast of 4.5 to 1."""
    devices = bytearray(module_with(*[(7, b"x", 1)] * 8, n_module_pages=18))
    path = tmp_path / "image"
    (tmp_path / "device").write_bytes(REAL)
    path.write_bytes(devices)
    n_checked = 0
    for image in (path, tmp_path / "device"):
        picture = drawn(describe_image(image))
        style = picture.findtext(f"{SVG}style") or ""
        light, _, night = style.partition("@media (prefers-color-scheme:dark)")
        fills = dict(re.findall(r"\.(\w+)\{fill:(#\w+)\}", night if dark else light))
        opacity = float(re.findall(r"\.out\{fill-opacity:([\d.]+)\}", light)[0])
        elements = list(picture)
        for square, text in pairwise(elements):
            if square.tag != f"{SVG}rect" or text.get("text-anchor") != "middle":
                continue
            name, *more = square.attrib["class"].split()
            ground = blended(fills[name], fills["bg"], opacity if "out" in more else 1.0)
            assert contrast(fills[text.attrib["class"]], ground) >= 4.5, (name, more)
            n_checked += 1
    assert n_checked > 26


def test_records_beyond_the_signs_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(module_with(*[(7, b"", 1)] * 100, n_module_pages=201, n_records=100))
    said = texts(drawn(describe_image(path)))
    assert "38 more records, 38 pages" in said
    assert len([text for text in said if text.startswith("record of type 7")]) == 62


def test_pages_that_the_image_lacks(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(REAL[2 * PAGE_SIZE :])
    picture = drawn(describe_image(path, "module"))
    assert "not in the image: 2 pages" in texts(picture)
    assert tooltips(picture)[0] == "page 0: record 0 (9PFS), page 0 of it, not in the image"
    squares = list(picture.iterfind(f"{SVG}rect"))
    assert sum("missing" in square.get("class", "") for square in squares) == 3  # and the legend
