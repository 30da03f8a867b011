"""What a hypercall was given, and what it gave, in the words of Xen's headers.

    event_channel_op.bind_interdomain   remote_dom=0 remote_port=3 local_port=4
    grant_table_op.map_grant_ref        [host_addr=0x200000 flags=host_map ref=8 dom=2 …]
    memory_op.add_to_physmap            domid=self space=shared_info idx=0x0 gpfn=0x105

Structures are read after the call was served: what Xen stored there is a part of them. Arrays are
shown up to a few elements.

**Invariants.** Whatever a guest gives, there is an answer: memory that is not there, or a count
beyond all bounds, leaves the plain registers. Nothing is changed. The work is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenlive.abi.hypercalls import event_channel as ec
from xenlive.abi.hypercalls import grant_table as gt
from xenlive.abi.hypercalls import hvm, memory, sched, vcpu, version
from xenlive.abi.hypercalls import xen as abi
from xenlive.machine.emulated.hypervisor.hypercalls.table import OPERATION_NAMES, operation_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from xenlive.abi.layout import Layout

    #: Guest memory at a virtual address, None if it is not there.
    Read = Callable[[int, int], bytes | None]

_ELEMENTS_MAX = 4
_TEXT_MAX = 60
_WORDS = 5  # registers with arguments

# Number and operation: the structure that the last argument points to, for 64 and for 32 bits.
_STRUCTURES: dict[int, dict[int, tuple[Layout, Layout]]] = {
    abi.HYPERVISOR_event_channel_op: {
        ec.EVTCHNOP_bind_interdomain: (ec.EVTCHN_BIND_INTERDOMAIN,) * 2,
        ec.EVTCHNOP_bind_virq: (ec.EVTCHN_BIND_VIRQ,) * 2,
        ec.EVTCHNOP_bind_pirq: (ec.EVTCHN_BIND_PIRQ,) * 2,
        ec.EVTCHNOP_close: (ec.EVTCHN_CLOSE,) * 2,
        ec.EVTCHNOP_send: (ec.EVTCHN_SEND,) * 2,
        ec.EVTCHNOP_status: (ec.EVTCHN_STATUS,) * 2,
        ec.EVTCHNOP_alloc_unbound: (ec.EVTCHN_ALLOC_UNBOUND,) * 2,
        ec.EVTCHNOP_bind_ipi: (ec.EVTCHN_BIND_IPI,) * 2,
        ec.EVTCHNOP_bind_vcpu: (ec.EVTCHN_BIND_VCPU,) * 2,
        ec.EVTCHNOP_unmask: (ec.EVTCHN_UNMASK,) * 2,
        ec.EVTCHNOP_reset: (ec.EVTCHN_RESET,) * 2,
        ec.EVTCHNOP_init_control: (ec.EVTCHN_INIT_CONTROL,) * 2,
        ec.EVTCHNOP_expand_array: (ec.EVTCHN_EXPAND_ARRAY,) * 2,
        ec.EVTCHNOP_set_priority: (ec.EVTCHN_SET_PRIORITY,) * 2,
    },
    abi.HYPERVISOR_sched_op: {
        sched.SCHEDOP_shutdown: (sched.SCHED_SHUTDOWN,) * 2,
        sched.SCHEDOP_poll: (sched.SCHED_POLL, sched.SCHED_POLL_32),
        sched.SCHEDOP_remote_shutdown: (sched.SCHED_REMOTE_SHUTDOWN,) * 2,
        sched.SCHEDOP_shutdown_code: (sched.SCHED_SHUTDOWN,) * 2,
        sched.SCHEDOP_watchdog: (sched.SCHED_WATCHDOG,) * 2,
    },
    abi.HYPERVISOR_memory_op: {
        memory.XENMEM_increase_reservation: (
            *(memory.XEN_MEMORY_RESERVATION, memory.XEN_MEMORY_RESERVATION_32),
        ),
        memory.XENMEM_decrease_reservation: (
            *(memory.XEN_MEMORY_RESERVATION, memory.XEN_MEMORY_RESERVATION_32),
        ),
        memory.XENMEM_populate_physmap: (
            *(memory.XEN_MEMORY_RESERVATION, memory.XEN_MEMORY_RESERVATION_32),
        ),
        memory.XENMEM_current_reservation: (memory.XEN_MEMORY_DOMAIN,) * 2,
        memory.XENMEM_maximum_reservation: (memory.XEN_MEMORY_DOMAIN,) * 2,
        memory.XENMEM_maximum_gpfn: (memory.XEN_MEMORY_DOMAIN,) * 2,
        memory.XENMEM_add_to_physmap: (memory.XEN_ADD_TO_PHYSMAP, memory.XEN_ADD_TO_PHYSMAP_32),
        memory.XENMEM_add_to_physmap_batch: (
            *(memory.XEN_ADD_TO_PHYSMAP_BATCH, memory.XEN_ADD_TO_PHYSMAP_BATCH_32),
        ),
        memory.XENMEM_remove_from_physmap: (
            *(memory.XEN_REMOVE_FROM_PHYSMAP, memory.XEN_REMOVE_FROM_PHYSMAP_32),
        ),
        memory.XENMEM_memory_map: (memory.XEN_MEMORY_MAP, memory.XEN_MEMORY_MAP_32),
        memory.XENMEM_acquire_resource: (
            *(memory.XEN_MEM_ACQUIRE_RESOURCE, memory.XEN_MEM_ACQUIRE_RESOURCE_32),
        ),
    },
    abi.HYPERVISOR_hvm_op: {
        hvm.HVMOP_set_param: (hvm.XEN_HVM_PARAM,) * 2,
        hvm.HVMOP_get_param: (hvm.XEN_HVM_PARAM,) * 2,
        hvm.HVMOP_get_time: (hvm.XEN_HVM_GET_TIME,) * 2,
        hvm.HVMOP_get_mem_type: (hvm.XEN_HVM_GET_MEM_TYPE,) * 2,
        hvm.HVMOP_pagetable_dying: (hvm.XEN_HVM_PAGETABLE_DYING,) * 2,
        hvm.HVMOP_set_evtchn_upcall_vector: (hvm.XEN_HVM_EVTCHN_UPCALL_VECTOR,) * 2,
    },
    abi.HYPERVISOR_vcpu_op: {
        vcpu.VCPUOP_set_periodic_timer: (vcpu.VCPU_SET_PERIODIC_TIMER,) * 2,
        vcpu.VCPUOP_set_singleshot_timer: (
            *(vcpu.VCPU_SET_SINGLESHOT_TIMER, vcpu.VCPU_SET_SINGLESHOT_TIMER_32),
        ),
        vcpu.VCPUOP_register_vcpu_info: (vcpu.VCPU_REGISTER_VCPU_INFO,) * 2,
        vcpu.VCPUOP_register_runstate_memory_area: (vcpu.VCPU_REGISTER_RUNSTATE_MEMORY_AREA,) * 2,
        vcpu.VCPUOP_register_vcpu_time_memory_area: (vcpu.VCPU_REGISTER_TIME_MEMORY_AREA,) * 2,
    },
    abi.HYPERVISOR_xen_version: {
        version.XENVER_get_features: (version.XEN_FEATURE_INFO,) * 2,
    },
    abi.HYPERVISOR_grant_table_op: {
        gt.GNTTABOP_map_grant_ref: (gt.GNTTAB_MAP_GRANT_REF,) * 2,
        gt.GNTTABOP_unmap_grant_ref: (gt.GNTTAB_UNMAP_GRANT_REF,) * 2,
        gt.GNTTABOP_setup_table: (gt.GNTTAB_SETUP_TABLE, gt.GNTTAB_SETUP_TABLE_32),
        gt.GNTTABOP_copy: (gt.GNTTAB_COPY, gt.GNTTAB_COPY_32),
        gt.GNTTABOP_query_size: (gt.GNTTAB_QUERY_SIZE,) * 2,
        gt.GNTTABOP_set_version: (gt.GNTTAB_SET_VERSION,) * 2,
        gt.GNTTABOP_get_version: (gt.GNTTAB_GET_VERSION,) * 2,
        gt.GNTTABOP_swap_grant_ref: (gt.GNTTAB_SWAP_GRANT_REF,) * 2,
    },
}

# Where the pointer is, counted in registers; the second one if nothing is said.
_POINTER_AT = {abi.HYPERVISOR_vcpu_op: 2}


def _names(module: ModuleType, prefix: str) -> dict[int, str]:
    return {
        value: name.removeprefix(prefix)
        for name, value in reversed(vars(module).items())
        if name.startswith(prefix) and type(value) is int
    }


_SPACES = {
    number: name
    for number, name in _names(memory, "XENMAPSPACE_").items()
    if name != "idx_grant_table_status"
}
VIRQ_NAMES = _names(abi, "VIRQ_")
_VALUE_NAMES = {
    "space": _SPACES,
    "index": _names(hvm, "HVM_PARAM_"),
    "virq": VIRQ_NAMES,
    "reason": _names(sched, "SHUTDOWN_"),
}
_GRANT_STATUS = _names(gt, "GNTST_")
CHANNEL_NAMES = _names(ec, "EVTCHNSTAT_")
_DOMAINS = {abi.DOMID_SELF: "self", abi.DOMID_IO: "io", abi.DOMID_XEN: "xen"}
_DOMAIN_FIELDS = ("dom", "domid", "remote_dom", "source_domid", "dest_domid", "domain_id")
_DECIMAL = (
    *("port", "remote_port", "local_port", "vcpu", "pirq", "ref", "ref_a", "ref_b", "handle"),
    *("nr_extents", "extent_order", "nr_frames", "max_nr_frames", "nr_ports", "nr_entries"),
    *("version", "size", "len", "source_offset", "dest_offset", "offset", "vector", "priority"),
    *("period_ns", "timeout_abs_ns", "timeout", "now", "id", "submap_idx", "status"),
)
# Fields that point to an array: of what the elements are, and which field counts them.
_ARRAYS = {"extent_start": "nr_extents", "ports": "nr_ports", "frame_list": "nr_frames"}
_ARRAYS |= {"gpfns": "size"}


def arguments(number: int, args: tuple[int, ...], is_64bit: bool, read: Read) -> str:
    """The arguments as text. `args` are the registers, `read` reads the guest's memory."""
    if number == abi.HYPERVISOR_multicall:
        return _multicall(args, is_64bit, read)
    if number == abi.HYPERVISOR_console_io and args[0] == version.CONSOLEIO_write:
        return f"{args[1]} bytes {_text(args, read)}"
    if number == abi.HYPERVISOR_set_timer_op:
        return f"timeout={args[0] if is_64bit else args[0] | args[1] << 32}"
    operations = OPERATION_NAMES.get(number)
    if operations is None:
        return ", ".join(f"{value:#x}" for value in args[:3])
    operation = args[0] & (memory.MEMOP_CMD_MASK if number == abi.HYPERVISOR_memory_op else ~0)
    forms = _STRUCTURES.get(number, {}).get(operation)
    leading = f"vcpu={args[1]} " if number == abi.HYPERVISOR_vcpu_op else ""
    if forms is None:
        if number in (abi.HYPERVISOR_sched_op, abi.HYPERVISOR_vcpu_op) and operation in operations:
            return leading.rstrip()
        return f"{args[1]:#x}"
    layout = forms[0 if is_64bit else 1]
    place = args[_POINTER_AT.get(number, 1)]
    if number == abi.HYPERVISOR_grant_table_op:
        return _array(layout, place, args[2] & 0xFFFFFFFF, is_64bit, read)
    if not place and number == abi.HYPERVISOR_vcpu_op:
        return f"{leading}NULL"
    return leading + _structure(layout, place, is_64bit, read)


