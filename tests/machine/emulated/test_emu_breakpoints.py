"""Breakpoints and single steps: where they stop, and that the guest does not notice."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from elftools.elf.elffile import ELFFile
from kernels.handover.script_kernel import script_kernel
from kernels.machines import Machine, Machines, machines

from xenlive.machine.emulated.build import Module
from xenlive.machine.emulated.processor import exits
from xenlive.machine.emulated.processor.breaks import Breaks
from xenlive.machine.emulated.processor.vcpu import (
    RUN_ENDED,
    RUN_HALTED,
    RUN_ON,
    RUN_PAUSED,
)
from xenlive.machine.emulated.world import World

__all__ = ["machines"]  # the fixture
pytestmark = pytest.mark.peer

BASE = 0x100000


def stop_at(machine: Machine, address: int) -> Callable[[], int]:
    """Sets a breakpoint that pauses; how often it was met."""
    count = 0

    def hit() -> None:
        nonlocal count
        count += 1
        machine.vcpu.pause()

    machine.vcpu.points.add(address, hit)
    return lambda: count


def rip(machine: Machine) -> int:
    return machine.engine.reg("rip")


# ---- where they stop -----------------------------------------------------------------------------

COUNTS = """
start:  movl $0x8000, %esp              # 0x100000, 5 bytes
        incl %eax                       # 0x100005, 2 bytes (no short form: gas takes 40)
        incl %eax
        incl %eax
        jmp 1f
1:      decl %ecx
        finish32
"""


def test_it_stops_before_the_instruction_and_goes_on_from_there(machines: Machines) -> None:
    machine = machines(COUNTS)
    count = stop_at(machine, BASE + 6)
    assert machine.vcpu.run() == RUN_PAUSED
    assert (rip(machine), machine.engine.reg("rax")) == (BASE + 6, 1)
    assert machine.vcpu.blocks == 1
    assert machine.vcpu.run() == RUN_ENDED
    assert (machine.engine.reg("rcx"), count()) == (0xFFFFFFFF, 1)


def test_without_a_run_since_it_is_not_met_twice(machines: Machines) -> None:
    """It pauses at the breakpoint; a step and a run from there pass it, the next round does not."""
    machine = machines("start: incl %eax\n1: incl %ecx\n jmp 1b")
    count = stop_at(machine, BASE + 1)
    for round_ in (1, 2, 3):
        assert machine.vcpu.run() == RUN_PAUSED
        assert (count(), machine.engine.reg("rcx")) == (round_, round_ - 1)
        if round_ == 2:
            assert machine.vcpu.step() == RUN_PAUSED
            assert (count(), machine.engine.reg("rcx")) == (2, 2)


def test_a_step_is_one_instruction_wherever_it_begins(machines: Machines) -> None:
    machine = machines(COUNTS)
    stop_at(machine, BASE + 6)
    machine.vcpu.run()  # the code behind has been translated by now
    for expected in (BASE + 7, BASE + 8, BASE + 10, BASE + 11):
        assert machine.vcpu.step() == RUN_PAUSED
        assert rip(machine) == expected


def test_a_step_to_a_breakpoint_does_not_meet_it_and_one_from_there_does(
    machines: Machines,
) -> None:
    machine = machines(COUNTS)
    count = stop_at(machine, BASE + 6)
    assert [machine.vcpu.step() for _ in range(2)] == [RUN_PAUSED] * 2
    assert (rip(machine), count()) == (BASE + 6, 0)
    assert machine.vcpu.step() == RUN_PAUSED
    assert (rip(machine), count()) == (BASE + 6, 1)
    assert machine.vcpu.step() == RUN_PAUSED
    assert (rip(machine), count()) == (BASE + 7, 1)


def test_each_round_of_rep_is_a_step(machines: Machines) -> None:
    machine = machines("""
start:  movl $0x8000, %edi
        movl $3, %ecx
        cld
        rep stosb
        finish32
""")
    seen = []
    while machine.vcpu.step() == RUN_PAUSED:
        seen.append((rip(machine) - BASE, machine.engine.reg("rcx")))
    assert seen[:8] == [(5, 0), (10, 3), (11, 3), (11, 2), (11, 1), (11, 0), (13, 0), (18, 0)]
    assert machine.vcpu.ended is not None


def test_instructions_that_are_done_for_the_guest_are_steps(machines: Machines) -> None:
    """CPUID, RDMSR, a write to a control register, RDTSC, a hypercall, an exception."""
    machine = machines("""
