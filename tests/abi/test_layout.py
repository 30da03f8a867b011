"""Layouts are checked when they are declared, and a short buffer when they are used."""

from __future__ import annotations

import pytest

from xenlive.abi.layout import Field, Layout

PAIR = Layout("pair", 8, [Field("a", 0, "H"), Field("_pad", 2, "H"), Field("b", 4, "I")])


@pytest.mark.parametrize(
    ("size", "fields", "what"),
    [
        (4, [Field("a", 0, "H"), Field("b", 4, "H")], "follows at 2"),
        (4, [Field("a", 0, "I"), Field("b", 2, "H")], "follows at 4"),
        (6, [Field("a", 0, "I")], "fields end at 4"),
        (4, [Field("a", 0, "H"), Field("a", 2, "H")], "stands twice"),
    ],
    ids=["gap", "overlap", "size", "twice"],
)
def test_a_layout_that_does_not_add_up_is_refused(
    size: int, fields: list[Field], what: str
) -> None:
    with pytest.raises(TypeError, match=what):
        Layout("wrong", size, fields)


def test_decode_gives_the_fields_by_name_without_padding() -> None:
    assert PAIR.decode(b"\x01\x02\xff\xff\x04\x03\x02\x01") == {"a": 0x0201, "b": 0x01020304}


def test_encode_is_the_reverse_and_writes_padding_as_zero() -> None:
    assert PAIR.encode(b=0x01020304, a=0x0201) == b"\x01\x02\x00\x00\x04\x03\x02\x01"


def test_big_endian_is_by_order() -> None:
    big = Layout("big", 4, [Field("a", 0, "I")], order=">")
    assert big.pack(1) == b"\0\0\0\1"


def test_offset_of_names_a_field_or_nothing() -> None:
    assert PAIR.offset_of("b") == 4
    with pytest.raises(KeyError):
        PAIR.offset_of("c")


@pytest.mark.parametrize("offset", [1, 8, -1])
def test_a_buffer_that_ends_too_early_is_a_value_error(offset: int) -> None:
    with pytest.raises(ValueError, match="pair"):
        PAIR.decode(bytes(8), offset)


@pytest.mark.parametrize("a", [-1, 1 << 16])
def test_a_number_that_does_not_fit_is_a_value_error(a: int) -> None:
    with pytest.raises(ValueError, match="pair"):
        PAIR.encode(a=a, b=0)


def test_a_missing_or_unknown_field_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="missing or unknown: b, c"):
        PAIR.encode(a=1, c=2)
