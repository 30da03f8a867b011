"""Mapping other domains' grants: handles, pages in a guest's space, views for back ends.

    map:   pin the grant ─▶ put its page behind a guest frame ─▶ handle
    unmap: handle ─▶ take the page away again ─▶ unpin

Specification: Xen 4.17 `map_grant_ref`, `unmap_common` and the handles of
`xen/common/grant_table.c`, `xen/arch/x86/hvm/grant_table.c`.

**Invariants.** A handle stands for one mapping, and each mapping for one pin. Handles are given out
as Xen does: in order, a freed one only after all that were free before it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xenlive.abi.hypercalls.grant_table import (
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_general_error,
    GNTST_no_space,
)
from xenlive.errors import BadAddress
from xenlive.machine.emulated.hypervisor.grants import GrantError
from xenlive.machine.emulated.space import GRANT, GRANT_READONLY
from xenlive.memory.address import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenlive.machine.emulated.hypervisor.grants import GrantTable
    from xenlive.machine.emulated.space import MachineFrame, Space

_MAP = "GNTTABOP_map_grant_ref"
_UNMAP = "GNTTABOP_unmap_grant_ref"

# Handles come by the page of 16 byte structures, and that many pages at most.
_HANDLES_PER_PAGE = 256
_MAX_HANDLE_PAGES = 1024
MAX_HANDLES = _HANDLES_PER_PAGE * _MAX_HANDLE_PAGES


class DomainCrash(Exception):
    """The guest did what Xen kills a domain for; `why` is for whoever looks."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


@dataclass(slots=True)
class Mapped:
    """What a handle stands for: `ref` of `table`, its page, behind the guest frame `gfn`."""

    table: GrantTable
    ref: int
    flags: int
    frame: MachineFrame
    gfn: int

    @property
    def readonly(self) -> bool:
        """Whether the mapping only reads."""
        return bool(self.flags & GNTMAP_readonly)


