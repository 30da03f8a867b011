"""32-bit guests with both kinds of paging, the way back from long mode, code that is written over.

The last is what kexec does: 64-bit code goes back to 32 bits and no paging, and enters a kernel
that lies where another was.
"""

from __future__ import annotations

import pytest
from kernels.building import build_kernel
from kernels.machines import START_INFO, Machine, Machines, machines

from xenlive.machine.emulated.processor.paging import NonCanonical, PageFault

__all__ = ["machines"]  # the fixture
pytestmark = pytest.mark.peer

# Segments, a TSS, and a handler for all 32-bit exceptions with an error code, and without.
PROTECTED = """
        .macro gate vector, handler, kind=0x8e
        movl $\\handler, %eax
        movw %ax, idt + \\vector * 8
        movw $CODE32, idt + \\vector * 8 + 2
        movw $(\\kind << 8), idt + \\vector * 8 + 4
        shrl $16, %eax
        movw %ax, idt + \\vector * 8 + 6
        .endm
        .macro protect
        lgdt gdt_pointer
        ljmpl $CODE32, $9f
9:      movl $DATA, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movl $stack_top, %esp
        movl $tss, %eax
        movw %ax, tss_descriptor + 2
        shrl $16, %eax
        movb %al, tss_descriptor + 4
        movl $kernel_stack_top, tss + 4
        movl $DATA, tss + 8
        movl $TSS, %eax
        ltr %ax
        lidt idt_pointer
        gate 14, with_error
        gate 13, with_error
        gate 6, without_error
        gate 0x30, without_error, 0xee
        .endm
        .text
        .code32
without_error:
        pushl $0
with_error:                             /* (error, eip), (cs, cr2), (esp, ss) if it was outside */
        pushl %eax
        report32 16(%esp), 16(%esp)     /* it pushes two registers, and the second first */
        movl %cr2, %eax
        report32 24(%esp), %eax
        testl $3, 12(%esp)
        jz 1f
        report32 32(%esp), 32(%esp)
1:      popl %eax
        addl $4, %esp
        addl $2, (%esp)                 /* behind an instruction of two bytes */
        iretl
        .section .text.start
        .code32
"""


def test_an_interrupt_in_the_kernel_stays_on_its_stack(machines: Machines) -> None:
    machine = machines(
        PROTECTED
        + """
start:  protect
1:      ud2
        report32 $1b, %esp
        finish32
"""
    )
    reports = machine.reports()
    assert reports[0] == (0, reports[-1][0])
    assert reports[1][0] == 0x18
    assert len(reports) == 3


def test_user_code_in_32_bits_goes_through_the_tss(machines: Machines) -> None:
    machine = machines(
        PROTECTED
        + """
start:  protect
        pushl $USER_DATA
        pushl $user_stack_top
        pushl $2
        pushl $USER_CODE32
        pushl $1f
        iretl
1:      int $0x30
        .skip 2, 0x90
2:      hlt
        .byte 0x90
3:      ud2
"""
    )
    machine.vcpu.run(400)
    reports = machine.note.reports
    stack_top, selector = reports[2]
    assert selector == 0x23
    assert reports[1][0] == 0x33
    assert reports[0][0] == 0  # int $0x30: the gate lets users in
    assert reports[3][0] == 0  # hlt: a protection fault
    assert reports[5] == (stack_top, 0x23)


def test_two_levels_with_large_pages(machines: Machines) -> None:
    machine = machines(
        PROTECTED
        + """
start:  protect
        movl $0x83, directory           /* 4 MiB to itself */
        movl $table + 3, directory + 4  /* and 4 KiB pages after it */
        movl $0x5001, table             /* 4 MiB: read only */
        movl $0x6003, table + 4
        movl $0x1234, 0x5000
        movl $0x10, %eax
        movl %eax, %cr4
        movl $directory, %eax
        movl %eax, %cr3
        movl %cr0, %eax
        orl $0x80010000, %eax
        movl %eax, %cr0
        movl $0x401000, %edi
        movl $0x5678, (%edi)
        movl 0x6000, %eax
        report32 0x400000, %eax
        movl $0x400ffc, %ebx
        movl %eax, (%ebx)               /* a protection violation */
        movl $0x403000, %ebx
        movl (%ebx), %eax               /* not there */
        finish32
        .bss
        .align 4096
directory: .skip 4096
table:  .skip 4096
"""
    )
    reports = machine.reports()
    assert reports[0] == (0x1234, 0x5678)
    assert (reports[1][0], reports[2][1]) == (1 | 2, 0x400FFC)
    assert (reports[3][0], reports[4][1]) == (0, 0x403000)
    check_our_walks(machine, 0x400000, 0x5000, 0x403000)


