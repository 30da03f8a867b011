"""Administration pages put together by hand, as any kernel may have left them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kexec.killpoints import Stores, next_kernel, records_of

from xenlive.kexec.adminpage import AdminPage
from xenlive.kexec.verify import verify
from xenlive.memory.address import PAGE_SIZE

Entry = tuple[int, int, bytes]  # offset, type, data


def page_of(
    n_pages: int,
    entries: Sequence[Entry | None],
    recs_off: int = 0,
    n_records: int = 16,
    owners: bytes = b"",
) -> bytes:
    """A page with these entries at the start of its table, the other entries unused.

    `recs_off` 0 is where a fresh module's table lies; pages that `owners` leaves out are free.
    """
    page = bytearray(PAGE_SIZE)
    recs_off = recs_off or 14 + n_pages + n_pages % 2
    struct.pack_into("<8sHHH", page, 0, b"KexecMem", n_pages, n_records, recs_off)
    page[14 : 14 + n_pages] = owners.ljust(n_pages, b"\xff")
    for index, entry in enumerate(entries):
        if entry is not None:
            offset, type_, data = entry
            struct.pack_into("<HBB", page, recs_off + 4 * index, offset, type_, len(data))
            page[offset : offset + len(data)] = data
    return bytes(page)


def opened(page: bytes) -> AdminPage:
    """A sound page in memory of its own."""
    n_pages: int = struct.unpack_from("<H", page, 8)[0]
    assert verify(page, (n_pages + 1) * PAGE_SIZE) == []
    return AdminPage(memoryview(bytearray(page)))


def keeps_all(stores: Stores, sizes: Sequence[int] = (), some: int = 0) -> int:
    """Holds each moment of a change to: same records, owners of before or after; how many.

    `sizes` are both numbers of pages of a resize: then the owners are those of the size that the
    next kernel is told, and it can be told at least one of them. `some`: at so many moments.
    """
    before, after = opened(stores.before), opened(stores.after)
    assert records_of(before) == records_of(after)
    owners = {page.n_pages: page.owners() for page in (before, after)}
    moments = 0
    for moment in stores.pages(some=some):
        moments += 1
        seen = 0
        for n_pages in set(sizes) or {before.n_pages}:
            found = next_kernel(moment, n_pages)
            if found is not None:
                seen += 1
                assert records_of(found) == records_of(before)
                assert found.owners() == owners[n_pages]
        assert seen
    return moments
