"""What is asked about grant_table_op."""

from __future__ import annotations

from kernels.probe.script import ARG, FRAME, HOLE, MORE, SELF, Script

from xenlive.abi.hypercalls import grant_table as abi

_CALL = "grant_table_op"
_TABLE = FRAME + 0x80
_HOST_MAP, _READ_ONLY, _DEVICE_MAP, _APPLICATION, _CONTAINS_PTE = 2, 4, 1, 8, 16
_PERMIT, _GTF_READ_ONLY = 1, 4
_COPY = {64: "QHHxxxxQHHxxxxHHhxx", 32: "IHHIHHHHhxx"}


def _map_table(s: Script) -> None:
    s.put("HHIWW", SELF, 0, 1, 0, _TABLE)
    s.call("table", "memory_op", 7, ARG)


def _grant(s: Script, ref: int, flags: int, domid: int, frame: int) -> None:
    """An entry of version 1."""
    s.put("HHI", flags, domid, frame, at=(_TABLE << 12) + 8 * ref)


def _flags(s: Script, name: str, ref: int) -> None:
    s.load(name, (_TABLE << 12) + 8 * ref, 8)


def _map(s: Script, name: str, ref: int, domid: int, flags: int, gfn: int) -> None:
    s.put("QIIHhIQ", gfn << 12, flags, ref, domid, 0x55, 0x55555555, 0x5555555555555555)
    s.call(name, _CALL, abi.GNTTABOP_map_grant_ref, ARG, 1, out=24)


def _unmap(s: Script, name: str, handle: int, gfn: int, bus: int = 0) -> None:
    s.put("QQIhxx", gfn << 12, bus, handle, 0x55)
    s.call(name, _CALL, abi.GNTTABOP_unmap_grant_ref, ARG, 1, out=24)


def tables(s: Script) -> None:
    """The table itself: its size, its version, and what all operations have in common."""
    s.read_in("hvm_grant_table_op, xen/arch/x86/hvm/hypercall.c; do_grant_table_op")
    for cmd in (*range(14), 100, 0xFFFFFFFF):
        for count in (0, 1, 2, 0x80000000, 0xFFFFFFFF):
            s.call(f"{cmd}: hole, {count}", _CALL, cmd, HOLE, count)
            s.call(f"{cmd} | 0x1000: hole, {count}", _CALL, cmd | 0x1000, HOLE, count)
    s.read_in("gnttab_query_size, gnttab_get_version, gnttab_setup_table, xen/common/grant_table.c")
    for name, who in s.domids():
        s.put("HxxIIhxx", who, 0x55, 0x55, 0x55)
        s.call(f"query size of {name}", _CALL, abi.GNTTABOP_query_size, ARG, 1, out=16)
        s.put("HHI", who, 0, 0x55)
        s.call(f"version of {name}", _CALL, abi.GNTTABOP_get_version, ARG, 1, out=8)
        for frames in (0, 1, 64, 65):
            s.store(MORE, b"\x55" * 16)
            s.put("HxxIhxxxxxxQ" if s.bits == 64 else "HxxIhxxI", who, frames, 0x55, MORE)
            size = 24 if s.bits == 64 else 16
            s.call(f"setup {frames} of {name}", _CALL, abi.GNTTABOP_setup_table, ARG, 1, out=size)
    s.put("HxxIhxxxxxxQ" if s.bits == 64 else "HxxIhxxI", SELF, 2, 0x55, HOLE)
    s.call("setup: list in a hole", _CALL, abi.GNTTABOP_setup_table, ARG, 1, out=12)
    for count in (0, 2):
        s.call(f"query size: {count}", _CALL, abi.GNTTABOP_query_size, ARG, count)
        s.call(f"version: {count}", _CALL, abi.GNTTABOP_get_version, ARG, count)
        s.call(f"setup: {count}", _CALL, abi.GNTTABOP_setup_table, ARG, count)
        s.call(f"set version: {count}", _CALL, abi.GNTTABOP_set_version, ARG, count)
    s.read_in("gnttab_set_version, xen/common/grant_table.c")
    _map_table(s)
    s.load("reserved entries", _TABLE << 12, 64)
    for version in (0, 3, 0xFFFFFFFF, 1, 2, 2, 1):
        name = f"set version {version}{s.again(f'set version {version}')}"
        s.put("I", version)
        s.call(name, _CALL, abi.GNTTABOP_set_version, ARG, 1, out=4)
        s.load(f"entries after {name}", _TABLE << 12, 64)
    s.put("I", 2)
    s.call("to version 2", _CALL, abi.GNTTABOP_set_version, ARG, 1)
    s.put("HHI", SELF, 0, 0)
    s.call("the version now", _CALL, abi.GNTTABOP_get_version, ARG, 1, out=8)
    for index in (0, 1, 1 << 31, 1 << 31 | 1):
        s.put("HHIWW", SELF, 0, 1, index, _TABLE + 8)
        s.call(f"frame {index:#x} of version 2", "memory_op", 7, ARG)
    s.put("IHhQ", 2, SELF, 0x55, MORE)
    s.call("status frames", _CALL, abi.GNTTABOP_get_status_frames, ARG, 1)
    s.read_in("gnttab_swap_grant_ref, xen/common/grant_table.c")
    for a, b in ((8, 9), (8, 8), (8, 1 << 20), (1 << 20, 8), (0, 9)):
        s.put("IIhxx", a, b, 0x55)
        s.call(f"swap {a}, {b}", _CALL, abi.GNTTABOP_swap_grant_ref, ARG, 1, out=12)