def test_three_levels(machines: Machines) -> None:
    machine = machines(
        PROTECTED
        + """
start:  protect
        movl $directory + 1, pointers
        movl $directory + 1, pointers + 24      /* at 3 GiB once more */
        movl $0x83, directory
        movl $table + 3, directory + 8          /* 4 KiB pages at 2 MiB */
        movl $0x5001, table
        movl $0x80000000, table + 4             /* not to be executed */
        movl $0x6003, table + 8
        movl $0x1234, 0x5000
        movl $0xc0000080, %ecx
        rdmsr
        orl $0x800, %eax
        wrmsr
        movl $0x20, %eax
        movl %eax, %cr4
        movl $pointers, %eax
        movl %eax, %cr3
        movl %cr0, %eax
        orl $0x80010000, %eax
        movl %eax, %cr0
        movl $0x5678, 0xc0201000
        movl 0x6000, %eax
        report32 0xc0200000, %eax
        movl $0x200ffc, %ebx
        movl %eax, (%ebx)
        movl $0x80000000, %ebx
        movl (%ebx), %eax
        finish32
        .bss
        .align 4096
directory: .skip 4096
table:  .skip 4096
pointers: .skip 32
"""
    )
    reports = machine.reports()
    assert reports[0] == (0x1234, 0x5678)
    assert (reports[1][0], reports[2][1]) == (1 | 2, 0x200FFC)
    assert (reports[3][0], reports[4][1]) == (0, 0x80000000)
    check_our_walks(machine, 0xC0200000, 0x5000, 0x80000000)
    paging = machine.engine.paging()
    with pytest.raises(PageFault) as caught:
        paging.translate(machine.vcpu.physical, 0x200000, user=True, fetch=True)
    assert caught.value.error == 1 | 4 | 16


def check_our_walks(machine: Machine, mapped: int, physical: int, missing: int) -> None:
    """Our own page walks agree with what the guest saw."""
    paging = machine.engine.paging()
    memory = machine.vcpu.physical
    assert paging.translate(memory, mapped + 5) == physical + 5
    assert machine.vcpu.read_virtual(mapped, 4) == b"\x34\x12\0\0"
    with pytest.raises(PageFault) as caught:
        machine.vcpu.read_virtual(missing, 1)
    assert caught.value.error == 0
    with pytest.raises(PageFault) as caught:
        machine.vcpu.write_virtual(mapped + 0xFFE, b"abcd")
    assert caught.value.error == 1 | 2
    assert caught.value.address == mapped + 0xFFE


AGAIN = """
        .macro leave_long_mode target
        ljmpl *far_\\@
far_\\@: .long 1f
        .word CODE32
        .code32
1:      movl $DATA, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movl %cr0, %eax
        andl $0x7fffffff, %eax
        movl %eax, %cr0
        movl $0xc0000080, %ecx
        rdmsr
        andl $~0x100, %eax
        wrmsr
        xorl %eax, %eax
        movl %eax, %cr4
        movl $START_INFO, %ebx
        movl $\\target, %eax
        jmp *%eax
        .endm
"""


def test_from_long_mode_back_to_the_pvh_entry(machines: Machines) -> None:
    machine = machines(
        f"#define START_INFO {START_INFO:#x}\n"
        + AGAIN
        + """
start:  movl $0x8000, %esp
        movl %cr0, %eax
        report32 %ebx, %eax
        incl count
        cmpl $3, count
        je 2f
        enter_long_mode
        report $0x64
        leave_long_mode start
2:      movl $0xc0000080, %ecx
        rdmsr
        report32 %eax, count
        finish32
        .data
count:  .long 0
"""
    )
    entry = (START_INFO, 0x11)
    reports = machine.reports()
    assert [number for number, _ in reports[:5]] == [START_INFO, 0x64] * 2 + [START_INFO]
    assert reports[0] == entry
    assert reports[2][1] & 0x80000001 == 1
    assert reports[5][0] & 0x500 == 0
    assert machine.engine.code_bits == 32


def test_a_kernel_written_over_another_is_the_one_that_runs(machines: Machines) -> None:
    body = """
start:  movl $0x8000, %esp
        report32 $NUMBER
        finish32
"""
    first = machines(f"#define NUMBER 1\n{body}")
    assert first.reports() == [(1, 0)]
    first.load(build_kernel(f"#define NUMBER 2\n{body}"))
    assert first.reports() == [(1, 0), (2, 0)]


