"""Page walks: from a guest's virtual addresses to its physical ones, as the processor would.

The emulator has an MMU of its own for the guest's instructions. This one is for the machine's side:
hypercall arguments, the stacks and tables of interrupt delivery, a debugger, a backtrace. Formats
are those of the AMD64 Architecture Programmer's Manual, volume 2, chapter 5:

    paging off      virtual = physical
    2-level         CR4.PAE = 0: 10 + 10 + 12 bits, entries of 4 bytes; 4 MiB pages with CR4.PSE
    PAE, 3-level    CR4.PAE = 1, no long mode: 2 + 9 + 9 + 12 bits, entries of 8 bytes; 2 MiB pages
    4-level         long mode: 9 + 9 + 9 + 9 + 12 bits; 2 MiB and 1 GiB pages

**Invariants.** A walk reads at most four entries, and each entry once. It changes nothing:
accessed and dirty bits are left to the processor's own walks. What can't be reached is a
`PageFault` with the error code the processor would push, or a `NonCanonical`; nothing else is
raised, whatever the tables hold.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Physical(Protocol):
        """A domain's physical space. Total: holes read as all ones and swallow what is written."""

        def read(self, address: int, size: int) -> bytes:
            """`size` bytes at `address`."""
            ...

        def read_u64(self, address: int) -> int:
            """The aligned word at `address`."""
            ...

        def write(self, address: int, data: bytes) -> None:
            """Stores `data` at `address`."""
            ...


CR0_PE = 1 << 0
CR0_WP = 1 << 16
CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_SMEP = 1 << 20
EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11

#: Bits of a page fault's error code.
FAULT_PRESENT = 1 << 0
FAULT_WRITE = 1 << 1
FAULT_USER = 1 << 2
FAULT_RESERVED = 1 << 3
FAULT_FETCH = 1 << 4

#: Physical address bits of the processor; entries that name more are reserved (CPUID 0x80000008).
PHYSICAL_BITS = 40

PAGE_SIZE = 4096
_PAGE_MASK = PAGE_SIZE - 1

_PRESENT = 1 << 0
_WRITABLE = 1 << 1
_USER = 1 << 2
_LARGE = 1 << 7
_NO_EXECUTE = 1 << 63
_ADDRESS = (1 << 52) - 1 & ~_PAGE_MASK
#: Bits that may be reserved in an entry of a table.
_SELDOM = 0xFFF << 52 | _LARGE | _ADDRESS & ~((1 << PHYSICAL_BITS) - 1)
_TOO_HIGH = _ADDRESS & ~((1 << PHYSICAL_BITS) - 1)
#: A large page's entry has its PAT bit where a small one's address begins.
_LARGE_PAT = 1 << 12


class PageFault(Exception):
    """An address that can't be reached; `error` is the error code, without the user bit's guess."""

    def __init__(self, address: int, error: int) -> None:
        self.address = address
        self.error = error
        super().__init__(f"page fault at {address:#x}, error {error:#x}")


class NonCanonical(Exception):
    """A 64-bit address whose upper bits are not all alike: a general protection fault."""

    def __init__(self, address: int) -> None:
        self.address = address
        super().__init__(f"address {address:#x} is not canonical")


