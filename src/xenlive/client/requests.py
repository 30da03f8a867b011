"""Xenstore's requests as values: what to send, and what the answer's bytes mean.

Xen `docs/misc/xenstore.txt`, one function for each message. A `Request` is made without a
connection and can be sent by any kind of client: `blocking.py` waits for each answer, `aio.py`
has many under way. What takes several requests is in `plans.py`.

**Invariants.** `Request.decode` gives the answer's meaning, `XenstoreError` for an ERROR answer,
or `PeerError` for bytes that are no answer to this request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from xenlive.abi import xs_wire
from xenlive.client import answers
from xenlive.client.answers import Permission as Permission
from xenlive.client.codec import Answer, encode_text
from xenlive.errors import PeerError, XenstoreError

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Request(Generic[T_co]):
    """One request: its message type and payload, and how to understand the answer."""

    type: int
    payload: bytes
    label: str  # for people, in an error: "read /a"
    meaning: Callable[[Answer], T_co]

    def decode(self, answer: Answer) -> T_co:
        """What the answer says. XenstoreError if it says ERROR, PeerError if it makes no sense."""
        if answer.type != xs_wire.XS_ERROR:
            return self.meaning(answer)
        name = answer.payload[:-1]
        if not answer.payload.endswith(b"\0") or not (name.isalnum() and name.isupper()):
            raise PeerError("an error without a name", answer.offset, answer.payload[:32])
        raise XenstoreError(name.decode("ascii"), self.label)


def read(path: str) -> Request[bytes]:
    """The value of a node."""
    return Request(xs_wire.XS_READ, _strings(path), f"read {path}", answers.value)


def write(path: str, value: bytes | str) -> Request[None]:
    """Stores a node's value, making the node and its parents if they are missing."""
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return Request(xs_wire.XS_WRITE, _strings(path) + data, f"write {path}", answers.ok)


def mkdir(path: str) -> Request[None]:
    """Makes a node if it is missing; an existing one keeps its value."""
    return Request(xs_wire.XS_MKDIR, _strings(path), f"mkdir {path}", answers.ok)


def rm(path: str) -> Request[None]:
    """Removes a node and all below it."""
    return Request(xs_wire.XS_RM, _strings(path), f"rm {path}", answers.ok)


def directory(path: str) -> Request[list[str]]:
    """The names of a node's children. E2BIG when they don't fit into one answer."""
    return Request(xs_wire.XS_DIRECTORY, _strings(path), f"ls {path}", answers.names)


def directory_part(path: str, offset: int) -> Request[tuple[str, bytes]]:
    """Generation of a node, and the bytes of its children's names from `offset` on."""
    payload = _strings(path, str(offset))
    return Request(xs_wire.XS_DIRECTORY_PART, payload, f"ls {path}", answers.directory_part)


def get_perms(path: str) -> Request[list[Permission]]:
    """A node's permissions, the owner's entry first."""
    return Request(xs_wire.XS_GET_PERMS, _strings(path), f"get-perms {path}", answers.permissions)


def set_perms(path: str, permissions: Sequence[Permission]) -> Request[None]:
    """Replaces a node's permissions; the first entry names its owner."""
    payload = _strings(path, *map(str, permissions))
    return Request(xs_wire.XS_SET_PERMS, payload, f"set-perms {path}", answers.ok)


def watch(path: str, token: str, depth: int | None = None) -> Request[None]:
    """Asks for an event on each change of a node or below it; the first one comes at once.

    `depth` is how many levels below it count, all if None: 0 is the node alone. A server without
    that feature (`XENSTORE_SERVER_FEATURE_WATCHDEPTH`) answers EINVAL.
    """
    levels = () if depth is None else (str(depth),)
    return Request(xs_wire.XS_WATCH, _strings(path, token, *levels), f"watch {path}", answers.ok)


def unwatch(path: str, token: str) -> Request[None]:
    """Ends the watch that was set with this path and token."""
    return Request(xs_wire.XS_UNWATCH, _strings(path, token), f"unwatch {path}", answers.ok)


def reset_watches() -> Request[None]:
    """Ends all watches and transactions of the connection."""
    return Request(xs_wire.XS_RESET_WATCHES, b"\0", "reset watches", answers.ok)


