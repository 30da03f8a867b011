"""Hypercall 20, grant_table_op.

Specification: Xen 4.17 `hvm_grant_table_op` of `xen/arch/x86/hvm/hypercall.c`, which lets HVM
guests have eight of the operations, `do_grant_table_op` and what it calls in
`xen/common/grant_table.c`, and `xen/common/compat/grant_table.c`.

**Invariants.** Each operation of a list has a status of its own, and a refusal of one does not stop
the others: only what can't be read or stored is -EFAULT. Operations before that are done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.hypercalls import grant_table as abi
from xenlive.abi.hypercalls.xen import XEN_EINVAL, XEN_ENOSYS
from xenlive.errors import HypercallError
from xenlive.machine.emulated.hypervisor.grants import GrantError
from xenlive.machine.emulated.hypervisor.hypercalls.caller import FAULTS
from xenlive.machine.emulated.hypervisor.hypercalls.grant_copy import copy

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller

_NO_FRAME = (1 << 64) - 1


def grant_table_op(caller: Caller, cmd: int, arg: int, count: int) -> int:
    """`count` operations of one kind, at `arg` one after the other."""
    cmd, count = cmd & 0xFFFFFFFF, count & 0xFFFFFFFF
    handler = _OPERATIONS.get(cmd)
    if handler is None:
        raise HypercallError("grant_table_op", XEN_ENOSYS, f"no operation {cmd} for HVM guests")
    if count >> 31:
        raise HypercallError("grant_table_op", XEN_EINVAL, f"{count} operations")
    handler(caller, arg, count)
    return 0


def _map(caller: Caller, arg: int, count: int) -> None:
    layout = abi.GNTTAB_MAP_GRANT_REF
    for place in range(arg, arg + count * layout.size, layout.size):
        caller.work()
        op = caller.read_struct(layout, place)
        try:
            handle, address = caller.domain.mappings.map(
                op["dom"], op["ref"], op["flags"], op["host_addr"]
            )
            op.update(handle=handle, dev_bus_addr=address, status=abi.GNTST_okay)
        except GrantError as refusal:
            caller.domain.last_refusal = refusal
            op["status"] = refusal.status
        caller.write(place, layout.encode(**op))


def _unmap(caller: Caller, arg: int, count: int) -> None:
    layout = abi.GNTTAB_UNMAP_GRANT_REF
    for place in range(arg, arg + count * layout.size, layout.size):
        caller.work()
        op = caller.read_struct(layout, place)
        status = abi.GNTST_okay
        try:
            caller.domain.mappings.unmap(op["handle"], op["host_addr"])
        except GrantError as refusal:
            caller.domain.last_refusal = refusal
            status = refusal.status
        caller.write_field(layout, place, "status", status)


def _setup_table(caller: Caller, arg: int, count: int) -> None:
    if not count and not caller.is_64bit:
        return  # compat_grant_table_op never gets there
    _validate_one("GNTTABOP_setup_table", count)
    layout = caller.form(abi.GNTTAB_SETUP_TABLE, abi.GNTTAB_SETUP_TABLE_32)
    op = caller.read_struct(layout, arg)
    status = abi.GNTST_okay
    domain = _domain(caller, op["dom"])
    if isinstance(domain, int):
        status = domain
    elif not domain.grants.grow(op["nr_frames"]):
        status = abi.GNTST_general_error
    else:
        status = _tell_frames(caller, domain, op["frame_list"], op["nr_frames"])
    caller.write_field(layout, arg, "status", status)


def _tell_frames(caller: Caller, domain: Domain, frame_list: int, count: int) -> int:
    """Where the table's pages stand. The status that Xen gives if that can't be stored."""
    status = abi.GNTST_okay
    for index in range(count):
        frame = domain.grants.shared_frame(index)
        gfn = domain.space.gfn_of(frame) if frame is not None else None
        try:
            caller.write_word(frame_list, index, _NO_FRAME if gfn is None else gfn)
        except FAULTS:
            # compat_grant_table_op sets the status of its own copy, which nobody gets.
            status = abi.GNTST_bad_virt_addr if caller.is_64bit else abi.GNTST_okay
    return status


def _query_size(caller: Caller, arg: int, count: int) -> None:
    _validate_one("GNTTABOP_query_size", count)
    layout = abi.GNTTAB_QUERY_SIZE
    op = caller.read_struct(layout, arg)
    domain = _domain(caller, op["dom"])
    if isinstance(domain, int):
        op["status"] = domain
    else:
        op.update(
            nr_frames=domain.grants.n_frames,
            max_nr_frames=domain.grants.max_frames,
            status=abi.GNTST_okay,
        )
    caller.write(arg, layout.encode(**op))


def _domain(caller: Caller, domid: int) -> Domain | int:
    """A domain whose table the caller may ask of, or the status that says why not."""
    try:
        domain = caller.domain.find("grant_table_op", domid)
    except HypercallError:
        return abi.GNTST_bad_domain
    try:
        caller.domain.validate_target("grant_table_op", domain)
    except HypercallError:
        return abi.GNTST_permission_denied
    return domain


def _set_version(caller: Caller, arg: int, count: int) -> None:
    layout = abi.GNTTAB_SET_VERSION
    version = caller.read_struct(layout, arg)["version"]
    try:
        caller.domain.grants.set_version(version)
    finally:
        caller.write_field(layout, arg, "version", caller.domain.grants.version)


def _get_version(caller: Caller, arg: int, count: int) -> None:
    call, layout = "GNTTABOP_get_version", abi.GNTTAB_GET_VERSION
    domain = caller.domain.find(call, caller.read_struct(layout, arg)["dom"])
    caller.domain.validate_target(call, domain)
    caller.write_field(layout, arg, "version", domain.grants.version)


def _swap(caller: Caller, arg: int, count: int) -> None:
    layout = abi.GNTTAB_SWAP_GRANT_REF
    for place in range(arg, arg + count * layout.size, layout.size):
        caller.work()
        op = caller.read_struct(layout, place)
        status = _swap_status(caller.domain, op["ref_a"], op["ref_b"])
        caller.write_field(layout, place, "status", status)


def _swap_status(domain: Domain, ref_a: int, ref_b: int) -> int:
    """`swap_grant_ref`."""
    table = domain.grants
    if max(ref_a, ref_b) >= table.n_entries:
        return abi.GNTST_bad_gntref
    if ref_a == ref_b:
        return abi.GNTST_okay
    if table.is_pinned(ref_a) or table.is_pinned(ref_b):
        return abi.GNTST_eagain
    table.swap(ref_a, ref_b)
    return abi.GNTST_okay


def _validate_one(call: str, count: int) -> None:
    if count != 1:
        raise HypercallError(call, XEN_EINVAL, f"{count} operations, not one")


_OPERATIONS: dict[int, Callable[[Caller, int, int], None]] = {
    abi.GNTTABOP_map_grant_ref: _map,
    abi.GNTTABOP_unmap_grant_ref: _unmap,
    abi.GNTTABOP_setup_table: _setup_table,
    abi.GNTTABOP_copy: copy,
    abi.GNTTABOP_query_size: _query_size,
    abi.GNTTABOP_set_version: _set_version,
    abi.GNTTABOP_get_version: _get_version,
    abi.GNTTABOP_swap_grant_ref: _swap,
}
