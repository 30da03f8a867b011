"""Snapshots: a whole world as it is, to go back to, as often as one likes, also from a file.

    world ── save_world ──▶ Snapshot: state (plain JSON), memory in pieces, files
          ◀─ restore_world ──┘   └── snapshot_file.py: on disk

All there is goes along: domains, processors, memory, ports, grants, Xenstore with its watches and
transactions, consoles, the clock. The forms of it are in the files beside this one.

**Invariants.** Going on from a snapshot is, bit for bit, the run that went on when it was taken, in
this process or another one. Saving changes no state; what was translated is forgotten. Memory that
is zero costs nothing, and what did not change since an earlier snapshot is shared with it. Whatever
a snapshot's file says, it is restored whole or is one ImageError; after one from `restore_world`
the world can only be closed.

What is not in it: what was seen of the run so far (traces), what watches it (breakpoints, functions
that are called), and what is not this program's (a directory that a guest shares is refused).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xenlive.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from xenlive.errors import ConfigError, ImageError
from xenlive.kexec.elf import analyse_kernel
from xenlive.machine.emulated.build import MEMORY_MAX, MEMORY_MIN, Loaded
from xenlive.machine.emulated.lens.snapshot_forms import (
    Data,
    Fields,
    Flag,
    Listed,
    Maybe,
    Place,
    Row,
    Text,
    Whole,
)
from xenlive.machine.emulated.lens.snapshot_names import Names
from xenlive.machine.emulated.lens.snapshot_state import (
    COUNT,
    EVENTS,
    PORT,
    TIME,
    U64,
    VCPU,
    Plain,
    Stop,
    domain_form,
    validate_together,
)
from xenlive.machine.emulated.lens.snapshot_store import LoadedStore, save_store
from xenlive.machine.emulated.sparse import PIECE_SIZE
from xenlive.memory.address import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.world import Guest, World

    Sink = Callable[[bytes], object]

GUESTS_MAX = 64
_FILES_MAX = 4096
# Kernels that were entered: most of a long chain are a time alone.
_CHAIN_MAX = 1 << 24

_FILE = Whole(0, _FILES_MAX - 1)
#: Of each guest what is needed to make it; the rest can be read only then.
_HEAD = Fields(
    domid=Whole(1, 0x7FEF),
    name=Text(255),
    memory_bytes=Whole(MEMORY_MIN, MEMORY_MAX),
    spin_limit=Whole(1, 1 << 62),
    kernel=Maybe(_FILE),
    files=Listed(_FILE, _FILES_MAX, list),
    chain=Listed(Row(TIME, _FILE), _CHAIN_MAX, list),
    start_info=Maybe(U64),
    taken=Listed(Row(U64, U64), _FILES_MAX),
    stop=Maybe(Stop()),
    ended=Maybe(Stop()),
    console=Row(Data(64 << 20), PORT),
    ring=Row(Flag(), PORT),
    holes=Listed(U64, 1024, list),
)
_TOP = {"clock_ns", "vain_timers", "guests", "host", "store", "parts"}
_HOST = Fields(events=Plain(), waiting=Listed(PORT, 4096))

#: Attributes of `Guest` that are told here, or that are no state: whoever adds one has to say.
_GUEST_KNOWN = frozenset(
    (
        *("_world", "name", "domain", "vcpu", "console", "store", "kernel", "files", "loaded"),
        *("chain", "stop", "on_stop", "devices"),
    )
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A world as it was: `state` in plain JSON, `memory` of each domain, `files` that were loaded.

    Memory is pieces of PIECE_SIZE bytes by their place in the domain's memory.
    """

    state: dict[str, Any]
    memory: dict[int, dict[int, bytes]]
    files: tuple[bytes, ...]

    @property
    def time_ns(self) -> int:
        """The world's virtual time when it was taken."""
        when: int = self.state["clock_ns"]
        return when

    def digest(self) -> str:
        """A digest of all of it: equal for equal states, and for no others."""
        found = hashlib.blake2b(json.dumps(self.state, sort_keys=True).encode(), digest_size=16)
        for file in self.files:
            found.update(len(file).to_bytes(8, "little") + file)
        for domid in sorted(self.memory):
            for start in sorted(self.memory[domid]):
                found.update(f"{domid} {start} ".encode() + self.memory[domid][start])
        return found.hexdigest()


