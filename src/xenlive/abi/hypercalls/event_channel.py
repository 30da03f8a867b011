"""Arguments of the event channel hypercall, the same for 64 and 32 bit guests.

Specification: Xen `public/event_channel.h`.

**Invariants.** No structure here has a pointer or a native word in it, so one form serves both.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

EVTCHNOP_bind_interdomain = 0
EVTCHNOP_bind_virq = 1
EVTCHNOP_bind_pirq = 2
EVTCHNOP_close = 3
EVTCHNOP_send = 4
EVTCHNOP_status = 5
EVTCHNOP_alloc_unbound = 6
EVTCHNOP_bind_ipi = 7
EVTCHNOP_bind_vcpu = 8
EVTCHNOP_unmask = 9
EVTCHNOP_reset = 10
EVTCHNOP_init_control = 11
EVTCHNOP_expand_array = 12
EVTCHNOP_set_priority = 13
EVTCHNOP_reset_cont = 14

EVTCHNSTAT_closed = 0
EVTCHNSTAT_unbound = 1
EVTCHNSTAT_interdomain = 2
EVTCHNSTAT_pirq = 3
EVTCHNSTAT_virq = 4
EVTCHNSTAT_ipi = 5

EVTCHN_ALLOC_UNBOUND = Layout(
    "evtchn_alloc_unbound",
    8,
    [Field("dom", 0, "H"), Field("remote_dom", 2, "H"), Field("port", 4, "I")],
    ctype="struct evtchn_alloc_unbound",
)

EVTCHN_BIND_INTERDOMAIN = Layout(
    "evtchn_bind_interdomain",
    12,
    [
        Field("remote_dom", 0, "H"),
        Field("_pad0", 2, "2s"),
        Field("remote_port", 4, "I"),
        Field("local_port", 8, "I"),
    ],
    ctype="struct evtchn_bind_interdomain",
)

EVTCHN_BIND_VIRQ = Layout(
    "evtchn_bind_virq",
    12,
    [Field("virq", 0, "I"), Field("vcpu", 4, "I"), Field("port", 8, "I")],
    ctype="struct evtchn_bind_virq",
)

EVTCHN_BIND_IPI = Layout(
    "evtchn_bind_ipi",
    8,
    [Field("vcpu", 0, "I"), Field("port", 4, "I")],
    ctype="struct evtchn_bind_ipi",
)

EVTCHN_BIND_PIRQ = Layout(
    "evtchn_bind_pirq",
    12,
    [Field("pirq", 0, "I"), Field("flags", 4, "I"), Field("port", 8, "I")],
    ctype="struct evtchn_bind_pirq",
)

EVTCHN_CLOSE = Layout("evtchn_close", 4, [Field("port", 0, "I")], ctype="struct evtchn_close")

EVTCHN_SEND = Layout("evtchn_send", 4, [Field("port", 0, "I")], ctype="struct evtchn_send")

# `u` is a domain id, or a domain id and a port, or the number of a pirq or virq.
EVTCHN_STATUS = Layout(
    "evtchn_status",
    24,
    [
        Field("dom", 0, "H"),
        Field("_pad0", 2, "2s"),
        Field("port", 4, "I"),
        Field("status", 8, "I"),
        Field("vcpu", 12, "I"),
        Field("u", 16, "8s"),
    ],
    ctype="struct evtchn_status",
)

EVTCHN_BIND_VCPU = Layout(
    "evtchn_bind_vcpu",
    8,
    [Field("port", 0, "I"), Field("vcpu", 4, "I")],
    ctype="struct evtchn_bind_vcpu",
)

EVTCHN_UNMASK = Layout("evtchn_unmask", 4, [Field("port", 0, "I")], ctype="struct evtchn_unmask")

EVTCHN_RESET = Layout("evtchn_reset", 2, [Field("dom", 0, "H")], ctype="struct evtchn_reset")

EVTCHN_INIT_CONTROL = Layout(
    "evtchn_init_control",
    24,
    [
        Field("control_gfn", 0, "Q"),
        Field("offset", 8, "I"),
        Field("vcpu", 12, "I"),
        Field("link_bits", 16, "B"),
        Field("_pad", 17, "7s"),
    ],
    ctype="struct evtchn_init_control",
)

EVTCHN_EXPAND_ARRAY = Layout(
    "evtchn_expand_array",
    8,
    [Field("array_gfn", 0, "Q")],
    ctype="struct evtchn_expand_array",
)

EVTCHN_SET_PRIORITY = Layout(
    "evtchn_set_priority",
    8,
    [Field("port", 0, "I"), Field("priority", 4, "I")],
    ctype="struct evtchn_set_priority",
)

# FIFO event channels: words of one event each, and where their queues begin.
EVTCHN_FIFO_PRIORITY_MAX = 0
EVTCHN_FIFO_PRIORITY_DEFAULT = 7
EVTCHN_FIFO_PRIORITY_MIN = 15
EVTCHN_FIFO_MAX_QUEUES = 16
EVTCHN_FIFO_PENDING = 31
EVTCHN_FIFO_MASKED = 30
EVTCHN_FIFO_LINKED = 29
EVTCHN_FIFO_BUSY = 28
EVTCHN_FIFO_LINK_BITS = 17
EVTCHN_FIFO_NR_CHANNELS = 1 << EVTCHN_FIFO_LINK_BITS

EVTCHN_FIFO_CONTROL_BLOCK = Layout(
    "evtchn_fifo_control_block",
    72,
    [Field("ready", 0, "I"), Field("_rsvd", 4, "4s"), Field("head", 8, "64s")],
    ctype="struct evtchn_fifo_control_block",
)
