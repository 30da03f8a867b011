"""The first problem alone is the first of all of them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.abi.kexec_module import EYE_CATCHER, HEADER, PG2REC_OFFSET, RECORD
from xenlive.kexec.verify import first_problem, verify
from xenlive.memory.address import PAGE_SIZE

_ENTRY = st.tuples(
    st.integers(0, PAGE_SIZE + 9), st.sampled_from([0, 1, 0x77, 0xE1]), st.integers(0, 255)
)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 20),
    st.integers(0, 1),
    st.lists(_ENTRY, max_size=6),
    st.binary(min_size=20, max_size=20),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3),
)
def test_the_first_problem_is_the_first_of_all(
    n_pages: int,
    more: int,
    entries: list[tuple[int, int, int]],
    owners: bytes,
    scribbles: list[tuple[int, int]],
) -> None:
    table = PG2REC_OFFSET + n_pages
    head = HEADER.pack(EYE_CATCHER, n_pages, len(entries), table) + owners[:n_pages]
    page = bytearray(head + b"".join(RECORD.pack(*each) for each in entries))
    page = page.ljust(PAGE_SIZE, b"\0")
    for at, byte in scribbles:
        page[at] = byte
    size_bytes = (n_pages + 1 + more) * PAGE_SIZE
    problems = verify(page, size_bytes)
    assert first_problem(page, size_bytes) == (problems[0] if problems else None)


def test_a_page_with_hundreds_of_problems() -> None:
    """Only the first is put into words."""
    page = bytearray(PAGE_SIZE)
    table = HEADER.pack(EYE_CATCHER, 0, 255, PG2REC_OFFSET) + RECORD.pack(0, 1, 255) * 255
    page[: len(table)] = table
    assert len(verify(page, PAGE_SIZE)) == 2 * 255 - 1
    found = first_problem(page, PAGE_SIZE)
    assert found is not None
    assert (found.code, found.offset) == ("record-over-table", PG2REC_OFFSET)
