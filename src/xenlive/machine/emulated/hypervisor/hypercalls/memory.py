"""Hypercall 12, memory_op: how much memory there is, getting and giving it back.

Specification: Xen 4.17 `do_memory_op` and what it calls in `xen/common/memory.c`, `arch_memory_op`
of `xen/arch/x86/mm.c`, `hvm_memory_op` of `xen/arch/x86/hvm/hypercall.c`, and their forms for 32
bit guests in `xen/common/compat/memory.c`.

**Invariants.** Reservations answer how many extents were done, never an error: also for an argument
that can't be read. What the guest frames stand for is changed in `physmap.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenlive.abi.hypercalls import memory as abi
from xenlive.abi.hypercalls.xen import (
    XEN_EACCES,
    XEN_EINVAL,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
)
from xenlive.errors import BadAddress, HypercallError
from xenlive.machine.emulated.hypervisor.hypercalls import physmap
from xenlive.machine.emulated.hypervisor.hypercalls.caller import FAULTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.abi.layout import Layout
    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller
    from xenlive.machine.emulated.space import MachineFrame

# CONFIG_DOMU_MAX_ORDER: a guest gets at most 2 MiB at once.
_MAX_ORDER = 9
_MAX_EXTENTS = 0xFFFFFFFF >> abi.MEMOP_EXTENT_SHIFT
# Addresses of so many bits are all memory of the machine, and of so few are none.
_MACHINE_BITS = 30
_PAGE_BITS = 12
_MACHINE_PAGES = 1 << 18


def memory_op(caller: Caller, cmd: int, arg: int) -> int:
    """One operation on the guest's memory; the upper bits of `cmd` say where to go on."""
    operation = cmd & abi.MEMOP_CMD_MASK
    start = cmd >> abi.MEMOP_EXTENT_SHIFT
    if operation in _RESERVATIONS:
        return _reservation(caller, operation, arg, start)
    if operation in (abi.XENMEM_machine_memory_map, abi.XENMEM_machphys_mapping):
        raise HypercallError("memory_op", XEN_ENOSYS, "not for HVM guests")
    handler = _OPERATIONS.get(operation)
    if handler is None or (operation == abi.XENMEM_claim_pages and not caller.is_64bit):
        raise HypercallError("memory_op", XEN_ENOSYS, f"no operation {operation}")
    return handler(caller, arg, start)


# ---- reservations --------------------------------------------------------------------------------


def _reservation(caller: Caller, operation: int, arg: int, start: int) -> int:
    """More, or less memory, extent by extent: how many are done, whatever stopped it."""
    layout = caller.form(abi.XEN_MEMORY_RESERVATION, abi.XEN_MEMORY_RESERVATION_32)
    try:
        op = caller.read_struct(layout, arg)
        domain = caller.domain.find("memory_op", op["domid"])
        caller.domain.validate_target("memory_op", domain)
    except (HypercallError, *FAULTS):
        return start
    too_many = op["nr_extents"] > _MAX_EXTENTS or start >= op["nr_extents"]
    if too_many or not _flags_are_good(op["mem_flags"]):
        return start
    if op["extent_order"] > _MAX_ORDER:
        # Populating on demand is not for oneself, whatever the order.
        return start
    one = _RESERVATIONS[operation]
    for index in range(start, op["nr_extents"]):
        caller.work()
        try:
            if not one(caller, domain, op, index):
                return index
        except (BadAddress, *FAULTS):
            return index
    return int(op["nr_extents"])


def _flags_are_good(flags: int) -> bool:
    """What `construct_memop_from_reservation` and `propagate_node` let a guest ask for."""
    bits = flags & 0xFF
    if bits and bits < _MACHINE_BITS and bits <= _PAGE_BITS:
        return False
    if flags & abi.XENMEMF_vnode:
        return True
    node = (flags >> 8) - 1 & 0xFF
    return node == 0xFF or not flags & abi.XENMEMF_exact_node_request


