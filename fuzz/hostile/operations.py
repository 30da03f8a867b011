"""Operations on an attached module, each beside what it must do, by the plain reading of the page.

An operation is four bytes: which one, and three small numbers. What a call would leave is worked
out from the `State` before it; what it did leave is read back by code that is not the product's.

**Invariants.** A refusal changes no byte, and is right to refuse where that can be said without
repeating the product. What the call does not speak of is as it was: records with their bytes,
owners counted from the administration page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hostile.ram import RAM_START, HostileRam
from hostile.seals import seal_new, seal_read, seal_update
from hostile.soundness import FREE, PAGE, State, entries, is_sound, read_state
from hostile.target import Find, expect
from xenlive.errors import ImageError, ModuleError, OutOfSpace
from xenlive.kexec.module import KexecModule

# What a call must leave; None where it must refuse.
Expected = State | None
MAX_PAGES = 4018  # allocatable ones


class Player:
    """Plays operations on a module that is attached in `ram`."""

    def __init__(self, ram: HostileRam, module: KexecModule) -> None:
        self.ram = ram
        self.module = module

    def play(self, operation: tuple[int, int, int, int]) -> str:
        """One operation. A find if it did not do what it must; else its name and how it ended."""
        code, *numbers = operation
        act = OPERATIONS[code % len(OPERATIONS)]
        page = self.ram.page()
        state = read_state(page)
        try:
            expected = act(self, state, *numbers)
        except (ModuleError, OutOfSpace, ImageError) as error:
            promised = not isinstance(error, ImageError) or error.code == "seal-broken"
            expect(promised, f"{act.__name__}: the module was sound, but {error}")
            expect(self.ram.page() == page, f"{act.__name__}: a refusal changes nothing: {error}")
            return f"{act.__name__} refused"
        self._hold_against(expected, act.__name__)
        return act.__name__

    def _hold_against(self, expected: State, name: str) -> None:
        page = self.ram.page()
        expect(is_sound(page, self.module.size_bytes), f"{name} leaves a sound module")
        unused = [entry for entry in entries(page) if not entry[2]]
        expect(not any(entry[1] or entry[3] for entry in unused), f"{name} clears unused entries")
        found = read_state(page)
        if found != expected:
            raise Find(f"{name}: {_difference(expected, found)}")
        address = self.module.admin_address - len(found.owners) * PAGE
        expect(self.module.address == address, f"{name}: the module is as long as the page says")
        expect(self.module.n_records == found.n_records, f"{name}: n_records as in the page")
        expect(self.module.owners() == found.owners[::-1], f"{name}: owners as in the page")

    def refused(self, call: Callable[[], object]) -> None:
        """A call that must be refused: the refusal goes on to `play`."""
        answer = call()
        expect(False, f"it is refused, not answered with {answer!r}")


def _difference(expected: State, found: State) -> str:
    """What is not as it should be, in a line."""
    for index in sorted({*expected.records, *found.records}):
        wanted, there = expected.records.get(index), found.records.get(index)
        if wanted != there:
            return f"record {index} should be {wanted}, is {there}"
    if expected.n_records != found.n_records:
        return f"n_records should be {expected.n_records}, is {found.n_records}"
    if len(expected.owners) != len(found.owners):
        return f"there should be {len(expected.owners)} pages, not {len(found.owners)}"
    wrong = [at for at, owner in enumerate(found.owners) if owner != expected.owners[at]]
    at = wrong[0]
    return f"page {at} from the end should be {expected.owners[at]}'s, is {found.owners[at]}'s"


def add(player: Player, state: State, type_: int, size: int, byte: int) -> State:
    """A new record, sometimes too large for any."""
    data = bytes([byte]) * (size + (256 if byte == FREE else 0))
    unused = [index for index in range(state.n_records) if index not in state.records]
    page = player.ram.page()
    table = int.from_bytes(page[12:14], "little") + 4 * state.n_records
    end = max([table, *(offset + size for _, offset, used, size in entries(page) if used)])
    possible = type_ > 0 and len(data) <= 255 and unused and end + len(data) <= PAGE
    expect(player.module.free_record_bytes() == PAGE - end, "free bytes are those behind the last")
    if not possible:
        player.refused(lambda: player.module.add_record(type_, data))
    index = player.module.add_record(type_, data)
    expect(index == unused[0], "the lowest unused entry is taken")
    return replace(state, records={**state.records, index: (type_, data)})


def update(player: Player, state: State, index: int, size: int, offset: int) -> State:
    """Some of a record's bytes anew."""
    data = bytes([offset ^ 0x5A]) * size
    if index not in state.records or offset + size > len(state.records[index][1]):
        player.refused(lambda: player.module.update_record(index, data, offset))
    player.module.update_record(index, data, offset)
    type_, old = state.records[index]
    new = old[:offset] + data + old[offset + size :]
    return replace(state, records={**state.records, index: (type_, new)})


def alloc(player: Player, state: State, record: int, n: int, _: int) -> State:
    """The lowest pages in a row that are free."""
    upward = state.owners[::-1]
    first = upward.find(bytes([FREE]) * n)
    if record not in state.records or n < 1 or first < 0:
        player.refused(lambda: player.module.alloc_pages(record, n))
    expect(player.module.alloc_pages(record, n) == first, "the lowest run is taken")
    owners = upward[:first] + bytes([record]) * n + upward[first + n :]
    return replace(state, owners=owners[::-1])


