"""Hypercalls that control machine or other domains, which a guest is refused: each in its own way.

Specification: Xen 4.17 `do_sysctl`, `do_domctl` (`xen/common/*ctl.c`), `do_platform_op`
(`xen/arch/x86/platform_hypercall.c`), `do_mmuext_op` (`xen/arch/x86/mm.c`), `do_dm_op` and `dm_op`
(`xen/arch/x86/hvm/dm.c`), `do_hypfs_op`, `do_xenpmu_op`, `xsm_do_xsm_op`
(`xen/include/xsm/dummy.h`), `hvm_physdev_op` (`xen/arch/x86/hvm/hypercall.c`).

**Invariants.** The order of checks is Xen's: a wrong version is told before a lack of privilege.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.hypercalls.xen import (
    DOMID_FIRST_RESERVED,
    DOMID_INVALID,
    DOMID_IO,
    DOMID_SELF,
    DOMID_XEN,
    XEN_E2BIG,
    XEN_EACCES,
    XEN_EINVAL,
    XEN_ENODATA,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
    XEN_ESRCH,
)
from xenlive.errors import HypercallError

if TYPE_CHECKING:
    from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller

_SYSCTL_VERSION = 0x15
_DOMCTL_VERSION = 0x15
_XENPF_VERSION = 0x03000001
_SYSCTL_BYTES = 136
_DOMCTL_BYTES = 144
_PLATFORM_BYTES = 136

# Numbers of domctls whose domain is looked up in another way than that of all others.
_CREATEDOMAIN = 1
_GETDOMAININFO = 5
_SHADOW_OP = 10
_TEST_ASSIGN_DEVICE = 45
_ASSIGN_DEVICE = 37
_DEASSIGN_DEVICE = 47

# MMU_UPDATE_PREEMPTED: the count of a call that goes on.
_PREEMPTED = 1 << 31

_DM_BUFFER_BYTES = 16
_MAX_DM_BUFFERS = 2


def sysctl(caller: Caller, arg: int) -> int:
    """Questions about the machine."""
    _validate_version(caller, "sysctl", arg, _SYSCTL_BYTES, _SYSCTL_VERSION)
    raise HypercallError("sysctl", XEN_EPERM, "not for guests")


def platform_op(caller: Caller, arg: int) -> int:
    """The machine's own matters."""
    _validate_version(caller, "platform_op", arg, _PLATFORM_BYTES, _XENPF_VERSION)
    raise HypercallError("platform_op", XEN_EPERM, "not for guests")


def domctl(caller: Caller, arg: int) -> int:
    """Control of domains, the caller too."""
    head = _validate_version(caller, "domctl", arg, _DOMCTL_BYTES, _DOMCTL_VERSION)
    command = int.from_bytes(head[:4], "little")
    domid = int.from_bytes(head[8:10], "little")
    if command == _GETDOMAININFO:
        _validate_info(caller, domid)
    elif not _names_no_domain(command, domid):
        caller.domain.find_by_id("domctl", domid)
    raise HypercallError("domctl", XEN_EPERM, "not for guests")


def _validate_info(caller: Caller, domid: int) -> None:
    """The first domain from this id on is meant."""
    if domid in caller.domain.peers and domid < DOMID_FIRST_RESERVED:
        return
    if domid >= DOMID_FIRST_RESERVED:
        raise HypercallError("XEN_DOMCTL_getdomaininfo", XEN_EINVAL, f"domain {domid}")
    if not any(other >= domid for other in caller.domain.peers):
        raise HypercallError("XEN_DOMCTL_getdomaininfo", XEN_ESRCH, f"no domain from {domid} on")


def _names_no_domain(command: int, domid: int) -> bool:
    if command == _CREATEDOMAIN:
        return True
    if command in (_ASSIGN_DEVICE, _DEASSIGN_DEVICE):
        return domid == DOMID_IO
    return command == _TEST_ASSIGN_DEVICE and domid == DOMID_INVALID


def _validate_version(caller: Caller, call: str, arg: int, size: int, version: int) -> bytes:
    head = caller.read(arg, size)
    found = int.from_bytes(head[4:8], "little")
    if found != version:
        raise HypercallError(call, XEN_EACCES, f"version {found:#x}, not {version:#x}")
    return head


def paging_domctl_cont(caller: Caller, arg: int) -> int:
    """How a long operation on another's memory goes on (`do_paging_domctl_cont`)."""
    call = "paging_domctl_cont"
    head = caller.read(arg, _DOMCTL_BYTES)
    command, version = (int.from_bytes(head[at : at + 4], "little") for at in (0, 4))
    if version != _DOMCTL_VERSION or command != _SHADOW_OP:
        raise HypercallError(call, XEN_EOPNOTSUPP, f"command {command} of version {version:#x}")
    caller.domain.find_by_id(call, int.from_bytes(head[8:10], "little"))
    raise HypercallError(call, XEN_EPERM, "not for guests")


def mmuext_op(caller: Caller, ops: int, count: int, done: int, domid: int) -> int:
    """Page tables of PV guests, which a PVH guest has none of."""
    domid, count = domid & 0xFFFFFFFF, count & 0xFFFFFFFF
    if count == _PREEMPTED and not ops:
        # What Xen itself calls to go on; it gives the domain back.
        return domid
    if not caller.is_64bit and not count & ~_PREEMPTED:
        return 0  # compat_mmuext_op has nothing to translate
    if domid in (DOMID_IO, DOMID_XEN):
        raise HypercallError("mmuext_op", XEN_EPERM, f"domain {domid}")
    if domid == DOMID_SELF:
        raise HypercallError("mmuext_op", XEN_EINVAL, "the guest is no PV guest")
    if domid == caller.domain.domid:
        raise HypercallError("mmuext_op", XEN_ESRCH, "oneself is DOMID_SELF")
    other = caller.domain.find_by_id("mmuext_op", domid)
    errno = XEN_EPERM if other.is_privileged else XEN_EINVAL
    raise HypercallError("mmuext_op", errno, f"domain {domid} is not for this")


def dm_op(caller: Caller, domid: int, n_buffers: int, buffers: int) -> int:
    """Device models."""
    n_buffers &= 0xFFFFFFFF
    if not n_buffers:
        raise HypercallError("dm_op", XEN_ENODATA, "no buffer")
    if n_buffers > _MAX_DM_BUFFERS:
        raise HypercallError("dm_op", XEN_E2BIG, f"{n_buffers} buffers")
    caller.read(buffers, n_buffers * (_DM_BUFFER_BYTES if caller.is_64bit else 8))
    other = caller.domain.find_remote("dm_op", domid & 0xFFFF)
    errno = XEN_EINVAL if other.is_privileged else XEN_EPERM
    raise HypercallError("dm_op", errno, "for device models only")


def hypfs_op(caller: Caller) -> int:
    """The hypervisor's file system."""
    raise HypercallError("hypfs_op", XEN_EPERM, "not for guests")


def xenpmu_op(caller: Caller) -> int:
    """Performance counters, which this machine does not offer."""
    raise HypercallError("xenpmu_op", XEN_EOPNOTSUPP, "there are none")


def xsm_op(caller: Caller) -> int:
    """Security policies, without the module that has them."""
    raise HypercallError("xsm_op", XEN_ENOSYS, "there is no policy")


def physdev_op(caller: Caller, cmd: int, arg: int) -> int:
    """Interrupt lines, which a PVH guest can't ask for."""
    raise HypercallError("physdev_op", XEN_ENOSYS, f"operation {cmd & 0xFFFFFFFF}")
