"""Arguments of the HVM hypercall, and HVM parameters.

Specification: Xen `public/hvm/hvm_op.h`, `public/hvm/params.h`.

**Invariants.** No structure here has a pointer or a native word in it, so one form serves both 64
and 32 bit guests.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

HVMOP_set_param = 0
HVMOP_get_param = 1
HVMOP_flush_tlbs = 5
HVMOP_pagetable_dying = 9
HVMOP_get_time = 10
HVMOP_xentrace = 11
HVMOP_get_mem_type = 15
HVMOP_set_evtchn_upcall_vector = 23
HVMOP_guest_request_vm_event = 24
HVMOP_altp2m = 25

HVM_PARAM_CALLBACK_IRQ = 0
HVM_PARAM_STORE_PFN = 1
HVM_PARAM_STORE_EVTCHN = 2
HVM_PARAM_PAE_ENABLED = 4
HVM_PARAM_IOREQ_PFN = 5
HVM_PARAM_BUFIOREQ_PFN = 6
HVM_PARAM_TIMER_MODE = 10
HVM_PARAM_IDENT_PT = 12
HVM_PARAM_DM_DOMAIN = 13
HVM_PARAM_ACPI_S_STATE = 14
HVM_PARAM_VM86_TSS = 15
HVM_PARAM_CONSOLE_PFN = 17
HVM_PARAM_CONSOLE_EVTCHN = 18
HVM_PARAM_ACPI_IOPORTS_LOCATION = 19
HVM_PARAM_MEMORY_EVENT_CR0 = 20
HVM_PARAM_MEMORY_EVENT_CR3 = 21
HVM_PARAM_MEMORY_EVENT_CR4 = 22
HVM_PARAM_MEMORY_EVENT_INT3 = 23
HVM_PARAM_NESTEDHVM = 24
HVM_PARAM_MEMORY_EVENT_SINGLE_STEP = 25
HVM_PARAM_BUFIOREQ_EVTCHN = 26
HVM_PARAM_PAGING_RING_PFN = 27
HVM_PARAM_MONITOR_RING_PFN = 28
HVM_PARAM_SHARING_RING_PFN = 29
HVM_PARAM_MEMORY_EVENT_MSR = 30
HVM_PARAM_TRIPLE_FAULT_REASON = 31
HVM_PARAM_VM_GENERATION_ID_ADDR = 34
HVM_PARAM_ALTP2M = 35
HVM_PARAM_X87_FIP_WIDTH = 36
HVM_PARAM_VM86_TSS_SIZED = 37
HVM_NR_PARAMS = 39

# The upper byte of HVM_PARAM_CALLBACK_IRQ: how an event reaches the guest.
HVM_PARAM_CALLBACK_TYPE_GSI = 0
HVM_PARAM_CALLBACK_TYPE_PCI_INTX = 1
HVM_PARAM_CALLBACK_TYPE_VECTOR = 2

HVMMEM_ram_rw = 0
HVMMEM_mmio_dm = 2

XEN_HVM_PARAM = Layout(
    "xen_hvm_param",
    16,
    [
        Field("domid", 0, "H"),
        Field("pad", 2, "H"),
        Field("index", 4, "I"),
        Field("value", 8, "Q"),
    ],
    ctype="struct xen_hvm_param",
)

XEN_HVM_GET_TIME = Layout(
    "xen_hvm_get_time", 8, [Field("now", 0, "Q")], ctype="struct xen_hvm_get_time"
)

XEN_HVM_XENTRACE = Layout(
    "xen_hvm_xentrace",
    32,
    [Field("event", 0, "H"), Field("extra_bytes", 2, "H"), Field("extra", 4, "28s")],
    ctype="struct xen_hvm_xentrace",
)

XEN_HVM_GET_MEM_TYPE = Layout(
    "xen_hvm_get_mem_type",
    16,
    [
        Field("domid", 0, "H"),
        Field("mem_type", 2, "H"),
        Field("pad", 4, "4s"),
        Field("pfn", 8, "Q"),
    ],
    ctype="struct xen_hvm_get_mem_type",
)

XEN_HVM_PAGETABLE_DYING = Layout(
    "xen_hvm_pagetable_dying",
    16,
    [Field("domid", 0, "H"), Field("pad", 2, "6s"), Field("gpa", 8, "Q")],
    ctype="struct xen_hvm_pagetable_dying",
)

XEN_HVM_EVTCHN_UPCALL_VECTOR = Layout(
    "xen_hvm_evtchn_upcall_vector",
    8,
    [Field("vcpu", 0, "I"), Field("vector", 4, "B"), Field("_pad0", 5, "3s")],
    ctype="struct xen_hvm_evtchn_upcall_vector",
)
