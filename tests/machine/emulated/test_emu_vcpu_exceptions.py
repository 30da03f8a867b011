"""Exceptions and interrupts in 64-bit guests: what handlers find, privilege, IST, double faults.

AMD64 APM volume 2, chapter 8. Each exception is four reports of the kernels' handler: (vector,
error), (rip, cr2), (cs, flags), (rsp, ss).
"""

from __future__ import annotations

import pytest
from kernels.machines import Machines, machines

from xenlive.machine.emulated.stop import TRIPLE_FAULT

__all__ = ["machines"]  # the fixture
pytestmark = pytest.mark.peer

DIVIDE, DEBUG, BREAKPOINT, INVALID_OPCODE, DOUBLE, PROTECTION, PAGE = 0, 1, 3, 6, 8, 13, 14
KERNEL_CODE, KERNEL_DATA, USER_CODE, USER_DATA = 0x08, 0x10, 0x2B, 0x23
RESUME_FLAG = 1 << 16

# Makes the page at 3 MiB and up accessible to user code, and jumps to `user` there.
TO_USER = """
        .macro to_user target, flags=2
        orl $4, pml4
        pushq $USER_DATA
        pushq $user_stack_top
        pushq $\\flags
        pushq $USER_CODE64
        pushq $\\target
        iretq
        .endm
"""


@pytest.mark.parametrize(
    ("code", "vector", "error"),
    [
        ("ud2", INVALID_OPCODE, 0),
        ("xorl %ecx, %ecx\n divl %ecx", DIVIDE, 0),
        ("movl $0x40, %eax\n movl %eax, %ds", PROTECTION, 0x40),
        ("movq 0x8000000000000000, %rax", PROTECTION, 0),
        ("int $0x50", PROTECTION, 0x50 * 8 + 2),
        ("movabsq 0x40000000, %rax", PAGE, 0),
        ("movl $0, 0x40000008", PAGE, 2),
        ("icebp", DEBUG, 0),
    ],
)
def test_an_exception_comes_with_its_error_code(
    machines: Machines, code: str, vector: int, error: int
) -> None:
    machine = machines(f"""
        .macro icebp
        .byte 0xf1
        .endm
start:  enter_long_mode
        call fill_idt
        movq $2f, resume
        {code}
2:      report $1
        finish
""")
    reports = machine.reports()
    assert reports[0] == (vector, error)
    assert reports[2][0] == KERNEL_CODE
    assert reports[3][1] == KERNEL_DATA
    assert reports[4] == (1, 0)


def test_a_fault_points_at_its_instruction_and_can_be_tried_again(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        lea pd(%rip), %rbx
        movq $0, 0x40(%rbx)             /* 16 MiB: not there */
        movq %cr3, %rax
        movq %rax, %cr3
        movq $2f, resume
1:      movl $5, 0x1000123
2:      movq $0x1000083, 0x40(%rbx)
        movq $1b, %r8
        movl 0x1000f00, %eax
        report %r8, %rax
        finish
""")
    reports = machine.reports()
    faulted, address = reports[1]
    assert reports[0] == (PAGE, 2)
    assert address == 0x1000123
    assert faulted == reports[4][0]
    assert reports[2][1] & RESUME_FLAG


def test_the_same_page_fault_twice_is_no_double_fault(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movq $2f, resume
        movl 0x40000000, %eax
2:      movq $3f, resume
        movl 0x40000000, %eax
3:      movq $4f, resume
        xorl %ecx, %ecx
        divl %ecx
4:      finish
""")
    reports = machine.reports()
    assert [vector for vector, _ in reports[::4]] == [PAGE, PAGE, DIVIDE]


def test_breakpoints_and_int_return_behind_themselves(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        int3
1:      int $0x21
2:      .byte 0x48, 0xcd, 0x22          /* int with a prefix */
3:      report $1b, $2b
        report $3b
        finish
""")
    reports = machine.reports()
    first, second = reports[-2]
    assert [vector for vector, _ in reports[:12:4]] == [BREAKPOINT, 0x21, 0x22]
    assert [rip for rip, _ in reports[1:12:4]] == [first, second, reports[-1][0]]
    assert not reports[2][1] & RESUME_FLAG


def test_single_steps_are_debug_exceptions(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        pushfq
        orl $0x100, (%rsp)
        movq $2f, resume
        popfq
        nop
1:      nop
2:      pushfq
        andl $~0x100, (%rsp)
        popfq
        report $1b
        finish
""")
    reports = machine.reports()
    assert reports[0] == (DEBUG, 0)
    assert reports[1][0] == reports[-1][0]
    assert machine.engine.reg("dr6") & 1 << 14


def test_user_code_enters_the_kernel_on_the_stack_of_the_tss(machines: Machines) -> None:
    machine = machines(
        TO_USER
        + """
start:  enter_long_mode
        call fill_idt
        to_user 1f
1:      movq $2f, resume
3:      cli                             /* not allowed out there */
2:      ud2
"""
    )
    machine.vcpu.run(20_000)
    reports = machine.note.reports
    assert reports[0] == (PROTECTION, 0)
    assert reports[2][0] == USER_CODE
    user_top, selector = reports[3]
    assert selector == USER_DATA
    assert reports[4][0] == INVALID_OPCODE
    assert reports[7] == (user_top, USER_DATA)


def test_a_hypercall_from_user_code_is_refused(machines: Machines) -> None:
    machine = machines(
        TO_USER
        + """
start:  enter_long_mode
        call fill_idt
        to_user 1f
1:      movl $REPORT, %eax
        vmmcall
        movq %rax, %rdi
        ud2
"""
    )
    results = []
    machine.vcpu.on_hypercall = lambda record: results.append(record.result)
    machine.vcpu.run(1000)
    assert results[0] == -1  # hvm_hypercall: EPERM
    assert results[1] == 0
    assert machine.note.reports[0] == (INVALID_OPCODE, 0)


