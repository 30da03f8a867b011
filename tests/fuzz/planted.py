"""A target with a mistake in it that only an engine that works will find."""

from __future__ import annotations

from random import Random

from hostile import bytewise
from hostile.target import Target, expect


def check(data: bytes) -> str:
    """Wrong for inputs that begin with K, e, x, one after the other."""
    known = 0
    for byte, wanted in zip(data, b"Kex", strict=False):
        if byte != wanted:
            break
        known += 1
    expect(known < 3, "no input begins like that")
    return f"{known} known"


def _mutate(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(changed))] = rng.randrange(256)
    bytewise.change(changed, rng, 8, resize=False)
    return bytes(changed)


TARGET = Target("planted", "a mistake on purpose", lambda: [b"Abcdefgh"], _mutate, check, 8)
