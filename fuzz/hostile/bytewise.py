"""Changes that need no idea of what the bytes mean, and numbers at which code goes wrong."""

from __future__ import annotations

from random import Random

EDGES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 127, 128, 254, 255, 256, 257, 4095, 4096, 4097)
EDGES_16 = (*EDGES, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
EDGES_32 = (*EDGES_16, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFF)
EDGES_64 = (*EDGES_32, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1)
_BY_SIZE = {1: EDGES, 2: EDGES_16, 4: EDGES_32, 8: EDGES_64}


def near(rng: Random, value: int) -> int:
    """`value`, or a number next to it."""
    return value + rng.choice((-4096, -256, -4, -1, -1, 0, 1, 1, 4, 256, 4096))


def number(rng: Random, old: int, size: int) -> int:
    """A number of `size` bytes to stand where `old` stood."""
    kind = rng.random()
    if kind < 0.45:
        new = near(rng, old)
    elif kind < 0.8:
        new = rng.choice(_BY_SIZE[size])
    else:
        new = rng.getrandbits(8 * size)
    return new % (1 << 8 * size)


def put_number(data: bytearray, rng: Random, at: int, size: int, *, order: str = "little") -> None:
    """Another number of `size` bytes at `at`, if that much is there."""
    if at >= 0 and at + size <= len(data):
        old = int.from_bytes(data[at : at + size], "big" if order == "big" else "little")
        new = number(rng, old, size)
        data[at : at + size] = new.to_bytes(size, "big" if order == "big" else "little")


def change(data: bytearray, rng: Random, max_bytes: int, *, resize: bool = True) -> None:
    """One small change somewhere: a bit, a byte, a number, a run copied, zeroed, cut or added."""
    if not data:
        data += bytes([rng.randrange(256)])
        return
    at = rng.randrange(len(data))
    kind = rng.randrange(8 if resize else 6)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.randrange(256)
    elif kind in (2, 3):
        put_number(data, rng, at & ~3, rng.choice((1, 2, 4, 8)))
    elif kind == 4:
        length = min(rng.choice((1, 2, 4, 8, 16, 64)), len(data) - at)
        source = rng.randrange(len(data) - length + 1)
        data[at : at + length] = data[source : source + length]
    elif kind == 5:
        length = min(rng.choice((1, 4, 16, 256)), len(data) - at)
        data[at : at + length] = rng.choice((b"\0", b"\xff", b"A")) * length
    elif kind == 6:
        del data[at : at + rng.choice((1, 2, 4, 16, 4096))]
    else:
        data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
    del data[max_bytes:]
