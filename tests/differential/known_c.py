"""How Debian's C daemon 4.17 differs from ours; `docs/differences.md` has the reasons."""

from __future__ import annotations

from differential.known import OK, Difference, Moment, domid_of, is_special
from differential.playing import GONE
from differential.steps import DESTROY, SHUTDOWN

from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_ERROR,
    XS_GET_PERMS,
    XS_READ,
    XS_RELEASE,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
)


def _is_string(payload: bytes) -> bool:
    return payload.endswith(b"\0") and payload.count(b"\0") == 1


def _perms_without(payload: bytes, domids: set[int]) -> list[bytes]:
    first, *rest = payload.split(b"\0")[:-1]
    return [first, *(text for text in rest if int(text[1:]) not in domids)]


def _gone_entries(moment: Moment) -> bool:
    if moment.step.kind != XS_GET_PERMS or not moment.same_events:
        return False
    if moment.mine.error or moment.other.error:
        return False
    gone = moment.story.gone
    return _perms_without(moment.mine.payload, gone) == _perms_without(moment.other.payload, gone)


def _removed_in_conflict(moment: Moment) -> bool:
    """Notes the transaction: from now on only its end must be the same."""
    step = moment.step
    if not (moment.is_own and step.tx):
        return False
    if step.kind == XS_RM and moment.errors("", "EIO", "EINVAL"):
        moment.story.apart.add((step.who, step.tx))
    if (step.who, step.tx) not in moment.story.apart:
        return False
    return step.kind != XS_TRANSACTION_END or not moment.mine.error


C_4_17 = [
    Difference(
        "guests hear @releaseDomain",
        lambda m: m.client > 0 and m.only_ours(lambda event: event.startswith(b"@releaseDomain")),
    ),
    Difference(
        "special events for who may read the root",
        lambda m: m.client > 0 and m.story.root_given and m.only_ours(is_special),
    ),
    Difference(
        "SET_PERMS of a special node fires its watches",
        lambda m: (
            m.step.kind == XS_SET_PERMS
            and is_special(m.step.payload)
            and m.mine.payload in (b"", OK)
            and m.only_ours(is_special)
        ),
    ),
    Difference(
        "SET_PERMS of a special node by a guest",
        lambda m: (
            m.step.kind == XS_SET_PERMS
            and is_special(m.step.payload)
            and m.step.who > 0
            and m.is_own
            and m.mine.kind == XS_ERROR
            and (m.other.kind == XS_ERROR or m.other is GONE)
        ),
    ),
    Difference(
        "a guest that acts for domain 0 gives a special node away",
        lambda m: (
            m.step.kind == XS_SET_PERMS
            and is_special(m.step.payload)
            and m.step.who > 0
            and m.errors("EPERM", "")
        ),
        spoils=True,
    ),
    Difference(
        "SET_PERMS of a special node in a transaction",
        lambda m: m.step.kind == XS_SET_PERMS and is_special(m.step.payload) and m.step.tx != 0,
        spoils=True,
    ),
    Difference(
        "RELEASE answers before or after its event",
        lambda m: m.step.kind == XS_RELEASE and m.is_own and m.same_reply and m.same_events,
    ),
    Difference("permissions of domains that have gone", _gone_entries),
    Difference("RM in a transaction that is in conflict", _removed_in_conflict),
    Difference(
        "UNWATCH of what can't be a path",
        lambda m: m.step.kind == XS_UNWATCH and m.errors("EINVAL", "ENOENT"),
    ),
    Difference(
        "a payload that is not one string",
        lambda m: (
            m.step.kind in (XS_READ, XS_DIRECTORY, XS_RM, XS_GET_PERMS)
            and not _is_string(m.step.payload)
            and m.is_own
            and m.mine.error == "EINVAL"
            and m.other.kind == XS_ERROR
        ),
    ),
    Difference(
        "a commit over nodes of a domain that has gone",
        lambda m: m.step.kind == XS_TRANSACTION_END and m.errors("EAGAIN", "ENOMEM"),
    ),
    Difference(
        "one watch or transaction more than the quota",
        lambda m: (
            m.step.who > 0
            and m.step.kind in (XS_WATCH, XS_TRANSACTION_START)
            and m.is_own
            and m.mine.error == "ENOSPC"
            and m.other.error == ""
        ),
        spoils=True,
    ),
    Difference(
        "several domains that end or shut down at once",
        lambda m: (
            m.step.kind in (DESTROY, SHUTDOWN)
            and set(m.mine.events) == set(m.other.events)
            and all(is_special(event) for event in m.mine.events)
        ),
    ),
    Difference(
        "the end of a domain that owns the root",
        lambda m: m.story.root_given and m.step.kind in (XS_RELEASE, DESTROY),
        spoils=True,
    ),
    Difference(
        "the end of a domain that others act for",
        lambda m: (
            (m.step.kind == XS_RELEASE and domid_of(m.step) in m.story.targets)
            or (m.step.kind == DESTROY and m.step.who in m.story.targets)
        ),
        spoils=True,
    ),
]
