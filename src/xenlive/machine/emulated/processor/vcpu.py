"""A virtual processor: the emulator's runs put together to a guest that goes on.

    run for a budget of blocks ──▶ exit: exception   ──▶ through the guest's IDT (delivery.py)
         ▲                              hypercall     ──▶ the hypervisor     (handling.py)
         │                              CPUID, MSR .. ──▶ intercepts.py
         │                              halt          ──▶ RUN_HALTED, until an upcall is pending
         └── upcall pending, IF set ◀── timer due? ◀── time passes with blocks and with RDTSC

Time is virtual and made of what the guest does: a block of code takes 10 ns, RDTSC and a hypercall
somewhat more, and a world that has nothing to run lets time jump to the next timer. So a guest that
waits for a timer in a loop gets there, and each run of it is the same.

Upcalls are level-triggered, as Xen's are (`hvm_vcpu_has_pending_irq`): whenever vcpu_info says
that one is pending and interrupts are on, the callback vector is delivered. A guest that gave the
vcpu a vector of its own gets it through its local APIC, once for each. The emulator can't say
when a guest turns interrupts on, so while one is held back the guest is looked at after a few
blocks; their number varies, so that no loop stays out of step with it.

**Invariants.** `run` raises nothing that a guest could cause: its end is kept in `ended`, with the
state it had. Hypercalls, mappings and memory change only between two runs of the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xenlive.machine.emulated.processor import exits
from xenlive.machine.emulated.processor.debugging import Points
from xenlive.machine.emulated.processor.delivery import Event
from xenlive.machine.emulated.processor.effort import EXIT_BLOCKS, Turn
from xenlive.machine.emulated.processor.engine import Engine
from xenlive.machine.emulated.processor.exits import EngineHooks
from xenlive.machine.emulated.processor.handling import ExitHandler, HypercallRecord
from xenlive.machine.emulated.processor.polling import Polling
from xenlive.machine.emulated.stop import SHUTDOWN, SHUTDOWN_CRASH, SPIN, GuestStop

if TYPE_CHECKING:
    from xenlive.machine.emulated.interface import Clock, Hypervisor
    from xenlive.machine.emulated.processor.lapic import LocalApic
    from xenlive.machine.emulated.space import Space

# What `run` came to.
RUN_ON = "on"  # the budget is used up, the guest would go on
RUN_HALTED = "halted"  # it waits for an upcall, or to be woken
RUN_PAUSED = "paused"  # `pause` was called
RUN_ENDED = "ended"  # `ended` says why

BLOCK_NS = 10
RDTSC_NS = 100
_NMI = 2
# Exits of a guest that may be polling the time stamp counter.
_NO_EXIT = frozenset((exits.BUDGET, exits.STOPPED, exits.BREAKPOINT))
_MAY_POLL = _NO_EXIT | {exits.CPUID}
# While an NMI waits for the end of another's handler, it is looked for after each block; of a
# handler that goes on for long, less often.
_NMI_LONG_BLOCKS = 10_000
_NMI_SELDOM_BLOCKS = 64
#: A guest that makes no hypercall and never halts for this many blocks does nothing but spin. There
#: are test kernels that count to 2^30 before they say what came of it.
SPIN_LIMIT = 1_200_000_000
_RUN_MAX = 2_000_000  # so that Ctrl-C is heard

_MASK64 = (1 << 64) - 1


class VcpuState(NamedTuple):
    """A saved processor: what `Vcpu.save` gives."""

    engine: bytes
    msrs: dict[int, int]
    apic: tuple[int, ...]
    recent: tuple[HypercallRecord, ...]
    waiting: tuple[bool, bool]
    counters: tuple[int, int, int, int]
    polling: tuple[int, int, int]
    #: At a breakpoint: what is left of the engine's run and of ours, and which breakpoint.
    stopped_in: tuple[int, bool, int, int] | None


class _Devices(EngineHooks):
    """The hooks of the engine: time is the vcpu's, a page the local APIC's, the rest `behind`'s."""

    def __init__(self, behind: EngineHooks) -> None:
        self.behind = behind
        self.apic: LocalApic | None = None
        self.polling = Polling()

    def read_port(self, port: int, size: int) -> int:
        self.polling.reset()
        return self.behind.read_port(port, size)

    def write_port(self, port: int, size: int, value: int) -> None:
        self.polling.reset()
        self.behind.write_port(port, size, value)

    def read_hole(self, address: int, size: int) -> int:
        if self.apic is not None and self.apic.covers(address):
            return self.apic.load(address, size)
        return self.behind.read_hole(address, size)

    def write_hole(self, address: int, size: int, value: int) -> None:
        if self.apic is not None and self.apic.covers(address):
            self.apic.store(address, size, value)
        else:
            self.behind.write_hole(address, size, value)


