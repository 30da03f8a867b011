"""A witness for handed-over memory: a plain model of what must be there, and a reader of its own.

The simulator's chains compare every module with what the kernels did to it. Whoever compares must
not share the mistakes of what is compared: this file knows the format from its description alone
and uses nothing of `kexec/` or `abi/`.

    last page: "KexecMem", n_pages u16 @8, n_records u16 @10, recs_off u16 @12, owners @14
    recs_off:  n_records times offset u16, type u8, size u8; then the records' data
    sealed:    "KexS", kind u16, flags u16, two slots: generation u32, crc32 u32, payload

**Invariants.** `look` gives a `Seen` or raises `Mismatch` for any bytes. A page is known by its
address, a record by its index: neither may change when a module grows, shrinks or is compacted.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from xenlive.sim.client import Mismatch

PAGE = 4096
FREE = 255
OWNED = re.compile(rb"[^\xff]+")
HEAD = struct.Struct("<8sHHH")
ENTRY = struct.Struct("<HBB")
SEAL_HEAD = struct.Struct("<4sHH")
SLOT_HEAD = struct.Struct("<II")
SEALED = 0xE0
RESIZE = 0xE1
COVERS_PAGES = 1

#: Address and size to bytes.
Reader = Callable[[int, int], bytes]


@dataclass
class Seal:
    """What a sealed record must say: `payload`.

    `stale`: its pages have changed since it was written. Then it says nothing, or, should they have
    become what they were before, `older`.
    """

    kind: int
    payload: bytes
    covers_pages: bool
    stale: bool = False
    older: bytes | None = None


@dataclass
class Expected:
    """What a module must hold: by page address, by record index."""

    address: int
    admin_address: int
    n_records: int
    records: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    owners: dict[int, int] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    seals: dict[int, Seal] = field(default_factory=dict)
    #: Nothing but zeros lies behind the table outside of records: no kernel died on the way.
    tidy: bool = True

    def copy(self) -> Expected:
        """One that can be changed without changing this one."""
        return replace(
            self,
            records=dict(self.records),
            owners=dict(self.owners),
            contents=dict(self.contents),
            seals={index: replace(seal) for index, seal in self.seals.items()},
        )

    @property
    def n_pages(self) -> int:
        """Pages that can have an owner."""
        return (self.admin_address - self.address) // PAGE

    @property
    def size(self) -> int:
        """Bytes of the whole module."""
        return self.admin_address + PAGE - self.address

    def pages_of(self, index: int) -> list[int]:
        """Addresses of a record's pages, lowest first."""
        return sorted(page for page, owner in self.owners.items() if owner == index)


@dataclass
class Seen:
    """What the last page says: address of the lowest page, and by address or index."""

    address: int
    n_pages: int
    n_records: int
    recs_off: int
    records: dict[int, tuple[int, bytes]]
    places: dict[int, tuple[int, int]]
    owners: dict[int, int]
    page: bytes

    @property
    def record_end(self) -> int:
        """Where the next record's data goes."""
        table_end = self.recs_off + self.n_records * ENTRY.size
        return max([table_end, *(at + size for at, size in self.places.values())])


def look(read: Reader, admin_address: int) -> Seen:
    """What stands in the administration page. Mismatch if it contradicts itself."""
    page = read(admin_address, PAGE)
    eye, n_pages, n_records, recs_off = HEAD.unpack_from(page)
    table_end = recs_off + n_records * ENTRY.size
    if eye != b"KexecMem":
        raise Mismatch(f"no kexec module ends at {admin_address:#x}: {eye!r}")
    if n_records > FREE or HEAD.size + n_pages > recs_off or table_end > PAGE:
        raise Mismatch(f"{n_pages} pages, {n_records} records at {recs_off} can't be")
    records = {}
    places = {}
    for index in range(n_records):
        at, type_, size = ENTRY.unpack_from(page, recs_off + index * ENTRY.size)
        if type_:
            records[index] = (type_, page[at : at + size])
            places[index] = (at, size)
    _no_overlap(places, table_end)
    address = admin_address - n_pages * PAGE
    owners = owners_by_address(address, page[HEAD.size : HEAD.size + n_pages])
    orphans = set(owners.values()) - records.keys()
    if orphans:
        raise Mismatch(f"pages belong to records {sorted(orphans)}, which are not there")
    return Seen(address, n_pages, n_records, recs_off, records, places, owners, page)


