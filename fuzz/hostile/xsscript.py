"""Scripts: what happens to a Xenstore server, one thing after the other, and how to change that.

    input: steps of   kind u8 · arg u8 · length u16 · bytes

What a kind of step means is its target's. What is cut off or too long is shorter, what is left over
is left out: any bytes are a script.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from hostile import bytewise
from xenlive.abi.xs_wire import (
    XENSTORE_PAYLOAD_MAX,
    XS_CONTROL,
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_GET_DOMAIN_PATH,
    XS_GET_FEATURE,
    XS_GET_PERMS,
    XS_GET_QUOTA,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_RELEASE,
    XS_RESET_WATCHES,
    XS_RESUME,
    XS_RM,
    XS_SET_FEATURE,
    XS_SET_PERMS,
    XS_SET_QUOTA,
    XS_SET_TARGET,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
    XSD_SOCKMSG,
)

MAX_STEPS = 40
MAX_BYTES = 24 << 10
_STEP_MAX = 2 * XENSTORE_PAYLOAD_MAX
_STEP = struct.Struct("<BBH")
_CUTS = (1, 15, 16, 17, 100, 1023, 1024, 1025)
_LENGTHS = (0, 1, 2, 15, 16, 1000, 4079, 4080, 4095, 4096, 4097, 5000, 1 << 16, 0xFFFFFFFF)


@dataclass
class Step:
    """One thing that happens."""

    kind: int
    arg: int
    data: bytes = b""

    def encode(self) -> bytes:
        """The bytes of it."""
        return _STEP.pack(self.kind, self.arg, len(self.data)) + self.data


def encode_script(steps: list[Step]) -> bytes:
    """The input that means these steps."""
    return b"".join([step.encode() for step in steps])


def decode_script(data: bytes) -> list[Step]:
    """The steps that any bytes mean."""
    steps: list[Step] = []
    at = 0
    while at + _STEP.size <= len(data) and len(steps) < MAX_STEPS:
        kind, arg, length = _STEP.unpack_from(data, at)
        at += _STEP.size
        length = min(length, _STEP_MAX)
        steps.append(Step(kind, arg, data[at : at + length]))
        at += length
    return steps


def message(kind: int, payload: bytes, tx_id: int = 0, req_id: int = 1) -> bytes:
    """A request as it goes over the wire, of any length."""
    return XSD_SOCKMSG.pack(kind, req_id, tx_id, len(payload)) + payload


class Words:
    """What requests are made of: paths, domains and rights that meet."""

    def __init__(
        self, homes: tuple[bytes, ...], others: tuple[bytes, ...], domids: tuple[int, ...]
    ):
        self.homes = homes
        self.others = others
        self.domids = domids

    def path(self, rng: Random) -> bytes:
        """A path; one in ten can't be."""
        kind = rng.randrange(20)
        if kind < 9:
            names = [rng.choice((b"a", b"b", b"data", b"c-1")) for _ in range(rng.randrange(1, 4))]
            return rng.choice((*self.homes, b"")) + b"/".join(names)
        if kind < 17:
            return rng.choice(self.others)
        if kind < 18:
            return rng.choice((b"@releaseDomain", b"@introduceDomain", b"@releaseDomain/3", b"@x"))
        return rng.choice(
            (
                b"",
                b"/",
                b"//",
                b"a//b",
                b"/a/",
                b"a b",
                b"\xff",
                b"x" * 300,
                b"/y" * 1500,
                b"a/" * 90,
            )
        )

    def permissions(self, rng: Random) -> bytes:
        """What SET_PERMS is told."""
        count = rng.choice((1, 1, 2, 3, 4, 5, 40))
        texts = [
            rng.choice((b"n", b"r", b"w", b"b", b"n", b"x", b""))
            + rng.choice((b"%d", b"%d", b"%d", b"0x%x", b"-%d", b"%d "))
            % rng.choice((*self.domids, 0, 32756, 65535, 70000))
            for _ in range(count)
        ]
        return b"\0".join(texts) + b"\0"

    def request(self, rng: Random) -> tuple[int, bytes]:
        """Type and payload; mostly sound."""
        path = self.path(rng) + b"\0"
        token = rng.choice((b"t\0", b"u\0", b"\0", b"k" * 1000 + b"\0"))
        domid = b"%d\0" % rng.choice((*self.domids, 0, 1, 65535))
        size = rng.choice((0, 1, 8, 100, 900, 1100, 2000, 3000, 4000))
        kind, payload = rng.choices(
            (
                (XS_READ, path),
                (XS_WRITE, path + rng.choice((b"v", b"V")) * size),
                (XS_WRITE, path + b"%d" % rng.randrange(100)),
                (XS_MKDIR, path),
                (XS_RM, path),
                (XS_DIRECTORY, path),
                (XS_DIRECTORY_PART, path + rng.choice((b"0\0", b"5\0", b"-1\0", b"99999\0"))),
                (XS_GET_PERMS, path),
                (XS_SET_PERMS, path + self.permissions(rng)),
                (XS_WATCH, path + token + rng.choice((b"", b"", b"0\0", b"2\0", b"-1\0"))),
                (XS_UNWATCH, path + token),
                (XS_TRANSACTION_START, b"\0"),
                (XS_TRANSACTION_END, rng.choice((b"T\0", b"T\0", b"F\0", b"X"))),
                (XS_RESET_WATCHES, b"\0"),
                (XS_GET_DOMAIN_PATH, domid),
                (XS_GET_FEATURE, rng.choice((b"", domid))),
                (XS_GET_QUOTA, rng.choice((b"", b"nodes\0", b"x\0", domid + b"nodes\0"))),
                self.management(rng, domid),
                (rng.randrange(40), path + token),
                (rng.choice((26, 27, 1 << 16, 0xFFFFFFFF)), rng.randbytes(rng.randrange(30))),
            ),
            (9, 5, 9, 6, 6, 6, 3, 4, 8, 10, 4, 9, 9, 1, 1, 1, 1, 4, 2, 1),
        )[0]
        if rng.random() < 0.04:
            payload = payload.replace(b"\0", b"") if rng.random() < 0.5 else payload + b"\0"
        return kind, payload

    def management(self, rng: Random, domid: bytes) -> tuple[int, bytes]:
        """What only domain 0 may ask."""
        other = b"%d\0" % rng.choice((*self.domids, 0))
        name = rng.choice((b"nodes\0", b"watches\0", b"memory\0", b"soft-memory\0", b"x\0", b"\0"))
        value = rng.choice((b"0\0", b"1\0", b"20\0", b"-1\0", b"4294967295\0", b"9" * 40 + b"\0"))
        verbs = (b"check", b"print\0hi", b"log\0on", b"log\0+io", b"logfile\0x", b"memreport\0x")
        more = (b"help", b"quota", b"quota\0max\0-r", b"quota\0" + domid[:-1], b"quota-soft", b"no")
        return rng.choice(
            (
                (XS_INTRODUCE, domid + b"1\0" + rng.choice((b"1\0", b"2\0", b"0\0"))),
                (XS_RELEASE, domid),
                (XS_RESUME, domid),
                (XS_SET_TARGET, domid + other),
                (XS_IS_DOMAIN_INTRODUCED, domid),
                (XS_SET_FEATURE, domid + value),
                (XS_SET_QUOTA, rng.choice((b"", domid)) + name + value),
                (XS_CONTROL, rng.choice((*verbs, *more)) + b"\0"),
                (XS_CONTROL, b"quota\0set\0" + name + value),
            )
        )

    def raw(self, rng: Random) -> bytes:
        """Bytes of some requests, one of them perhaps cut or with a wrong head."""
        parts = []
        for number in range(rng.choice((1, 1, 2, 5, 20))):
            kind, payload = self.request(rng)
            parts.append(message(kind, payload, rng.choice((0, 0, 0, 1, 2, 3, 99)), number))
        data = bytearray(b"".join(parts))
        how = rng.randrange(10)
        if how == 0:
            del data[rng.choice(_CUTS) :]
        elif how == 1:
            data[12:16] = rng.choice(_LENGTHS).to_bytes(4, "little")
        elif how == 2:
            bytewise.change(data, rng, _STEP_MAX)
        return bytes(data[:_STEP_MAX])


def mutate_script(data: bytes, rng: Random, new_step: Callable[[Random], Step]) -> bytes:
    """Another script: steps more, less, twice, in another order, or with other bytes."""
    steps = decode_script(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, how = rng.randrange(len(steps) + 1), rng.randrange(12)
        if how < 6 or not steps:
            steps.insert(at, new_step(rng))
            continue
        step = steps[at - 1]
        if how == 6:
            del steps[at - 1]
        elif how == 7:
            other = rng.randrange(len(steps))
            steps[at - 1], steps[other] = steps[other], step
        elif how == 8:
            steps.insert(at, step)
        elif how == 9:
            steps[at - 1] = Step(step.kind, rng.randrange(256), step.data)
        else:
            changed = bytearray(step.data)
            bytewise.change(changed, rng, _STEP_MAX)
            steps[at - 1] = Step(step.kind, step.arg, bytes(changed))
    while steps and (len(steps) > MAX_STEPS or sum(len(s.data) + 4 for s in steps) > MAX_BYTES):
        del steps[rng.randrange(len(steps))]
    return encode_script(steps)
