"""What a guest may not do because of a quota: asked after all other checks, before a change.

Specification: the C daemon (Xen `tools/xenstored/core.c`: `create_node`, `write_node_raw`;
`domain.c`: `domain_quota_val_exceeds`, `domain_chk_quota`), its errors and their order.

    too many nodes, permissions, watches, transactions; too large a node     ENOSPC
    too much memory: for a node                                              EIO
                     for a watch, or an answer of more than 16 bytes         ENOMEM
    too long a path                                                          EINVAL

**Invariants.** Nothing is changed or refused for domain 0 (a connection without an account). In a
transaction a refusal because of size or memory fails the transaction: its commit is ENOMEM, as C
has it. A quota of N allows N, except that a node of `node-size` bytes is too large, and a domain
that uses `memory` bytes or has `outstanding` answers unread is stopped: as the C daemon always had
these three (the newest stops one before N for all: docs/differences.md).
"""

from __future__ import annotations

from xenlive.errors import XenstoreError
from xenlive.xenstore import perms
from xenlive.xenstore.accounts import node_size
from xenlive.xenstore.quota import (
    NODE_SIZE,
    NODES,
    PERMISSIONS,
    TRANSACTIONS,
    WATCHES,
)
from xenlive.xenstore.transaction import Transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.xenstore.accounts import Account
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.requests import View
    from xenlive.xenstore.store import Node

#: An answer up to here is sent whatever memory is left: an error always is (`DEFAULT_BUFFER_SIZE`).
SMALL_ANSWER = 16


def check_value(conn: Connection, view: View, node: Node, value: bytes) -> None:
    """Whether a node that is there may get this value."""
    account = conn.account
    if account is not None:
        size = node_size(node.perms, len(value), node.children_bytes)
        owner = perms.owner_of(node.perms)
        _check_node(account, conn, view, size, owner, len(value) - len(node.value))


def check_create(
    conn: Connection, view: View, missing: list[bytes], above: Node, value: bytes, inherited: bytes
) -> None:
    """Whether the nodes `missing`, the last one right below `above`, may be made."""
    account = conn.account
    if account is None:
        return
    if account.exceeds(NODES, account.used[NODES] + len(missing)):
        raise XenstoreError("ENOSPC")
    data, names = len(value), 0
    for path in missing:
        size = node_size(inherited, data, names)
        _check_node(account, conn, view, size, account.domid, size + len(path))
        data, names = 0, len(path) - path.rfind(b"/")
    size = node_size(above.perms, len(above.value), above.children_bytes + names)
    _check_node(account, conn, view, size, perms.owner_of(above.perms), names)


def check_permission_count(conn: Connection, count: int) -> None:
    """Whether a node may get so many permissions."""
    if conn.account is not None and conn.account.too_many(PERMISSIONS, count):
        raise XenstoreError("ENOSPC")


def check_permissions(conn: Connection, view: View, node: Node, wanted: bytes) -> None:
    """Whether a node that is there may get these permissions."""
    account = conn.account
    if account is not None:
        more = node_size(wanted, 0, 0) - node_size(node.perms, 0, 0)
        size = node_size(wanted, len(node.value), node.children_bytes)
        _check_node(account, conn, view, size, perms.owner_of(wanted), more)


def check_watch(conn: Connection, path: bytes, token: bytes) -> None:
    """Whether another watch may be set."""
    account = conn.account
    if account is None:
        return
    if account.exceeds(WATCHES, account.used[WATCHES] + 1):
        raise XenstoreError("ENOSPC")
    if account.over_memory(conn, len(path) + len(token)):
        raise XenstoreError("ENOMEM")


def check_start(conn: Connection) -> None:
    """Whether another transaction may be opened."""
    account = conn.account
    if account is not None and account.exceeds(TRANSACTIONS, account.used[TRANSACTIONS] + 1):
        raise XenstoreError("ENOSPC")


def check_commit(conn: Connection, transaction: Transaction) -> None:
    """Whether a transaction may be committed; conflicts are looked for after this."""
    if transaction.failed:
        raise XenstoreError("ENOMEM")
    account = conn.account
    if account is not None and transaction.has_created():
        count = account.used[NODES] + transaction.owned_more(account.domid)
        if account.exceeds(NODES, count):
            raise XenstoreError("ENOSPC")


def _check_node(
    account: Account, conn: Connection, view: View, size: int, owner: int, more_bytes: int
) -> None:
    error = ""
    if _too_large(account, size):
        error = "ENOSPC"
    elif owner == account.domid and account.over_memory(conn, more_bytes):
        error = "EIO"
    if error:
        if isinstance(view, Transaction):
            view.fail()
        raise XenstoreError(error)


def _too_large(account: Account, size: int) -> bool:
    quota = account.quotas["node-size"]
    if quota and size >= quota:
        return True
    account.note(NODE_SIZE, size)
    return False
