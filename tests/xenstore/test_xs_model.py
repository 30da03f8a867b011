"""The server against the plainest model of it: nodes and rights, transactions, watches.

`treemodel` is the model, `modelplay` says what is compared. Hypothesis finds small examples; the
seeds see to it that all that is compared does happen.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xenstore.modelplay import Play
from xenstore.treemodel import Request

from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_GET_PERMS,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_WRITE,
)

PATHS = (
    *(b"/a", b"/a", b"/a/b", b"/a/b", b"/a/b/c", b"/a/c", b"/d", b"/d/e/f", b"/"),
    *(b"x", b"x/y", b"x/y/z", b"/local/domain/3/x", b"/local/domain/3", b"/local/domain/5/x/y"),
    *(b"/local/domain/7", b"/local", b"/tool"),
)
RIGHTS = (
    *(
        b"n0\0",
        b"r0\0",
        b"b0\0",
        b"b0\0",
        b"w0\0",
        b"n0\0r3\0",
        b"n0\0w3\0b5\0",
        b"n0\0b3\0r5\0n7\0",
    ),
    *(
        b"n3\0",
        b"r3\0b5\0",
        b"b3\0n5\0",
        b"n5\0r3\0",
        b"b7\0",
        b"n0\0r65535\0",
        b"n7\0b65535\0r3\0",
    ),
)
NODES = (XS_WRITE, XS_WRITE, XS_MKDIR, XS_RM, XS_READ, XS_DIRECTORY, XS_GET_PERMS, XS_SET_PERMS)
CHANGES = (XS_WRITE, XS_WRITE, XS_MKDIR, XS_RM, XS_SET_PERMS)
TOKENS = (b"t", b"u", b"")
START, COMMIT, ABORT, WATCH, UNWATCH = "start", "commit", "abort", "watch", "unwatch"

Step = tuple[int, int | str, bytes, int]  # who, what, path, and a number that says the rest


def steps(kinds: tuple[int | str, ...], most: int) -> st.SearchStrategy[list[Step]]:
    """Lists of steps of such kinds."""
    step = st.tuples(
        st.integers(0, 4), st.sampled_from(kinds), st.sampled_from(PATHS), st.integers(0, 255)
    )
    return st.lists(step, max_size=most)


def play(listed: list[Step], *, has_target: bool = False, inside: int = 2) -> Play:
    """Plays steps; `inside` of 4 requests go into a transaction, if there is one."""
    world = Play(has_target=has_target)
    for who, what, path, number in listed:
        if what == START:
            world.start(who)
        elif what in (COMMIT, ABORT):
            world.end(who, what == COMMIT)
        elif what == WATCH:
            depth = (None, None, None, 0, 1, 2)[number % 6]
            world.watch(who, path, TOKENS[number % 3], depth)
        elif what == UNWATCH:
            world.unwatch(who, path, TOKENS[number % 3])
        else:
            assert isinstance(what, int)
            data = b"%d" % number if what == XS_WRITE else b""
            if what == XS_SET_PERMS:
                data = RIGHTS[number % len(RIGHTS)]
            world.request(who, Request(what, path, data), number // 16 % 4 < inside)
    world.finish()
    return world


@given(steps(NODES, 60), st.booleans())
@settings(deadline=None, max_examples=120)
def test_nodes_and_rights_are_the_models(listed: list[Step], has_target: bool) -> None:
    play(listed, has_target=has_target)


@given(steps((*NODES, *NODES, START, START, COMMIT, COMMIT, ABORT), 60))
@settings(deadline=None, max_examples=120)
def test_committed_transactions_are_a_serial_history(listed: list[Step]) -> None:
    play(listed)


@given(steps((*CHANGES, *CHANGES, WATCH, WATCH, WATCH, UNWATCH, START, COMMIT), 60))
@settings(deadline=None, max_examples=120)
def test_watches_hear_of_what_they_may_know(listed: list[Step]) -> None:
    play(listed, inside=1)


@pytest.mark.parametrize("seed", range(6))
def test_all_that_is_compared_happens(seed: int) -> None:
    """Long plays: transactions that end in either way, events, and events that are kept back."""
    dice = random.Random(seed)
    kinds: tuple[int | str, ...] = (
        *NODES,
        *NODES,
        *CHANGES,
        *[START] * 3,
        *[COMMIT] * 3,
        *[WATCH] * 3,
        UNWATCH,
    )
    listed: list[Step] = [
        (dice.randrange(5), dice.choice(kinds), dice.choice(PATHS), dice.randrange(256))
        for _ in range(1200)
    ]
    counts = play(listed, has_target=bool(seed % 2)).counts
    assert counts["committed"] > 15
    assert counts["again"] > 15
    assert counts["events"] > 200
    assert counts["hidden"] > 100
