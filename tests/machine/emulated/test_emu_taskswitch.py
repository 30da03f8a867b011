"""Task gates: an interrupt or exception that puts one task away and takes up another.

AMD64 APM volume 2, sections 12.2.4 (the 32-bit TSS) and 12.3 (switching tasks).
"""

from __future__ import annotations

import pytest
from kernels.machines import Machines, machines

__all__ = ["machines"]

pytestmark = pytest.mark.peer

IN_TASK, BACK, FAULT, OLD = 1, 2, 3, 4
MAIN_TSS, TASK_TSS = 0x18, 0x20
NT, TS = 1 << 14, 1 << 3

# `{gate}` is the selector in the gate, `{access}` and `{limit}` are of the new TSS, `{cs}` is the
# task's code segment, `{trigger}` what leads into it.
KERNEL = """
        .code32
start:  movl $own_stack, %esp
        lgdt gdt_at
        ljmp $0x08, $1f
1:      movl $0x10, %eax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        xorl %eax, %eax
        movw %ax, %fs
        movw %ax, %gs
        movl $main_tss, %eax
        movw %ax, own_gdt + 0x1a
        shrl $16, %eax
        movb %al, own_gdt + 0x1c
        movl $task_tss, %eax
        movw %ax, own_gdt + 0x22
        shrl $16, %eax
        movb %al, own_gdt + 0x24
        movl $0x18, %eax
        ltr %ax
        .irp vector, 10, 11, 13
        movl $fault_\\vector, %eax
        movw %ax, own_idt + 8 * \\vector
        movw $0x08, own_idt + 8 * \\vector + 2
        movw $0x8e00, own_idt + 8 * \\vector + 4
        shrl $16, %eax
        movw %ax, own_idt + 8 * \\vector + 6
        .endr
        movw ${gate}, own_idt + 8 * 0x40 + 2        /* int 0x40 and #BR by the task gate */
        movw $0x8500, own_idt + 8 * 0x40 + 4
        movw ${gate}, own_idt + 8 * 12 + 2
        movw $0x8500, own_idt + 8 * 12 + 4
        lidt idt_at
        movl $0x1234567, %ebp
        movl $0x7654321, %edi
        {trigger}
        pushfl
        popl %edx
        report32 $2, %edx
        movl %cr0, %edx
        report32 $2, %edx
        report32 %ebp, %edi
        {trigger}
        finish32

task:   report32 $1, %esp
        movzwl task_tss, %edx
        pushfl
        popl %ecx
        report32 %edx, %ecx
        movl main_tss + 0x20, %edx
        movl main_tss + 0x44, %ecx
        report32 $4, %ecx
        movzwl main_tss + 0x4c, %ecx
        report32 $4, %ecx
        cmpl $0, is_error
        je 2f
        popl %ecx
        report32 $5, %ecx
        finish32
2:      iretl
        jmp task

        .irp vector, 10, 11, 13
fault_\\vector:
        popl %ecx
        report32 $\\vector, %ecx
        str %edx
        report32 $3, %edx
        finish32
        .endr

        .data
        .align 16
is_error: .long {is_error}
own_gdt:    .quad 0
        .quad 0x00cf9b000000ffff
        .quad 0x00cf93000000ffff
        .quad 0x0000890000000067
        .word {limit}, 0
        .byte 0, {access}, 0, 0
        .quad 0x00cf13000000ffff                /* data, not present */
gdt_at: .word . - own_gdt - 1
        .long own_gdt
        .align 16
main_tss: .fill 26, 4, 0
task_tss: .long 0, own_stack, 0x10, 0, 0, 0, 0, 0
        .long task, 2, 0, 0, 0, 0, task_stack, 0, 0, 0
        .long 0x10, {cs}, 0x10, 0x10, 0, 0, 0, 0x680000
own_idt:    .fill 0x82, 4, 0
idt_at: .word idt_at - own_idt - 1
        .long own_idt
        .bss
        .align 16
        .skip 4096
task_stack:
        .skip 4096
own_stack:
"""


