"""Permissions of a node: who owns it, who may read and write.

Specification: Xen `docs/misc/xenstore.txt`, introduction and SET_PERMS. They are kept as the bytes
the migration stream has for them (`docs/designs/xenstore-migration.md`, NODE_DATA), so that a
state stream is written and read without converting a single one:

    0        1       2           4
    ├────────┼───────┼───────────┼──
    │ access │ flags │ domid u16 │ …     access: one of n r w b; flags 1: stale, not to be heeded
    └────────┴───────┴───────────┴──

The first entry names the owner, and what everybody gets who has no entry.

**Invariants.** Permissions are never empty and always whole entries. Equal permissions of different
nodes are one object: a store has few different ones (`intern`).
"""

from __future__ import annotations

import struct

from xenlive.abi.xs_wire import DOMID_ANY
from xenlive.errors import XenstoreError

READ = 1
WRITE = 2
OWNER = 8
ALL = READ | WRITE | OWNER

STALE = 1
ENTRY_SIZE = 4
ACCESS = {ord("n"): 0, ord("r"): READ, ord("w"): WRITE, ord("b"): READ | WRITE}

_ENTRY = struct.Struct("<BBH")
_LETTERS = (b"n", b"r", b"w", b"b")
_DIGITS = {8: b"01234567", 10: b"0123456789", 16: b"0123456789abcdef"}
_MAX_KNOWN = 4096
_known: dict[bytes, bytes] = {}


def intern(raw: bytes) -> bytes:
    """The one object for equal permissions; the table of them can't grow without bound."""
    same = _known.get(raw)
    if same is None:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
            _known[OWN] = OWN
        _known[raw] = same = raw
    return same


def make(*entries: tuple[str, int]) -> bytes:
    """Permissions from pairs of access letter and domid: `make(("n", 0), ("r", 5))`."""
    return intern(b"".join([_ENTRY.pack(ord(letter), 0, domid) for letter, domid in entries]))


#: Domain 0's own, and nobody else's business: most nodes have these, which are one object for ever.
OWN = make(("n", 0))


def owner_of(raw: bytes) -> int:
    """The domain that owns the node."""
    return raw[2] | raw[3] << 8


def with_owner(raw: bytes, domid: int) -> bytes:
    """The same permissions with another owner, as a domain's own new nodes have them."""
    return intern(raw[:2] + domid.to_bytes(2, "little") + raw[4:])


def allowed(raw: bytes, domid: int, target: int) -> int:
    """What a domain may do: an or of READ, WRITE and OWNER. `target` is -1 if it has none."""
    entries = list(_ENTRY.iter_unpack(raw))
    access, _, owner = entries[0]
    if owner in (domid, target, DOMID_ANY):
        return ALL
    for letter, flags, who in entries[1:]:
        if not flags & STALE and who in (domid, target, DOMID_ANY):
            return ACCESS[letter]
    return ACCESS[access]


def without_stale(raw: bytes, generation: int, domains: dict[int, int]) -> bytes:
    """The permissions, with each entry marked that means a domain younger than the node.

    A domain id is used again after its domain has gone: what was granted to the former one must
    not fall to the next. `domains` maps each domid to the store's generation at its start.
    """
    if len(raw) == ENTRY_SIZE:
        return raw
    checked = [raw[:ENTRY_SIZE]]
    for letter, flags, domid in _ENTRY.iter_unpack(raw[ENTRY_SIZE:]):
        if domid != DOMID_ANY and not flags & STALE:
            started = domains.get(domid)
            if started is None or started > generation:
                flags |= STALE
        checked.append(_ENTRY.pack(letter, flags, domid))
    return intern(b"".join(checked))


def all_as_old(raw: bytes, generation: int, domains: dict[int, int]) -> bool:
    """Whether all that the permissions mean, owner and entries, exist since before `generation`."""
    for _, flags, domid in _ENTRY.iter_unpack(raw):
        if not flags & STALE and domid != DOMID_ANY:
            started = domains.get(domid)
            if started is None or started > generation:
                return False
    return True


def without_domain(raw: bytes, domid: int) -> bytes:
    """The permissions without the entries for a domain that has gone, its owner's place aside."""
    if len(raw) == ENTRY_SIZE:
        return raw
    kept = [raw[:ENTRY_SIZE]]
    for at in range(ENTRY_SIZE, len(raw), ENTRY_SIZE):
        if raw[at + 2 : at + 4] != domid.to_bytes(2, "little"):
            kept.append(raw[at : at + ENTRY_SIZE])
    return raw if len(kept) * ENTRY_SIZE == len(raw) else intern(b"".join(kept))


def to_text(raw: bytes) -> bytes:
    """GET_PERMS's reply: `n0\\0r5\\0`."""
    return b"".join([b"%c%d\0" % (letter, domid) for letter, _, domid in _ENTRY.iter_unpack(raw)])


def from_text(texts: list[bytes], domains: dict[int, int], any_domain: bool = True) -> bytes:
    """Permissions from SET_PERMS's strings. XenstoreError EINVAL; ENOENT if the owner is unknown.

    An entry for a domain that does not exist is kept, but marked stale; so is one for DOMID_ANY,
    unless `any_domain` allows it.
    """
    if any(text[:1] not in _LETTERS for text in texts):
        raise XenstoreError("EINVAL")
    domids = [_number(text[1:]) for text in texts]
    if domids[0] not in domains and (domids[0] != DOMID_ANY or not any_domain):
        raise XenstoreError("ENOENT")
    if any(not 0 <= domid <= 0xFFFF for domid in domids):
        raise XenstoreError("EINVAL")
    entries = [
        _ENTRY.pack(
            text[0],
            0 if domid in domains or (domid == DOMID_ANY and any_domain) else STALE,
            domid,
        )
        for text, domid in zip(texts, domids, strict=True)
    ]
    return intern(b"".join(entries))


def valid_stream_entry(raw: bytes) -> bool:
    """Whether bytes from a state stream are permissions."""
    if not raw or len(raw) % ENTRY_SIZE:
        return False
    return all(letter in ACCESS for letter, _, _ in _ENTRY.iter_unpack(raw))


def _number(text: bytes) -> int:
    """What C's `strtol(text, &end, 0)` reads, if it reads all of it; else EINVAL."""
    digits = text.lstrip(b" \t\n\v\f\r")
    sign = 1
    if digits[:1] in (b"+", b"-"):
        sign = -1 if digits[:1] == b"-" else 1
        digits = digits[1:]
    digits = digits.lower()
    base = 10
    if digits.startswith(b"0x"):
        digits, base = digits[2:], 16
    elif digits.startswith(b"0"):
        base = 8
    if not digits or digits.translate(None, _DIGITS[base]):
        raise XenstoreError("EINVAL")
    return sign * int(digits, base)
