"""What is in use, counted when somebody asks: for CONTROL `quota`, `check` and `memreport`.

Specification: the words of the C daemon's `quota DOMID` (Xen `tools/xenstored/domain.c`,
`domain_get_quota`). Other domains' numbers are kept (`accounts.py`); domain 0's are what is left.

**Invariants.** Nothing is changed. What it costs grows with the nodes: only an operator asks.
"""

from __future__ import annotations

from xenlive.xenstore import perms
from xenlive.xenstore.accounts import node_size
from xenlive.xenstore.quota import ITEMS, MEMORY, NODES, OUTSTANDING, TRANSACTIONS, WATCHES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenlive.xenstore.server import XenstoreServer
    from xenlive.xenstore.store import Node, Store


def all_nodes(store: Store) -> Iterator[tuple[bytes, Node]]:
    """Every node with its path, the special ones at the end."""
    yield from store.nodes.items()
    yield from store.special.items()


def of_domain(server: XenstoreServer, domid: int) -> tuple[list[int], list[int]]:
    """What a known domain uses, and the most that it did; by the items of `quota.ITEMS`.

    For domain 0, which no account is kept of, the most is what it uses now.
    """
    account = server.store.accounts.by_domid.get(domid)
    if account is None:
        used = _of_domain_0(server)
        return used, used
    used = list(account.used)
    guest = server.rings.get(domid)
    if guest is not None:
        used[MEMORY] += guest.unsent_bytes()
    return used, [max(pair) for pair in zip(account.most, used, strict=True)]


def memory_report(server: XenstoreServer) -> Iterator[str]:
    """What is in memory, a line each."""
    store = server.store
    yield f"nodes {len(store.nodes) + len(store.special)}"
    yield f"bytes of paths {sum(len(path) for path in store.nodes)}"
    yield f"bytes of values {sum(len(node.value) for node in store.nodes.values())}"
    yield f"permissions {len({node.perms for _, node in all_nodes(store)})}"
    yield f"watches {server.watch_count}"
    yield f"connections {len(server.connections)}"
    for conn in server.connections:
        yield (
            f"connection {conn.number}: domain {conn.domid}, watches {len(conn.watches)}, "
            f"transactions {len(conn.transactions)}, bytes in {len(conn.unparsed)}, "
            f"bytes out {conn.unsent_bytes()}"
        )
    for domid in store.domains:
        used, _ = of_domain(server, domid)
        yield f"domain {domid}: nodes {used[NODES]}, bytes {used[MEMORY]}"


def _of_domain_0(server: XenstoreServer) -> list[int]:
    used = [0] * len(ITEMS)
    for path, node in all_nodes(server.store):
        if perms.owner_of(node.perms) == 0:
            used[NODES] += 1
            used[MEMORY] += len(path)
            used[MEMORY] += node_size(node.perms, len(node.value), node.children_bytes)
    ring = server.rings.get(0)
    for conn in server.connections:
        if conn.privileged:
            used[WATCHES] += len(conn.watches)
            used[TRANSACTIONS] += len(conn.transactions)
            used[MEMORY] += sum(len(path) + len(token) for path, token in conn.watches)
            used[MEMORY] += conn.unsent_bytes()
            used[OUTSTANDING] += conn is ring and bool(conn.head)
    return used