# ---- saving --------------------------------------------------------------------------------------


def save_world(world: World, before: Snapshot | None = None) -> Snapshot:
    """The world as it is, between two slices. What `before` has as well is shared with it.

    ConfigError if there is something that a snapshot can't hold.
    """
    for guest in world.guests:
        _validate_can_be_saved(world, guest)
    for guest in world.guests:
        # What it has translated is no state, but shows: in long runs of large kernels it decides
        # where a few blocks end, which is time. So the run that goes on begins without, too.
        guest.vcpu.engine.restore(guest.vcpu.engine.save())
    files: list[bytes] = []
    state = {
        "clock_ns": world.clock.now_ns,
        "vain_timers": world.vain_timers,
        "guests": [_save_guest(guest, files) for guest in world.guests],
        "host": {
            "events": EVENTS.save(world.host.events.save()),
            "waiting": list(world.host.host_events.save()),
        },
        "store": save_store(world),
        "parts": {name: part.save() for name, part in sorted(world.parts.items())},
    }
    memory = {}
    for guest in world.guests:
        old = before.memory.get(guest.domain.domid, {}) if before is not None else {}
        memory[guest.domain.domid] = {
            start: old[start] if old.get(start) == data else data
            for start, data in guest.domain.space.pieces()
        }
    return Snapshot(state, memory, tuple(files))


def digest_of(world: World) -> str:
    """A digest of the world as it is: that of its snapshot."""
    return save_world(world).digest()


def _validate_can_be_saved(world: World, guest: Guest) -> None:
    if guest.devices:
        why = "shares a directory, which is not the world's to save"
        raise ConfigError(f"snapshot of guest {guest.name}", 0, why)
    domids = {other.domain.domid for other in world.guests}
    for handle, mapped in guest.domain.mappings.mapped().items():
        if mapped.table.domid not in domids:
            why = f"maps a page of domain {mapped.table.domid}, which is gone (handle {handle})"
            raise ConfigError(f"snapshot of guest {guest.name}", 0, why)
    if set(vars(guest)) != _GUEST_KNOWN:
        raise TypeError(f"snapshots know of a guest {sorted(set(vars(guest)) ^ _GUEST_KNOWN)} not")


def _save_guest(guest: Guest, files: list[bytes]) -> dict[str, Any]:
    def place(data: bytes) -> int:
        if data not in files:
            files.append(data)
        return files.index(data)

    loaded, domain = guest.loaded, guest.domain
    head = _HEAD.save(
        {
            "domid": domain.domid,
            "name": guest.name,
            "memory_bytes": sum(size for _, size, kind in domain.boot_map if kind == 1),
            "spin_limit": guest.vcpu.spin_limit,
            "kernel": place(guest.kernel) if loaded is not None else None,
            "files": [place(file) for file in guest.files],
            "chain": [(when, place(file)) for when, file in guest.chain],
            "start_info": loaded.start_info if loaded is not None else None,
            "taken": loaded.taken if loaded is not None else (),
            "stop": guest.stop,
            "ended": guest.vcpu.ended,
            "console": guest.console.save(),
            "ring": guest.store.save(),
            "holes": guest.vcpu.engine.holes,
        }
    )
    return {
        "head": head,
        "domain": domain_form(domain).save(domain.save(with_memory=False)),
        "vcpu": VCPU.save(guest.vcpu.save()),
    }


# ---- restoring -----------------------------------------------------------------------------------


