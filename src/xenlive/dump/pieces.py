"""Stretches of an image with notes on what they are: what a hex dump is made of.

**Invariants.** A piece never holds more than a page. What is not in the image is an `ImageError`,
raised when its turn comes: pieces before it were given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from xenlive.abi.kexec_module import HEADER
from xenlive.dump.annotate import Annotator, Note, record_notes
from xenlive.dump.describe import describe
from xenlive.dump.image import FoundModule, Image
from xenlive.dump.roles import record_name
from xenlive.errors import ImageError
from xenlive.memory.address import PAGE_SIZE


@dataclass(frozen=True)
class Piece:
    """A stretch of one page.

    `start` is its guest physical address, or, in a module image, its offset. `notes` count from
    the start of the stretch.
    """

    title: str
    start: int
    data: bytes
    notes: list[Note]

    def as_object(self) -> dict[str, Any]:
        """The piece as JSON has it: `start` `title` `data` (hex) `fields`."""
        fields = [
            {"offset": note.offset, "size": note.size, "name": note.name, "value": note.value}
            for note in self.notes
            if note.name
        ]
        return {
            "start": self.start,
            "title": self.title,
            "data": self.data.hex(),
            "fields": fields,
        }


def page_piece(image: Image, found: FoundModule, index: int | None = None) -> Piece:
    """One page of a module; the administration page if `index` is None. ImageError."""
    last: int = HEADER.unpack(found.admin_page)[1]
    index = last if index is None else index
    if index > last:
        what = f"the module has no page {index}: the last one is {last}"
        raise ImageError("no-such-page", what, value=index)
    admin_page = found.admin_page[: found.present_bytes]
    data = admin_page if index == last else found.read_page(index)
    if data is None:
        raise ImageError("no-such-page", f"page {index} is not in the image", value=index)
    annotator = Annotator(describe(image, found))
    start = found.admin_offset + (index - last) * PAGE_SIZE
    return Piece(annotator.title(index), start, data, annotator.notes(index, data))


def record_piece(image: Image, found: FoundModule, index: int) -> Piece:
    """The data of a record, as far as they lie in the page. ImageError."""
    for record in describe(image, found)["records"]:
        if record["index"] == index:
            data = bytes.fromhex(record["data"])
            title = f"record {index}: {record_name(record)}"
            start = found.admin_offset + record["offset"]
            return Piece(title, start, data, record_notes(record))
    raise ImageError("no-such-record", f"the module has no record {index}", value=index)


def memory_pieces(image: Image, address: int, size: int) -> Iterator[Piece]:
    """Memory by its address, page by page; pages of the module have their notes. ImageError."""
    if image.kind == "module":
        what = "a module image does not say addresses: ask for a page or a record"
        raise ImageError("no-address", what)
    found = _module_in(image)
    annotator = Annotator(describe(image, found)) if found else None
    end = address + size
    while address < end:
        page = address - address % PAGE_SIZE
        data = image.read_phys(address, min(page + PAGE_SIZE, end) - address)
        if not data:
            raise ImageError("no-memory", f"the image has no memory at {address:#x}", address)
        index = _page_index(found, page)
        if annotator is None or index is None:
            yield Piece("", address, data, [Note(0, len(data), "")])
        else:
            whole = image.read_phys(page, PAGE_SIZE)
            notes = _cut(annotator.notes(index, whole), address - page, len(data))
            yield Piece(annotator.title(index), address, data, notes)
        address += len(data)


def _module_in(image: Image) -> FoundModule | None:
    try:
        return image.find_module()
    except ImageError:
        return None


def _page_index(found: FoundModule | None, page: int) -> int | None:
    """The index in the module of the page at that address; None outside of it."""
    if found is None:
        return None
    n_pages: int = HEADER.unpack(found.admin_page)[1]
    index = n_pages + (page - found.admin_offset) // PAGE_SIZE
    return index if 0 <= index <= n_pages else None


def _cut(notes: list[Note], first: int, size: int) -> list[Note]:
    """What of the notes lies in `size` bytes from `first` on, counted from there."""
    inside = []
    for note in notes:
        start, end = max(note.offset, first), min(note.end, first + size)
        if start < end:
            inside.append(replace(note, offset=start - first, size=end - start))
    return inside
