/*
 * What small test kernels share: the PVH note, hypercalls that report to the test, page tables that
 * map the first GiB to itself, segments, and an IDT whose handlers report what they got.
 *
 * A kernel begins at `start`, in 32-bit code without paging, with the start info in ebx.
 */

#define REPORT 1000
#define FINISH 1001

#define CODE64 0x08
#define DATA 0x10
#define CODE32 0x18
#define USER_DATA 0x23
#define USER_CODE64 0x2b
#define USER_CODE32 0x33
#define TSS 0x38

        .section .note.Xen, "a"
        .align 4
        .long 4, 4, 18                          /* name, descriptor, XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz "Xen"
        .long start
        .text

/* Tells the test two numbers; changes eax. */
.macro report32 a, b=0
        pushl %ebx
        pushl %ecx
        pushl \b
        pushl \a
        popl %ebx
        popl %ecx
        movl $REPORT, %eax
        vmmcall
        popl %ecx
        popl %ebx
.endm

.macro finish32
        movl $FINISH, %eax
        vmmcall
        hlt
.endm

/* The same in 64-bit code; changes rax, rdi, rsi. */
.macro report a, b=$0
        pushq \b
        pushq \a
        popq %rdi
        popq %rsi
        movl $REPORT, %eax
        vmmcall
.endm

.macro finish
        movl $FINISH, %eax
        vmmcall
        hlt
.endm

/* From the PVH entry into long mode, with a stack and the segments below. */
.macro enter_long_mode
        .code32
        movl $stack_top, %esp
        lgdt gdt_pointer
        movl $pml4, %eax
        movl %eax, %cr3
        movl $0x20, %eax                        /* PAE */
        movl %eax, %cr4
        movl $0xc0000080, %ecx
        rdmsr
        orl $0x901, %eax                        /* NXE, LME, SCE */
        wrmsr
        movl %cr0, %eax
        orl $0x80010000, %eax                   /* PG, WP */
        movl %eax, %cr0
        ljmpl $CODE64, $1f
        .code64
1:      movl $DATA, %eax
        movl %eax, %ds
        movl %eax, %es
        movl %eax, %ss
        movq $stack_top, %rsp
        movl $tss, %eax
        movw %ax, tss_descriptor + 2
        shrl $16, %eax
        movb %al, tss_descriptor + 4
        movb $0x89, tss_descriptor + 5          /* not busy, when it comes here again */
        movl $TSS, %eax
        ltr %ax
        lidt idt_pointer
.endm

        .code64
        .align 16
/* Leave vector and error code on the stack in the same form, 16 bytes of code for each vector. */
stubs:
        .set vector, 0
        .rept 64
        .align 16
        .if (vector != 8) && (vector != 17) && ((vector < 10) || (vector > 14))
        pushq $0
        .endif
        pushq $vector
        jmp exception
        .set vector, vector + 1
        .endr

/* Reports (vector, error), (rip, cr2), (cs, flags), (rsp, ss); goes on at `resume` if that is set. */
exception:
        pushq %rax
        pushq %rdi
        pushq %rsi
        report 32(%rsp), 32(%rsp)               /* the first is pushed last: 8 further up */
        movq %cr2, %rax
        report 48(%rsp), %rax
        report 56(%rsp), 56(%rsp)
        report 72(%rsp), 72(%rsp)
        cmpq $0, resume
        je 1f
        movq resume, %rax
        movq $0, resume
        movq %rax, 40(%rsp)
1:      popq %rsi
        popq %rdi
        popq %rax
        addq $16, %rsp
        iretq

/* Fills the IDT; changes rax, rcx, rdx. */
fill_idt:
        movq $idt, %rdx
        movq $stubs, %rax
        movl $64, %ecx
1:      movw %ax, (%rdx)
        movw $CODE64, 2(%rdx)
        movw $0x8e00, 4(%rdx)
        movq %rax, %rdi
        shrq $16, %rdi
        movw %di, 6(%rdx)
        movl $0, 8(%rdx)
        movl $0, 12(%rdx)
        addq $16, %rax
        addq $16, %rdx
        decl %ecx
        jnz 1b
        ret

        .data
        .align 16
gdt:
        .quad 0
        .quad 0x00af9b000000ffff
        .quad 0x00cf93000000ffff
        .quad 0x00cf9b000000ffff
        .quad 0x00cff3000000ffff
        .quad 0x00affb000000ffff
        .quad 0x00cffb000000ffff
tss_descriptor:                                 /* its base is filled in */
        .word 0x67, 0
        .byte 0, 0x89, 0, 0
        .quad 0
gdt_end:
gdt_pointer:
        .word gdt_end - gdt - 1
        .quad gdt
idt_pointer:
        .word 64 * 16 - 1
        .quad idt
resume: .quad 0

        .align 16
tss:
        .long 0
        .quad kernel_stack_top, 0, 0, 0
        .quad ist1_top, 0, 0, 0, 0, 0, 0, 0
        .word 0, 0x68

        .align 4096
pml4:   .quad pdpt + 7
        .fill 511, 8, 0
pdpt:   .quad pd + 7
        .fill 511, 8, 0
pd:
        .set piece, 0
        .rept 512
        .quad piece * 0x200000 + 0x87
        .set piece, piece + 1
        .endr

        .bss
        .align 4096
idt:    .skip 4096
        .skip 8192
stack_top:
        .skip 8192
kernel_stack_top:
        .skip 4096
ist1_top:
        .skip 4096
user_stack_top:

        .section .text.start, "ax"
        .code32
        .globl start
