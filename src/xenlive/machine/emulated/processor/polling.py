"""Time for a guest that waits by reading the time stamp counter again and again.

Each block of code takes a little time, and so does RDTSC; a guest that polls the counter until two
seconds are over would read it ten million times. Its reads come close to each other and nothing
else happens between them, so that after many of them each one lets more time pass, in proportion to
how long this went on already:

    reads       1 .. 1024        1025 ..
    time of each   100 ns        100 ns and 1/512 of the time since the first one, 100 us at most

A wait is as long as the guest wanted, or 1/512 longer. Whatever else a guest does (a port, a
hypercall, an exception, hundreds of blocks of other code) begins anew; only CPUID may stand
between, which programs have there so that the counter is read in order. Kernels that measure
something read it a few times, those that delay for microseconds some hundred times.

**Invariants.** The same blocks and reads give the same time: nothing of the host is in it.
"""

from __future__ import annotations

_READS_MIN = 1024
_NEAR_BLOCKS = 300
_PART_SHIFT = 9
_EXTRA_MAX_NS = 100_000


class Polling:
    """How long a guest has done nothing but to read the counter."""

    __slots__ = ("_block", "_reads", "_since_ns")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """The guest did something else."""
        self._reads = self._block = self._since_ns = 0

    def extra_ns(self, block: int, now_ns: int) -> int:
        """The counter is read at `now_ns`, after so many blocks: how much more time may pass."""
        if not self._reads or block - self._block > _NEAR_BLOCKS:
            self._reads, self._since_ns = 0, now_ns
        self._reads += 1
        self._block = block
        if self._reads <= _READS_MIN:
            return 0
        return min(now_ns - self._since_ns >> _PART_SHIFT, _EXTRA_MAX_NS)

    def save(self) -> tuple[int, int, int]:
        """The state: reads in a row, the block of the last one, when the first one was."""
        return self._reads, self._block, self._since_ns

    def restore(self, state: tuple[int, int, int]) -> None:
        """Goes back to what `save` gave."""
        self._reads, self._block, self._since_ns = state
