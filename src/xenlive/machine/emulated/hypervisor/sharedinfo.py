"""The shared info page of a guest as Xen writes it: pending events (2-level), and the clock.

    event ──▶ evtchn_pending bit ──not masked──▶ evtchn_pending_sel bit ──▶ evtchn_upcall_pending
              (one a port)                       (one a word of ports)      (the vcpu has to look)

Specification: Xen 4.17 `xen/common/event_2l.c`, `map_vcpu_info` of `xen/common/domain.c`,
`__update_vcpu_system_time` of `xen/arch/x86/time.c`, `hvm_latch_shinfo_size` of
`xen/arch/x86/hvm/hvm.c`.

**Invariants.** A bit that is set already is not announced again. Which form the page has, of 64 or
32 bit, was latched when the guest said how it wants its events; bits stay where they are then. The
clock's version is odd while its numbers are being changed.

The time stamp counter runs at 1 GHz, so that time and counter are one number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenlive.abi.hypercalls.shared_info import (
    SHARED_INFO,
    SHARED_INFO_32,
    VCPU_INFO,
    VCPU_INFO_32,
    VCPU_TIME_INFO,
    WC_SEC_HI_32,
)
from xenlive.abi.hypercalls.xen import XEN_ENOSYS
from xenlive.errors import HypercallError

if TYPE_CHECKING:
    from collections.abc import Callable

_PENDING = SHARED_INFO.offset_of("evtchn_pending")
_MASK_64 = SHARED_INFO.offset_of("evtchn_mask")
_MASK_32 = SHARED_INFO_32.offset_of("evtchn_mask")
_WALL_64 = SHARED_INFO.offset_of("wc_version") // 4
_WALL_32 = SHARED_INFO_32.offset_of("wc_version") // 4
_SEL_64 = VCPU_INFO.offset_of("evtchn_pending_sel")
_SEL_32 = VCPU_INFO_32.offset_of("evtchn_pending_sel")
_TIME = VCPU_INFO.offset_of("time")
_TIME_END = _TIME + VCPU_TIME_INFO.size

VCPU_INFO_SIZE = VCPU_INFO.size

#: What `SharedInfo.save` gives; only `restore` looks inside.
SharedState = tuple[bool, memoryview, Any]

# One tick of the counter is a nanosecond: a fraction of 1/2, and one shift to the left.
_TSC_MUL = 0x80000000
_TSC_SHIFT = 1


class SharedInfo:
    """The page, and the vcpu_info of the one processor, wherever the guest has it.

    `page` is Xen's frame. `notify` is called when `evtchn_upcall_pending` was set, `woken` with
    each port that became pending, for whoever polls it.
    """

    def __init__(
        self, page: memoryview, notify: Callable[[], None], woken: Callable[[int], None]
    ) -> None:
        self._page = page
        self._words = page.cast("I")
        self._notify = notify
        self._woken = woken
        self.is_32bit = False
        self._info = page[:VCPU_INFO_SIZE]
        self._secondary_time: Callable[[bytes], None] | None = None

    # ---- events --------------------------------------------------------------------------

    def max_ports(self) -> int:
        """As many ports as words times bits of a word."""
        return 1024 if self.is_32bit else 4096

    def set_pending(self, port: int, vcpu: int) -> None:
        """An event for `port` (`evtchn_2l_set_pending`)."""
        if self._test_and_set(_PENDING, port):
            return
        if not self._test(self._mask, port):
            self._select(port)
        self._woken(port)

    def clear_pending(self, port: int) -> None:
        """Forgets an event nobody took (`evtchn_2l_clear_pending`)."""
        self._words[(_PENDING >> 2) + (port >> 5)] &= ~(1 << (port & 31))

    def unmask(self, port: int, vcpu: int) -> None:
        """Takes events of `port` again, also the one that waits (`evtchn_2l_unmask`)."""
        if port >= self.max_ports() or not self._test(self._mask, port):
            return
        self._words[(self._mask >> 2) + (port >> 5)] &= ~(1 << (port & 31))
        if self._test(_PENDING, port):
            self._select(port)

    def is_pending(self, port: int) -> bool:
        """Whether the port's bit is set (`evtchn_2l_is_pending`)."""
        return port < self.max_ports() and self._test(_PENDING, port)

    def is_masked(self, port: int) -> bool:
        """Whether the guest does not want to hear of the port now."""
        return port >= self.max_ports() or self._test(self._mask, port)

    def bound(self, port: int) -> None:
        """Ports need no preparation in this form."""

    def set_priority(self, port: int, priority: int) -> None:
        """There are no queues in this form (`evtchn_port_set_priority`)."""
        raise HypercallError("EVTCHNOP_set_priority", XEN_ENOSYS, "events have no queues")

    def is_busy(self, port: int) -> bool:
        """A free port is free at once in this form."""
        return False

    def stop(self) -> None:
        """The page is there for good."""

    @property
    def _mask(self) -> int:
        return _MASK_32 if self.is_32bit else _MASK_64

    def _test(self, base: int, port: int) -> bool:
        return bool(self._words[(base >> 2) + (port >> 5)] >> (port & 31) & 1)

    def _test_and_set(self, base: int, port: int) -> bool:
        word = (base >> 2) + (port >> 5)
        old = self._words[word]
        self._words[word] = old | 1 << (port & 31)
        return bool(old >> (port & 31) & 1)

    def _select(self, port: int) -> None:
        """Sets the port's word in evtchn_pending_sel, and tells the vcpu if it was not set."""
        bit = port >> 5 if self.is_32bit else port >> 6
        selector = self._info[_SEL_32:].cast("I") if self.is_32bit else self._selector_64()
        old = selector[0]
        selector[0] = old | 1 << bit
        if not old >> bit & 1:
            self.mark_events_pending()

    def _selector_64(self) -> memoryview:
        return self._info[_SEL_64 : _SEL_64 + 8].cast("Q")

    def mark_events_pending(self) -> None:
        """Tells the vcpu to look for events, unless it was told (`vcpu_mark_events_pending`)."""
        if not self._info[0]:
            self._info[0] = 1
            self._notify()

    @property
    def upcall_pending(self) -> bool:
        """Whether the vcpu was told to look for events and has not begun."""
        return self._info[0] != 0

    # ---- where things are ----------------------------------------------------------------

    def move_vcpu_info(self, place: memoryview) -> None:
        """The vcpu_info is at `place` from now on, and everything is pending (`map_vcpu_info`)."""
        place[:] = self._info
        self._info = place
        if self.is_32bit:
            self._info[_SEL_32:].cast("I")[0] = 0xFFFFFFFF
        else:
            self._selector_64()[0] = 0xFFFFFFFFFFFFFFFF
        self.mark_events_pending()

    def reset_vcpu_info(self) -> None:
        """The vcpu_info is in the shared page again (`vcpu_info_reset`)."""
        self._info = self._page[:VCPU_INFO_SIZE]

    def latch(self, is_64bit: bool) -> None:
        """From now on the page has the form of 64 or of 32 bit (`hvm_latch_shinfo_size`)."""
        self.is_32bit = not is_64bit

    def save(self) -> SharedState:
        """What is not in the page, for `restore`."""
        return self.is_32bit, self._info, self._secondary_time

    def restore(self, state: SharedState) -> None:
        """Goes back to what `save` gave; the pages are the space's to put back."""
        self.is_32bit, self._info, self._secondary_time = state

    # ---- clock ---------------------------------------------------------------------------

    def update_wall_clock(self, boot_s: int) -> None:
        """Stores the second since 1970 at which the domain's time began."""
        first = _WALL_32 if self.is_32bit else _WALL_64
        words = self._words
        words[first] = words[first] + 1 & 0xFFFFFFFF | 1
        words[first + 1] = boot_s & 0xFFFFFFFF
        words[first + 2] = 0
        high = WC_SEC_HI_32 // 4 if self.is_32bit else first + 3
        words[high] = boot_s >> 32 & 0xFFFFFFFF
        words[first] = words[first] + 1 & 0xFFFFFFFF

    def update_time(self, now_ns: int) -> None:
        """Stores the time and the counter that belongs to it, both `now_ns`."""
        clock = self._info[_TIME:_TIME_END]
        version = clock.cast("I")
        version[0] = version[0] + 1 & 0xFFFFFFFF | 1
        clock[4:] = VCPU_TIME_INFO.encode(
            version=0,
            pad0=0,
            tsc_timestamp=now_ns,
            system_time=now_ns,
            tsc_to_system_mul=_TSC_MUL,
            tsc_shift=_TSC_SHIFT,
            flags=0,
        )[4:]
        version[0] = version[0] + 1 & 0xFFFFFFFF
        if self._secondary_time is not None:
            self._secondary_time(bytes(clock))

    def copy_time_to(self, store: Callable[[bytes], None]) -> None:
        """Gives each new time also to `store`: the guest registered another place for it."""
        self._secondary_time = store
