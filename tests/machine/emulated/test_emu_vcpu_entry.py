"""How a PVH kernel begins, its hypercalls, and the instructions that a hypervisor answers."""

from __future__ import annotations

import pytest
from kernels.machines import START_INFO, Machines, machines

from xenlive.machine.emulated.processor.vcpu import RUN_ENDED, RUN_HALTED, RUN_ON
from xenlive.machine.emulated.stop import SHUTDOWN, SPIN, TRIPLE_FAULT

__all__ = ["machines"]  # the fixture
pytestmark = pytest.mark.peer


def test_the_entry_state_is_that_of_the_pvh_boot_protocol(machines: Machines) -> None:
    machine = machines("""
start:  movl $0x8000, %esp
        movl %cr0, %eax
        movl %cr4, %ecx
        report32 %ebx, %eax
        pushfl
        popl %edx
        report32 %ecx, %edx
        movl %cs, %eax
        lsll %eax, %ecx
        str %dx
        finish32
""")
    # docs/misc/pvh.pandoc: cr0 has PE alone (ET can't be clear), cr4 nothing, flags no VM, TF, IF.
    assert machine.reports() == [(START_INFO, 0x11), (0, 0x2)]
    engine = machine.engine
    assert engine.segment("cs")[1:] == (0, 0xFFFFFFFF, 0xC09B00)
    assert all(engine.segment(name)[1:3] == (0, 0xFFFFFFFF) for name in ("ds", "es", "ss"))
    assert engine.segment("tr")[1:] == (0, 0x67, 0x8B00)
    assert engine.cpl == 0
    assert engine.code_bits == 32


def test_hypercalls_through_the_page_and_by_vmcall(machines: Machines) -> None:
    machine = machines("""
start:  movl $0x8000, %esp
        movl $0x40000000, %ecx
        movl $page, %eax
        xorl %edx, %edx
        wrmsr
        movl $1, %ebx
        movl $2, %ecx
        movl $3, %edx
        movl $4, %esi
        movl $5, %edi
        movl $page + 17 * 32, %eax
        call *%eax
        pushl %eax
        report32 %eax, %ebx
        movl $18, %eax
        vmcall
        report32 %eax, %ebx
        movl $page + 17 * 32, %eax
        finish32
        .align 4096
page:   .skip 4096
""")
    assert machine.reports() == [(0xFFFFFFDA, 1), (0xFFFFFFDA, 1)]
    args = (1, 2, 3, 4, 5)
    assert machine.note.others[0] == (17, args, False)
    assert machine.note.others[1][0] == 18
    page = machine.vcpu.recent[0].rip & ~0xFFF
    # svm_init_hypercall_page: mov $17, %eax; vmmcall; ret. iret is a PV guest's: ud2.
    entry = bytes.fromhex("b811000000 0f01d9 c3")
    assert machine.space.read(page + 17 * 32, 9) == entry
    assert machine.space.read(page + 23 * 32, 2) == b"\x0f\x0b"


def test_a_hypercall_page_in_a_hole_is_refused(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movq $1f, resume
        movl $0x40000000, %ecx
        movl $0xf0000000, %eax
        xorl %edx, %edx
        wrmsr
        report $1
1:      movl $0x40000000, %ecx
        rdmsr
        report %rax, %rdx
        finish
""")
    reports = machine.reports()
    assert reports[0] == (13, 0)
    assert reports[-1] == (0, 0)
    assert (1, 0) not in reports[:4]


def test_64_bit_arguments_and_results(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        movq $0x1122334455667788, %rdi
        movq $-2, %rsi
        movl $3, %edx
        movl $4, %r10d
        movl $5, %r8d
        movl $40, %eax
        vmmcall
        report %rax
        finish
""")
    assert machine.reports() == [(2**64 - 38, 0)]
    args = (0x1122334455667788, 2**64 - 2, 3, 4, 5)
    assert machine.note.others == [(40, args, True)]


def test_cpuid_says_xen_and_what_a_guest_has(machines: Machines) -> None:
    machine = machines("""
start:  movl $0x8000, %esp
        movl $0x40000000, %eax
        cpuid
        report32 %ebx, %ecx
        report32 %edx
        movl $0x40000004, %eax
        xorl %ecx, %ecx
        cpuid
        report32 %eax, %ecx
        movl $0x40000003, %eax
        xorl %ecx, %ecx
        cpuid
        report32 %ecx, %edx
        movl $1, %eax
        cpuid
        report32 %ecx, %edx
        movl $0x7fffffff, %eax
        cpuid
        report32 %ebx, %ecx
        finish32
""")
    reports = machine.reports()
    said = b"".join(n.to_bytes(4, "little") for n in (*reports[0], reports[1][0]))
    assert said == b"XenVMMXenVMM"
    assert reports[2] == (0x5C, 1)
    assert reports[3] == (1_000_000, 1)
    no_rdrand_no_avx = reports[4][0] & (1 << 30 | 1 << 28)
    assert not no_rdrand_no_avx
    assert reports[5] == (0, 0)


