"""The engine that needs nothing: changed seeds, and what gave a new word is changed again.

It has no eyes for the code. Instead the word a check gives is taken for news: an input that gave a
word for the first time joins the seeds.
"""

from __future__ import annotations

import time
from random import Random

from hostile.tally import Tally
from hostile.target import Target

MAX_KEPT = 400


class Found(Exception):
    """An input broke a promise or the product; the cause is chained."""

    def __init__(self, data: bytes) -> None:
        super().__init__(f"an input of {len(data)} bytes")
        self.data = data


def hunt_plain(target: Target, tally: Tally, *, seed: int, runs: int, seconds: float) -> None:
    """Tries all seeds, then `runs` inputs in all, or as many as `seconds` allow; 0 is no limit.

    Found with the first input that breaks something.
    """
    rng = Random(seed)
    kept = target.seeds()
    n_seeds = len(kept)
    end_s = time.monotonic() + seconds if seconds else float("inf")
    while (not runs or tally.executions < runs) and time.monotonic() < end_s:
        number = tally.executions
        data = kept[number] if number < n_seeds else _change(target, kept, rng)
        try:
            began_ns = time.perf_counter_ns()
            word = target.check(data)
            ns = time.perf_counter_ns() - began_ns
        except Exception as error:
            raise Found(data) from error
        if tally.note(data, word, ns) and number >= n_seeds:
            if len(kept) < n_seeds + MAX_KEPT:
                kept.append(data)
            else:
                kept[rng.randrange(n_seeds, len(kept))] = data


def _change(target: Target, kept: list[bytes], rng: Random) -> bytes:
    data = kept[rng.randrange(len(kept))]
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = target.mutate(data, rng)
    return data
