"""What `--json` keeps of a console: its beginning and its end, and how much is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenlive.cli.kept import Kept

PART = 100


@given(st.lists(st.integers(0, 350), max_size=12))
def test_the_middle_is_left_out(sizes: list[int]) -> None:
    kept = Kept(PART)
    data = "".join(chr(ord("a") + n % 26) for n in range(sum(sizes)))
    at = 0
    for size in sizes:
        kept.add(data[at : at + size].encode())
        at += size
        assert len(kept._first) + len(kept._last) <= 3 * PART + 350
    said = kept.as_object()
    if len(data) <= 2 * PART:
        assert said == {"console": data}
    else:
        left_out = len(data) - 2 * PART
        assert said == {"console": data[:PART] + data[-PART:], "console_left_out": left_out}


def test_bytes_that_are_no_text_are_shown() -> None:
    kept = Kept()
    kept.add(b"\xff")
    kept.add("Grüße".encode()[:3])
    kept.add("Grüße".encode()[3:])
    assert kept.as_object() == {"console": "\\xffGrüße"}
