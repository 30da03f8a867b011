"""The local APIC as guests use it: xen/arch/x86/hvm/vlapic.c of Xen 4.17, irq.c for events."""

from __future__ import annotations

import pytest
from kernels.machines import Machines, Note, machines

from xenlive.machine.emulated.interface import Processor
from xenlive.machine.emulated.stop import SHUTDOWN, SHUTDOWN_CRASH, SHUTDOWN_POWEROFF

__all__ = ["machines"]  # the fixture
pytestmark = pytest.mark.peer

# A handler for vector 0x40 counts in esi, which is reported at the end.
IN_32_BITS = """
        .macro apic offset, value
        movl $\\value, 0xfee00000 + \\offset
        .endm
start:  movl $stack_top, %esp
        lgdt gdt_pointer
        ljmpl $CODE32, $1f
1:      movl $DATA, %eax
        movl %eax, %ss
        movl %eax, %ds
        movl $idt + 0x40*8, %edi
        movl $handler, %eax
        movw %ax, (%edi)
        movw $CODE32, 2(%edi)
        movw $0x8e00, 4(%edi)
        shrl $16, %eax
        movw %ax, 6(%edi)
        lidt idt_pointer
        xorl %esi, %esi
        call body
        report32 %esi, $0
        finish32
handler:
        incl %esi
        apic 0xb0, 0
        iret
body:
"""


def run(machines: Machines, body: str, **how: type[Note]) -> list[tuple[int, int]]:
    """What a guest with a handler for vector 0x40, which counts in esi, reports."""
    return machines(IN_32_BITS + body + "\n ret\n", **how).reports()


def test_a_guest_sends_itself_an_interrupt(machines: Machines) -> None:
    body = """
        apic 0xf0, 0x1ff
        apic 0x300, 0x40040
        report32 %esi, 0xfee00220         /* not yet: IF is clear; in the IRR */
        sti
        nop
        nop
        cli
        report32 %esi, 0xfee00220
        apic 0x80, 0x40                 /* its class is not above this priority */
        apic 0x300, 0x40040
        sti
        nop
        nop
        cli
        report32 %esi, 0xfee00030
        sti
        apic 0x80, 0x30
        nop
        cli
    """
    assert run(machines, body) == [(0, 1), (1, 0), (1, 0x50014), (2, 0)]


def test_a_guest_waits_for_its_timer(machines: Machines) -> None:
    body = """
        apic 0xf0, 0x1ff
        apic 0x320, 0x40
        apic 0x3e0, 0xb
        apic 0x380, 0x100000
        rdtsc
        movl %eax, %ebp
        sti
        hlt
        cli
        rdtsc
        subl %ebp, %eax
        shrl $20, %eax
        report32 %eax, 0xfee00390
        apic 0x380, 0x10000
        sti
2:      cmpl $2, %esi
        jne 2b
        cli
    """
    # 2^20 counts of 10 ns, by a counter of 1 ns.
    assert run(machines, body) == [(10, 0), (2, 0)]


def test_events_by_the_local_apic(machines: Machines) -> None:
    class Announces(Note):
        """Has a vector for upcalls, and announces one for each hypercall it does not know."""

        announced = False

        def other(self, processor: Processor, number: int, args: tuple[int, ...]) -> int | None:
            self.announced = self.upcall = True
            return 0

        def upcall_vector(self) -> int:
            return 0x40

        def take_upcall(self) -> bool:
            new, self.announced = self.announced, False
            return new

    body = """
        movl $77, %eax
        vmmcall                         /* not heard: the local APIC is off */
        sti
        nop
        cli
        report32 %esi, $1
        sti
        apic 0xf0, 0x1ff                /* now it is */
        nop
        cli
        report32 %esi, $2
        movl $77, %eax
        sti
        vmmcall
        nop
        nop
        cli
    """
    # Once for each, though evtchn_upcall_pending stays set.
    assert run(machines, body, hypervisor=Announces) == [(0, 1), (1, 2), (2, 0)]


def test_msrs_in_a_guest(machines: Machines) -> None:
    body = """
        movl $0x1b, %ecx
        rdmsr
        pushl %eax
        report32 %eax, %edx
        popl %eax
        orl $0x400, %eax
        wrmsr
        report32 0xfee00030, $0           /* a hole now */
        movl $0x80f, %ecx
        movl $0x1ff, %eax
        wrmsr
        movl $0x83f, %ecx
        movl $0x40, %eax
        sti
        wrmsr
        nop
        cli
        movl $0x803, %ecx
        rdmsr
        report32 %eax, %edx
        movl $0x1b, %ecx
        movl $0xfee00100, %eax
        wrmsr
        movl $1, %eax
        cpuid
        andl $0x200, %edx
        report32 %edx, $0
    """
    reports = [(0xFEE00900, 0), (0xFFFFFFFF, 0), (0x50014, 0), (0, 0)]
    handler = IN_32_BITS.replace(
        "apic 0xb0, 0", "movl $0x80b, %ecx; xorl %eax, %eax; xorl %edx, %edx; wrmsr"
    )
    assert machines(handler + body + "\n ret\n").reports() == [*reports, (1, 0)]


@pytest.mark.parametrize(("icr", "code"), [(0x40500, SHUTDOWN_POWEROFF), (0x40700, SHUTDOWN_CRASH)])
def test_what_ends_a_guest(machines: Machines, icr: int, code: int) -> None:
    body = f"apic 0xf0, 0x1ff\n apic 0x300, {icr:#x}\n1: jmp 1b"
    ended = machines(IN_32_BITS + body).run_to_end()
    assert (ended.kind, ended.code) == (SHUTDOWN, code)


def test_cr8_is_the_task_priority(machines: Machines) -> None:
    """AMD64 APM volume 2, section 8.9.1: bits 7 to 4 of the APIC's register; above 15 is #GP."""
    found = machines("""
start:  enter_long_mode
        call fill_idt
        movl $0x1b, %ecx
        movl $0xfee00d00, %eax                  /* x2APIC: its registers are MSRs */
        xorl %edx, %edx
        wrmsr
        movl $0x80f, %ecx
        movl $0x1ff, %eax
        wrmsr
        movl $4, %r9d
        movq %r9, %cr8
        movl $0x808, %ecx
        rdmsr
        movq %cr8, %r10
        report %rax, %r10
        movl $0x75, %eax
        wrmsr
        movq $-1, %r11
        movq %cr8, %r11
        report %r11, $0
        movq $after, resume
        movl $0x10, %r9d
        movq %r9, %cr8
after:  movq %cr8, %rbx
        report %rbx, $0
        movl $0x83f, %ecx                       /* an interrupt to itself waits for the priority */
        movl $0x20, %eax
        wrmsr
        sti
        nop
        report $1, $1
        movl $1, %ebx
        movq %rbx, %cr8
        nop
        finish
""").reports()
    assert found[:2] == [(0x40, 4), (7, 0)]
    assert found[2] == (13, 0)
    assert found[6:8] == [(7, 0), (1, 1)]
    assert found[8] == (0x20, 0)
