/*
 * The way in: a PVH kernel is entered in flat 32-bit protected mode, paging off, ebx = start info.
 *
 * The first thing it does is to ask CPUID who is there, as all such kernels do: before that it has
 * touched no memory, so whoever plays the hypervisor sees RAM as the kernel before left it.
 *
 * With -m64 it goes on in long mode, the first 4 GiB mapped one to one; with -m32 without paging.
 */
    .section .note.Xen, "a", @note
    .align 4
    .long 4, 4, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long entry

    .section .text.entry, "ax", @progbits
    .code32
    .globl entry
entry:
    cld
    mov %ebx, %edi
    mov $0x40000000, %eax
    xor %ecx, %ecx
    cpuid
    mov $stack_top, %esp
    lgdt gdt_pointer
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
#ifdef __x86_64__
    mov $pml4, %eax
    movl $pdpt + 3, (%eax)
    mov $pdpt, %eax
    movl $pds + 3, (%eax)
    movl $pds + 0x1003, 8(%eax)
    movl $pds + 0x2003, 16(%eax)
    movl $pds + 0x3003, 24(%eax)
    mov $pds, %eax
    mov $0x83, %edx                 /* 2 MiB each: present, writable, large */
1:  mov %edx, (%eax)
    movl $0, 4(%eax)
    add $8, %eax
    add $0x200000, %edx
    jnc 1b
    mov $0x20, %eax                 /* PAE */
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx           /* EFER.LME */
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    ljmp $0x18, $long_mode
    .code64
long_mode:
    xor %ebp, %ebp
    call kernel_main
#else
    ljmp $0x08, $flat
flat:
    xor %ebp, %ebp
    sub $12, %esp
    push %edi
    call kernel_main
#endif
    cli
2:  hlt
    jmp 2b

    .data
    .align 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        /* 0x08: 32-bit code */
    .quad 0x00cf93000000ffff        /* 0x10: data */
    .quad 0x00af9b000000ffff        /* 0x18: 64-bit code */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt, 0

    .bss
    .align 4096
    .globl hypercall_page
hypercall_page:
    .skip 4096
#ifdef __x86_64__
pml4:
    .skip 4096
pdpt:
    .skip 4096
pds:
    .skip 4 * 4096
#endif
    .skip 16384
stack_top:
