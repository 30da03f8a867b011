"""Why a guest ended: the one thing that leaves the machine when a guest can't go on.

A guest may do what it likes; the machine answers with refusals and exceptions of its own kind. What
is left, a shutdown it asked for, a triple fault, a processor that can't follow, a guest that only
spins, is a `GuestStop`: hypercalls and devices raise it, `Vcpu.run` catches it and keeps it.

**Invariants.** `kind` is one of the names below, `code` the shutdown reason that Xen would give
(`SHUTDOWN_*` of `public/sched.h`), whoever decided it.
"""

from __future__ import annotations

from xenlive.errors import XenliveError

# Shutdown reasons, public/sched.h.
SHUTDOWN_POWEROFF = 0
SHUTDOWN_REBOOT = 1
SHUTDOWN_SUSPEND = 2
SHUTDOWN_CRASH = 3
SHUTDOWN_WATCHDOG = 4
SHUTDOWN_SOFT_RESET = 5

#: The guest asked for it: `SCHEDOP_shutdown`, or a halt with interrupts off.
SHUTDOWN = "shutdown"
#: An exception that could not be delivered, twice.
TRIPLE_FAULT = "triple-fault"
#: Nothing but guest code for more blocks than the limit allows.
SPIN = "spin"
#: The guest waits for what can't come: no timer is set and nobody can send it an event.
STUCK = "stuck"
#: The processor can't do what the guest asks (a task of 16 bits, say).
UNSUPPORTED = "unsupported"
#: Somebody else ended it, a debugger for one.
KILLED = "killed"


class GuestStop(XenliveError):
    """A guest's end. `kind` is one of this module's names, `code` a `SHUTDOWN_*` number."""

    def __init__(self, kind: str, what: str, code: int = SHUTDOWN_CRASH) -> None:
        self.kind = kind
        self.what = what
        self.code = code
        super().__init__(f"{kind}: {what}")
