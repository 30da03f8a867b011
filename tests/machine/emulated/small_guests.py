"""Small kernels in 32-bit assembly, each for one way in which a guest may end or wait.

They run as PVH kernels are entered: no paging, so that the console's page is at its own address.
"""

from __future__ import annotations

# Structures of a hypercall's argument are built on the stack.
_MACROS = """
        .text
        .code32
.macro hypercall number, first, second
        movl \\second, %ecx
        movl \\first, %ebx
        movl $\\number, %eax
        vmmcall
.endm

.macro shutdown reason
        pushl $\\reason
        hypercall 29, $2, %esp                  /* sched_op: shutdown */
.endm

/* One character to the console's ring, without telling anybody. */
.macro put character
        movl 0xfefff000 + 3084, %edx            /* out_prod */
        movl %edx, %esi
        andl $2047, %esi
        movb \\character, 0xfefff400(%esi)
        incl %edx
        movl %edx, 0xfefff000 + 3084
.endm

/* Tells the other end of the console. */
.macro kick
        pushl $2
        hypercall 32, $4, %esp                  /* event_channel_op: send */
        addl $4, %esp
.endm

/* Puts the shared info page at 2 MiB. */
.macro share
        pushl $0x200                            /* gfn */
        pushl $0                                /* index */
        pushl $0                                /* space: shared info */
        pushl $0x7ff0                           /* domain: itself */
        hypercall 12, $7, %esp                  /* memory_op: add_to_physmap */
.endm

.macro clear_events
        movl $0, 0x200000 + 2048                /* evtchn_pending */
        movl $0, 0x200000 + 8                   /* evtchn_pending_sel */
        movb $0, 0x200000                       /* evtchn_upcall_pending */
.endm

        .globl start
start:  movl $stack_top, %esp
        xorl %ebp, %ebp
"""


def kernel(body: str) -> str:
    """Assembly for `build_kernel` that does `body` with a stack and nothing else."""
    return f"{_MACROS}\n{body}\n1:      jmp 1b\n"


def shutdown(reason: int) -> str:
    """Asks for its end."""
    return kernel(f"shutdown {reason}")


SAYS_HELLO = kernel("put $104\n put $105\n put $10\n kick\n shutdown 0")

SPINS = kernel("")

HALTS_FOR_GOOD = kernel("hlt")

#: Waits, without a timer, for an event that nobody sends: SCHEDOP_block.
WAITS_FOR_EVER = kernel("hypercall 29, $1, $0")

#: A write to nowhere in an IDT of no gates.
TRIPLE_FAULTS = kernel("ud2")

#: Crashes three calls deep, each with a frame pointer.
CRASHES_DEEP = kernel(
    """
        call outer
        shutdown 0
        .type outer, @function
outer:  pushl %ebp
        movl %esp, %ebp
        call inner
        leave
        ret
        .type inner, @function
inner:  pushl %ebp
        movl %esp, %ebp
        hypercall 17, $0, $0                    /* xen_version: version */
        shutdown 3
        leave
        ret
"""
)

#: The same by a hypercall page: functions that are the instruction and a return.
CRASHES_BY_A_PAGE = kernel(
    """
        call inner
        nop
        .type inner, @function
inner:  pushl %ebp
        movl %esp, %ebp
        movl $0, %ebx
        movl $0, %ecx
        movl $17, %eax                          /* xen_version: version */
        call page
        pushl $3
        movl %esp, %ecx
        movl $2, %ebx
        movl $29, %eax                          /* sched_op: shutdown */
        call page
        nop
        .type page, @function
page:   vmmcall
        ret
"""
)

#: Waits with SCHEDOP_poll until 5 s of its time counter are over, and powers off.
SLEEPS = kernel(
    """
        share
again:  clear_events
        pushl $1
        pushl $0x2a05f200                       /* 5,000,000,000 ns */
        pushl $0
        pushl $0
        hypercall 29, $3, %esp                  /* sched_op: poll, no ports, with a timeout */
        addl $16, %esp
        rdtsc
        cmpl $1, %edx
        jb again
        ja 2f
        cmpl $0x2a05f200, %eax
        jb again
2:      shutdown 0
"""
)

#: A periodic timer whose interrupt is bound to nothing, and a vcpu that waits for it.
HEARS_NO_TIMER = kernel(
    """
        pushl $0
        pushl $1000000                          /* each ms */
        movl %esp, %edx
        movl $0, %ecx
        movl $6, %ebx                           /* vcpu_op: set_periodic_timer */
        movl $24, %eax
        vmmcall
        hypercall 29, $1, $0
"""
)

#: Writes back each character that is typed, and powers off after a `q`. Between characters it
#: polls the console's port; the shared info page, where it clears events, is put at 2 MiB.
ECHOES = kernel(
    """
        share
again:  movl 0xfefff000 + 3072, %edi            /* in_cons */
        cmpl 0xfefff000 + 3076, %edi
        je wait
        movl %edi, %esi
        andl $1023, %esi
        movb 0xfefff000(%esi), %al
        incl %edi
        movl %edi, 0xfefff000 + 3072
        movb %al, %ah
        put %al
        cmpb $'q', %ah
        jne again
        kick
        shutdown 0
wait:   kick
        clear_events
        movl 0xfefff000 + 3072, %edi
        cmpl 0xfefff000 + 3076, %edi
        jne again
        pushl $2
        movl %esp, %edx
        pushl $0
        pushl $0
        pushl $1
        pushl %edx
        hypercall 29, $3, %esp                  /* sched_op: poll, one port, for ever */
        addl $20, %esp
        jmp again
"""
)

#: Asks Xenstore for its domid through the ring, waits for the answer and writes it to the console.
ASKS_THE_STORE = kernel(
    """
        movl $request, %esi
        movl $0xfeffc000, %edi                  /* the ring is empty: its bytes are from 0 on */
        movl $request_end - request, %ecx
        rep movsb
        movl $request_end - request, 0xfeffc000 + 2052
        pushl $1
        hypercall 32, $4, %esp
        movb 0xfeffc000 + 1024 + 16, %al
        put %al
        kick
        shutdown 0
request:
        .long 2, 0, 0, 6
        .asciz "domid"
request_end:
"""
)
