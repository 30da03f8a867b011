"""What a kexec module says, as one JSON object.

    address             int, or null where the image does not say it
    n_pages n_records recs_off                  as the administration page has them
    free_pages free_record_bytes
    records             index type type_name offset size data (hex) pages (indices) decoded
    problems            code message offset kind: `unsound` what stops a kernel from attaching,
                        `suspicion` what does not
    attachable          whether no problem is of the kind `unsound`
    missing_pages       indices of pages that the image lacks
    pg2rec              the owner of each page, a byte each (hex), as far as it is in the page
    image               kind size_bytes regions (address and size_bytes of the memory it has)
    streams             Xenstore state streams: address page record, and what `summarize` says
    admin_address       of the last page; null as `address`
    others              the other modules of the image, each with address n_pages attachable
                        problems, at most `MAX_OTHERS`; null if nobody looked for them
    others_left_out     how many more there are, counted up to some hundreds
    settled             false if the administration page was being changed whenever it was read

`decoded` is null for types that are not known, and for records too short for theirs. For a 9PFS
record it has the record's fields, under `interface` what its interface page says, and under `rings`
what waits in them (see `device.py`); `own_records.py` has the other types. `problems` are those of
`verify`, then those of `suspect`, then `above-4-gib` of a module that lies where no kernel looks
for one.

**Invariants.** Any found module can be described, sound or not: what the page says is shown as far
as it lies inside of it, and `problems` tells what is wrong with it. The same image gives the same
object. Keys only ever become more.
"""

from __future__ import annotations

import os
from functools import partial
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
from xenlive.dump.device import PageOfGrant, decode_device
from xenlive.dump.image import FoundModule, Image
from xenlive.dump.own_records import decode_own
from xenlive.dump.search import MAX_DEVICES, Findings, search
from xenlive.dump.streams import streams_in
from xenlive.kexec.suspect import suspect
from xenlive.kexec.verify import Problem, verify
from xenlive.memory.address import PAGE_SIZE

#: Regions of memory that are listed; a dump can be made of a million.
MAX_REGIONS = 1000
#: Other modules that are told of. Real memory has one or two; hostile memory may have a million,
#: each of which takes a while to look through.
MAX_OTHERS = 32
#: What is wrong with another module, told up to here: the first says most.
MAX_PROBLEMS_OF_OTHERS = 16

UNSOUND = "unsound"  # kinds of problems
SUSPICION = "suspicion"

_4_GIB = 1 << 32


def describe_image(
    path: str | os.PathLike[str], kind: str = "auto", thorough: bool = False
) -> dict[str, Any]:
    """Opens an image (see `Image`) and describes its module. ImageError if there is none.

    `thorough` reads all of the image's memory once, see `describe`.
    """
    with Image(Path(path), kind) as image:
        return describe(image, image.find_module(), thorough)


def describe(image: Image, found: FoundModule, thorough: bool = False) -> dict[str, Any]:
    """The object of `xenlive inspect --json` for a module in an open image.

    `thorough` looks outside of the module as well, which reads all memory that is there once: for
    the domain's grant table, for other modules, for state streams.
    """
    page = found.admin_page[: found.present_bytes]  # what is not there is not made up
    _, n_pages, n_records, recs_off = HEADER.unpack(page)
    owners = page[PG2REC_OFFSET : PG2REC_OFFSET + n_pages]
    records = [_record(page, owners, *entry) for entry in _entries(page, n_records, recs_off)]
    findings = _search(image, found, records) if thorough else None
    for place, record in enumerate(records):
        # The grant table is looked for with the first devices alone.
        record["decoded"] = _decoded(found, record, findings if place < MAX_DEVICES else None)
    ends = [record["offset"] + record["size"] for record in records]
    admin_address = None if found.address is None else found.admin_offset
    data_start = max([recs_off + n_records * RECORD.size, *ends])
    others, left_out = None, 0
    if thorough or found.address is None:
        others, left_out = _others(image, found, findings)
    problems = problems_of(found)
    return {
        "address": None if found.address is None else int(found.address),
        "n_pages": n_pages,
        "n_records": n_records,
        "recs_off": recs_off,
        "free_pages": owners.count(PAGE_FREE),
        "free_record_bytes": max(PAGE_SIZE - data_start, 0),
        "records": records,
        "problems": problems,
        "attachable": is_attachable(problems),
        "pg2rec": owners.hex(),
        "missing_pages": [page for page in range(len(owners)) if not found.has_page(page)],
        "admin_address": admin_address,
        "image": _image(image),
        "streams": streams_in(image, found, len(owners), records, findings),
        "others": others,
        "others_left_out": left_out,
        "settled": found.settled,
    }


