"""Watchpoints: which accesses are seen, where the guest is then, and that it does not notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kernels.machines import Machine, Machines, machines
from machine.emulated.test_emu_breakpoints import nothing, watch_run

from xenlive.machine.emulated.processor import counter
from xenlive.machine.emulated.processor.vcpu import RUN_PAUSED
from xenlive.machine.emulated.processor.watches import READ, WRITE, Access
from xenlive.machine.emulated.world import World

__all__ = ["machines"]  # the fixture
pytestmark = pytest.mark.peer

AT = 0x8000


def accesses(machine: Machine, kind: int, size: int = 8) -> list[Access]:
    """What is seen of a machine that pauses at each access to `size` bytes at AT."""
    seen: list[Access] = []

    def saw(access: Access) -> None:
        seen.append(access)
        machine.vcpu.pause()

    machine.vcpu.points.watch(kind, AT, size, saw)
    return seen


@pytest.mark.parametrize(
    ("before", "access", "writes", "reads"),
    [
        ("", "movl $5, 0x8000", (0x8000, 4), None),
        ("", "movl 0x8000, %eax", None, (0x8000, 4)),
        ("", "movb $5, 0x8007", (0x8007, 1), None),
        ("", "movb $5, 0x8008", None, None),
        ("", "movl $5, 0x7ffe", (0x7FFE, 4), None),
        ("", "movl $5, 0x7ffc", None, None),
        ("", "incl 0x8004", (0x8004, 4), (0x8004, 4)),
        ("", "lock incl 0x8000", (0x8000, 4), (0x8000, 4)),
        ("", "lock cmpxchgl %ecx, 0x8000", (0x8000, 4), (0x8000, 4)),
        ("", "xchgl %ecx, 0x8000", (0x8000, 4), (0x8000, 4)),
        ("movl $0x8004, %esp", "pushl %eax", (0x8000, 4), None),
        ("movl $0x8004, %esp", "call 1f\n1:", (0x8000, 4), None),
        ("movl $0x8000, %esp", "popl %eax", None, (0x8000, 4)),
        ("movl $0x8004, %edi", "stosb", (0x8004, 1), None),
        (
            "movl %cr4, %eax\n orl $0x200, %eax\n movl %eax, %cr4",
            "movups %xmm0, 0x7ff8",
            (0x8000, 8),
            None,
        ),
        ("fninit", "fstpl 0x8000", (0x8000, 8), None),
    ],
)
def test_what_is_seen_and_where(
    machines: Machines,
    before: str,
    access: str,
    writes: tuple[int, int] | None,
    reads: tuple[int, int] | None,
) -> None:
    """The guest stands behind the instruction, which is done, when the function is called."""
    for kind, expected in ((WRITE, writes), (READ, reads)):
        machine = machines(f"start: {before}\n{access}\n int3")
        seen = accesses(machine, kind)
        found = machine.vcpu.run()
        if expected is None:
            assert seen == []
            continue
        assert found == RUN_PAUSED
        assert seen == [Access(kind, *expected)]
        code = machine.vcpu.read_virtual(machine.engine.linear_rip, 1)
        assert (code, len(seen)) == (b"\xcc", 1)


def test_a_change_is_seen_with_its_value_and_then_the_next_one(machines: Machines) -> None:
    machine = machines("start: incl 0x8000\n jmp start")
    seen = accesses(machine, WRITE)
    for value in (1, 2, 3):
        assert machine.vcpu.run() == RUN_PAUSED
        assert int.from_bytes(machine.space.read(AT, 4), "little") == value
    assert len(seen) == 3
    assert machine.vcpu.blocks == 3


def test_each_round_of_rep_is_seen(machines: Machines) -> None:
    machine = machines("""
start:  movl $0x7ffe, %edi
        movl $5, %ecx
        rep stosb
        finish32
""")
    seen = accesses(machine, WRITE, 2)
    left = []
    while machine.vcpu.run() == RUN_PAUSED:
        left.append(machine.engine.reg("rcx"))
    assert [access.address for access in seen] == [0x8000, 0x8001]
    assert left == [2, 1]


def test_memory_is_watched_wherever_it_is_mapped(machines: Machines) -> None:
    """4-level tables: 0x40008000 leads to the same byte, and accesses cross the page's end."""
    machine = machines("""
start:  enter_long_mode
        movq pdpt, %rax
        movq %rax, pdpt + 8
        movq $0x40008000, %rbx
        movl $1, (%rbx)
        movq $2, -4(%rbx)
        movq -4(%rbx), %rcx
        finish
""")
    seen = accesses(machine, WRITE)
    values = []
    while machine.vcpu.run() == RUN_PAUSED:
        values.append(machine.space.read(AT - 4, 8).hex())
    assert values == ["0000000001000000", "0200000000000000"]
    assert {access.kind for access in seen} == {WRITE}


def test_a_watchpoint_that_is_gone_costs_and_says_nothing(machines: Machines) -> None:
    machine = machines("start: incl 0x8000\n decl 0x8000\n jmp start")
    seen: list[Access] = []
    points = machine.vcpu.points
    first, second = (points.watch(WRITE, AT, 4, seen.append) for _ in range(2))
    machine.vcpu.run(1)
    assert len(seen) == 4
    points.unwatch(first)
    machine.vcpu.run(1)
    assert len(seen) == 6
    points.unwatch(second)
    points.unwatch(second)
    machine.vcpu.run(1)
    assert len(seen) == 6


def test_a_step_over_an_access_tells_of_it(machines: Machines) -> None:
    machine = machines("start: nop\n movl $1, 0x8000\n nop\n jmp start")
    seen = accesses(machine, WRITE)
    assert machine.vcpu.step() == RUN_PAUSED
    assert seen == []
    assert machine.vcpu.step() == RUN_PAUSED
    assert len(seen) == 1
    assert machine.vcpu.step() == RUN_PAUSED
    assert len(seen) == 1


def test_without_machine_code_of_our_own(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter, "_executable_page", lambda: None)
    machine = machines("start: nop\n movl $1, 0x8000\n nop\n jmp start")
    seen = accesses(machine, WRITE)
    for count in (1, 2):
        assert machine.vcpu.run() == RUN_PAUSED
        assert len(seen) == count
        assert machine.vcpu.read_virtual(machine.engine.linear_rip, 1) == b"\x90"


@pytest.mark.parametrize("bits", [64, 32])
def test_a_guest_that_is_watched_runs_as_one_that_is_not(bits: int) -> None:
    def watched(world: World, _: bytes) -> Callable[[], bool]:
        seen: list[Access] = []
        points = world.guests[0].vcpu.points
        for page in range(0x100000, 0x120000, 0x1000):
            points.watch(WRITE, page, 0x100, seen.append)
        return lambda: len(seen) > 100

    assert watch_run(bits, watched) == watch_run(bits, nothing)