def free(player: Player, state: State, low: int, n: int, high: int) -> State:
    """Pages given back."""
    first = low + (high & 0xF) * 256
    upward = state.owners[::-1]
    run = upward[first : first + n]
    if n < 1 or len(run) < n or FREE in run:
        player.refused(lambda: player.module.free_pages(first, n))
    player.module.free_pages(first, n)
    owners = upward[:first] + bytes([FREE]) * n + upward[first + n :]
    return replace(state, owners=owners[::-1])


def look(player: Player, state: State, type_: int, start: int, page: int) -> State:
    """All that only reads."""
    module = player.module
    found = {r.index: (r.type, module.read_record(r.index)) for r in module.records()}
    expect(found == state.records, "records and their bytes are read as they stand there")
    expect([r.index for r in module.records()] == sorted(found), "records come by index")
    for index in list(found)[:4]:
        expect(module.record(index).index == index, "a record has its index")
        owned = [at for at, owner in enumerate(state.owners[::-1]) if owner == index]
        expect(module.pages_of(index) == owned, "the pages of a record are those it owns")
    expect(module.free_page_count() == state.owners.count(FREE), "free pages are counted")
    above = [index for index in sorted(found) if index >= start and found[index][0] == type_]
    if type_:
        first = module.find_record(type_, start)
        expect(first == (above[0] if above else None), "the first record of a type is found")
    if page < module.n_pages:
        address = module.admin_address - (module.n_pages - page) * PAGE
        expect(module.page_address(page) == address, "a page is where its index says")
        expect(module.page_frame(page) == address // PAGE, "its frame too")
    return state


def delete(player: Player, state: State, index: int, free_pages: int, _: int) -> State:
    """A record taken out, with its pages or only if it has none."""
    with_pages = bool(free_pages & 1)
    if index not in state.records or (index in state.owners and not with_pages):
        player.refused(lambda: player.module.delete_record(index, free_pages=with_pages))
    player.module.delete_record(index, free_pages=with_pages)
    records = {at: record for at, record in state.records.items() if at != index}
    owners = state.owners.replace(bytes([index]), bytes([FREE]))
    return replace(state, records=records, owners=owners)


def compact(player: Player, state: State, *_: int) -> State:
    """Gaps closed; never fewer bytes than before."""
    before = player.module.free_record_bytes()
    after = player.module.compact()
    expect(after == player.module.free_record_bytes(), "it says how many bytes are free")
    expect(after >= before, "compacting does not cost bytes")
    return state


def extend(player: Player, state: State, low: int, more: int, _: int) -> State:
    """A longer table, by `more` mostly, sometimes by far."""
    n_records = state.n_records + more % 32 if low & 3 else low + more
    if not state.n_records <= n_records <= 255:
        player.refused(lambda: player.module.extend_table(n_records))
    player.module.extend_table(n_records)
    return replace(state, n_records=n_records)


def grow(player: Player, state: State, low: int, high: int, reserve: int) -> State:
    """More pages at the lower end, up to the end of RAM or what is reserved, or too many."""
    module = player.module
    n = low if high & 7 else low + high * 16
    room = (module.address - RAM_START) // PAGE
    taken = []
    if reserve & 1:
        room = min(room, reserve >> 1)
        taken = [(module.address - (room + 1) * PAGE, PAGE)]
    if n < 1 or n > room or len(state.owners) + n > MAX_PAGES:
        player.refused(lambda: module.grow(n, player.ram.map, taken))
    address, admin_address = module.address, module.admin_address
    module.grow(n, player.ram.map, taken)
    expect(module.address == address - n * PAGE, "it begins lower")
    expect(module.admin_address == admin_address, "its last page stays where it is")
    return replace(state, owners=state.owners + bytes([FREE]) * n)


def shrink(player: Player, state: State, low: int, high: int, _: int) -> State:
    """Fewer pages, if those at the lower end are free."""
    module = player.module
    n = low if high & 7 else low + high * 16
    if n < 1 or set(state.owners[-n:]) - {FREE} or n > len(state.owners):
        player.refused(lambda: module.shrink(n))
    address, admin_address = module.address, module.admin_address
    module.shrink(n)
    expect(module.address == address + n * PAGE, "it begins higher")
    expect(module.admin_address == admin_address, "its last page stays where it is")
    return replace(state, owners=state.owners[:-n])


def attach_again(player: Player, state: State, *_: int) -> State:
    """What the next kernel does."""
    address, size_bytes = player.module.address, player.module.size_bytes
    player.module.release()
    player.module = KexecModule.attach(player.ram.memory, address, size_bytes)
    return state


# Sixteen, so that a saved input means the same after one more is added in place of a repeated one.
OPERATIONS: tuple[Callable[[Player, State, int, int, int], State], ...] = (
    *(add, update, alloc, free, look, attach_again, delete, compact),
    *(extend, grow, shrink, seal_new, seal_update, seal_read, alloc, grow),
)