def _structure(layout: Layout, place: int, is_64bit: bool, read: Read) -> str:
    data = read(place, layout.size)
    if data is None:
        return f"{place:#x} (not in memory)"
    fields = layout.decode(data)
    shown = [_field(layout, name, value, fields, is_64bit, read) for name, value in fields.items()]
    return " ".join(text for text in shown if text)


def _array(layout: Layout, place: int, count: int, is_64bit: bool, read: Read) -> str:
    shown = [
        f"[{_structure(layout, place + at * layout.size, is_64bit, read)}]"
        for at in range(min(count, _ELEMENTS_MAX))
    ]
    if count > _ELEMENTS_MAX:
        shown.append(f"and {count - _ELEMENTS_MAX} more")
    return " ".join(shown) or "none"


def _field(
    layout: Layout, name: str, value: Any, fields: dict[str, Any], is_64bit: bool, read: Read
) -> str:
    if name in ("pad", "rsvd") and not value:
        return ""
    if isinstance(value, bytes):
        return "" if not any(value) else f"{name}={value.hex()}"
    if name in _DOMAIN_FIELDS:
        return f"{name}={_DOMAINS.get(value, value)}"
    if name in _ARRAYS:
        return f"{name}={_words(value, fields[_ARRAYS[name]], name, is_64bit, read)}"
    if name == "status":
        names = CHANNEL_NAMES if layout is ec.EVTCHN_STATUS else _GRANT_STATUS
        return f"{name}={names.get(value, value)}"
    if name == "flags" and layout is gt.GNTTAB_MAP_GRANT_REF:
        return f"{name}={_bits(value, _MAP_FLAGS)}"
    if name == "flags" and layout in (gt.GNTTAB_COPY, gt.GNTTAB_COPY_32):
        return f"{name}={_bits(value, _COPY_FLAGS)}"
    named = _VALUE_NAMES.get(name, {}).get(value)
    if named is not None:
        return f"{name}={named}"
    return f"{name}={value if name in _DECIMAL else format(value, '#x')}"


