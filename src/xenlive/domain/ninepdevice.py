"""A 9pfs device's shared pages: made new, or taken over from the kernel before.

    kexec module record 9PFS                     grant table
      ring_ref ──────────────────────────────▶  entry ──▶ interface page (in the module)
      evtchn, prod_pvt_out, cons_pvt_in                     in/out indices, ring_order
                                                            ref[] ──▶ entries ──▶ ring pages

Sources: Mini-OS `include/kexec.h` and its 9pfs front end (posted July 2025), Xen
`docs/misc/9pfs.pandoc`. The backend never learns that the kernel changed: pages, references, event
channel and indices stay; only the two private indices are written down, at the moment of kexec.

**Invariants.** The interface page is the lowest of the record's pages and the ring pages follow it,
when we make the device; when we take one over, any pages of the record will do. Everything that an
earlier kernel left is checked before it is used: a reference must be alive, to the backend, for
writing, and lead to a page that the record owns and that is used once. What can't be used is a
BootError, and nothing was changed.

A record whose `ring_ref` is 0 is of a device that was never connected: reference 0 is reserved.
"""

from __future__ import annotations

from xenlive.abi.grant_table import (
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_type_mask,
    GTF_writing,
)
from xenlive.abi.kexec_module import RECORD_9PFS as RECORD_TYPE_9PFS
from xenlive.abi.xen9pfs import (
    IN_CONS,
    IN_PROD,
    MAX_RING_ORDER,
    MIN_RING_ORDER,
    OUT_CONS,
    OUT_PROD,
    RECORD_9PFS,
    REF0,
    RING_ORDER,
)
from xenlive.domain.grants import RESERVED_REFS
from xenlive.errors import BootError, HypercallError, OutOfSpace
from xenlive.memory.address import PAGE_SIZE
from xenlive.ring.area import RingArea, split_views, views_of_frames
from xenlive.ring.stream import Consumer, Producer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenlive.domain.events import EventChannels
    from xenlive.domain.grants import GrantTable
    from xenlive.kexec.module import KexecModule
    from xenlive.memory.address import Frame
    from xenlive.memory.guest import GuestMemory

_U32 = 0xFFFFFFFF
_IN_USE = GTF_reading | GTF_writing