def restore_world(
    world: World, snapshot: Snapshot, sink_of: Callable[[str], Sink] | None = None
) -> None:
    """Makes `world` what it was. Guests that are there stay the objects that they are.

    Those that are not are made, with a sink for their console by `sink_of` their name; those that
    were not there are gone. ImageError if the snapshot is not sound (see this file's head).
    """
    at = Place("snapshot", Names({}, {}))
    state = snapshot.state
    if type(state) is not dict or state.keys() != _TOP:
        raise at.fail("an object of " + ", ".join(sorted(_TOP)), state)
    heads = _load_heads(state["guests"], len(snapshot.files), at)
    guests = _make_guests(world, heads, sink_of or (lambda _: bytes))
    domains = {0: world.host} | {guest.domain.domid: guest.domain for guest in guests}
    names = Names(domains, {guest.domain.domid: guest.vcpu for guest in guests})
    loaded = _Loaded(snapshot, heads, guests, Place("snapshot", names))
    if type(state["parts"]) is not dict or state["parts"].keys() != world.parts.keys():
        raise at.down("parts").fail("what this world has", state["parts"])
    loaded.put_into(world)


def _load_heads(plain: Any, n_files: int, at: Place) -> list[dict[str, Any]]:
    at = at.down("guests")
    if type(plain) is not list or not 1 <= len(plain) <= GUESTS_MAX:
        raise at.fail(f"a list of 1 to {GUESTS_MAX} guests", plain)
    heads: list[dict[str, Any]] = []
    for index, each in enumerate(plain):
        here = at.down(index)
        if type(each) is not dict or each.keys() != {"head", "domain", "vcpu"}:
            raise here.fail("a guest", each)
        head = _HEAD.load(each["head"], here.down("head"))
        used = [*head["files"], *(file for _, file in head["chain"]), head["kernel"] or 0]
        if any(file >= n_files for file in used if n_files or file):
            raise here.down("files").fail(f"a list of the {n_files} files", used)
        if head["memory_bytes"] % PAGE_SIZE or any(h["domid"] == head["domid"] for h in heads):
            raise here.fail("a guest of its own", (head["domid"], head["memory_bytes"]))
        if (head["kernel"] is None) is not (head["start_info"] is None):
            raise here.fail("a guest with a kernel", head["kernel"])
        heads.append(head)
    return heads


def _make_guests(
    world: World, heads: list[dict[str, Any]], sink_of: Callable[[str], Sink]
) -> list[Guest]:
    """The guests of a snapshot: those that are there already, and others, made anew."""
    by_domid = {guest.domain.domid: guest for guest in world.guests}
    guests = []
    for head in heads:
        guest = by_domid.pop(head["domid"], None)
        if guest is not None and not _is_like(guest, head):
            _drop(world, guest)
            guest = None
        if guest is None:
            name, size = head["name"], head["memory_bytes"]
            guest = world.make_guest(head["domid"], name, size, sink_of(name), head["spin_limit"])
            world.guests.append(guest)
        guests.append(guest)
    for guest in by_domid.values():
        _drop(world, guest)
    world.guests[:] = guests
    return guests


def _is_like(guest: Guest, head: dict[str, Any]) -> bool:
    size = sum(size for _, size, kind in guest.domain.boot_map if kind == 1)
    return (guest.name, size) == (head["name"], head["memory_bytes"])


def _drop(world: World, guest: Guest) -> None:
    """Forgets a guest that never was; ports, grants and store are put back by others."""
    world.guests.remove(guest)
    world.peers.pop(guest.domain.domid, None)
    guest.close()


