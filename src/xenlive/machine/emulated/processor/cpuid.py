"""What the processor says of itself: CPUID leaves of a PVH guest on Xen.

The table was read with CPUID in a PVH guest on Xen 4.17, on a machine of QEMU 7.2 (`-cpu max`).
Bits for what the emulator can't do are taken out: AVX, FMA and F16C, MOVBE, BMI, ADX, FSGSBASE,
CLWB, UMIP, protection keys, 3DNow. RDRAND and RDSEED are out because they would make runs differ,
fast string instructions (ERMS) because here each byte of one is a block of its own: Linux would
clear its memory with them.
The time stamp counter is virtual time: 1 GHz, so that a tick is a nanosecond.

Specification: AMD64 APM volume 3, appendix E; Xen's own leaves are `public/arch-x86/cpuid.h`.
"""

from __future__ import annotations

Leaf = tuple[int, int, int, int]

TSC_KHZ = 1_000_000
XEN_BASE = 0x40000000
#: MSR that names the hypercall page, as leaf 0x40000002 says.
MSR_HYPERCALL_PAGE = 0x40000000

_CR4_OSXSAVE = 1 << 18
_ECX_OSXSAVE = 1 << 27
_EDX_APIC = 1 << 9
_EXTENDED_FEATURES = 0x80000001
_NOTHING: Leaf = (0, 0, 0, 0)


#: Bits of CR4 that a guest may set with these features: VME to PCE, OSFXSR, OSXMMEXCPT, OSXSAVE,
#: SMEP (`hvm_cr4_guest_valid_bits`).
CR4_VALID = 0x7FF | 1 << 18 | 1 << 20

# Leaves without subleaves, or whose subleaves are all alike.
_PLAIN: dict[int, Leaf] = {
    0x00000000: (0x0000000D, 0x68747541, 0x444D4163, 0x69746E65),
    0x00000001: (0x00060FB1, 0x00020800, 0x86B82203, 0x1FCBFBFD),
    0x80000000: (0x80000021, 0x68747541, 0x444D4163, 0x69746E65),
    0x80000001: (0x00060FB1, 0x00000000, 0x00000061, 0x25D3FBFD),
    0x80000002: (0x554D4551, 0x47435420, 0x55504320, 0x72657620),
    0x80000003: (0x6E6F6973, 0x352E3220, 0x0000002B, 0x00000000),
    0x80000005: (0x01FF01FF, 0x01FF01FF, 0x40020140, 0x40020140),
    0x80000006: (0x00000000, 0x42004200, 0x02008140, 0x00808140),
    0x80000008: (0x00003028, 0x00100000, 0x00000001, 0x00000000),
    0x80000021: (0x00000004, 0x00000000, 0x00000000, 0x00000000),
    XEN_BASE + 0: (XEN_BASE + 5, 0x566E6558, 0x65584D4D, 0x4D4D566E),
    XEN_BASE + 1: (0x00040011, 0, 0, 0),
    XEN_BASE + 2: (1, MSR_HYPERCALL_PAGE, 0, 0),
}

# XSAVE knows x87 and SSE state: 0x240 bytes of it.
_SUBLEAVES: dict[tuple[int, int], Leaf] = {
    (0x00000007, 0): (0, 0x00000080, 0, 0),
    (0x0000000B, 1): (0, 0, 1, 0),
    (0x0000000D, 0): (0x00000003, 0x00000240, 0x00000240, 0),
    # The TSC is as fast as time: nanoseconds = tsc * 2^31 >> 32 << 1.
    (XEN_BASE + 3, 0): (1, 0, TSC_KHZ, 1),
    (XEN_BASE + 3, 1): (0, 0, 1 << 31, 1),
    (XEN_BASE + 3, 2): (TSC_KHZ, 0, 0, 0),
}

# Leaf 4 of Xen: IOMMU mappings, vcpu id and domid are there, and upcall vectors by vcpu.
_XEN_HVM_FLAGS = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6


def query(leaf: int, subleaf: int, domid: int, cr4: int, *, has_apic: bool = True) -> Leaf:
    """eax, ebx, ecx, edx for a leaf; zeros for one that is not there, as Xen's `guest_cpuid`."""
    if leaf == XEN_BASE + 4:
        return (_XEN_HVM_FLAGS, 0, domid, 0) if subleaf == 0 else _NOTHING
    found = _PLAIN.get(leaf) or _SUBLEAVES.get((leaf, subleaf), _NOTHING)
    eax, ebx, ecx, edx = found
    if leaf == 1 and cr4 & _CR4_OSXSAVE:
        ecx |= _ECX_OSXSAVE
    if leaf in (1, _EXTENDED_FEATURES) and not has_apic:
        edx &= ~_EDX_APIC
    return eax, ebx, ecx, edx
