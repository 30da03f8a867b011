"""What stands behind guest frames, changed by the guest: the part of memory_op that does so.

Specification: Xen 4.17 `xenmem_add_to_physmap`, `xenmem_add_to_physmap_batch`, `guest_remove_page`
of `xen/common/memory.c`, `xenmem_add_to_physmap_one` and `p2m_add_page` of
`xen/arch/x86/mm/p2m.c`, `XENMEM_set_memory_map` of `xen/arch/x86/mm.c`.

**Invariants.** Where a page is placed, what stood there goes first: RAM back to the machine, Xen's
own pages nowhere. A grant or a foreign page is not pushed aside: Xen kills the guest that tries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.hypercalls import memory as abi
from xenlive.abi.hypercalls.xen import (
    XEN_EACCES,
    XEN_EDOM,
    XEN_EILSEQ,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSYS,
    XEN_ENXIO,
    XEN_EOPNOTSUPP,
    XEN_EOVERFLOW,
    XEN_EPERM,
    XEN_EXDEV,
)
from xenlive.errors import BadAddress, HypercallError
from xenlive.machine.emulated.hypervisor.grantmap import DomainCrash
from xenlive.machine.emulated.space import RAM, XEN

if TYPE_CHECKING:
    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller
    from xenlive.machine.emulated.space import MachineFrame, Space

_ADD = "XENMEM_add_to_physmap"
_BATCH = "XENMEM_add_to_physmap_batch"
_U16 = 0xFFFF
_E820_MAX = 128


def remove_page(space: Space, gfn: int) -> int:
    """Takes a page from a guest frame, RAM back to the machine: 0, or an errno.

    `guest_remove_page`.
    """
    mapping = space.lookup(gfn)
    if mapping is None:
        return XEN_ENOENT
    if mapping.frame.home is not space:
        return XEN_ENXIO
    space.unhook(gfn)
    if mapping.frame.is_xen:
        # Its owner is Xen: the guest loses the mapping, and is told of a page that is not its own.
        return 0
    if not mapping.is_foreign:
        space.give_up(mapping.frame)
    return 0


def validate_places(domain: Domain, gfns: list[int]) -> None:
    """Lets no page be placed over a grant (`p2m_add_page`)."""
    for gfn in gfns:
        old = domain.space.lookup(gfn)
        if old is not None and old.is_foreign:
            raise DomainCrash(f"frame {gfn:#x} has a grant that was to be pushed aside")


def add_to_physmap(caller: Caller, arg: int, start: int) -> int:
    """Puts one of Xen's pages, or one or many of the guest's, behind a guest frame."""
    if start > _U16:
        raise HypercallError(_ADD, XEN_EDOM, f"start {start}")
    layout = caller.form(abi.XEN_ADD_TO_PHYSMAP, abi.XEN_ADD_TO_PHYSMAP_32)
    op = caller.read_struct(layout, arg)
    if op["space"] == abi.XENMAPSPACE_gmfn_foreign:
        raise HypercallError(_ADD, XEN_ENOSYS, "foreign pages go by the batch")
    domain = _target(caller, _ADD, op["domid"], op["space"])
    gfn, idx = op["gpfn"], op["idx"]
    if gfn == (1 << 64) - 1:
        raise HypercallError(_ADD, XEN_EINVAL, "no frame")
    if op["space"] != abi.XENMAPSPACE_gmfn_range:
        _add_one(domain, op["space"], idx, gfn)
        return 0
    if op["size"] < start:
        raise HypercallError(_ADD, XEN_EILSEQ, f"start {start} of {op['size']}")
    if max(gfn, idx) + op["size"] >> 64:
        raise HypercallError(_ADD, XEN_EOVERFLOW, "frames beyond 64 bits")
    for offset in range(start, op["size"]):
        caller.work()
        _add_one(domain, abi.XENMAPSPACE_gmfn, idx + offset, gfn + offset)
    return 0


def add_to_physmap_batch(caller: Caller, arg: int, start: int) -> int:
    """The same for lists of frames, with an error for each; the call itself succeeds."""
    if start > _U16:
        raise HypercallError(_BATCH, XEN_EDOM, f"start {start}")
    layout = caller.form(abi.XEN_ADD_TO_PHYSMAP_BATCH, abi.XEN_ADD_TO_PHYSMAP_BATCH_32)
    op = caller.read_struct(layout, arg)
    if op["space"] == abi.XENMAPSPACE_gmfn_range:
        raise HypercallError(_BATCH, XEN_EOPNOTSUPP, "a batch is no range")
    domain = _target(caller, _BATCH, op["domid"], op["space"])
    if op["size"] < start or (op["size"] == start and start):
        raise HypercallError(_BATCH, XEN_EILSEQ, f"start {start} of {op['size']}")
    for index in range(start, op["size"]):
        caller.work()
        idx = caller.read_word(op["idxs"], index)
        gfn = caller.read_word(op["gpfns"], index)
        if gfn == (1 << 64) - 1:
            raise HypercallError(_BATCH, XEN_EINVAL, "no frame")
        error = 0
        try:
            if op["space"] == abi.XENMAPSPACE_gmfn_foreign:
                raise HypercallError(_BATCH, XEN_EPERM, "foreign pages are not for guests")
            _add_one(domain, op["space"], idx, gfn)
        except HypercallError as refusal:
            error = -refusal.errno
        caller.write(op["errs"] + 4 * index, error.to_bytes(4, "little", signed=True))
    return 0


def _target(caller: Caller, call: str, domid: int, space: int) -> Domain:
    domain = caller.domain.find(call, domid)
    validate_translated(call, domain)
    if space == abi.XENMAPSPACE_dev_mmio:
        raise HypercallError(call, XEN_EACCES, "devices are not for guests")
    caller.domain.validate_target(call, domain)
    return domain


def validate_translated(call: str, domain: Domain) -> None:
    """Refuses a domain whose frames are the machine's (`paging_mode_translate`)."""
    if domain.is_pv:
        raise HypercallError(call, XEN_EACCES, f"domain {domain.domid} is a PV guest")


