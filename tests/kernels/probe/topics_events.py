"""What is asked about event_channel_op."""

from __future__ import annotations

from kernels.probe.script import ARG, FRAME, HOLE, SELF, Script

from xenlive.abi.hypercalls import event_channel as abi

_CALL = "event_channel_op"


def _status(s: Script, name: str, port: int, who: int = SELF, out: int = 24) -> None:
    s.put("HHIIIQ", who, 0, port, 0x55, 0x55, 0x5555555555555555)
    s.call(name, _CALL, abi.EVTCHNOP_status, ARG, out=out)


def events(s: Script) -> None:
    """Ports."""
    s.read_in("do_event_channel_op, xen/common/event_channel.c")
    for cmd in (*range(17), 0xFFFFFFFF):
        s.call(f"{cmd}: hole", _CALL, cmd, HOLE)
    s.read_in("evtchn_status, xen/common/event_channel.c")
    for port in (0, 1, 2, 3, 63, 64, 1023, 1024, 4095, 4096, 1 << 17, 0xFFFFFFFF):
        _status(s, f"status {port}", port, out=20)
    for name, who in s.domids()[1:]:
        _status(s, f"status 1 of {name}", 1, who, out=20)
        _status(s, f"status 9999 of {name}", 9999, who)
    s.read_in("evtchn_alloc_unbound, xen/common/event_channel.c")
    for name, who in s.domids():
        for other, remote in s.domids():
            s.put("HHI", who, remote, 0x55)
            s.call(f"alloc: {name} for {other}", _CALL, abi.EVTCHNOP_alloc_unbound, ARG, out=8)
    for port in range(3, 14):
        _status(s, f"allocated {port}", port)
    s.read_in("evtchn_bind_interdomain, xen/common/event_channel.c")
    for name, who in s.domids():
        for port in (0, 1, 3, 9, 63, 64, 0xFFFFFFFF):
            s.put("HHII", who, 0, port, 0x55)
            s.call(f"bind: {port} of {name}", _CALL, abi.EVTCHNOP_bind_interdomain, ARG, out=12)
    for port in (3, 14, 15):
        _status(s, f"bound {port}", port)
    s.read_in("evtchn_bind_virq, xen/common/event_channel.c")
    for virq in (*range(26), 0xFFFFFFFF):
        for vcpu in (0, 1, 0xFFFFFFFF):
            s.put("III", virq, vcpu, 0x55)
            s.call(f"virq {virq}, vcpu {vcpu}", _CALL, abi.EVTCHNOP_bind_virq, ARG, out=12)
    s.put("III", 0, 0, 0x55)
    s.call("virq 0 again", _CALL, abi.EVTCHNOP_bind_virq, ARG, out=12)
    _status(s, "a virq", 20)
    s.read_in("evtchn_bind_ipi, evtchn_bind_pirq, xen/common/event_channel.c")
    for vcpu in (0, 0, 1, 128, 0xFFFFFFFF):
        name = f"ipi {vcpu}{s.again(f'ipi {vcpu}')}"
        s.put("II", vcpu, 0x55)
        s.call(name, _CALL, abi.EVTCHNOP_bind_ipi, ARG, out=8)
    for pirq in (0, 1, 2, 16, 47, 48, 55, 56, 63, 255, 256, 0xFFFFFFFF):
        for flags in (0, 1, 2):
            s.put("III", pirq, flags, 0x55)
            s.call(f"pirq {pirq}, {flags}", _CALL, abi.EVTCHNOP_bind_pirq, ARG, out=12)
    for port in range(18, 64):
        _status(s, f"then {port}", port)
    s.read_in("evtchn_bind_vcpu, xen/common/event_channel.c")
    for port in (0, 1, 3, 5, 20, 21, 40, 41, 42, 43, 62, 63, 64, 0xFFFFFFFF):
        for vcpu in (0, 1, 0xFFFFFFFF):
            s.put("II", port, vcpu)
            s.call(f"move {port} to {vcpu}", _CALL, abi.EVTCHNOP_bind_vcpu, ARG)
    s.read_in("evtchn_send, evtchn_unmask, evtchn_set_priority, xen/common/event_channel.c")
    for port in (0, 1, *range(3, 48), 62, 63, 64, 128, 0xFFFFFFFF):
        s.put("I", port)
        s.call(f"send {port}", _CALL, abi.EVTCHNOP_send, ARG)
        s.call(f"unmask {port}", _CALL, abi.EVTCHNOP_unmask, ARG)
        s.put("II", port, 3)
        s.call(f"priority {port}", _CALL, abi.EVTCHNOP_set_priority, ARG)
        s.put("II", port, 16)
        s.call(f"priority 16 {port}", _CALL, abi.EVTCHNOP_set_priority, ARG)
    s.read_in("evtchn_reset, xen/common/event_channel.c")
    for name, who in s.domids()[2:]:
        s.put("H", who)
        s.call(f"reset of {name}", _CALL, abi.EVTCHNOP_reset, ARG)
        s.call(f"go on with reset of {name}", _CALL, abi.EVTCHNOP_reset_cont, ARG)
    s.put("H", SELF)
    s.call("go on with reset", _CALL, abi.EVTCHNOP_reset_cont, ARG)
    s.read_in("evtchn_close, xen/common/event_channel.c")
    for port in (0, 1, *range(3, 48), 62, 63, 64, 128, 0xFFFFFFFF):
        s.put("I", port)
        s.call(f"close {port}", _CALL, abi.EVTCHNOP_close, ARG)
    for port in (1, 3, 14, 20):
        _status(s, f"closed {port}", port)
    s.put("HHI", SELF, 0, 0x55)
    s.call("alloc: the lowest", _CALL, abi.EVTCHNOP_alloc_unbound, ARG, out=8)


