"""How Debian's OCaml daemon 4.17 differs from ours; `docs/differences.md` has the reasons."""

from __future__ import annotations

from differential.known import Difference, Moment, domid_of, is_special
from differential.steps import DESTROY, SHUTDOWN

from xenlive.abi.xs_wire import (
    XS_CONTROL,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_INTRODUCE,
    XS_MKDIR,
    XS_RELEASE,
    XS_RESUME,
    XS_RM,
    XS_SET_PERMS,
    XS_TRANSACTION_END,
    XS_UNWATCH,
    XS_WATCH,
)


def _other_order(moment: Moment) -> bool:
    return moment.same_reply and set(moment.mine.events) == set(moment.other.events)


def _without(events: tuple[bytes, ...], prefix: bytes) -> list[bytes]:
    return [event for event in events if not event.startswith(prefix)]


def _names(payload: bytes) -> list[bytes]:
    return sorted(payload.split(b"\0"))


def _more_below(moment: Moment) -> bool:
    return (
        moment.step.kind in (XS_RM, XS_TRANSACTION_END)
        and moment.same_reply
        and set(moment.mine.events) < set(moment.other.events)
    )


def _seen_before(moment: Moment) -> bool:
    """Notes the transaction: what it commits may be something else."""
    step, story = moment.step, moment.story
    if not story.is_behind(step) or step.kind in (XS_TRANSACTION_END, XS_WATCH, XS_UNWATCH):
        return False
    story.apart.add((step.who, step.tx))
    return moment.is_own and moment.same_events


OCAML_4_17 = [
    Difference("order and number of a step's events", _other_order),
    Difference(
        "WATCH and UNWATCH in a transaction are answered without its id",
        lambda m: (
            m.step.kind in (XS_WATCH, XS_UNWATCH)
            and m.step.tx != 0
            and not m.other.right_ids
            and (m.mine.kind, m.mine.payload) == (m.other.kind, m.other.payload)
            and set(m.mine.events) == set(m.other.events)
        ),
    ),
    Difference(
        "order of a directory's names",
        lambda m: (
            m.step.kind == XS_DIRECTORY
            and m.same_events
            and not m.mine.error
            and _names(m.mine.payload) == _names(m.other.payload)
        ),
    ),
    Difference("who may not look is told what is missing", lambda m: m.errors("EACCES", "ENOENT")),
    Difference(
        "RM of what is not there, by who may not look",
        lambda m: m.step.kind == XS_RM and m.errors("EACCES", ""),
    ),
    Difference(
        "DIRECTORY_PART",
        lambda m: m.step.kind == XS_DIRECTORY_PART and m.errors(m.mine.error, "ENOSYS"),
    ),
    Difference("CONTROL", lambda m: m.step.kind == XS_CONTROL and m.same_events),
    Difference(
        "UNWATCH of what can't be a path",
        lambda m: m.step.kind == XS_UNWATCH and m.errors("EINVAL", "ENOENT"),
    ),
    Difference(
        "SET_PERMS that gives a node away",
        lambda m: m.step.kind == XS_SET_PERMS and m.errors("EPERM", "EACCES"),
    ),
    Difference(
        "SET_PERMS to an owner that does not exist",
        lambda m: m.step.kind == XS_SET_PERMS and m.errors("ENOENT", ""),
        spoils=True,
    ),
    Difference(
        "a transaction that does not exist",
        lambda m: m.step.tx != 0 and bool(m.mine.error) and m.errors(m.mine.error, "EIO"),
    ),
    Difference("a transaction sees the store as it was when it began", _seen_before),
    Difference(
        "a commit of what was made over an older store",
        lambda m: (
            m.step.kind == XS_TRANSACTION_END
            and (m.step.who, m.step.tx) in m.story.apart | m.story.made_behind
        ),
        spoils=True,
    ),
    Difference(
        "SET_PERMS of a special node fires its watches",
        lambda m: m.step.kind in (XS_SET_PERMS, XS_TRANSACTION_END) and m.only_ours(is_special),
    ),
    Difference(
        "a special node goes with its owner",
        lambda m: (
            m.step.kind == XS_SET_PERMS and is_special(m.step.payload) and m.errors("", "ENOENT")
        ),
        spoils=True,
    ),
    Difference(
        "RM of the root",
        lambda m: m.step.kind == XS_RM and m.step.payload == b"/\0" and m.errors("EINVAL", ""),
        spoils=True,
    ),
    Difference(
        "special nodes are nodes of the tree",
        lambda m: (
            (
                m.step.kind == XS_SET_PERMS
                and m.same_reply
                and _without(m.mine.events, b"@") == _without(m.other.events, b"/@")
            )
            or (
                m.step.kind == XS_DIRECTORY
                and m.step.payload == b"/\0"
                and m.same_events
                and _names(m.mine.payload) == [n for n in _names(m.other.payload) if n[:1] != b"@"]
            )
        ),
    ),
    Difference(
        "MKDIR of the root by who may not write it",
        lambda m: m.step.kind == XS_MKDIR and m.errors("EACCES", "") and m.step.payload == b"/\0",
    ),
    Difference(
        "RELEASE or RESUME of a domain that was not introduced",
        lambda m: m.step.kind in (XS_RELEASE, XS_RESUME) and m.errors("ENOENT", "EINVAL"),
    ),
    Difference(
        "a conflict that replaying the transaction resolves",
        lambda m: m.step.kind == XS_TRANSACTION_END and m.is_own and m.mine.error == "EAGAIN",
        spoils=True,
    ),
    Difference(
        "a transaction with requests that can't be replayed",
        lambda m: (
            m.step.kind == XS_TRANSACTION_END
            and m.errors("", "EAGAIN")
            and m.story.is_behind(m.step)
        ),
        spoils=True,
    ),
    Difference(
        "@releaseDomain as long as a domain is shut down",
        lambda m: (
            m.step.kind in (DESTROY, SHUTDOWN)
            and not m.mine.events
            and all(is_special(event) for event in m.other.events)
        ),
    ),
    Difference("RM fires watches on what was not there", _more_below),
    Difference(
        "guests hear @releaseDomain",
        lambda m: m.client > 0 and m.only_ours(lambda event: event.startswith(b"@releaseDomain")),
    ),
    Difference(
        "nodes of a domain that goes fire no watches",
        lambda m: (
            m.step.kind in (DESTROY, SHUTDOWN, XS_RELEASE)
            and m.only_ours(lambda event: not is_special(event))
        ),
    ),
    Difference(
        "INTRODUCE of a domain that is served",
        lambda m: m.step.kind == XS_INTRODUCE and domid_of(m.step) in m.story.served,
        spoils=True,
    ),
]