def test_rdrand_is_not_there_whatever_a_guest_believes(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movq $1f, resume
        rdrand %eax
1:      finish
""")
    assert machine.reports()[0] == (6, 0)


def test_msrs_are_read_and_written_and_unknown_ones_fault(machines: Machines) -> None:
    machine = machines("""
        .macro try_write number, value
        movq $1f, resume
        movl $\\number, %ecx
        movq $\\value, %rax
        movq %rax, %rdx
        shrq $32, %rdx
        wrmsr
1:
        .endm
start:  enter_long_mode
        call fill_idt
        try_write 0xc0000082, 0xffff800000001234       /* LSTAR */
        movl $0xc0000082, %ecx
        rdmsr
        report %rax, %rdx
        try_write 0xc0000102, 0x5678                   /* kernel GS base: no exit */
        movl $0xc0000102, %ecx
        rdmsr
        report %rax, %rdx
        try_write 0xc0000082, 0x8000000000000000       /* not canonical */
        try_write 0x277, 0x02                          /* no such memory type */
        try_write 0xc0000080, 0x100000                 /* EFER: unknown */
        try_write 0xce, 0                              /* can't be written */
        movq $1f, resume
        movl $0x12345, %ecx
        rdmsr
1:      movq $1f, resume
        movl $0x12345, %ecx
        wrmsr
1:      movl $0x1b, %ecx
        rdmsr
        report %rax, %rdx
        finish
""")
    reports = machine.reports()
    assert reports[:2] == [(0x1234, 0xFFFF8000), (0x5678, 0)]
    faults = reports[2:-1]
    assert [faults[i] for i in range(0, len(faults), 4)] == [(13, 0)] * 6
    assert reports[-1] == (0xFEE00900, 0)


def test_control_registers_refuse_what_xen_refuses(machines: Machines) -> None:
    machine = machines("""
        .macro try_write register, value
        movq $1f, resume
        movq $\\value, %rax
        movq %rax, \\register
1:
        .endm
start:  enter_long_mode
        call fill_idt
        try_write %cr4, 0x2020                  /* VMXE */
        try_write %cr4, 0                       /* PAE is needed */
        try_write %cr4, 0x200020                /* SMAP is not offered */
        try_write %cr0, 0x11                    /* paging off in 64-bit code */
        try_write %cr0, 0xa0010011              /* NW without CD */
        try_write %cr4, 0x6a0                   /* fine: PGE, OSFXSR, OSXMMEXCPT */
        movq %cr4, %rax
        report %rax
        movq %cr0, %rax
        orl $8, %eax
        movq %rax, %cr0
        movq %cr0, %rdx
        clts
        movq %cr0, %rax
        report %rax, %rdx
        movl $0xa, %eax
        lmsw %ax
        movq %cr0, %rax
        report %rax
        movq %rsp, %r12
        finish
""")
    reports = machine.reports()
    assert [reports[i] for i in range(0, 20, 4)] == [(13, 0)] * 5
    assert reports[20] == (0x6A0, 0)
    assert reports[21] == (0x80010011, 0x80010019)
    assert reports[22] == (0x8001001B, 0)


def test_debug_registers_keep_what_is_written(machines: Machines) -> None:
    machine = machines("""
start:  movl $0x8000, %esp
        movl $0x1234, %eax
        movl %eax, %dr0
        movl $0x55, %eax
        movl %eax, %dr7
        movl %dr0, %eax
        movl %dr7, %ecx
        report32 %eax, %ecx
        movb $1, 0x1234                         /* no breakpoint of the processor's is there */
        movl %dr6, %eax
        report32 %eax
        finish32
""")
    assert machine.reports() == [(0x1234, 0x455), (0xFFFF0FF0, 0)]


def test_ports_and_holes_are_all_ones_and_swallow(machines: Machines) -> None:
    machine = machines("""
start:  movl $0x8000, %esp
        movl $0x70, %edx
        xorl %eax, %eax
        inb %dx, %al
        movl %eax, %ecx
        inl %dx, %eax
        report32 %ecx, %eax
        outb %al, %dx
        movl $0x1234, 0xe0000000
        movl 0xe0000000, %eax
        movzwl 0xe0000ffe, %ecx
        report32 %eax, %ecx
        finish32
""")
    assert machine.reports() == [(0xFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFF)]


def test_code_in_a_hole_is_no_instruction(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movq $1f, resume
        movl $0x30000000, %eax
        jmp *%rax
1:      finish
""")
    reports = machine.reports()
    assert reports[0] == (6, 0)
    assert reports[1][0] == 0x30000000