def size_of(page: bytes) -> int:
    """Bytes of the whole module by what its last page says."""
    return (int(HEAD.unpack_from(page)[1]) + 1) * PAGE


def owners_by_address(address: int, owners: bytes) -> dict[int, int]:
    """The owners of all pages that have one, `address` being the first page's."""
    runs = OWNED.finditer(owners)
    return {address + i * PAGE: owners[i] for run in runs for i in range(*run.span())}


def _no_overlap(places: dict[int, tuple[int, int]], table_end: int) -> None:
    end = table_end
    for at, size, index in sorted((at, size, i) for i, (at, size) in places.items()):
        # A record without bytes takes no place, so it may lie anywhere behind the table.
        if at + size > PAGE or at < (end if size else table_end):
            raise Mismatch(f"record {index}, {size} bytes at {at}, runs into something")
        end = max(end, at + size)


def check(read: Reader, expected: Expected) -> Seen:
    """Compares the module with what it must hold, down to the last page; Mismatch if it differs."""
    seen = look(read, expected.admin_address)
    compare_tables(seen, expected)
    for address, content in expected.contents.items():
        if read(address, PAGE) != content:
            raise Mismatch(f"page {address:#x} of record {expected.owners[address]} has changed")
    for index, seal in expected.seals.items():
        _compare_seal(read, seen, index, seal)
    if expected.tidy:
        compare_leftovers(seen)
    return seen


def compare_tables(seen: Seen, expected: Expected) -> None:
    """Holds address, table, records and owners against the model."""
    if seen.address != expected.address:
        raise Mismatch(f"the module starts at {seen.address:#x}, not {expected.address:#x}")
    if seen.n_records != expected.n_records:
        raise Mismatch(f"the table has {seen.n_records} entries, not {expected.n_records}")
    if seen.records.keys() != expected.records.keys():
        raise Mismatch(f"records {sorted(seen.records)}, not {sorted(expected.records)}")
    for index, (type_, data) in expected.records.items():
        found = seen.records[index]
        same = found[1] == data or (index in expected.seals and len(found[1]) == len(data))
        if found[0] != type_ or not same:
            raise Mismatch(f"record {index} is {found}, not {(type_, data)}")
    if seen.owners != expected.owners:
        odd = dict(set(seen.owners.items()) ^ set(expected.owners.items()))
        raise Mismatch(f"owners differ at {', '.join(f'{page:#x}' for page in sorted(odd))}")


def compare_leftovers(seen: Seen) -> None:
    """Nothing but zeros lies outside of the records."""
    rest = bytearray(seen.page)
    table_end = seen.recs_off + seen.n_records * ENTRY.size
    rest[:table_end] = bytes(table_end)
    for at, size in seen.places.values():
        rest[at : at + size] = bytes(size)
    if rest.count(0) != len(rest):
        where = next(i for i, byte in enumerate(rest) if byte)
        raise Mismatch(f"something was left behind at {where} of the last page")


# -- sealed records ------------------------------------------------------------------------------