def _increase(caller: Caller, domain: Domain, op: dict[str, Any], index: int) -> bool:
    """Pages of its own that stand behind no guest frame; the guest is not told which."""
    taken: list[MachineFrame] = []
    for _ in range(1 << op["extent_order"]):
        caller.work()
        frame = domain.space.allocate()
        if frame is None:
            for given in taken:
                domain.space.give_up(given)
            return False
        taken.append(frame)
    return True


def _decrease(caller: Caller, domain: Domain, op: dict[str, Any], index: int) -> bool:
    first = caller.read_word(op["extent_start"], index)
    for gfn in range(first, first + (1 << op["extent_order"])):
        caller.work()
        if physmap.remove_page(domain.space, gfn):
            return False
    return True


def _populate(caller: Caller, domain: Domain, op: dict[str, Any], index: int) -> bool:
    first = caller.read_word(op["extent_start"], index)
    if op["mem_flags"] & abi.XENMEMF_populate_on_demand:
        return False  # not on oneself
    count = 1 << op["extent_order"]
    if domain.space.total_pages + count > domain.space.n_ram:
        return False
    physmap.validate_places(domain, [first + i for i in range(count)])
    for gfn in range(first, first + count):
        caller.work()
        if not domain.space.populate(gfn):
            return False
    return True


_RESERVATIONS: dict[int, Callable[[Caller, Domain, dict[str, Any], int], bool]] = {
    abi.XENMEM_increase_reservation: _increase,
    abi.XENMEM_decrease_reservation: _decrease,
    abi.XENMEM_populate_physmap: _populate,
}


def _exchange(caller: Caller, arg: int, start: int) -> int:
    """Pages for other pages: refused to an HVM guest, as soon as there is one (`steal_page`)."""
    call = "XENMEM_exchange"
    layout = caller.form(abi.XEN_MEMORY_EXCHANGE, abi.XEN_MEMORY_EXCHANGE_32)
    part = caller.form(abi.XEN_MEMORY_RESERVATION, abi.XEN_MEMORY_RESERVATION_32)
    op = _read_struct_unstarted(caller, call, layout, arg, start)
    given, wanted = part.decode(op["in"]), part.decode(op["out"])
    done = op["nr_exchanged"]
    orders = given["extent_order"], wanted["extent_order"]
    if max(orders) > _MAX_ORDER:
        raise HypercallError(call, XEN_EPERM, f"orders {orders}")
    sizes = [p["nr_extents"] << p["extent_order"] for p in (given, wanted)]
    wide = max(sizes) >> 8 * caller.word_bytes
    if done > given["nr_extents"] or given["domid"] != wanted["domid"] or wide:
        raise HypercallError(call, XEN_EINVAL, "sizes or domains don't fit")
    if sizes[0] != sizes[1] or not _flags_are_good(wanted["mem_flags"]):
        raise HypercallError(call, XEN_EINVAL, "sizes don't fit")
    if done == given["nr_extents"]:
        return 0
    domain = caller.domain.find(call, given["domid"])
    caller.domain.validate_target(call, domain)
    chunk_order = max(orders[1] - orders[0], 0)
    if done >> chunk_order == given["nr_extents"] >> chunk_order:
        caller.write_field(layout, arg, "nr_exchanged", given["nr_extents"])
        return 0
    caller.write_field(layout, arg, "nr_exchanged", done >> chunk_order << chunk_order)
    first = caller.read_word(given["extent_start"], done >> chunk_order << chunk_order)
    if domain.space.lookup(first) is None:
        raise HypercallError(call, XEN_EINVAL, f"frame {first:#x}")
    raise HypercallError(call, XEN_EOPNOTSUPP, "pages of an HVM guest are not for exchange")


# ---- questions -----------------------------------------------------------------------------------


def _maximum_ram_page(caller: Caller, arg: int, start: int) -> int:
    _validate_no_start("XENMEM_maximum_ram_page", start)
    return _MACHINE_PAGES


