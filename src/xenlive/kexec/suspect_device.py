"""Pages of 9pfs devices that have two users, and devices that two records name.

The posted C code hands out page 0 for every single page, owned or not, and does not look at the
last page of a longer run. It takes a device's interface page as a single one, so that is page 0,
and `2**order` ring pages in a run:

    owners    1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0      record 0 is a device, record 1 wanted a page
              ^ the interface page is still in use

A device is known by its interface page. An image has no grant table, so that page is known by what
it must be: a ring order, as many different references, and indices at most half a ring area apart.
If no page of the record is one, another page of the module may be; if none is, it was overwritten,
and what is left to see is a device of `2**order` pages, one too few.

**Invariants.** What is no device's record is left alone: one that is not connected (zeroes), or
whose numbers no grant table and event channel table has. So is a device one of whose pages can't
be read.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import PAGE_FREE, PG2REC_OFFSET, RECORD_9PFS
from xenlive.abi.xen9pfs import INTERFACE, MAX_RING_ORDER, MIN_RING_ORDER
from xenlive.abi.xen9pfs import RECORD_9PFS as LAYOUT_9PFS
from xenlive.kexec.verify import Problem
from xenlive.memory.address import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# More than any domain has: Xen's limits are 2**17 event channels, and fewer grant table frames
# than these references fill.
_MAX_RING_REF = 1 << 20
_MAX_EVTCHN = 1 << 17

_U32 = 0xFFFFFFFF
_RING_SIZES = tuple(1 << order for order in range(MIN_RING_ORDER, MAX_RING_ORDER + 1))


class _Device:
    """A 9PFS record that can be a device's: where its entry is, its pages, which are interfaces."""

    __slots__ = ("evtchn", "index", "interfaces", "pages", "ring_ref", "where")

    def __init__(
        self, index: int, where: int, ring_ref: int, evtchn: int, pages: list[int]
    ) -> None:
        self.index = index
        self.where = where
        self.ring_ref = ring_ref
        self.evtchn = evtchn
        self.pages = pages
        # Page and number of ring pages; None where a page of the record can't be read.
        self.interfaces: list[tuple[int, int]] | None = []


def device_problems(
    records: Iterable[tuple[int, int, int, bytes]],
    owners: bytes,
    read_page: Callable[[int], bytes],
) -> list[Problem]:
    """`same-device-twice` and `page-two-users`, in the order of the records.

    `records` are index, offset of the entry, type and data; `read_page` is as for `suspect`.
    """
    devices = _devices(records, owners)
    for device in devices:
        device.interfaces = _interfaces(device.pages, device.ring_ref, read_page)
    problems = _twice_problems(devices)
    strays: list[int] | None = None
    for device in devices:
        if device.interfaces is None or not device.pages:
            continue
        if device.interfaces:
            problems += _ring_problems(device, owners)
            continue
        if strays is None:
            strays = _stray_interfaces(devices, owners, read_page)
        problems += _lost_interface_problems(device, strays, owners)
    return problems


def _devices(records: Iterable[tuple[int, int, int, bytes]], owners: bytes) -> list[_Device]:
    devices = []
    for index, where, type_, data in records:
        if type_ != RECORD_9PFS or len(data) != LAYOUT_9PFS.size:
            continue
        ring_ref, evtchn, _, _ = LAYOUT_9PFS.unpack(data)
        if 0 < ring_ref < _MAX_RING_REF and 0 < evtchn < _MAX_EVTCHN:
            pages = [page for page, owner in enumerate(owners) if owner == index]
            devices.append(_Device(index, where, ring_ref, evtchn, pages))
    return devices


def _twice_problems(devices: list[_Device]) -> list[Problem]:
    problems = []
    refs: dict[int, int] = {}
    ports: dict[int, int] = {}
    for device in devices:
        same_ref = refs.setdefault(device.ring_ref, device.index)
        same_port = ports.setdefault(device.evtchn, device.index)
        if same_ref != device.index:
            other, what = same_ref, f"grant reference {device.ring_ref}"
        elif same_port != device.index:
            other, what = same_port, f"event channel {device.evtchn}"
        else:
            continue
        message = f"records {other} and {device.index} both name {what}"
        problems.append(Problem("same-device-twice", message, device.where))
    return problems


