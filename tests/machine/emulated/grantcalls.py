"""Grant operations as a guest of the tests makes them, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from machine.emulated.guests import Guest, World

from xenlive.abi.grant_table import (
    GTF_permit_access,
)
from xenlive.abi.hypercalls import grant_table as abi
from xenlive.abi.hypercalls.xen import (
    DOMID_SELF,
)

GRANT = "grant_table_op"
# A hole of the guests in these tests, where foreign pages go.
HOLE = 0x2000_0000
PAGE_GFN = 0x100
REF = 8


@pytest.fixture
def world() -> Iterator[World]:
    made = World(3)
    yield made
    made.close()


@pytest.fixture
def ours(world: World) -> Guest:
    return world.guests[0]


@pytest.fixture
def theirs(world: World) -> Guest:
    return world.guests[1]


def words(guest: Guest, ref: int) -> memoryview:
    """An entry of version 1 as two words."""
    page = guest.domain.grants.shared_view()[ref * 8 // 4096].cast("I")
    return page[ref % 512 * 2 : ref % 512 * 2 + 2]


def grant(guest: Guest, domid: int, gfn: int = PAGE_GFN, ref: int = REF, flags: int = 0) -> int:
    """Grants a page with an entry of version 1."""
    entry = words(guest, ref)
    entry[1] = gfn
    entry[0] = GTF_permit_access | flags | domid << 16
    return ref


def flags_of(guest: Guest, ref: int) -> int:
    return words(guest, ref)[0] & 0xFFFF


def map_ref(guest: Guest, dom: int, ref: int, /, **fields: Any) -> dict[str, Any]:
    """One map operation's answer (`map_grant_ref`)."""
    known = {"host_addr": HOLE, "flags": abi.GNTMAP_host_map, "ref": ref, "dom": dom} | fields
    at = guest.put(abi.GNTTAB_MAP_GRANT_REF, **known)
    assert guest.call(GRANT, abi.GNTTABOP_map_grant_ref, at, 1) == 0
    return guest.get(abi.GNTTAB_MAP_GRANT_REF)


def unmap(guest: Guest, handle: int, host_addr: int = HOLE) -> int:
    at = guest.put(abi.GNTTAB_UNMAP_GRANT_REF, handle=handle, host_addr=host_addr)
    assert guest.call(GRANT, abi.GNTTABOP_unmap_grant_ref, at, 1) == 0
    return int(guest.get(abi.GNTTAB_UNMAP_GRANT_REF)["status"])


def set_version(guest: Guest, version: int) -> tuple[int, int]:
    at = guest.put(abi.GNTTAB_SET_VERSION, version=version)
    result = guest.call(GRANT, abi.GNTTABOP_set_version, at, 1)
    return result, guest.get(abi.GNTTAB_SET_VERSION)["version"]


def v2(guest: Guest, ref: int, layout: Any, **fields: int) -> None:
    """Fills an entry of version 2 in."""
    known = layout.decode(bytes(16)) | fields
    page = guest.domain.grants.shared_view()[ref // 256]
    page[ref % 256 * 16 : ref % 256 * 16 + 16] = layout.encode(**known)


def copy(guest: Guest, **fields: int) -> int:
    """One copy's status (`gnttab_copy_one`)."""
    layout = abi.GNTTAB_COPY if guest.is_64bit else abi.GNTTAB_COPY_32
    at = guest.put(layout, **fields)
    assert guest.call(GRANT, abi.GNTTABOP_copy, at, 1) == 0
    return int(guest.get(layout)["status"])


INTO_REF = {
    "source_u": 0x20,
    "source_domid": DOMID_SELF,
    "dest_u": REF,
    "dest_domid": 2,
    "len": 6,
    "flags": abi.GNTCOPY_dest_gref,
}
FROM_REF = {
    "source_u": REF,
    "source_domid": 2,
    "dest_u": 0x20,
    "dest_domid": DOMID_SELF,
    "len": 6,
    "flags": abi.GNTCOPY_source_gref,
}
