"""Looking through a memory image for what belongs to a module but lies outside of it.

One pass over the memory that is there finds both:

* the **grant table** page that has the entry of a device's interface page (`abi/grant_table.py`):
  an index into the table is a reference, so the entry's place in its page is known, and so are the
  frames it may name;
* **Xenstore state streams**, by their header at a multiple of 8.

**Invariants.** A page is taken for a grant table only if the entry it was found by permits access
to one of the frames that were asked for; a reference is resolved by it or by a page beside it, and
only to a frame whose entry permits access too. Hostile memory costs one pass, and at most
`MAX_FOUND` finds of each kind.

Why not the grant table's own address: it is the hypervisor's memory, mapped wherever the kernel
liked, and nothing that is handed over says where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from xenlive.abi.grant_table import (
    GRANT_ENTRY_V1,
    GRANTS_PER_PAGE,
    GTF_permit_access,
    GTF_type_mask,
)
from xenlive.abi.xs_state import XS_STATE_IDENT, XS_STATE_PREAMBLE
from xenlive.dump.image import Image
from xenlive.dump.statestream import starts_stream
from xenlive.memory.address import PAGE_SIZE, round_up

MAX_FOUND = 16

#: The frame that a reference stands for; None if there is no entry, or it permits nothing.
FrameOfGrant = Callable[[int], int | None]

_STREAM_ALIGN = 8
_CHUNK_BYTES = 1 << 20


class Findings:
    """What a pass found: addresses of `streams`; `grants`, pages that may be of a grant table.

    The latter are pairs of the reference that a page was found by and the page's address.
    """

    __slots__ = ("_image", "grants", "streams")

    def __init__(self, image: Image) -> None:
        self._image = image
        self.streams: list[int] = []
        self.grants: list[tuple[int, int]] = []

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
    """One pass over an image. `devices`: a grant reference, and the frames it may stand for."""
    found = Findings(image)
    wanted = {ref: frozenset(frames) for ref, frames in devices.items()}
    for address, chunk in _chunks(image):
        _search_streams(image, address, chunk, found)
        _search_grants(address, chunk, wanted, found)
    return found


def _search_streams(image: Image, address: int, chunk: bytes, found: Findings) -> None:
    at = chunk.find(XS_STATE_IDENT)
    while at >= 0 and len(found.streams) < MAX_FOUND:
        if at % _STREAM_ALIGN == 0:
            head = image.read_phys(address + at, XS_STATE_PREAMBLE.size)
            if starts_stream(head):
                found.streams.append(address + at)
        at = chunk.find(XS_STATE_IDENT, at + 1)


def _search_grants(
    address: int, chunk: bytes, wanted: Mapping[int, frozenset[int]], found: Findings
) -> None:
    whole = len(chunk) - len(chunk) % PAGE_SIZE
    words = memoryview(chunk)[:whole].cast("Q")  # flags u16, domid u16, frame u32
    for ref, frames in wanted.items():
        for page, word in enumerate(words[ref % GRANTS_PER_PAGE :: GRANTS_PER_PAGE].tolist()):
            if (
                word >> 32 in frames
                and word & GTF_type_mask == GTF_permit_access
                and len(found.grants) < MAX_FOUND
            ):
                found.grants.append((ref, address + page * PAGE_SIZE))


def _chunks(image: Image) -> Iterator[tuple[int, bytes]]:
    """(address, bytes) of all memory that is there, in pieces from page boundaries; no holes."""
    for region in image.data_regions():
        if region.address is None:
            continue
        end = region.address + region.size_bytes
        for at in range(round_up(region.address, PAGE_SIZE), end, _CHUNK_BYTES):
            yield at, image.read_phys(at, min(_CHUNK_BYTES, end - at))
