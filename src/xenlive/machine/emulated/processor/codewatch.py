"""Which of the engine's memory is watched for stores into code: where code is, and nowhere else.

Unicorn must notice a store into code that it has translated, by whatever address. Left to itself it
loses track: the first store to a page by an address that can't be executed is noticed, all that
follow are not, though code of that page may be left, to be run by another address. Linux does that
whenever memory of a program becomes memory of another one. Where Unicorn has a hook for accesses to
memory, also one that is never called, it looks at each store; that is right, and makes all stores
slow: half of a kernel's time.

So physical memory is divided into pieces. A piece has such a hook unless it is RAM throughout and
no code was ever translated from it. Each new block of code is told of by Unicorn ("edge"), before
it runs; a first one in its piece brings the hook, and what the TLB knew of the piece is forgotten.

    plain ──code translated there, or no longer all RAM──▶ watched ──all is forgotten──▶ plain

**Invariants.** No store into a piece with translated code goes by unnoticed. What a guest does, and
how its blocks are counted, does not depend on any of this.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from xenlive.machine.emulated.processor import capi

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.processor.effort import Effort

_PIECE_SHIFT = 21
_PIECE_SIZE = 1 << _PIECE_SHIFT
_LAST_ADDRESS = (1 << 64) - 1
# Beyond so many hooks their pieces are put together, at the next chance.
_HOOKS_MAX = 64
# struct uc_tb: the address of a block, then how many instructions and bytes it has.
_TB_BYTES_AT = 10


class CodeWatch:
    """The hooks of one engine `uc`; `callback` makes a C function from one of ours."""

    def __init__(
        self, library: Any, uc: ctypes.c_void_p, callback: Callable[..., Any], effort: Effort
    ) -> None:
        self._lib = library
        self._effort = effort
        self._uc = uc
        self._edge = callback(capi.OnEdge, self._on_edge)
        self._unmapped: Any = None
        self._hooks: list[ctypes.c_size_t] = []
        self._ram: set[int] = set()
        self._code: set[int] = set()
        self._is_stale = False
        # Unicorn tells of no edge before the first block has run: until then all is watched.
        self._has_begun = False

    def begin(self, on_unmapped: Any) -> None:
        """Sets the hooks. `on_unmapped`, a C function, is called for memory that is not there."""
        self._unmapped = on_unmapped
        self._add(capi.HOOK_EDGE, self._edge, 1, 0)
        self._hooks.append(self._add(capi.HOOK_MEM_UNMAPPED, on_unmapped, 1, 0))

    def _add(self, what: int, function: Any, first: int, last: int) -> ctypes.c_size_t:
        handle = ctypes.c_size_t()
        at = ctypes.cast(function, ctypes.c_void_p)
        bounds = capi.uint64(first), capi.uint64(last)
        error = self._lib.uc_hook_add(self._uc, ctypes.byref(handle), what, at, 0, *bounds)
        capi.check(self._lib, error, "watch memory")
        return handle

    # ---- what is where -------------------------------------------------------------------

    def mapped(self, address: int, size: int) -> None:
        """There is RAM now: plain where it fills pieces."""
        first, end = -(-address >> _PIECE_SHIFT), address + size >> _PIECE_SHIFT
        if first < end:
            self._ram.update(range(first, end))
            self._is_stale = True

    def unmapped(self, address: int, size: int) -> None:
        """There is none, or not all of it."""
        pieces = range(address >> _PIECE_SHIFT, (address + size - 1 >> _PIECE_SHIFT) + 1)
        lost = self._ram.intersection(pieces)
        if lost:
            self._ram -= lost
            self._is_stale = True

    def forget_code(self) -> None:
        """All translations are forgotten: there is no code any more."""
        if self._code:
            self._code.clear()
            self._is_stale = True

    def can_begin(self, has_run: bool) -> bool:
        """Whether it begins, with all translations forgotten; `has_run`: some block has run."""
        begins = has_run and not self._has_begun
        self._has_begun |= has_run
        return begins

    def tidy(self) -> None:
        """Before a run: hooks where they are wanted."""
        if self._has_begun and (self._is_stale or len(self._hooks) > _HOOKS_MAX):
            self._set_hooks()

    def _set_hooks(self) -> None:
        """Hooks for all that is not plain, in as few ranges as can be."""
        self._is_stale = False
        plain = sorted(self._ram - self._code)
        starts = [0, *((piece + 1) << _PIECE_SHIFT for piece in plain)]
        ends = [*((piece << _PIECE_SHIFT) - 1 for piece in plain), _LAST_ADDRESS]
        for handle in self._hooks:
            self._lib.uc_hook_del(self._uc, handle)
        self._hooks = [
            self._add(capi.HOOK_MEM_UNMAPPED, self._unmapped, first, last)
            for first, last in zip(starts, ends, strict=True)
            if first < last
        ]
        self._forget_addresses()

    def _forget_addresses(self) -> None:
        error = self._lib.uc_ctl(self._uc, capi.int32(capi.CTL_FLUSH_TLB))
        capi.check(self._lib, error, "forget addresses")

    # ---- code ----------------------------------------------------------------------------

    def _on_edge(self, _: int, block: int, __: int, ___: int | None) -> None:
        """A block was translated, and is about to run. It is in one page or two."""
        address = ctypes.c_uint64.from_address(block).value
        size = ctypes.c_uint16.from_address(block + _TB_BYTES_AT).value
        self._effort.add_translated(size)
        self._note(address)
        if (address + max(size, 1) - 1) >> 12 != address >> 12:
            self._note(address + size - 1)

    def _note(self, address: int) -> None:
        physical = capi.uint64()
        wanted = capi.uint64(address), capi.int32(capi.PROT_EXEC), ctypes.byref(physical)
        if self._lib.uc_vmem_translate(self._uc, *wanted):
            self._code.update(self._ram)  # it can't be told where: then it may be anywhere
            self._watch(0, _LAST_ADDRESS)
            return
        piece = physical.value >> _PIECE_SHIFT
        if piece in self._ram and piece not in self._code:
            self._code.add(piece)
            self._watch(piece << _PIECE_SHIFT, (piece + 1 << _PIECE_SHIFT) - 1)

    def _watch(self, first: int, last: int) -> None:
        self._hooks.append(self._add(capi.HOOK_MEM_UNMAPPED, self._unmapped, first, last))
        self._forget_addresses()