_MAP_FLAGS = _names(gt, "GNTMAP_")
_COPY_FLAGS = _names(gt, "GNTCOPY_")


def _bits(value: int, names: dict[int, str]) -> str:
    known = [name for bit, name in sorted(names.items()) if value & bit]
    rest = value & ~sum(names)
    return "|".join([*known, *([f"{rest:#x}"] if rest else [])]) or "0"


def _words(place: int, count: int, name: str, is_64bit: bool, read: Read) -> str:
    """Elements of an array of frames (native words) or ports."""
    size = 8 if is_64bit and name != "ports" else 4
    shown = min(count, _ELEMENTS_MAX)
    data = read(place, shown * size) if shown else b""
    if data is None or not place:
        return f"{place:#x}"
    values = [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]
    text = ",".join(str(value) if name == "ports" else f"{value:#x}" for value in values)
    return f"({text}{f',… {count - shown} more' if count > shown else ''})"


def _text(args: tuple[int, ...], read: Read) -> str:
    data = read(args[2], min(args[1] & 0xFFFFFFFF, _TEXT_MAX))
    if data is None:
        return f"at {args[2]:#x} (not in memory)"
    text = repr(data.decode("utf-8", "backslashreplace"))
    return text if args[1] <= _TEXT_MAX else f"{text}…"


def _multicall(args: tuple[int, ...], is_64bit: bool, read: Read) -> str:
    layout = abi.MULTICALL_ENTRY if is_64bit else abi.MULTICALL_ENTRY_32
    count = args[1] & 0xFFFFFFFF
    shown = []
    for at in range(min(count, _ELEMENTS_MAX)):
        data = read(args[0] + at * layout.size, layout.size)
        if data is None:
            shown.append(f"{args[0] + at * layout.size:#x} (not in memory)")
            break
        entry = layout.decode(data)
        inner = tuple(entry[f"arg{i}"] for i in range(_WORDS))
        name = operation_name(entry["op"], inner)
        nested = entry["op"] == abi.HYPERVISOR_multicall
        text = "…" if nested else arguments(entry["op"], inner, is_64bit, read)
        shown.append(f"{name}({text}) = {entry['result']}")
    if count > len(shown) and len(shown) == _ELEMENTS_MAX:
        shown.append(f"and {count - _ELEMENTS_MAX} more")
    return "; ".join(shown) or "none"
