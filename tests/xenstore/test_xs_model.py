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
    *(b"n0\0", b"r0\0", b"b0\0", b"b0\0", b"w0\0", b"n0\0r3\0", b"n0\0w3\0b5\0"),
    *(b"n0\0b3\0r5\0n7\0", b"n0\0r5\0", b"n7\0b5\0", b"n3\0", b"r3\0b5\0", b"b3\0n5\0"),
    *(b"n5\0r3\0", b"b7\0", b"n0\0r65535\0", b"n7\0b65535\0r3\0"),
)
# Few, for transactions to meet in: those that meet more often are only ever in conflict.
FEW = (b"/a", b"/a", b"/a/b", b"/a/c", b"/a/b/c", b"/local/domain/3/x")
NODES = (XS_WRITE, XS_WRITE, XS_MKDIR, XS_RM, XS_READ, XS_DIRECTORY, XS_GET_PERMS, XS_SET_PERMS)
CHANGES = (XS_WRITE, XS_WRITE, XS_MKDIR, XS_RM, XS_SET_PERMS)
TOKENS = (b"t", b"u", b"")
START, COMMIT, ABORT, WATCH, UNWATCH = "start", "commit", "abort", "watch", "unwatch"

Step = tuple[int, int | str, bytes, int]  # who, what, path, and a number that says the rest


def steps(
    kinds: tuple[int | str, ...], paths: tuple[bytes, ...] = PATHS, parties: int = 5
) -> st.SearchStrategy[list[Step]]:
    """Lists of steps of such kinds."""
    who = st.integers(0, parties - 1)
    step = st.tuples(who, st.sampled_from(kinds), st.sampled_from(paths), st.integers(0, 255))
    return st.lists(step, max_size=60)


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


@given(steps(NODES), st.booleans())
@settings(deadline=None, max_examples=250)
def test_nodes_and_rights_are_the_models(listed: list[Step], has_target: bool) -> None:
    play(listed, has_target=has_target)


@given(steps((*NODES, START, COMMIT, COMMIT, ABORT), FEW, 3))
@settings(deadline=None, max_examples=250)
def test_committed_transactions_are_a_serial_history(listed: list[Step]) -> None:
    play(listed)


@given(steps((*CHANGES, *CHANGES, WATCH, WATCH, WATCH, UNWATCH, START, COMMIT)))
@settings(deadline=None, max_examples=250)
def test_watches_hear_of_what_they_may_know(listed: list[Step]) -> None:
    play(listed, inside=1)


@pytest.mark.parametrize("seed", range(12))
def test_all_that_is_compared_happens(seed: int) -> None:
    """Long plays: transactions that end in either way, events, and events that are kept back."""
    dice = random.Random(seed)
    kinds: list[int | str] = [*NODES, *NODES, *CHANGES, UNWATCH]
    kinds += [each for each in (START, COMMIT, WATCH) for _ in range(3)]
    is_close = seed % 4 < 2
    paths, parties = (FEW, 3) if is_close else (PATHS, 5)
    if is_close:  # short transactions, with one reason at most to be in conflict
        kinds += [COMMIT] * 6 + [XS_DIRECTORY] * 3
    listed: list[Step] = [
        (dice.randrange(parties), dice.choice(kinds), dice.choice(paths), dice.randrange(256))
        for _ in range(1200)
    ]
    counts = play(listed, has_target=bool(seed % 2)).counts
    assert counts["committed"] > 10
    assert counts["again"] > 10
    assert counts["events"] > 150
    assert counts["hidden"] > (0 if is_close else 50)
