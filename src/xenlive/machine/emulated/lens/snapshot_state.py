"""The forms of a domain and its processor: what of them is state, and what each number may be.

What `Domain.save` and `Vcpu.save` give is told in these forms; what is read back by them goes to
`Domain.restore` and `Vcpu.restore`. Beyond each number by itself, `validate_together` compares what
belongs together: ends of channels, pins and mappings, frames and where they stand.

**Invariants.** A state that passes raises nothing when the domain goes on, whatever wrote it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from xenlive.abi.hypercalls.event_channel import (
    EVTCHN_FIFO_CONTROL_BLOCK,
    EVTCHN_FIFO_MAX_QUEUES,
    EVTCHN_FIFO_NR_CHANNELS,
)
from xenlive.machine.emulated.hypervisor.evtchn import (
    INTERDOMAIN,
    IPI,
    MAX_PORT,
    NR_PIRQS,
    PIRQ,
    PORTS_PER_BUCKET,
    RESERVED,
    UNBOUND,
    VIRQ,
    Channel,
)
from xenlive.machine.emulated.hypervisor.evtchn_fifo import MAX_PAGES, QueueState
from xenlive.machine.emulated.hypervisor.grantmap import MAX_HANDLES, Mapped
from xenlive.machine.emulated.hypervisor.grants import MAX_FRAMES, MAX_STATUS_FRAMES, Active
from xenlive.machine.emulated.hypervisor.hvmparams import HvmParams
from xenlive.machine.emulated.hypervisor.hypercalls.vcpu import RunstateArea, TimeArea
from xenlive.machine.emulated.hypervisor.timers import N_WATCHDOGS, Timers
from xenlive.machine.emulated.hypervisor.vcpurecord import VcpuRecord
from xenlive.machine.emulated.lens.snapshot_cpu import ProcessorState
from xenlive.machine.emulated.lens.snapshot_forms import (
    Choice,
    Data,
    Fields,
    Flag,
    Form,
    Listed,
    Maybe,
    Place,
    Record,
    Row,
    Table,
    Text,
    Whole,
)
from xenlive.machine.emulated.lens.snapshot_names import (
    Area,
    Events,
    Frame,
    Grants,
    InfoPlace,
    Processor,
)
from xenlive.machine.emulated.processor import lapic
from xenlive.machine.emulated.processor.handling import HypercallRecord
from xenlive.machine.emulated.processor.vcpu import VcpuState
from xenlive.machine.emulated.space import (
    GRANT,
    GRANT_READONLY,
    MAX_GFN,
    RAM,
    XEN,
    Mapping,
    SpaceState,
)
from xenlive.machine.emulated.stop import (
    SHUTDOWN,
    SPIN,
    STUCK,
    TRIPLE_FAULT,
    UNSUPPORTED,
    GuestStop,
)
from xenlive.memory.address import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenlive.machine.emulated.hypervisor.domain import Domain

MEBI = 1 << 20
U8, U16, U32, U64 = (Whole(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
#: Nanoseconds of virtual time: more than a century, and not so much that sums get wild.
TIME = Whole(0, (1 << 62) - 1)
COUNT = Whole(0, (1 << 62) - 1)
SIGNED = Whole(-(1 << 64), (1 << 64) - 1)
DOMID, PORT = Whole(0, 0x7FFF), Whole(0, MAX_PORT)
GFN, PAGES = Whole(0, MAX_GFN), Whole(0, MEBI * 2)
REF = Whole(0, MAX_FRAMES * PAGE_SIZE // 8 - 1)


class Stop(Form):
    """How a guest ended."""

    _form = Row(Choice(SHUTDOWN, TRIPLE_FAULT, SPIN, STUCK, UNSUPPORTED), Text(1000), U8)

    def save(self, value: Any) -> Any:
        return self._form.save((value.kind, value.what, value.code))

    def load(self, plain: Any, at: Place) -> Any:
        return GuestStop(*self._form.load(plain, at))


MAPPING = Record(Mapping, frame=Frame(), kind=Choice(RAM, XEN, GRANT, GRANT_READONLY))
SPACE = Record(
    SpaceState,
    rebuilt=("pieces",),
    moved=Table(GFN, Maybe(MAPPING), MEBI),
    gfn_of=Table(PAGES, Maybe(GFN), MEBI),
    fresh=PAGES,
    freed=Listed(PAGES, MEBI),
    held=Table(PAGES, Whole(1, 1 << 20), MEBI),
    unowned=Listed(PAGES, MEBI, frozenset, is_ordered=False),
    max_gfn=GFN,
)
CHANNEL = Record(
    Channel,
    state=Choice(RESERVED, UNBOUND, INTERDOMAIN, PIRQ, VIRQ, IPI),
    vcpu=Choice(0),
    remote_domid=U16,
    remote=Maybe(Events()),
    remote_port=PORT,
    number=U8,
)
EVENTS = Row(
    Table(PORT, CHANNEL, MAX_PORT + 1),
    Whole(PORTS_PER_BUCKET, MAX_PORT + 1),
    Table(Row(U8, Choice(0)), PORT, 64),
    Table(Whole(0, NR_PIRQS - 1), PORT, NR_PIRQS),
)
ACTIVE = Record(
    Active,
    domid=DOMID,
    frame=Frame(),
    start=Whole(0, PAGE_SIZE * 16),
    length=Whole(0, PAGE_SIZE * 16),
    is_sub_page=Flag(),
    table=Grants(),
    ref=REF,
    readers=U8,
    writers=U8,
)
GRANTS = Row(
    Choice(1, 2),
    Whole(1, MAX_FRAMES),
    Whole(0, MAX_STATUS_FRAMES),
    Table(REF, ACTIVE, MAX_FRAMES * PAGE_SIZE // 8),
)
HANDLE = Whole(0, MAX_HANDLES - 1)
MAPPED = Record(Mapped, table=Grants(), ref=REF, flags=U16, frame=Frame(), gfn=GFN)
MAPPINGS = Row(
    Table(HANDLE, MAPPED, MAX_HANDLES),
    Listed(HANDLE, MAX_HANDLES),
    Whole(0, MAX_HANDLES),
)
TIMERS = Record(
    Timers,
    singleshot_ns=Maybe(U64),
    poll_ns=Maybe(U64),
    periodic_ns=Maybe(U64),
    period_ns=U64,
    watchdogs=Table(Whole(1, N_WATCHDOGS), U64, N_WATCHDOGS),
)
VCPU_RECORD = Record(
    VcpuRecord,
    vector=U8,
    own_vector=U8,
    announced=Flag(),
    nmi_pending=Flag(),
    polled=Maybe(PORT),
    processor=Maybe(Processor()),
    blocked_since_ns=Maybe(TIME),
    blocked_total_ns=TIME,
    info_frame=Maybe(Frame()),
    runstate_changed=Maybe(Area(RunstateArea)),
)
PARAMS = Record(HvmParams, values=Table(U16, U64, 64))


class Shared(Form):
    """The state of `SharedInfo`, of the domain with `space`."""

    _form = Row(Flag(), InfoPlace(), Maybe(Area(TimeArea)))

    def __init__(self, space: Any) -> None:
        self._space = space

    def save(self, value: Any) -> Any:
        is_32bit, info, area = value
        return self._form.save((is_32bit, (self._space, info), area))

    def load(self, plain: Any, at: Place) -> Any:
        is_32bit, (home, info), area = self._form.load(plain, at)
        if home is not self._space:
            raise at.fail("a place of the domain's own", plain[1])
        return is_32bit, info, area


class Plain(Form):
    """What changes nothing for the guest, and begins anew."""

    def save(self, value: Any) -> Any:
        return None

    def load(self, plain: Any, at: Place) -> Any:
        return None


_QUEUE, _LINK = Whole(0, EVTCHN_FIFO_MAX_QUEUES - 1), Whole(0, EVTCHN_FIFO_NR_CHANNELS - 1)
QUEUES = Maybe(
    Record(
        QueueState,
        control=Frame(),
        offset=Whole(0, PAGE_SIZE - EVTCHN_FIFO_CONTROL_BLOCK.size),
        pages=Listed(Frame(), MAX_PAGES),
        tails=Row(*[_LINK] * EVTCHN_FIFO_MAX_QUEUES),
        priorities=Table(_LINK, _QUEUE, EVTCHN_FIFO_NR_CHANNELS),
        last_queues=Table(_LINK, _QUEUE, EVTCHN_FIFO_NR_CHANNELS),
        waiting=Listed(_LINK, EVTCHN_FIFO_NR_CHANNELS, frozenset, is_ordered=False),
    )
)
VALUES = Fields(
    has_console_io=Flag(),
    vm_assist=U64,
    last_refusal=Plain(),
    is_shut_down=Flag(),
    why=Text(1000),
    shutdown_code=Maybe(U8),
    e820=Listed(Row(U64, U64, U32), 128, list),
    console_io=Data(16 * MEBI, kind=bytearray),
    vcpu=VCPU_RECORD,
    timers=TIMERS,
    params=PARAMS,
)


def domain_form(domain: Domain) -> Form:
    """The form of what `Domain.save` gives, its memory apart."""
    return Row(SPACE, EVENTS, GRANTS, MAPPINGS, Shared(domain.space), QUEUES, VALUES)


VCPU = Record(
    VcpuState,
    engine=ProcessorState(),
    msrs=Table(U32, U64, 4096),
    apic=Row(*[Whole(-1, (1 << 256) - 1)] * lapic.N_NUMBERS),
    recent=Listed(
        Record(
            HypercallRecord,
            when_ns=TIME,
            rip=U64,
            caller=U64,
            number=U64,
            args=Listed(U64, 8),
            result=Maybe(SIGNED),
        ),
        64,
    ),
    waiting=Row(Flag(), Flag()),
    counters=Row(COUNT, COUNT, COUNT, SIGNED),
    polling=Row(COUNT, COUNT, COUNT),
    stopped_in=Maybe(Row(SIGNED, Flag(), COUNT, SIGNED)),
)


# ---- what belongs together -----------------------------------------------------------------------

#: A use of a grant: whose, which, and whether for reading only.
Pin = tuple[int, int, bool]


def validate_together(
    states: dict[int, tuple[Any, ...]],
    host_ports: dict[int, Channel],
    back_end_pins: Iterable[Pin],
    at: Place,
) -> None:
    """ImageError unless the parts of all domains' states agree, each with itself and all others.

    `states` are what `domain_form` gave for each guest, `host_ports` the ports of domain 0, and
    `back_end_pins` what domain 0 maps.
    """
    held: Counter[tuple[int, int]] = Counter()
    pins: Counter[Pin] = Counter(back_end_pins)
    for domid, (_, _, (_, _, _, active), (mapped, _, _), _, queues, values) in states.items():
        for entry in active.values():
            held[entry.frame.home.domid, entry.frame.index] += 1
            if entry.table.domid != domid:
                pins[entry.table.domid, entry.ref, True] += entry.readers
                pins[entry.table.domid, entry.ref, False] += entry.writers
        for one in mapped.values():
            pins[one.table.domid, one.ref, one.readonly] += 1
        own = [values["vcpu"].info_frame]
        if queues is not None:
            own += [queues.control, *queues.pages]
        held.update((frame.home.domid, frame.index) for frame in own if frame is not None)
    all_ports = {0: host_ports}
    for domid, state in states.items():
        here = at.down(domid)
        domain = here.names.domain(domid, here)
        space, events, grants, mappings, _, queues, values = state
        _validate_space(domain, space, here.down("space"))
        if any(space.held.get(i, 0) != n for (d, i), n in held.items() if d == domid):
            raise here.down("space.held").fail("as often as its pages are in use", len(space.held))
        _validate_events(events, here.down("events"))
        _validate_queues(domain, queues, here.down("queues"))
        _validate_grants(grants, here.down("grants"))
        _validate_mappings(mappings, here.down("mappings"))
        _validate_values(domain, values, here)
        all_ports[domid] = events[0]
    _validate_pins(states, pins, at)
    _validate_ends(all_ports, at)


def _validate_space(domain: Domain, state: SpaceState, at: Place) -> None:
    space = domain.space
    if not space.boot_pages <= state.fresh <= space.n_ram:
        raise at.down("fresh").fail("a number of its pages", state.fresh)
    if any(index >= state.fresh for index in [*state.freed, *state.unowned]):
        raise at.down("freed").fail("a list of its pages", len(state.freed))
    if len(set(state.freed)) != len(state.freed) or set(state.freed) & set(state.held):
        raise at.down("freed").fail("a list of pages that nobody has", len(state.freed))
    if not state.unowned <= set(state.held):
        raise at.down("unowned").fail("a list of pages that somebody holds", len(state.unowned))
    for gfn, mapping in state.moved.items():
        if mapping is None or mapping.is_foreign:
            continue
        if mapping.frame.home is not space or mapping.frame.is_xen is not (mapping.kind == XEN):
            raise at.down(f"moved.{gfn}").fail("of the kind that its page is", mapping.kind)


def _validate_events(state: Any, at: Place) -> None:
    ports, valid, virqs, pirqs = state
    if ports.get(0) is None or ports[0].state != RESERVED or valid % PORTS_PER_BUCKET:
        raise at.fail("a table of ports", valid)
    wanted_virqs, wanted_pirqs = {}, {}
    for port, channel in ports.items():
        if port >= valid or (port and channel.state == RESERVED):
            raise at.down(port).fail("a port there can be", channel.state)
        if channel.state == VIRQ:
            wanted_virqs[channel.number, 0] = port
        elif channel.state == PIRQ:
            wanted_pirqs[channel.number] = port
    if (virqs, pirqs) != (wanted_virqs, wanted_pirqs):
        raise at.fail("a table of the interrupts that are bound", sorted(virqs))


def _validate_queues(domain: Domain, state: QueueState | None, at: Place) -> None:
    if state is None:
        return
    if any(frame.home is not domain.space for frame in (state.control, *state.pages)):
        raise at.down("pages").fail("pages of its own", len(state.pages))
    if state.offset % 8:
        raise at.down("offset").fail("a multiple of 8", state.offset)


def _validate_ends(all_ports: dict[int, dict[int, Channel]], at: Place) -> None:
    """Both ends of each channel name each other."""
    for domid, ports in all_ports.items():
        for port, channel in ports.items():
            here = at.down(f"{domid}.events.{port}")
            if (channel.state == INTERDOMAIN) is (channel.remote is None):
                raise here.fail("a channel with its other end", channel.state)
            if channel.remote is None:
                continue
            other = all_ports.get(channel.remote.domid, {}).get(channel.remote_port)
            back = None if other is None or other.remote is None else other.remote.domid
            if other is None or (back, other.remote_port) != (domid, port):
                raise here.fail("the end of a channel that has another", channel.remote_port)


def _validate_grants(state: Any, at: Place) -> None:
    version, n_frames, _, active = state
    n_entries = n_frames * PAGE_SIZE // (8 if version == 1 else 16)
    for ref, entry in active.items():
        if ref >= n_entries or not entry.is_pinned:
            raise at.down(ref).fail("a grant of this table in use", ref)


def _validate_pins(states: dict[int, tuple[Any, ...]], pins: Counter[Pin], at: Place) -> None:
    """Each use of a grant is counted in its entry."""
    for (domid, ref, readonly), count in pins.items():
        if not count:
            continue
        entry = states[domid][2][3].get(ref) if domid in states else None
        counted = 0 if entry is None else entry.readers if readonly else entry.writers
        if counted < count:
            raise at.down(f"{domid}.grants.{ref}").fail(f"{count} times in use", counted)


def _validate_mappings(state: Any, at: Place) -> None:
    mapped, free, limit = state
    if limit % 256 or len(set(free)) != len(free) or set(free) & set(mapped):
        raise at.fail("a table of handles", limit)
    if any(handle >= limit for handle in [*mapped, *free]):
        raise at.fail("a table of handles that were made", limit)


def _validate_values(domain: Domain, values: dict[str, Any], at: Place) -> None:
    timers, frame = values["timers"], values["vcpu"].info_frame
    if timers.periodic_ns is not None and not timers.period_ns:
        raise at.down("timers").fail("a period", 0)
    if frame is not None and frame.home is not domain.space:
        raise at.down("vcpu.info_frame").fail("a page of the domain's own", frame.home.domid)
