"""What each request does: one function a message type, and the table of them.

Specification: Xen `docs/misc/xenstore.txt`; where it is silent, the C daemon's behaviour. A
function gets the server, the connection, the request, and the view it works on: the store, or the
transaction that the request names. It returns the payload of the reply, or None if the reply was
sent or is to come later, or raises XenstoreError with the name of the error.

**Invariants.** An error leaves store, watches and transactions as they were (except that a failed
commit ends its transaction). All checks of a request come before its first change. Who may not
look at a node can't tell whether it is there: EACCES, unless the nearest node above it allows.
"""

from __future__ import annotations

from xenlive.abi.xs_ring import (
    XENSTORE_FEATURES,
    XENSTORE_SERVER_FEATURE_DOMID_ANY,
    XENSTORE_SERVER_FEATURE_WATCHDEPTH,
)
from xenlive.abi.xs_wire import (
    DOMID_ANY,
    DOMID_SELF,
    XENSTORE_PAYLOAD_MAX,
    XS_CONTROL,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_GET_DOMAIN_PATH,
    XS_GET_FEATURE,
    XS_GET_PERMS,
    XS_GET_QUOTA,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_RELEASE,
    XS_RESET_WATCHES,
    XS_RESUME,
    XS_RM,
    XS_SET_FEATURE,
    XS_SET_PERMS,
    XS_SET_QUOTA,
    XS_SET_TARGET,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_TYPE_COUNT,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.errors import XenstoreError
from xenlive.xenstore import domains, limits, perms, settings
from xenlive.xenstore.paths import home_of, parent_of
from xenlive.xenstore.transaction import Transaction
from xenlive.xenstore.watches import Watch
from xenlive.xenstore.words import c_int, only_word, parse_domid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.server import XenstoreServer
    from xenlive.xenstore.store import Node, Store

    View = Store | Transaction
    Handler = Callable[["XenstoreServer", Connection, "Request", View], bytes | None]

OK = b"OK\0"

# How a request relates to transactions and privilege (the row's flags).
NO_TRANSACTION = 1
PRIVILEGED = 2


class Request:
    """One request: `head` is type, request id and transaction id as they came."""

    __slots__ = ("head", "kind", "payload", "tx_id")

    def __init__(self, head: bytes, kind: int, tx_id: int, payload: bytes) -> None:
        self.head = head
        self.kind = kind
        self.tx_id = tx_id
        self.payload = payload


def do_read(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """READ `path|`: the value."""
    return _get_node(server, conn, view, _path(server, conn, request), perms.READ).value


def do_directory(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """DIRECTORY `path|`: the children's names; E2BIG if they don't fit."""
    node = _get_node(server, conn, view, _path(server, conn, request), perms.READ)
    if node.children_bytes > XENSTORE_PAYLOAD_MAX:
        raise XenstoreError("E2BIG")
    return node.list_names()


def do_directory_part(
    server: XenstoreServer, conn: Connection, request: Request, view: View
) -> bytes:
    """DIRECTORY_PART `path|offset|`: generation, names from the offset on, NUL at the end."""
    if request.payload.count(b"\0") != 2:
        raise XenstoreError("EINVAL")
    raw, number = request.payload.split(b"\0")[:2]
    node = _get_node(server, conn, view, server.canonical(conn, raw), perms.READ)
    generation = b"%d\0" % node.generation
    offset = c_int(number) & 0xFFFFFFFF
    if offset >= node.children_bytes:
        return generation + b"\0"
    names = node.list_names()
    room = XENSTORE_PAYLOAD_MAX - len(generation) - 1
    if len(names) - offset <= room:
        return generation + names[offset:] + b"\0"
    end = names.rfind(b"\0", offset, offset + room) + 1
    return generation + names[offset : max(end, offset)]


def do_write(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """WRITE `path|value`: makes what is missing, down to the node."""
    raw, nul, value = request.payload.partition(b"\0")
    if not nul:
        raise XenstoreError("EINVAL")
    path = server.canonical(conn, raw)
    node = _may_write(server, conn, view, path)
    if node is None:
        _create(server, conn, view, path, value)
    else:
        limits.check_value(conn, view, node, value)
        view.put_value(path, node, value)
    server.changed(conn, view, path)
    return OK


def do_mkdir(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """MKDIR `path|`: the same without a value, and nothing if the node is there."""
    path = _path(server, conn, request)
    if _may_write(server, conn, view, path) is None:
        _create(server, conn, view, path, b"")
        server.changed(conn, view, path)
    return OK


def do_rm(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """RM `path|`: the node and all below it; fine if only the node itself is missing."""
    path = _path(server, conn, request)
    if _may_write(server, conn, view, path) is None:
        if view.find(parent_of(path)) is None:
            raise XenstoreError("ENOENT")
        return OK
    if path == b"/":
        raise XenstoreError("EINVAL")
    if isinstance(view, Transaction):
        view.remove(path)
        return OK
    server.remove_subtree(path, conn)
    return OK


def do_get_perms(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """GET_PERMS `path|`: `n0|r5|`."""
    path = _path(server, conn, request, special=True)
    text = perms.to_text(_get_node(server, conn, view, path, perms.READ).perms)
    if len(text) > XENSTORE_PAYLOAD_MAX:
        raise XenstoreError("E2BIG")
    return text


def do_set_perms(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """SET_PERMS `path|perm|…`: the owner's right, but only domain 0 gives a node away."""
    raw, *texts = request.payload.split(b"\0")[:-1] or [b""]
    if not texts:
        raise XenstoreError("EINVAL")
    limits.check_permission_count(conn, len(texts))
    domains.learn(server, texts)
    any_domain = conn.account is None or bool(
        conn.account.features & XENSTORE_SERVER_FEATURE_DOMID_ANY
    )
    wanted = perms.from_text(texts, server.store.domains, any_domain)
    path = server.canonical(conn, raw, special=True)
    node = _get_node(server, conn, view, path, perms.WRITE | perms.OWNER)
    old = server.store.fresh_perms(node)
    if not conn.privileged and perms.owner_of(wanted) != perms.owner_of(old):
        raise XenstoreError("EPERM")
    if perms.owner_of(wanted) == DOMID_ANY:
        raise XenstoreError("ENOENT")  # nobody would pay for it
    limits.check_permissions(conn, view, node, wanted)
    view.put_perms(path, node, wanted)
    server.changed(conn, view, path, old)
    return OK


def do_watch(
    server: XenstoreServer, conn: Connection, request: Request, view: View
) -> bytes | None:
    """WATCH `path|token|[depth|]`: the first event follows the reply."""
    words = request.payload.split(b"\0")[:-1]
    features = XENSTORE_FEATURES if conn.account is None else conn.account.features
    if len(words) != 2 and (len(words) != 3 or not features & XENSTORE_SERVER_FEATURE_WATCHDEPTH):
        raise XenstoreError("EINVAL")
    depth = c_int(words[2]) if len(words) == 3 else None
    if depth is not None and depth < 0:
        raise XenstoreError("EINVAL")
    raw, token = words[:2]
    path = server.canonical(conn, raw, special=True)
    if (path, token) in conn.watches:
        raise XenstoreError("EEXIST")
    limits.check_watch(conn, path, token)
    watch = Watch(conn, path, token, depth, len(path) - len(raw))
    server.watches.add(watch)
    server.answer(conn, request, OK)
    server.watches.send(watch, path, conn)
    return None


def do_unwatch(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """UNWATCH `path|token|`."""
    words = request.payload.split(b"\0")[:-1]
    if len(words) != 2:
        raise XenstoreError("EINVAL")
    watch = conn.watches.get((server.canonical(conn, words[0], special=True), words[1]))
    if watch is None:
        raise XenstoreError("ENOENT")
    server.watches.remove(watch)
    return OK


def do_reset_watches(
    server: XenstoreServer, conn: Connection, request: Request, view: View
) -> bytes:
    """RESET_WATCHES: ends all of the caller's watches and transactions."""
    server.watches.remove_all(conn)
    server.end_transactions(conn)
    return OK


def do_transaction_start(
    server: XenstoreServer, conn: Connection, request: Request, view: View
) -> bytes:
    """TRANSACTION_START: the new id, in decimal."""
    if isinstance(view, Transaction):
        raise XenstoreError("EBUSY")
    limits.check_start(conn)
    return b"%d\0" % server.start_transaction(conn)


def do_transaction_end(
    server: XenstoreServer, conn: Connection, request: Request, view: View
) -> bytes:
    """TRANSACTION_END `T|` or `F|`: EAGAIN, and nothing changed, on a conflict."""
    if request.payload not in (b"T\0", b"F\0"):
        raise XenstoreError("EINVAL")
    if not isinstance(view, Transaction):
        raise XenstoreError("ENOENT")
    if request.payload == b"F\0":
        server.end_transaction(conn, request.tx_id)
        return OK
    try:
        limits.check_commit(conn, view)
    except XenstoreError:
        server.end_transaction(conn, request.tx_id)
        raise
    if view.in_conflict():
        server.end_transaction(conn, request.tx_id)
        raise XenstoreError("EAGAIN")
    events = server.commit(conn, request.tx_id)
    if not server.watches.by_path:
        return OK
    for path, exact, old in events:
        server.watches.fire(server.store, path, conn, exact=exact, old_perms=old)
    return OK


def do_get_domain_path(
    server: XenstoreServer, conn: Connection, request: Request, view: View
) -> bytes:
    """GET_DOMAIN_PATH `domid|`."""
    return home_of(parse_domid(only_word(request.payload))) + b"\0"


def do_is_domain_introduced(
    server: XenstoreServer, conn: Connection, request: Request, view: View
) -> bytes:
    """IS_DOMAIN_INTRODUCED `domid|`: `T|` or `F|`."""
    domid = parse_domid(only_word(request.payload))
    return b"T\0" if domid in server.introduced or domid == DOMID_SELF else b"F\0"


def do_control(
    server: XenstoreServer, conn: Connection, request: Request, view: View
) -> bytes | None:
    """CONTROL `verb|argument|…`: whatever is registered for the verb."""
    words = request.payload.split(b"\0")[:-1]
    handler = server.control.get(words[0]) if words else None
    if handler is None:
        raise XenstoreError("EINVAL")
    return handler(conn, request, words[1:])


# Indexed by message type: the function, None for ENOSYS, and the row's flags.
TABLE: list[tuple[Handler | None, int]] = [(None, 0)] * XS_TYPE_COUNT
TABLE[XS_CONTROL] = (do_control, PRIVILEGED)
TABLE[XS_DIRECTORY] = (do_directory, 0)
TABLE[XS_READ] = (do_read, 0)
TABLE[XS_GET_PERMS] = (do_get_perms, 0)
TABLE[XS_WATCH] = (do_watch, NO_TRANSACTION)
TABLE[XS_UNWATCH] = (do_unwatch, NO_TRANSACTION)
TABLE[XS_TRANSACTION_START] = (do_transaction_start, 0)
TABLE[XS_TRANSACTION_END] = (do_transaction_end, 0)
TABLE[XS_INTRODUCE] = (domains.do_introduce, PRIVILEGED)
TABLE[XS_RELEASE] = (domains.do_release, PRIVILEGED)
TABLE[XS_GET_DOMAIN_PATH] = (do_get_domain_path, 0)
TABLE[XS_WRITE] = (do_write, 0)
TABLE[XS_MKDIR] = (do_mkdir, 0)
TABLE[XS_RM] = (do_rm, 0)
TABLE[XS_SET_PERMS] = (do_set_perms, 0)
TABLE[XS_IS_DOMAIN_INTRODUCED] = (do_is_domain_introduced, PRIVILEGED)
TABLE[XS_RESUME] = (domains.do_resume, PRIVILEGED)
TABLE[XS_SET_TARGET] = (domains.do_set_target, PRIVILEGED)
TABLE[XS_RESET_WATCHES] = (do_reset_watches, 0)
TABLE[XS_DIRECTORY_PART] = (do_directory_part, 0)
TABLE[XS_GET_FEATURE] = (settings.do_get_feature, 0)
TABLE[XS_SET_FEATURE] = (settings.do_set_feature, PRIVILEGED)
TABLE[XS_GET_QUOTA] = (settings.do_get_quota, PRIVILEGED)
TABLE[XS_SET_QUOTA] = (settings.do_set_quota, PRIVILEGED)


def _path(
    server: XenstoreServer, conn: Connection, request: Request, special: bool = False
) -> bytes:
    return server.canonical(conn, only_word(request.payload), special=special)


def _get_node(
    server: XenstoreServer, conn: Connection, view: View, path: bytes, wanted: int
) -> Node:
    """The node at `path`, if the connection may do all of `wanted` with it."""
    node = view.find(path)
    if server.trace is not None:
        server.trace.looked(path, node)
    if conn.privileged:
        if node is None:
            _nearest(view, path)
            raise XenstoreError("ENOENT")
        return node
    allowed = server.store.allowed
    if node is None or allowed(node, conn.domid, conn.target) & wanted != wanted:
        above = _nearest(view, path)
        known = node is None and allowed(above, conn.domid, conn.target) & wanted
        raise XenstoreError("ENOENT" if known else "EACCES")
    return node


def _nearest(view: View, path: bytes) -> Node:
    """The nearest node above `path`.

    A transaction that finds nothing at a path depends on this node, as it does with the C daemon.
    """
    while True:
        path = parent_of(path)
        node = view.find(path)
        if node is not None:
            return node


def _may_write(server: XenstoreServer, conn: Connection, view: View, path: bytes) -> Node | None:
    """The node at `path`, None if there is none and the connection may make it; else EACCES."""
    try:
        return _get_node(server, conn, view, path, perms.WRITE)
    except XenstoreError as error:
        if error.name != "ENOENT":
            raise
        return None


def _create(
    server: XenstoreServer, conn: Connection, view: View, path: bytes, value: bytes
) -> None:
    """Makes a node and those missing above it, with the permissions of the nearest that exists."""
    missing = [path]
    above = view.find(parent_of(path))
    while above is None:
        missing.append(parent_of(missing[-1]))
        above = view.find(parent_of(missing[-1]))
    inherited = server.store.fresh_perms(above)
    if not conn.privileged:
        inherited = perms.with_owner(inherited, conn.domid)
        limits.check_create(conn, view, missing, above, value, inherited)
    while len(missing) > 1:
        view.create(missing.pop(), b"", inherited)
    view.create(path, value, inherited)
