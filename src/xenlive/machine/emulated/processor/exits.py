"""What the engine and those around it say to each other: exits, segments, and what a run may ask.

An exit is the end of a run for a reason that the hypervisor decides about. The instruction that
caused it has done nothing yet, and RIP is at its first byte, prefixes included.
"""

from __future__ import annotations

from typing import NamedTuple

from xenlive.errors import XenliveError

# Why a run ended.
EXCEPTION = "exception"  # vector, error, address (of a page fault)
SOFT_INTERRUPT = "soft-interrupt"  # int n, int3, into
HALT = "halt"
CPUID = "cpuid"
READ_MSR = "rdmsr"
WRITE_MSR = "wrmsr"
READ_CR = "read-cr"  # vector is the register's number, which is 8
WRITE_CR = "write-cr"  # vector is the register's number; clts and lmsw arrive as 0
WRITE_DR = "write-dr"  # vector is the register's number
SYSCALL = "syscall"
SYSENTER = "sysenter"
BUDGET = "budget"  # all blocks that were allowed have run
STOPPED = "stopped"  # the one instruction of a step has run
BREAKPOINT = "breakpoint"  # the instruction at address is next
ERROR = "error"  # text says what the engine could not do


class Exit(NamedTuple):
    """Why a run ended."""

    kind: str
    vector: int = 0
    error: int = 0
    address: int = 0
    text: str = ""


class Segment(NamedTuple):
    """A segment register with its hidden part.

    `flags` are laid out as in a descriptor's upper word (bits 8 to 15 and 20 to 23 count): flat
    32-bit code is 0x00c09b00.
    """

    selector: int
    base: int
    limit: int
    flags: int

    @property
    def dpl(self) -> int:
        """The descriptor's privilege level."""
        return self.flags >> 13 & 3


class EmulatorError(XenliveError):
    """Unicorn is not there, is not the release that the engine knows, or refuses a call."""


class EngineHooks:
    """What the engine asks while it runs. These answers are those of a machine with nothing in it.

    Ports, holes and the counter are asked for in the middle of an instruction: no register or
    mapping may be touched there.
    """

    def read_tsc(self) -> int:
        """The time stamp counter."""
        return 0

    def read_port(self, port: int, size: int) -> int:
        """`in` of `size` bytes."""
        return (1 << 8 * size) - 1

    def write_port(self, port: int, size: int, value: int) -> None:
        """`out` of `size` bytes."""

    def read_hole(self, address: int, size: int) -> int:
        """A load from physical memory that is not there."""
        return (1 << 8 * size) - 1

    def write_hole(self, address: int, size: int, value: int) -> None:
        """A store to physical memory that is not there, or can't be written."""

    def read_msr(self, number: int) -> int | None:
        """`rdmsr` of a register that the processor has not: a device's, such as the x2APIC's."""
        return None

    def write_msr(self, number: int, value: int) -> bool:
        """`wrmsr` of such a register; False if there is none, or it can't have that value."""
        return False
