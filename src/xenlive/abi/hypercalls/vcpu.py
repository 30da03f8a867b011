"""Arguments of the vcpu hypercall.

Specification: Xen `public/vcpu.h`.

**Invariants.** Where a 64-bit number follows a 32-bit one, a 32 bit guest has no gap: those
structures have a second form.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

VCPUOP_initialise = 0
VCPUOP_up = 1
VCPUOP_down = 2
VCPUOP_is_up = 3
VCPUOP_get_runstate_info = 4
VCPUOP_register_runstate_memory_area = 5
VCPUOP_set_periodic_timer = 6
VCPUOP_stop_periodic_timer = 7
VCPUOP_set_singleshot_timer = 8
VCPUOP_stop_singleshot_timer = 9
VCPUOP_register_vcpu_info = 10
VCPUOP_send_nmi = 11
VCPUOP_get_physid = 12
VCPUOP_register_vcpu_time_memory_area = 13

RUNSTATE_running = 0
RUNSTATE_runnable = 1
RUNSTATE_blocked = 2
RUNSTATE_offline = 3

VCPU_RUNSTATE_INFO = Layout(
    "vcpu_runstate_info",
    48,
    [
        Field("state", 0, "i"),
        Field("_pad0", 4, "4s"),
        Field("state_entry_time", 8, "Q"),
        Field("time", 16, "32s"),
    ],
    ctype="struct vcpu_runstate_info",
)

VCPU_RUNSTATE_INFO_32 = Layout(
    "vcpu_runstate_info of 32 bits",
    44,
    [Field("state", 0, "i"), Field("state_entry_time", 4, "Q"), Field("time", 12, "32s")],
    ctype="struct vcpu_runstate_info",
)

VCPU_SET_PERIODIC_TIMER = Layout(
    "vcpu_set_periodic_timer",
    8,
    [Field("period_ns", 0, "Q")],
    ctype="struct vcpu_set_periodic_timer",
)

VCPU_SET_SINGLESHOT_TIMER = Layout(
    "vcpu_set_singleshot_timer",
    16,
    [Field("timeout_abs_ns", 0, "Q"), Field("flags", 8, "I"), Field("_pad0", 12, "4s")],
    ctype="struct vcpu_set_singleshot_timer",
)

VCPU_SET_SINGLESHOT_TIMER_32 = Layout(
    "vcpu_set_singleshot_timer of 32 bits",
    12,
    [Field("timeout_abs_ns", 0, "Q"), Field("flags", 8, "I")],
    ctype="struct vcpu_set_singleshot_timer",
)

VCPU_REGISTER_VCPU_INFO = Layout(
    "vcpu_register_vcpu_info",
    16,
    [Field("mfn", 0, "Q"), Field("offset", 8, "I"), Field("rsvd", 12, "I")],
    ctype="struct vcpu_register_vcpu_info",
)

# A virtual address in a union with a u64; 32 bit guests use its lower half.
VCPU_REGISTER_RUNSTATE_MEMORY_AREA = Layout(
    "vcpu_register_runstate_memory_area",
    8,
    [Field("addr", 0, "Q")],
    ctype="struct vcpu_register_runstate_memory_area",
)

VCPU_REGISTER_TIME_MEMORY_AREA = Layout(
    "vcpu_register_time_memory_area",
    8,
    [Field("addr", 0, "Q")],
    ctype="struct vcpu_register_time_memory_area",
)