class Paging:
    """How virtual addresses are meant: the control registers that say so, at one moment."""

    __slots__ = ("cr0", "cr3", "cr4", "efer")

    def __init__(self, cr0: int, cr3: int, cr4: int, efer: int) -> None:
        self.cr0 = cr0
        self.cr3 = cr3
        self.cr4 = cr4
        self.efer = efer

    @property
    def levels(self) -> int:
        """Levels of tables: 0 with paging off, 2, 3 (PAE) or 4 (long mode)."""
        if not self.cr0 & CR0_PG:
            return 0
        if self.efer & EFER_LMA:
            return 4
        return 3 if self.cr4 & CR4_PAE else 2

    def translate(
        self,
        physical: Physical,
        address: int,
        *,
        write: bool = False,
        user: bool = False,
        fetch: bool = False,
    ) -> int:
        """The physical address behind `address`. PageFault or NonCanonical if there is none."""
        levels = self.levels
        if not levels:
            return address & 0xFFFFFFFF
        intent = write * FAULT_WRITE | user * FAULT_USER
        if fetch and self._fetches_are_told():
            intent |= FAULT_FETCH
        if levels == 2:
            return self._walk_2(physical, address & 0xFFFFFFFF, intent, fetch)
        if levels == 4 and not is_canonical(address):
            raise NonCanonical(address)
        return self._walk_8(physical, address, levels, intent, fetch)

    def _fetches_are_told(self) -> bool:
        no_execute = self.efer & EFER_NXE and self.cr4 & CR4_PAE
        return bool(no_execute or self.cr4 & CR4_SMEP)

    def _walk_2(self, physical: Physical, address: int, intent: int, fetch: bool) -> int:
        table = self.cr3 & 0xFFFFF000
        entry = _read_4(physical, table + (address >> 22) * 4)
        if not entry & _PRESENT:
            raise PageFault(address, intent)
        if entry & _LARGE and self.cr4 & CR4_PSE:
            if entry & 1 << 21:
                raise PageFault(address, intent | FAULT_RESERVED | FAULT_PRESENT)
            self._check_rights(entry, address, intent, fetch)
            high = (entry >> 13 & 0xFF) << 32
            return high | entry & 0xFFC00000 | address & 0x3FFFFF
        rights = entry
        entry = _read_4(physical, (entry & 0xFFFFF000) + (address >> 12 & 1023) * 4)
        if not entry & _PRESENT:
            raise PageFault(address, intent)
        self._check_rights(rights & entry, address, intent, fetch)
        return entry & 0xFFFFF000 | address & _PAGE_MASK

    def _walk_8(
        self, physical: Physical, address: int, levels: int, intent: int, fetch: bool
    ) -> int:
        long_mode = levels == 4
        if not long_mode:
            address &= 0xFFFFFFFF
        table = self.cr3 & (_ADDRESS if long_mode else 0xFFFFFFE0)
        rights = _WRITABLE | _USER
        for shift in (39, 30, 21, 12) if long_mode else (30, 21, 12):
            index = address >> shift & (511 if long_mode or shift < 30 else 3)
            entry = physical.read_u64(table + index * 8)
            if not entry & _PRESENT:
                raise PageFault(address, intent)
            is_large = bool(entry & _LARGE) and (shift == 21 or (shift == 30 and long_mode))
            # Most entries have none of the bits that any level reserves.
            if (entry & _SELDOM or is_large) and entry & self._reserved(shift, long_mode, is_large):
                raise PageFault(address, intent | FAULT_RESERVED | FAULT_PRESENT)
            if long_mode or shift < 30:  # the four entries of PAE's top have no rights of their own
                rights = rights & entry & (_WRITABLE | _USER) | (rights | entry) & _NO_EXECUTE
            if is_large or shift == 12:
                break
            table = entry & _ADDRESS
        self._check_rights(rights, address, intent, fetch)
        offset_mask = (1 << shift) - 1
        return entry & _ADDRESS & ~offset_mask | address & offset_mask

    def _reserved(self, shift: int, long_mode: bool, is_large: bool) -> int:
        """Bits that must be clear in an entry of this level."""
        bits = _TOO_HIGH
        if not self.efer & EFER_NXE:
            bits |= _NO_EXECUTE
        if is_large:
            bits |= (1 << shift) - PAGE_SIZE & ~_LARGE_PAT
        if long_mode:
            return bits | _LARGE if shift == 39 else bits
        bits |= 0x7FF << 52  # PAE has nothing of its own above the address
        return bits | _NO_EXECUTE if shift == 30 else bits

    def _check_rights(self, rights: int, address: int, intent: int, fetch: bool) -> None:
        user = intent & FAULT_USER
        refused = user and not rights & _USER
        if intent & FAULT_WRITE and not rights & _WRITABLE and (user or self.cr0 & CR0_WP):
            refused = True
        if fetch and (
            rights & _NO_EXECUTE or (not user and rights & _USER and self.cr4 & CR4_SMEP)
        ):
            refused = True
        if refused:
            raise PageFault(address, intent | FAULT_PRESENT)

    def read(self, physical: Physical, address: int, size: int, *, user: bool = False) -> bytes:
        """`size` bytes at a virtual address. PageFault names the first byte that is missing."""
        first = self.translate(physical, address, user=user)
        if (address & _PAGE_MASK) + size <= PAGE_SIZE:
            return physical.read(first, size)
        data = bytearray()
        for at, part in self._pieces(address, size):
            data += physical.read(self.translate(physical, at, user=user), part)
        return bytes(data)

    def write(self, physical: Physical, address: int, data: bytes, *, user: bool = False) -> None:
        """Stores `data` at a virtual address. On a PageFault nothing was stored."""
        pieces = [
            (self.translate(physical, at, write=True, user=user), part)
            for at, part in self._pieces(address, len(data))
        ]
        done = 0
        for place, part in pieces:
            physical.write(place, data[done : done + part])
            done += part

    def _pieces(self, address: int, size: int) -> list[tuple[int, int]]:
        """The address and size of each page's share of a run; addresses wrap as the mode's do."""
        mask = (1 << 64) - 1 if self.levels == 4 else 0xFFFFFFFF
        pieces = []
        while size > 0:
            part = min(size, PAGE_SIZE - (address & _PAGE_MASK))
            pieces.append((address & mask, part))
            address += part
            size -= part
        return pieces


def is_canonical(address: int) -> bool:
    """Whether bits 47 to 63 of a 64-bit address are all alike."""
    return address >> 47 in (0, 0x1FFFF)


def _read_4(physical: Physical, address: int) -> int:
    return physical.read_u64(address & ~7) >> (address & 4) * 8 & 0xFFFFFFFF
