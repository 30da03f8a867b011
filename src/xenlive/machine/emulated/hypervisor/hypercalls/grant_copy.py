"""GNTTABOP_copy: bytes from page to page, either of them granted.

Specification: Xen 4.17 `gnttab_copy`, `gnttab_copy_one` and what they call in
`xen/common/grant_table.c`.

**Invariants.** Only the caller's own pages go by frame number, and both ends lie in one page each.
A grant is in use as long as the copy takes, no longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xenlive.abi.hypercalls import grant_table as abi
from xenlive.abi.hypercalls.xen import DOMID_SELF
from xenlive.errors import HypercallError
from xenlive.machine.emulated.hypervisor.grants import GrantError
from xenlive.memory.address import PAGE_SIZE

if TYPE_CHECKING:
    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.hypervisor.grants import GrantTable
    from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller
    from xenlive.machine.emulated.space import MachineFrame

_COPY = "GNTTABOP_copy"


@dataclass(slots=True)
class _End:
    """One end of a copy: `length` bytes from `start` of `frame` may be used."""

    frame: MachineFrame
    start: int
    length: int
    pinned: tuple[GrantTable, int, bool] | None

    def release(self) -> None:
        """Ends the use of the grant, if it was one."""
        if self.pinned is not None:
            table, ref, readonly = self.pinned
            table.unpin(ref, readonly)


def copy(caller: Caller, arg: int, count: int) -> None:
    """Makes `count` copies, each with a status of its own."""
    layout = caller.form(abi.GNTTAB_COPY, abi.GNTTAB_COPY_32)
    for place in range(arg, arg + count * layout.size, layout.size):
        caller.work()
        op = caller.read_struct(layout, place)
        status = abi.GNTST_okay
        try:
            _copy_one(caller.domain, op)
        except GrantError as refusal:
            caller.domain.last_refusal = refusal
            status = refusal.status
        caller.write_field(layout, place, "status", status)


def _copy_one(domain: Domain, op: dict[str, Any]) -> None:
    by_ref = [bool(op["flags"] & flag) for flag in (abi.GNTCOPY_source_gref, abi.GNTCOPY_dest_gref)]
    owners = [
        _owner(domain, op[f"{name}_domid"], is_ref)
        for name, is_ref in zip(("source", "dest"), by_ref, strict=True)
    ]
    source = _end(domain, owners[0], op["source_u"], by_ref[0], readonly=True)
    try:
        dest = _end(domain, owners[1], op["dest_u"], by_ref[1], readonly=False)
        try:
            _move(op, source, dest)
        finally:
            dest.release()
    finally:
        source.release()


def _owner(domain: Domain, domid: int, by_ref: bool) -> Domain:
    try:
        owner = domain.find(_COPY, domid)
    except HypercallError as unknown:
        raise GrantError(_COPY, abi.GNTST_bad_domain, unknown.why) from None
    if domid != DOMID_SELF and not by_ref:
        why = f"a page of domain {domid} by its frame number"
        raise GrantError(_COPY, abi.GNTST_permission_denied, why)
    return owner


def _end(domain: Domain, owner: Domain, what: int, by_ref: bool, readonly: bool) -> _End:
    """`gnttab_copy_claim_buf`."""
    if by_ref:
        ref = what & 0xFFFFFFFF
        table = owner.grants
        active = table.pin(_COPY, ref, domain.domid, readonly, mapping=False)
        return _End(active.frame, active.start, active.length, (table, ref, readonly))
    mapping = owner.space.lookup(what)
    if mapping is None or mapping.is_foreign:
        raise GrantError(_COPY, abi.GNTST_bad_page, f"frame {what:#x}")
    return _End(mapping.frame, 0, PAGE_SIZE, None)


def _move(op: dict[str, Any], source: _End, dest: _End) -> None:
    """`gnttab_copy_buf`."""
    length, read_at, write_at = op["len"], op["source_offset"], op["dest_offset"]
    if max(read_at, write_at) + length > PAGE_SIZE:
        raise GrantError(_COPY, abi.GNTST_bad_copy_arg, "beyond the end of a page")
    for end, offset in ((source, read_at), (dest, write_at)):
        if offset < end.start or offset + length > end.start + end.length:
            why = f"{length} bytes at {offset} are not all granted"
            raise GrantError(_COPY, abi.GNTST_general_error, why)
    data = bytes(source.frame.view[read_at : read_at + length])
    dest.frame.view[write_at : write_at + length] = data
    dest.frame.home.tell_wrote(dest.frame)
