"""The grant table of one domain, as the hypervisor keeps it: entries, pins, versions.

    entry in the guest's table  ──first use──▶  active entry: domain, page, readers, writers
      flags: permit, read-only                    while it is pinned, the guest's entry only
      reading, writing  ◀──set and cleared──      says so; what Xen goes by is the active one

Specification: Xen 4.17 `xen/common/grant_table.c`; each method says which function it is.

**Invariants.** A page is held as long as one of its active entries is. What the guest writes into
an entry is read once for each use, and not at all while the entry is pinned. A refusal raises
`GrantError` with Xen's status and leaves table and flags as they were.

The table's pages are Xen's: they lie one after the other, so that an entry is a place in one array.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xenlive.abi.grant_table import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
    GTF_type_mask,
    GTF_writing,
)
from xenlive.abi.hypercalls.grant_table import (
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_general_error,
)
from xenlive.abi.hypercalls.xen import XEN_EAGAIN, XEN_EBUSY, XEN_EINVAL, XEN_ERANGE
from xenlive.errors import HypercallError
from xenlive.machine.emulated.space import MachineFrame
from xenlive.memory.address import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.space import Space

# Xen's default limits, which a toolstack gives to its guests.
MAX_FRAMES = 64
INITIAL_FRAMES = 1
MAX_STATUS_FRAMES = 8

# Which of Xen's pages of a domain the table has.
FIRST_SHARED = 1
FIRST_STATUS = FIRST_SHARED + MAX_FRAMES

# A counter of pins is a byte, and no more than half of its range is used.
_PINS_MAX = 128

_ENTRY_BYTES = {1: 8, 2: 16}
_STATUS_PER_PAGE = PAGE_SIZE // 2
_BOTH = GTF_reading | GTF_writing


class GrantError(HypercallError):
    """One operation on grants was refused; `status` is the GNTST_ number that says why."""

    def __init__(self, call: str, status: int, why: str) -> None:
        self.status = status
        super().__init__(call, XEN_EINVAL, f"status {status}: {why}")


@dataclass(slots=True)
class Active:
    """An entry in use by `domid`: `length` bytes from `start` of `frame`, by readers and writers.

    `table` and `ref` are where the page was granted first, another table for a transitive grant.
    """

    domid: int
    frame: MachineFrame
    start: int
    length: int
    is_sub_page: bool
    table: GrantTable
    ref: int
    readers: int = 0
    writers: int = 0

    @property
    def is_pinned(self) -> bool:
        """Whether anybody uses it."""
        return bool(self.readers or self.writers)


class GrantTable:
    """The grants of the domain with `space`; `peer` finds the table of another domain."""

    def __init__(
        self,
        domid: int,
        space: Space,
        peer: Callable[[int], GrantTable | None],
        max_frames: int = MAX_FRAMES,
    ) -> None:
        self.domid = domid
        self._peer = peer
        self.space = space
        self.version = 1
        self.n_frames = INITIAL_FRAMES
        self.n_status_frames = 0
        self.max_frames = max_frames
        #: Told of each use of a grant that begins (1) or ends (-1): reference, who, read-only.
        self.watch: Callable[[int, int, Active, bool], object] | None = None
        self._active: dict[int, Active] = {}
        first = space.xen_frame(FIRST_SHARED).index
        pages = [space.frame_view(first + i) for i in range(MAX_FRAMES)]
        self._pages = pages
        self._half = [page.cast("H") for page in pages]
        self._word = [page.cast("I") for page in pages]
        self._long = [page.cast("Q") for page in pages]
        status = space.xen_frame(FIRST_STATUS).index
        self._status = [space.frame_view(status + i).cast("H") for i in range(MAX_STATUS_FRAMES)]

    # ---- the table -----------------------------------------------------------------------

    @property
    def n_entries(self) -> int:
        """How many references there are now (`nr_grant_entries`)."""
        return self.n_frames * PAGE_SIZE // _ENTRY_BYTES[self.version]

    def grow(self, n_frames: int) -> bool:
        """Makes the table `n_frames` long, never shorter (`gnttab_grow_table`)."""
        if n_frames > self.max_frames:
            return False
        self.n_frames = max(self.n_frames, n_frames)
        if self.version == 2:
            self.n_status_frames = max(self.n_status_frames, _status_frames_of(n_frames))
        return True

    def shared_frame(self, index: int) -> MachineFrame | None:
        """Page `index` of the table, made if need be (`gnttab_get_shared_frame_mfn`)."""
        if index >= self.n_frames and not self.grow(index + 1):
            return None
        return self.space.xen_frame(FIRST_SHARED + index)

    def status_frame(self, index: int) -> MachineFrame | None:
        """Page `index` of the states of version 2 (`gnttab_get_status_frame_mfn`)."""
        n_frames = (index + 1) * _STATUS_PER_PAGE * _ENTRY_BYTES[2] // PAGE_SIZE
        if index >= self.n_status_frames and not self.grow(n_frames):
            return None
        return self.space.xen_frame(FIRST_STATUS + index)

    def shared_view(self) -> list[memoryview]:
        """The table's pages, live."""
        return self._pages[: self.n_frames]

    def active(self) -> dict[int, Active]:
        """References in use, with who uses them."""
        return dict(self._active)

    @property
    def n_v2_operations(self) -> int:
        """How many pinned entries only version 2 can have."""
        return sum(1 for active in self._active.values() if active.is_sub_page)

    # ---- versions ------------------------------------------------------------------------

    def set_version(self, version: int) -> None:
        """Gives the table another form and empties it (`gnttab_set_version`).

        The reserved entries stay, the toolstack's are among them. HypercallError if it can't be.
        """
        call = "GNTTABOP_set_version"
        if version not in _ENTRY_BYTES:
            raise HypercallError(call, XEN_EINVAL, f"no version {version}")
        if version == self.version:
            return
        busy = [ref for ref in self._active if ref >= GNTTAB_NR_RESERVED_ENTRIES]
        if busy:
            raise HypercallError(call, XEN_EBUSY, f"grants in use: {busy[:8]}")
        if self.version == 2 and self.n_v2_operations:
            raise HypercallError(call, XEN_EAGAIN, "a copy is going on")
        kept = [self._reserved(call, ref) for ref in range(GNTTAB_NR_RESERVED_ENTRIES)]
        for page in self._pages[: self.n_frames]:
            page[:] = bytes(PAGE_SIZE)
        if self.version == 2:
            self._forget_status_frames()
        self.version = version
        if version == 2:
            self.n_status_frames = _status_frames_of(self.n_frames)
            for view in self._status[: self.n_status_frames]:
                view.cast("B")[:] = bytes(PAGE_SIZE)
        for ref, (flags, domid, gfn) in enumerate(kept):
            self._restore(ref, flags, domid, gfn)

    def _reserved(self, call: str, ref: int) -> tuple[int, int, int]:
        """Flags with the state in them, domain and frame of a reserved entry."""
        flags, domid = self.header(ref)
        gfn = self._gfn(ref)
        if self.version == 1:
            return flags, domid, gfn
        kind = flags & GTF_type_mask
        if kind == GTF_transitive or (kind == GTF_permit_access and gfn >> 32):
            raise HypercallError(call, XEN_ERANGE, f"grant {ref} does not fit version 1")
        if kind != GTF_permit_access:
            return 0, 0, 0
        view, place = self._status_place(ref)
        return flags | view[place], domid, gfn

    def _restore(self, ref: int, flags: int, domid: int, gfn: int) -> None:
        page, place = self._place(ref, 4)
        if self.version == 1:
            self._word[page][place + 1] = gfn
        else:
            long_page, long_place = self._place(ref, 8)
            self._long[long_page][long_place + 1] = gfn
            view, at = self._status_place(ref)
            view[at] = flags & _BOTH
            flags &= ~_BOTH
        self._word[page][place] = flags | domid << 16

    def _forget_status_frames(self) -> None:
        """Takes the pages of states away from the guest (`gnttab_unpopulate_status_frames`)."""
        for index in range(self.n_status_frames):
            gfn = self.space.gfn_of(self.space.xen_frame(FIRST_STATUS + index))
            if gfn is not None:
                self.space.unhook(gfn)
        self.n_status_frames = 0

    # ---- entries -------------------------------------------------------------------------

    def _place(self, ref: int, item_bytes: int) -> tuple[int, int]:
        """Page of an entry, and its place in there counted in items of that size."""
        page, offset = divmod(ref * _ENTRY_BYTES[self.version], PAGE_SIZE)
        return page, offset // item_bytes

    def header(self, ref: int) -> tuple[int, int]:
        """Flags and domain of an entry as the guest has them now, in one load."""
        page, place = self._place(ref, 4)
        word = self._word[page][place]
        return word & 0xFFFF, word >> 16

    def _set_flags(self, ref: int, flags: int) -> None:
        page, place = self._place(ref, 2)
        self._half[page][place] |= flags

    def _clear_flags(self, ref: int, flags: int) -> None:
        page, place = self._place(ref, 2)
        self._half[page][place] &= ~flags & 0xFFFF

    def _status_place(self, ref: int) -> tuple[memoryview, int]:
        return self._status[ref // _STATUS_PER_PAGE], ref % _STATUS_PER_PAGE

    def _gfn(self, ref: int) -> int:
        if self.version == 1:
            page, place = self._place(ref, 4)
            return self._word[page][place + 1]
        page, place = self._place(ref, 8)
        return self._long[page][place + 1]

    def body(self, ref: int) -> tuple[int, int]:
        """Of an entry of version 2, the two halves of its second word."""
        page, place = self._place(ref, 2)
        return self._half[page][place + 2], self._half[page][place + 3]

    def swap(self, ref_a: int, ref_b: int) -> None:
        """Exchanges two entries (`swap_grant_ref`); the caller saw that none is pinned."""
        size = _ENTRY_BYTES[self.version]
        (page_a, at_a), (page_b, at_b) = self._place(ref_a, size), self._place(ref_b, size)
        one = self._pages[page_a][at_a * size : (at_a + 1) * size]
        other = self._pages[page_b][at_b * size : (at_b + 1) * size]
        kept = bytes(one)
        one[:] = other
        other[:] = kept
        if self.version == 2:
            (view_a, at_a), (view_b, at_b) = self._status_place(ref_a), self._status_place(ref_b)
            view_a[at_a], view_b[at_b] = view_b[at_b], view_a[at_a]

    def seed(self, ref: int, domid: int, gfn: int) -> None:
        """Grants a page as the toolstack does before the guest runs (`xc_dom_gnttab_seed`)."""
        page, place = self._place(ref, 4)
        self._word[page][place + 1] = gfn
        self._word[page][place] = GTF_permit_access | domid << 16

    def is_pinned(self, ref: int) -> bool:
        """Whether anybody uses a grant."""
        return ref in self._active

    # ---- pins ----------------------------------------------------------------------------

    def pin(
        self,
        call: str,
        ref: int,
        domid: int,
        readonly: bool,
        mapping: bool,
        transitive: bool = True,
    ) -> Active:
        """Uses a grant for `domid`; `unpin` ends that. For a mapping, or else for a copy.

        `map_grant_ref` up to the page, and `acquire_grant_for_copy`. GrantError if refused.
        """
        if not 0 <= ref < self.n_entries:
            raise GrantError(call, GNTST_bad_gntref, f"no grant {ref} in domain {self.domid}")
        active = self._active.get(ref)
        chained = not mapping and self._is_transitive(ref)
        if active is not None:
            pins = active.readers if readonly else active.writers
            if active.domid != domid or pins >= _PINS_MAX or (mapping and active.is_sub_page):
                why = f"grant {ref} is in use by domain {active.domid}"
                raise GrantError(call, GNTST_general_error, why)
        if chained or active is None or not (readonly or active.writers):
            active = self._validate(call, ref, active, domid, readonly, mapping, transitive)
        self._count(active, readonly, 1)
        self._active[ref] = active
        if self.watch is not None:
            self.watch(1, ref, active, readonly)
        return active

    def unpin(self, ref: int, readonly: bool) -> None:
        """Ends one use of a grant (`unmap_common_complete`, `release_grant_for_copy`)."""
        active = self._active[ref]
        self._count(active, readonly, -1)
        if self.watch is not None:
            self.watch(-1, ref, active, readonly)
        if not active.is_pinned:
            del self._active[ref]
            active.frame.home.let_go(active.frame)
        self._reduce_status(ref, active, readonly)
        if active.table is not self:
            active.table.unpin(active.ref, readonly)

    def _is_transitive(self, ref: int) -> bool:
        return self.version == 2 and self.header(ref)[0] & GTF_type_mask == GTF_transitive

    def _count(self, active: Active, readonly: bool, by: int) -> None:
        if readonly:
            active.readers += by
        else:
            active.writers += by

    def _validate(
        self,
        call: str,
        ref: int,
        active: Active | None,
        domid: int,
        readonly: bool,
        mapping: bool,
        transitive: bool,
    ) -> Active:
        """Checks the guest's entry, marks it in use, and finds its page."""
        flags, owner = self.header(ref)
        kind = flags & GTF_type_mask
        chained = self.version == 2 and kind == GTF_transitive and not mapping
        if active is None:
            plain = kind == GTF_permit_access and not (mapping and flags & GTF_sub_page)
            if not (plain or chained) or owner != domid:
                why = f"grant {ref} has flags {flags:#x} for domain {owner}"
                raise GrantError(call, GNTST_general_error, why)
        if active is None or not (readonly or active.writers):
            if flags & GTF_readonly and not readonly:
                raise GrantError(call, GNTST_general_error, f"grant {ref} is read-only")
            self._mark(ref, GTF_reading if readonly else _BOTH)
        if mapping and active is not None:
            return active  # only copies look again at what the entry says
        try:
            if chained:
                found = self._follow(call, ref, domid, readonly, transitive)
            else:
                found = self._page_of(call, ref, flags, domid)
            self._validate_unchanged(call, active, found, readonly)
        except GrantError:
            self._reduce_status(ref, active, readonly)
            raise
        if active is None:
            found.frame.home.hold(found.frame)
            return found
        return active

    def _follow(self, call: str, ref: int, domid: int, readonly: bool, transitive: bool) -> Active:
        """Uses another domain's grant for a transitive one, one level deep."""
        other_domid, _ = self.body(ref)
        page, place = self._place(ref, 4)
        other_ref = self._word[page][place + 2]
        other = self._peer(other_domid) if transitive and other_domid != self.domid else None
        if other is None:
            why = f"grant {ref} leads to domain {other_domid}"
            raise GrantError(call, GNTST_general_error, why)
        there = other.pin(call, other_ref, self.domid, readonly, mapping=False, transitive=False)
        return Active(domid, there.frame, there.start, there.length, True, other, other_ref)

    def _page_of(self, call: str, ref: int, flags: int, domid: int) -> Active:
        gfn = self._gfn(ref)
        mapping = self.space.lookup(gfn)
        if mapping is None or mapping.is_foreign:
            raise GrantError(call, GNTST_bad_page, f"frame {gfn:#x} of grant {ref}")
        if self.version == 2 and flags & GTF_sub_page:
            start, length = self.body(ref)
            return Active(domid, mapping.frame, start, length, True, self, ref)
        return Active(domid, mapping.frame, 0, PAGE_SIZE, False, self, ref)

    def _validate_unchanged(
        self, call: str, active: Active | None, found: Active, readonly: bool
    ) -> None:
        """Refuses an entry in use that meanwhile says something else than at first."""
        if active is None:
            return
        same = active.frame == found.frame and active.table is found.table
        if active.is_sub_page:
            same = same and found.is_sub_page
            same = same and (active.start, active.length) == (found.start, found.length)
        if not same:
            if found.table is not self:
                found.table.unpin(found.ref, readonly)
            raise GrantError(call, GNTST_general_error, "the grant changed while in use")

    def _mark(self, ref: int, flags: int) -> None:
        if self.version == 1:
            self._set_flags(ref, flags)
        else:
            view, place = self._status_place(ref)
            view[place] |= flags

    def _reduce_status(self, ref: int, active: Active | None, readonly: bool) -> None:
        """What the entry says of its use is no more than its pins (`reduce_status_for_pin`)."""
        clear = 0 if active is not None and active.is_pinned else GTF_reading
        if not readonly and (active is None or not active.writers):
            clear |= GTF_writing
        if self.version == 1:
            self._clear_flags(ref, clear)
        elif ref < self.n_entries:
            view, place = self._status_place(ref)
            view[place] &= ~clear & 0xFFFF

    # ---- snapshots -----------------------------------------------------------------------

    def save(self) -> GrantState:
        """All that is not in the table's pages, for `restore`."""
        active = {ref: copy(entry) for ref, entry in self._active.items()}
        return self.version, self.n_frames, self.n_status_frames, active

    def restore(self, state: GrantState) -> None:
        """Goes back to what `save` gave; the pages are the space's to put back."""
        self.version, self.n_frames, self.n_status_frames, active = state
        self._active = {ref: copy(entry) for ref, entry in active.items()}


#: What `GrantTable.save` gives; only `restore` looks inside.
GrantState = tuple[int, int, int, dict[int, Active]]


def _status_frames_of(n_frames: int) -> int:
    """How many status pages the entries of so many pages need, a u16 each."""
    return -(-n_frames * (PAGE_SIZE // _ENTRY_BYTES[2]) // _STATUS_PER_PAGE)
