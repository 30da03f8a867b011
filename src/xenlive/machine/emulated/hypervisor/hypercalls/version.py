"""Hypercalls 17, 21 and 18: xen_version, vm_assist and console_io.

Specification: Xen 4.17 `do_xen_version` of `xen/common/kernel.c`, `do_vm_assist` of
`xen/common/domain.c`, `do_console_io` of `xen/drivers/char/console.c`, and who may ask what in
`xen/include/xsm/dummy.h`. The strings are those of Debian 12's Xen.

**Invariants.** Some questions are answered with "<denied>" and success, not with an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.hypercalls import version as abi
from xenlive.abi.hypercalls.xen import XEN_EINVAL, XEN_ENOSYS, XEN_EPERM
from xenlive.errors import HypercallError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller

MAJOR, MINOR, EXTRA = 4, 17, ".7"
_COMPILE_INFO = abi.XEN_COMPILE_INFO.encode(
    compiler=b"x86_64-linux-gnu-gcc (Debian 12.2.0-14+deb12u1) 12.2.0",
    compile_by=b"pkg-xen-devel",
    compile_domain=b"lists.alioth.debian.org",
    compile_date=b"Wed Nov  4 16:52:28 UTC 2026",
)
_CAPABILITIES = b"xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
_DENIED = b"<denied>\0"

# Where the hypervisor begins in a 64 bit PV guest; a 32 bit PVH guest is told 0.
_VIRT_START = 0xFFFF800000000000

_FEATURES = (
    abi.XENFEAT_memory_op_vnode_supported,
    abi.XENFEAT_writable_page_tables,
    abi.XENFEAT_auto_translated_physmap,
    abi.XENFEAT_hvm_safe_pvclock,
    abi.XENFEAT_hvm_callback_vector,
    abi.XENFEAT_not_direct_mapped,
)
FEATURES = sum(1 << bit for bit in _FEATURES)

# The only assist that a PVH guest may turn on.
_ASSISTS = {abi.VMASST_TYPE_runstate_update_flag}

# So much of a console line is kept until it ends; a write is taken in such pieces.
_CONSOLE_PIECE = 127


def xen_version(caller: Caller, cmd: int, arg: int) -> int:
    """What Xen this is, and what it can do."""
    cmd &= 0xFFFFFFFF
    if cmd == abi.XENVER_version:
        return MAJOR << 16 | MINOR
    if cmd == abi.XENVER_pagesize:
        if arg:
            raise HypercallError("XENVER_pagesize", XEN_EINVAL, "it takes no argument")
        return 4096
    if cmd == abi.XENVER_build_id:
        raise HypercallError("XENVER_build_id", XEN_EPERM, "not for guests")
    if cmd == abi.XENVER_get_features:
        _get_features(caller, arg)
        return 0
    answer = _ANSWERS.get(cmd)
    if answer is None:
        raise HypercallError("xen_version", XEN_ENOSYS, f"no operation {cmd}")
    caller.write(arg, answer(caller))
    return 0


def _get_features(caller: Caller, arg: int) -> None:
    index = caller.read_struct(abi.XEN_FEATURE_INFO, arg)["submap_idx"]
    if index:
        raise HypercallError("XENVER_get_features", XEN_EINVAL, f"no map {index}")
    caller.write(arg, abi.XEN_FEATURE_INFO.encode(submap_idx=index, submap=FEATURES))


def _guest_handle(caller: Caller) -> bytes:
    return caller.domain.handle


def _platform_parameters(caller: Caller) -> bytes:
    start = _VIRT_START if caller.is_64bit else 0
    return start.to_bytes(caller.word_bytes, "little")


_ANSWERS: dict[int, Callable[[Caller], bytes]] = {
    abi.XENVER_extraversion: lambda _: EXTRA.encode().ljust(abi.EXTRAVERSION_SIZE, b"\0"),
    abi.XENVER_compile_info: lambda _: _COMPILE_INFO,
    abi.XENVER_capabilities: lambda _: _CAPABILITIES.ljust(abi.CAPABILITIES_SIZE, b"\0"),
    abi.XENVER_changeset: lambda _: bytes(abi.CHANGESET_SIZE),
    abi.XENVER_platform_parameters: _platform_parameters,
    abi.XENVER_guest_handle: _guest_handle,
    abi.XENVER_commandline: lambda _: _DENIED,
}


def vm_assist(caller: Caller, cmd: int, assist: int) -> int:
    """Turns a workaround for the guest on or off."""
    cmd, assist = cmd & 0xFFFFFFFF, assist & 0xFFFFFFFF
    if assist not in _ASSISTS:
        raise HypercallError("vm_assist", XEN_EINVAL, f"no assist {assist}")
    if cmd == abi.VMASST_CMD_enable:
        caller.domain.vm_assist |= 1 << assist
    elif cmd == abi.VMASST_CMD_disable:
        caller.domain.vm_assist &= ~(1 << assist)
    else:
        raise HypercallError("vm_assist", XEN_ENOSYS, f"no operation {cmd}")
    return 0


def console_io(caller: Caller, cmd: int, count: int, buffer: int) -> int:
    """Writes to Xen's own console, which a domain may if it was given it."""
    cmd, count = cmd & 0xFFFFFFFF, count & 0xFFFFFFFF
    if not caller.domain.has_console_io:
        raise HypercallError("console_io", XEN_EPERM, "the console is not the guest's")
    if cmd == abi.CONSOLEIO_write:
        while count:
            caller.work()
            piece = caller.read(buffer, min(count, _CONSOLE_PIECE))
            caller.domain.write_console_io(piece)
            buffer += len(piece)
            count -= len(piece)
        return 0
    if cmd == abi.CONSOLEIO_read:
        return 0
    raise HypercallError("console_io", XEN_ENOSYS, f"no operation {cmd}")
