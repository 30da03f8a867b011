"""What a processor asks of the hypervisor around it, and what the hypervisor may do to it.

The processor (`vcpu.py`) knows no event channel, grant or store; the hypervisor knows no register.
Between them are the two classes of this file and a clock. Either side can be tested with a small
object in the other's place.

**Invariants.** All of it happens between two runs of the emulator, never inside one: a hypercall
may map, unmap and write whatever it likes. Neither side raises anything but `GuestStop` (a guest's
end) and, from `read_virtual` and `write_virtual`, `PageFault` and `NonCanonical`.
"""

from __future__ import annotations

TYPE_CHECKING = False

SECOND_NS = 1_000_000_000


class Clock:
    """Virtual time: nanoseconds since boot, for all domains of a world. It never goes back."""

    __slots__ = ("now_ns",)

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns

    def advance(self, duration_ns: int) -> None:
        """Lets `duration_ns` pass."""
        self.now_ns += duration_ns

    def advance_to(self, when_ns: int) -> None:
        """Lets time pass until `when_ns`, if that is still to come."""
        self.now_ns = max(self.now_ns, when_ns)


class Processor:
    """The processor as a hypercall sees it: the guest's virtual memory, and waiting."""

    __slots__ = ()

    #: Whether the processor is in long mode: how wide the words of shared info and vcpu_info are.
    #: Xen latches it when the hypercall page is written and when the callback is set.
    in_long_mode: bool

    def read_virtual(self, address: int, size: int) -> bytes:
        """A copy of `size` bytes at a virtual address. PageFault or NonCanonical: answer EFAULT."""
        raise NotImplementedError

    def write_virtual(self, address: int, data: bytes) -> None:
        """Stores `data` there; nothing is stored on PageFault or NonCanonical (answer EFAULT)."""
        raise NotImplementedError

    def block(self) -> None:
        """The guest waits from here on, until an upcall is pending or `wake` is called."""
        raise NotImplementedError

    def wake(self) -> None:
        """Ends waiting (SCHEDOP_poll: a port came up, or its time is over)."""
        raise NotImplementedError


class Hypervisor:
    """What the processor asks. One object for each domain."""

    __slots__ = ()

    def hypercall(
        self, processor: Processor, number: int, args: tuple[int, ...], is_64bit: bool
    ) -> int | None:
        """Serves hypercall `number`: what the guest finds in rax or eax, negative for an errno.

        `args` are the five registers that carry arguments, unsigned: ebx, ecx, edx, esi, edi or
        rdi, rsi, rdx, r10, r8 (`hvm_hypercall`). None leaves rax alone.
        GuestStop if the guest asked for its end.
        """
        raise NotImplementedError

    def pending_upcall(self) -> bool:
        """Whether the guest's vcpu_info says `evtchn_upcall_pending`."""
        raise NotImplementedError

    def callback_vector(self) -> int:
        """The IDT vector for upcalls (HVM_PARAM_CALLBACK_IRQ), past the local APIC; 0 for none."""
        raise NotImplementedError

    def upcall_vector(self) -> int:
        """The vector for upcalls by the local APIC (HVMOP_set_evtchn_upcall_vector); 0 for none."""
        return 0

    def take_upcall(self) -> bool:
        """Whether an upcall was announced since this was asked last (`hvm_assert_evtchn_irq`)."""
        return False

    def take_nmi(self) -> bool:
        """Whether the guest sent itself an NMI since this was asked last (VCPUOP_send_nmi)."""
        return False

    def timer_deadline_ns(self) -> int | None:
        """When the domain's next timer is due (single-shot, periodic, poll), if one is set."""
        raise NotImplementedError

    def timer_fired(self, now_ns: int) -> None:
        """Time has come to `now_ns`: raises the events of all timers that were due by then."""
        raise NotImplementedError

    def write_hypercall_page(self, processor: Processor, gfn: int, page: bytes) -> bool:
        """Stores the hypercall page in a guest frame; False (the guest gets a #GP) for a hole."""
        raise NotImplementedError

    def vcpu_down(self) -> None:
        """The guest halted with interrupts off; Xen shuts it down (`hvm_vcpu_down`): GuestStop."""
        raise NotImplementedError
