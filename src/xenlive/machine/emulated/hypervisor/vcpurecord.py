"""What Xen keeps of a domain's vcpu besides its registers.

Specification: Xen 4.17 `struct vcpu` of `xen/include/xen/sched.h`: `poll_evtchn`, `runstate`,
`vcpu_info`, and of `struct hvm_vcpu` the vector of its own.

**Invariants.** All of it begins anew with each kernel, and nothing of it is in the guest's memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.interface import Processor
    from xenlive.machine.emulated.space import MachineFrame


@dataclass(slots=True, eq=False)
class VcpuRecord:
    """How a vcpu wants its events, what it waits for, and where its vcpu_info was moved to."""

    #: Vectors of the callback and of the vcpu's own interrupt for events, 0 for none.
    vector: int = 0
    own_vector: int = 0
    #: Whether there is an event that the processor was not told of.
    announced: bool = False
    nmi_pending: bool = False
    #: The port it polls, 0 for any; None if it does not poll.
    polled: int | None = None
    #: The processor that waits, if one ever did.
    processor: Processor | None = None
    blocked_since_ns: int | None = None
    blocked_total_ns: int = 0
    info_frame: MachineFrame | None = None
    #: Called when the time it was blocked has grown: tells the guest, if it wants to know.
    runstate_changed: Callable[[], None] | None = None

    def copy(self) -> VcpuRecord:
        """The same, on its own."""
        return replace(self)
