"""The page by which a domain talks to Xenstore: two rings, their indices, and how things stand.

Specification: Xen `public/io/xs_wire.h` (`xenstore_domain_interface`) and
`docs/misc/xenstore-ring.txt`.

       0  req    1024 bytes to the store            2048  req_cons    2052  req_prod
    1024  rsp    1024 bytes from the store          2056  rsp_cons    2060  rsp_prod
    2064  server_features    2068  connection       2072  error    2076  evtchn_port

`evtchn_port` is a domain's own word for its event channel, as Xen writes it for domains that it
starts itself; headers of Xen 4.17 end before it.

**Invariants.** Indices run free; only their value modulo the ring's size is a place in it. Each is
an aligned u32: one `memoryview.cast("I")` item, read or written at once.
"""

from __future__ import annotations

from xenlive.abi.layout import Field, Layout

XENSTORE_DOMAIN_INTERFACE = Layout(
    "xenstore_domain_interface",
    2080,
    [
        Field("req", 0, "1024s"),
        Field("rsp", 1024, "1024s"),
        Field("req_cons", 2048, "I"),
        Field("req_prod", 2052, "I"),
        Field("rsp_cons", 2056, "I"),
        Field("rsp_prod", 2060, "I"),
        Field("server_features", 2064, "I"),
        Field("connection", 2068, "I"),
        Field("error", 2072, "I"),
        Field("evtchn_port", 2076, "I"),
    ],
    ctype="struct xenstore_domain_interface",
)

XENSTORE_RING_SIZE = 1024
RSP_AT = XENSTORE_DOMAIN_INTERFACE.offset_of("rsp")

# The words behind the rings as items of the page's `cast("I")`.
REQ_CONS = XENSTORE_DOMAIN_INTERFACE.offset_of("req_cons") // 4
REQ_PROD = XENSTORE_DOMAIN_INTERFACE.offset_of("req_prod") // 4
RSP_CONS = XENSTORE_DOMAIN_INTERFACE.offset_of("rsp_cons") // 4
RSP_PROD = XENSTORE_DOMAIN_INTERFACE.offset_of("rsp_prod") // 4
SERVER_FEATURES = XENSTORE_DOMAIN_INTERFACE.offset_of("server_features") // 4
CONNECTION = XENSTORE_DOMAIN_INTERFACE.offset_of("connection") // 4
ERROR = XENSTORE_DOMAIN_INTERFACE.offset_of("error") // 4
EVTCHN_PORT = XENSTORE_DOMAIN_INTERFACE.offset_of("evtchn_port") // 4

# Bits of `server_features`.
XENSTORE_SERVER_FEATURE_RECONNECTION = 1
XENSTORE_SERVER_FEATURE_ERROR = 2
XENSTORE_SERVER_FEATURE_WATCHDEPTH = 4
XENSTORE_SERVER_FEATURE_DOMID_ANY = 8

#: Those that this program has, and the C daemon: it never takes a reconnection from a guest.
XENSTORE_FEATURES = (
    XENSTORE_SERVER_FEATURE_ERROR
    | XENSTORE_SERVER_FEATURE_WATCHDEPTH
    | XENSTORE_SERVER_FEATURE_DOMID_ANY
)

# Values of `connection`.
XENSTORE_CONNECTED = 0
XENSTORE_RECONNECT = 1

# Values of `error`.
XENSTORE_ERROR_NONE = 0
XENSTORE_ERROR_COMM = 1
XENSTORE_ERROR_RINGIDX = 2
XENSTORE_ERROR_PROTO = 3