class _Loaded:
    """A snapshot that was read and checked; `put_into` makes a world what it tells of."""

    def __init__(
        self, snapshot: Snapshot, heads: list[dict[str, Any]], guests: list[Guest], at: Place
    ) -> None:
        self._snapshot, self._heads, self._guests = snapshot, heads, guests
        state = snapshot.state
        self._clock_ns = TIME.load(state["clock_ns"], at.down("clock_ns"))
        self._vain_timers = COUNT.load(state["vain_timers"], at.down("vain_timers"))
        host = state["host"]
        self._waiting = _HOST.load(host, at.down("host"))["waiting"]
        self._events = EVENTS.load(host["events"], at.down("host.events"))
        self._domains, self._vcpus = {}, []
        self._images = [self._load_image(head) for head in heads]
        for index, (guest, each) in enumerate(zip(guests, state["guests"], strict=True)):
            here, domid = at.down(f"guests.{index}"), guest.domain.domid
            loaded = domain_form(guest.domain).load(each["domain"], here.down("domain"))
            pieces = self._load_memory(guest, here.down("memory"))
            object.__setattr__(loaded[0], "pieces", pieces)
            self._domains[domid] = loaded
            self._vcpus.append(VCPU.load(each["vcpu"], here.down("vcpu")))
            self._validate_guest(guest, heads[index], here)
        pins = [
            (domid, ref, False)
            for domid in self._domains
            for ref in (GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE)
        ]
        validate_together(self._domains, self._events[0], pins, at.down("guests"))
        self._store = LoadedStore(state["store"], set(self._domains), at.down("store"))

    def _load_image(self, head: dict[str, Any]) -> Loaded | None:
        if head["kernel"] is None:
            return None
        image = analyse_kernel(self._snapshot.files[head["kernel"]])
        return Loaded(image, image.entry, head["start_info"], head["taken"])

    def _load_memory(self, guest: Guest, at: Place) -> tuple[tuple[int, bytes], ...]:
        pieces = self._snapshot.memory.get(guest.domain.domid, {})
        size = guest.domain.space.size_bytes
        for start, data in pieces.items():
            if start % PIECE_SIZE or not 0 <= start < size:
                raise at.fail("a place in the domain's memory", start)
            if len(data) != min(PIECE_SIZE, size - start):
                raise at.down(start).fail("a whole piece", len(data))
        return tuple(sorted(pieces.items()))

    def _validate_guest(self, guest: Guest, head: dict[str, Any], at: Place) -> None:
        for what in ("console", "ring"):
            port = head[what][1]
            if port not in self._events[0] or not port:
                raise at.down(what).fail("a port of the back end's", port)
        for page in head["holes"]:
            if page % PAGE_SIZE or page >> 40:
                raise at.down("holes").fail("a page that a processor can reach", page)

    def put_into(self, world: World) -> None:
        """Makes `world` what the snapshot tells of. Parts may still refuse their state."""
        world.clock.now_ns, world.vain_timers = self._clock_ns, self._vain_timers
        world.peers.clear()
        world.peers.update({0: world.host})
        world.host.events.restore(self._events)
        world.host.host_events.restore(self._waiting)
        for guest in self._guests:
            world.peers[guest.domain.domid] = guest.domain
            guest.domain.restore(self._domains[guest.domain.domid])
        self._store.put_into(world)
        parts = zip(self._guests, self._heads, self._images, self._vcpus, strict=True)
        for guest, head, image, vcpu in parts:
            self._put_guest(guest, head, image, vcpu)
        for name, part in sorted(world.parts.items()):
            part.restore(self._snapshot.state["parts"][name])

    def _put_guest(
        self, guest: Guest, head: dict[str, Any], image: Loaded | None, vcpu: Any
    ) -> None:
        files = self._snapshot.files
        guest.vcpu.restore(vcpu)
        guest.vcpu.ended, guest.stop = head["ended"], head["stop"]
        guest.vcpu.spin_limit = head["spin_limit"]
        space = guest.domain.space
        guest.vcpu.engine.holes = [page for page in head["holes"] if not space.is_backed(page, 1)]
        guest.console.restore(head["console"])
        guest.store.restore(head["ring"])
        guest.loaded = image
        guest.kernel = files[head["kernel"]] if head["kernel"] is not None else b""
        guest.files = [files[index] for index in head["files"]]
        guest.chain = [(when, files[index]) for when, index in head["chain"]]


__all__ = ["ImageError", "Snapshot", "digest_of", "restore_world", "save_world"]
