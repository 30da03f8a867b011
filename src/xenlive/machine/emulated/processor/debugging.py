"""What a debugger, or whoever waits for a guest to be somewhere, asks of a processor.

    points.add(address, function)     function() before the instruction at a linear address
    points.watch(kind, address ...)   function(access) after an access to physical memory
    points.on_step = function         function() after each instruction, or delivery of an event

All are called between two runs of the engine: registers and memory may be read and changed there,
breakpoints added and removed, the processor be asked to `pause`. The guest does not notice: time,
blocks, timers and the slices of a world are those of a run that nobody watched.

**Invariants.** A breakpoint's functions are called once each time that the guest comes by, in the
order in which they were added, and before a step from there. What they raise leaves through
`Vcpu.run`, which can be called again: the instruction is still to come, and not told of again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.processor.breaks import Breaks
    from xenlive.machine.emulated.processor.watches import Access, Watches


class Breakpoint:
    """One function at one linear address."""

    __slots__ = ("address", "function")

    def __init__(self, address: int, function: Callable[[], object]) -> None:
        self.address = address
        self.function = function


class Watchpoint:
    """One function for accesses of one kind to some physical memory."""

    __slots__ = ("function", "place")

    def __init__(self, place: tuple[int, int, int], function: Callable[[Access], object]) -> None:
        self.place = place
        self.function = function


class Points:
    """The breakpoints and watchpoints of a processor, and its steps."""

    __slots__ = ("_at", "_breaks", "_watches", "_watching", "on_step")

    def __init__(self, breaks: Breaks, watches: Watches) -> None:
        self._breaks = breaks
        self._watches = watches
        self._watching: list[Watchpoint] = []
        self._at: dict[int, list[Breakpoint]] = {}
        #: Called after each instruction (of `rep`, each round) and each delivery of an exception or
        #: interrupt, while it is set; not while the guest waits.
        self.on_step: Callable[[], object] | None = None

    def add(self, address: int, function: Callable[[], object]) -> Breakpoint:
        """Calls `function` before each execution of the instruction at linear `address`.

        In whatever mode or address space that is: a function that cares looks at the processor.
        Code that has no breakpoint costs nothing more than before; adding one translates the
        guest's code anew, a few milliseconds.
        """
        point = Breakpoint(address, function)
        self._at.setdefault(address, []).append(point)
        self._breaks.add(address)
        return point

    def remove(self, point: Breakpoint) -> None:
        """Ends what `add` began; once more is no error."""
        points = self._at.get(point.address, [])
        if point in points:
            points.remove(point)
        if not points and self._at.pop(point.address, None) is not None:
            self._breaks.remove(point.address)

    def has(self, address: int) -> bool:
        """Whether there is a breakpoint at that address."""
        return address in self._at

    def hit(self, address: int) -> None:
        """The guest is there: calls the functions."""
        for point in list(self._at.get(address, ())):
            if point in self._at.get(address, ()):  # another one may have taken it away
                point.function()

    def watch(
        self, kind: int, address: int, size: int, function: Callable[[Access], object]
    ) -> Watchpoint:
        """Calls `function` after each instruction that accesses physical memory there.

        `kind` is READ or WRITE of `watches.py`, which says what is seen, and what it costs.
        """
        point = Watchpoint((kind, address, size), function)
        self._watching.append(point)
        self._watches.add(kind, address, size)
        return point

    def unwatch(self, point: Watchpoint) -> None:
        """Ends what `watch` began; once more is no error."""
        if point in self._watching:
            self._watching.remove(point)
            if all(other.place != point.place for other in self._watching):
                self._watches.remove(*point.place)

    def accessed(self) -> bool:
        """After a run: calls the functions if something was accessed; whether it was."""
        access = self._watches.take_hit()
        if access is None:
            return False
        for point in list(self._watching):
            if point in self._watching and access.meets(*point.place):
                point.function(access)
        return True
