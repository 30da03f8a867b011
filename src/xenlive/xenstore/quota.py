"""Quotas: what one unprivileged domain may use up.

Specification: the names of GET_QUOTA in Xen `docs/misc/xenstore.txt`, and the C daemon's own; its
defaults. Here are the numbers and their place in the state stream; of them `path-max` is enforced
(it holds for everybody), and the wire's own limit of 4096 bytes a payload.

**Invariants.** 0 means unlimited. Names that this program does not know are kept, so that they come
out of the next state stream as they came in.
"""

from __future__ import annotations

DEFAULTS = {
    "nodes": 1000,
    "watches": 128,
    "outstanding": 20,
    "memory": 2_621_440,
    "transactions": 10,
    "transaction-nodes": 1024,
    "node-permissions": 5,
    "path-max": 2048,
    "node-size": 2048,
    "soft-memory": 2_097_152,
}


class Quotas:
    """The values in force for all domains that have none of their own."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values = dict(DEFAULTS)

    def changed(self) -> bool:
        """Whether any value is not the default, so that the state stream has to say it."""
        return self.values != DEFAULTS
