/*
 * MSRs that may not be there: a general protection fault skips the instruction, which has two
 * bytes, and leaves a mark.
 */
    .text
    .globl read_msr, write_msr, on_protection
#ifdef __x86_64__
read_msr:                           /* edi: number, rsi: two words */
    movl $0, faulted
    mov %edi, %ecx
    xor %eax, %eax
    xor %edx, %edx
    rdmsr
    mov %eax, (%rsi)
    mov %edx, 4(%rsi)
    mov faulted, %eax
    ret
write_msr:
    movl $0, faulted
    mov %edi, %ecx
    mov (%rsi), %eax
    mov 4(%rsi), %edx
    wrmsr
    mov faulted, %eax
    ret
on_protection:
    movl $1, faulted
    add $8, %rsp                    /* the error code */
    addq $2, (%rsp)
    iretq
#else
read_msr:
    push %ebx
    movl $0, faulted
    mov 8(%esp), %ecx
    mov 12(%esp), %ebx
    xor %eax, %eax
    xor %edx, %edx
    rdmsr
    mov %eax, (%ebx)
    mov %edx, 4(%ebx)
    mov faulted, %eax
    pop %ebx
    ret
write_msr:
    movl $0, faulted
    mov 4(%esp), %ecx
    mov 8(%esp), %edx
    mov (%edx), %eax
    mov 4(%edx), %edx
    wrmsr
    mov faulted, %eax
    ret
on_protection:
    movl $1, faulted
    add $4, %esp
    addl $2, (%esp)
    iret
#endif
    .bss
    .align 4
faulted:
    .skip 4