def _add_one(domain: Domain, space: int, idx: int, gfn: int) -> None:
    """`xenmem_add_to_physmap_one`."""
    frame = _source(domain, space, idx)
    if frame is None:
        raise HypercallError(_ADD, XEN_EINVAL, f"no page {idx:#x} of space {space}")
    old_gfn = domain.space.gfn_of(frame)
    if space == abi.XENMAPSPACE_gmfn and old_gfn != idx:
        raise HypercallError(_ADD, XEN_EXDEV, f"frame {idx:#x} is a grant's")
    previous = domain.space.lookup(gfn)
    if previous is not None:
        _push_aside(domain, gfn, frame)
    try:
        domain.space.place(gfn, frame, XEN if frame.is_xen else RAM)
    except BadAddress as error:
        # The page was taken from where it stood before Xen found no table for the new place.
        if old_gfn is not None:
            domain.space.unhook(old_gfn)
        raise HypercallError(_ADD, XEN_ENOENT, str(error)) from None


def _push_aside(domain: Domain, gfn: int, frame: MachineFrame) -> None:
    previous = domain.space.lookup(gfn)
    if previous is None or previous.frame == frame:
        return
    if previous.frame.is_xen and not previous.is_foreign:
        domain.space.unhook(gfn)
        return
    if previous.is_foreign and previous.frame.home is domain.space:
        validate_places(domain, [gfn])
    errno = remove_page(domain.space, gfn)
    if errno:
        raise HypercallError(_ADD, errno, f"frame {gfn:#x} can't be taken away")


def _source(domain: Domain, space: int, idx: int) -> MachineFrame | None:
    if space == abi.XENMAPSPACE_shared_info:
        return domain.space.xen_frame(0) if idx == 0 else None
    if space == abi.XENMAPSPACE_grant_table:
        if domain.grants.version == 2 and idx & abi.XENMAPIDX_grant_table_status:
            return domain.grants.status_frame(idx & ~abi.XENMAPIDX_grant_table_status)
        return domain.grants.shared_frame(idx)
    if space == abi.XENMAPSPACE_gmfn:
        mapping = domain.space.lookup(idx)
        if mapping is not None and mapping.frame.home is domain.space:
            return mapping.frame
    return None


def remove_from_physmap(caller: Caller, arg: int, start: int) -> int:
    """Makes a guest frame a hole; the page stays the guest's, out of its reach."""
    call = "XENMEM_remove_from_physmap"
    layout = caller.form(abi.XEN_REMOVE_FROM_PHYSMAP, abi.XEN_REMOVE_FROM_PHYSMAP_32)
    if not caller.is_64bit:
        caller.read(arg, layout.size)
    if start:
        raise HypercallError(call, XEN_EINVAL, "there is nothing to go on with")
    op = caller.read_struct(layout, arg)
    domain = caller.domain.find(call, op["domid"])
    validate_translated(call, domain)
    caller.domain.validate_target(call, domain)
    mapping = domain.space.lookup(op["gpfn"])
    if mapping is None or mapping.is_foreign:
        raise HypercallError(call, XEN_ENOENT, f"frame {op['gpfn']:#x}")
    domain.space.unhook(op["gpfn"])
    return 0


def set_memory_map(caller: Caller, arg: int) -> int:
    """The map that later `XENMEM_memory_map` answers with."""
    call = "XENMEM_set_memory_map"
    layout = caller.form(abi.XEN_FOREIGN_MEMORY_MAP, abi.XEN_FOREIGN_MEMORY_MAP_32)
    op = caller.read_struct(layout, arg)
    part = caller.form(abi.XEN_MEMORY_MAP, abi.XEN_MEMORY_MAP_32).decode(op["map"])
    if part["nr_entries"] > _E820_MAX:
        raise HypercallError(call, XEN_EINVAL, f"{part['nr_entries']} entries")
    domain = caller.domain.find(call, op["domid"])
    caller.domain.validate_target(call, domain)
    size = abi.E820_ENTRY.size
    table = caller.read(part["buffer"], part["nr_entries"] * size)
    domain.e820 = [abi.E820_ENTRY.unpack(table, i * size) for i in range(part["nr_entries"])]
    return 0
