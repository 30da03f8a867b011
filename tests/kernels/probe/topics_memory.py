"""What is asked about memory_op."""

from __future__ import annotations

from kernels.probe.script import ARG, FRAME, HOLE, MORE, NOBODY, SELF, UNMAPPED, Script

from xenlive.abi.hypercalls import memory as abi

#: Frames that a 32-bit guest cannot name: they are cut.
_FAR = (1 << 35, (1 << 36) - 1, 1 << 36, 1 << 40, 1 << 51, (1 << 52) - 1, 1 << 52, (1 << 64) - 1)


def _reserve(
    s: Script, frames: int, count: int, order: int = 0, flags: int = 0, who: int = SELF
) -> None:
    """struct xen_memory_reservation at ARG; `frames` is the address of the list."""
    if s.bits == 64:
        s.put("QQIIHHI", frames, count, order, flags, who, 0, 0)
    else:
        s.put("IIIIHH", frames, count, order, flags, who, 0)


def _frames(s: Script, *frames: int) -> int:
    return s.put(f"{len(frames)}W", *frames, at=MORE)


def reservations(s: Script) -> None:
    """How much memory there is, giving and taking it."""
    s.read_in("do_memory_op, xen/common/memory.c")
    for cmd in range(32):
        if cmd != abi.XENMEM_maximum_ram_page:
            s.call(f"{cmd}: hole", "memory_op", cmd, HOLE)
        s.call(f"{cmd}: started at 1", "memory_op", cmd | 1 << 6, HOLE)
    s.call("far beyond", "memory_op", 0xFFFFFFFF, HOLE)
    if s.bits == 64:
        s.call("wide number", "memory_op", 1 << 32 | abi.XENMEM_maximum_ram_page, 0)
        s.call("not mapped", "memory_op", abi.XENMEM_populate_physmap, UNMAPPED)
    for cmd in (3, 4, 14):
        for name, who in s.domids():
            s.put("HHI", who, 0, 0)
            s.call(f"{cmd}: of {name}", "memory_op", cmd, ARG)
    s.read_in("decrease_reservation, xen/common/memory.c")
    one = abi.XENMEM_decrease_reservation
    for name, who in s.domids()[1:]:
        _reserve(s, _frames(s, FRAME), 1, who=who)
        s.call(f"decrease of {name}", "memory_op", one, ARG)
    frames = _frames(s, FRAME, FRAME + 1, FRAME + 2, 0xD0000, FRAME + 3)
    _reserve(s, frames, 0)
    s.call("decrease: none", "memory_op", one, ARG)
    _reserve(s, 0, 1)
    s.call("decrease: no list", "memory_op", one, ARG)
    _reserve(s, HOLE, 1)
    s.call("decrease: list in a hole", "memory_op", one, ARG)
    _reserve(s, frames, 5)
    s.call("decrease: up to a hole", "memory_op", one, ARG)
    s.put("HHI", SELF, 0, 0)
    s.call("left", "memory_op", abi.XENMEM_current_reservation, ARG)
    _reserve(s, frames, 1)
    s.call("decrease: again", "memory_op", one, ARG)
    for order in (1, 9, 18, 19, 64):
        _reserve(s, _frames(s, FRAME + 8), 1, order)
        s.call(f"decrease: order {order}", "memory_op", one, ARG)
    _reserve(s, frames, 5)
    s.call("decrease: started at 3", "memory_op", one | 3 << 6, ARG)
    s.call("decrease: started at 6", "memory_op", one | 6 << 6, ARG)
    _reserve(s, frames, 1 << 31)
    s.call("decrease: very many", "memory_op", one, ARG)
    _reserve(s, frames, 1, flags=0x30)
    s.call("decrease: flags", "memory_op", one, ARG)
    s.read_in("populate_physmap, xen/common/memory.c")
    two = abi.XENMEM_populate_physmap
    for name, who in s.domids()[1:]:
        _reserve(s, _frames(s, FRAME), 1, who=who)
        s.call(f"populate of {name}", "memory_op", two, ARG)
    frames = _frames(s, FRAME, FRAME + 1, FRAME + 2)
    _reserve(s, frames, 2)
    s.call("populate", "memory_op", two, ARG, out=12, at=MORE)
    s.store(FRAME << 12, b"\x55" * 8)
    _reserve(s, frames, 1)
    s.call("populate: what is there", "memory_op", two, ARG, out=8, at=FRAME << 12)
    _reserve(s, 0, 1)
    s.call("populate: no list", "memory_op", two, ARG)
    _reserve(s, HOLE, 1)
    s.call("populate: list in a hole", "memory_op", two, ARG)
    for order in (1, 9, 18, 19, 64):
        _reserve(s, _frames(s, FRAME + 256), 1, order)
        s.call(f"populate: order {order}", "memory_op", two, ARG)
    for flags in (
        abi.XENMEMF_populate_on_demand,
        abi.XENMEMF_exact_node_request,
        abi.XENMEMF_vnode,
        32,
        0x100,
        0x80000000,
    ):
        _reserve(s, _frames(s, FRAME + 3), 1, flags=flags)
        s.call(f"populate: flags {flags:#x}", "memory_op", two, ARG)
    many = [FRAME + 0x800 + n for n in range(300)]
    _reserve(s, _frames(s, *many), 300)
    s.call("populate: up to the limit", "memory_op", two, ARG)
    s.put("HHI", SELF, 0, 0)
    s.call("after: current", "memory_op", abi.XENMEM_current_reservation, ARG)
    s.call("after: maximum gpfn", "memory_op", abi.XENMEM_maximum_gpfn, ARG)
    _reserve(s, _frames(s, 1 << 28), 1)
    s.call("populate: at 2^28", "memory_op", two, ARG)
    _reserve(s, _frames(s, 1 << 31), 1)
    s.call("populate: at 2^31", "memory_op", two, ARG)
    s.read_in("increase_reservation, xen/common/memory.c")
    for name, who in s.domids():
        _reserve(s, _frames(s, 0), 1, who=who)
        s.call(f"increase of {name}", "memory_op", 0, ARG, out=4, at=MORE)
    _reserve(s, 0, 1)
    s.call("increase: no list", "memory_op", 0, ARG)
    _reserve(s, MORE, 1, 1)
    s.call("increase: order 1", "memory_op", 0, ARG)
    _reserve(s, MORE, 1, 10)
    s.call("increase: order 10", "memory_op", 0, ARG)
    s.put("HHI", SELF, 0, 0)
    s.call("after increase", "memory_op", abi.XENMEM_current_reservation, ARG)
    for cmd in (0, 1, 6):
        _reserve(s, MORE, 0, 10)
        s.call(f"{cmd}: none of order 10", "memory_op", cmd, ARG)
        _reserve(s, MORE, 1, who=NOBODY)
        s.call(f"{cmd}: none of nobody", "memory_op", cmd, ARG)


