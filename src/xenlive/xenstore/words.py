"""What the words of a request mean: C's way of reading numbers, one string with its NUL.

Specification: Xen `tools/xenstored/core.c` (`onearg`, `get_strings`) and `domain.c`
(`parse_domid`). A payload that is not what its request wants is XenstoreError EINVAL.
"""

from __future__ import annotations

from xenlive.errors import XenstoreError

_INT_MAX = 0x7FFFFFFF
_ULONG_MAX = (1 << 64) - 1


def only_word(payload: bytes) -> bytes:
    """The payload if it is one string with its NUL at the end."""
    if not payload or payload.find(b"\0") != len(payload) - 1:
        raise XenstoreError("EINVAL")
    return payload[:-1]


def atoi(text: bytes) -> int:
    """C's `atoi`: the number a string starts with, 0 if with none."""
    text = text.lstrip(b" \t\n\v\f\r")
    end = 1 if text[:1] in (b"+", b"-") else 0
    while text[end : end + 1].isdigit():
        end += 1
    digits = text[:end]
    return int(digits) if digits.lstrip(b"+-") else 0


def c_int(text: bytes) -> int:
    """What C has in an `int` after `atoi`: the number, cut to its range and then to 32 bits."""
    number = min(max(atoi(text), -(1 << 63)), (1 << 63) - 1) & 0xFFFFFFFF
    return number if number <= _INT_MAX else number - (1 << 32)


def parse_domid(text: bytes) -> int:
    """A domain id as C's `strtoul` reads it, all of it; EINVAL if that is none."""
    if not text:
        return 0
    digits = text.lstrip(b" \t\n\v\f\r")
    sign = -1 if digits[:1] == b"-" else 1
    if digits[:1] in (b"+", b"-"):
        digits = digits[1:]
    if not digits.isdigit() or int(digits) > _ULONG_MAX:
        raise XenstoreError("EINVAL")
    number = sign * int(digits) & _ULONG_MAX
    if number > 0xFFFF:
        raise XenstoreError("EINVAL")
    return number
