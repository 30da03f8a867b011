"""The engine's physical memory: which pages are mapped, which answer by asking, which are holes.

RAM and shared pages are memory of this process, mapped straight in. What may only be read, and what
is not there at all, is an I/O page to Unicorn: its loads and stores are calls. A hole becomes one
when it is first touched, and is forgotten with all others when there are too many.

    mapped (writable)     loads and stores at full speed, in the buffer itself
    mapped, read only     loads from the buffer, stores to `write_hole`
    nothing               loads from `read_hole` (all ones), stores to `write_hole`

**Invariants.** Unicorn's view is that of the last `map` or `unmap`, except that translated code and
addresses may be older: `is_stale` says so, and the engine forgets them before it runs again.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from xenlive.machine.emulated.processor import capi
from xenlive.machine.emulated.processor.codewatch import CodeWatch
from xenlive.machine.emulated.processor.effort import CALL_BLOCKS, HOLE_BLOCKS
from xenlive.machine.emulated.processor.paging import PAGE_SIZE
from xenlive.machine.emulated.stop import UNSUPPORTED, GuestStop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenlive.machine.emulated.processor.effort import Effort
    from xenlive.machine.emulated.processor.exits import EngineHooks

_LAZY_HOLES_MAX = 512
# RAM is mapped in pieces: taking a page out of one makes Unicorn look at each page of that piece.
_CHUNK_SIZE = 16 << 20
# Each change looks at all parts, so a guest that makes more of them makes its host busy for ever.
_PARTS_MAX = 2048
# What a page walk reaches. A space has frames beyond, where the engine has pages of its own.
_ADDRESS_END = 1 << 40


class Mappings:
    """The mappings of one engine `uc`; `callback` makes a C function from one of ours."""

    def __init__(
        self,
        library: Any,
        uc: ctypes.c_void_p,
        hooks: EngineHooks,
        callback: Callable[..., Any],
        effort: Effort,
    ) -> None:
        self._lib = library
        self._uc = uc
        self._hooks = hooks
        self._effort = effort
        self._load = callback(capi.OnLoad, self._on_load)
        self._store = callback(capi.OnStore, self._on_store)
        self.watch = CodeWatch(library, uc, callback, effort)
        self._holes: set[int] = set()
        self._readonly: dict[int, int] = {}
        #: Whether what was translated from here may be true no more.
        self.is_stale = False

    def map(self, address: int, size: int, buffer_address: int, writable: bool) -> None:
        """Puts `size` bytes at `buffer_address` there, or raises EmulatorError.

        Beyond 40 bits nothing is put anywhere: no walk leads there. GuestStop if there are too many
        parts, which only a guest that scatters pages can bring about.
        """
        if address >= _ADDRESS_END:
            return
        self.unmap(address, size)
        if not writable:
            for offset in range(0, size, PAGE_SIZE):
                self._readonly[address + offset] = buffer_address + offset
                self._ask_for(address + offset)
            return
        for offset in range(0, size, _CHUNK_SIZE):
            at, part = address + offset, min(_CHUNK_SIZE, size - offset)
            self.map_raw(at, part, buffer_address + offset, capi.PROT_ALL)
        self.watch.mapped(address, size)

    def map_raw(self, address: int, size: int, buffer_address: int, rights: int) -> None:
        """Unicorn's own mapping, with Unicorn's rights."""
        error = self._lib.uc_mem_map_ptr(self._uc, address, size, rights, buffer_address)
        capi.check(self._lib, error, f"map {size:#x} bytes at {address:#x}")

    def unmap(self, address: int, size: int) -> None:
        """There is nothing at `address` any more. GuestStop as of `map`."""
        if address >= _ADDRESS_END:
            return
        end = address + size
        self.watch.unmapped(address, size)
        for first, behind in self._mapped_parts(address, end):
            error = self._lib.uc_mem_unmap(self._uc, first, behind - first)
            capi.check(self._lib, error, f"unmap {behind - first:#x} bytes at {first:#x}")
            self.is_stale = True
        self._holes = {page for page in self._holes if not address <= page < end}
        for page in [page for page in self._readonly if address <= page < end]:
            del self._readonly[page]

    def _mapped_parts(self, address: int, end: int) -> list[tuple[int, int]]:
        regions, count = ctypes.POINTER(capi.Region)(), ctypes.c_uint32()
        self._lib.uc_mem_regions(self._uc, ctypes.byref(regions), ctypes.byref(count))
        known = [(regions[i].begin, regions[i].end + 1) for i in range(count.value)]
        self._lib.uc_free(regions)
        self._effort.add_map_change(len(known))
        if len(known) > _PARTS_MAX:
            raise GuestStop(UNSUPPORTED, f"its memory is in more than {_PARTS_MAX} parts")
        return [(max(a, address), min(b, end)) for a, b in known if a < end and address < b]

    # ---- pages that answer ---------------------------------------------------------------

    def make_hole(self, address: int) -> None:
        """From the hook of accesses to nothing: the page there answers from now on."""
        page = address & ~(PAGE_SIZE - 1)
        self._effort.add(HOLE_BLOCKS)
        self._ask_for(page)
        self._holes.add(page)

    @property
    def has_too_many_holes(self) -> bool:
        """Whether it is time for `forget_holes`: Unicorn gets slow with many pages."""
        return len(self._holes) > _LAZY_HOLES_MAX

    def holes(self) -> list[int]:
        """The pages of nothing that answer now."""
        return sorted(self._holes)

    def restore_holes(self, pages: Iterable[int]) -> None:
        """Goes back to what `holes` gave."""
        self.forget_holes()
        for page in pages:
            self.make_hole(page)

    def forget_holes(self) -> None:
        """Takes the pages of holes away, until they are touched again."""
        for page in sorted(self._holes):
            self.unmap(page, PAGE_SIZE)

    def _ask_for(self, page: int) -> None:
        args = (self._load, page, self._store, page)
        error = self._lib.uc_mmio_map(self._uc, page, PAGE_SIZE, *args)
        capi.check(self._lib, error, f"leave a hole at {page:#x}")

    def _on_load(self, _: int, offset: int, size: int, page: int | None) -> int:
        self._effort.add(CALL_BLOCKS)
        base = page or 0
        behind = self._readonly.get(base)
        if behind is None:
            return self._hooks.read_hole(base + offset, size)
        return int.from_bytes(ctypes.string_at(behind + offset, size), "little")

    def _on_store(self, _: int, offset: int, size: int, value: int, page: int | None) -> None:
        self._effort.add(CALL_BLOCKS)
        self._hooks.write_hole((page or 0) + offset, size, value)