class NinePDevice:
    """The device as its front end holds it: both rings, the event channel, and their record."""

    __slots__ = (
        "_module",
        "events",
        "order",
        "pages",
        "port",
        "record",
        "refs",
        "replies",
        "requests",
    )

    def __init__(
        self,
        module: KexecModule,
        record: int,
        refs: list[int],
        events: EventChannels,
        port: int,
        interface: memoryview,
        ring_views: Sequence[memoryview],
        prod: int = 0,
        cons: int = 0,
    ) -> None:
        self._module = module
        self.record = record
        # the interface page's reference, then those of the ring pages in order
        self.refs = refs
        # the module's pages, by index, if this kernel took them
        self.pages = range(0)
        self.events = events
        self.port = port
        half = sum(len(view) for view in ring_views) // 2
        self.order = (half * 2 // PAGE_SIZE).bit_length() - 1
        inward, outward = split_views(ring_views, half)
        self.requests = Producer(RingArea(outward), interface, OUT_PROD, OUT_CONS, prod)
        self.replies = Consumer(RingArea(inward), interface, IN_PROD, IN_CONS, cons)

    @property
    def ring_ref(self) -> int:
        """The grant reference of the interface page."""
        return self.refs[0]

    def shift_pages(self, by: int) -> None:
        """Follows a module that grew or shrank at its lower end, where its indices begin."""
        if self.pages:
            self.pages = range(self.pages.start + by, self.pages.stop + by)

    def save_indices(self) -> None:
        """Writes the private indices into the record, for the next kernel."""
        indices = self.requests.prod.to_bytes(4, "little") + self.replies.cons.to_bytes(4, "little")
        self._module.update_record(self.record, indices, RECORD_9PFS.offset_of("prod_pvt_out"))


def make_device(
    memory: GuestMemory,
    module: KexecModule,
    grants: GrantTable,
    events: EventChannels,
    backend_domid: int = 0,
    order: int = 4,
) -> NinePDevice:
    """A new device in pages of the kexec module, granted, with an event channel, not yet connected.

    OutOfSpace (pages, records, references) or HypercallError (event channel): then all that was
    taken is given back, but for an unconnected record, which the next attempt uses.
    """
    if not MIN_RING_ORDER <= order <= MAX_RING_ORDER:
        raise ValueError(f"ring order {order}")
    n_pages = 1 + (1 << order)
    if grants.free_refs < n_pages:
        raise OutOfSpace("grant references", n_pages, grants.free_refs)
    port = events.alloc_unbound(backend_domid)
    try:
        record = _unconnected_record(module)
        first = module.alloc_pages(record, n_pages)
    except BaseException:
        events.close(port)
        raise
    frames = [module.page_frame(first + place) for place in range(n_pages)]
    for frame in frames:
        memory.page(frame)[:] = bytes(PAGE_SIZE)
    refs = [grants.grant_access(backend_domid, frame) for frame in frames]
    interface = memory.page(frames[0]).cast("I")
    interface[RING_ORDER] = order
    for place, ref in enumerate(refs[1:]):
        interface[REF0 + place] = ref
    module.update_record(record, RECORD_9PFS.pack(refs[0], port, 0, 0))
    rings = views_of_frames(memory, frames[1:])
    device = NinePDevice(module, record, refs, events, port, interface, rings)
    device.pages = range(first, first + n_pages)
    return device


def unmake_device(device: NinePDevice, module: KexecModule, grants: GrantTable) -> None:
    """Takes back what `make_device` gave, as far as the backend does not use it any more.

    Grants in use keep their pages: those stay with the record, out of everyone's reach.
    """
    device.events.close(device.port)
    module.update_record(device.record, bytes(RECORD_9PFS.size))
    free = [grants.end_access(ref) for ref in device.refs]
    if all(free):
        module.free_pages(device.pages.start, len(device.pages))


def discard_device(module: KexecModule, record: int, grants: GrantTable) -> bool:
    """Gives up a device that an earlier kernel left: its grants, its pages, its record.

    False, and nothing but unused grants has changed, if one of its pages is still in use: it stays
    with the record then. The event channel is left alone: whose it is, is not known.
    """
    frames = {module.page_frame(page) for page in module.pages_of(record)}
    refs = [ref for ref in range(grants.n_refs) if _leads_to(grants, ref, frames)]
    if any(ref < RESERVED_REFS or grants.entry(ref)[0] & _IN_USE for ref in refs):
        return False
    if not all(grants.end_access(ref) for ref in refs):
        return False
    module.delete_record(record, free_pages=True)
    return True


def take_over_device(
    memory: GuestMemory,
    module: KexecModule,
    record: int,
    grants: GrantTable,
    events: EventChannels,
    backend_domid: int = 0,
    reconnect: Callable[[int, int], None] | None = None,
) -> NinePDevice:
    """The device that the kernel before left in `record`. BootError, by code, if it can't be used:

    9pfs-bad-record, 9pfs-dead-grant, 9pfs-foreign-page, 9pfs-bad-ring-order, 9pfs-bad-index,
    9pfs-wild-port.

    With `reconnect(ring_ref, port)`, which has the backend start over, the rings begin anew at 0: a
    kernel that died in the middle of a request leaves indices that nobody can go on from.
    """
    handed = _follow_record(memory, module, record, grants, backend_domid)
    prod, cons, half, interface = handed.prod, handed.cons, handed.half, handed.interface
    if reconnect is None:
        _validate_indices("out", interface[OUT_PROD], prod, prod - interface[OUT_CONS], half)
        _validate_indices("in", interface[IN_CONS], cons, interface[IN_PROD] - cons, half)
    try:
        events.bind(handed.port)
        if reconnect is not None:
            reconnect(handed.refs[0], handed.port)
            prod = cons = 0
    except HypercallError as error:
        raise BootError("9pfs-wild-port", f"event channel {handed.port}: {error}") from None
    if reconnect is not None:
        _validate_indices("out", interface[OUT_PROD], 0, 0 - interface[OUT_CONS], half)
        _validate_indices("in", interface[IN_CONS], 0, interface[IN_PROD] - 0, half)
    rings = views_of_frames(memory, handed.frames)
    return NinePDevice(
        module, record, handed.refs, events, handed.port, interface, rings, prod, cons
    )


def validate_device(
    memory: GuestMemory,
    module: KexecModule,
    grants: GrantTable,
    device: NinePDevice,
    backend_domid: int = 0,
) -> None:
    """Checks a device in use, at rest, as the next kernel will: BootError by the same codes.

    Nothing is changed, so that what was damaged in between is found while it costs nothing.
    """
    handed = _follow_record(memory, module, device.record, grants, backend_domid)
    if (handed.refs, handed.port) != (device.refs, device.port):
        raise BootError("9pfs-bad-record", f"record {device.record} is not this kernel's any more")
    interface, prod, cons = handed.interface, device.requests.prod, device.replies.cons
    _validate_indices("out", interface[OUT_PROD], prod, prod - interface[OUT_CONS], 0)
    _validate_indices("in", interface[IN_CONS], cons, interface[IN_PROD] - cons, 0)


def find_granted_device(
    memory: GuestMemory, module: KexecModule, grants: GrantTable, backend_domid: int = 0
) -> int:
    """The first 9PFS record of a module nobody vouches for that the grant table bears out.

    Its references lead to its own pages, all of them, as `take_over_device` asks; ring indices and
    event channel are not looked at. What a client writes can get into a page of the module's, but
    not into the grant table. BootError: 9pfs-no-record, or why the first one is not to be believed.
    """
    refused: BootError | None = None
    for record in module.records():
        if record.type == RECORD_TYPE_9PFS and any(module.read_record(record.index)):
            try:
                _follow_record(memory, module, record.index, grants, backend_domid)
            except BootError as error:
                refused = refused or error
            else:
                return record.index
    raise refused or BootError("9pfs-no-record", "it has no 9pfs device that was ever connected")


class _Handed:
    """What a record leads to, checked but for indices and port: `refs` begins with `ring_ref`."""

    __slots__ = ("cons", "frames", "half", "interface", "port", "prod", "refs")

    def __init__(
        self, port: int, prod: int, cons: int, interface: memoryview, refs: list[int]
    ) -> None:
        self.port = port
        self.prod = prod
        self.cons = cons
        self.interface = interface
        self.refs = refs
        self.frames: list[Frame] = []
        self.half = PAGE_SIZE * (len(refs) - 1) >> 1


def _follow_record(
    memory: GuestMemory, module: KexecModule, record: int, grants: GrantTable, backend_domid: int
) -> _Handed:
    """From the record through the grants to the pages; BootError for what is not as it must be."""
    data = module.read_record(record)
    if len(data) != RECORD_9PFS.size:
        raise BootError("9pfs-bad-record", f"record {record} has {len(data)} bytes, not 16")
    ring_ref, port, prod, cons = RECORD_9PFS.unpack(data)
    pages = _RecordPages(module, record, grants, backend_domid)
    interface = memory.page(pages.claim("ring_ref", ring_ref)).cast("I")
    order: int = interface[RING_ORDER]
    if not MIN_RING_ORDER <= order <= MAX_RING_ORDER:
        raise BootError("9pfs-bad-ring-order", f"ring order {order} in record {record}")
    refs: list[int] = interface[REF0 : REF0 + (1 << order)].tolist()
    handed = _Handed(port, prod, cons, interface, [ring_ref, *refs])
    handed.frames = [pages.claim(f"ref[{place}]", ref) for place, ref in enumerate(refs)]
    return handed


class _RecordPages:
    """Follows grant references to pages of one record, each at most once."""

    __slots__ = ("_backend_domid", "_frames", "_grants", "_record")

    def __init__(
        self, module: KexecModule, record: int, grants: GrantTable, backend_domid: int
    ) -> None:
        self._frames = {module.page_frame(page) for page in module.pages_of(record)}
        self._record = record
        self._grants = grants
        self._backend_domid = backend_domid

    def claim(self, name: str, ref: int) -> Frame:
        """The frame behind a reference, which is then taken."""
        if not RESERVED_REFS <= ref < self._grants.n_refs:
            raise BootError("9pfs-dead-grant", f"{name} {ref} is no usable grant reference")
        flags, domid, frame = self._grants.entry(ref)
        if flags & GTF_type_mask != GTF_permit_access or flags & GTF_readonly:
            raise BootError("9pfs-dead-grant", f"{name} {ref} has flags {flags:#x}")
        if domid != self._backend_domid:
            raise BootError("9pfs-dead-grant", f"{name} {ref} is granted to domain {domid}")
        if frame not in self._frames:
            raise BootError(
                "9pfs-foreign-page",
                f"{name} {ref} leads to frame {frame:#x}: no page of record {self._record}, "
                "or one that is used twice",
            )
        self._frames.discard(frame)
        return frame


def _leads_to(grants: GrantTable, ref: int, frames: set[Frame]) -> bool:
    flags, _, frame = grants.entry(ref)
    return flags != 0 and frame in frames


def _unconnected_record(module: KexecModule) -> int:
    """A record for a new device: one that an attempt before left unconnected, or a new one."""
    for record in module.records():
        if record.type != RECORD_TYPE_9PFS or record.size != RECORD_9PFS.size:
            continue
        if RECORD_9PFS.unpack(module.read_record(record.index))[0] == 0:
            return record.index
    return module.add_record(RECORD_TYPE_9PFS, bytes(RECORD_9PFS.size))


def _validate_indices(name: str, shared: int, saved: int, difference: int, half: int) -> None:
    """What is written down must be what was shared last, and the other end's index near it."""
    if shared != saved:
        raise BootError("9pfs-bad-index", f"{name}: record says {saved}, interface page {shared}")
    if difference & _U32 > half:
        raise BootError("9pfs-bad-index", f"{name}: {difference & _U32} bytes in a ring of {half}")
