"""A guest that waits by reading the time stamp counter gets there soon, and exactly enough."""

from __future__ import annotations

import pytest
from kernels.debian import packages
from kernels.machines import Machines, machines

from xenlive.machine.emulated.processor.polling import Polling
from xenlive.machine.emulated.processor.vcpu import RUN_ON
from xenlive.machine.emulated.world import WORLD_PAUSED, World

__all__ = ["machines"]  # the fixture

SECOND_NS = 1_000_000_000

# Until the counter says 2^31 ns. `between` is done in each round.
WAITS = """
start:  movl $0x8000, %esp
        xorl %edi, %edi
1:      incl %edi
        {between}
        rdtsc
        testl $0x80000000, %eax
        jz 1b
        report32 %eax, %edi
        finish32
"""


def test_few_reads_in_a_row_take_the_same_time_each() -> None:
    polling = Polling()
    assert {polling.extra_ns(block, 1000 * block) for block in range(1024)} == {0}


def test_more_take_a_part_of_the_time_that_went_on() -> None:
    polling = Polling()
    extras = [polling.extra_ns(block, 1000 * block) for block in range(60_000)]
    assert extras[1024] == 1_024_000 >> 9
    assert extras[50_000] == 50_000_000 >> 9
    assert max(extras) == 100_000


@pytest.mark.parametrize("gap", [300, 301])
def test_other_code_between_them_begins_anew(gap: int) -> None:
    polling = Polling()
    for block in range(2000):
        polling.extra_ns(block, 1000 * block)
    extra_ns = polling.extra_ns(1999 + gap, 4_000_000)
    assert (extra_ns > 0) == (gap == 300)


@pytest.mark.peer
@pytest.mark.parametrize("between", ["", "cpuid"])
def test_a_wait_of_seconds_takes_some_thousand_reads(machines: Machines, between: str) -> None:
    [(read, rounds)] = machines(WAITS.format(between=between)).reports()
    assert 0 <= read - (1 << 31) <= 100_000 + 600
    assert rounds < 30_000


@pytest.mark.peer
@pytest.mark.parametrize(
    "between", ["inb $0x42, %al", "outb %al, $0x80", "movl $500, %ecx\n2: loop 2b"]
)
def test_reads_with_something_between_take_what_they_take(machines: Machines, between: str) -> None:
    machine = machines(f"""
start:  movl $0x8000, %esp
        movl $3000, %edi
1:      {between}
        rdtsc
        decl %edi
        jnz 1b
        report32 %eax, %edx
        finish32
""")
    [(read, _)] = machine.reports()
    assert abs(read - (3000 * 100 + machine.vcpu.blocks * 10)) < 100


@pytest.mark.peer
def test_a_timer_is_not_passed_by(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movq $2f, resume
        sti
1:      rdtsc
        jmp 1b
2:      finish
""")
    machine.note.timer_ns = SECOND_NS
    machine.note.vector = 40
    machine.vcpu.on_event = lambda event: setattr(machine.note, "upcall", False)
    assert machine.reports()[0] == (40, 0)
    assert SECOND_NS <= machine.note.timers_fired[0] < SECOND_NS + 500
    assert machine.vcpu.blocks < 100_000


@pytest.mark.peer
def test_a_slice_is_no_longer_than_without_reads(machines: Machines) -> None:
    """So that other domains come to their turn in time."""
    machine = machines(WAITS.format(between=""))
    longest_ns = 0
    for _ in range(2000):
        began_ns = machine.clock.now_ns
        assert machine.vcpu.run(10_000) == RUN_ON
        longest_ns = max(longest_ns, machine.clock.now_ns - began_ns)
    assert longest_ns < 10_000 * 10 + 5_000 * 100


@pytest.mark.peer
def test_a_saved_processor_goes_on_as_it_would_have(machines: Machines) -> None:
    ends = []
    for is_saved in (False, True):
        machine = machines(WAITS.format(between=""))
        machine.vcpu.run(5000)
        if is_saved:
            saved, now_ns = machine.vcpu.save(), machine.clock.now_ns
            assert saved.polling[0] > 1024
            machine.vcpu.run(7000)
            machine.vcpu.restore(saved)
            machine.clock.now_ns = now_ns
        ends.append((machine.reports(), machine.vcpu.blocks, machine.clock.now_ns))
    assert ends[0] == ends[1]


@pytest.mark.peer
def test_grub_sleeps_as_long_as_it_is_told() -> None:
    image = packages.require(packages.GRUB, "grub-xen-host").read_bytes()
    seen = bytearray()
    with World() as world:
        guest = world.add_guest("grub", 128 << 20, seen.extend)
        guest.boot(image)
        world.run(until=lambda: b"grub> " in seen, until_ns=60 * SECOND_NS)
        guest.console.type(b"sleep 2\r")
        began_ns, began_blocks, prompts = (
            world.clock.now_ns,
            guest.vcpu.blocks,
            seen.count(b"grub> "),
        )
        found = world.run(until=lambda: seen.count(b"grub> ") > prompts, until_ns=60 * SECOND_NS)
        assert found == WORLD_PAUSED
        assert 2 * SECOND_NS <= world.clock.now_ns - began_ns < 2.05 * SECOND_NS
        assert guest.vcpu.blocks - began_blocks < 2_000_000
