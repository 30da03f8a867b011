"""The timer of a local APIC: once, periodic, or when the time stamp counter has come to a value.

    start count ──▶ counts down in virtual time ──▶ tick ──▶ issued ──▶ taken by the guest
                    10 ns a count, divided                     (the next of a periodic timer is set
                                                                only then; missed ones follow)

Specification: Xen 4.17 `vlapic_update_timer`, `vlapic_get_tmcct`, `vlapic_tdt_msr_set` of
`xen/arch/x86/hvm/vlapic.c`; `create_periodic_time`, `pt_timer_fn`, `pt_irq_fired` of
`xen/arch/x86/hvm/vpt.c`, in the mode that Xen's tools choose: no delay for missed ticks, none lost.

**Invariants.** `due_ns` is None while no tick is to come by itself: none is set, or one waits for
the guest. Nothing here depends on when somebody looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bits of LVTT that choose the mode, and what they say; bits of TDCR.
MODE_BITS = 3 << 17
ONE_SHOT, PERIODIC, DEADLINE = 0, 1 << 17, 2 << 17
DIVIDE_BITS = 0xB

_BUS_CYCLE_NS = 10
_PERIOD_MIN_NS = 100_000


class ApicTimer:
    """One timer; `now_ns` gives the time."""

    #: How many numbers `save` gives.
    N_NUMBERS = 10

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self.reset()

    def reset(self) -> None:
        """One-shot, not running, undivided but by 2 (`vlapic_do_init`)."""
        self._mode = ONE_SHOT
        self._start = 0
        self._deadline_tsc = 0
        self._set_divide(0)
        self._last_ns = 0  # when it began to count; 0 if it does not
        self._stop()

    @property
    def _counts(self) -> bool:
        return self._mode in (ONE_SHOT, PERIODIC)

    # ---- registers -----------------------------------------------------------------------

    @property
    def start(self) -> int:
        """TMICT: where it counts down from."""
        return self._start if self._counts else 0

    @property
    def count(self) -> int:
        """TMCCT: what is left to count."""
        if not self._counts or not self._start or not self._last_ns:
            return 0
        passed = (self._now_ns() - self._last_ns) // (_BUS_CYCLE_NS * self._divisor)
        if self._mode == PERIODIC:
            passed %= self._start
        return max(self._start - passed, 0)

    @property
    def divide(self) -> int:
        """TDCR: what time is divided by, as the register has it."""
        return self._divide

    @property
    def deadline_tsc(self) -> int:
        """MSR_TSC_DEADLINE: what counter it waits for; 0 for none."""
        return self._deadline_tsc if self._mode == DEADLINE else 0

    def write_start(self, value: int) -> None:
        """Counts from `value` on, from now on; 0 stops it."""
        if self._counts:
            self._start = value
            self._update(self._mode, self._divisor, is_new=True)

    def write_divide(self, value: int) -> None:
        """Divides otherwise; what is left of the present count takes its time accordingly."""
        old = self._divisor
        self._set_divide(value & DIVIDE_BITS)
        self._update(self._mode, old, is_new=False)

    def write_mode(self, mode: int) -> None:
        """Goes on in another mode, or stops between counting and a deadline."""
        if (self._mode == DEADLINE) != (mode == DEADLINE):
            self._start = self._deadline_tsc = 0
        self._update(mode, self._divisor, is_new=False)
        self._mode = mode

    def write_deadline(self, value: int, tsc: int) -> None:
        """Ticks when the counter, now at `tsc`, is at `value`: at once if it was; 0 stops it."""
        if self._mode != DEADLINE:
            return
        self._deadline_tsc = value if value > tsc else 0
        if value:
            self._set(max(value - tsc, 0), 0)
            self._last_ns = self._now_ns()
        else:
            self._stop()

    def _set_divide(self, value: int) -> None:
        self._divide = value
        self._divisor = 1 << ((value & 3 | (value & 8) >> 1) + 1 & 7)

    def _update(self, mode: int, old_divisor: int, *, is_new: bool) -> None:
        period = self._start * _BUS_CYCLE_NS * old_divisor
        left = period if is_new else 0
        if not is_new and period and self._last_ns:
            passed = self._now_ns() - self._last_ns
            if self._mode == PERIODIC:
                passed %= period
            left = max(period - passed, 0)
        if not left or mode not in (ONE_SHOT, PERIODIC):
            self._stop()
            self._last_ns = 0
            return
        if self._divisor != old_divisor:
            period = self._start * _BUS_CYCLE_NS * self._divisor
            left = left * self._divisor // old_divisor
        self._set(left, period if mode == PERIODIC else 0)
        self._last_ns = self._now_ns() - (0 if is_new else period - left)

    # ---- ticks ---------------------------------------------------------------------------

    def _set(self, after_ns: int, period_ns: int) -> None:
        """The first tick of a periodic timer is half a count late (`create_periodic_time`)."""
        self._ticks, self.is_issued = 0, False
        self._period_ns = max(period_ns, _PERIOD_MIN_NS) if period_ns else 0
        self._scheduled_ns = self._now_ns() + after_ns + (after_ns >> 1 if period_ns else 0)
        #: When it ticks next.
        self.due_ns: int | None = self._scheduled_ns

    def _stop(self) -> None:
        #: Whether a tick became an interrupt that nobody has taken yet.
        self.is_issued = False
        self._ticks = self._period_ns = self._scheduled_ns = 0
        self.due_ns = None

    @property
    def has_tick(self) -> bool:
        """Whether a tick waits to become an interrupt."""
        return self._ticks > 0 and not self.is_issued

    def fire(self, now_ns: int) -> None:
        """Ticks, if it is due by `now_ns`."""
        if self.due_ns is not None and self.due_ns <= now_ns:
            self.due_ns = None
            self._ticks += 1
            self._scheduled_ns += self._period_ns

    def taken(self) -> None:
        """The guest took the interrupt; the next tick is set, or is here if it is late already."""
        self.is_issued = False
        self._deadline_tsc = 0
        if not self._period_ns:
            self._ticks = 0
            return
        self._last_ns = now_ns = self._now_ns()
        self._ticks -= 1
        if not self._ticks and now_ns >= self._scheduled_ns:
            self._ticks = (now_ns - self._scheduled_ns) // self._period_ns + 1
            self._scheduled_ns += self._ticks * self._period_ns
        if not self._ticks:
            self.due_ns = self._scheduled_ns

    # ---- snapshots -----------------------------------------------------------------------

    def save(self) -> tuple[int, ...]:
        """All there is, as N_NUMBERS numbers."""
        due_ns = -1 if self.due_ns is None else self.due_ns
        count = (self._mode, self._start, self._divide, self._deadline_tsc, self._last_ns)
        return (*count, due_ns, self._period_ns, self._scheduled_ns, self._ticks, self.is_issued)

    def restore(self, state: tuple[int, ...]) -> None:
        """Goes back to what `save` gave. Any N_NUMBERS numbers are a state that can be."""
        mode, start, divide, self._deadline_tsc, self._last_ns = state[:5]
        due_ns, period_ns, self._scheduled_ns, self._ticks, is_issued = state[5:]
        self._mode, self._start = mode & MODE_BITS, start & 0xFFFFFFFF
        self._set_divide(divide & DIVIDE_BITS)
        self._period_ns = max(period_ns, _PERIOD_MIN_NS) if period_ns else 0
        self.due_ns = None if due_ns < 0 else due_ns
        self.is_issued = bool(is_issued)
