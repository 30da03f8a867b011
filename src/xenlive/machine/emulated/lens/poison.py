"""Poison for all memory that was not handed over, so that a kernel that lives by luck dies at once.

A kernel that was entered may count on its own segments, on the start info and what that points to,
and on the modules it names. Everything else may hold anything: what the kernel before happened to
leave there, zeros among it, is luck.

**Invariants.** Only pages of the domain's own RAM, as its memory map has it, are written: neither
Xen's pages nor others', nor ACPI tables. What is kept is kept to the byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.machine.emulated.space import RAM
from xenlive.memory.address import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenlive.machine.emulated.hypervisor.domain import Domain

DEFAULT_BYTE = 0xA5
_CHUNK_BYTES = 1 << 20


def poison_all_but(
    domain: Domain, kept: Iterable[tuple[int, int]], byte: int = DEFAULT_BYTE
) -> int:
    """Fills RAM with `byte`, but for `kept` (address and size in bytes). How many bytes it was."""
    keep = sorted((address, address + size) for address, size in kept if size > 0)
    filled = 0
    for start, size, kind in domain.boot_map:
        at, end = start, start + size
        for low, high in [*keep, (end, end)] if kind == 1 else []:
            if low > at:
                filled += _fill(domain, at, min(low, end), byte)
            at = max(at, high)
            if at >= end:
                break
    return filled


def _fill(domain: Domain, start: int, end: int, byte: int) -> int:
    filled = 0
    for low in range(start, end, _CHUNK_BYTES):
        high = min(low + _CHUNK_BYTES, end)
        if _is_ram(domain, low, high):
            domain.space.load(low, bytes([byte]) * (high - low))
            filled += high - low
        else:
            filled += _fill_by_pages(domain, low, high, byte)
    return filled


def _fill_by_pages(domain: Domain, start: int, end: int, byte: int) -> int:
    filled = 0
    while start < end:
        size = min(PAGE_SIZE - start % PAGE_SIZE, end - start)
        if _is_ram(domain, start, start + size):
            domain.space.load(start, bytes([byte]) * size)
            filled += size
        start += size
    return filled


def _is_ram(domain: Domain, start: int, end: int) -> bool:
    """Whether all of it is the domain's own RAM; Xen's pages can stand anywhere."""
    for gfn in range(start >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1):
        mapping = domain.space.lookup(gfn)
        if mapping is None or mapping.kind != RAM:
            return False
    return True
