"""The Xenstore migration stream: header and records.

Specification: Xen `docs/designs/xenstore-migration.md`, versions 1 and 2; C names as in
`tools/xenstored/xenstore_state.h`. A stream is a header and records, each with a length that is a
multiple of 8 as the C daemon writes them, up to the END record:

    ┌ xenstore, version (big endian), flags ┐┌ type, length ┐┌ body, padding ┐┌ type …

**Invariants.** The header is big endian, all else little endian (flags bit 0 clear). WATCH_EXT has
its data at 12, as the specification says.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

XS_STATE_IDENT = b"xenstore"
XS_STATE_VERSION_MAX = 2
XS_STATE_READ_VERSIONS = (1, 2)
XS_STATE_FLAG_BIG_ENDIAN = 1

XS_STATE_TYPE_END = 0
XS_STATE_TYPE_GLOBAL = 1
XS_STATE_TYPE_CONN = 2
XS_STATE_TYPE_WATCH = 3
XS_STATE_TYPE_TA = 4
XS_STATE_TYPE_NODE = 5
XS_STATE_TYPE_GLB_QUOTA = 6
XS_STATE_TYPE_DOMAIN = 7
XS_STATE_TYPE_WATCH_EXT = 8

XS_STATE_CONN_TYPE_RING = 0
XS_STATE_CONN_TYPE_SOCKET = 1
XS_STATE_CONN_FIELDS_UNIQ_ID = 1

XS_STATE_NODE_TA_READ = 1
XS_STATE_NODE_TA_WRITTEN = 2

WATCH_DEPTH_UNLIMITED = 0xFFFF

XS_STATE_PREAMBLE = Layout(
    "xs_state_preamble",
    16,
    [Field("ident", 0, "8s"), Field("version", 8, "I"), Field("flags", 12, "I")],
    order=">",
    ctype="struct xs_state_preamble",
)

XS_STATE_RECORD_HEADER = Layout(
    "xs_state_record_header",
    8,
    [Field("type", 0, "I"), Field("length", 4, "I")],
    ctype="struct xs_state_record_header",
)

XS_STATE_GLOBAL = Layout(
    "xs_state_global",
    8,
    [Field("socket_fd", 0, "i"), Field("evtchn_fd", 4, "i")],
    ctype="struct xs_state_global",
)

XS_STATE_CONNECTION = Layout(
    "xs_state_connection",
    24,
    [
        Field("conn_id", 0, "I"),
        Field("conn_type", 4, "H"),
        Field("fields", 6, "H"),
        Field("spec", 8, "8s"),
        Field("data_in_len", 16, "H"),
        Field("data_resp_len", 18, "H"),
        Field("data_out_len", 20, "I"),
    ],
    ctype="struct xs_state_connection",
)

XS_STATE_CONN_RING = Layout(
    "xs_state_connection.spec.ring",
    8,
    [Field("domid", 0, "H"), Field("tdomid", 2, "H"), Field("evtchn", 4, "I")],
)

XS_STATE_CONN_SOCKET = Layout(
    "xs_state_connection.spec.socket",
    8,
    [Field("socket_fd", 0, "i"), Field("_pad", 4, "4s")],
)

XS_STATE_CONN_UNIQUE_ID = Layout("unique-id", 8, [Field("unique_id", 0, "Q")])

XS_STATE_WATCH = Layout(
    "xs_state_watch",
    8,
    [Field("conn_id", 0, "I"), Field("path_length", 4, "H"), Field("token_length", 6, "H")],
    ctype="struct xs_state_watch",
)

XS_STATE_WATCH_EXT = Layout(
    "xs_state_watch_ext",
    12,
    [
        Field("conn_id", 0, "I"),
        Field("path_length", 4, "H"),
        Field("token_length", 6, "H"),
        Field("depth", 8, "H"),
        Field("_pad", 10, "2s"),
    ],
    ctype="struct xs_state_watch_ext",
)

XS_STATE_TRANSACTION = Layout(
    "xs_state_transaction",
    8,
    [Field("conn_id", 0, "I"), Field("ta_id", 4, "I")],
    ctype="struct xs_state_transaction",
)

XS_STATE_NODE = Layout(
    "xs_state_node",
    16,
    [
        Field("conn_id", 0, "I"),
        Field("ta_id", 4, "I"),
        Field("path_len", 8, "H"),
        Field("data_len", 10, "H"),
        Field("ta_access", 12, "H"),
        Field("perm_n", 14, "H"),
    ],
    ctype="struct xs_state_node",
)

XS_STATE_NODE_PERM = Layout(
    "xs_state_node_perm",
    4,
    [Field("access", 0, "B"), Field("flags", 1, "B"), Field("domid", 2, "H")],
    ctype="struct xs_state_node_perm",
)

XS_STATE_GLB_QUOTA = Layout(
    "xs_state_glb_quota",
    4,
    [Field("n_dom_quota", 0, "H"), Field("n_glob_quota", 2, "H")],
    ctype="struct xs_state_glb_quota",
)

XS_STATE_DOMAIN = Layout(
    "xs_state_domain",
    8,
    [Field("domain_id", 0, "H"), Field("n_quota", 2, "H"), Field("features", 4, "I")],
    ctype="struct xs_state_domain",
)
