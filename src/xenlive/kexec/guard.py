"""The guard: nothing that a kexec writes may reach into handed-over pages.

A kernel is about to be overwritten by the next one: by its image, by the zeroes of its bss, by the
block with its start info. The pages of the kexec module must come through untouched, whatever the
image says about where it wants to lie.

    0        image    bss   block                     module
    |--------[#########][000][##]....................[handed over]----|
             ^ touched ─────────^         never ────▶ ^

Specification: none in the posted C code, which trusts the image; the rule is ours.

**Invariants.** This is the only place that decides it, and there is no way to switch it off: who
builds blocks (`update/cold.py`), plans a kexec and performs one (`plan.py`) asks here, and asks
again right before the first byte is written. It changes nothing.
"""

from __future__ import annotations

from xenlive.errors import BadAddress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenlive.kexec.module import KexecModule


def module_range(module: KexecModule) -> tuple[int, int]:
    """Address and size in bytes of all of a module's pages, the administration page too."""
    return module.address, module.size_bytes


def check_clear(touched: Iterable[tuple[int, int]], handed_over: Iterable[tuple[int, int]]) -> None:
    """Refuses to touch what is handed over: BadAddress with the first range that would.

    Both are pairs of address and size in bytes; an empty range touches nothing. A range that
    starts below 0 or has a negative size is refused as well: it is a sum that went wrong.
    """
    kept = [(address, size) for address, size in handed_over if size]
    for address, size in kept:
        if address < 0 or size < 0:
            raise BadAddress(address, size, "no memory to hand over")
    for address, size in touched:
        if address < 0 or size < 0:
            raise BadAddress(address, size, "no memory that a kernel can lie in")
        for kept_at, kept_size in kept:
            if size and address < kept_at + kept_size and kept_at < address + size:
                why = f"would overwrite the {kept_size} handed-over bytes at {kept_at:#x}"
                raise BadAddress(address, size, why)
