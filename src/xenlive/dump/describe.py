"""What a kexec module says, as one JSON object.

    address             int, or null where the image does not say it
    n_pages n_records recs_off                  as the administration page has them
    free_pages free_record_bytes
    records             index type type_name offset size data (hex) pages (indices) decoded
    problems            code message offset

`decoded` is null for types and sizes that are not known. For a 9PFS record it has the record's
fields, and under `interface` what its interface page says, if the image has that page.

**Invariants.** Any found module can be described, sound or not: what the page says is shown as far
as it lies inside of it, and `problems` tells what is wrong with it. The same image gives the same
object.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from xenlive.abi.kexec_module import (
    HEADER,
    PAGE_FREE,
    PG2REC_OFFSET,
    RECORD,
    RECORD_9PFS,
    RECORD_NONE,
    TYPE_NAMES,
)
from xenlive.abi.xen9pfs import INTERFACE, MAX_RING_ORDER, MIN_RING_ORDER
from xenlive.abi.xen9pfs import RECORD_9PFS as LAYOUT_9PFS
from xenlive.dump.image import FoundModule, Image
from xenlive.kexec.verify import verify
from xenlive.memory.address import PAGE_SIZE


def describe_image(path: str | os.PathLike[str], kind: str = "auto") -> dict[str, Any]:
    """Opens an image (see `Image`) and describes its module. ImageError if there is none."""
    with Image(Path(path), kind) as image:
        return describe(image, image.find_module())


def describe(image: Image, found: FoundModule) -> dict[str, Any]:
    """The object of `xenlive inspect --json` for a module in an open image."""
    page = found.admin_page
    _, n_pages, n_records, recs_off = HEADER.unpack(page)
    owners = page[PG2REC_OFFSET : PG2REC_OFFSET + n_pages]
    entries = _entries(page, n_records, recs_off)
    ends = [offset + size for _, offset, _, size in entries]
    data_start = max([recs_off + n_records * RECORD.size, *ends])
    return {
        "address": None if found.address is None else int(found.address),
        "n_pages": n_pages,
        "n_records": n_records,
        "recs_off": recs_off,
        "free_pages": owners.count(PAGE_FREE),
        "free_record_bytes": max(PAGE_SIZE - data_start, 0),
        "records": [_record(image, found, owners, *entry) for entry in entries],
        "problems": [
            {"code": problem.code, "message": problem.message, "offset": problem.offset}
            for problem in verify(page, found.size_bytes)
        ],
    }


def _entries(page: bytes, n_records: int, recs_off: int) -> list[tuple[int, int, int, int]]:
    """(index, offset, type, size) of the used entries that lie in the page."""
    fitting = max(PAGE_SIZE - recs_off, 0) // RECORD.size
    entries = []
    for index in range(min(n_records, fitting)):
        offset, type_, size = RECORD.unpack(page, recs_off + index * RECORD.size)
        if type_ != RECORD_NONE:
            entries.append((index, offset, type_, size))
    return entries


def _record(
    image: Image,
    found: FoundModule,
    owners: bytes,
    index: int,
    offset: int,
    type_: int,
    size: int,
) -> dict[str, Any]:
    data = found.admin_page[offset : offset + size]
    pages = [page for page, owner in enumerate(owners) if owner == index and owner != PAGE_FREE]
    decoded = None
    if type_ == RECORD_9PFS and len(data) == LAYOUT_9PFS.size:
        decoded = _decode_9pfs(image, found, data, pages)
    return {
        "index": index,
        "type": type_,
        "type_name": TYPE_NAMES.get(type_, "unknown"),
        "offset": offset,
        "size": size,
        "data": data.hex(),
        "pages": pages,
        "decoded": decoded,
    }


def _decode_9pfs(image: Image, found: FoundModule, data: bytes, pages: list[int]) -> dict[str, Any]:
    decoded: dict[str, Any] = LAYOUT_9PFS.decode(data)
    for page in pages:
        interface = _decode_interface(_read_page(image, found, page), len(pages))
        if interface is not None:
            decoded["interface"] = {"page": page, **interface}
            break
    return decoded


def _decode_interface(page: bytes, n_owned: int) -> dict[str, Any] | None:
    """The interface page's fields; None if this can't be the interface of a device.

    The image has no grant table to look the page up in, so it is known by what it must be: its
    ring pages and itself are owned, and their references differ and are above zero.
    """
    if len(page) < PAGE_SIZE:
        return None
    fields = INTERFACE.decode(page)
    order = fields["ring_order"]
    if not MIN_RING_ORDER <= order <= MAX_RING_ORDER or 1 + (1 << order) > n_owned:
        return None
    words = memoryview(page).cast("I")
    refs = words[INTERFACE.size // 4 : INTERFACE.size // 4 + (1 << order)].tolist()
    if 0 in refs or len(set(refs)) < len(refs):
        return None
    return {**fields, "ref": refs}


def _read_page(image: Image, found: FoundModule, index: int) -> bytes:
    offset = found.offset + index * PAGE_SIZE
    return image.read(offset, PAGE_SIZE) if offset + PAGE_SIZE <= image.size_bytes else b""
