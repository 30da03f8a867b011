"""Arguments of the memory hypercall, in the forms of 64 and 32 bit guests.

Specification: Xen `public/memory.h`.

**Invariants.** The two forms of a structure have the same field names, so that one decoder serves
both. What differs is the width of frame numbers, of pointers (they are virtual
addresses) and of native words.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

XENMEM_increase_reservation = 0
XENMEM_decrease_reservation = 1
XENMEM_maximum_ram_page = 2
XENMEM_current_reservation = 3
XENMEM_maximum_reservation = 4
XENMEM_machphys_mfn_list = 5
XENMEM_populate_physmap = 6
XENMEM_add_to_physmap = 7
XENMEM_memory_map = 9
XENMEM_machine_memory_map = 10
XENMEM_exchange = 11
XENMEM_machphys_mapping = 12
XENMEM_set_memory_map = 13
XENMEM_maximum_gpfn = 14
XENMEM_remove_from_physmap = 15
XENMEM_set_pod_target = 16
XENMEM_get_pod_target = 17
XENMEM_get_sharing_freed_pages = 18
XENMEM_get_sharing_shared_pages = 19
XENMEM_paging_op = 20
XENMEM_access_op = 21
XENMEM_sharing_op = 22
XENMEM_add_to_physmap_batch = 23
XENMEM_claim_pages = 24
XENMEM_machphys_compat_mfn_list = 25
XENMEM_get_vnumainfo = 26
XENMEM_reserved_device_memory_map = 27
XENMEM_acquire_resource = 28

# An operation is the low bits of the command; what is left says where to go on.
MEMOP_EXTENT_SHIFT = 6
MEMOP_CMD_MASK = (1 << MEMOP_EXTENT_SHIFT) - 1

XENMAPSPACE_shared_info = 0
XENMAPSPACE_grant_table = 1
XENMAPSPACE_gmfn = 2
XENMAPSPACE_gmfn_range = 3
XENMAPSPACE_gmfn_foreign = 4
XENMAPSPACE_dev_mmio = 5
XENMAPIDX_grant_table_status = 0x80000000

XENMEMF_populate_on_demand = 1 << 16
XENMEMF_exact_node_request = 1 << 17
XENMEMF_vnode = 1 << 18

XENMEM_RDM_ALL = 1

XEN_MEMORY_RESERVATION = Layout(
    "xen_memory_reservation",
    32,
    [
        Field("extent_start", 0, "Q"),
        Field("nr_extents", 8, "Q"),
        Field("extent_order", 16, "I"),
        Field("mem_flags", 20, "I"),
        Field("domid", 24, "H"),
        Field("_pad0", 26, "6s"),
    ],
    ctype="struct xen_memory_reservation",
)

XEN_MEMORY_RESERVATION_32 = Layout(
    "xen_memory_reservation of 32 bits",
    20,
    [
        Field("extent_start", 0, "I"),
        Field("nr_extents", 4, "I"),
        Field("extent_order", 8, "I"),
        Field("mem_flags", 12, "I"),
        Field("domid", 16, "H"),
        Field("_pad0", 18, "2s"),
    ],
    ctype="struct xen_memory_reservation",
)

XEN_MEMORY_EXCHANGE = Layout(
    "xen_memory_exchange",
    72,
    [Field("in", 0, "32s"), Field("out", 32, "32s"), Field("nr_exchanged", 64, "Q")],
    ctype="struct xen_memory_exchange",
)

XEN_MEMORY_EXCHANGE_32 = Layout(
    "xen_memory_exchange of 32 bits",
    44,
    [Field("in", 0, "20s"), Field("out", 20, "20s"), Field("nr_exchanged", 40, "I")],
    ctype="struct xen_memory_exchange",
)

# XENMEM_current_reservation, XENMEM_maximum_reservation and XENMEM_maximum_gpfn.
XEN_MEMORY_DOMAIN = Layout("domid_t", 2, [Field("domid", 0, "H")])

XEN_ADD_TO_PHYSMAP = Layout(
    "xen_add_to_physmap",
    24,
    [
        Field("domid", 0, "H"),
        Field("size", 2, "H"),
        Field("space", 4, "I"),
        Field("idx", 8, "Q"),
        Field("gpfn", 16, "Q"),
    ],
    ctype="struct xen_add_to_physmap",
)

XEN_ADD_TO_PHYSMAP_32 = Layout(
    "xen_add_to_physmap of 32 bits",
    16,
    [
        Field("domid", 0, "H"),
        Field("size", 2, "H"),
        Field("space", 4, "I"),
        Field("idx", 8, "I"),
        Field("gpfn", 12, "I"),
    ],
    ctype="struct xen_add_to_physmap",
)

XEN_ADD_TO_PHYSMAP_BATCH = Layout(
    "xen_add_to_physmap_batch",
    32,
    [
        Field("domid", 0, "H"),
        Field("space", 2, "H"),
        Field("size", 4, "H"),
        Field("u", 6, "H"),
        Field("idxs", 8, "Q"),
        Field("gpfns", 16, "Q"),
        Field("errs", 24, "Q"),
    ],
    ctype="struct xen_add_to_physmap_batch",
)

XEN_ADD_TO_PHYSMAP_BATCH_32 = Layout(
    "xen_add_to_physmap_batch of 32 bits",
    20,
    [
        Field("domid", 0, "H"),
        Field("space", 2, "H"),
        Field("size", 4, "H"),
        Field("u", 6, "H"),
        Field("idxs", 8, "I"),
        Field("gpfns", 12, "I"),
        Field("errs", 16, "I"),
    ],
    ctype="struct xen_add_to_physmap_batch",
)

XEN_REMOVE_FROM_PHYSMAP = Layout(
    "xen_remove_from_physmap",
    16,
    [Field("domid", 0, "H"), Field("_pad0", 2, "6s"), Field("gpfn", 8, "Q")],
    ctype="struct xen_remove_from_physmap",
)

XEN_REMOVE_FROM_PHYSMAP_32 = Layout(
    "xen_remove_from_physmap of 32 bits",
    8,
    [Field("domid", 0, "H"), Field("_pad0", 2, "2s"), Field("gpfn", 4, "I")],
    ctype="struct xen_remove_from_physmap",
)

XEN_MEMORY_MAP = Layout(
    "xen_memory_map",
    16,
    [Field("nr_entries", 0, "I"), Field("_pad0", 4, "4s"), Field("buffer", 8, "Q")],
    ctype="struct xen_memory_map",
)

XEN_MEMORY_MAP_32 = Layout(
    "xen_memory_map of 32 bits",
    8,
    [Field("nr_entries", 0, "I"), Field("buffer", 4, "I")],
    ctype="struct xen_memory_map",
)

# Not declared in a public header: as BIOS calls have it, 20 bytes without padding.
E820_ENTRY = Layout(
    "e820entry", 20, [Field("addr", 0, "Q"), Field("size", 8, "Q"), Field("type", 16, "I")]
)

XEN_FOREIGN_MEMORY_MAP = Layout(
    "xen_foreign_memory_map",
    24,
    [Field("domid", 0, "H"), Field("_pad0", 2, "6s"), Field("map", 8, "16s")],
    ctype="struct xen_foreign_memory_map",
)

XEN_FOREIGN_MEMORY_MAP_32 = Layout(
    "xen_foreign_memory_map of 32 bits",
    12,
    [Field("domid", 0, "H"), Field("_pad0", 2, "2s"), Field("map", 4, "8s")],
    ctype="struct xen_foreign_memory_map",
)

XEN_MEM_ACQUIRE_RESOURCE = Layout(
    "xen_mem_acquire_resource",
    32,
    [
        Field("domid", 0, "H"),
        Field("type", 2, "H"),
        Field("id", 4, "I"),
        Field("nr_frames", 8, "I"),
        Field("pad", 12, "I"),
        Field("frame", 16, "Q"),
        Field("frame_list", 24, "Q"),
    ],
    ctype="struct xen_mem_acquire_resource",
)

XEN_MEM_ACQUIRE_RESOURCE_32 = Layout(
    "xen_mem_acquire_resource of 32 bits",
    28,
    [
        Field("domid", 0, "H"),
        Field("type", 2, "H"),
        Field("id", 4, "I"),
        Field("nr_frames", 8, "I"),
        Field("pad", 12, "I"),
        Field("frame", 16, "Q"),
        Field("frame_list", 24, "I"),
    ],
    ctype="struct xen_mem_acquire_resource",
)

XEN_POD_TARGET = Layout(
    "xen_pod_target",
    40,
    [
        Field("target_pages", 0, "Q"),
        Field("tot_pages", 8, "Q"),
        Field("pod_cache_pages", 16, "Q"),
        Field("pod_entries", 24, "Q"),
        Field("domid", 32, "H"),
        Field("_pad0", 34, "6s"),
    ],
    ctype="struct xen_pod_target",
)

XEN_POD_TARGET_32 = Layout(
    "xen_pod_target of 32 bits",
    36,
    [
        Field("target_pages", 0, "Q"),
        Field("tot_pages", 8, "Q"),
        Field("pod_cache_pages", 16, "Q"),
        Field("pod_entries", 24, "Q"),
        Field("domid", 32, "H"),
        Field("_pad0", 34, "2s"),
    ],
    ctype="struct xen_pod_target",
)

XEN_VNUMA_TOPOLOGY_INFO = Layout(
    "xen_vnuma_topology_info",
    40,
    [
        Field("domid", 0, "H"),
        Field("pad", 2, "H"),
        Field("nr_vnodes", 4, "I"),
        Field("nr_vcpus", 8, "I"),
        Field("nr_vmemranges", 12, "I"),
        Field("vdistance", 16, "Q"),
        Field("vcpu_to_vnode", 24, "Q"),
        Field("vmemrange", 32, "Q"),
    ],
    ctype="struct xen_vnuma_topology_info",
)

XEN_RESERVED_DEVICE_MEMORY_MAP = Layout(
    "xen_reserved_device_memory_map",
    24,
    [
        Field("flags", 0, "I"),
        Field("nr_entries", 4, "I"),
        Field("buffer", 8, "Q"),
        Field("dev", 16, "4s"),
        Field("_pad0", 20, "4s"),
    ],
    ctype="struct xen_reserved_device_memory_map",
)

XEN_RESERVED_DEVICE_MEMORY_MAP_32 = Layout(
    "xen_reserved_device_memory_map of 32 bits",
    16,
    [
        Field("flags", 0, "I"),
        Field("nr_entries", 4, "I"),
        Field("buffer", 8, "I"),
        Field("dev", 12, "4s"),
    ],
    ctype="struct xen_reserved_device_memory_map",
)
