"""Numbers and foreign bytes in words, for everything that is printed about a memory image.

**Invariants.** `printable` and `text_of` give one line without anything that a terminal would act
on, whatever they are given: what is printed about hostile memory goes through one of them.
"""

from __future__ import annotations

from collections.abc import Iterable


def count(number: int, what: str) -> str:
    """`1 page`, `17 pages`, `73,728 bytes`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def runs(numbers: Iterable[int]) -> str:
    """`0-16`, `3, 5-7`, `none`; runs may go down, as a device's references do."""
    found: list[list[int]] = []  # first, last, step
    for number in numbers:
        step = number - found[-1][1] if found else 0
        if abs(step) == 1 and found[-1][2] in (0, step):
            found[-1][1:] = [number, step]
        else:
            found.append([number, number, 0])
    texts = (f"{first}-{last}" if last != first else str(first) for first, last, _ in found)
    return ", ".join(texts) or "none"


def printable(text: str) -> str:
    """The text in one line; what a terminal would act on is written as an escape (`\\x1b`)."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def text_of(data: bytes) -> str:
    """Bytes that should be text, in one line; what is not UTF-8 is written as an escape."""
    return printable(data.decode("utf-8", "backslashreplace"))


def place_of(address: int | None, page: int) -> str:
    """Where a page lies: its address, or its index when the image does not say the address."""
    return f"page {page}" if address is None else f"{address + page * 4096:#x}"
