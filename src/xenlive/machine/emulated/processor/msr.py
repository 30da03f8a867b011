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

# First register, last register, value of each.
_RANGES = (
    (0x000, 0x001, 0),  # machine check address and type of the Pentium
    (0x02C, 0x02C, 0),
    (0x03B, 0x03B, 0),  # TSC adjustment
    (0x08B, 0x08B, 0x01000065),  # microcode
    (0x0CE, 0x0CE, 0x80000000),  # platform: CPUID can fault
    (0x0FE, 0x0FE, 0x508),  # MTRR capabilities
    (0x140, 0x140, 0),
    (0x179, 0x179, 2),  # machine check capabilities: two banks
    (0x17A, 0x17B, 0),
    (0x1D9, 0x1D9, 0),  # debug control, last branches
    (0x1DB, 0x1DE, 0),
    (0x200, 0x20F, 0),  # variable MTRRs
    (0x250, 0x250, 0),  # fixed MTRRs
    (0x258, 0x259, 0),
    (0x268, 0x26F, 0),
    (0x280, 0x29F, 0),  # machine check control 2
    (0x2FF, 0x2FF, 0x806),  # MTRRs on, write back
    (0x400, 0x47F, 0),  # machine check banks
    (0xC0000104, 0xC0000104, 0),
    (0xC0000408, 0xC000040A, 0x2000000000000000),
)
_FIRST_VALUES = {0x400: _MASK64, 0x404: _MASK64}
_READ_ONLY = frozenset((0x0CE, 0x0FE, 0x179))
#: Bits that may be set, where not all may.
_WRITABLE = {MSR_MISC_FEATURES: CPUID_FAULTING}


class Msrs:
    """The registers of one processor."""

    def __init__(self) -> None:
        self._values: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """Gives all registers the values they have when a domain starts."""
        self._values = {
            number: value for first, last, value in _RANGES for number in range(first, last + 1)
        }
        self._values.update(_FIRST_VALUES)

    @property
    def cpuid_faults(self) -> bool:
        """Whether CPUID outside of privilege level 0 is a general protection fault."""
        return bool(self._values[MSR_MISC_FEATURES] & CPUID_FAULTING)

    def read(self, number: int) -> int | None:
        """A register's value; None if there is no such register."""
        return self._values.get(number)

    def write(self, number: int, value: int) -> bool:
        """Sets a register; False if it is not there or may not have that value."""
        if number not in self._values or number in _READ_ONLY:
            return False
        if value & ~_WRITABLE.get(number, _MASK64):
            return False
        self._values[number] = value
        return True

    def save(self) -> dict[int, int]:
        """A copy of all values."""
        return dict(self._values)

    def restore(self, saved: dict[int, int]) -> None:
        """Goes back to what `save` gave."""
        self._values = dict(saved)
