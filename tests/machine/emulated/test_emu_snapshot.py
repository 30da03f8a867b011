"""Going back to how a whole world was, and going on from there as it went on then."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from kernels.building import build_kernel
from machine.emulated import small_guests, worlds
from machine.emulated.worlds import MEMORY_BYTES, SECOND_NS, Said, run_in_steps

from xenlive.abi.xs_wire import (
    XS_MKDIR,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XS_WRITE,
    XSD_SOCKMSG,
)
from xenlive.errors import ConfigError, ImageError
from xenlive.machine.emulated import world as world_module
from xenlive.machine.emulated.backends.xenstore import StoreService
from xenlive.machine.emulated.lens.snapshot import (
    Snapshot,
    digest_of,
    restore_world,
    save_world,
)
from xenlive.machine.emulated.world import WORLD_ENDED, World

pytestmark = pytest.mark.peer

MakeWorld = Callable[[Said], World]


@pytest.fixture(autouse=True)
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that worlds can be stopped at many places."""
    monkeypatch.setattr(world_module, "SLICE_BLOCKS", 700)


@pytest.fixture
def worlds_to_close() -> Iterator[list[World]]:
    made: list[World] = []
    yield made
    for world in made:
        world.close()


def finish(world: World) -> str:
    """Runs a world to its end; the digest of that."""
    assert world.run(until_ns=20 * SECOND_NS) == WORLD_ENDED
    return digest_of(world)


