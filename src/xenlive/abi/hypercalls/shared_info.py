"""The page Xen shares with each domain: pending events, clock.

Specification: Xen `public/xen.h` (`shared_info`, `vcpu_info`, `vcpu_time_info`) and
`public/arch-x86/xen.h`, in the forms of 64 and 32 bit guests:

                    64 bit   32 bit
    vcpu_info[32]      0        0      64 bytes each
    evtchn_pending  2048     2048      64 or 32 words
    evtchn_mask     2560     2176
    wc_version      3072     2304      wall clock: version, sec, nsec
    wc_sec_hi       3084     2340

**Invariants.** A vcpu_info is 64 bytes in both forms, its clock lies at the same place. Which port
a bit stands for is the same too: bit n of the whole array.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

VCPU_INFO = Layout(
    "vcpu_info",
    64,
    [
        Field("evtchn_upcall_pending", 0, "B"),
        Field("evtchn_upcall_mask", 1, "B"),
        Field("_pad0", 2, "6s"),
        Field("evtchn_pending_sel", 8, "Q"),
        Field("arch", 16, "16s"),
        Field("time", 32, "32s"),
    ],
    ctype="struct vcpu_info",
)

VCPU_INFO_32 = Layout(
    "vcpu_info of 32 bits",
    64,
    [
        Field("evtchn_upcall_pending", 0, "B"),
        Field("evtchn_upcall_mask", 1, "B"),
        Field("_pad0", 2, "2s"),
        Field("evtchn_pending_sel", 4, "I"),
        Field("arch", 8, "24s"),
        Field("time", 32, "32s"),
    ],
    ctype="struct vcpu_info",
)

VCPU_TIME_INFO = Layout(
    "vcpu_time_info",
    32,
    [
        Field("version", 0, "I"),
        Field("pad0", 4, "I"),
        Field("tsc_timestamp", 8, "Q"),
        Field("system_time", 16, "Q"),
        Field("tsc_to_system_mul", 24, "I"),
        Field("tsc_shift", 28, "b"),
        Field("flags", 29, "B"),
        Field("_pad1", 30, "2s"),
    ],
    ctype="struct vcpu_time_info",
)

SHARED_INFO = Layout(
    "shared_info",
    3136,
    [
        Field("vcpu_info", 0, "2048s"),
        Field("evtchn_pending", 2048, "512s"),
        Field("evtchn_mask", 2560, "512s"),
        Field("wc_version", 3072, "I"),
        Field("wc_sec", 3076, "I"),
        Field("wc_nsec", 3080, "I"),
        Field("wc_sec_hi", 3084, "I"),
        Field("arch", 3088, "48s"),
    ],
    ctype="struct shared_info",
)

SHARED_INFO_32 = Layout(
    "shared_info of 32 bits",
    2344,
    [
        Field("vcpu_info", 0, "2048s"),
        Field("evtchn_pending", 2048, "128s"),
        Field("evtchn_mask", 2176, "128s"),
        Field("wc_version", 2304, "I"),
        Field("wc_sec", 2308, "I"),
        Field("wc_nsec", 2312, "I"),
        Field("arch", 2316, "28s"),
    ],
    ctype="struct shared_info",
)

# In the 32-bit form the upper half of the seconds is the last word of `arch`.
WC_SEC_HI_32 = SHARED_INFO_32.size - 4
