"""The show target: a hostile module with its pages, described, drawn, compared and dumped.

The input is a `ModuleCase`. Its contents are the module's first pages, and, if there is one page
more than fits, a grant table behind the module. Its first operation says how it is shown:
whether as a module image or in memory, and whether all of the memory is searched.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from random import Random
from typing import Any
from xml.etree import ElementTree

from vectors import minios

from hostile import bytewise
from hostile.documented import codes_of
from hostile.images import scratch_file
from hostile.modulecase import MAX_OPERATIONS, ModuleCase, decode_case
from hostile.modulemutate import mutate_module
from hostile.moduleseeds import module_seeds
from hostile.target import Target, expect
from xenlive.abi.grant_table import GRANT_ENTRY_V1, GTF_permit_access
from xenlive.dump.describe import describe
from xenlive.dump.diff import Side, diff
from xenlive.dump.hexdump import rows_of
from xenlive.dump.image import FoundModule, Image
from xenlive.dump.picture import draw_module
from xenlive.dump.pieces import memory_pieces, page_piece, record_piece
from xenlive.dump.svg import draw_svg
from xenlive.errors import ImageError
from xenlive.kexec.suspect import suspect
from xenlive.kexec.verify import verify
from xenlive.memory.address import PAGE_SIZE

MAX_BYTES = 96 << 10
MODULE_AT = 0x3FEE000
DEVICE_PAGES = 17
_MAX_MODULE_BYTES = 5000 * PAGE_SIZE
_MEMORY_BYTES = 64 << 20
# A module of thousands of pages takes a second to be shown in all ways: one in so many is.
_LARGE, _LARGE_EVERY = 512, 32
_INTERFACE_WORDS = (0, 4, 64, 68, 128, 132, 136)


def check_showing(data: bytes) -> str:
    """One module: whether it is sound, what was suspected, or why there is nothing to show."""
    case = decode_case(data)
    as_memory, thorough, width, _ = (*case.operations, (0, 0, 0, 0))[0]
    in_memory = bool(as_memory & 1)
    size = min(max(case.size_bytes, 0), _MAX_MODULE_BYTES)
    n_pages = int.from_bytes(case.page[8:10], "little")
    if max(n_pages, size // PAGE_SIZE) > _LARGE and zlib.crc32(data) % _LARGE_EVERY:
        return "too large to show each time"
    scratch_file().write(_MEMORY_BYTES if in_memory else size, _pieces(case, size, in_memory))
    try:
        with Image(scratch_file().path, "memory" if in_memory else "module") as image:
            return _check_found(image, image.find_module(), bool(thorough & 1), 20 + width)
    except ImageError as error:
        expect(str(error).isprintable(), f"{error.code} has one line of text")
        return error.code


def _pieces(case: ModuleCase, size: int, in_memory: bool) -> Iterator[tuple[int, bytes]]:
    start = MODULE_AT if in_memory else 0
    end = start + size
    pages = case.contents[: max(size - PAGE_SIZE, 0)]
    yield start, pages
    yield max(end - PAGE_SIZE, start), bytes(case.page)
    if in_memory:
        yield end, case.contents[DEVICE_PAGES * PAGE_SIZE :]


def _check_found(image: Image, found: FoundModule, thorough: bool, width: int) -> str:
    description = describe(image, found, thorough)
    expect(description == describe(image, found, thorough), "the same image says the same")
    text = json.dumps(description, allow_nan=False)
    expect(json.loads(text) == description, "it is JSON, and all of it")
    codes = [problem["code"] for problem in description["problems"]]
    known = codes_of(verify) | codes_of(suspect)
    expect(known >= set(codes), f"{codes} are documented")
    expect(_is_sound(found) == (not set(codes) & codes_of(verify)), "unsound ones have a problem")
    _check_drawn(description, width)
    _check_dumped(image, found, description)
    side = Side(image, found)
    expect(diff(side, side) == [], "nothing changed from it to itself")
    return "shown, " + (codes[0] if codes else "sound")


def _is_sound(found: FoundModule) -> bool:
    return not verify(found.admin_page, found.size_bytes)


def _check_drawn(description: dict[str, Any], width: int) -> None:
    expect_harmless(str(draw_module(description, width)), "the picture")
    svg = draw_svg(description)
    expect_harmless(svg, "the SVG")
    ElementTree.fromstring(svg)


def _check_dumped(image: Image, found: FoundModule, description: dict[str, Any]) -> None:
    pieces = [page_piece(image, found)]
    for record in description["records"][:3]:
        pieces.append(record_piece(image, found, record["index"]))
        for page in record["pages"][:2]:
            try:
                pieces.append(page_piece(image, found, page))
            except ImageError as error:
                expect(error.code == "no-such-page", "a page is not in the image")
    if found.address is not None:
        pieces += memory_pieces(image, found.admin_offset, 64)
    for piece in pieces:
        at = 0
        for note in piece.notes:
            expect(note.offset == at, f"notes of {piece.title} leave nothing out")
            at = note.end
        expect(at == len(piece.data), f"notes of {piece.title} end where it does")
        for row in rows_of(piece.data, piece.notes, piece.start):
            expect_harmless(str(row), "the hex dump")
        json.dumps(piece.as_object(), allow_nan=False)


def expect_harmless(text: str, what: str) -> None:
    """Nothing in it acts on a terminal."""
    lines = text.split("\n")
    expect(all(line.isprintable() for line in lines), f"{what} has nothing that acts on a terminal")


def showing_seeds() -> list[bytes]:
    """Devices with what waits in their rings, with a grant table and without; other modules."""
    seeds = []
    for entry in minios.entries("module"):
        image = minios.files()[str(entry["file"])]
        if not str(entry["run"]).startswith("p9") or len(image) != (DEVICE_PAGES + 1) * PAGE_SIZE:
            continue
        for in_memory in (0, 1):
            pages = image[:-PAGE_SIZE] + _grant_table()
            page = bytearray(image[-PAGE_SIZE:])
            case = ModuleCase(len(image), page, [(in_memory, in_memory, 60, 0)], pages)
            seeds.append(case.encode())
    for data in module_seeds()[::3]:
        case = decode_case(data)
        case.operations = [(len(seeds) & 1, 0, 60, 0)]
        seeds.append(case.encode())
    return seeds


def _grant_table() -> bytes:
    """The page of a table with entries for references 2031 to 2047, as Mini-OS gives them out."""
    table = bytearray(PAGE_SIZE)
    first = MODULE_AT // PAGE_SIZE
    for page, ref in enumerate([2047, *range(2046, 2030, -1)]):
        at = ref % 512 * 8
        table[at : at + 8] = GRANT_ENTRY_V1.pack(GTF_permit_access, 0, first + page)
    return bytes(table)


def mutate_showing(data: bytes, rng: Random) -> bytes:
    """Another module, or the same with other numbers in its interface page or its rings."""
    case = decode_case(data)
    kind = rng.randrange(10)
    if kind < 3 or not case.contents:
        pages, case.contents = case.contents, b""
        case = decode_case(mutate_module(case.encode(), rng, MAX_BYTES))
        case.contents = pages
    elif kind == 3:
        del case.operations[MAX_OPERATIONS - 1 :]
        case.operations.insert(0, (rng.randrange(4), rng.randrange(2), rng.randrange(256), 0))
    else:
        contents = bytearray(case.contents)
        _change_contents(contents, rng, kind)
        case.contents = bytes(contents)
    return case.encode()[:MAX_BYTES]


def _change_contents(contents: bytearray, rng: Random, kind: int) -> None:
    if kind < 6:
        bytewise.put_number(contents, rng, rng.choice(_INTERFACE_WORDS), 4)
    elif kind < 8:
        # somewhere in a ring, at a multiple of what messages are made of
        at = PAGE_SIZE + rng.randrange(max(len(contents) - PAGE_SIZE, 1))
        bytewise.put_number(contents, rng, at, rng.choice((1, 2, 4)))
        # a message's size, as far as that can be told: a byte with three zeros behind it
        message = contents.find(b"\0\0\0", at)
        bytewise.put_number(contents, rng, message - 1, rng.choice((1, 2, 4)))
    else:
        bytewise.change(contents, rng, MAX_BYTES, resize=False)


TARGET = Target(
    name="show",
    about="a module with its pages, described, drawn, compared and dumped",
    seeds=showing_seeds,
    mutate=mutate_showing,
    check=check_showing,
    max_bytes=MAX_BYTES,
)