def _shared_page(s: Script) -> int:
    """Maps the shared page, with nothing pending and all but what follows masked."""
    s.put("HHIWW", SELF, 0, 0, 0, FRAME)
    s.call("map shared info", "memory_op", 7, ARG)
    page = FRAME << 12
    s.store(page + 2048 + s.word * s.bits, b"\xf6")
    s.wipe(page + 2048, 8)
    s.wipe(page, 16)
    return page


def many_events(s: Script) -> None:
    """All ports that there are."""
    s.read_in("evtchn_allocate_port, get_free_port, xen/common/event_channel.c")
    s.put("HHI", SELF, 0, 0)
    for n in range(1030):
        s.call(f"alloc {n}", _CALL, abi.EVTCHNOP_alloc_unbound, ARG, out=8)
    s.put("II", 0, 0)
    s.call("ipi", _CALL, abi.EVTCHNOP_bind_ipi, ARG)
    s.put("III", 0, 0, 0)
    s.call("virq", _CALL, abi.EVTCHNOP_bind_virq, ARG)
    s.put("III", 99, 0, 0)
    s.call("virq that is none", _CALL, abi.EVTCHNOP_bind_virq, ARG)
    s.put("HHII", s.me, 0, 3, 0)
    s.call("bind", _CALL, abi.EVTCHNOP_bind_interdomain, ARG)
    s.put("HHI", 0, 0, 0)
    s.call("alloc of 0", _CALL, abi.EVTCHNOP_alloc_unbound, ARG)
    s.put("I", 777)
    s.call("close 777", _CALL, abi.EVTCHNOP_close, ARG)
    s.put("HHI", SELF, 0, 0)
    s.call("alloc that one", _CALL, abi.EVTCHNOP_alloc_unbound, ARG, out=8)
    for port in (1023, 1024, 1087, 1088):
        _status(s, f"status {port}", port)


