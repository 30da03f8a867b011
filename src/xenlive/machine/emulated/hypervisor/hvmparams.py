"""HVM parameters of a domain: which the guest may read and set, and what they may be.

Specification: Xen 4.17 `hvm_allow_set_param`, `hvm_set_param`, `hvm_allow_get_param` and
`hvm_get_param` of `xen/arch/x86/hvm/hvm.c`.

**Invariants.** A refused value changes nothing. What the toolstack sets at boot goes past the
guest's rules, through `give`.
"""

from __future__ import annotations

from xenlive.abi.hypercalls import hvm as abi
from xenlive.abi.hypercalls.xen import XEN_EINVAL, XEN_EPERM
from xenlive.errors import HypercallError
from xenlive.machine.emulated.hypervisor.grantmap import DomainCrash

_ENODEV = 19

_GUEST_SETS = frozenset(
    (
        abi.HVM_PARAM_CALLBACK_IRQ,
        abi.HVM_PARAM_VM86_TSS,
        abi.HVM_PARAM_VM86_TSS_SIZED,
        abi.HVM_PARAM_ACPI_IOPORTS_LOCATION,
        abi.HVM_PARAM_VM_GENERATION_ID_ADDR,
        abi.HVM_PARAM_STORE_EVTCHN,
        abi.HVM_PARAM_CONSOLE_EVTCHN,
        abi.HVM_PARAM_X87_FIP_WIDTH,
    )
)
_GUEST_GETS = _GUEST_SETS | {
    abi.HVM_PARAM_STORE_PFN,
    abi.HVM_PARAM_CONSOLE_PFN,
    abi.HVM_PARAM_ALTP2M,
}
_DEPRECATED = frozenset(
    (
        abi.HVM_PARAM_PAE_ENABLED,
        abi.HVM_PARAM_DM_DOMAIN,
        abi.HVM_PARAM_MEMORY_EVENT_CR0,
        abi.HVM_PARAM_MEMORY_EVENT_CR3,
        abi.HVM_PARAM_MEMORY_EVENT_CR4,
        abi.HVM_PARAM_MEMORY_EVENT_INT3,
        abi.HVM_PARAM_NESTEDHVM,
        abi.HVM_PARAM_MEMORY_EVENT_SINGLE_STEP,
        abi.HVM_PARAM_BUFIOREQ_EVTCHN,
        abi.HVM_PARAM_MEMORY_EVENT_MSR,
    )
)

# A task state segment of 32 bits, and that with both bitmaps after it.
_TSS_BYTES = 104
_TSS_BYTES_MAX = _TSS_BYTES + 0x100 // 8 + 0x10000 // 8 + 1


class HvmParams:
    """The parameters of one domain: `values` by index, 0 for those that nobody set."""

    def __init__(self) -> None:
        self.values: dict[int, int] = {}

    def give(self, index: int, value: int) -> None:
        """Sets a parameter as the toolstack does."""
        self.values[index] = value

    def peek(self, index: int) -> int:
        """A parameter's value, whoever may read it."""
        return self.values.get(index, 0)

    def copy(self) -> HvmParams:
        """The same parameters with the same values."""
        other = HvmParams()
        other.values = dict(self.values)
        return other

    def get(self, index: int) -> int:
        """A parameter as its own domain may read it. HypercallError if it may not."""
        _validate_index("HVMOP_get_param", index, _GUEST_GETS)
        if index == abi.HVM_PARAM_VM86_TSS:
            return self.peek(abi.HVM_PARAM_VM86_TSS_SIZED) & 0xFFFFFFFF
        return self.peek(index)

    def set(self, index: int, value: int) -> None:
        """Sets a parameter for its own domain. HypercallError or DomainCrash if it may not."""
        call = "HVMOP_set_param"
        _validate_index(call, index, _GUEST_SETS)
        if index == abi.HVM_PARAM_ACPI_IOPORTS_LOCATION:
            raise HypercallError(call, _ENODEV, "there is no power management timer")
        if index == abi.HVM_PARAM_X87_FIP_WIDTH and value not in (0, 4, 8):
            raise HypercallError(call, XEN_EINVAL, f"a width of {value}")
        if index == abi.HVM_PARAM_VM86_TSS:
            if value >> 32:
                raise DomainCrash(f"a task state segment at {value:#x}")
            index = abi.HVM_PARAM_VM86_TSS_SIZED
            value |= 128 << 32 if value else 0
        elif index == abi.HVM_PARAM_VM86_TSS_SIZED:
            if value >> 32 < _TSS_BYTES:
                raise DomainCrash(f"a task state segment of {value >> 32} bytes")
            value = value & 0xFFFFFFFF | min(value >> 32, _TSS_BYTES_MAX) << 32
        self.values[index] = value


def _validate_index(call: str, index: int, allowed: frozenset[int]) -> None:
    if not 0 <= index < abi.HVM_NR_PARAMS:
        raise HypercallError(call, XEN_EINVAL, f"no parameter {index}")
    if index in _DEPRECATED:
        raise HypercallError(call, XEN_EINVAL, f"parameter {index} is no more")
    if index not in allowed:
        raise HypercallError(call, XEN_EPERM, f"parameter {index} is not the guest's")