def run(
    machines: Machines,
    trigger: str = "int $0x40",
    gate: int = TASK_TSS,
    access: int = 0x89,
    limit: int = 0x67,
    cs: int = 0x08,
    is_error: int = 0,
) -> list[tuple[int, int]]:
    words = {
        "{trigger}": trigger,
        "{gate}": str(gate),
        "{access}": str(access),
        "{limit}": str(limit),
        "{cs}": str(cs),
        "{is_error}": str(is_error),
    }
    assembly = KERNEL
    for word, value in words.items():
        assembly = assembly.replace(word, value)
    return machines(assembly).reports()


def test_into_a_task_and_back(machines: Machines) -> None:
    found = run(machines)
    (in_task, _), (link, task_flags), (_, edi), (_, cs), (_, flags), (_, cr0), kept, *again = found
    assert in_task == IN_TASK
    assert link == MAIN_TSS
    assert task_flags & NT
    assert edi == 0x7654321
    assert cs == 0x08
    assert not flags & NT
    assert cr0 & TS
    assert kept == (0x1234567, 0x7654321)
    # IRET made the task free for the next time; its flags are as it left them.
    assert [again[0], again[1][0], *again[2:]] == [found[0], link, *found[2:4]]


def test_an_error_code_is_on_the_new_stack(machines: Machines) -> None:
    found = run(machines, "movl $0x28, %eax; movw %ax, %ss", is_error=1)
    assert found[-1] == (5, 0x28)


@pytest.mark.parametrize(
    ("changed", "vector", "error"),
    [
        ({"gate": 0}, 13, 0),
        ({"gate": 0x24}, 13, 0x24),  # in the LDT
        ({"gate": 0x60}, 13, 0x60),  # beyond the GDT
        ({"gate": 0x10}, 13, 0x10),  # no TSS
        ({"gate": MAIN_TSS}, 13, MAIN_TSS),  # busy
        ({"access": 0x09}, 11, TASK_TSS),  # not present
        ({"limit": 0x66}, 10, TASK_TSS),  # too short
    ],
)
def test_a_gate_that_leads_to_no_task(
    machines: Machines, changed: dict[str, int], vector: int, error: int
) -> None:
    found = run(machines, **changed)  # type: ignore[arg-type]
    assert found == [(vector, error), (FAULT, MAIN_TSS)]


@pytest.mark.parametrize("cs", [0, 0x10, 0x0B, 0x60])
def test_a_task_without_code_faults_in_the_task(machines: Machines, cs: int) -> None:
    assert run(machines, cs=cs) == [(10, cs & ~3), (FAULT, TASK_TSS)]


def test_the_segments_of_a_task_are_looked_up_by_its_own_page_tables(machines: Machines) -> None:
    """0x800000 is another table of descriptors in each task: one of them has data that is there."""
    with_tables = """
        movl $0xc00000, %edi
        call 7f
        movb $0x93, 0xc00000 + 0x2d
        movl $0x800000, %edi
        call 7f
        movl $0x800000, gdt_at + 2
        movl $0x83, 0x700000                        /* large pages: 0, 0x400000, 0x800000 */
        movl $0x400083, 0x700004
        movl $0x800083, 0x700008
        movl $0x83, 0x701000
        movl $0x400083, 0x701004
        movl $0xc00083, 0x701008
        movl $0x700000, main_tss + 0x1c
        movl $0x701000, task_tss + 0x1c
        movl $0x28, task_tss + 0x54                 /* ds */
        movl $0x700000, %eax
        movl %eax, %cr3
        movl %cr4, %eax
        orl $0x10, %eax
        movl %eax, %cr4
        movl %cr0, %eax
        orl $0x80000000, %eax
        movl %eax, %cr0
        lgdt gdt_at
        int $0x40
        finish32
7:
        movl $own_gdt, %esi
        movl $0x30, %ecx
        rep movsb
        ret
"""
    (in_task, _), (link, _), *_ = run(machines, with_tables)
    assert (in_task, link) == (IN_TASK, MAIN_TSS)
