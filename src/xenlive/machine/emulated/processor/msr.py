"""Model-specific registers: which a PVH guest on Xen finds, and what it may write.

Which exist and what they say at first was read with RDMSR in a PVH guest on Xen 4.17 (on QEMU 7.2).
The rest gives a general protection fault, as Xen's `guest_rdmsr` and `guest_wrmsr` do. Registers
that the processor itself works with (EFER, STAR, FS base ...) are not here: see `intercepts.py`;
nor are those of the local APIC (`lapic.py`).

**Invariants.** `read` gives a value or None, `write` says whether it was taken; neither raises.
"""

from __future__ import annotations

MSR_TSC = 0x10
MSR_APIC_BASE = 0x1B
MSR_TSC_DEADLINE = 0x6E0
MSR_MISC_FEATURES = 0x140
CPUID_FAULTING = 1 << 0

_MASK64 = (1 << 64) - 1

# First register, last register, value of each: those that can be read and not written.
_CONSTANT = (
    (0x000, 0x001, 0),  # machine check address and type of the Pentium
    (0x02C, 0x02C, 0),
    (0x08B, 0x08B, 0x01000065),  # microcode
    (0x0CE, 0x0CE, 0x80000000),  # platform: CPUID can fault
    (0x0FE, 0x0FE, 0x508),  # MTRR capabilities
    (0xC0010015, 0xC0010015, 0),  # hardware configuration
    (0xC0010055, 0xC0010055, 0),  # interrupts pending
)
# Those that take any value and keep the one they have.
_DEAF = (
    (0x179, 0x179, 2),  # machine check capabilities: two banks
    (0x17B, 0x17B, 0),
    (0x280, 0x29F, 0),  # machine check control 2
    *((0x400, 0x400, _MASK64), (0x404, 0x404, _MASK64), (0x408, 0x47F, 0)),
    (0xC0000408, 0xC000040A, 0x2000000000000000),
    *((0xC0010000, 0xC0010007, 0), (0xC0010200, 0xC001020B, 0)),  # performance counters
    *((0xC0010010, 0xC0010010, 0), (0xC001001A, 0xC001001A, 0), (0xC001001D, 0xC001001D, 0)),
    *((0xC001001F, 0xC001001F, 0), (0xC0010114, 0xC0010114, 0), (0xC0011023, 0xC0011023, 0)),
    *((0xC0011029, 0xC0011029, 2), (0xC001102A, 0xC001102A, 0), (0xC001102C, 0xC001102C, 0)),
)
# Those that take zero, and are it.
_ZERO = (
    *((0x401, 0x403, 0), (0x405, 0x407, 0)),  # what the machine check banks found
    (0xC0010117, 0xC0010117, 0),  # where a nested host is saved
)
# Those that keep what they are given, as far as `_is_good` likes it.
_KEPT = (
    (0x03B, 0x03B, 0),  # TSC adjustment
    (0x140, 0x140, 0),
    (0x17A, 0x17A, 0),
    (0x1D9, 0x1D9, 0),  # debug control, last branches
    (0x1DB, 0x1DE, 0),
    (0x200, 0x20F, 0),  # variable MTRRs
    *((0x250, 0x250, 0), (0x258, 0x259, 0), (0x268, 0x26F, 0)),  # fixed MTRRs
    (0x2FF, 0x2FF, 0x806),  # MTRRs on, write back
    (0xC0000104, 0xC0000104, 0),  # how fast the TSC is
)
_DEF_TYPE = 0x2FF
_VARIABLE, _VARIABLE_END = 0x200, 0x20F
_FIXED, _FIXED_END = 0x250, 0x26F
_MEMORY_TYPES = frozenset((0, 1, 4, 5, 6))
_PHYSICAL = (1 << 40) - 1
#: Bits that may be set, where not all may.
_WRITABLE = {MSR_MISC_FEATURES: CPUID_FAULTING, 0xC0000104: (1 << 40) - 1, _DEF_TYPE: 0xCFF}


def _each(ranges: tuple[tuple[int, int, int], ...]) -> dict[int, int]:
    return {number: value for first, last, value in ranges for number in range(first, last + 1)}


_CONSTANT_VALUES, _DEAF_VALUES, _ZERO_VALUES = _each(_CONSTANT), _each(_DEAF), _each(_ZERO)
_FIRST_VALUES = _each(_KEPT)


def _is_good(number: int, value: int) -> bool:
    """Whether Xen lets a register have a value (`mtrr_var_range_msr_set` and its neighbours)."""
    if value & ~_WRITABLE.get(number, _MASK64):
        return False
    if _VARIABLE <= number <= _VARIABLE_END:
        is_mask = number & 1
        reserved = 0x7FF if is_mask else 0xF00
        return not value & (~_PHYSICAL | reserved) and (
            bool(is_mask) or value & 0xFF in _MEMORY_TYPES
        )
    if _FIXED <= number <= _FIXED_END:
        return all(kind in _MEMORY_TYPES for kind in value.to_bytes(8, "little"))
    return number != _DEF_TYPE or value & 0xFF in _MEMORY_TYPES


class Msrs:
    """The registers of one processor."""

    def __init__(self) -> None:
        self._values: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """Gives all registers the values they have when a domain starts."""
        self._values = dict(_FIRST_VALUES)

    @property
    def cpuid_faults(self) -> bool:
        """Whether CPUID outside of privilege level 0 is a general protection fault."""
        return bool(self._values[MSR_MISC_FEATURES] & CPUID_FAULTING)

    def read(self, number: int) -> int | None:
        """A register's value; None if there is no such register."""
        for values in (self._values, _CONSTANT_VALUES, _DEAF_VALUES, _ZERO_VALUES):
            if number in values:
                return values[number]
        return None

    def write(self, number: int, value: int) -> bool:
        """Sets a register; False if it is not there or may not have that value."""
        if number in self._values:
            if not _is_good(number, value):
                return False
            self._values[number] = value
            return True
        return number in _DEAF_VALUES or (number in _ZERO_VALUES and not value)

    def save(self) -> dict[int, int]:
        """A copy of all values."""
        return dict(self._values)

    def restore(self, saved: dict[int, int]) -> None:
        """Goes back to what `save` gave."""
        self._values = dict(saved)
