/*
 * The way out: 32-bit protected mode without paging, the next kernel put in place, and into it.
 *
 * Copied to a page of its own, above all that the next kernel takes, and entered there with edi =
 * that page (struct leave_page of kexec.c). The last use of a stack is before the first copy.
 */
#define GDT_POINTER 1050
#define ENTRY 1060
#define START_INFO 1064
#define N_ACTIONS 1068
#define ACTIONS 1072

    .text
    .globl leave_start, leave_end
leave_start:
    cli
    mov %edi, %ebp
#ifdef __x86_64__
    .code64
    lgdt GDT_POINTER(%rbp)
    lea flat - leave_start(%rbp), %eax
    push $0x08
    push %rax
    lretq
    .code32
#else
    lgdt GDT_POINTER(%ebp)
    lea flat - leave_start(%ebp), %eax
    push $0x08
    push %eax
    lret
#endif
flat:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    mov $0x11, %eax                 /* PE and ET: no paging from here on */
    mov %eax, %cr0
#ifdef __x86_64__
    mov $0xc0000080, %ecx           /* EFER: no long mode */
    rdmsr
    and $~0x100, %eax
    wrmsr
#endif
    xor %eax, %eax
    mov %eax, %cr3
    mov %eax, %cr4
    cld
    mov N_ACTIONS(%ebp), %edx
    lea ACTIONS(%ebp), %ebx
1:  test %edx, %edx
    jz 3f
    mov 0(%ebx), %edi
    mov 4(%ebx), %esi
    mov 8(%ebx), %ecx
    test %esi, %esi
    jz 2f
    rep movsb
2:  xor %eax, %eax                  /* after a copy nothing is left to zero */
    rep stosb
    add $12, %ebx
    dec %edx
    jmp 1b
3:  mov START_INFO(%ebp), %ebx
    mov ENTRY(%ebp), %eax
    jmp *%eax
leave_end:
