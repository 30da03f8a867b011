"""The guard: what touches handed-over pages is refused, whatever it is, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.errors import BadAddress
from xenlive.kexec import KexecModule
from xenlive.kexec.guard import check_clear, module_range
from xenlive.memory.address import PhysAddr
from xenlive.memory.guest import GuestMemory

Ranges = list[tuple[int, int]]

MODULE = (0x8000, 0x3000)


@pytest.mark.parametrize(
    "touched",
    [
        [],
        [(0, 0x8000)],
        [(0xB000, 1)],
        [(0x8000, 0)],
        [(0x9000, 0)],
        [(0, 0x8000), (0xB000, 1 << 40)],
    ],
)
def test_what_stays_clear(touched: Ranges) -> None:
    check_clear(touched, [MODULE])


@pytest.mark.parametrize(
    "touched",
    [
        [(0, 0x8001)],
        [(0xAFFF, 1)],
        [(0x8000, 0x3000)],
        [(0x9000, 1)],
        [(0, 1 << 64)],
        [(0, 1), (0xB000, 5), (0xA000, 0x2000)],
    ],
)
def test_what_would_touch_it(touched: Ranges) -> None:
    with pytest.raises(BadAddress, match="would overwrite the 12288 handed-over bytes at 0x8000"):
        check_clear(touched, [(0x100000, 0), MODULE])


@pytest.mark.parametrize(
    ("touched", "handed_over"),
    [([(-1, 5)], [MODULE]), ([(5, -1)], [MODULE]), ([(0, 1)], [(-5, 1)]), ([(0, 1)], [(0, -1)])],
)
def test_sums_that_went_wrong(touched: Ranges, handed_over: Ranges) -> None:
    with pytest.raises(BadAddress):
        check_clear(touched, handed_over)


def test_the_range_of_a_module_includes_its_last_page() -> None:
    memory = GuestMemory([(0, bytearray(0x10000))])
    module = KexecModule.create(memory, PhysAddr(0x8000), 3)
    assert module_range(module) == MODULE


ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=6)


@settings(deadline=None, max_examples=300)
@given(ranges, ranges)
def test_refused_if_and_only_if_a_byte_is_shared(touched: Ranges, handed_over: Ranges) -> None:
    """Against sets of single bytes."""
    mine = {byte for at, size in touched for byte in range(at, at + size)}
    kept = {byte for at, size in handed_over for byte in range(at, at + size)}
    if mine & kept:
        with pytest.raises(BadAddress) as raised:
            check_clear(touched, handed_over)
        assert (raised.value.address, raised.value.size) in touched
    else:
        check_clear(touched, handed_over)
