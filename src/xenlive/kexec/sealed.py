"""Sealed records: a payload with a checksum and a generation, whose update is one store.

`KexecModule.update_record` is many stores: a kernel that dies among them leaves half of it. A
sealed record keeps its payload twice (SEALED in `abi/kexec_module.py`):

    | magic, kind, flags | generation, checksum, payload | generation, checksum, payload |

An update writes the slot that does not count: generation 0 first, which makes it void, then payload
and checksum, then the generation, one higher than the other's, with one store. The checksum is
CRC-32 over kind, flags, generation and payload, and, if the record was made so, over the bytes of
its pages in order of their index: over what is in them and in which order, not over where they are.
So a seal stays whole when the module grows.

If there is no generation to go on from, the update starts over from 1 in one slot and makes the
other void: after the last generation there is, or when nothing matches and the generations are no
two that follow each other. Something that reads is made void last, something that doesn't first.

**The policy.** The slot with the highest generation counts. If its checksum does not match, the
other one counts, if that matches, and `fell_back` says so: there is one that does not match, and is
not older. If none matches that is `ImageError("seal-broken")`: the record is neither trusted nor
deleted nor updated, and the module around it stays of use. Whether a seal matters is up to who
reads the record: attaching to a module does not look at seals.

**Invariants.** After each single store of an update the record reads as before or as after: the
slot that reads is never the one that is written. No damage to a slot keeps the other from being
updated, and no damage at all keeps a record that covers its pages from it. Pages are not kept
twice: between the first change of a covered page and the end of the update, the seal is broken, and
that is what it is for.

Why no cryptographic checksum: who can write this memory can write the checksum too. It tells
damage, not malice.
"""

from __future__ import annotations

from zlib import crc32

from xenlive.abi.kexec_module import (
    MAX_RECORD_SIZE,
    RECORD_SEALED,
    SEALED_COVERS_PAGES,
    SEALED_HEAD,
    SEALED_MAGIC,
    SEALED_SLOT,
)
from xenlive.errors import ImageError, ModuleError
from xenlive.memory.address import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

    from xenlive.kexec.module import KexecModule
    from xenlive.memory.guest import GuestMemory

MAX_PAYLOAD_SIZE = (MAX_RECORD_SIZE - SEALED_HEAD.size) // 2 - SEALED_SLOT.size

_BROKEN = "no checksum of the sealed record matches"
_CHECKSUM = SEALED_SLOT.offset_of("checksum")
_MAX_U16 = (1 << 16) - 1
_MAX_GENERATION = (1 << 32) - 1


class Sealed:
    """What a sealed record says; `fell_back` if the newest payload is damaged, this an older."""

    __slots__ = ("covers_pages", "fell_back", "generation", "kind", "payload")

    def __init__(
        self, kind: int, generation: int, payload: bytes, fell_back: bool, covers_pages: bool
    ) -> None:
        self.kind = kind
        self.generation = generation
        self.payload = payload
        self.fell_back = fell_back
        self.covers_pages = covers_pages

    def __repr__(self) -> str:
        fell_back = ", fell back" if self.fell_back else ""
        return (
            f"Sealed(kind={self.kind}, generation={self.generation}, {self.payload!r}{fell_back})"
        )


def add_sealed(
    module: KexecModule, kind: int, payload: Buffer, memory: GuestMemory | None = None
) -> int:
    """A new sealed record of a `kind` that its users agree on, 0 to 65535; gives its index.

    With `memory` the seal covers the record's pages too; there are none yet, so `update_sealed`
    comes after they were allocated and filled. ModuleError for more than 115 bytes or no such
    kind, OutOfSpace as `KexecModule.add_record`.
    """
    if not 0 <= kind <= _MAX_U16:
        raise ModuleError(f"a sealed record's kind is 0 to {_MAX_U16}", kind)
    said = bytes(memoryview(payload))
    if len(said) > MAX_PAYLOAD_SIZE:
        what = f"a sealed record has at most {MAX_PAYLOAD_SIZE} bytes"
        raise ModuleError(what, len(said))
    flags = 0 if memory is None else SEALED_COVERS_PAGES
    head = SEALED_HEAD.pack(SEALED_MAGIC, kind, flags)
    slot = SEALED_SLOT.pack(1, _checksum(head, 1, said, ())) + said
    return module.add_record(RECORD_SEALED, head + slot + bytes(len(slot)))


def read_sealed(module: KexecModule, index: int, memory: GuestMemory | None = None) -> Sealed:
    """What the record says, by the policy above. ImageError `seal-broken` if nothing matches.

    ModuleError if there is no such record, or its pages are covered and `memory` is not given.
    """
    data = _read(module, index)
    return decode_sealed(data, _covered(module, index, data, memory))