def test_the_time_stamp_counter_is_virtual_time(machines: Machines) -> None:
    machine = machines("""
start:  movl $0x8000, %esp
        rdtsc
        movl %eax, %ebp
        rdtsc
        report32 %ebp, %eax
        movl $100000, %ecx
1:      decl %ecx
        jnz 1b
        rdtsc
        report32 %eax, %edx
        finish32
""")
    (first, second), (third, high) = machine.reports()
    assert 0 < first < second < third < 10_000_000
    assert high == 0
    assert third - second > 100_000 * 10  # a block takes 10 ns


def test_a_timer_comes_due_in_a_loop_without_an_exit(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movq $2f, resume
        sti
1:      jmp 1b
2:      finish
""")
    machine.note.timer_ns = 1_000_000
    machine.note.vector = 40
    machine.vcpu.on_event = lambda event: setattr(machine.note, "upcall", False)
    assert machine.reports()[0] == (40, 0)
    assert 1_000_000 <= machine.note.timers_fired[0] < 1_000_100


def test_a_timer_comes_due_while_a_guest_reads_the_clock(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movq $2f, resume
        sti
1:      rdtsc
        jmp 1b
2:      finish
""")
    machine.note.timer_ns = 1_000_000
    machine.note.vector = 40
    machine.vcpu.on_event = lambda event: setattr(machine.note, "upcall", False)
    assert machine.reports()[0] == (40, 0)
    assert 1_000_000 <= machine.note.timers_fired[0] < 1_000_500


def test_halt_waits_for_an_upcall(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        sti
        hlt
        report $7
        finish
""")
    machine.note.vector = 41
    assert machine.vcpu.run() == RUN_HALTED
    assert machine.vcpu.run() == RUN_HALTED
    assert machine.note.reports == []
    machine.vcpu.on_event = lambda event: setattr(machine.note, "upcall", False)
    machine.note.upcall = True
    reports = machine.reports()
    assert reports[0] == (41, 0)
    assert reports[-1] == (7, 0)


def test_upcalls_wait_until_interrupts_are_on(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        movl $1000, %ecx
1:      decl %ecx
        jnz 1b
        report $1
        sti
        nop
1:      jmp 1b
""")
    machine.note.vector = 33
    machine.note.upcall = True
    machine.vcpu.on_event = lambda event: setattr(machine.note, "upcall", False)
    assert machine.run(5000) == RUN_ON
    assert machine.note.reports[0] == (1, 0)
    assert machine.note.reports[1] == (33, 0)


def test_the_instruction_after_sti_is_not_interrupted(machines: Machines) -> None:
    machine = machines("""
start:  enter_long_mode
        call fill_idt
        xorl %ebx, %ebx
1:      sti
        cli
        incl %ebx
        cmpl $1000, %ebx
        jne 1b
        report %rbx
        finish
""")
    machine.note.vector = 33
    machine.note.upcall = True
    assert machine.reports() == [(1000, 0)]


def test_halt_with_interrupts_off_is_the_guests_end(machines: Machines) -> None:
    machine = machines("start: cli\n hlt\n")
    ended = machine.run_to_end()
    assert (ended.kind, ended.code) == (SHUTDOWN, 0)
    assert machine.vcpu.run() == RUN_ENDED


def test_a_busy_guest_ends_at_the_same_block_each_time(machines: Machines) -> None:
    assembly = "start: jmp start\n"
    blocks = set()
    for _ in range(2):
        machine = machines(assembly, spin_limit=3_000_000)
        ended = machine.run_to_end()
        assert ended.kind == SPIN
        blocks.add((machine.vcpu.blocks, machine.clock.now_ns))
    assert len(blocks) == 1


def test_a_triple_fault_ends_the_guest_with_its_registers(machines: Machines) -> None:
    machine = machines("""
start:  movl $0x1234, %ebx
        ud2
""")
    ended = machine.run_to_end()
    assert ended.kind == TRIPLE_FAULT
    assert "#UD" in ended.what
    assert machine.engine.reg("rbx") == 0x1234
    assert machine.space.read(machine.engine.reg("rip"), 2) == b"\x0f\x0b"


def test_wandering_off_ends_the_guest(machines: Machines) -> None:
    assert machines("start: jmp 0xfffffff0\n").run_to_end().kind == TRIPLE_FAULT
