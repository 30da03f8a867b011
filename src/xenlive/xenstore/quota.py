"""Quotas: what one unprivileged domain may use up.

Specification: GET_QUOTA and SET_QUOTA in Xen `docs/misc/xenstore.txt`; names, order, descriptions
and defaults are the C daemon's (Xen `tools/xenstored/domain.c`, `quota_adm`, `quotas`). Here are
the numbers and their names; what a domain uses, and when that is too much, is `accounts.py`.

**Invariants.** 0 means unlimited. A soft quota, `soft-…`, only warns. The values here are those of
a domain that becomes known from now on: each domain has its own from then. Names that this program
does not know are kept, so that they come out of the next state stream as they came in.
"""

from __future__ import annotations

NODES, WATCHES, OUTSTANDING, MEMORY, TRANSACTIONS, TX_NODES, PERMISSIONS, PATH_MAX, NODE_SIZE = (
    range(9)
)

#: Indexed by the above: name and description.
ITEMS = (
    ("nodes", "Nodes per domain"),
    ("watches", "Watches per domain"),
    ("outstanding", "Outstanding requests per domain"),
    ("memory", "Total Xenstore memory per domain"),
    ("transactions", "Active transactions per domain"),
    ("transaction-nodes", "Max. number of accessed nodes per transaction"),
    ("node-permissions", "Max. number of permissions per node"),
    ("path-max", "Max. length of a node path"),
    ("node-size", "Max. size of a node"),
)

SOFT = "soft-"

#: In the order of GET_QUOTA's list: a hard quota, then its soft one if it has any.
DEFAULTS = {
    "nodes": 1000,
    "watches": 128,
    "outstanding": 20,
    "memory": 2_621_440,
    "soft-memory": 2_097_152,
    "transactions": 10,
    "transaction-nodes": 1024,
    "node-permissions": 5,
    "path-max": 2048,
    "node-size": 2048,
}

#: What no value may be: the C daemon's mark of a quota that is not there.
DISABLED = 0xFFFFFFFF

# The specification's word, and C 4.17's; the newest C daemon knows only the longer one.
_ALIASES = {b"permissions": "node-permissions"}
_NAMES = {name.encode(): name for name in DEFAULTS} | _ALIASES


def parse_name(name: bytes) -> str | None:
    """The quota that is meant, None if there is none of that name."""
    return _NAMES.get(name)


class Quotas:
    """The values for domains that become known from now on."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values = dict(DEFAULTS)

    def changed(self) -> bool:
        """Whether any value is not the default, so that the state stream has to say it."""
        return self.values != DEFAULTS