def mappings(s: Script) -> None:
    """Mapping one's own grants, and what is wrong with others."""
    _map_table(s)
    s.read_in("map_grant_ref, xen/common/grant_table.c")
    s.store(FRAME << 12, b"mine" * 4)
    _grant(s, 8, _PERMIT, s.me, FRAME)
    _grant(s, 9, _PERMIT | _GTF_READ_ONLY, s.me, FRAME + 1)
    _grant(s, 10, _PERMIT, 0, FRAME + 2)
    _grant(s, 11, _PERMIT, s.me, 0xD0000)
    _grant(s, 12, 0, s.me, FRAME + 3)
    _grant(s, 13, 2, s.me, FRAME + 3)
    _grant(s, 14, 3, s.me, FRAME + 3)
    _grant(s, 15, _PERMIT, s.me, 1 << 31)
    _grant(s, 16, _PERMIT | 0x100, s.me, FRAME + 4)
    place = FRAME + 0x40
    for name, who in s.domids()[2:]:
        _map(s, f"map of {name}", 8, who, _HOST_MAP, place)
    for flags in (
        0,
        _READ_ONLY,
        _DEVICE_MAP,
        _DEVICE_MAP | _HOST_MAP,
        _HOST_MAP | _APPLICATION,
        _HOST_MAP | _CONTAINS_PTE,
        _HOST_MAP | 32,
        _HOST_MAP | 1 << 16,
    ):
        _map(s, f"map: flags {flags:#x}", 8, s.me, flags, place)
    for ref in (*range(9, 17), 0, 1, 17, 511, 512, 1 << 20, 0xFFFFFFFF):
        _map(s, f"map: {ref}", ref, s.me, _HOST_MAP, place)
        _flags(s, f"entry {ref}", min(ref, 511))
    _map(s, "map: over what is there", 8, s.me, _HOST_MAP, place + 1)
    s.load("what is there now", (place + 1) << 12, 8)
    s.put("W", place + 2, at=MORE)
    if s.bits == 64:
        s.put("QQIIHHI", MORE, 3, 0, 0, SELF, 0, 0)
    else:
        s.put("IIIIHH", MORE, 3, 0, 0, SELF, 0)
    s.put("3W", place + 2, place + 3, place + 4, at=MORE)
    s.call("room", "memory_op", 1, ARG)
    _map(s, "map", 8, SELF, _HOST_MAP, place + 2)
    _flags(s, "entry mapped", 8)
    s.load("mapped", (place + 2) << 12, 8)
    s.load("where it was", FRAME << 12, 8)
    _map(s, "map: twice", 8, s.me, _HOST_MAP, place + 3)
    _map(s, "map: read-only", 9, s.me, _HOST_MAP | _READ_ONLY, place + 4)
    _flags(s, "entry mapped read-only", 9)
    _map(s, "map: in the air", 8, s.me, _HOST_MAP | _READ_ONLY, 1 << 28)
    s.put("HHHHQ", SELF, 0, 0, 0, place + 2)
    s.call("type of a mapped one", "hvm_op", 15, ARG, out=16)
    s.put("HHHHQ", SELF, 0, 0, 0, place + 4)
    s.call("type of a mapped read-only one", "hvm_op", 15, ARG, out=16)
    s.read_in("unmap_common, xen/common/grant_table.c")
    _unmap(s, "unmap: no handle", 0x999, place + 2)
    _unmap(s, "unmap: no handle at all", 0xFFFFFFFF, place + 2)
    _unmap(s, "unmap: elsewhere", 0, place + 9)
    _unmap(s, "unmap: the other's place", 0, place + 3)
    _unmap(s, "unmap", 0, place + 2)
    _unmap(s, "unmap: again", 0, place + 2)
    _flags(s, "entry unmapped", 8)
    s.load("unmapped", (place + 2) << 12, 8)
    s.load("where it was, unmapped", FRAME << 12, 8)
    for handle in range(1, 8):
        _unmap(s, f"unmap {handle}", handle, place + 3)
    _flags(s, "entry unmapped everywhere", 8)
    _unmap(s, "unmap 2 where it is", 2, place + 4)
    _unmap(s, "unmap 1 where it is", 1, place + 3)
    _flags(s, "entry at last", 8)
    s.load("where it was, at last", FRAME << 12, 8)
    s.read_in("gnttab_transfer, gnttab_cache_flush: not for HVM guests")
    s.put("WHxxIhxxxx" if s.bits == 64 else "IHxxIhxx", FRAME, 0, 8, 0)
    s.call("transfer", _CALL, abi.GNTTABOP_transfer, ARG, 1)


