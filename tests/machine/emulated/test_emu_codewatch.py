"""Stores into code are noticed by whatever address they come, and stores elsewhere are fast.

The kernels here have a page of code at 8 MiB, which can be executed there, and only be written at
1 GiB and 8 MiB: what Linux does when memory of one program becomes memory of another.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.machines import Machine, Machines, machines

__all__ = ["machines"]  # the fixture
pytestmark = pytest.mark.peer

CODE, ALIAS = 0x800000, 0x40800000

START = f"""
        .set CODE, {CODE:#x}
        .set ALIAS, {ALIAS:#x}
        .data
        .balign 4096
second: .set piece, 0                   /* the same memory again, never to be executed */
        .rept 512
        .quad piece * 0x200000 + 0x8000000000000083
        .set piece, piece + 1
        .endr
        .text
        .macro call_code at=0
        call CODE + \\at
        report %rax
        .endm
        .macro function at, value       /* mov $value, eax; ret */
        movb $0xb8, ALIAS + \\at
        movl $\\value, ALIAS + \\at + 1
        movb $0xc3, ALIAS + \\at + 5
        .endm
start:  enter_long_mode
        call fill_idt
        movq $second + 3, pdpt + 8
"""


def values(machines: Machines, body: str) -> list[int]:
    """The numbers that a kernel reports."""
    return [value for value, _ in machines(START + body + "\n finish\n").reports()]


def test_code_is_written_by_another_address(machines: Machines) -> None:
    body = """
        function 0, 1
        call_code
        movl $2, ALIAS + 1
        call_code
        movl $3, ALIAS + 1
        call_code
    """
    assert values(machines, body) == [1, 2, 3]


def test_the_first_store_is_not_the_last(machines: Machines) -> None:
    # It makes Unicorn think that the page has no code any more.
    body = """
        function 0, 1
        function 0x800, 10
        call_code
        call_code 0x800
        movl $2, ALIAS + 1
        movl $20, ALIAS + 0x801
        call_code
        call_code 0x800
        movl $0x55, ALIAS + 0x400
        movl $3, ALIAS + 1
        movl $30, ALIAS + 0x801
        call_code
        call_code 0x800
    """
    assert values(machines, body) == [1, 10, 2, 20, 3, 30]


def test_memory_that_was_written_before_becomes_code(machines: Machines) -> None:
    # The store's address is known as one of a page without code when the code comes.
    body = """
        movl $0, ALIAS + 0x100
        function 0, 1
        movl $0, ALIAS + 0x104
        call_code
        movl $2, ALIAS + 1
        call_code
        .rept 3
        movl $0, ALIAS + 0x1000         /* its neighbour has none */
        .endr
        movl $3, ALIAS + 1
        call_code
    """
    assert values(machines, body) == [1, 2, 3]


def test_a_block_in_two_pages_and_two_pieces(machines: Machines) -> None:
    # Three of the four bytes of the 1 in mov $1, %eax are in the next two megabytes.
    body = """
        function 0x1ffffe, 1
        call_code 0x1ffffe
        movl $0, ALIAS + 0x200100
        movb $2, ALIAS + 0x200000
        call_code 0x1ffffe
        movb $3, ALIAS + 0x1fffff
        call_code 0x1ffffe
    """
    assert values(machines, body) == [1, 0x201, 0x203]


def test_memory_without_code_is_not_watched(machines: Machines) -> None:
    machine = machines(START + "function 0, 1\n call_code\n finish\n")
    machine.reports()
    watch = machine.engine._mappings.watch
    pieces = machine.space.size_bytes >> 21
    assert {0, CODE >> 21} <= watch._code
    assert len(watch._code) < pieces <= len(watch._ram) + 1


def test_when_it_can_not_be_told_where_code_is_all_is_watched(machines: Machines) -> None:
    machine: Machine = machines(START + "function 0, 1\n call_code\n finish\n")
    assert [value for value, _ in machine.reports()] == [1]
    watch = machine.engine._mappings.watch
    assert not watch._code >= watch._ram
    watch._note(1 << 45)  # no page is there
    assert watch._code >= watch._ram


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["write", "call", "other"]),
            st.integers(0, 3),
            st.integers(0, 1000),
            st.booleans(),
        ),
        max_size=25,
    )
)
def test_calls_see_what_was_written_last(steps: list[tuple[str, int, int, bool]]) -> None:
    """Four functions in two pages, written by either address and called, in any order."""
    places = (0, 0x40, 0xFF0, 0x1FF8)
    made = Machines()
    try:
        now = [7] * len(places)
        body = [f"function {at:#x}, 7" for at in places]
        expected = []
        for step, which, value, by_alias in steps:
            at = places[which]
            base = "ALIAS" if by_alias else "CODE"
            if step == "write":
                body.append(f"movl ${value}, {base} + {at + 1:#x}")
                now[which] = value
            elif step == "call":
                body.append(f"call_code {at:#x}")
                expected.append(now[which])
            else:
                body.append(f"movl ${value}, {base} + {at + 8:#x}")
        assert values(made, "\n".join(body)) == expected
    finally:
        made.close()
