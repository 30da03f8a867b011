"""A 9pfs device that a module holds: its record, its interface page, and what is in its rings.

Specification: `abi/xen9pfs.py`. A record names the interface page by a grant reference, and that
page names the ring pages by others. Only the domain's grant table says which pages these are:

    ground          the pages are known by
    grant-table     a page of the image that has an entry for each of the references
    page-order      how devices are made: interface page, then behind it the ring pages in a row

Without a grant table the interface page is known by what it must be: its ring pages and itself are
owned by the record, and their references differ and are above zero.

**Invariants.** Any bytes are decoded as far as they make sense; nothing here raises because of
them. A page is never read outside of the module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xenlive.abi.xen9pfs import INTERFACE, MAX_RING_ORDER, MIN_RING_ORDER, RECORD_9PFS
from xenlive.dump.ninepmessages import pending, ring_halves
from xenlive.memory.address import PAGE_SIZE

#: A page of the module by its index; None, or fewer bytes, where the image lacks it.
ReadPage = Callable[[int], bytes | None]
#: The index of the module's page that a grant reference stands for; None if it is not known.
PageOfGrant = Callable[[int], int | None]

BY_GRANTS = "grant-table"
BY_ORDER = "page-order"


def decode_device(
    data: bytes, pages: list[int], read_page: ReadPage, grants: Sequence[PageOfGrant] = ()
) -> dict[str, Any] | None:
    """A 9PFS record's fields, `interface` and `rings` as far as they are there; None if too short.

    Of a longer record the first bytes are decoded: the format may only grow compatibly.
    `pages` are the record's, `grants` what may be the domain's grant table. Keys of `rings`:
    `ground`, `pages` (in order of the ring), `in`, `out` (see `ninepmessages.pending`; None if not
    all pages are in the image).
    """
    if len(data) < RECORD_9PFS.size:
        return None
    decoded: dict[str, Any] = RECORD_9PFS.decode(data)
    tried = (_by_grants(decoded["ring_ref"], pages, read_page, lookup) for lookup in grants)
    found = next(filter(None, tried), None) or _by_order(pages, read_page)
    if found is not None:
        interface, ground, ring_pages = found
        decoded["interface"] = interface
        if ring_pages:
            decoded["rings"] = _rings(interface, ground, ring_pages, read_page)
    return decoded


def decode_interface(page: bytes) -> dict[str, Any] | None:
    """The interface page's fields and `ref`; None if this can't be the interface of a device."""
    if len(page) < PAGE_SIZE:
        return None
    fields = INTERFACE.decode(page)
    order = fields["ring_order"]
    if not MIN_RING_ORDER <= order <= MAX_RING_ORDER:
        return None
    words = memoryview(page).cast("I")
    refs = words[INTERFACE.size // 4 : INTERFACE.size // 4 + (1 << order)].tolist()
    if 0 in refs or len(set(refs)) < len(refs):
        return None
    return {**fields, "ref": refs}


def _by_grants(
    ring_ref: int, pages: list[int], read_page: ReadPage, page_of_grant: PageOfGrant
) -> tuple[dict[str, Any], str, list[int]] | None:
    page = page_of_grant(ring_ref)
    if page is None or page not in pages:
        return None
    fields = decode_interface(read_page(page) or b"")
    if fields is None:
        return None
    ring = [page_of_grant(ref) for ref in fields["ref"]]
    known = [index for index in ring if index is not None]
    if len(known) < len(ring) or len({page, *known}) <= len(ring):
        return None
    return {"page": page, **fields}, BY_GRANTS, known


def _by_order(
    pages: list[int], read_page: ReadPage
) -> tuple[dict[str, Any], str, list[int]] | None:
    for page in pages:
        fields = decode_interface(read_page(page) or b"")
        if fields is not None and 1 + len(fields["ref"]) <= len(pages):
            others = [other for other in pages if other != page]
            return {"page": page, **fields}, BY_ORDER, _row(others, len(fields["ref"]), page)
    return None


def _row(pages: list[int], n: int, interface: int) -> list[int]:
    """The first `n` pages side by side behind a device's interface page; empty if there are none.

    The lowest free page became the interface, so no free page was below it when the ring was made.
    """
    for at in range(len(pages) - n + 1):
        if pages[at] > interface and pages[at + n - 1] - pages[at] == n - 1:
            return pages[at : at + n]
    return []


def _rings(
    interface: dict[str, Any], ground: str, pages: list[int], read_page: ReadPage
) -> dict[str, Any]:
    contents = [read_page(page) or b"" for page in pages]
    rings: dict[str, Any] = {"ground": ground, "pages": pages, "in": None, "out": None}
    if all(len(content) == PAGE_SIZE for content in contents):
        for name, half in zip(("in", "out"), ring_halves(contents), strict=True):
            cons, prod = interface[f"{name}_cons"], interface[f"{name}_prod"]
            rings[name] = pending(name, half, cons, prod)
    return rings
