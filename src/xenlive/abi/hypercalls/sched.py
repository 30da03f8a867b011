"""Arguments of the scheduling hypercall.

Specification: Xen `public/sched.h`.

**Invariants.** Only `sched_poll` differs between 64 and 32 bit guests: it has a pointer.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

SCHEDOP_yield = 0
SCHEDOP_block = 1
SCHEDOP_shutdown = 2
SCHEDOP_poll = 3
SCHEDOP_remote_shutdown = 4
SCHEDOP_shutdown_code = 5
SCHEDOP_watchdog = 6
SCHEDOP_pin_override = 7

SHUTDOWN_poweroff = 0
SHUTDOWN_reboot = 1
SHUTDOWN_suspend = 2
SHUTDOWN_crash = 3
SHUTDOWN_watchdog = 4
SHUTDOWN_soft_reset = 5

SCHED_SHUTDOWN = Layout(
    "sched_shutdown", 4, [Field("reason", 0, "I")], ctype="struct sched_shutdown"
)

SCHED_POLL = Layout(
    "sched_poll",
    24,
    [
        Field("ports", 0, "Q"),
        Field("nr_ports", 8, "I"),
        Field("_pad0", 12, "4s"),
        Field("timeout", 16, "Q"),
    ],
    ctype="struct sched_poll",
)

SCHED_POLL_32 = Layout(
    "sched_poll of 32 bits",
    16,
    [Field("ports", 0, "I"), Field("nr_ports", 4, "I"), Field("timeout", 8, "Q")],
    ctype="struct sched_poll",
)

SCHED_REMOTE_SHUTDOWN = Layout(
    "sched_remote_shutdown",
    8,
    [Field("domain_id", 0, "H"), Field("_pad0", 2, "2s"), Field("reason", 4, "I")],
    ctype="struct sched_remote_shutdown",
)

SCHED_WATCHDOG = Layout(
    "sched_watchdog",
    8,
    [Field("id", 0, "I"), Field("timeout", 4, "I")],
    ctype="struct sched_watchdog",
)
