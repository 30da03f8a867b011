"""Accounts: what each domain uses of the store, the most it ever did, and its own quotas.

Specification: the C daemon (Xen `tools/xenstored/domain.c`, `struct domain`: `acc_val`, `acc`;
`domain_chk_quota`), with its measures of memory.

    nodes         nodes it owns                memory   their bytes, watches, what transactions
    watches       set by it                             look at, and answers that wait for it
    transactions  open                         outstanding   answers that it has not read

The memory of answers is not kept here: a connection knows what waits for it (`unsent_bytes`), so
that sending costs nothing.

**Invariants.** Domain 0 is never limited, and costs nothing to account for: what is its own is what
nobody else's is, and is counted when somebody asks. A number changes where the thing it counts
changes (`Store`, `Watches`, `Transaction`, `Connection`), so it is right after commits, changes of
owners, ends of domains; after a live update it is counted anew. What is refused for it is
`limits.py`.
"""

from __future__ import annotations

import time

from xenlive.xenstore import perms
from xenlive.xenstore.quota import (
    ITEMS,
    MEMORY,
    NODES,
    OUTSTANDING,
    TRANSACTIONS,
    WATCHES,
    Quotas,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.store import Node

#: What a node takes beside its name, value, children's names and permissions (`struct node_hdr`).
NODE_FIXED = 16
#: What one permission takes (`struct xs_permissions`); in here it takes 4.
PERMISSION = 8
#: Seconds between two messages on one domain's memory (`MEM_WARN_MINTIME_SEC`).
MESSAGE_EVERY_S = 10.0
#: Values that only grow: the most of one request, not what is used up.
_SINGLE = frozenset(range(len(ITEMS))) - {NODES, WATCHES, OUTSTANDING, MEMORY, TRANSACTIONS}


def node_size(node_perms: bytes, value_bytes: int, children_bytes: int) -> int:
    """The size of a node as quotas count it, without its name."""
    return (
        NODE_FIXED + len(node_perms) // perms.ENTRY_SIZE * PERMISSION + value_bytes + children_bytes
    )


class Account:
    """One domain's: `used` and `most` are indexed by the items of `quota.ITEMS`."""

    __slots__ = (
        "accounts",
        "domid",
        "features",
        "hard_reported",
        "last_message_s",
        "most",
        "quotas",
        "soft_reported",
        "stalled",
        "used",
    )

    def __init__(self, domid: int, accounts: Accounts) -> None:
        self.accounts = accounts
        self.domid = domid
        self.features = accounts.features
        self.quotas = dict(accounts.quotas.values)
        self.used = [0] * len(ITEMS)
        self.most = [0] * len(ITEMS)
        self.stalled: Connection | None = None  # is not served until memory is given back
        self.hard_reported = self.soft_reported = False
        self.last_message_s = -MESSAGE_EVERY_S

    def own_quotas(self) -> dict[str, int]:
        """The quotas that are not the global ones."""
        general = self.accounts.quotas.values
        return {name: n for name, n in self.quotas.items() if general.get(name) != n}

    def is_special(self) -> bool:
        """Whether something was set of this domain alone: the state stream has to say it."""
        return self.features != self.accounts.features or bool(self.own_quotas())

    def add(self, item: int, count: int) -> None:
        """Uses more, or less, of an item."""
        value = self.used[item] = self.used[item] + count
        if value > self.most[item]:
            self.note(item, value)
        if count < 0 and self.stalled is not None:
            stalled, self.stalled = self.stalled, None
            self.accounts.touch(stalled)

    def note(self, item: int, value: int) -> None:
        """Says how much of an item there was at once."""
        if value > self.most[item]:
            self.most[item] = value
            self.accounts.raise_most(item, value)

    def exceeds(self, item: int, value: int) -> bool:
        """Whether there may not be `value` of an item."""
        quota = self.quotas[ITEMS[item][0]]
        return bool(quota) and value > quota

    def too_many(self, item: int, value: int) -> bool:
        """The same for what is not used up, as the permissions of a node; what may be is noted."""
        if self.exceeds(item, value):
            return True
        self.note(item, value)
        return False

    def must_wait(self, conn: Connection) -> bool:
        """Whether requests of the domain are not to be served until it has read, or uses, less."""
        quota = self.quotas["outstanding"]
        if quota and self.used[OUTSTANDING] >= quota:
            return True
        if self.over_memory(conn, 0):
            self.stalled = conn
            return True
        return False

    def over_memory(self, conn: Connection, more_bytes: int) -> bool:
        """Whether it would use too much with so many bytes more; says so as C does."""
        memory = self.used[MEMORY] + conn.unsent_bytes() + more_bytes
        hard, soft = self.quotas["memory"], self.quotas["soft-memory"]
        is_less = (not hard or memory < hard) and (not soft or memory < soft)
        if is_less and not (self.hard_reported or self.soft_reported):
            self.note(MEMORY, memory)
            return False
        if self._warn(memory, hard, soft):
            return True
        self.note(MEMORY, memory)
        return False

    def _warn(self, memory: int, hard: int, soft: int) -> bool:
        say, now_s = self.accounts.say, self.accounts.now()
        domain = f"Domain {self.domid}"
        if hard and memory >= hard:
            if not self.hard_reported:
                self.hard_reported = True
                self.last_message_s = now_s
                say(f"{domain} exceeds hard memory quota, Xenstore interface to domain stalled")
            return True
        if now_s - self.last_message_s < MESSAGE_EVERY_S:
            return False
        if self.hard_reported:
            self.hard_reported = False
            self.last_message_s = now_s
            say(f"{domain} below hard memory quota again")
        if soft and memory >= soft and not self.soft_reported:
            self.soft_reported = True
            self.last_message_s = now_s
            say(f"{domain} exceeds soft memory quota")
        if memory < soft and self.soft_reported:
            self.soft_reported = False
            self.last_message_s = now_s
            say(f"{domain} below soft memory quota again")
        return False


class Accounts:
    """All domains' but domain 0's, and the global quotas.

    `touch` has a connection looked after, `say` warns the operator.
    """

    __slots__ = ("by_domid", "features", "most", "now", "quotas", "say", "touch")

    def __init__(self, features: int) -> None:
        self.quotas = Quotas()
        self.features = features
        self.by_domid: dict[int, Account] = {}
        self.most = [0] * len(ITEMS)
        self.touch: Callable[[Connection], None] = _nobody
        self.now: Callable[[], float] = time.monotonic
        self.say: Callable[[str], None] = _nothing

    def open(self, domid: int) -> Account:
        """The account of a domain other than 0, with the global quotas if it is a new one."""
        account = self.by_domid.get(domid)
        if account is None:
            account = self.by_domid[domid] = Account(domid, self)
        return account

    def close(self, domid: int) -> None:
        """Forgets a domain that has gone."""
        self.by_domid.pop(domid, None)

    def raise_most(self, item: int, value: int) -> None:
        """Says that some domain had so much of an item."""
        if value > self.most[item]:
            self.most[item] = value

    def add_node(self, path: bytes, node: Node, sign: int) -> None:
        """A node comes (1) or goes (-1)."""
        owner = perms.owner_of(node.perms)
        if owner:
            account = self.by_domid.get(owner) or self.open(owner)
            size = node_size(node.perms, len(node.value), node.children_bytes) + len(path)
            account.add(NODES, sign)
            account.add(MEMORY, sign * size)

    def grow(self, owner: int, more_bytes: int) -> None:
        """A node of `owner`, not 0, gets larger, or smaller."""
        if more_bytes:
            (self.by_domid.get(owner) or self.open(owner)).add(MEMORY, more_bytes)

    def count_all(self, nodes: Iterable[tuple[bytes, Node]]) -> None:
        """Counts all nodes of a store that was just loaded."""
        own = perms.OWN
        add_node = self.add_node
        for path, node in nodes:
            if node.perms is not own:
                add_node(path, node, 1)

    def wrong_counts(self, nodes: Iterable[tuple[bytes, Node]]) -> dict[int, int]:
        """How far off the number of each domain's nodes is; none, unless there is a fault here."""
        found: dict[int, int] = {}
        for _, node in nodes:
            owner = perms.owner_of(node.perms)
            found[owner] = found.get(owner, 0) + 1
        found.pop(0, None)
        for account in self.by_domid.values():
            found[account.domid] = found.get(account.domid, 0) - account.used[NODES]
        return {domid: count for domid, count in found.items() if count}

    def set_right(self, wrong: dict[int, int]) -> None:
        """Corrects what `wrong_counts` found."""
        for domid, count in wrong.items():
            self.open(domid).add(NODES, count)

    def reset_most(self) -> None:
        """Begins the maxima anew, from what is used now."""
        for item in range(len(ITEMS)):
            self.most[item] = 0
        for account in self.by_domid.values():
            for item, used in enumerate(account.used):
                account.most[item] = used
                if item not in _SINGLE and used > self.most[item]:
                    self.most[item] = used


def _nobody(conn: Connection) -> None:
    pass


def _nothing(text: str) -> None:
    pass
