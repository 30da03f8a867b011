"""Xenstore's requests as values: what to send, and what the answer's bytes mean.

Xen `docs/misc/xenstore.txt`, one function for each message. A `Request` is made without a
connection and can be sent by any kind of client: `blocking.py` does it over a socket.

**Invariants.** `Request.decode` gives the answer's meaning, `XenstoreError` for an ERROR answer,
or `PeerError` for bytes that are no answer to this request.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from xenlive.abi import xs_wire
from xenlive.client.codec import Answer, decode_strings, decode_text, encode_text
from xenlive.errors import PeerError, XenstoreError

T_co = TypeVar("T_co", covariant=True)
ACCESS = {"n": "none", "r": "read", "w": "write", "b": "read and write"}
MAX_DOMID = 65535


@dataclass(frozen=True, slots=True)
class Permission:
    """One entry of a node's permissions: `access` is `n`, `r`, `w` or `b` (both).

    The first entry of a node names its owner, who may do everything, and with its `access` what
    domains may do that no other entry names.
    """

    domid: int
    access: str

    @classmethod
    def parse(cls, text: str) -> Permission:
        """From Xenstore's own form, such as `r5`. ValueError if it is not one."""
        access, domid = text[:1], text[1:]
        if access not in ACCESS or not (domid.isascii() and domid.isdigit()):
            raise ValueError(f"{text!r} is no permission: n, r, w or b and a domain, such as r5")
        if len(domid) > 5 or int(domid) > MAX_DOMID:
            raise ValueError(f"{text!r}: domains go up to {MAX_DOMID}")
        return cls(int(domid), access)

    def __str__(self) -> str:
        return f"{self.access}{self.domid}"


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
    return Request(xs_wire.XS_READ, _strings(path), f"read {path}", _bytes)


def write(path: str, value: bytes | str) -> Request[None]:
    """Stores a node's value, making the node and its parents if they are missing."""
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return Request(xs_wire.XS_WRITE, _strings(path) + data, f"write {path}", _ok)


def mkdir(path: str) -> Request[None]:
    """Makes a node if it is missing; an existing one keeps its value."""
    return Request(xs_wire.XS_MKDIR, _strings(path), f"mkdir {path}", _ok)


def rm(path: str) -> Request[None]:
    """Removes a node and all below it."""
    return Request(xs_wire.XS_RM, _strings(path), f"rm {path}", _ok)


def directory(path: str) -> Request[list[str]]:
    """The names of a node's children. E2BIG when they don't fit into one answer."""
    return Request(xs_wire.XS_DIRECTORY, _strings(path), f"ls {path}", _string_list)


def directory_part(path: str, offset: int) -> Request[tuple[str, bytes]]:
    """Generation of a node, and the bytes of its children's names from `offset` on."""
    payload = _strings(path, str(offset))
    return Request(xs_wire.XS_DIRECTORY_PART, payload, f"ls {path}", _part)


def directory_in_parts(
    path: str,
) -> Generator[Request[tuple[str, bytes]], tuple[str, bytes], list[str]]:
    """Asks for children part by part: yields requests, is sent their meaning, returns the names.

    Starts again when the node changed between two parts, which its generation tells.
    """
    generation: str | None = None
    names = bytearray()
    while True:
        found, part = yield directory_part(path, len(names))
        if generation is not None and found != generation:
            generation = None
            names.clear()
            continue
        generation = found
        at_end = part.endswith(b"\0\0") or part == b"\0"  # an empty name after the last
        names += part[:-1] if at_end else part
        if at_end:
            return [decode_text(name) for name in bytes(names).split(b"\0")[:-1]]


def get_perms(path: str) -> Request[list[Permission]]:
    """A node's permissions, the owner's entry first."""
    return Request(xs_wire.XS_GET_PERMS, _strings(path), f"get-perms {path}", _permissions)


def set_perms(path: str, permissions: Sequence[Permission]) -> Request[None]:
    """Replaces a node's permissions; the first entry names its owner."""
    payload = _strings(path, *map(str, permissions))
    return Request(xs_wire.XS_SET_PERMS, payload, f"set-perms {path}", _ok)


