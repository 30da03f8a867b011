"""How the C daemon of Xen's development tree differs from ours; `docs/differences.md` has why."""

from __future__ import annotations

from differential.known import Difference, Moment
from differential.known_c import C_4_17
from differential.playing import GONE
from differential.steps import DESTROY

from xenlive.abi.xs_wire import XS_RELEASE, XS_RM, XS_TRANSACTION_END

#: What it has in common with C 4.17.
SHARED = {
    "RELEASE answers before or after its event",
    "RM in a transaction that is in conflict",
    "several domains that end or shut down at once",
    "the end of a domain that owns the root",
    "the end of a domain that others act for",
}


def _at_its_quota(moment: Moment) -> bool:
    """Its quota of N allows N - 1: it refuses what ours does, or refuses for another reason."""
    return moment.step.who > 0 and moment.is_own and moment.other.error == "ENOSPC"


NEWEST = [
    Difference("how many a quota of N allows", _at_its_quota, spoils=True),
    Difference(
        "the end of a domain that owns `@releaseDomain` or `@introduceDomain`",
        lambda m: m.step.kind in (DESTROY, XS_RELEASE) and m.other == GONE,
        spoils=True,
    ),
    Difference(
        "one request that makes several levels",
        lambda m: m.step.who > 0 and m.is_own and m.errors("ENOSPC", ""),
        spoils=True,
    ),
    Difference(
        "RM in a transaction that may not look at so many nodes",
        lambda m: (
            m.step.kind == XS_RM and m.step.tx != 0 and m.is_own and m.errors("ENOSPC", "EIO")
        ),
        spoils=True,
    ),
    Difference(
        "WRITE below a node whose owner has gone, in a transaction that saw it",
        lambda m: m.step.tx != 0 and m.is_own and m.errors("", "ENOMEM"),
        spoils=True,
    ),
    Difference(
        "a commit that gives rights to a domain that has gone",
        lambda m: m.step.kind == XS_TRANSACTION_END and m.is_own and m.errors("EAGAIN", ""),
        spoils=True,
    ),
    *[each for each in C_4_17 if each.name in SHARED],
]
