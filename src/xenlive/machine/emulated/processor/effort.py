"""What a guest costs its host beside executing blocks, so that no guest keeps it busy for nothing.

A block of code counts as one, and most take some nanoseconds. Some take a million times that: new
code has to be translated, an access to memory that is not there is a call of Python, and each exit
leaves the emulator. A guest that does nothing else would reach a limit of blocks after hours.
So these count for the blocks that could have been executed meanwhile, roughly:

    an access to a hole, to a page that asks, to a port, RDTSC    a call of Python
    a page of holes that is touched first                         all translations' addresses go
    a block that is translated                                    by its bytes
    an exit                                                       the state is saved and looked at
    a change of the memory map                                    each part of memory is looked at

**Invariants.** Virtual time knows nothing of this. What a guest asks for is the same each time it
runs. What is translated, and the parts that memory is in, depend on what was before, as in a run
that was saved, and so only count for a guest that has very much of it. A turn ends before its time
only if it costs what many millions of blocks would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CALL_BLOCKS = 200
HOLE_BLOCKS = 40_000
_TRANSLATION_BLOCKS = 1000
_TRANSLATED_BYTE_BLOCKS = 100
EXIT_BLOCKS = 3000
_PART_BLOCKS = 500
# In one turn: what many new programs together come to is less.
_TRANSLATED_MAX_BLOCKS = 5_000_000
#: One run, and one turn, may cost as much as so many blocks: about a second.
RUN_MAX_BLOCKS = 150_000_000


class Effort:
    """The effort of one run; `too_much` is called, again and again, once it is."""

    __slots__ = ("_before_blocks", "_too_much", "asked_blocks", "translated_blocks")

    def __init__(self, too_much: Callable[[], object]) -> None:
        self._too_much = too_much
        self._before_blocks = 0
        self.begin()

    def begin(self) -> None:
        """A run begins."""
        #: What the guest asked for and what was translated, so far, in blocks.
        self.asked_blocks = 0
        self.translated_blocks, self._before_blocks = self._before_blocks, 0

    def add_map_change(self, n_parts: int) -> None:
        """The memory map was changed, between two runs: it counts with the second."""
        self._before_blocks += n_parts * _PART_BLOCKS

    @property
    def is_too_much(self) -> bool:
        """Whether the run was ended for it."""
        return self.asked_blocks + self.translated_blocks > RUN_MAX_BLOCKS

    def add(self, blocks: int) -> None:
        """From a hook: something was asked for that takes as long as `blocks` blocks."""
        self.asked_blocks += blocks
        if self.is_too_much:
            self._too_much()

    def add_translated(self, size_bytes: int) -> None:
        """From a hook: a block of so many bytes was translated."""
        self.translated_blocks += _TRANSLATION_BLOCKS + size_bytes * _TRANSLATED_BYTE_BLOCKS
        if self.is_too_much:
            self._too_much()


class Turn:
    """The effort of a guest's turn: many runs, if interrupts wait or timers come due."""

    __slots__ = ("_asked_blocks", "_counted_blocks", "_translated_blocks")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """It is the guest's turn."""
        self._asked_blocks = self._translated_blocks = self._counted_blocks = 0

    def add(self, run: Effort) -> int:
        """A run is over; what more of the turn counts as spinning, in blocks.

        That is what was asked for, and very much translation.
        """
        self._asked_blocks += run.asked_blocks
        self._translated_blocks += run.translated_blocks
        counts = self._translated_blocks > _TRANSLATED_MAX_BLOCKS
        counted = self._asked_blocks + (self._translated_blocks if counts else 0)
        before, self._counted_blocks = self._counted_blocks, counted
        return counted - before

    @property
    def is_too_much(self) -> bool:
        """Whether others want their turn."""
        return self._asked_blocks + self._translated_blocks > RUN_MAX_BLOCKS
