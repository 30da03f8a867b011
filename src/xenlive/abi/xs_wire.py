"""The Xenstore wire protocol: message types, header, error names, limits.

Specification: Xen `public/io/xs_wire.h` and `docs/misc/xenstore.txt`. Each message, in both
directions, is a header and `len` bytes of payload:

    0      4        8       12      16           16 + len
    ├──────┼────────┼───────┼───────┼─────────────┤
    │ type │ req_id │ tx_id │  len  │ payload …   │      all u32, little endian on x86
    └──────┴────────┴───────┴───────┴─────────────┘

**Invariants.** Only numbers and names live here, no behaviour. A reply's `req_id` and `tx_id` are
its request's, byte for byte.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

XS_CONTROL = 0
XS_DIRECTORY = 1
XS_READ = 2
XS_GET_PERMS = 3
XS_WATCH = 4
XS_UNWATCH = 5
XS_TRANSACTION_START = 6
XS_TRANSACTION_END = 7
XS_INTRODUCE = 8
XS_RELEASE = 9
XS_GET_DOMAIN_PATH = 10
XS_WRITE = 11
XS_MKDIR = 12
XS_RM = 13
XS_SET_PERMS = 14
XS_WATCH_EVENT = 15
XS_ERROR = 16
XS_IS_DOMAIN_INTRODUCED = 17
XS_RESUME = 18
XS_SET_TARGET = 19
XS_RESET_WATCHES = 21
XS_DIRECTORY_PART = 22
XS_GET_FEATURE = 23
XS_SET_FEATURE = 24
XS_GET_QUOTA = 25
XS_SET_QUOTA = 26
XS_TYPE_COUNT = 27
XS_INVALID = 0xFFFF

TYPE_NAMES = {
    XS_CONTROL: "CONTROL",
    XS_DIRECTORY: "DIRECTORY",
    XS_READ: "READ",
    XS_GET_PERMS: "GET_PERMS",
    XS_WATCH: "WATCH",
    XS_UNWATCH: "UNWATCH",
    XS_TRANSACTION_START: "TRANSACTION_START",
    XS_TRANSACTION_END: "TRANSACTION_END",
    XS_INTRODUCE: "INTRODUCE",
    XS_RELEASE: "RELEASE",
    XS_GET_DOMAIN_PATH: "GET_DOMAIN_PATH",
    XS_WRITE: "WRITE",
    XS_MKDIR: "MKDIR",
    XS_RM: "RM",
    XS_SET_PERMS: "SET_PERMS",
    XS_WATCH_EVENT: "WATCH_EVENT",
    XS_ERROR: "ERROR",
    XS_IS_DOMAIN_INTRODUCED: "IS_DOMAIN_INTRODUCED",
    XS_RESUME: "RESUME",
    XS_SET_TARGET: "SET_TARGET",
    XS_RESET_WATCHES: "RESET_WATCHES",
    XS_DIRECTORY_PART: "DIRECTORY_PART",
    XS_GET_FEATURE: "GET_FEATURE",
    XS_SET_FEATURE: "SET_FEATURE",
    XS_GET_QUOTA: "GET_QUOTA",
    XS_SET_QUOTA: "SET_QUOTA",
}

XSD_SOCKMSG = Layout(
    "xsd_sockmsg",
    16,
    [
        Field("type", 0, "I"),
        Field("req_id", 4, "I"),
        Field("tx_id", 8, "I"),
        Field("len", 12, "I"),
    ],
    ctype="struct xsd_sockmsg",
)

XENSTORE_PAYLOAD_MAX = 4096
XENSTORE_ABS_PATH_MAX = 3072
XENSTORE_REL_PATH_MAX = 2048

# What an ERROR reply may name (`xsd_errors[]`); anything else goes out as EINVAL.
XSD_ERRORS = (
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
)

# Domain ids with a meaning of their own (`public/xen.h`).
DOMID_FIRST_RESERVED = 0x7FF0
DOMID_SELF = 0x7FF0
DOMID_INVALID = 0x7FF4
DOMID_ANY = 0x7FF5