def _entries(page: bytes, n_records: int, recs_off: int) -> list[tuple[int, int, int, int]]:
    """(index, offset, type, size) of the used entries that lie in what there is of the page."""
    fitting = max(len(page) - recs_off, 0) // RECORD.size
    entries = []
    for index in range(min(n_records, fitting)):
        offset, type_, size = RECORD.unpack(page, recs_off + index * RECORD.size)
        if type_ != RECORD_NONE:
            entries.append((index, offset, type_, size))
    return entries


def _record(
    admin_page: bytes, owners: bytes, index: int, offset: int, type_: int, size: int
) -> dict[str, Any]:
    pages = [page for page, owner in enumerate(owners) if owner == index and owner != PAGE_FREE]
    return {
        "index": index,
        "type": type_,
        "type_name": TYPE_NAMES.get(type_, "unknown"),
        "offset": offset,
        "size": size,
        "data": admin_page[offset : offset + size].hex(),
        "pages": pages,
        "decoded": None,
    }


def _decoded(
    found: FoundModule, record: dict[str, Any], findings: Findings | None
) -> dict[str, Any] | None:
    data = bytes.fromhex(record["data"])
    if record["type"] == RECORD_9PFS:
        grants = [] if findings is None else _grants(found, data, findings)
        return decode_device(data, record["pages"], found.read_page, grants)
    return decode_own(record["type"], data, record["pages"], found.read_page)


def problems_of(found: FoundModule) -> list[dict[str, Any]]:
    """What is wrong with a module and what only looks so, as `problems` has it."""
    problems = [_problem(one, UNSOUND) for one in verify(found.admin_page, found.size_bytes)]
    suspicions = suspect(
        found.admin_page, found.size_bytes, lambda page: found.read_page(page) or b""
    )
    if found.address is not None and found.address + found.size_bytes > _4_GIB:
        what = (
            f"the module ends at {found.address + found.size_bytes:#x}: above 4 GiB no kernel looks"
        )
        suspicions = [*suspicions, Problem("above-4-gib", what, 0)]
    return problems + [_problem(one, SUSPICION) for one in suspicions]


def is_attachable(problems: list[dict[str, Any]]) -> bool:
    """Whether a kernel attaches to a module with these problems."""
    return all(problem["kind"] != UNSOUND for problem in problems)


def checked(found: FoundModule) -> dict[str, Any]:
    """What is wrong with a module: `address`, `n_pages`, `attachable` and all `problems`."""
    problems = problems_of(found)
    return {
        "address": None if found.address is None else int(found.address),
        "n_pages": HEADER.unpack(found.admin_page)[1],
        "attachable": is_attachable(problems),
        "problems": problems,
    }


def in_short(found: FoundModule) -> dict[str, Any]:
    """A module as `others` has it."""
    short = checked(found)
    return short | {"problems": short["problems"][:MAX_PROBLEMS_OF_OTHERS]}


def _problem(problem: Problem, kind: str) -> dict[str, Any]:
    return {
        "code": problem.code,
        "message": problem.message,
        "offset": problem.offset,
        "kind": kind,
    }


def _image(image: Image) -> dict[str, Any]:
    regions = image.regions()
    return {
        "kind": image.kind,
        "size_bytes": image.size_bytes,
        "regions": [
            {"address": region.address, "size_bytes": region.size_bytes}
            for region in regions[:MAX_REGIONS]
            if region.address is not None
        ],
    }


# What lies outside of the module.


def _search(image: Image, found: FoundModule, records: list[dict[str, Any]]) -> Findings | None:
    """One pass over the image's memory; None where it has no addresses to speak of."""
    if found.address is None:
        return None
    first = _first_frame(found)
    devices: dict[int, set[int]] = {}
    for record in records:
        if record["type"] == RECORD_9PFS:
            frames = devices.setdefault(_ring_ref(bytes.fromhex(record["data"])), set())
            frames.update(first + page for page in record["pages"])
    return search(image, devices)


def _ring_ref(data: bytes) -> int:
    return int.from_bytes(data[:4], "little")


def _grants(found: FoundModule, data: bytes, findings: Findings) -> list[PageOfGrant]:
    def page_of(lookup: PageOfGrant, ref: int) -> int | None:
        frame = lookup(ref)
        return None if frame is None else frame - _first_frame(found)

    ref = _ring_ref(data)
    return [partial(page_of, lookup) for lookup in findings.lookups(ref)]


def _first_frame(found: FoundModule) -> int:
    """The frame of page 0, which need not be in the image."""
    n_pages: int = HEADER.unpack(found.admin_page)[1]
    return found.admin_offset // PAGE_SIZE - n_pages


def _others(
    image: Image, chosen: FoundModule, findings: Findings | None
) -> tuple[list[dict[str, Any]], int]:
    """The other modules in short, and how many more there are."""
    if findings is None:
        modules = image.find_modules()
    else:
        modules = image.modules_that_end_at(findings.modules)
    others = [other for other in modules if other.admin_offset != chosen.admin_offset]
    return [in_short(other) for other in others[:MAX_OTHERS]], len(others[MAX_OTHERS:])
