"""The grant table, version 1: which pages of a domain another domain may see.

    entry (8 bytes):  flags u16 | domid u16 | frame u32        Xen `public/grant_table.h`

`GrantTable` is the domain's own side: it fills entries in and takes them back. `GrantMapper` is
what the hypervisor does for another domain that wants to see a page: it checks the entry and marks
it as being read or written while mapped.

**Invariants.** An entry becomes valid in one store, its flags, after domid and frame stand. An
entry in use (`GTF_reading`, `GTF_writing`) is never taken back. Entries that are active when a
`GrantTable` is made are kept: after kexec they are the devices' of the kernel before. The mapper
reads an entry in one load, so that what it checked is what it uses, and no number in it reaches
memory unchecked.

References 0 to 7 are reserved (console, Xenstore, ...). Free ones are given out from the highest
downward, as Mini-OS does; a recording of it can be compared reference by reference.

Without a compare-and-swap the mapper's and the domain's changes to one entry's flags could cross.
They don't in practice: a domain changes the flags of a mapped entry only against the rules, and
then loses nothing but its own mark.
"""

from __future__ import annotations

import errno

from xenlive.abi.grant_table import (
    GRANTS_PER_PAGE,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_type_mask,
    GTF_writing,
)
from xenlive.errors import BadAddress, HypercallError, OutOfSpace
from xenlive.memory.address import PAGE_SIZE, Frame
from xenlive.ring.area import views_of_frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenlive.memory.guest import GuestMemory

RESERVED_REFS = 8
_U16 = 0xFFFF
_U32 = 0xFFFFFFFF
_MAP = "GNTTABOP_map_grant_ref"
_UNMAP = "GNTTABOP_unmap_grant_ref"


class GrantTable:
    """The domain's side of its grant table; `frames` is a live view of the table's pages."""

    __slots__ = ("_entries", "_flags", "_frames", "_free", "n_refs")

    def __init__(self, frames: memoryview) -> None:
        self._flags, self._frames, self._entries = _table_views(frames)
        self.n_refs = len(self._entries)
        self._free = [ref for ref in range(RESERVED_REFS, self.n_refs) if not self._flags[ref * 4]]

    @property
    def free_refs(self) -> int:
        """How many references can still be given out."""
        return len(self._free)

    def grant_access(self, domid: int, frame: Frame, readonly: bool = False) -> int:
        """Lets `domid` map `frame`; returns the reference. OutOfSpace when none is free."""
        if not 0 <= domid <= _U16 or not 0 <= frame <= _U32:
            raise ValueError(f"domid {domid} or frame {frame:#x} does not fit a grant entry")
        if not self._free:
            raise OutOfSpace("grant references", 1, 0)
        ref = self._free.pop()
        self._frames[ref * 2 + 1] = frame
        self._flags[ref * 4 + 1] = domid
        self._flags[ref * 4] = GTF_permit_access | (GTF_readonly if readonly else 0)
        return ref

    def entry(self, ref: int) -> tuple[int, int, Frame]:
        """Flags, domid and frame of an entry; IndexError if the table has none of that number."""
        if not 0 <= ref < self.n_refs:
            raise IndexError(f"no grant reference {ref}")
        return _parts(self._entries[ref])

    def frames(self) -> set[Frame]:
        """The frames of all pages that anybody was given access to."""
        return {Frame(self._frames[ref * 2 + 1]) for ref in self._active(0)}

    def end_unused(self, keep: Iterable[int] = ()) -> None:
        """Takes back all grants that nobody uses, but for reserved ones and those of `keep`."""
        kept = set(keep)
        for ref in self._active(RESERVED_REFS):
            if ref not in kept:
                self.end_access(ref)

    def _active(self, first: int) -> list[int]:
        return [ref for ref in range(first, self.n_refs) if self._flags[ref * 4]]

    def end_access(self, ref: int) -> bool:
        """Takes a grant back; False, and nothing is changed, while the other domain uses it."""
        if not RESERVED_REFS <= ref < self.n_refs:
            raise IndexError(f"no grant reference {ref} to take back")
        flags = self._flags[ref * 4]
        if flags & (GTF_reading | GTF_writing):
            return False
        if flags:
            self._flags[ref * 4] = 0
            self._free.append(ref)
        return True