def queues(s: Script) -> None:
    """FIFO event channels."""
    s.read_in("evtchn_fifo_init_control, evtchn_fifo_expand_array, xen/common/event_fifo.c")
    s.put("Q", FRAME)
    s.call("expand before", _CALL, abi.EVTCHNOP_expand_array, ARG)
    for gfn, offset, vcpu in (
        *((FRAME, 0, 1), (FRAME, 4, 0), (FRAME, 4096 - 64, 0), (FRAME, 4096 - 71, 0)),
        *((0xD0000, 0, 0), (FRAME, 0xFFFFFFF8, 0), (FRAME, 0, 0xFFFFFFFF)),
    ):
        s.put("QIIBBHI", gfn, offset, vcpu, 0, 0, 0, 0)
        name = f"init {gfn:#x}, {offset:#x}, vcpu {vcpu}"
        s.call(name, _CALL, abi.EVTCHNOP_init_control, ARG, out=24)
    s.put("QIIBBHI", FRAME, 8, 0, 0, 0, 0, 0)
    s.call("init", _CALL, abi.EVTCHNOP_init_control, ARG, out=24)
    s.put("QIIBBHI", FRAME + 1, 8, 0, 0, 0, 0, 0)
    s.call("init again", _CALL, abi.EVTCHNOP_init_control, ARG)
    s.load("control block", FRAME << 12, 80)
    for gfn in (0xD0000, FRAME + 2, FRAME + 3, FRAME + 2):
        name = f"expand {gfn:#x}{s.again(f'expand {gfn:#x}')}"
        s.put("Q", gfn)
        s.call(name, _CALL, abi.EVTCHNOP_expand_array, ARG)
    s.put("II", 0, 0)
    s.call("ipi", _CALL, abi.EVTCHNOP_bind_ipi, ARG, out=8)
    for priority in (0, 7, 15, 16, 0xFFFFFFFF):
        s.put("II", 3, priority)
        s.call(f"priority {priority}", _CALL, abi.EVTCHNOP_set_priority, ARG)
    s.load("words", (FRAME + 2) << 12, 32)
    s.put("I", 3)
    s.call("send, masked", _CALL, abi.EVTCHNOP_send, ARG)
    s.load("words, masked", (FRAME + 2) << 12, 32)
    s.load("control block, masked", FRAME << 12, 80)
    s.put("I", 3)
    s.call("unmask", _CALL, abi.EVTCHNOP_unmask, ARG)
    s.load("words, unmasked", (FRAME + 2) << 12, 32)
    s.load("control block, unmasked", FRAME << 12, 80)
    _status(s, "status", 3)
    _status(s, "status of the last", 4095)


def without_queues(s: Script) -> None:
    """The shared page: events in two levels."""
    s.read_in("evtchn_2l_set_pending, evtchn_2l_unmask, xen/common/event_2l.c")
    page = _shared_page(s)
    s.put("II", 0, 0)
    s.call("ipi", _CALL, abi.EVTCHNOP_bind_ipi, ARG, out=8)
    mask = 2048 + s.word * s.bits
    s.load("before: vcpu", page, 24)
    s.load("before: pending", page + 2048, 16)
    s.load("before: mask", page + mask, 16)
    s.put("I", 3)
    s.call("send", _CALL, abi.EVTCHNOP_send, ARG)
    s.load("sent: vcpu", page, 24)
    s.load("sent: pending", page + 2048, 16)
    s.store(page + mask, b"\xff")
    s.store(page + 2048, b"\x00" * 8)
    s.store(page, bytes(16))
    s.put("I", 3)
    s.call("send, masked", _CALL, abi.EVTCHNOP_send, ARG)
    s.load("masked: vcpu", page, 24)
    s.load("masked: pending", page + 2048, 16)
    s.call("unmask", _CALL, abi.EVTCHNOP_unmask, ARG)
    s.load("unmasked: vcpu", page, 24)
    s.load("unmasked: pending", page + 2048, 16)
    s.load("unmasked: mask", page + mask, 16)
    s.store(page, bytes(16))
    s.call("send once more", _CALL, abi.EVTCHNOP_send, ARG)
    s.load("once more: vcpu", page, 24)
    s.call("close", _CALL, abi.EVTCHNOP_close, ARG)
    s.load("closed: pending", page + 2048, 16)
