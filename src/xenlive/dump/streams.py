"""The Xenstore state streams of an image: those in a module's pages, and those a search found.

A kernel that hands its state over in memory gives it to a record of the module, a page after the
other; one that writes it to a file has it in its buffers, anywhere.

**Invariants.** The pages of one record are read as one run, in the order of their indices; pages
of nobody as the module has them. A page that is not in the image ends the stream.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from xenlive.abi.xs_state import XS_STATE_PREAMBLE
from xenlive.dump.image import FoundModule, Image
from xenlive.dump.search import MAX_FOUND, Findings
from xenlive.dump.statestream import MAX_RECORDS, Read, starts_stream, summarize
from xenlive.memory.address import PAGE_SIZE


def streams_in(
    image: Image,
    found: FoundModule,
    n_pages: int,
    records: list[dict[str, Any]],
    findings: Findings | None,
) -> list[dict[str, Any]]:
    """The summary of each stream, with where it starts: `address`, `page`, `record`; or null.

    Streams that start with a page of the module, and those of the whole image if it was searched;
    at most `MAX_FOUND` of them.
    """
    by_page = {page: record for record in records for page in record["pages"]}
    starts: list[tuple[dict[str, Any], Read]] = []
    for page in range(n_pages):
        if not starts_stream((found.read_page(page) or b"")[: XS_STATE_PREAMBLE.size]):
            continue
        record = by_page.get(page)
        pages = record["pages"] if record else list(range(n_pages))
        where = {
            "address": _address_of(found, page - n_pages),
            "page": page,
            "record": record["index"] if record else None,
        }
        starts.append((where, _reader(found, pages[pages.index(page) :])))
    known = {where["address"] for where, _ in starts}
    for address in findings.streams if findings else []:
        if address not in known:
            where = {"address": address, "page": None, "record": None}
            starts.append((where, partial(_read_from, image, address)))
    return _summaries(starts)


def stream_of(image: Image) -> dict[str, Any] | None:
    """The summary of a file that is a stream and nothing else; None if it is none."""
    if not starts_stream(image.read(0, XS_STATE_PREAMBLE.size)):
        return None
    return {"address": None, "page": None, "record": None} | summarize(image.read)


def _summaries(starts: list[tuple[dict[str, Any], Read]]) -> list[dict[str, Any]]:
    """All of them together are not worth more records than the largest store has."""
    summaries = []
    left = MAX_RECORDS
    for where, read in starts[:MAX_FOUND]:
        summary = summarize(read, left)
        left -= summary["records"]
        summaries.append(where | summary)
    return summaries


def _address_of(found: FoundModule, pages_after_admin: int) -> int | None:
    if found.address is None:
        return None
    return found.admin_offset + pages_after_admin * PAGE_SIZE


def _reader(found: FoundModule, pages: list[int]) -> Read:
    """Reads the pages of a module as one run of bytes, up to the first that is not there."""

    def read(offset: int, size: int) -> bytes:
        first, skipped = divmod(offset, PAGE_SIZE)
        parts = []
        for page in pages[first : -(-(offset + size) // PAGE_SIZE)]:
            part = found.read_page(page) or b""
            parts.append(part)
            if len(part) < PAGE_SIZE:
                break
        return b"".join(parts)[skipped : skipped + size]

    return read


def _read_from(image: Image, address: int, offset: int, size: int) -> bytes:
    return image.read_phys(address + offset, size)