start:  cpuid                           # 2 bytes
        movl $0x277, %ecx               # 5
        rdmsr                           # 2
        movl %cr0, %eax                 # 3
        movl %eax, %cr0                 # 3
        rdtsc                           # 2
        movl $1000, %eax                # 5
        vmmcall                         # 3
        int3
""")
    seen = []
    while machine.vcpu.step() == RUN_PAUSED:
        seen.append(rip(machine) - BASE)
    assert seen == [2, 7, 9, 12, 15, 17, 22, 25]
    assert len(machine.note.reports) == 1
    assert machine.vcpu.ended is not None  # int3 without an IDT
    assert machine.vcpu.ended.kind == "triple-fault"


def test_a_step_while_the_guest_waits_is_none(machines: Machines) -> None:
    machine = machines("start: sti\n hlt\n nop")
    assert [machine.vcpu.step() for _ in range(3)] == [RUN_PAUSED, RUN_PAUSED, RUN_HALTED]
    assert machine.vcpu.blocks == 2


def test_the_delivery_of_an_interrupt_is_a_step(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        sti
1:      incl %ebx
        jmp 1b
""")
    machine.run(2000)
    machine.note.vector, machine.note.upcall = 33, True
    events: list[object] = []

    def take(event: object) -> None:
        events.append(event)
        machine.note.upcall = False

    machine.vcpu.on_event = take
    while not events:
        before = machine.engine.reg("rbx"), machine.vcpu.blocks
        assert machine.vcpu.step() == RUN_PAUSED
    handler = rip(machine)
    assert (machine.engine.reg("rbx"), machine.vcpu.blocks) == before
    assert machine.vcpu.read_virtual(handler, 2) == b"\x6a\x00"  # pushq $0, of the handler
    assert machine.vcpu.step() == RUN_PAUSED
    assert rip(machine) == handler + 2


def test_two_functions_at_one_place_and_one_that_takes_the_other_away(machines: Machines) -> None:
    machine = machines("start: nop\n1: incl %eax\n cmpl $3, %eax\n jne 1b\n finish32")
    called: list[str] = []
    points = machine.vcpu.points

    def first() -> None:
        called.append("first")
        if len(called) == 3:
            points.remove(later)

    points.add(BASE + 1, first)
    later = points.add(BASE + 1, lambda: called.append("later"))
    machine.run_to_end()
    assert called == ["first", "later", "first", "first"]
    points.remove(later)  # once more is no error


def test_what_a_function_raises_leaves_and_the_guest_can_go_on(machines: Machines) -> None:
    machine = machines(COUNTS)

    def refuse() -> None:
        raise LookupError

    point = machine.vcpu.points.add(BASE + 6, refuse)
    with pytest.raises(LookupError):
        machine.vcpu.run()
    assert rip(machine) == BASE + 6
    machine.vcpu.points.remove(point)
    assert machine.vcpu.run() == RUN_ENDED
    assert machine.engine.reg("rax") & 0xFFFFFFFF == 1001  # `finish32` has it


def test_a_paused_run_keeps_its_limit(machines: Machines) -> None:
    machine = machines("start: nop\n1: incl %eax\n jmp 1b")
    stop_at(machine, BASE + 1)
    assert machine.vcpu.run(2) == RUN_PAUSED
    assert machine.vcpu.run(100) == RUN_PAUSED  # the second block of two
    assert machine.vcpu.run(100) == RUN_ON
    assert (machine.vcpu.blocks, machine.engine.reg("rax")) == (2, 2)


def test_exits_are_told_of_before_they_are_handled(machines: Machines) -> None:
    machine = machines("start: cpuid\n finish32")
    seen: list[tuple[str, int]] = []
    machine.vcpu.on_exit = lambda found: seen.append((found.kind, rip(machine) - BASE))
    machine.run_to_end()
    assert seen == [(exits.CPUID, 0), (exits.EXCEPTION, 7)]


def test_hooks_that_sleep_are_taken_away_when_they_cost_something() -> None:
    hooks: list[int] = []

    def hook(_: int, __: int, ___: int, bounds: tuple[int, int]) -> int:
        hooks.append(bounds[0])
        return bounds[0]

    def make() -> Breaks:
        return Breaks(hook, hooks.remove, lambda kind, function: kind(function), lambda _: None)

    breaks = make()
    for address in range(100):
        breaks.add(address)
        breaks.remove(address)
        breaks.tidy()
    assert len(hooks) < 70
    breaks = make()
    hooks.clear()
    breaks.add(5)
    breaks.remove(5)
    breaks.add(6)
    for _ in range(1001):
        breaks.reached(5)
    breaks.tidy()
    assert hooks == [6]


