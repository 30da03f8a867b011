/*
 * Exceptions 0 to 31 and the vector that events come by. An exception ends the kernel, an event
 * calls on_event and goes on where it was.
 */
#define UPCALL 0xf3

    .text
    .macro exception number
    .align 16
trap_\number:
    .if !(\number == 8 || (\number >= 10 && \number <= 14) || \number == 17)
    push $0
    .endif
#ifdef __x86_64__
    mov $\number, %edi
    pop %rsi                        /* error code */
    pop %rdx                        /* where */
    mov %cr2, %rcx
    and $-16, %rsp
#else
    pop %eax
    pop %edx
    mov %cr2, %ecx
    push %ecx
    push %edx
    push %eax
    push $\number
#endif
    call on_exception
    .endm

    .altmacro
    .set n, 0
    .rept 32
    exception %n
    .set n, n + 1
    .endr

    .align 16
trap_event:
#ifdef __x86_64__
    push %rax
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %rbp
    mov %rsp, %rbp
    and $-16, %rsp
    cld
    call on_event
    mov %rbp, %rsp
    pop %rbp
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rax
    iretq
#else
    pusha
    cld
    call on_event
    popa
    iret
#endif

    .section .rodata
    .align 8
    .globl trap_entries
trap_entries:                       /* as 32-bit words: all of it lies below 4 GiB */
    .set n, 0
    .macro entry_of number
    .long trap_\number
    .endm
    .rept 32
    entry_of %n
    .set n, n + 1
    .endr
    .long trap_event
