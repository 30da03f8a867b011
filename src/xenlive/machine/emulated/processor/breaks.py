"""The engine's breakpoints: hooks of Unicorn's at single addresses, and nothing anywhere else.

A hook for one address becomes a call in the translation of that one instruction, so code without a
breakpoint runs as if there were none. What was translated before knows nothing of a new hook and
must be forgotten, which costs milliseconds; a debugger takes all breakpoints away whenever the
guest stops, and sets them again before it goes on. So a hook stays when its breakpoint goes, asleep
until it is wanted again, or is in the way.

    add ──▶ set ──remove──▶ asleep ──add──▶ set
                              └── many of them, or executed often ──▶ taken away

**Invariants.** `on_hit` is called for an instruction that has a breakpoint before it does anything,
each time that it is executed; but not for one that is passed over, nor while `is_silent`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenlive.machine.emulated.processor import capi

if TYPE_CHECKING:
    from collections.abc import Callable

# How many hooks may sleep, and how often they may be woken for nothing.
_ASLEEP_MAX = 64
_VAIN_MAX = 1000


class Breaks:
    """Breakpoints by linear address.

    `hook(what, function, argument, bounds)` adds a native hook, `unhook(handle)` takes one away;
    `callback` makes a C function.
    """

    def __init__(
        self,
        hook: Callable[[int, int, int, tuple[int, int]], int],
        unhook: Callable[[int], None],
        callback: Callable[..., Any],
        on_hit: Callable[[int], None],
    ) -> None:
        self._hook = hook
        at_hook = callback(capi.OnBlock, lambda _, address, *__: self.reached(address))
        self._function = capi.address_of_function(at_hook)
        self._unhook = unhook
        self._on_hit = on_hit
        self._handles: dict[int, int] = {}
        self._set: set[int] = set()
        self._vain = 0
        #: The address whose breakpoint is passed over when it comes next, and then no more.
        self.passed: int | None = None
        #: Whether none of them is told of.
        self.is_silent = False

    def add(self, address: int) -> None:
        """Sets one, if it is not there yet."""
        self._set.add(address)
        if address not in self._handles:
            bounds = address, address
            self._handles[address] = self._hook(capi.HOOK_CODE, self._function, 0, bounds)

    def remove(self, address: int) -> None:
        """Takes one away, if it is there."""
        self._set.discard(address)

    def tidy(self) -> None:
        """Between two runs: takes hooks away that sleep, if they cost something."""
        if self._vain <= _VAIN_MAX and len(self._handles) - len(self._set) <= _ASLEEP_MAX:
            return
        self._vain = 0
        for address in [address for address in self._handles if address not in self._set]:
            self._unhook(self._handles.pop(address))

    def reached(self, address: int) -> None:
        """From a hook: the instruction at `address` is about to be executed."""
        if address == self.passed:
            self.passed = None
        elif address not in self._set:
            self._vain += 1
        elif not self.is_silent:
            self._on_hit(address)