def open_seal(read: Reader, seen: Seen, index: int) -> tuple[int, bytes] | None:
    """Kind and payload of a sealed record by its newest slot that is whole; None if none is."""
    data = seen.records[index][1]
    magic, kind, flags = SEAL_HEAD.unpack_from(data)
    if magic != b"KexS":
        return None
    size = (len(data) - SEAL_HEAD.size) // 2
    slots = [data[SEAL_HEAD.size + i * size :][:size] for i in (0, 1)]
    pages = b""
    if flags & COVERS_PAGES:
        mine = sorted(page for page, owner in seen.owners.items() if owner == index)
        pages = b"".join(read(page, PAGE) for page in mine)
    for slot in sorted(slots, key=lambda slot: SLOT_HEAD.unpack_from(slot)[0], reverse=True):
        generation, checksum = SLOT_HEAD.unpack_from(slot)
        payload = slot[SLOT_HEAD.size :]
        covered = (
            data[len(magic) : SEAL_HEAD.size] + struct.pack("<I", generation) + payload + pages
        )
        if generation and zlib.crc32(covered) == checksum:
            return kind, payload
    return None


def _compare_seal(read: Reader, seen: Seen, index: int, seal: Seal) -> None:
    found = open_seal(read, seen, index)
    if seal.stale and (found is None or found == (seal.kind, seal.older)):
        return
    if found != (seal.kind, seal.payload):
        raise Mismatch(f"the sealed record {index} says {found}, not {(seal.kind, seal.payload)}")


# -- after a kernel's death in the middle of an operation ----------------------------------------


def settle(read: Reader, before: Expected, after: Expected, piecewise: bool) -> Expected:
    """What an interrupted operation left: the state before it or the one after, else Mismatch.

    `piecewise` is for what is done page by page or byte by byte (allocating, freeing, overwriting
    a record): there each page's owner and each byte of data is that before or that after.
    """
    complaints = []
    n_records = look(read, before.admin_address).n_records
    for state in (before, after):
        found = replace(state.copy(), tidy=False)
        if before.address != after.address and n_records > max(state.records, default=-1):
            # A resize may have cut the table to what is used, or made it one longer.
            found.n_records = min(n_records, state.n_records + 1)
        try:
            check(read, found)
        except Mismatch as mismatch:
            complaints.append(str(mismatch))
        else:
            return found
    if not piecewise:
        raise Mismatch(f"neither before ({complaints[0]}) nor after ({complaints[1]})")
    found = replace(_mixed(look(read, before.admin_address), before, after), tidy=False)
    check(read, found)
    return found


def _mixed(seen: Seen, before: Expected, after: Expected) -> Expected:
    """The state that is seen, if each of its pieces is that before or that after."""
    found = before.copy()
    for index in before.records.keys() | after.records.keys():
        states = {state.records.get(index) for state in (before, after)}
        now = seen.records.get(index)
        if now is not None and index in before.seals:
            now = before.records[index]  # whether it reads right is the seal's affair
        if now not in states and not _bytes_of(now, states):
            raise Mismatch(f"record {index} is {now}, none of {states}")
        found.records.pop(index, None)
        if now is not None:
            found.records[index] = now
        else:
            found.seals.pop(index, None)
    for page in before.owners.keys() | after.owners.keys():
        owners = {state.owners.get(page, FREE) for state in (before, after)}
        owner = seen.owners.get(page, FREE)
        if owner not in owners:
            raise Mismatch(f"page {page:#x} belongs to {owner}, none of {owners}")
        found.owners.pop(page, None)
        if owner != FREE:
            found.owners[page] = owner
        if owner == FREE or page not in before.owners:
            found.contents.pop(page, None)
    for index, seal in found.seals.items():
        seal.stale |= index in after.seals and after.seals[index].stale
        seal.stale |= found.pages_of(index) != before.pages_of(index)
    return found


def _bytes_of(now: tuple[int, bytes] | None, states: set[tuple[int, bytes] | None]) -> bool:
    """Whether each byte of a record is that of one of its states."""
    whole = [state for state in states if state is not None]
    if now is None or len(whole) != len(states):
        return False
    if any(state[0] != now[0] or len(state[1]) != len(now[1]) for state in whole):
        return False
    return all(byte in {state[1][i] for state in whole} for i, byte in enumerate(now[1]))