def physmap(s: Script) -> None:
    """Where things stand: add_to_physmap and the like."""
    s.read_in("do_memory_op, xenmem_add_to_physmap, xen/common/memory.c")
    seven = abi.XENMEM_add_to_physmap
    for space in range(8):
        for index in (0, 1, FRAME + 8):
            s.put("HHIWW", SELF, 0, space, index, FRAME + 0x10 + space)
            s.call(f"add: space {space}, {index:#x}", "memory_op", seven, ARG)
    for name, who in s.domids()[1:]:
        s.put("HHIWW", who, 0, 0, 0, FRAME + 0x20)
        s.call(f"add: of {name}", "memory_op", seven, ARG)
    for gfn in (0xFEFF0, 0x100000, 0xFFFFF, 1 << 28, 1 << 31, 0xFFFFFFFF, *_FAR):
        s.put("HHIWW", SELF, 0, 0, 0, gfn)
        s.call(f"add: at {gfn:#x}", "memory_op", seven, ARG)
    s.put("HHIWW", SELF, 0, abi.XENMAPSPACE_gmfn, 0xD0000, FRAME + 0x21)
    s.call("add: a hole", "memory_op", seven, ARG)
    s.put("HHIWW", SELF, 3, abi.XENMAPSPACE_gmfn_range, FRAME + 0x30, FRAME + 0x40)
    s.call("add: a range", "memory_op", seven, ARG, out=8 + 2 * s.word)
    s.put("HHIWW", SELF, 3, abi.XENMAPSPACE_gmfn_range, FRAME + 0x30, FRAME + 0x40)
    s.call("add: a range again", "memory_op", seven, ARG)
    for index in (0, 1, 2, 31, 63, 64, 65, 1 << 31, 1 << 31 | 1):
        s.put("HHIWW", SELF, 0, abi.XENMAPSPACE_grant_table, index, FRAME + 0x50)
        s.call(f"add: grant frame {index:#x}", "memory_op", seven, ARG)
    s.put("HHIWW", SELF, 0, abi.XENMAPSPACE_grant_table, 0, FRAME + 0x51)
    s.call("add: grant frame 0 elsewhere", "memory_op", seven, ARG)
    s.load("where it was", (FRAME + 0x50) << 12, 8)
    s.load("where it is", (FRAME + 0x51) << 12, 8)
    s.read_in("XENMEM_remove_from_physmap of do_memory_op, xen/common/memory.c")
    for name, who in s.domids()[1:]:
        s.put("HxxI", who, FRAME) if s.bits == 32 else s.put("HxxxxxxQ", who, FRAME)
        s.call(f"remove: of {name}", "memory_op", abi.XENMEM_remove_from_physmap, ARG)
    for gfn in (FRAME + 0x51, FRAME + 0x51, FRAME + 0x60, 0xD0000, 1 << 28, 0xFFFFFFFF):
        s.put("HxxI", SELF, gfn) if s.bits == 32 else s.put("HxxxxxxQ", SELF, gfn)
        name = f"remove: {gfn:#x}{s.again(f'remove: {gfn:#x}')}"
        s.call(name, "memory_op", abi.XENMEM_remove_from_physmap, ARG)
    s.load("removed", (FRAME + 0x60) << 12, 8)
    s.read_in("xenmem_add_to_physmap_batch, xen/common/memory.c")
    for space in range(7):
        for foreign in (0, 1):
            _batch(s, SELF, space, [0, 1], [FRAME + 0x70, FRAME + 0x71], foreign)
            name = f"batch: space {space}, {foreign}"
            s.call(name, "memory_op", abi.XENMEM_add_to_physmap_batch, ARG, out=8, at=MORE + 512)
    for name, who in s.domids()[1:]:
        _batch(s, who, 0, [0], [FRAME + 0x72], 0)
        s.call(f"batch: of {name}", "memory_op", abi.XENMEM_add_to_physmap_batch, ARG)
    _batch(s, SELF, 1, [], [], 0)
    s.call("batch: none", "memory_op", abi.XENMEM_add_to_physmap_batch, ARG)
    _batch(s, SELF, 4, [FRAME], [FRAME + 0x73], 1)
    s.call(
        "batch: foreign, of itself",
        "memory_op",
        abi.XENMEM_add_to_physmap_batch,
        ARG,
        out=4,
        at=MORE + 512,
    )
    _batch(s, SELF, 4, [FRAME], [FRAME + 0x73], 2)
    s.call(
        "batch: foreign, of nobody",
        "memory_op",
        abi.XENMEM_add_to_physmap_batch,
        ARG,
        out=4,
        at=MORE + 512,
    )


