"""Looking through a memory image for what belongs to a module but lies outside of it.

One pass over the memory that is there finds all of it:

* the **grant table** page that has the entry of a device's interface page (`abi/grant_table.py`):
  an index into the table is a reference, so the entry's place in its page is known, and so are the
  frames it may name;
* **Xenstore state streams**, by their header at a multiple of 8;
* **other modules**, by their eye catcher (`scan.py`).

**Invariants.** A page is taken for a grant table only if the entry it was found by permits access
to one of the frames that were asked for; a reference is resolved by it or by a page beside it, and
only to a frame whose entry permits access too. Hostile memory costs one pass, at most
`MAX_FOUND` finds of each kind and `MAX_CANDIDATES` modules, and a pass looks for `MAX_DEVICES`
devices.

Why not the grant table's own address: it is the hypervisor's memory, mapped wherever the kernel
liked, and nothing that is handed over says where.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice

from xenlive.abi.grant_table import (
    GRANT_ENTRY_V1,
    GRANTS_PER_PAGE,
    GTF_permit_access,
    GTF_type_mask,
)
from xenlive.abi.xs_state import XS_STATE_IDENT, XS_STATE_PREAMBLE
from xenlive.dump.image import Image
from xenlive.dump.scan import MAX_CANDIDATES, eye_catchers_in
from xenlive.dump.statestream import starts_stream
from xenlive.memory.address import PAGE_SIZE

MAX_FOUND = 16
#: A domain has one or two; each costs a look at every page.
MAX_DEVICES = 16

#: The frame that a reference stands for; None if there is no entry, or it permits nothing.
FrameOfGrant = Callable[[int], int | None]

_STREAM_ALIGN = 8


class Findings:
    """What a pass found: addresses of `streams`; `grants`, pages that may be of a grant table;
    `modules`, addresses of pages that may be a module's last.

    `grants` are pairs of the reference that a page was found by and the page's address.
    """

    __slots__ = ("_image", "grants", "modules", "streams")

    def __init__(self, image: Image) -> None:
        self._image = image
        self.streams: list[int] = []
        self.grants: list[tuple[int, int]] = []
        self.modules: list[int] = []

    def lookups(self, ref: int) -> list[FrameOfGrant]:
        """For each page that was found by `ref`: the frames that references stand for by it."""
        return [
            partial(self._frame_of, address, ref) for known, address in self.grants if known == ref
        ]

    def _frame_of(self, address: int, found_by: int, ref: int) -> int | None:
        """The table's pages lie side by side: a reference's entry may be in one further on."""
        away = ref // GRANTS_PER_PAGE - found_by // GRANTS_PER_PAGE
        at = address + away * PAGE_SIZE + ref % GRANTS_PER_PAGE * GRANT_ENTRY_V1.size
        entry = self._image.read_phys(at, GRANT_ENTRY_V1.size) if at >= 0 else b""
        if len(entry) < GRANT_ENTRY_V1.size:
            return None
        flags, _, frame = GRANT_ENTRY_V1.unpack(entry)
        return int(frame) if flags & GTF_type_mask == GTF_permit_access else None


def search(image: Image, devices: Mapping[int, Iterable[int]]) -> Findings:
    """One pass over an image. `devices`: a grant reference, and the frames it may stand for.

    Of more than `MAX_DEVICES` references only the first are looked for.
    """
    found = Findings(image)
    wanted: dict[int, dict[int, frozenset[int]]] = {}  # by the entry's place in its page
    for ref, frames in islice(devices.items(), MAX_DEVICES):
        wanted.setdefault(ref % GRANTS_PER_PAGE, {})[ref] = frozenset(frames)
    for address, buffer, count in image.chunks():
        if len(found.modules) < MAX_CANDIDATES:
            found.modules += [address + page for page in eye_catchers_in(buffer, count)]
        _search_streams(image, address, buffer, count, found)
        if wanted and len(found.grants) < MAX_FOUND:
            _search_grants(address, buffer, count, wanted, found)
    found.streams.sort()
    return found


def _search_streams(
    image: Image, address: int, buffer: mmap.mmap, count: int, found: Findings
) -> None:
    at = buffer.find(XS_STATE_IDENT, 0, count)
    while at >= 0 and len(found.streams) < MAX_FOUND:
        if at % _STREAM_ALIGN == 0:
            head = image.read_phys(address + at, XS_STATE_PREAMBLE.size)
            if starts_stream(head):
                found.streams.append(address + at)
        at = buffer.find(XS_STATE_IDENT, at + 1, count)


def _search_grants(
    address: int,
    buffer: mmap.mmap,
    count: int,
    wanted: Mapping[int, Mapping[int, frozenset[int]]],
    found: Findings,
) -> None:
    with memoryview(buffer) as view, view.cast("Q") as words:  # flags u16, domid u16, frame u32
        n_words = count // PAGE_SIZE * GRANTS_PER_PAGE
        columns = [
            (words[at:n_words:GRANTS_PER_PAGE].tolist(), refs) for at, refs in wanted.items()
        ]
    for column, refs in columns:
        for page, word in enumerate(column):
            if not word or word & GTF_type_mask != GTF_permit_access:
                continue
            for ref, frames in refs.items():
                if word >> 32 in frames and len(found.grants) < MAX_FOUND:
                    found.grants.append((ref, address + page * PAGE_SIZE))
