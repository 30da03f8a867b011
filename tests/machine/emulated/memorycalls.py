"""Memory operations as a guest of the tests makes them."""

from __future__ import annotations

import struct

from machine.emulated.calls import form
from machine.emulated.guests import MEMORY_BYTES, Guest, World

from xenlive.abi.hypercalls import memory as abi
from xenlive.abi.hypercalls.grant_table import GNTMAP_host_map
from xenlive.abi.hypercalls.xen import (
    DOMID_SELF,
)

MEMORY = "memory_op"
LIST = 0x9000
PAGES = MEMORY_BYTES >> 12
OWNED = PAGES + 8 + 9  # RAM, special pages, ACPI
EXTENT = 1 << abi.MEMOP_EXTENT_SHIFT


DECREASE, POPULATE = abi.XENMEM_decrease_reservation, abi.XENMEM_populate_physmap
INCREASE = abi.XENMEM_increase_reservation


def put_frames(guest: Guest, frames: list[int], at: int = LIST) -> int:
    size = "Q" if guest.is_64bit else "I"
    guest.write_virtual(at, struct.pack(f"<{len(frames)}{size}", *frames))
    return at


def reserve(guest: Guest, cmd: int, frames: list[int], **fields: int) -> int:
    layout = form(guest, abi.XEN_MEMORY_RESERVATION, abi.XEN_MEMORY_RESERVATION_32)
    known = {"extent_start": put_frames(guest, frames), "nr_extents": len(frames)}
    return guest.op(MEMORY, cmd, layout, **(known | {"domid": DOMID_SELF} | fields))


def add(guest: Guest, space: int, idx: int, gpfn: int, **fields: int) -> int:
    layout = form(guest, abi.XEN_ADD_TO_PHYSMAP, abi.XEN_ADD_TO_PHYSMAP_32)
    known = {"domid": DOMID_SELF, "space": space, "idx": idx, "gpfn": gpfn} | fields
    return guest.op(MEMORY, abi.XENMEM_add_to_physmap, layout, **known)


def remove(guest: Guest, gpfn: int, domid: int = DOMID_SELF) -> int:
    layout = form(guest, abi.XEN_REMOVE_FROM_PHYSMAP, abi.XEN_REMOVE_FROM_PHYSMAP_32)
    return guest.op(MEMORY, abi.XENMEM_remove_from_physmap, layout, domid=domid, gpfn=gpfn)


def ask(guest: Guest, cmd: int, domid: int = DOMID_SELF) -> int:
    return guest.op(MEMORY, cmd, abi.XEN_MEMORY_DOMAIN, domid=domid)


def grant_and_map(world: World, gfn: int) -> None:
    """Has guest 1 map a page of guest 2 at `gfn`."""
    ours, theirs = world.guests
    theirs.domain.grants.seed(8, 1, 0x10)
    ours.domain.mappings.map(2, 8, GNTMAP_host_map, gfn << 12)
