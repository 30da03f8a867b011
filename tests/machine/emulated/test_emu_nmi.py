"""NMIs that a guest sends itself.

Xen 4.17: `VCPUOP_send_nmi` of `common_vcpu_op` (xen/common/domain.c), `hvm_vcpu_has_pending_irq`
(xen/arch/x86/hvm/irq.c). AMD64 APM volume 2, section 8.2.3: one at a time, until IRET.
"""

from __future__ import annotations

import pytest
from kernels.machines import Machines, Note, machines

from xenlive.abi.hypercalls.vcpu import VCPUOP_send_nmi
from xenlive.abi.hypercalls.xen import HYPERVISOR_vcpu_op
from xenlive.machine.emulated.interface import Processor

__all__ = ["machines"]

pytestmark = pytest.mark.peer

BEGIN, END, BACK = 1, 2, 3
KERNEL = f"""
        .macro nmi
        movl ${HYPERVISOR_vcpu_op}, %eax
        movl ${VCPUOP_send_nmi}, %edi
        xorl %esi, %esi
        xorl %edx, %edx
        vmmcall
        .endm
start:
        enter_long_mode
        call fill_idt
        movl $handler, %eax
        movw %ax, idt + 32
        shrl $16, %eax
        movw %ax, idt + 38
        nmi
        report ${BACK}
        nmi
        report ${BACK}
        finish
handler:
        incl count
        report ${BEGIN}, count
        cmpl $1, count
        jne 1f
        nmi
        movl $100, %ecx
2:      loop 2b
1:      report ${END}, count
        iretq
        .data
count:  .quad 0
"""


class Nmis(Note):
    """Takes `VCPUOP_send_nmi`, and nothing else."""

    is_sent = False

    def other(self, processor: Processor, number: int, args: tuple[int, ...]) -> int | None:
        assert (number, args[:3]) == (HYPERVISOR_vcpu_op, (VCPUOP_send_nmi, 0, 0))
        self.is_sent = True
        return 0

    def take_nmi(self) -> bool:
        is_new, self.is_sent = self.is_sent, False
        return is_new


def test_one_at_a_time(machines: Machines) -> None:
    machine = machines(KERNEL, hypervisor=Nmis)
    assert machine.reports() == [
        *((BEGIN, 1), (END, 1), (BEGIN, 2), (END, 2), (BACK, 0)),
        *((BEGIN, 3), (END, 3), (BACK, 0)),
    ]