def odd_mapping(s: Script) -> None:
    """Mapping at an address that is none of a page, over one that is mapped already."""
    _map_table(s)
    s.read_in("create_grant_host_mapping, map_grant_ref, xen/common/grant_table.c")
    _grant(s, 8, _PERMIT, s.me, FRAME)
    for n in range(3):
        s.put("QIIHhIQ", (FRAME + 0x43) << 12 | 0x123, _HOST_MAP, 8, s.me, 0, 0, 0)
        s.flush()
        s.call(f"{n}", _CALL, abi.GNTTABOP_map_grant_ref, ARG, 1, out=24)


def copies(s: Script) -> None:
    """Copying."""
    _map_table(s)
    s.read_in("gnttab_copy_one, gnttab_copy_claim_buf, xen/common/grant_table.c")
    s.store(FRAME << 12, bytes(range(64)))
    _grant(s, 8, _PERMIT, s.me, FRAME)
    _grant(s, 9, _PERMIT | _GTF_READ_ONLY, s.me, FRAME + 1)
    _grant(s, 10, _PERMIT, 0, FRAME + 2)
    _grant(s, 11, _PERMIT, s.me, 0xD0000)
    to = FRAME + 0x20

    def copy(
        name: str, source: tuple[int, int, int], dest: tuple[int, int, int], length: int, flags: int
    ) -> None:
        s.put(_COPY[s.bits], *source, *dest, length, flags, 0x55)
        s.call(name, _CALL, abi.GNTTABOP_copy, ARG, 1, out=40 if s.bits == 64 else 24)

    def ref(number: int, who: int = SELF, offset: int = 0) -> tuple[int, int, int]:
        return number, who, offset

    copy("frame to frame", ref(FRAME), ref(to), 16, 0)
    s.load("copied", to << 12, 16)
    copy("grant to frame", ref(8), ref(to, SELF, 16), 16, 1)
    s.load("copied of a grant", to << 12, 32)
    copy("frame to grant", ref(FRAME), ref(8, SELF, 128), 16, 2)
    copy("grant to grant", ref(8), ref(9), 16, 3)
    copy("read-only grant to frame", ref(9), ref(to), 16, 1)
    copy("another's grant", ref(10), ref(to), 16, 1)
    copy("grant of a hole", ref(11), ref(to), 16, 1)
    copy("no such grant", ref(1 << 20), ref(to), 16, 1)
    copy("a free grant", ref(20), ref(to), 16, 1)
    copy("frame of a hole", ref(0xD0000), ref(to), 16, 0)
    copy("to a hole", ref(FRAME), ref(0xD0000), 16, 0)
    copy("over the end of the source", ref(FRAME, SELF, 4090), ref(to), 16, 0)
    copy("over the end of the target", ref(FRAME), ref(to, SELF, 4090), 16, 0)
    copy("offset beyond", ref(FRAME, SELF, 5000), ref(to), 0, 0)
    copy("nothing", ref(FRAME), ref(to), 0, 0)
    copy("more than a page", ref(FRAME), ref(to), 5000, 0)
    for name, who in s.domids()[1:]:
        copy(f"frame of {name}", ref(FRAME, who), ref(to), 16, 0)
        copy(f"frame to one of {name}", ref(FRAME), ref(to, who), 16, 0)
        copy(f"grant of {name}", ref(8, who), ref(to), 16, 1)
    for flags in (4, 8, 0x8000, 7):
        copy(f"flags {flags:#x}", ref(8), ref(9), 16, flags)
    s.put("8Q", *(0,) * 8, at=MORE)
    s.call("none", _CALL, abi.GNTTABOP_copy, HOLE, 0)
    s.call(
        "two, the second in a hole",
        _CALL,
        abi.GNTTABOP_copy,
        (32 << 20) - (40 if s.bits == 64 else 24),
        2,
    )