def _asked_of(caller: Caller, call: str, arg: int, start: int) -> Domain:
    _validate_no_start(call, start)
    domid = caller.read_struct(abi.XEN_MEMORY_DOMAIN, arg)["domid"]
    domain = caller.domain.find(call, domid)
    caller.domain.validate_target(call, domain)
    return domain


def _current_reservation(caller: Caller, arg: int, start: int) -> int:
    return _asked_of(caller, "XENMEM_current_reservation", arg, start).space.total_pages


def _maximum_reservation(caller: Caller, arg: int, start: int) -> int:
    return _asked_of(caller, "XENMEM_maximum_reservation", arg, start).space.n_ram


def _maximum_gpfn(caller: Caller, arg: int, start: int) -> int:
    return _asked_of(caller, "XENMEM_maximum_gpfn", arg, start).space.max_gfn


def _memory_map(caller: Caller, arg: int, start: int) -> int:
    _validate_whole("XENMEM_memory_map", start)
    layout = caller.form(abi.XEN_MEMORY_MAP, abi.XEN_MEMORY_MAP_32)
    op = caller.read_struct(layout, arg)
    if not caller.domain.e820:
        raise HypercallError("XENMEM_memory_map", XEN_ENOSYS, "the domain has none")
    told = caller.domain.e820[: op["nr_entries"]]
    entries = b"".join(abi.E820_ENTRY.pack(*entry) for entry in told)
    if entries:
        caller.write(op["buffer"], entries)
    caller.write_field(layout, arg, "nr_entries", len(told))
    return 0


def _set_memory_map(caller: Caller, arg: int, start: int) -> int:
    _validate_whole("XENMEM_set_memory_map", start)
    return physmap.set_memory_map(caller, arg)


def _machphys_mfn_list(caller: Caller, arg: int, start: int) -> int:
    """Where Xen's own table of the machine is; this one has none, so the list is empty."""
    call = "XENMEM_machphys_mfn_list"
    _validate_whole(call, start)
    if not caller.is_64bit:
        return _machphys_compat_mfn_list(caller, arg, start)
    caller.read(arg, 24)
    caller.write(arg + 16, bytes(4))
    return 0


def _machphys_compat_mfn_list(caller: Caller, arg: int, start: int) -> int:
    """The same table for PV guests of 32 bits, whom Debian's Xen does not run."""
    call = "XENMEM_machphys_compat_mfn_list"
    _validate_whole(call, start)
    raise HypercallError(call, XEN_EOPNOTSUPP, "no PV guests of 32 bits")


def _none_shared(caller: Caller, arg: int, start: int) -> int:
    """Pages that domains share by being alike: there are none."""
    _validate_whole("XENMEM_get_sharing_shared_pages", start)
    return 0


def _pod_target(call: str) -> Callable[[Caller, int, int], int]:
    def refuse(caller: Caller, arg: int, start: int) -> int:
        _validate_whole(call, start)
        layout = caller.form(abi.XEN_POD_TARGET, abi.XEN_POD_TARGET_32)
        domain = caller.domain.find(call, caller.read_struct(layout, arg)["domid"])
        errno = XEN_EINVAL if domain.is_privileged else XEN_EPERM
        raise HypercallError(call, errno, "not for guests")

    return refuse


def _access_op(caller: Caller, arg: int, start: int) -> int:
    call = "XENMEM_access_op"
    head = caller.read(arg, 24)
    caller.domain.find_remote(call, int.from_bytes(head[2:4], "little"))
    raise HypercallError(call, XEN_EINVAL, "the machine can't tell accesses")


def _claim_pages(caller: Caller, arg: int, start: int) -> int:
    call = "XENMEM_claim_pages"
    _validate_no_start(call, start)
    op = caller.read_struct(abi.XEN_MEMORY_RESERVATION, arg)
    if op["extent_start"] or op["extent_order"] or op["mem_flags"]:
        raise HypercallError(call, XEN_EINVAL, "more than a number of pages")
    try:
        caller.domain.find_by_id(call, op["domid"])
    except HypercallError as unknown:
        raise HypercallError(call, XEN_EINVAL, unknown.why) from None
    raise HypercallError(call, XEN_EPERM, "not for guests")


