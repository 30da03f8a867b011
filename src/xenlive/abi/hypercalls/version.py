"""Arguments of the version hypercall, console and assists.

Specification: Xen `public/version.h`, `public/features.h`, `public/xen.h`.

**Invariants.** Strings are arrays of a fixed size, padded with NULs.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

XENVER_version = 0
XENVER_extraversion = 1
XENVER_compile_info = 2
XENVER_capabilities = 3
XENVER_changeset = 4
XENVER_platform_parameters = 5
XENVER_get_features = 6
XENVER_pagesize = 7
XENVER_guest_handle = 8
XENVER_commandline = 9
XENVER_build_id = 10

XENFEAT_writable_page_tables = 0
XENFEAT_auto_translated_physmap = 2
XENFEAT_hvm_callback_vector = 8
XENFEAT_hvm_safe_pvclock = 9
XENFEAT_memory_op_vnode_supported = 13
XENFEAT_not_direct_mapped = 16

EXTRAVERSION_SIZE = 16
CAPABILITIES_SIZE = 1024
CHANGESET_SIZE = 64
GUEST_HANDLE_SIZE = 16

XEN_COMPILE_INFO = Layout(
    "xen_compile_info",
    144,
    [
        Field("compiler", 0, "64s"),
        Field("compile_by", 64, "16s"),
        Field("compile_domain", 80, "32s"),
        Field("compile_date", 112, "32s"),
    ],
    ctype="struct xen_compile_info",
)

XEN_FEATURE_INFO = Layout(
    "xen_feature_info",
    8,
    [Field("submap_idx", 0, "I"), Field("submap", 4, "I")],
    ctype="struct xen_feature_info",
)

CONSOLEIO_write = 0
CONSOLEIO_read = 1

VMASST_CMD_enable = 0
VMASST_CMD_disable = 1
VMASST_TYPE_runstate_update_flag = 5
