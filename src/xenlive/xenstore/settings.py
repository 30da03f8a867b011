"""What may be set of one domain: GET_FEATURE, SET_FEATURE, GET_QUOTA, SET_QUOTA.

Specification: Xen `docs/misc/xenstore.txt`; order of checks and errors are the C daemon's (Xen
`tools/xenstored/domain.c`: `do_get_feature` to `do_set_quota`). Features are the bits of offset
2064 of a domain's ring page (`public/io/xs_wire.h`, `XENSTORE_SERVER_FEATURE_…`).

**Invariants.** A domain that exists becomes known by being named here, as by a permission. Features
are fixed from INTRODUCE on: what stands in a guest's page stays true. A refused request changes
nothing.
"""

from __future__ import annotations

from xenlive.abi.xs_ring import XENSTORE_FEATURES
from xenlive.errors import XenstoreError
from xenlive.xenstore import domains, quota
from xenlive.xenstore.words import c_int, parse_domid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.requests import Request, View
    from xenlive.xenstore.server import XenstoreServer

_OK = b"OK\0"


def features_of(server: XenstoreServer, domid: int) -> int:
    """What a known domain is told that this server can do."""
    account = server.store.accounts.by_domid.get(domid)
    return XENSTORE_FEATURES if account is None else account.features


def do_get_feature(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """GET_FEATURE `[domid|]`: the bits, in decimal; those of others only for domain 0."""
    words = request.payload.split(b"\0")[:-1]
    domid = conn.domid
    if words:
        if not conn.privileged:
            raise XenstoreError("EACCES")
        if len(words) > 1:
            raise XenstoreError("EINVAL")
        domid = _known(server, words[0])
    return b"%d\0" % features_of(server, domid)


def do_set_feature(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """SET_FEATURE `domid|value|`: before INTRODUCE, and only what this server can do."""
    words = request.payload.split(b"\0")[:-1]
    if len(words) != 2:
        raise XenstoreError("EINVAL")
    domid = parse_domid(words[0])
    features = c_int(words[1]) & 0xFFFFFFFF
    _known(server, words[0])
    if domid in server.introduced:
        raise XenstoreError("EBUSY")
    if features & ~XENSTORE_FEATURES:
        raise XenstoreError("EINVAL")
    server.set_features(domid, features)
    return _OK


def do_get_quota(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """GET_QUOTA: the names there are; `quota|`: the global value; `domid|quota|`: a domain's."""
    words = request.payload.split(b"\0")[:-1]
    if len(words) > 2:
        raise XenstoreError("EINVAL")
    if not words:
        return " ".join(quota.DEFAULTS).encode() + b"\0"
    values = server.quotas.values
    if len(words) == 2:
        account = server.store.accounts.by_domid.get(_known(server, words[0]))
        if account is not None:
            values = account.quotas
    name = quota.parse_name(words[-1])
    if name is None:
        raise XenstoreError("EINVAL")
    return b"%d\0" % values[name]


def do_set_quota(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """SET_QUOTA `quota|value|`: for domains to come; `domid|quota|value|`: for one domain."""
    words = request.payload.split(b"\0")[:-1]
    if len(words) not in (2, 3):
        raise XenstoreError("EINVAL")
    domid = _known(server, words[0]) if len(words) == 3 else None
    name = quota.parse_name(words[-2])
    value = c_int(words[-1]) & 0xFFFFFFFF
    if name is None or value == quota.DISABLED:
        raise XenstoreError("EINVAL")
    if domid is None:
        server.set_quota(name, value)
    elif domid:
        server.set_quota(name, value, domid)
    return _OK


def _known(server: XenstoreServer, text: bytes) -> int:
    """The domain of that id, known from now on; ENOENT if there is none."""
    domid = parse_domid(text)
    domains.learn(server, [b"n%d" % domid])
    if domid not in server.store.domains:
        raise XenstoreError("ENOENT")
    return domid
