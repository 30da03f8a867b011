"""The hypercall channel of the hosted machine: one sequenced-packet socket a domain.

A call is one packet to the host, its answer one packet back; calls marked one-way have none. A
packet is a fixed head and, for some, a payload of at most `PAYLOAD_MAX` bytes:

    call      op u32 | reserved u32 | a0 u64 | a1 u64 | a2 u64 | a3 u64 | payload
    answer    status i32 | reserved u32 | v0 u64 | v1 u64 | v2 u64 | v3 u64 | payload

`status` is 0, or a negative errno as Xen's own hypercalls give it. Descriptors (the RAM, the ends
of an event channel, a listening socket) travel beside an answer as SCM_RIGHTS, so that a kernel
that was just entered needs nothing but this one channel.

**Invariants.** A packet that is no call, an empty one too, is answered with -EINVAL, an unknown
operation with -ENOSYS; neither changes anything. Calls are answered in order; while a domain has
no room for an answer, no further call of it is taken. The channel never carries data of Xenstore
or 9P: those travel through granted pages and the domain's own sockets.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

CALL = Layout(
    "hosted call",
    40,
    [
        Field("op", 0, "I"),
        Field("_pad0", 4, "4s"),
        Field("a0", 8, "Q"),
        Field("a1", 16, "Q"),
        Field("a2", 24, "Q"),
        Field("a3", 32, "Q"),
    ],
)
ANSWER = Layout(
    "hosted answer",
    40,
    [
        Field("status", 0, "i"),
        Field("_pad0", 4, "4s"),
        Field("v0", 8, "Q"),
        Field("v1", 16, "Q"),
        Field("v2", 24, "Q"),
        Field("v3", 32, "Q"),
    ],
)
PAYLOAD_MAX = 16384

#: Answered with two descriptors, RAM and grant frames. v0 = RAM bytes, v1 = grant bytes,
#: v2 = domid.
MEMORY_MAP = 1
#: a0 = remote domid; v0 = the new port.
EVTCHN_ALLOC_UNBOUND = 2
#: a0 = port; answered with two descriptors: to the remote end, from the remote end.
EVTCHN_BIND = 3
#: a0 = port.
EVTCHN_CLOSE = 4
#: a0 = grant reference of the interface page, a1 = port, a2 = 1 to take a device over after kexec.
NINEPFS_CONNECT = 5
#: Answered with one descriptor: the listening socket of the domain's service.
LISTENER = 6
#: One-way; payload = text for the console.
CONSOLE_WRITE = 7
#: One-way; payload = name, a0 = CLOCK_MONOTONIC in ns: a step of boot or update was reached.
MILESTONE = 8
#: a0 = domid, a1 = grant reference: answered with one descriptor, of the memory that the granted
#: page of another domain lies in. v0 = where in it.
GNTTAB_MAP = 9
#: a0 = remote domid, a1 = remote port; v0 = the new port, for EVTCHN_BIND.
EVTCHN_BIND_INTERDOMAIN = 10
#: a0 = virtual interrupt; v0 = its port, the same one when asked again.
EVTCHN_BIND_VIRQ = 11
#: a0 = domid; v0 = 1 if it has shut down, v1 = its unique id. ESRCH if there is no such domain.
DOMAIN_STATE = 12

NAMES = {
    MEMORY_MAP: "memory_map",
    EVTCHN_ALLOC_UNBOUND: "evtchn_alloc_unbound",
    EVTCHN_BIND: "evtchn_bind",
    EVTCHN_CLOSE: "evtchn_close",
    NINEPFS_CONNECT: "ninepfs_connect",
    LISTENER: "listener",
    CONSOLE_WRITE: "console_write",
    MILESTONE: "milestone",
    GNTTAB_MAP: "gnttab_map",
    EVTCHN_BIND_INTERDOMAIN: "evtchn_bind_interdomain",
    EVTCHN_BIND_VIRQ: "evtchn_bind_virq",
    DOMAIN_STATE: "domain_state",
}
ONE_WAY = frozenset({CONSOLE_WRITE, MILESTONE})