def watch(path: str, token: str) -> Request[None]:
    """Asks for an event on each change of a node or below it; the first one comes at once."""
    return Request(xs_wire.XS_WATCH, _strings(path, token), f"watch {path}", _ok)


def unwatch(path: str, token: str) -> Request[None]:
    """Ends the watch that was set with this path and token."""
    return Request(xs_wire.XS_UNWATCH, _strings(path, token), f"unwatch {path}", _ok)


def transaction_start() -> Request[int]:
    """Opens a transaction and gives its id."""
    return Request(xs_wire.XS_TRANSACTION_START, b"\0", "start a transaction", _number)


def transaction_end(*, commit: bool) -> Request[None]:
    """Ends the transaction it is sent in. EAGAIN if another client was in the way."""
    label = "commit" if commit else "abort"
    return Request(xs_wire.XS_TRANSACTION_END, b"T\0" if commit else b"F\0", label, _ok)


def get_domain_path(domid: int) -> Request[str]:
    """The node below which a domain has its own."""
    label = f"path of domain {domid}"
    return Request(xs_wire.XS_GET_DOMAIN_PATH, _strings(str(domid)), label, _string)


def is_domain_introduced(domid: int) -> Request[bool]:
    """Whether the server serves this domain."""
    label = f"is domain {domid} introduced"
    return Request(xs_wire.XS_IS_DOMAIN_INTRODUCED, _strings(str(domid)), label, _truth)


def introduce(domid: int, gfn: int, port: int) -> Request[None]:
    """Has the server serve a domain by the ring that it has granted."""
    payload = _strings(str(domid), str(gfn), str(port))
    return Request(xs_wire.XS_INTRODUCE, payload, f"introduce domain {domid}", _ok)


def release(domid: int) -> Request[None]:
    """Tells the server that a domain is no more. ENOENT if it was not introduced."""
    label = f"release domain {domid}"
    return Request(xs_wire.XS_RELEASE, _strings(str(domid)), label, _ok)


def control(*arguments: str) -> Request[str]:
    """Runs a control command of the server's, such as `help`; gives what it says."""
    return Request(xs_wire.XS_CONTROL, _strings(*arguments), f"control {arguments[0]}", _said)


def _strings(*parts: str) -> bytes:
    return b"".join(encode_text(part) + b"\0" for part in parts)


def _bytes(answer: Answer) -> bytes:
    return answer.payload


def _ok(answer: Answer) -> None:
    if answer.payload != b"OK\0":
        raise PeerError("an answer that is not OK", answer.offset, answer.payload[:32])


def _string_list(answer: Answer) -> list[str]:
    return decode_strings(answer.payload, answer.offset)


def _string(answer: Answer) -> str:
    strings = decode_strings(answer.payload, answer.offset)
    if len(strings) != 1:
        raise PeerError("one string expected", answer.offset, answer.payload[:32])
    return strings[0]


def _said(answer: Answer) -> str:
    """What a control command says: usually ended by a NUL, but not by every command."""
    return decode_text(answer.payload.rstrip(b"\0"))


def _number(answer: Answer) -> int:
    text = _string(answer)
    if not (text.isascii() and text.isdigit()) or not 0 < int(text[:11]) <= 0xFFFFFFFF:
        raise PeerError("a transaction id expected", answer.offset, text[:32])
    return int(text)


def _truth(answer: Answer) -> bool:
    if answer.payload not in (b"T\0", b"F\0"):
        raise PeerError("T or F expected", answer.offset, answer.payload[:32])
    return answer.payload == b"T\0"


def _permissions(answer: Answer) -> list[Permission]:
    try:
        found = [Permission.parse(text) for text in _string_list(answer)]
    except ValueError as error:
        raise PeerError(str(error), answer.offset) from None
    if not found:
        raise PeerError("permissions without an owner", answer.offset)
    return found


def _part(answer: Answer) -> tuple[str, bytes]:
    generation, separator, names = answer.payload.partition(b"\0")
    if not separator or not names.endswith(b"\0"):
        raise PeerError("a part of a directory expected", answer.offset, answer.payload[:32])
    return decode_text(generation), names