def test_code_that_changes_itself(machines: Machines) -> None:
    machine = machines("""
start:  movl $0x8000, %esp
        movl $3, %esi
1:      call changed
        report32 %eax
        incb changed + 1
        decl %esi
        jnz 1b
        finish32
changed:
        movl $5, %eax
        ret
""")
    assert [number for number, _ in machine.reports()] == [5, 6, 7]


def test_hypervisor_writes_over_code(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        movl $3, %ebx
1:      call changed
        report %rax
        movl $50, %eax
        movl $changed, %edi
        vmmcall
        decl %ebx
        jnz 1b
        finish
changed:
        movl $5, %eax
        ret
""")

    def change(processor: object, number: int, args: tuple[int, ...]) -> int:
        old = machine.vcpu.read_virtual(args[0] + 1, 1)
        machine.vcpu.write_virtual(args[0] + 1, bytes([old[0] + 10]))
        return 0

    machine.note.other = change  # type: ignore[method-assign]
    assert [number for number, _ in machine.reports()] == [5, 15, 25]


def test_memory_that_comes_and_goes(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        lea pd(%rip), %rbx
        movl $0x800083, 32(%rbx)        /* another address, so that it is not its own */
        movl $5, 0x800000
        report 0x800000
        movl $50, %eax
        vmmcall                         /* a hole now */
        movl 0x800000, %eax
        movl $6, 0x800000
        movl 0x800000, %ecx
        report %rax, %rcx
        movl $51, %eax
        vmmcall                         /* other memory */
        report 0x800000
        movl $7, 0x800000
        report 0x800000
        finish
""")

    mapping = machine.space.lookup(0x800)
    assert mapping is not None

    def change(processor: object, number: int, args: tuple[int, ...]) -> int:
        if number == 50:
            machine.space.unhook(0x800)
            machine.space.give_up(mapping.frame)
        else:
            assert machine.space.populate(0x800)
        return 0

    machine.note.other = change  # type: ignore[method-assign]
    reports = machine.reports()
    assert reports[0][0] & 0xFFFFFFFF == 5
    assert reports[1] == (0xFFFFFFFF, 0xFFFFFFFF)
    assert [number & 0xFFFFFFFF for number, _ in reports[2:]] == [0, 7]


BUSY = """
start:  enter_long_mode
        call fill_idt
        movl $300, %ebx
1:      rdtsc
        movl %eax, 0x300000(,%rbx,8)
        movl $20, %eax
        vmmcall
        movq $2f, resume
        movl 0x40000000, %eax
2:      movl $50, %ecx
3:      decl %ecx
        jnz 3b
        decl %ebx
        jnz 1b
        finish
"""


def trace_of(machine: Machine) -> tuple[object, ...]:
    """All that a run leaves: hypercalls, memory, registers, time."""
    made: list[object] = []
    machine.vcpu.on_hypercall = made.append
    machine.run_to_end()
    state = (machine.vcpu.blocks, machine.clock.now_ns, machine.engine.save())
    return made, machine.memory_hash(), state, machine.note.reports


def test_the_same_run_twice_is_the_same_to_the_bit(machines: Machines) -> None:
    assert trace_of(machines(BUSY)) == trace_of(machines(BUSY))


def test_a_saved_processor_goes_on_as_it_would_have(machines: Machines) -> None:
    machine = machines(BUSY)
    machine.vcpu.run(5000)
    state = machine.vcpu.save()
    now, reports = machine.clock.now_ns, list(machine.note.reports)
    memory = [bytes(machine.space.frame_view(n)) for n in range(machine.space.n_ram)]
    expected = trace_of(machine)
    for number, page in enumerate(memory):
        machine.space.frame_view(number)[:] = page
    machine.clock.now_ns = now
    machine.note.reports = reports
    machine.vcpu.restore(state)
    assert trace_of(machine) == expected
    other = machines(BUSY)
    for number, page in enumerate(memory):
        other.space.frame_view(number)[:] = page
    other.clock.now_ns = now
    other.note.reports = list(reports[: len(memory)])[: len(reports)]
    other.vcpu.restore(state)
    assert trace_of(other)[1] == expected[1]


def test_addresses_that_are_not_canonical(machines: Machines) -> None:
    machine = machines("start: enter_long_mode\n finish\n")
    machine.run_to_end()
    for address in (1 << 47, 0xFFFF7FFFFFFFFFFF):
        with pytest.raises(NonCanonical):
            machine.vcpu.read_virtual(address, 1)
