"""Guests that put pages where no processor reaches, or scatter them."""

from __future__ import annotations

import pytest
from kernels.building import build_kernel
from machine.emulated import small_guests

from xenlive.machine.emulated.processor import mappings
from xenlive.machine.emulated.space import RAM
from xenlive.machine.emulated.stop import TRIPLE_FAULT, UNSUPPORTED
from xenlive.machine.emulated.world import WORLD_ENDED, World

_MEMORY_BYTES = 16 << 20
_FAULT_AT = 0x12345678
_HIGHEST_SEEN = (1 << 40) - 1

# The first 4 MiB one to one, and nothing behind them.
_FAULTS = f"""
        movl $0x83, 0x300000
        movl $0x300000, %eax
        movl %eax, %cr3
        movl %cr4, %eax
        orl $0x10, %eax
        movl %eax, %cr4
        movl %cr0, %eax
        orl $0x80000000, %eax
        movl %eax, %cr0
        movl {_FAULT_AT:#x}, %eax
"""

# XENMEM_remove_from_physmap for each second page from 4 MiB on.
_SCATTERS = """
        movl $0x400, %ebp
again:  pushl %ebp
        pushl $0x7ff0
        hypercall 12, $15, %esp
        addl $8, %esp
        addl $2, %ebp
        jmp again
"""


@pytest.mark.parametrize("gfn", [_HIGHEST_SEEN >> 12, 1 << 28, 1 << 32, (1 << 32) + 1])
def test_a_page_beyond_all_walks_is_not_the_processors(gfn: int) -> None:
    """The engine has pages of its own up there, with what is intercepted and where a fault was."""
    with World() as world:
        guest = world.add_guest(memory_bytes=_MEMORY_BYTES)
        guest.boot(build_kernel(small_guests.kernel(_FAULTS)).read_bytes())
        space = guest.domain.space
        mapping = space.lookup(0x800)
        assert mapping is not None
        space.place(gfn, mapping.frame, RAM)
        assert world.run() == WORLD_ENDED
        assert guest.stop is not None
        assert guest.stop.kind == TRIPLE_FAULT
        assert guest.vcpu.engine.reg("cr2") == _FAULT_AT
        assert bytes(mapping.frame.view) == bytes(len(mapping.frame.view))
        space.unhook(gfn)


def test_a_guest_that_scatters_its_pages_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings, "_PARTS_MAX", 40)
    with World() as world:
        guest = world.add_guest(memory_bytes=_MEMORY_BYTES)
        guest.boot(build_kernel(small_guests.kernel(_SCATTERS)).read_bytes())
        assert world.run() == WORLD_ENDED
        assert guest.stop is not None
        assert guest.stop.kind == UNSUPPORTED
        assert "more than 40 parts" in guest.stop.what