@pytest.mark.parametrize("make", [worlds.pair_world, worlds.small_world])
def test_going_on_is_the_run_that_was(make: MakeWorld, worlds_to_close: list[World]) -> None:
    straight, stepped = Said(), Said()
    world = make(straight)
    worlds_to_close.append(world)
    last = finish(world)

    world = make(stepped)
    worlds_to_close.append(world)
    kept: list[tuple[Snapshot, str, dict[str, int]]] = []
    for _ in run_in_steps(world):
        snapshot = save_world(world, kept[-1][0] if kept else None)
        told = {name: len(text) for name, text in stepped.text.items()}
        kept.append((snapshot, snapshot.digest(), told))
    # Saving changes nothing.
    assert digest_of(world) == last
    assert stepped.text == straight.text
    assert len(kept) > 20
    assert len({digest for _, digest, _ in kept}) == len(kept)

    for snapshot, digest, told in [*kept[:: len(kept) // 8], kept[0], kept[-1], kept[0]]:
        restore_world(world, snapshot)
        assert digest_of(world) == digest
        for name, text in stepped.text.items():
            del text[told[name] :]
        assert finish(world) == last
        assert stepped.text == straight.text

    # In another world, where nothing was before.
    for snapshot, digest, told in kept[3 :: len(kept) // 3]:
        elsewhere, said = World(), Said()
        worlds_to_close.append(elsewhere)
        restore_world(elsewhere, snapshot, lambda name, said=said: said.sink(name).extend)  # type: ignore[misc]
        assert digest_of(elsewhere) == digest
        assert finish(elsewhere) == last
        for name, text in said.text.items():
            assert text == straight.text[name][told[name] :]


def test_guests_come_and_go(worlds_to_close: list[World]) -> None:
    """One that was removed since is back, one that was added is gone."""
    said = Said()
    world = worlds.small_world(said)
    worlds_to_close.append(world)
    world.step()
    snapshot = save_world(world)
    kept = world.guests[0]
    world.remove_guest(world.guests[1])
    worlds.add(world, said, "late", build_kernel(small_guests.SAYS_HELLO).read_bytes())
    assert digest_of(world) != snapshot.digest()
    restore_world(world, snapshot)
    assert [guest.name for guest in world.guests] == ["sleeps", "echoes", "asks", "spins"]
    assert world.guests[0] is kept
    assert sorted(world.peers) == [0, 1, 2, 3, 4]
    assert not world.toolstack.exists("/local/domain/5")
    assert digest_of(world) == snapshot.digest()
    finish(world)


def test_what_did_not_change_is_kept_once_and_zero_not_at_all(
    worlds_to_close: list[World],
) -> None:
    world = World()
    worlds_to_close.append(world)
    guest = world.add_guest(memory_bytes=4 << 30)
    guest.boot(build_kernel(small_guests.ECHOES).read_bytes())
    space = guest.domain.space
    space.write(0x4000000, b"here" * 4096)
    space.write(0x8000000, bytes(1 << 20))
    space.read(0x9000000, 1 << 20)
    first = save_world(world)
    assert sum(len(data) for data in first.memory[1].values()) < 512 << 10
    space.write(0x4000000, b"there")
    second = save_world(world, first)
    different = [at for at, data in second.memory[1].items() if data is not first.memory[1][at]]
    assert len(different) == 1
    restore_world(world, first)
    assert space.read(0x4000000, 8) == b"herehere"
    space.write(0x4000000, bytes(16384))
    restore_world(world, second)
    assert space.read(0x4000000, 8) == b"thereere"


class Notes:
    """A part of a world with a state."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def save(self) -> object:
        return list(self.notes)

    def restore(self, state: object) -> None:
        if type(state) is not list:
            raise ImageError("notes", "no list")
        self.notes = list(state)


def test_parts_go_along(worlds_to_close: list[World]) -> None:
    world = World()
    worlds_to_close.append(world)
    notes = Notes()
    world.parts["notes"] = notes
    world.add_guest(memory_bytes=MEMORY_BYTES)
    notes.notes.append("one")
    snapshot = save_world(world)
    notes.notes.append("two")
    restore_world(world, snapshot)
    assert notes.notes == ["one"]
    other = World()
    worlds_to_close.append(other)
    with pytest.raises(ImageError, match="parts"):
        restore_world(other, snapshot)


def test_what_is_not_ours_is_not_saved(worlds_to_close: list[World]) -> None:
    said = Said()
    world = worlds.pair_world(said)
    worlds_to_close.append(world)
    server, client = world.guests
    world.run(until=lambda: bool(client.domain.mappings.mapped()))
    world.remove_guest(server)
    with pytest.raises(ConfigError, match="gone"):
        save_world(world)


def request(kind: int, payload: bytes, tx: int = 0) -> bytes:
    return XSD_SOCKMSG.pack(kind, 7, tx, len(payload)) + payload


def test_open_transactions_go_along(worlds_to_close: list[World]) -> None:
    """One that can be committed then, one in conflict, and watches in their order."""
    world = World()
    worlds_to_close.append(world)
    world.add_guest(memory_bytes=MEMORY_BYTES)
    heard: list[str] = []
    world.toolstack.watch("/made", lambda path: heard.append(f"1 {path}"))
    world.toolstack.watch("/", lambda path: heard.append(f"2 {path}"))
    service = world.store
    assert isinstance(service, StoreService)
    connection = service.client().connection

    def ask(message: bytes) -> bytes:
        service.server.receive(connection, message)
        return connection.take()

    world.toolstack.write("/old/a", "1")
    first = int(ask(request(XS_TRANSACTION_START, b"\0"))[16:-1])
    second = int(ask(request(XS_TRANSACTION_START, b"\0"))[16:-1])
    for tx in (first, second):
        ask(request(XS_MKDIR, b"/made/%d\0" % tx, tx))
        ask(request(XS_WRITE, b"/old/a\0two", tx))
    snapshot = save_world(world)

    def commit() -> tuple[list[bytes], list[str], str]:
        heard.clear()
        answers = [ask(request(XS_TRANSACTION_END, b"T\0", tx)) for tx in (first, second)]
        service.settle()
        return answers, list(heard), digest_of(world)

    results = []
    for _ in range(3):
        results.append(commit())
        restore_world(world, snapshot)
        assert digest_of(world) == snapshot.digest()
    assert results[0] == results[1] == results[2]
    answers, events, _ = results[0]
    assert b"OK" in answers[0]
    assert b"EAGAIN" in answers[1]
    assert [event for event in events if "/made" in event][:2] == ["1 /made/1", "2 /made/1"]
