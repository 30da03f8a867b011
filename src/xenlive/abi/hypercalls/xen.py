"""What all hypercalls share: their numbers, domain ids, virtual interrupts, error numbers.

Specification: Xen `public/xen.h`, `public/errno.h`.

**Invariants.** Error numbers are Xen's own, which happen to be those of Linux on x86 and need not
be those of the system this runs on.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

HYPERVISOR_set_trap_table = 0
HYPERVISOR_platform_op = 7
HYPERVISOR_memory_op = 12
HYPERVISOR_multicall = 13
HYPERVISOR_set_timer_op = 15
HYPERVISOR_event_channel_op_compat = 16
HYPERVISOR_xen_version = 17
HYPERVISOR_console_io = 18
HYPERVISOR_physdev_op_compat = 19
HYPERVISOR_grant_table_op = 20
HYPERVISOR_vm_assist = 21
HYPERVISOR_vcpu_op = 24
HYPERVISOR_mmuext_op = 26
HYPERVISOR_xsm_op = 27
HYPERVISOR_sched_op = 29
HYPERVISOR_callback_op = 30
HYPERVISOR_event_channel_op = 32
HYPERVISOR_physdev_op = 33
HYPERVISOR_hvm_op = 34
HYPERVISOR_sysctl = 35
HYPERVISOR_domctl = 36
HYPERVISOR_kexec_op = 37
HYPERVISOR_argo_op = 39
HYPERVISOR_xenpmu_op = 40
HYPERVISOR_dm_op = 41
HYPERVISOR_hypfs_op = 42
HYPERVISOR_arch_0 = 48
HYPERVISOR_arch_1 = 49

DOMID_FIRST_RESERVED = 0x7FF0
DOMID_SELF = 0x7FF0
DOMID_IO = 0x7FF1
DOMID_XEN = 0x7FF2
DOMID_COW = 0x7FF3
DOMID_INVALID = 0x7FF4

VIRQ_TIMER = 0
VIRQ_DEBUG = 1
VIRQ_CONSOLE = 2
VIRQ_DOM_EXC = 3
VIRQ_XENOPROF = 7
VIRQ_XENPMU = 13
VIRQ_ARCH_0 = 16
NR_VIRQS = 24

# Bits of a page or a word that are all ones: what a frame number is when there is none.
INVALID_GFN_64 = (1 << 64) - 1
INVALID_GFN_32 = (1 << 32) - 1

XEN_EPERM = 1
XEN_ENOENT = 2
XEN_EIO = 5
XEN_ENXIO = 6
XEN_E2BIG = 7
XEN_EAGAIN = 11
XEN_ENOMEM = 12
XEN_EACCES = 13
XEN_EFAULT = 14
XEN_EBUSY = 16
XEN_EEXIST = 17
XEN_EXDEV = 18
XEN_EINVAL = 22
XEN_ENOSPC = 28
XEN_EDOM = 33
XEN_ERANGE = 34
XEN_ENOSYS = 38
XEN_ENODATA = 61
XEN_ESRCH = 3
XEN_EOVERFLOW = 75
XEN_EILSEQ = 84
XEN_EOPNOTSUPP = 95
XEN_ENOBUFS = 105

MULTICALL_ENTRY = Layout(
    "multicall_entry",
    64,
    [
        Field("op", 0, "Q"),
        Field("result", 8, "q"),
        Field("arg0", 16, "Q"),
        Field("arg1", 24, "Q"),
        Field("arg2", 32, "Q"),
        Field("arg3", 40, "Q"),
        Field("arg4", 48, "Q"),
        Field("arg5", 56, "Q"),
    ],
    ctype="struct multicall_entry",
)

MULTICALL_ENTRY_32 = Layout(
    "multicall_entry of 32 bits",
    32,
    [
        Field("op", 0, "I"),
        Field("result", 4, "i"),
        Field("arg0", 8, "I"),
        Field("arg1", 12, "I"),
        Field("arg2", 16, "I"),
        Field("arg3", 20, "I"),
        Field("arg4", 24, "I"),
        Field("arg5", 28, "I"),
    ],
    ctype="struct multicall_entry",
)