def update_sealed(
    module: KexecModule, index: int, payload: Buffer, memory: GuestMemory | None = None
) -> int:
    """Replaces the payload, and seals the pages as they are now; gives the new generation.

    ModuleError for a payload of another size than the record's, or as `read_sealed`. ImageError
    `seal-broken` if no slot matches; not so for a record that covers its pages, as these have
    changed by now. The generation is one on, or 1 if there is none to go on from.
    """
    said = bytes(memoryview(payload))
    data = _read(module, index)
    pages = _covered(module, index, data, memory)
    head, slots = _slots(data)
    if len(said) != slots[0].size:
        what = f"sealed record {index} has a payload of {slots[0].size} bytes"
        raise ModuleError(what, len(said))
    kept, reads = _kept(head, slots, pages)
    written = slots[1] if kept is slots[0] else slots[0]
    generation = _next_generation(kept, written, reads)
    starts_over = generation <= kept.generation
    checksum = _checksum(head, generation, said, pages)
    if starts_over and not reads:
        module.update_record_u32(index, 0, kept.offset)
    module.update_record_u32(index, 0, written.offset)
    module.update_record(index, said, written.offset + SEALED_SLOT.size)
    module.update_record_u32(index, checksum, written.offset + _CHECKSUM)
    module.update_record_u32(index, generation, written.offset)
    if starts_over and reads:
        # until here the kept one, being the newer, reads: this is the store that counts
        module.update_record_u32(index, 0, kept.offset)
    return generation


def is_sealed(type_: int, data: bytes) -> bool:
    """Whether a record is one of these by type and magic, be its seal whole or broken."""
    return type_ == RECORD_SEALED and data.startswith(SEALED_MAGIC)


def covers_pages(data: bytes) -> bool:
    """Whether the seal of a sealed record is over its pages too."""
    return len(data) >= SEALED_HEAD.size and bool(
        SEALED_HEAD.decode(data)["flags"] & SEALED_COVERS_PAGES
    )


def decode_sealed(data: bytes, pages: Iterable[Buffer] = ()) -> Sealed:
    """What a sealed record's data says. ImageError `seal-broken` if nothing in it matches.

    `pages` are the record's pages in order of index; they count if the record covers them.
    """
    head, slots = _slots(data)
    covering = covers_pages(data)
    contents = list(pages) if covering else []
    good, bad = _matching(head, slots, contents)
    if not good:
        raise ImageError("seal-broken", _BROKEN, 0)
    newest = good[0]
    kind = SEALED_HEAD.decode(data)["kind"]
    fell_back = any(slot.generation >= newest.generation for slot in bad)
    return Sealed(kind, newest.generation, newest.payload, fell_back, covering)


class _Slot:
    """One of the two: where it lies in the record's data, and what it says."""

    __slots__ = ("checksum", "generation", "offset", "payload")

    def __init__(self, data: bytes, offset: int, size: int) -> None:
        numbers = SEALED_SLOT.unpack(data, offset)
        self.offset = offset
        self.generation: int = numbers[0]
        self.checksum: int = numbers[1]
        self.payload = data[offset + SEALED_SLOT.size : offset + size]

    @property
    def size(self) -> int:
        """Size of the payload in bytes."""
        return len(self.payload)


def _slots(data: bytes) -> tuple[bytes, list[_Slot]]:
    size = (len(data) - SEALED_HEAD.size) // 2
    if not data.startswith(SEALED_MAGIC) or size < SEALED_SLOT.size or len(data) % 2:
        raise ImageError("seal-broken", "the record has not the form of a sealed one", 0)
    offsets = (SEALED_HEAD.size, SEALED_HEAD.size + size)
    return data[: SEALED_HEAD.size], [_Slot(data, offset, size) for offset in offsets]


def _matching(
    head: bytes, slots: list[_Slot], pages: Sequence[Buffer]
) -> tuple[list[_Slot], list[_Slot]]:
    """The slots that match, newest first, and those that don't; void ones are neither."""
    good: list[_Slot] = []
    bad: list[_Slot] = []
    for slot in sorted(slots, key=lambda slot: -slot.generation):
        if slot.generation:
            matches = slot.checksum == _checksum(head, slot.generation, slot.payload, pages)
            (good if matches else bad).append(slot)
    return good, bad


def _kept(head: bytes, slots: list[_Slot], pages: Sequence[Buffer]) -> tuple[_Slot, bool]:
    """The slot that an update does not write to, and whether it reads.

    Once covered pages have changed, none reads, and there is nothing to lose: the newer one goes
    for the one that did.
    """
    good, _ = _matching(head, slots, pages)
    if good:
        return good[0], True
    if not covers_pages(head):
        raise ImageError("seal-broken", _BROKEN, 0)
    return sorted(slots, key=lambda slot: slot.generation)[1], False


def _next_generation(kept: _Slot, written: _Slot, reads: bool) -> int:
    """One on from the kept slot's; 1 if that is the last one, or neither it nor its slot is true.

    Updates leave two that follow each other, or one and a void slot: other pairs are damage. Some
    damage looks like that too: it is gone on from, and does no harm, since the last is not the end.
    """
    apart = kept.generation - written.generation
    is_damage = not reads and written.generation != 0 and apart != 1
    return 1 if is_damage or kept.generation == _MAX_GENERATION else kept.generation + 1


def _checksum(head: bytes, generation: int, payload: bytes, pages: Iterable[Buffer]) -> int:
    found = crc32(head[len(SEALED_MAGIC) :])
    found = crc32(generation.to_bytes(4, "little"), found)
    found = crc32(payload, found)
    for page in pages:
        found = crc32(page, found)
    return found


def _read(module: KexecModule, index: int) -> bytes:
    if module.record(index).type != RECORD_SEALED:
        raise ModuleError("no sealed record", index)
    return module.read_record(index)


def _covered(
    module: KexecModule, index: int, data: bytes, memory: GuestMemory | None
) -> list[memoryview]:
    if not covers_pages(data):
        return []
    if memory is None:
        raise ModuleError("memory is needed to seal the pages of record", index)
    pages = module.pages_of(index)
    return [memory.view(module.page_address(page), PAGE_SIZE) for page in pages]