def transaction_start() -> Request[int]:
    """Opens a transaction and gives its id."""
    return Request(
        xs_wire.XS_TRANSACTION_START, b"\0", "start a transaction", answers.transaction_id
    )


def transaction_end(*, commit: bool) -> Request[None]:
    """Ends the transaction it is sent in. EAGAIN if another client was in the way."""
    label = "commit" if commit else "abort"
    return Request(xs_wire.XS_TRANSACTION_END, b"T\0" if commit else b"F\0", label, answers.ok)


def get_domain_path(domid: int) -> Request[str]:
    """The node below which a domain has its own."""
    label = f"path of domain {domid}"
    return Request(xs_wire.XS_GET_DOMAIN_PATH, _strings(str(domid)), label, answers.one_string)


def is_domain_introduced(domid: int) -> Request[bool]:
    """Whether the server serves this domain."""
    label = f"is domain {domid} introduced"
    return Request(xs_wire.XS_IS_DOMAIN_INTRODUCED, _strings(str(domid)), label, answers.truth)


def introduce(domid: int, gfn: int, port: int) -> Request[None]:
    """Has the server serve a domain by the ring that it has granted."""
    payload = _strings(str(domid), str(gfn), str(port))
    return Request(xs_wire.XS_INTRODUCE, payload, f"introduce domain {domid}", answers.ok)


def release(domid: int) -> Request[None]:
    """Tells the server that a domain is no more. ENOENT if it was not introduced."""
    label = f"release domain {domid}"
    return Request(xs_wire.XS_RELEASE, _strings(str(domid)), label, answers.ok)


def resume(domid: int) -> Request[None]:
    """Tells the server that a domain that had shut down runs again."""
    label = f"resume domain {domid}"
    return Request(xs_wire.XS_RESUME, _strings(str(domid)), label, answers.ok)


def set_target(domid: int, target: int) -> Request[None]:
    """Lets a domain do all that `target` may do."""
    label = f"set target of domain {domid}"
    return Request(xs_wire.XS_SET_TARGET, _strings(str(domid), str(target)), label, answers.ok)


def get_feature(domid: int | None = None) -> Request[int]:
    """The features that the server has for a domain, bits of `xs_ring.py`; our own if None."""
    whose = () if domid is None else (str(domid),)
    label = "features" if domid is None else f"features of domain {domid}"
    return Request(xs_wire.XS_GET_FEATURE, _strings(*whose), label, answers.number)


def set_feature(domid: int, features: int) -> Request[None]:
    """Sets what a domain is offered; before it is introduced, and only what the server has."""
    label = f"set features of domain {domid}"
    payload = _strings(str(domid), str(features))
    return Request(xs_wire.XS_SET_FEATURE, payload, label, answers.ok)


def quota_names() -> Request[list[str]]:
    """The quotas that the server knows."""
    return Request(xs_wire.XS_GET_QUOTA, b"", "quotas", answers.words)


def get_quota(name: str, domid: int | None = None) -> Request[int]:
    """A quota of a domain, of all if None; 0 is unlimited."""
    payload, label = _quota(name, domid)
    return Request(xs_wire.XS_GET_QUOTA, payload, label, answers.number)


def set_quota(name: str, value: int, domid: int | None = None) -> Request[None]:
    """Sets a quota of a domain, or what new domains get; 0 is unlimited."""
    payload, label = _quota(name, domid)
    payload += _strings(str(value))
    return Request(xs_wire.XS_SET_QUOTA, payload, f"set {label}", answers.ok)


def control(*arguments: str) -> Request[str]:
    """Runs a control command of the server's, such as `help`; gives what it says."""
    return Request(
        xs_wire.XS_CONTROL, _strings(*arguments), f"control {arguments[0]}", answers.said
    )


def _quota(name: str, domid: int | None) -> tuple[bytes, str]:
    """What names a quota, on the wire and for people."""
    if domid is None:
        return _strings(name), f"quota {name}"
    return _strings(str(domid), name), f"quota {name} of domain {domid}"


def _strings(*parts: str) -> bytes:
    return b"".join(encode_text(part) + b"\0" for part in parts)