class GrantMappings:
    """What the domain with `space` maps of others, whose tables `find` knows by domain id."""

    def __init__(self, domid: int, space: Space, find: Callable[[int], GrantTable | None]) -> None:
        self._domid = domid
        self._space = space
        self._find = find
        self._mapped: dict[int, Mapped] = {}
        self._free: deque[int] = deque()
        self._limit = 0

    def mapped(self) -> dict[int, Mapped]:
        """All mappings by handle."""
        return dict(self._mapped)

    def map(self, domid: int, ref: int, flags: int, host_addr: int) -> tuple[int, int]:
        """Handle and machine address of a new mapping (`map_grant_ref`).

        GrantError if it is refused, DomainCrash if a grant is mapped there already.
        """
        if not flags & (GNTMAP_device_map | GNTMAP_host_map):
            raise GrantError(_MAP, GNTST_bad_gntref, f"flags {flags:#x} map nothing")
        if flags & (GNTMAP_device_map | GNTMAP_application_map | GNTMAP_contains_pte):
            raise GrantError(_MAP, GNTST_general_error, f"flags {flags:#x} are not for a PVH guest")
        table = self._find(domid)
        if table is None:
            raise GrantError(_MAP, GNTST_bad_domain, f"no domain {domid}")
        handle = self._new_handle()
        readonly = bool(flags & GNTMAP_readonly)
        try:
            active = table.pin(_MAP, ref, self._domid, readonly, mapping=True)
            try:
                self._place(host_addr, active.frame, flags)
            except GrantError:
                table.unpin(ref, readonly)
                raise
        except GrantError:
            self._free.append(handle)
            raise
        gfn = host_addr >> PAGE_SHIFT
        self._mapped[handle] = Mapped(table, ref, flags, active.frame, gfn)
        return handle, active.frame.mfn << PAGE_SHIFT

    def _place(self, host_addr: int, frame: MachineFrame, flags: int) -> None:
        """Puts the page where the guest wants it (`create_grant_p2m_mapping`)."""
        if flags & ~GNTMAP_readonly != GNTMAP_host_map:
            raise GrantError(_MAP, GNTST_general_error, f"flags {flags:#x} are not all known")
        gfn = host_addr >> PAGE_SHIFT
        old = self._space.lookup(gfn)
        if old is not None and old.is_foreign:
            raise DomainCrash(f"a grant is mapped at {host_addr:#x} already")
        try:
            kind = GRANT_READONLY if flags & GNTMAP_readonly else GRANT
            self._space.place(gfn, frame, kind)
            self._leave_old_place(gfn, frame)
        except BadAddress as error:
            raise GrantError(_MAP, GNTST_general_error, str(error)) from None

    def _leave_old_place(self, gfn: int, frame: MachineFrame) -> None:
        """A domain that maps its own page finds it there alone from now on (`p2m_add_page`)."""
        if frame.home is not self._space:
            return
        old = self._space.gfn_of(frame)
        if old is not None and old != gfn:
            self._space.unhook(old)

    def unmap(self, handle: int, host_addr: int) -> None:
        """Ends the mapping at `host_addr` (`unmap_common`); at 0 nothing is unmapped, as in Xen."""
        mapped = self._mapped.get(handle)
        if mapped is None:
            raise GrantError(_UNMAP, GNTST_bad_handle, f"no mapping {handle}")
        if not host_addr:
            return
        gfn = host_addr >> PAGE_SHIFT
        there = self._space.lookup(gfn)
        if there is None or not there.is_foreign or there.frame != mapped.frame:
            why = f"mapping {handle} is not at {host_addr:#x}"
            raise GrantError(_UNMAP, GNTST_general_error, why)
        self._space.unhook(gfn)
        self._end(handle)
        if gfn != mapped.gfn:
            self._exchange(gfn, mapped)

    def _exchange(self, gfn: int, ended: Mapped) -> None:
        """The page was taken from the place of another mapping of it, which has this one's now."""
        for handle, other in self._mapped.items():
            if other.gfn == gfn and other.frame == ended.frame:
                self._mapped[handle] = replace(other, gfn=ended.gfn)
                return

    def release_all(self) -> None:
        """Ends all mappings: the domain is gone (`gnttab_release_mappings`)."""
        for handle, mapped in list(self._mapped.items()):
            there = self._space.lookup(mapped.gfn)
            if there is not None and there.is_foreign and there.frame == mapped.frame:
                self._space.unhook(mapped.gfn)
            self._end(handle)

    def _end(self, handle: int) -> None:
        mapped = self._mapped.pop(handle)
        mapped.table.unpin(mapped.ref, mapped.readonly)
        self._free.append(handle)

    def save(self) -> MappingState:
        """All mappings and free handles, for `restore`."""
        return dict(self._mapped), tuple(self._free), self._limit

    def restore(self, state: MappingState) -> None:
        """Goes back to what `save` gave; pins and pages are others' to put back."""
        mapped, free, self._limit = state
        self._mapped, self._free = dict(mapped), deque(free)

    def _new_handle(self) -> int:
        # Xen keeps one free handle as the end of its list.
        if len(self._free) > 1:
            return self._free.popleft()
        if self._limit == MAX_HANDLES:
            raise GrantError(_MAP, GNTST_no_space, "no handle is free")
        first = self._limit
        self._limit += _HANDLES_PER_PAGE
        self._free.extendleft(range(self._limit - 1, first, -1))
        return first


#: What `GrantMappings.save` gives; only `restore` looks inside.
MappingState = tuple[dict[int, Mapped], tuple[int, ...], int]


class BackEndGrants:
    """How a back end of this program, as domain `domid`, sees pages that `table` grants it."""

    def __init__(self, domid: int, table: GrantTable) -> None:
        self._domid = domid
        self._table = table
        self._mapped: list[tuple[int, bool]] = []

    def map(self, ref: int, writable: bool = True) -> memoryview:
        """A live view of the granted page. GrantError if it is refused."""
        active = self._table.pin(_MAP, ref, self._domid, not writable, mapping=True)
        self._mapped.append((ref, writable))
        return active.frame.view if writable else active.frame.view.toreadonly()

    def map_ring(self, refs: Iterable[int]) -> list[memoryview]:
        """Views of many pages, writable, in order. All or none."""
        done: list[memoryview] = []
        wanted = list(refs)
        try:
            for ref in wanted:
                done.append(self.map(ref))
        except GrantError:
            for ref in wanted[: len(done)]:
                self.unmap(ref)
            raise
        return done

    def unmap(self, ref: int, writable: bool = True) -> None:
        """Gives one mapping back; its view must not be used any more."""
        if (ref, writable) not in self._mapped:
            raise GrantError(_UNMAP, GNTST_bad_handle, f"grant {ref} is not mapped so")
        self._mapped.remove((ref, writable))
        self._table.unpin(ref, not writable)

    def unmap_all(self) -> None:
        """Gives all mappings back."""
        for ref, writable in list(self._mapped):
            self.unmap(ref, writable)
