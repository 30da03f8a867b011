"""What the bytes of an answer mean, for each kind of request; and a node's permissions.

Xen `docs/misc/xenstore.txt`. Each function is the `meaning` of a `Request` (`requests.py`).

**Invariants.** The meaning, or `PeerError` with the place of what makes no sense. No number is made
of more digits than it may have.
"""

from __future__ import annotations

from dataclasses import dataclass

from xenlive.client.codec import Answer, decode_strings, decode_text
from xenlive.errors import PeerError

ACCESS = {"n": "none", "r": "read", "w": "write", "b": "read and write"}
MAX_DOMID = 65535
_U32 = 0xFFFFFFFF
_U32_DIGITS = 10


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


def value(answer: Answer) -> bytes:
    """All of the bytes."""
    return answer.payload


def ok(answer: Answer) -> None:
    """`OK`, and nothing else."""
    if answer.payload != b"OK\0":
        raise PeerError("an answer that is not OK", answer.offset, answer.payload[:32])


def names(answer: Answer) -> list[str]:
    """Any number of strings."""
    return decode_strings(answer.payload, answer.offset)


def one_string(answer: Answer) -> str:
    """A single string."""
    strings = decode_strings(answer.payload, answer.offset)
    if len(strings) != 1:
        raise PeerError("one string expected", answer.offset, answer.payload[:32])
    return strings[0]


def said(answer: Answer) -> str:
    """What a control command says: usually ended by a NUL, but not by every command."""
    return decode_text(answer.payload.rstrip(b"\0"))


def number(answer: Answer) -> int:
    """A number of 32 bits, in decimal."""
    text = one_string(answer)
    if not (text.isascii() and text.isdigit()) or len(text) > _U32_DIGITS or int(text) > _U32:
        raise PeerError("a number expected", answer.offset, text[:32])
    return int(text)


def transaction_id(answer: Answer) -> int:
    """The same, but not 0: that is what requests outside of transactions carry."""
    found = number(answer)
    if found == 0:
        raise PeerError("a transaction id expected", answer.offset, found)
    return found


def words(answer: Answer) -> list[str]:
    """A string of words with blanks between them."""
    return one_string(answer).split()


def truth(answer: Answer) -> bool:
    """`T` or `F`."""
    if answer.payload not in (b"T\0", b"F\0"):
        raise PeerError("T or F expected", answer.offset, answer.payload[:32])
    return answer.payload == b"T\0"


def permissions(answer: Answer) -> list[Permission]:
    """A node's permissions; there is at least the owner's."""
    try:
        found = [Permission.parse(text) for text in names(answer)]
    except ValueError as error:
        raise PeerError(str(error), answer.offset) from None
    if not found:
        raise PeerError("permissions without an owner", answer.offset)
    return found


def directory_part(answer: Answer) -> tuple[str, bytes]:
    """The generation of a node, and bytes of its children's names."""
    generation, separator, names = answer.payload.partition(b"\0")
    if not separator or not names.endswith(b"\0"):
        raise PeerError("a part of a directory expected", answer.offset, answer.payload[:32])
    return decode_text(generation), names
