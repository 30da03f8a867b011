"""Who makes a hypercall: a domain, in which mode, and its memory as its own addresses name it.

Specification: `copy_from_guest` and `copy_to_guest` as Xen has them for HVM guests: what a virtual
address leads to nowhere is -EFAULT.

**Invariants.** Handlers know a guest's memory through this alone, so that they need no processor.
A structure is read once. Pointers of 32 bit guests are 32 bits wide, whatever register held them.
A fault is the processor's own exception; whoever called the handler makes -EFAULT of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenlive.machine.emulated.processor.paging import NonCanonical, PageFault

if TYPE_CHECKING:
    from xenlive.abi.layout import Layout
    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.interface import Processor

# A hypercall of more operations than this is a guest that spins: Xen would let others run.
MAX_WORK = 1 << 18

#: What a bad pointer raises.
FAULTS = (PageFault, NonCanonical)


class TooMuchWork(Exception):
    """The guest asks for more operations at once than anybody would."""


class Caller:
    """One hypercall being made by `domain` on its `processor`."""

    __slots__ = ("_work", "domain", "in_multicall", "is_64bit", "processor")

    def __init__(self, domain: Domain, processor: Processor, is_64bit: bool) -> None:
        self.domain = domain
        self.processor = processor
        self.is_64bit = is_64bit
        self.in_multicall = False
        self._work = 0

    @property
    def word_bytes(self) -> int:
        """Size of a pointer, a frame number, a native word."""
        return 8 if self.is_64bit else 4

    def work(self) -> None:
        """Counts one operation of many. TooMuchWork when a bound is reached."""
        self._work += 1
        if self._work > MAX_WORK:
            raise TooMuchWork

    def read(self, address: int, size: int) -> bytes:
        """Memory at a virtual address. One of FAULTS if it is not there."""
        return self.processor.read_virtual(self._wrap(address), size)

    def write(self, address: int, data: bytes) -> None:
        """Stores to a virtual address. One of FAULTS if that can't be."""
        self.processor.write_virtual(self._wrap(address), data)

    def _wrap(self, address: int) -> int:
        if not self.is_64bit:
            return address & 0xFFFFFFFF
        # Xen's own walk of the guest's tables (`guest_walk_tables`) looks at 48 bits.
        address &= (1 << 48) - 1
        return address | -(address >> 47) << 48 & (1 << 64) - 1

    def form(self, wide: Layout, narrow: Layout) -> Layout:
        """The form of a structure that this caller uses."""
        return wide if self.is_64bit else narrow

    def read_struct(self, layout: Layout, address: int) -> dict[str, Any]:
        """A structure's fields by name."""
        return layout.decode(self.read(address, layout.size))

    def write_field(self, layout: Layout, address: int, name: str, value: int) -> None:
        """Stores one field of a structure, and nothing beside it."""
        for field in layout.fields:
            if field.name == name:
                signed = field.code in "bhiq"
                data = value.to_bytes(field.size, "little", signed=signed)
                self.write(address + field.offset, data)
                return
        raise KeyError(name)

    def read_word(self, address: int, index: int = 0) -> int:
        """Element `index` of an array of native words."""
        size = self.word_bytes
        return int.from_bytes(self.read(address + index * size, size), "little")

    def write_word(self, address: int, index: int, value: int) -> None:
        """Stores an element of an array of native words; what does not fit is cut off."""
        size = self.word_bytes
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        self.write(address + index * size, data)

    def read_u32(self, address: int) -> int:
        """A number of 32 bits."""
        return int.from_bytes(self.read(address, 4), "little")