class GrantMapper:
    """The hypervisor's side, for one other domain: `domid` maps pages of the one with `memory`."""

    __slots__ = ("_domid", "_entries", "_flags", "_mapped", "_memory")

    def __init__(self, frames: memoryview, memory: GuestMemory, domid: int) -> None:
        self._flags, _, self._entries = _table_views(frames)
        self._memory = memory
        self._domid = domid
        # reference -> how many mappings only read, how many write
        self._mapped: dict[int, tuple[int, int]] = {}

    def map(self, ref: int, writable: bool = True) -> memoryview:
        """A live view of the granted page; HypercallError, with Xen's name for it, if refused."""
        page = self._page(ref, self._validate(ref, writable))
        self._mark(ref, writable)
        return page if writable else page.toreadonly()

    def map_ring(self, refs: Iterable[int]) -> list[memoryview]:
        """Maps many pages, writable, in order; neighbours come as one view. All or none."""
        wanted = list(refs)
        frames = [self._validate(ref, writable=True) for ref in wanted]
        for ref, frame in zip(wanted, frames, strict=True):
            self._page(ref, frame)
        for ref in wanted:
            self._mark(ref, writable=True)
        return views_of_frames(self._memory, frames)

    def unmap(self, ref: int, writable: bool = True) -> None:
        """Gives one mapping of `ref` back; the views of it must not be used any more."""
        readers, writers = self._mapped.get(ref, (0, 0))
        if not (writers if writable else readers):
            raise _refused(_UNMAP, "GNTST_bad_handle", f"grant {ref} is not mapped so")
        if writable:
            writers -= 1
        else:
            readers -= 1
        flags = self._flags[ref * 4]
        if not writers:
            flags &= ~GTF_writing
        if not writers and not readers:
            flags &= ~GTF_reading
            del self._mapped[ref]
        else:
            self._mapped[ref] = (readers, writers)
        self._flags[ref * 4] = flags

    def unmap_all(self) -> None:
        """Gives every mapping back."""
        for ref, (readers, writers) in list(self._mapped.items()):
            for _ in range(readers):
                self.unmap(ref, writable=False)
            for _ in range(writers):
                self.unmap(ref)

    def _page(self, ref: int, frame: Frame) -> memoryview:
        try:
            return self._memory.page(frame)
        except BadAddress:
            raise _refused(_MAP, "GNTST_bad_page", f"frame {frame:#x} of grant {ref}") from None

    def _validate(self, ref: int, writable: bool) -> Frame:
        if not 0 <= ref < len(self._entries):
            raise _refused(_MAP, "GNTST_bad_gntref", f"grant {ref} is outside of the table")
        flags, domid, frame = _parts(self._entries[ref])
        if flags & GTF_type_mask != GTF_permit_access or flags & GTF_sub_page:
            raise _refused(_MAP, "GNTST_bad_gntref", f"grant {ref} has flags {flags:#x}")
        if domid != self._domid:
            raise _refused(_MAP, "GNTST_bad_gntref", f"grant {ref} is for domain {domid}")
        if writable and flags & GTF_readonly:
            raise _refused(_MAP, "GNTST_permission_denied", f"grant {ref} is for reading only")
        return frame

    def _mark(self, ref: int, writable: bool) -> None:
        readers, writers = self._mapped.get(ref, (0, 0))
        self._mapped[ref] = (readers, writers + 1) if writable else (readers + 1, writers)
        self._flags[ref * 4] |= GTF_reading | (GTF_writing if writable else 0)


def _table_views(frames: memoryview) -> tuple[memoryview, memoryview, memoryview]:
    """The table as u16 (flags, domid), as u32 (frame) and as u64 (an entry in one load)."""
    if len(frames) == 0 or len(frames) % PAGE_SIZE:
        raise ValueError(f"a grant table of {len(frames)} bytes is not made of whole pages")
    entries = frames.cast("Q")
    if len(entries) != len(frames) // PAGE_SIZE * GRANTS_PER_PAGE:
        raise TypeError("a grant entry is not 8 bytes here")
    return frames.cast("H"), frames.cast("I"), entries


def _parts(entry: int) -> tuple[int, int, Frame]:
    return entry & _U16, entry >> 16 & _U16, Frame(entry >> 32)


def _refused(call: str, status: str, why: str) -> HypercallError:
    number = errno.EACCES if status == "GNTST_permission_denied" else errno.EINVAL
    return HypercallError(call, number, f"{status}: {why}")