# Interface pages.


def _interfaces(
    pages: list[int], ring_ref: int, read_page: Callable[[int], bytes]
) -> list[tuple[int, int]] | None:
    found = []
    for page in pages:
        content = read_page(page)
        if len(content) < PAGE_SIZE:
            return None
        n_ring = _ring_pages(content, ring_ref)
        if n_ring:
            found.append((page, n_ring))
    return found


def _ring_pages(content: bytes, ring_ref: int) -> int:
    """The number of ring pages that an interface page names, 0 if this can't be one."""
    fields = INTERFACE.decode(content)
    order: int = fields["ring_order"]
    if not MIN_RING_ORDER <= order <= MAX_RING_ORDER:
        return 0
    first = INTERFACE.size // 4
    refs = memoryview(content).cast("I")[first : first + (1 << order)].tolist()
    if not 0 < min(refs) <= max(refs) < _MAX_RING_REF:
        return 0
    if ring_ref in refs or len(set(refs)) < len(refs):
        return 0
    half = PAGE_SIZE << order >> 1
    pending = (fields["in_prod"] - fields["in_cons"], fields["out_prod"] - fields["out_cons"])
    return 1 << order if all(count & _U32 <= half for count in pending) else 0


def _stray_interfaces(
    devices: list[_Device], owners: bytes, read_page: Callable[[int], bytes]
) -> list[int]:
    """Pages that look like an interface and are not the only one of a device."""
    settled = {device.index for device in devices if len(device.interfaces or ()) == 1}
    strays = []
    for page, owner in enumerate(owners):
        content = b"" if owner in settled else read_page(page)
        if len(content) == PAGE_SIZE and _ring_pages(content, 0):
            strays.append(page)
    return strays


# What is missing.


def _ring_problems(device: _Device, owners: bytes) -> list[Problem]:
    """A device that has its interface page must have the ring pages too."""
    assert device.interfaces
    interface, n_ring = min(device.interfaces, key=lambda found: found[1])
    missing = 1 + n_ring - len(device.pages)
    if missing <= 0:
        return []
    rest = [page for page in device.pages if page != interface] or [interface + 1]
    runs = []
    # Rings lie in one run: behind the interface page, or wherever the rest of the pages is.
    for first in (interface + 1, rest[0], rest[-1] - n_ring + 1):
        if first >= 0 and first + n_ring <= len(owners):
            run = [page for page in range(first, first + n_ring) if page not in rest]
            if len(run) == missing and interface not in run:
                runs.append(run)
    if not runs:
        message = f"{missing} of {n_ring} ring pages of record {device.index} are not its own"
        return [Problem("page-two-users", message, device.where)]
    taken = max(runs, key=lambda run: _is_taken(run, owners))
    return [_two_users("ring page", page, device, owners) for page in taken]


def _is_taken(run: list[int], owners: bytes) -> tuple[bool, bool]:
    """How much it looks as if others took these pages: they have them, as the end of a run."""
    owned = all(owners[page] != PAGE_FREE for page in run)
    return owned, owned and run[0] > 0 and owners[run[0] - 1] == owners[run[0]]


def _lost_interface_problems(device: _Device, strays: list[int], owners: bytes) -> list[Problem]:
    """A device none of whose pages is its interface: another has that, or has overwritten it."""
    for page in strays:
        if page not in device.pages:
            return [_two_users("interface page", page, device, owners)]
    if 0 not in device.pages and len(device.pages) in _RING_SIZES:
        return [_two_users("interface page, once page", 0, device, owners)]
    return []


def _two_users(what: str, page: int, device: _Device, owners: bytes) -> Problem:
    owner = owners[page]
    whose = "nobody" if owner == PAGE_FREE else f"record {owner}"
    message = f"the {what} {page} of record {device.index} belongs to {whose}"
    return Problem("page-two-users", message, PG2REC_OFFSET + page)
