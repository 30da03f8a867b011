"""What is asked about hypercalls that a guest has none of, and about the small ones."""

from __future__ import annotations

from kernels.probe.script import (
    ARG,
    HOLE,
    MORE,
    NO_ADDRESS,
    UNMAPPED,
    Script,
)

from xenlive.abi.hypercalls import version

_BAD_OP = 0x7FFFFFFF


def numbers(s: Script) -> None:
    """Each number once, with an operation that nobody has and a pointer that leads nowhere."""
    s.read_in("hypercall-defs.c; hvm_hypercall, xen/arch/x86/hvm/hypercall.c")
    s.put("8Q", *(0,) * 8)
    for number in (*range(64), 64, 65, 127, 128, 1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        s.call(f"{number:#x}: no operation", number, _BAD_OP, HOLE, 1)
    for number in range(64):
        if number != 29:
            s.call(f"{number:#x}: all zero", number, 0, 0, 0, 0, 0)
    s.read_in("do_sysctl, xen/common/sysctl.c")
    s.call("sysctl: hole", "sysctl", HOLE)
    s.put("II", 1, 0x14)
    s.call("sysctl: older version", "sysctl", ARG)
    s.put("II", 1, 0x15)
    s.call("sysctl: version", "sysctl", ARG)
    s.read_in("do_domctl, xen/common/domctl.c")
    s.call("domctl: hole", "domctl", HOLE)
    s.put("IIH", 5, 0x14, 0)
    s.call("domctl: older version", "domctl", ARG)
    for command in (1, 2, 3, 5, 37, 45, 47, 56, 77, 1000):
        for name, domid in s.domids():
            s.put("IIH", command, 0x15, domid)
            s.call(f"domctl {command}: {name}", "domctl", ARG)
    for command in (1, 5, 10):
        for name, domid in s.domids():
            s.put("IIH", command, 0x15, domid)
            s.call(f"paging_domctl_cont {command}: {name}", "arch_1", ARG)
    s.read_in("do_platform_op, xen/arch/x86/platform_hypercall.c")
    s.put("II", 33, 0x02000000)
    s.call("platform_op: wrong version", "platform_op", ARG)
    s.put("II", 33, 0x03000001)
    s.call("platform_op: version", "platform_op", ARG)
    s.read_in("do_mmuext_op, xen/arch/x86/mm.c")
    for name, domid in s.domids():
        s.call(f"mmuext_op: none of {name}", "mmuext_op", ARG, 0, 0, domid)
        s.call(f"mmuext_op: one of {name}", "mmuext_op", ARG, 1, 0, domid)
        s.call(f"mmuext_op: rest of {name}", "mmuext_op", 0, 1 << 31, 0, domid)
    s.read_in("do_dm_op, xen/arch/x86/hvm/dm.c")
    for name, domid in s.domids():
        s.put("WW", MORE, 64)
        s.call(f"dm_op: {name}", "dm_op", domid, 1, ARG)
    for count in (0, 2, 3, 4, 1000):
        s.call(f"dm_op: {count} buffers", "dm_op", 0, count, ARG)
    s.call("dm_op: hole", "dm_op", 0, 1, HOLE)
    s.read_in("hvm_physdev_op, xen/arch/x86/hvm/hypercall.c")
    for cmd in range(33):
        s.call(f"physdev_op {cmd}", "physdev_op", cmd, HOLE)
    s.read_in("do_xenpmu_op, xen/arch/x86/cpu/vpmu.c")
    for cmd in range(8):
        s.call(f"xenpmu_op {cmd}", "xenpmu_op", cmd, ARG)
    s.read_in("do_hypfs_op, xen/common/hypfs.c")
    for cmd in range(4):
        s.call(f"hypfs_op {cmd}", "hypfs_op", cmd, 0, 0, 0, 0)
        s.call(f"hypfs_op {cmd}: path", "hypfs_op", cmd, ARG, 2, MORE, 64)


def versions(s: Script) -> None:
    """xen_version, vm_assist and console_io."""
    s.read_in("do_xen_version, xen/common/kernel.c")
    s.call("version", "xen_version", version.XENVER_version, 0)
    s.call("version: pointer", "xen_version", version.XENVER_version, HOLE)
    blank = b"\x55" * 1088
    sizes = {1: 16, 3: 1024, 4: 64, 5: 8, 9: 1024}
    for cmd, size in sizes.items():
        s.store(ARG, blank)
        s.call(f"{cmd}", "xen_version", cmd, ARG, out=size + 16)
        s.call(f"{cmd}: hole", "xen_version", cmd, HOLE)
        s.call(f"{cmd}: null", "xen_version", cmd, 0)
    for cmd in (version.XENVER_compile_info, version.XENVER_guest_handle):
        s.call(f"{cmd}: machine's own", "xen_version", cmd, ARG)
        s.call(f"{cmd}: hole", "xen_version", cmd, HOLE)
    for index in (0, 1, 2, 5, 0xFFFFFFFF):
        s.put("IIQ", index, 0x55555555, 0x5555555555555555)
        s.call(f"features {index}", "xen_version", version.XENVER_get_features, ARG, out=16)
    s.call("features: hole", "xen_version", version.XENVER_get_features, HOLE)
    s.call("pagesize", "xen_version", version.XENVER_pagesize, 0)
    s.call("pagesize: pointer", "xen_version", version.XENVER_pagesize, ARG)
    s.put("II", 0, 0)
    s.call("build id", "xen_version", version.XENVER_build_id, 0)
    s.call("build id: buffer", "xen_version", version.XENVER_build_id, ARG)
    for cmd in (11, 12, 100, 0xFFFFFFFF):
        s.call(f"{cmd}", "xen_version", cmd, ARG)
    s.read_in("do_vm_assist, vm_assist, xen/common/domain.c")
    for cmd in (0, 1, 2, 0xFFFFFFFF):
        for kind in (*range(8), 31, 32, 63, 64, 0xFFFFFFFF):
            s.call(f"assist {cmd}: {kind}", "vm_assist", cmd, kind)
    s.read_in("do_console_io, xen/drivers/char/console.c")
    for cmd in (0, 1, 2, 0xFFFFFFFF):
        for count in (0, 1, 0x80000000, 0xFFFFFFFF):
            s.call(f"console_io {cmd}: {count:#x}", "console_io", cmd, count, ARG)
    s.call("console_io: hole", "console_io", 0, 1, HOLE)
    s.read_in("do_multicall, xen/common/multicall.c")
    calls = (
        (17, 0x55, version.XENVER_version, 0),
        (99, 0x55, 0, 0),
        (13, 0x55, MORE, 0),
        (13, 0x55, MORE, 1),
        (17, 0x55, version.XENVER_get_features, HOLE),
        (29, 0x55, 0, 0),
    )
    s.put("8W" * len(calls), *(v for call in calls for v in (*call, 0, 0, 0, 0)))
    s.call("multicall", "multicall", ARG, len(calls), out=len(calls) * 8 * s.word)
    s.call("multicall: none", "multicall", ARG, 0)
    s.call("multicall: none, hole", "multicall", HOLE, 0)
    s.call("multicall: hole", "multicall", HOLE, 1)
    if s.bits == 64:
        s.call("multicall: not mapped", "multicall", UNMAPPED, 1)
        s.call("multicall: no address", "multicall", NO_ADDRESS, 1)
        for name, address in (("not mapped", UNMAPPED), ("no address", NO_ADDRESS)):
            s.call(f"features: {name}", "xen_version", version.XENVER_get_features, address)
            s.call(f"extraversion: {name}", "xen_version", version.XENVER_extraversion, address)
    s.put("II", 0, 0, at=0x10FFFFC)
    s.call("features: over the edge of a page", "xen_version", 6, 0x10FFFFC, out=8, at=0x10FFFFC)