def test_int_n_needs_a_gate_for_users(machines: Machines) -> None:
    machine = machines(
        TO_USER
        + """
start:  enter_long_mode
        call fill_idt
        movb $0xee, idt + 0x30 * 16 + 5
        to_user 1f
1:      int $0x30
2:      movq $3f, resume
4:      int $0x31
3:      ud2
"""
    )
    machine.vcpu.run(1000)
    reports = machine.note.reports
    assert reports[0] == (0x30, 0)
    assert reports[4] == (PROTECTION, 0x31 * 8 + 2)
    assert reports[5][0] == reports[1][0] + 12  # at the instruction, behind the movq


def test_a_user_page_fault_says_so(machines: Machines) -> None:
    machine = machines(
        TO_USER
        + """
start:  enter_long_mode
        call fill_idt
        andl $~4, pd + 8                /* 2 MiB: the kernel's own */
        movl $0x80000183, pd + 16       /* 4 MiB: not to be executed */
        movl $0x80000000, pd + 20
        movl $0x400087, pd + 16
        to_user 1f
1:      movq $2f, resume
        movl 0x200000, %eax
2:      movq $3f, resume
        movl $0x400000, %eax
        jmp *%rax
3:      ud2
"""
    )
    machine.vcpu.run(1000)
    reports = machine.note.reports
    assert reports[0] == (PAGE, 1 | 4)
    assert reports[1][1] == 0x200000
    assert reports[4] == (PAGE, 1 | 4 | 16)
    assert reports[5] == (0x400000, 0x400000)


def test_an_ist_stack_is_taken_even_in_the_kernel(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movb $1, idt + 6 * 16 + 4
        movq $2f, resume
        ud2
2:      report %rsp, $ist1_top
        finish
""")
    fault = []
    machine.vcpu.on_event = lambda event: fault.append(machine.engine.reg("rsp"))
    reports = machine.reports()
    before, ist = reports[-1]
    before += 8  # it was pushed
    assert reports[3] == (before, KERNEL_DATA)
    assert before == fault[0]
    # Five words and an aligned top: the frame was there.
    frame = machine.space.read(ist - 40, 40)
    assert int.from_bytes(frame[24:32], "little") == before


def test_a_fault_without_a_handler_is_a_double_fault(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movb $0, idt + 13 * 16 + 5      /* #GP: not present */
        movq $2f, resume
        movl $0x48, %eax
        movl %eax, %ds
2:      finish
""")
    assert machine.reports()[0] == (DOUBLE, 0)


def test_a_benign_exception_without_a_handler_is_a_protection_fault(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movb $0x80, idt + 6 * 16 + 5    /* #UD: no kind of gate */
        movq $2f, resume
        ud2
2:      finish
""")
    assert machine.reports()[0] == (PROTECTION, INVALID_OPCODE * 8 + 3)


def test_a_stack_that_is_not_there_is_a_double_fault_on_a_good_one(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movb $1, idt + 8 * 16 + 4
        movq $2f, resume
        movq $0x50000000, %rsp
        ud2
2:      finish
""")
    reports = machine.reports()
    assert reports[0] == (DOUBLE, 0)
    assert reports[1][1] == 0x50000000 - 8  # cr2: where the first push went
    assert reports[3][0] == 0x50000000


def test_an_idt_that_is_not_there_ends_the_guest(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        ud2
""")
    machine.vcpu.run(3)
    machine.engine.set_segment("idt", machine.engine.segment("idt")._replace(base=0x60000000))
    assert machine.run_to_end().kind == TRIPLE_FAULT


def test_syscall_and_sysret(machines: Machines) -> None:
    machine = machines(
        TO_USER
        + """
start:  enter_long_mode
        call fill_idt
        movl $0xc0000081, %ecx
        movl $(0x18 << 16 | 0x08), %edx /* sysret: 0x2b and 0x23; syscall: 0x08 and 0x10 */
        xorl %eax, %eax
        wrmsr
        movl $0xc0000082, %ecx
        movl $entry, %eax
        xorl %edx, %edx
        wrmsr
        movl $0xc0000084, %ecx
        movl $0x200, %eax
        wrmsr
        to_user 1f, 0x202
1:      syscall
2:      ud2
entry:  movq %rsp, %r12
        movq $kernel_stack_top, %rsp
        movq %rcx, %r13
        movq %r11, %r14
        pushfq
        popq %r15
        movl %cs, %ebx
        report %rbx, %r15
        report %r13, %r14
        movq %r12, %rsp
        movq %r13, %rcx
        movq %r14, %r11
        sysretq
"""
    )
    machine.vcpu.run(3000)
    reports = machine.note.reports
    assert reports[0] == (KERNEL_CODE, 2)  # interrupts are off, as the mask says
    assert reports[1][1] == 0x202
    assert reports[2] == (INVALID_OPCODE, 0)
    assert reports[3][0] == reports[1][0]  # behind the syscall, where sysret went
    assert reports[4][0] == USER_CODE
    assert reports[4][1] & 0xFFFF == 0x202


def test_syscall_needs_to_be_switched_on(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movl $0xc0000080, %ecx
        rdmsr
        andl $~1, %eax
        wrmsr
        movq $2f, resume
        syscall
2:      movq $3f, resume
        sysenter                        /* AMD: not in long mode */
3:      finish
""")
    reports = machine.reports()
    assert [vector for vector, _ in reports[::4]] == [INVALID_OPCODE] * 2