# ---- that nobody notices -------------------------------------------------------------------------


class Run(NamedTuple):
    """All that can be seen of a run."""

    end: str
    blocks: int
    time_ns: int
    memory: str
    said: bytes
    hypercalls: list[object]
    events: list[object]
    is_looked_at: bool


def watch_run(bits: int, look: Callable[[World, bytes], Callable[[], bool]]) -> Run:
    """A chain of two kernels with timers, interrupts and kexec; `look` sets what watches them."""
    kernel = script_kernel(bits)
    said = bytearray()
    with World() as world:
        guest = world.add_guest(memory_bytes=16 << 20, sink=said.extend)
        guest.boot(kernel, "make 4; ticks 2; kexec 0", [Module(kernel, "ticks 1; peek 0")])
        hypercalls: list[object] = []
        events: list[object] = []
        guest.vcpu.on_hypercall = hypercalls.append
        guest.vcpu.on_event = lambda event: events.append((event, world.clock.now_ns))
        is_looked_at = look(world, kernel)
        world.run()
        end = str(guest.stop)
        memory = hashlib.sha256(guest.domain.space.read(0, 16 << 20)).hexdigest()
        return Run(
            *(end, guest.vcpu.blocks, world.clock.now_ns, memory),
            *(bytes(said), hypercalls, events, is_looked_at()),
        )


def functions(kernel: bytes) -> list[int]:
    """Addresses of all functions."""
    table: Any = ELFFile(io.BytesIO(kernel)).get_section_by_name(".symtab")
    return sorted(
        {
            symbol["st_value"]
            for symbol in table.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC"
        }
    )


def nothing(_: World, __: bytes) -> Callable[[], bool]:
    return lambda: True


def breakpoints(world: World, kernel: bytes) -> Callable[[], bool]:
    """One at each function."""
    hits: list[int] = []
    vcpu = world.guests[0].vcpu
    for address in functions(kernel):
        vcpu.points.add(address, lambda: hits.append(vcpu.engine.linear_rip))
    return lambda: len(set(hits)) > 10


def stretches_of_steps(world: World, kernel: bytes) -> Callable[[], bool]:
    """A hundred steps, or the rest of them, from each function on."""
    vcpu = world.guests[0].vcpu
    seen: list[int] = []
    left = 0

    def begin() -> None:
        nonlocal left
        left, vcpu.points.on_step = 100, stepped

    def stepped() -> None:
        nonlocal left
        seen.append(vcpu.engine.linear_rip)
        left -= 1
        if not left:
            vcpu.points.on_step = None

    for address in functions(kernel)[::2]:
        vcpu.points.add(address, begin)
    return lambda: len(set(seen)) > 100


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("look", [breakpoints, stretches_of_steps])
def test_a_guest_that_is_stopped_runs_as_one_that_is_not(
    bits: int, look: Callable[[World, bytes], Callable[[], bool]]
) -> None:
    assert watch_run(bits, look) == watch_run(bits, nothing)


def test_a_saved_stop_goes_on_as_the_run_would_have(machines: Machines) -> None:
    """Saved at a breakpoint in the middle of a block, put back into another processor."""
    text = "start: movl $9, %ecx\n1: incl %eax\n incl %edx\n decl %ecx\n jnz 1b\n finish32"
    ends = []
    for is_stopped in (False, True):
        machine = machines(text)
        if is_stopped:
            count = stop_at(machine, BASE + 6)
            machine.vcpu.run(100)
            saved = machine.vcpu.save()
            assert count() == 1
            machine = machines(text)
            machine.vcpu.restore(saved)
            machine.clock.advance(10)
            count = stop_at(machine, BASE + 6)
            machine.vcpu.run(100)  # not met again at once, but in the next round
            assert (count(), machine.engine.reg("rax")) == (1, 2)
            machine.vcpu.points.remove(next(iter(machine.vcpu.points._at[BASE + 6])))
        machine.run_to_end()
        ends.append((machine.vcpu.blocks, machine.clock.now_ns, machine.engine.save()))
    assert ends[0] == ends[1]