def second_version(s: Script) -> None:
    """Grants of version 2."""
    s.read_in("map_grant_ref, acquire_grant_for_copy, xen/common/grant_table.c")
    s.put("I", 2)
    s.call("to version 2", _CALL, abi.GNTTABOP_set_version, ARG, 1)
    _map_table(s)
    s.put("HHIWW", SELF, 0, 1, 1 << 31, _TABLE + 1)
    s.call("status", "memory_op", 7, ARG)
    s.load("reserved entries", _TABLE << 12, 48)
    s.load("their status", (_TABLE + 1) << 12, 16)
    base = _TABLE << 12
    s.store(FRAME << 12, bytes(range(64)))
    s.put("HHIQ", _PERMIT, s.me, 0, FRAME, at=base + 16 * 8)
    s.put("HHHHQ", 3, s.me, 1, 0, 8, at=base + 16 * 10)
    s.put("HHHHQ", _PERMIT | 256, s.me, 16, 32, FRAME + 1, at=base + 16 * 9)
    s.store((FRAME + 1) << 12, bytes(range(64)))
    for ref in (8, 9, 10, 11):
        _map(s, f"map {ref}", ref, s.me, _HOST_MAP, FRAME + 0x40)
        s.load(f"entry {ref}", base + 16 * ref, 16)
        s.load(f"status {ref}", ((_TABLE + 1) << 12) + 2 * ref, 2)
    for ref, offset, length in (
        (8, 0, 16),
        (9, 0, 16),
        (9, 16, 32),
        (9, 16, 33),
        (9, 40, 8),
        (10, 0, 16),
    ):
        s.put(_COPY[s.bits], ref, SELF, offset, FRAME + 0x20, SELF, 0, length, 1, 0x55)
        s.call(
            f"copy {ref} +{offset} {length}",
            _CALL,
            abi.GNTTABOP_copy,
            ARG,
            1,
            out=40 if s.bits == 64 else 24,
        )
    s.put("IIhxx", 8, 9, 0x55)
    s.call("swap", _CALL, abi.GNTTABOP_swap_grant_ref, ARG, 1, out=12)
    s.load("swapped", base + 16 * 8, 32)
    s.put("I", 1)
    s.call("to version 1", _CALL, abi.GNTTABOP_set_version, ARG, 1, out=4)
    s.put("HHIWW", SELF, 0, 1, 0, _TABLE + 2)
    s.call("table again", "memory_op", 7, ARG)
    s.load("entries then", (_TABLE + 2) << 12, 96)
