"""Watchpoints: the instruction that read or wrote some physical memory is the last of its run.

Unicorn calls a hook for each access within bounds, in the middle of the instruction. What is to
happen is a stop after it, so that the instruction is whole and the value is there; and a stop is
looked for between two instructions only where a hook is called for each of them. That hook is
machine code which looks at a flag, as `counter.py` has one for blocks:

    access in bounds ──▶ flag ── next instruction ──▶ hook: flag set? ──▶ the run stops

Accesses by the guest's own instructions are seen, whatever they are: `lock`, `rep`, SSE, pushes.
What the machine stores for the guest is not: frames of exceptions, results of hypercalls, a back
end's part of a ring.

**Invariants.** Without a watchpoint nothing is hooked and nothing costs anything. With one, all of
the guest's loads and stores take Unicorn's slow path and each instruction a call: a few times
slower, and the same blocks, time and memory.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from xenlive.machine.emulated.processor import capi
from xenlive.machine.emulated.processor.counter import address_of, native_page

if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = 1, 2
_HOOKS = {READ: capi.HOOK_MEM_READ, WRITE: capi.HOOK_MEM_WRITE}
_KIND_OF_ACCESS = {16: READ, 17: WRITE}
# An access that begins this far below may reach into what is watched. Unicorn's are of 8 bytes.
_ACCESS_MAX = 16

# f(uc, address, size, flag): cmp qword [flag], 0; jne stop; ret; stop: jmp uc_emu_stop
_CODE = b"\x48\x83\x39\x00\x75\x01\xc3\x48\xb8%b\xff\xe0"


class Access(NamedTuple):
    """One access to what is watched: READ or WRITE, where it began, and how many bytes."""

    kind: int
    address: int
    size: int

    def meets(self, kind: int, address: int, size: int) -> bool:
        """Whether it is of that kind and touches those bytes."""
        is_apart = self.address + self.size <= address or address + size <= self.address
        return self.kind == kind and not is_apart


class Watches:
    """The watchpoints of one engine.

    `hook(what, function, argument, bounds)` adds a native hook, `unhook(handle)` takes one away;
    `callback` makes a C function; `stop` is the address of the one that ends a run.
    """

    def __init__(
        self,
        hook: Callable[[int, int, int, tuple[int, int]], int],
        unhook: Callable[[int], None],
        callback: Callable[..., Any],
        stop: int,
    ) -> None:
        self._hook = hook
        self._unhook = unhook
        self._flag = ctypes.c_uint64(0)
        self._on_memory = capi.address_of_function(callback(capi.OnAccess, self._on_access))
        self._page = native_page(_CODE % struct.pack("<Q", stop))
        if self._page is not None:
            self._on_code = address_of(self._page)
        else:
            stop_run = ctypes.CFUNCTYPE(None, capi.pointer)(stop)
            check = callback(capi.OnBlock, lambda uc, *_: self._flag.value and stop_run(uc))
            self._on_code = capi.address_of_function(check)
        self._each: int | None = None
        self._watched: dict[tuple[int, int, int], int] = {}
        self._hit: Access | None = None

    def add(self, kind: int, address: int, size: int) -> None:
        """Watches `size` bytes of physical memory for READ or WRITE; once more is no second one."""
        if (kind, address, size) in self._watched:
            return
        bounds = max(address - _ACCESS_MAX + 1, 0), address + size - 1
        self._watched[kind, address, size] = self._hook(_HOOKS[kind], self._on_memory, 0, bounds)
        if self._each is None:
            flag = ctypes.addressof(self._flag)
            self._each = self._hook(capi.HOOK_CODE, self._on_code, flag, (1, 0))

    def remove(self, kind: int, address: int, size: int) -> None:
        """Ends that, if it was there."""
        handle = self._watched.pop((kind, address, size), None)
        if handle is not None:
            self._unhook(handle)
        if not self._watched and self._each is not None:
            self._unhook(self._each)
            self._each = None

    def take_hit(self) -> Access | None:
        """The first access of the last run to what is watched, once."""
        if not self._flag.value:
            return None
        self._flag.value = 0
        hit, self._hit = self._hit, None
        return hit

    def _on_access(self, _: int, access: int, address: int, size: int, *__: int | None) -> None:
        found = Access(_KIND_OF_ACCESS.get(access, 0), address, size)
        if any(found.meets(*watched) for watched in self._watched):
            self._hit = self._hit or found
            self._flag.value = 1