def _get_vnumainfo(caller: Caller, arg: int, start: int) -> int:
    call = "XENMEM_get_vnumainfo"
    op = _read_struct_unstarted(caller, call, abi.XEN_VNUMA_TOPOLOGY_INFO, arg, start)
    if op["pad"]:
        raise HypercallError(call, XEN_EINVAL, "padding is not zero")
    domain = caller.domain.find(call, op["domid"])
    caller.domain.validate_target(call, domain)
    raise HypercallError(call, XEN_EOPNOTSUPP, "the guest has no nodes")


def _reserved_device_memory_map(caller: Caller, arg: int, start: int) -> int:
    call = "XENMEM_reserved_device_memory_map"
    _validate_no_start(call, start)
    layout = caller.form(abi.XEN_RESERVED_DEVICE_MEMORY_MAP, abi.XEN_RESERVED_DEVICE_MEMORY_MAP_32)
    if caller.read_struct(layout, arg)["flags"] & ~abi.XENMEM_RDM_ALL:
        raise HypercallError(call, XEN_EINVAL, "flags")
    caller.write_field(layout, arg, "nr_entries", 0)
    return 0


def _acquire_resource(caller: Caller, arg: int, start: int) -> int:
    """Nothing for a guest whose own memory is translated (`arch_acquire_resource_check`)."""
    if not caller.is_64bit:
        caller.read_struct(abi.XEN_MEM_ACQUIRE_RESOURCE_32, arg)
    raise HypercallError("XENMEM_acquire_resource", XEN_EACCES, "not for HVM guests")


def _read_struct_unstarted(
    caller: Caller, call: str, layout: Layout, arg: int, start: int
) -> dict[str, Any]:
    """A structure of a call that can't be gone on with: the form for 32 bit is read first."""
    if not caller.is_64bit:
        caller.read(arg, layout.size)
    _validate_no_start(call, start)
    return caller.read_struct(layout, arg)


def _validate_no_start(call: str, start: int) -> None:
    if start:
        raise HypercallError(call, XEN_EINVAL, "there is nothing to go on with")


def _validate_whole(call: str, start: int) -> None:
    """For operations that Xen knows by the whole command only."""
    if start:
        raise HypercallError(call, XEN_ENOSYS, "no such operation")


_OPERATIONS: dict[int, Callable[[Caller, int, int], int]] = {
    abi.XENMEM_maximum_ram_page: _maximum_ram_page,
    abi.XENMEM_current_reservation: _current_reservation,
    abi.XENMEM_maximum_reservation: _maximum_reservation,
    abi.XENMEM_machphys_mfn_list: _machphys_mfn_list,
    abi.XENMEM_add_to_physmap: physmap.add_to_physmap,
    abi.XENMEM_memory_map: _memory_map,
    abi.XENMEM_exchange: _exchange,
    abi.XENMEM_set_memory_map: _set_memory_map,
    abi.XENMEM_maximum_gpfn: _maximum_gpfn,
    abi.XENMEM_remove_from_physmap: physmap.remove_from_physmap,
    abi.XENMEM_set_pod_target: _pod_target("XENMEM_set_pod_target"),
    abi.XENMEM_get_pod_target: _pod_target("XENMEM_get_pod_target"),
    abi.XENMEM_get_sharing_freed_pages: _none_shared,
    abi.XENMEM_get_sharing_shared_pages: _none_shared,
    abi.XENMEM_access_op: _access_op,
    abi.XENMEM_add_to_physmap_batch: physmap.add_to_physmap_batch,
    abi.XENMEM_claim_pages: _claim_pages,
    abi.XENMEM_machphys_compat_mfn_list: _machphys_compat_mfn_list,
    abi.XENMEM_get_vnumainfo: _get_vnumainfo,
    abi.XENMEM_reserved_device_memory_map: _reserved_device_memory_map,
    abi.XENMEM_acquire_resource: _acquire_resource,
}