class Vcpu(ExitHandler):
    """The processor of domain `domid`, with the memory `space`, asking `hypervisor`.

    `devices` stand behind ports, holes in memory and unknown MSRs.
    """

    def __init__(
        self,
        domid: int,
        space: Space,
        hypervisor: Hypervisor,
        clock: Clock,
        devices: EngineHooks | None = None,
        spin_limit: int = SPIN_LIMIT,
    ) -> None:
        hooks = _Devices(devices or EngineHooks())
        hooks.read_tsc = self._read_tsc  # type: ignore[method-assign]
        super().__init__(domid, space, hypervisor, clock, Engine(hooks), devices or EngineHooks())
        hooks.apic = self.apic
        self._polling = hooks.polling
        space.attach(self.engine)
        self.spin_limit = spin_limit
        #: Why the guest ended, once it has.
        self.ended: GuestStop | None = None
        #: Blocks executed since the guest was entered.
        self.blocks = 0
        #: Breakpoints and steps.
        self.points = Points(self.engine.breaks, self.engine.watches)
        self._turn = Turn()
        self._held_back = 0
        self._tsc_ns = self._skipped = 0
        self._deadline_ns: int | None = None
        self._pauses = self._has_delivered = self._is_in_run = False
        self._forget_stop()

    def enter_pvh(self, entry: int, start_info: int) -> None:
        """Puts the processor where a PVH kernel begins: 32 bit, no paging, start info in ebx."""
        self.engine.reset()
        self.engine.set_reg("rip", entry)
        self.engine.set_reg("rbx", start_info)
        self.msrs.reset()
        self.apic.reset()
        self.ended = None
        self.is_blocked = self._was_woken = False
        self._quiet_blocks = self._held_back = 0
        self._polling.reset()
        self._forget_stop()

    def _forget_stop(self) -> None:
        # Where `run` ends; the engine's run that is not over: blocks left, whether in the middle of
        # one; the breakpoint that was told of, and whose instruction is still to come.
        self._end: int | None = None
        self._open: tuple[int, bool] | None = None
        self._told: int | None = None

    def save(self) -> VcpuState:
        """The processor without its memory, its clock and its hypervisor."""
        return VcpuState(
            self.engine.save(),
            self.msrs.save(),
            self.apic.save(),
            tuple(self.recent),
            (self.is_blocked, self._was_woken),
            (self.blocks, self._quiet_blocks, self._held_back, self._tsc_offset),
            self._polling.save(),
            self._stopped_in(),
        )

    def _stopped_in(self) -> tuple[int, bool, int, int] | None:
        if self._end is None:
            return None
        left, is_inside = self._open or (-1, False)
        told = -1 if self._told is None else self._told
        return left, is_inside, self._end - self.blocks, told

    def restore(self, state: VcpuState) -> None:
        """Goes back to what `save` gave, of this processor or another; also after its end."""
        self.engine.restore(state.engine)
        self.msrs.restore(state.msrs)
        self.apic.restore(state.apic)
        self.recent.clear()
        self.recent.extend(state.recent)
        self.is_blocked, self._was_woken = state.waiting
        self.blocks, self._quiet_blocks, self._held_back, self._tsc_offset = state.counters
        self._polling.restore(state.polling)
        self.ended = None
        self._forget_stop()
        if state.stopped_in is not None:
            left, is_inside, until_end, told = state.stopped_in
            self._end = self.blocks + until_end
            self._open = (left, is_inside) if left >= 0 else None
            self._told = told if told >= 0 else None

    # ---- the loop ------------------------------------------------------------------------

    def run(self, max_blocks: int = 1 << 62) -> str:
        """Runs the guest for `max_blocks` blocks at most; one of this file's RUN_ names.

        After RUN_PAUSED, or what a function of a debugger raised, it goes on with the run that was
        left, for the blocks that were left if those are fewer.
        """
        if self.ended is not None:
            return RUN_ENDED
        end = self.blocks + max_blocks
        self._end = end if self._end is None else min(end, self._end)
        self._turn.begin()
        try:
            state = self._run()
        except GuestStop as stop:
            self.ended, state = stop, RUN_ENDED
        if state != RUN_PAUSED:
            self._forget_stop()
        return state

    def pause(self) -> None:
        """From a function that `run` calls: `run` returns RUN_PAUSED as soon as that is done.

        Also from a signal's handler, which may come in the middle of the engine's run.
        """
        self._pauses = True
        self._look_again()

    def step(self) -> str:
        """Lets one instruction happen, or the delivery of one interrupt, and pauses.

        An exception is delivered with the instruction that makes it; of `rep` it is one round.
        RUN_HALTED if the guest waits.
        """
        before, self.points.on_step = self.points.on_step, self.pause
        try:
            return self.run()
        finally:
            self.points.on_step = before

    def _run(self) -> str:
        while self._open is not None or self._blocks_left > 0:
            if self._open is None and not self._begin(self._blocks_left):
                return RUN_HALTED
            self._go_on()
            if self._pauses:
                self._pauses = False
                return RUN_PAUSED
        return RUN_ON

    @property
    def _blocks_left(self) -> int:
        return 0 if self._end is None else self._end - self.blocks

    def _begin(self, max_blocks: int) -> bool:
        """What comes before the engine's run: timers and interrupts. False if the guest waits."""
        self._fire_timers()
        self._take_orders()
        upcall = self.hypervisor.pending_upcall()
        vector = self.hypervisor.callback_vector() if upcall else 0
        from_apic = 0 if vector else self._pending_in_apic(upcall)
        wakes = upcall and (vector or not self.hypervisor.upcall_vector())
        if self.is_blocked and not wakes and not from_apic and not self._was_woken:
            return False
        self.is_blocked = self._was_woken = False
        budget = min(max_blocks, _RUN_MAX)
        if vector or from_apic:
            budget = min(budget, self._deliver_interrupt(vector or from_apic, bool(from_apic)))
        if self.apic.nmi_pending:
            is_long = self._quiet_blocks > _NMI_LONG_BLOCKS
            budget = min(budget, _NMI_SELDOM_BLOCKS if is_long else 1)
        if self._deadline_ns is not None:
            left_ns = max(self._deadline_ns - self.clock.now_ns, 0)
            budget = min(budget, left_ns // BLOCK_NS + 1)
        self._open = budget, False
        return True

    def _go_on(self) -> None:
        """Begins the engine's run, or goes on with it, until there is something to do."""
        on_step = self.points.on_step
        has_delivered, self._has_delivered = self._has_delivered, False
        if on_step is not None:
            if has_delivered:  # a step of its own
                on_step()
                return
            if self._is_at_breakpoint():
                return
        budget, is_inside = self._open or (0, False)
        passes, is_step = self._told == self.engine.linear_rip, on_step is not None
        self._told, self._open, self._tsc_ns, self._skipped = None, None, 0, 0
        self._is_in_run = True
        found = self.engine.run(budget, goes_on=is_inside, is_step=is_step, passes=passes)
        self._is_in_run = False
        if found.kind not in _MAY_POLL:
            self._polling.reset()
        if found.kind not in _NO_EXIT:
            self._quiet_blocks += EXIT_BLOCKS
        is_open = found.kind in (exits.BREAKPOINT, exits.STOPPED)
        if is_open:
            self._open = self.engine.left, True
        self._account(is_open, is_inside)
        is_breakpoint = found.kind == exits.BREAKPOINT
        if is_breakpoint:
            self._told = found.address
        else:
            self._handle(found)
        was_told = self.points.accessed()
        if is_breakpoint:
            self.points.hit(found.address)
        elif on_step is not None and not was_told:
            on_step()

    def _is_at_breakpoint(self) -> bool:
        at = self.engine.linear_rip
        if at == self._told or not self.points.has(at):
            return False
        self._told = at
        self.points.hit(at)
        return True

    def _fire_timers(self) -> None:
        deadline = self.hypervisor.timer_deadline_ns()
        if deadline is not None and deadline <= self.clock.now_ns:
            self.hypervisor.timer_fired(self.clock.now_ns)
        self.apic.fire(self.clock.now_ns)
        self._deadline_ns = self.next_timer_ns()

    def next_timer_ns(self) -> int | None:
        """When the next timer is due, of the hypervisor's and the local APIC's; None if none is."""
        deadline, due = self.hypervisor.timer_deadline_ns(), self.apic.due_ns
        if deadline is None or due is None:
            return due if deadline is None else deadline
        return min(deadline, due)

    def _take_orders(self) -> None:
        """What the guest told its local APIC to do to itself."""
        apic = self.apic
        if apic.crash:
            raise GuestStop(SHUTDOWN, apic.crash, SHUTDOWN_CRASH)
        if apic.init_pending:
            apic.init_pending = False
            self.hypervisor.vcpu_down()
        if self.hypervisor.take_nmi():
            apic.nmi_pending = True
        if apic.nmi_pending and not self.engine.nmi_blocked:
            apic.nmi_pending = False
            self._was_woken = True
            self._inject(Event(_NMI, is_external=True))
            self.engine.block_nmi()
            self._has_delivered = True

    def _pending_in_apic(self, upcall: bool) -> int:
        """The vector that the local APIC would deliver now; 0 for none."""
        apic, vector = self.apic, self.hypervisor.upcall_vector()
        if vector:
            # As `hvm_assert_evtchn_irq`; and `vlapic_reg_write`, for one that came too early.
            if self.hypervisor.take_upcall() and apic.is_enabled:
                apic.accept(vector)
            if apic.was_enabled and upcall:
                apic.accept(vector)
        apic.was_enabled = False
        found = apic.pending()
        return 0 if apic.holds_back(found) else found

    def _deliver_interrupt(self, vector: int, from_apic: bool) -> int:
        """Delivers it if the guest takes interrupts; how far it may run now."""
        if self.engine.interrupts_on:
            self._held_back = 0
            if from_apic:
                self.apic.acknowledge(vector)
            self._inject(Event(vector, is_external=True))
            self._has_delivered = True
            return _RUN_MAX
        self._held_back += 1
        return 1 if self._held_back < 8 else 13 + self._held_back % 50

    def _account(self, is_open: bool = False, is_inside: bool = False) -> None:
        """Adds the engine's run, or the part of it after a stop or before one, to time."""
        executed = self.engine.executed if is_open or is_inside else max(self.engine.executed, 1)
        self.blocks += executed
        if self._end is not None:
            self._end -= self._skipped
        self.clock.advance(executed * BLOCK_NS + self._tsc_ns)
        self._quiet_blocks += executed
        self._quiet_blocks += self._turn.add(self.engine.effort)
        if self._turn.is_too_much:
            self._end = self.blocks  # others want their turn
        if self._quiet_blocks > self.spin_limit and not is_open:
            many = f"{self._quiet_blocks} blocks of code, or in what costs as much"
            raise GuestStop(SPIN, f"no hypercall and no halt in {many}")

    def _now_ns(self) -> int:
        # In the middle of a run what it has executed so far is not on the clock yet.
        if not self._is_in_run:
            return self.clock.now_ns
        return self.clock.now_ns + self.engine.running * BLOCK_NS + self._tsc_ns

    def _look_again(self) -> None:
        if self._is_in_run:
            self.engine.limit(0)

    def _read_tsc(self) -> int:
        self._tsc_ns += RDTSC_NS
        now = self._now_ns()
        extra_ns = self._polling.extra_ns(self.blocks + self.engine.running, now)
        if extra_ns:
            now += self._skip_ns(extra_ns, now)
        if self._deadline_ns is not None and now >= self._deadline_ns:
            self.engine.limit(0)
        return now + self._tsc_offset & _MASK64

    def _skip_ns(self, wanted_ns: int, now_ns: int) -> int:
        """Lets that much time pass, or less, as if blocks had been executed; how much it was.

        Not beyond the next timer, and not beyond the end of this run: others may have timers too.
        """
        left = self.engine.left
        if self._deadline_ns is not None:
            wanted_ns = min(wanted_ns, max(self._deadline_ns - now_ns, 0))
        blocks = min(wanted_ns // BLOCK_NS, left)
        self.engine.limit(left - blocks)
        self._skipped += blocks
        self._tsc_ns += blocks * BLOCK_NS
        return blocks * BLOCK_NS