def _batch(
    s: Script, who: int, space: int, indexes: list[int], gfns: list[int], foreign: int
) -> None:
    """struct xen_add_to_physmap_batch at ARG, with the errors told at MORE + 512."""
    s.put(f"{len(indexes)}W", *indexes, at=MORE)
    s.put(f"{len(gfns)}W", *gfns, at=MORE + 256)
    s.store(MORE + 512, b"\x55" * 16)
    head = (who, space, len(indexes), foreign)
    if s.bits == 64:
        s.put("HHHHQQQ", *head, MORE, MORE + 256, MORE + 512)
    else:
        s.put("HHHHIII", *head, MORE, MORE + 256, MORE + 512)


def maps(s: Script) -> None:
    """Maps and the machine's memory."""
    s.read_in("XENMEM_memory_map of arch_memory_op, xen/arch/x86/mm.c")
    for count in (0, 1, 3, 100, 1 << 31):
        s.store(MORE, b"\x55" * 8)
        s.put("II", count, MORE) if s.bits == 32 else s.put("IxxxxQ", count, MORE)
        s.call(f"memory map: {count}", "memory_op", abi.XENMEM_memory_map, ARG, out=4)
    s.load("entries", MORE, 7 * 20)
    s.put("II", 9, HOLE) if s.bits == 32 else s.put("IxxxxQ", 9, HOLE)
    s.call("memory map: hole", "memory_op", abi.XENMEM_memory_map, ARG)
    s.put("II", 9, 0) if s.bits == 32 else s.put("IxxxxQ", 9, 0)
    s.call("memory map: null", "memory_op", abi.XENMEM_memory_map, ARG)
    s.read_in("arch_memory_op, xen/arch/x86/mm.c; do_memory_op, xen/common/memory.c")
    s.put("8Q", *(0,) * 8)
    for cmd in (5, 8, 10, 12, 18, 19, 25, 30, 31):
        s.call(f"{cmd}", "memory_op", cmd, ARG)
    for name, who in s.domids():
        s.put("HHIQ", who, 0, 0, 0)
        s.call(f"set_memory_map of {name}", "memory_op", abi.XENMEM_set_memory_map, ARG)
        s.put("QQQQHHI", 0, 0, 0, 0, who, 0, 0)
        s.call(f"get_pod_target of {name}", "memory_op", abi.XENMEM_get_pod_target, ARG)
        s.call(f"set_pod_target of {name}", "memory_op", abi.XENMEM_set_pod_target, ARG)
        for op in range(6):
            s.put("BBHII4Q", op, 0, who, 0, 0, 0, 0, 0, 0)
            s.call(f"access_op {op} of {name}", "memory_op", abi.XENMEM_access_op, ARG)
        s.put("BBHI4Q", 0, 0, who, 0, 0, 0, 0, 0)
        s.call(f"paging_op of {name}", "memory_op", abi.XENMEM_paging_op, ARG)
        s.call(f"sharing_op of {name}", "memory_op", abi.XENMEM_sharing_op, ARG)
        _reserve(s, 0, 16, who=who)
        s.call(f"claim_pages of {name}", "memory_op", abi.XENMEM_claim_pages, ARG)
        s.put("HHII8W", who, 0, 0, 0, *(0,) * 8)
        s.call(f"get_vnumainfo of {name}", "memory_op", abi.XENMEM_get_vnumainfo, ARG)
        for kind in (0, 1, 2, 3):
            for frames in (0, 1):
                s.put("HHIIIQQ", who, kind, 0, frames, 0, 0, MORE if frames else 0)
                s.call(
                    f"acquire_resource {kind}, {frames} of {name}",
                    "memory_op",
                    abi.XENMEM_acquire_resource,
                    ARG,
                )
    s.read_in("memory_exchange, xen/common/memory.c")
    for name, who in s.domids():
        _exchange(s, who)
        s.call(f"exchange of {name}", "memory_op", abi.XENMEM_exchange, ARG)
    for flags in (0, 1, 2):
        s.put("II4Q", flags, 0, 0, 0, 0, 0)
        s.call(
            f"reserved_device_memory_map {flags}",
            "memory_op",
            abi.XENMEM_reserved_device_memory_map,
            ARG,
        )


def _exchange(s: Script, who: int) -> None:
    form, pad = ("QQIIHHI", (0,)) if s.bits == 64 else ("IIIIHH", ())
    part = (MORE, 1, 0, 0, who, 0, *pad)
    s.put("W", FRAME, at=MORE)
    s.put(form + form + "W", *part, *part, 0)
