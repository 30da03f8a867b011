"""The exceptions of the processor: their vectors and names, and one on its way to the guest.

Specification: AMD64 Architecture Programmer's Manual, volume 2, chapter 8.

**Invariants.** A `Fault` never leaves the processor: what checks something raises it, and what
delivers exceptions to the guest takes it.
"""

from __future__ import annotations

DEBUG, BREAKPOINT, OVERFLOW, INVALID_OPCODE, NOT_AVAILABLE = 1, 3, 4, 6, 7
DOUBLE_FAULT, INVALID_TSS, NOT_PRESENT, STACK_FAULT = 8, 10, 11, 12
GENERAL_PROTECTION, PAGE_FAULT, ALIGNMENT = 13, 14, 17

_KNOWN = "#DE #DB NMI #BP #OF #BR #UD #NM #DF - #TS #NP #SS #GP #PF - #MF #AC - #XF"
NAMES = {vector: name for vector, name in enumerate(_KNOWN.split()) if name != "-"}
WITH_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17))


class Fault(Exception):
    """An exception while something was checked or delivered."""

    def __init__(self, vector: int, error: int = 0, address: int = 0) -> None:
        self.vector = vector
        self.error = error
        self.address = address
        super().__init__(f"{NAMES.get(vector, vector)} error {error:#x}")
